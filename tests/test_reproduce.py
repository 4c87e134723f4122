"""utils.reproduce: the stages as a user runs them, one after the other, and only those that are not done."""
import csv
import os
import shlex
import subprocess
import sys

import pytest

from utils.evaluate import score_folders
from utils.image import ImageError, read_image, write_png
from utils.metrics import mean_scores
from utils.reproduce import FUSED, Record, Stage, first_images, learning, references
from utils.tables import MEASURED, overview_markdown, published

from conftest import ROOT
from test_evaluate import inside
from test_metrics import near
from test_stages import photograph, stage

SHORT = "--methods", "sdrl", "--backbones", "DnCNN", "--recipe", "fast"


@pytest.fixture
def data(tmp_path):
    """dataset/Tiny with three pairs, of which 10 is the last."""
    for seed, stem in enumerate(("1", "2", "10")):
        rainy = photograph(36, 44, seed)
        write_png(tmp_path / f"dataset/Tiny/input/{stem}.png", rainy)
        write_png(tmp_path / f"dataset/Tiny/target/{stem}.png", near(rainy, seed))
    return tmp_path / "dataset/Tiny"


@pytest.fixture
def reproduce(data, monkeypatch):
    """Call it within this process; returns (what it returned, the commands it started). stop: one that is stopped."""

    def call(*words, ok=True, stop=None, code=130):
        started = []

        def start(command):
            started.append(os.path.basename(command[1]))
            if started[-1] == stop:
                return subprocess.CompletedProcess(command, code)
            assert command[0] == sys.executable and os.path.dirname(command[1]) == str(ROOT)
            return stage(shlex.join(["python", started[-1], *command[2:]]), cwd=data.parent.parent, ok=None)

        with monkeypatch.context() as patch:
            patch.setattr(subprocess, "run", start)
            return inside("utils.reproduce", "--dataset=Tiny", *words, cwd=data.parent.parent, ok=ok), started

    return call


def table(folder):
    with (folder / "scores/scores.csv").open(newline="") as file:
        return {(row["method"], row["image"]): row for row in csv.DictReader(file)}


def test_the_stages_run_once_and_their_results_are_scored(reproduce, data):
    first, started = reproduce(*SHORT, "--limit=2", "--", "--steps=2")
    assert started == ["ldgp.py", "sdr.py", "sdrl.py"]
    part = data / "limit_2"
    result = part / "result_sdrl_fast_DnCNN_steps=2"
    assert sorted(path.name for path in result.glob("[!.]*")) == ["1.png", "2.png"]
    name = "sdrl.py fast DnCNN --steps=2"
    expected = score_folders({"a": result, "b": part / "sdr(fuse)_fast"}, data / "target", part / "input").rows
    written = table(part)
    for row, method in (("a", name), ("b", FUSED["fast"])):
        for key, value in mean_scores(list(expected[row].values())).items():
            assert float(written[method, "mean of 2"][key]) == pytest.approx(value, abs=1e-6)
    text = (part / "scores/scores.md").read_text()
    assert text.startswith("Tiny, first 2 images\n\n| method |") and f"| {name} | one image | first 2 |" in text

    again, started = reproduce(*SHORT, "--limit=2", "--", "--steps=2")
    assert started == [] and again.stdout.count("done before: ") == 3
    assert (part / "scores/scores.md").read_text() == text
    more, started = reproduce("--backbones", "DnCNN", "--methods", "sdrl_online", "--limit=2", "--", "--epoch=1", "--sdr_num=2")
    assert started == ["ldgp.py", "sdr.py", "sdrl_online.py"]  # the paper's masks have a folder of their own
    names = {method for method, _ in table(part)}
    assert names == {name, "sdrl_online.py paper DnCNN --epoch=1 --sdr_num=2", *FUSED.values()}

    write_png(data / "input/2.png", photograph(36, 44, 7))  # another photograph: what was made of the old one is no more scored
    last, started = reproduce(*SHORT, "--limit=2", "--", "--steps=1")
    assert started == ["ldgp.py", "sdr.py", "sdrl.py"]
    assert {method for method, _ in table(part)} == {"sdrl.py fast DnCNN --steps=1", FUSED["fast"]}


def test_a_network_for_the_whole_data_set(reproduce, data):
    flags = "--backbones", "DnCNN", "--methods", "sdrl_all", "--", "--epoch=1", "--batch_size=2", "--crop_size=32"
    done, started = reproduce(*flags, ok=False, stop="test_all.py")
    assert started == ["ldgp.py", "sdr.py", "sdrl_all.py", "test_all.py"]
    done, started = reproduce(*flags)
    assert started == ["test_all.py"]
    assert ("sdrl_all.py DnCNN --epoch=1 --batch_size=2 --crop_size=32", "mean of 3") in table(data)
    assert "| rainy images | 3 |" in (data / "scores/scores.md").read_text()


def test_what_was_stopped_goes_on(reproduce, data):
    done, started = reproduce(*SHORT, "--", "--steps=1", ok=False, stop="sdr.py")
    assert started == ["ldgp.py", "sdr.py"] and not (data / "scores/scores.md").exists()
    assert done.stderr.strip() == "reproduce.py: sdr.py: ended with exit code 130, so nothing was scored; call again to go on"
    _, started = reproduce(*SHORT, "--", "--steps=1")
    assert started == ["sdr.py", "sdrl.py"]
    (data / "result_sdrl_fast_DnCNN_steps=1/2.png").unlink()
    _, started = reproduce(*SHORT, "--", "--steps=1")
    assert started == ["sdrl.py"] and (data / "result_sdrl_fast_DnCNN_steps=1/2.png").exists()


