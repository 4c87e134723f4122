"""utils.reproduce: the stages as a user runs them, one after the other, and the table of what they made."""
import csv
import subprocess
import sys
from unittest import mock

import pytest

from utils.image import read_image
from utils.metrics import scores
from utils.reproduce import first_images, learning, references

from conftest import ROOT, complaint, inside, near, photograph, write_png

SHORT = "--methods", "sdrl", "--backbones", "DnCNN", "--recipe", "fast"


@pytest.fixture
def data(tmp_path):
    """dataset/Tiny with three pairs, of which 10 is the last."""
    for seed, stem in enumerate(("1", "2", "10")):
        rainy = photograph(36, 44, seed)
        write_png(tmp_path / f"dataset/Tiny/input/{stem}.png", rainy)
        write_png(tmp_path / f"dataset/Tiny/target/{stem}.png", near(rainy, seed))
    return tmp_path / "dataset/Tiny"


def reproduce(data, *words, ok=True, stop=None, code=130):
    """Call it within this process; returns (what it returned, the commands it started). stop: one that ends with `code`."""
    started = []

    def start(command):
        python, *words = map(str, command)
        assert python == sys.executable and (words[0] == "-m" or words[0].startswith(f"{ROOT}/"))
        module, *flags = (word.removeprefix(f"{ROOT}/") for word in words if word != "-m")
        started.append(module)
        if module == stop:
            return subprocess.CompletedProcess(command, code)
        done = inside(module, *flags, cwd=data.parent.parent, ok=None)
        print(done.stdout)
        print(done.stderr, file=sys.stderr)
        return done

    with mock.patch.object(subprocess, "run", start):
        return inside("utils.reproduce", "--dataset=Tiny", *words, cwd=data.parent.parent, ok=ok), started


def table(folder):
    with (folder / "scores/scores.csv").open(newline="") as file:
        return {(row["method"], row["image"]): row for row in csv.DictReader(file)}


def test_the_stages_run_once_and_their_results_are_scored(data):
    done, started = reproduce(data, *SHORT, "--limit=2", "--", "--steps=2")
    assert started == ["ldgp.py", "sdr.py", "sdrl.py", "utils.evaluate"]
    assert [f"stage {n} of 3: python {name}" in done.stdout for n, name in enumerate(started[:3], 1)] == [True] * 3
    part = data / "limit_2"
    result = part / "result_sdrl_fast_DnCNN_steps=2"
    assert sorted(path.name for path in result.glob("*.png")) == ["1.png", "2.png"]
    name = "sdrl_fast_DnCNN_steps 2"
    for method, place in ((name, result), ("sdr(fuse)_fast", part / "sdr(fuse)_fast")):
        for key, value in scores(read_image(place / "2.png"), read_image(data / "target/2.png"), ["rgb", "y"]).items():
            assert float(table(part)[method, "2"][key]) == pytest.approx(value, abs=1e-6)
    text = (part / "scores/scores.md").read_text()
    assert text.startswith("Tiny, 2 images\n") and f"\n| {name} | 2 " in text
    again, _ = reproduce(data, *SHORT, "--limit=2", "--", "--steps=2")
    assert again.stdout.count("2 done before, nothing done") == 3 and (part / "scores/scores.md").read_text() == text
    flags = "--backbones", "DnCNN", "--methods", "sdrl_online", "--limit=2", "--", "--epoch=1", "--sdr_num=2"
    more, _ = reproduce(data, *flags)
    assert "done before" not in more.stdout and "moved to" not in more.stderr  # the paper's recipe has folders of its own
    names = {method for method, _ in table(part)}
    assert names == {"rainy input", name, "sdr(fuse)", "sdr(fuse)_fast", "sdrl_online_paper_DnCNN_epoch 1_sdr_num 2"}
    write_png(data / "input/2.png", photograph(36, 44, 7))  # another photograph: what was made of it is made again
    last, _ = reproduce(data, *SHORT, "--limit=2", "--", "--steps=2")
    assert last.stdout.count("1 done before") == 3


def test_a_network_for_the_whole_data_set(data):
    flags = "--backbones", "DnCNN", "--methods", "sdrl_all", "--", "--epoch=1", "--batch_size=2", "--crop_size=32"
    done, started = reproduce(data, *flags, ok=False, stop="sdrl_all.py")
    assert started == ["ldgp.py", "sdr.py", "sdrl_all.py"] and not (data / "scores/scores.md").exists()
    said = "sdrl_all.py: ended with exit code 130, see above; the same command goes on from there"
    assert done.stderr.splitlines()[-1].endswith(said)
    reproduce(data, *flags)
    run_name = "sdrl_all_paper_DnCNN_epoch=1_batch_size=2_crop_size=32"
    assert (data / f"network_{run_name}/model.pkl").exists() and (run_name.replace("=", " "), "mean of 3") in table(data)


def test_what_fails_does_not_stop_the_others_and_is_listed(data):
    (data / "input/2.png").write_bytes(b"")
    done, started = reproduce(data, *SHORT, "--", "--steps=1", ok=False)
    assert started == ["ldgp.py", "sdr.py", "sdrl.py", "utils.evaluate"] and "Traceback" not in done.stderr
    assert "ldgp.py: failed: dataset/Tiny/input/2.png: " in done.stderr
    assert "for 2" in done.stderr and ("sdrl_fast_DnCNN_steps 1", "mean of 2 of 3") in table(data)
    flags = "--methods", "sdrl_online", "--backbones", "DnCNN", "--", "--steps=1"
    done, started = reproduce(data, *flags, ok=False, stop="sdrl_online.py", code=1)
    assert started[-2:] == ["sdrl_online.py", "utils.evaluate"]


def test_what_cannot_work_is_said_before_the_work(data):
    """Flags that are set here, and targets that are missing; but a flag that the stage does not know ends it there."""
    done, started = reproduce(data, *SHORT, "--", "--stepz=2", ok=False)
    assert started[-1] == "sdrl.py" and "sdrl.py: unrecognized arguments: --stepz=2 (see --help)" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("reproduce.py: sdrl.py: ended with exit code 2, see above")
    (data / "target/10.png").unlink()
    for flags, words in ((SHORT, "10.png: nothing for it in dataset/Tiny/target"), (["--limit=0"], "at least 1"),
                         (["--limit=2", *SHORT, "--", "--backbone=Unet"], "--backbone=Unet: cannot stand behind --")):
        done, started = reproduce(data, *flags, ok=False)
        assert complaint(done, words) and started == []
    assert reproduce(data, *SHORT, "--limit=2", ok=False, stop="ldgp.py")[1] == ["ldgp.py"]  # it is not among the first two


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


def test_runs_that_differ_never_share_a_folder():
    runs = [("sdrl", "fast", "Unet", []), ("sdrl", "paper", "Unet", []), ("sdrl", "fast", "ResNet", []),
            ("sdrl_online", "fast", "Unet", []), ("sdrl", "fast", "Unet", ["--steps=5"]), ("sdrl_all", "fast", "Unet", []),
            ("sdrl_all", "paper", "Unet", [])]
    commands = [learning("data", *run) for run in runs]
    commands += [command for recipe in ("paper", "fast") for command in references("data", recipe)]
    words = [word.partition("=") for command in commands for word in command]
    places = ("--result_path", "--save_path", "--fuse_save_path", "--model_save_dir")
    made = [folder for flag, _, folder in words if flag in places]
    assert len(made) == len(set(made)) == 5 + 2 * 2 + 2 * 3