def test_an_image_that_fails_does_not_stop_the_others_and_is_listed(reproduce, data):
    (data / "input/2.png").write_bytes(b"")
    done, started = reproduce(*SHORT, "--", "--steps=1", ok=False)
    assert started == ["ldgp.py", "sdr.py", "sdrl.py"] and "for 2" in done.stderr and "Traceback" not in done.stderr
    assert "2 of 3" in done.stdout and ("sdrl.py fast DnCNN --steps=1", "mean of 2 of 3") in table(data)


def test_a_method_without_any_result_does_not_stop_the_others(reproduce, data):
    reproduce(*SHORT, "--", "--steps=1")
    flags = "--methods", "sdrl_online", "--backbones", "DnCNN", "--", "--steps=1"
    done, started = reproduce(*flags, ok=False, stop="sdrl_online.py", code=1)
    assert started == ["ldgp.py", "sdr.py", "sdrl_online.py"]
    assert "no result of sdrl_online.py paper DnCNN --steps=1; see what" in done.stderr
    assert ("sdrl.py fast DnCNN --steps=1", "mean of 3") in table(data)


def test_what_cannot_be_scored_is_said_before_the_work(reproduce, data):
    (data / "target/10.png").unlink()
    done, started = reproduce(*SHORT, ok=False)
    assert started == [] and "10.png: nothing for it in dataset/Tiny/target" in done.stderr
    assert reproduce(*SHORT, "--limit=2", ok=False, stop="ldgp.py")[1] == ["ldgp.py"]  # it is not among the first two
    (data / "limit_2/scores/runs.json").write_text("[1")
    done, started = reproduce(*SHORT, "--limit=2", ok=False)
    assert started == [] and done.stderr.count("\n") == 1 and "runs.json: damaged; remove it" in done.stderr
    done, started = reproduce("--limit=0", ok=False)
    assert started == [] and "at least 1" in done.stderr


def test_the_first_images_are_those_of_the_smallest_numbers_with_their_targets(tmp_path):
    for stem in ("901_1", "901_2", "901_10", "902_1"):
        write_png(tmp_path / f"input/{stem}.png", photograph(8, 8, len(stem)))
    for stem in ("901", "902"):
        write_png(tmp_path / f"target/{stem}.png", photograph(8, 8, 1))
    part = first_images(tmp_path, 2)
    (part / "input/old.png").write_bytes(b"")
    write_png(tmp_path / "input/901_2.png", photograph(8, 8, 9))
    first_images(tmp_path, 2)
    assert sorted(path.name for path in (part / "input").iterdir()) == ["901_1.png", "901_2.png"]
    assert [path.name for path in (part / "target").iterdir()] == ["901.png"]
    assert (read_image(part / "input/901_2.png") == photograph(8, 8, 9)).all()


def test_a_stage_is_done_while_its_command_and_files_are_the_same(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "in/a").write_text("1")
    work = Stage(["x.py", "--a=1"], [tmp_path / "in"], [tmp_path / "out"], ("x", "", tmp_path / "out"))
    other = work._replace(command=["x.py", "--a=2"])
    record = Record(tmp_path / "runs.json")
    assert not record.done(work)
    record.begin(work)
    assert not Record(record.path).done(work) and record.rows() == []
    (tmp_path / "out/b").write_text("2")
    record.finish(work)
    assert Record(record.path).done(work) and not record.done(other)
    assert Record(record.path).rows() == [("x", "", str(tmp_path / "out"))]
    record.begin(other)  # it writes to the same folder
    assert not record.done(work) and record.rows() == []
    record.finish(work)
    (tmp_path / "in/c").write_text("3")
    assert not record.done(work)


def test_runs_that_differ_never_share_a_folder(tmp_path):
    runs = [("sdrl", "fast", "Unet", []), ("sdrl", "paper", "Unet", []), ("sdrl", "fast", "ResNet", []),
            ("sdrl_online", "fast", "Unet", []), ("sdrl", "fast", "Unet", ["--steps=5"]), ("sdrl_all", "fast", "Unet", []),
            ("sdrl_all", "fast", "ResNet", [])]
    written = [str(path) for run in runs for one in learning(tmp_path, *run) for path in one.writes]
    written += [str(path) for recipe in FUSED for one in references(tmp_path, recipe) for path in one.writes]
    assert len(written) == len(set(written)) == 15


def test_help_shows_a_command_that_works(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = inside("utils.reproduce", "--help").stdout
    assert "-- FLAG" in text and '--backbones Unet --limit=40' in text and max(map(len, text.splitlines())) <= 92  # the command
    with pytest.raises(ImageError):
        first_images(ROOT / "nowhere", 1)


def test_the_published_rows_of_the_readme_are_those_on_file():
    text = (ROOT / "README.md").read_text()
    table = text.partition("<!-- table: python -m utils.reproduce ")[2].partition("<!-- /table -->")[0].splitlines()[1:]
    shown = [line for line in table if line.startswith("|") and MEASURED not in line]
    rows = overview_markdown(published("Rain100L", ["psnr_rgb", "ssim_rgb", "psnr_y", "ssim_y"], 40)).splitlines()
    assert [line for line in rows if "| source |" not in line and line.startswith("| ")] == shown[1:]
