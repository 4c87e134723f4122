"""utils.evaluate and its tables: several methods, published figures, what is missing, the scores of pyiqa."""
import csv
import io
import re
import runpy
import subprocess
import sys
import types
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import pytest

from utils.evaluate import named_folders, score_folders, summarise
from utils.image import ImageError, read_image, write_png
from utils.metrics import mean_scores, psnr, scores
from utils.tables import PUBLISHED, Method, overview, overview_markdown, places, published, text_of

from conftest import ROOT
from test_metrics import near, noise

# A pyiqa whose scores are easily checked; of LPIPS it has no weights.
STAND_IN = '''
def create_metric(name, device):
    print("loading", name)
    if name == "lpips":
        raise OSError("no\\nconnection")
    def metric(image):
        assert tuple(image.shape[:2]) == (1, 3) and 0 <= image.min() and image.max() <= 1
        assert min(image.shape[2:]) > 15, "too small"
        return image.mean().reshape(1) * (1 if name == "niqe" else 100)
    return metric
'''


@pytest.fixture
def folders(tmp_path):
    """Two photographs of "Rain100L", their clean ones, and the results of two methods, of which `good` is better."""
    for seed, stem in enumerate(("1", "2")):
        target = noise(seed)
        for name, most in (("input", 60), ("good", 5), ("fair", 20)):
            write_png(tmp_path / f"Rain100L/{name}/{stem}.png", near(target, 7, most))
        write_png(tmp_path / f"Rain100L/target/{stem}.png", target)
    return tmp_path / "Rain100L"


def inside(module, *words, cwd=ROOT, ok=True):
    """Run python -m <module> within this process, which spares the seconds that Python takes to start; as `script`."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", [module, *map(str, words)])
        patch.delitem(sys.modules, module, raising=False)
        with pytest.raises(SystemExit) as left:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    text = err.getvalue() + (f"{left.value.code}\n" if isinstance(left.value.code, str) else "")
    assert not left.value.code == ok, f"{left.value.code}\n{out.getvalue()}\n{text}"
    return subprocess.CompletedProcess(module, 1 if isinstance(left.value.code, str) else left.value.code, out.getvalue(), text)


def evaluate(folders, *more, ok=True):
    return inside("utils.evaluate", "--input_path", folders / "input", "--target_path", folders / "target", *more, ok=ok)


def both(folders):
    return "--result_path", folders / "fair", "--result_path", f"Ours={folders / 'good'}"


def test_several_methods_are_compared_with_each_other_and_with_what_is_published(folders):
    done = evaluate(folders, *both(folders), "--save", folders / "scores/all.md")
    lines = done.stdout.splitlines()
    assert max(map(len, lines[1:])) <= 80
    row = next(line for line in lines if line.startswith("Ours"))
    rows = [scores(read_image(folders / f"good/{n}.png"), read_image(folders / f"target/{n}.png")) for n in "12"]
    mean = mean_scores(rows)
    keys = "psnr_rgb", "ssim_rgb", "psnr_y", "ssim_y"
    assert row.split() == ["Ours", "2"] + [text_of(key, mean[key]) + "*" for key in keys]
    assert next(line for line in lines if line.startswith("fair")).count("'") == 4
    assert sum(line.startswith("rainy input") for line in lines) == 2
    assert not any("1 to 40" in line for line in lines)  # of another number of images, and not the whole set
    assert next(line for line in lines if line.startswith("DIP")).split() == ["DIP", "100", "23.53", "0.667"]

    with (folders / "scores/all.csv").open(newline="") as file:
        written = {(row["method"], row["image"]): row for row in csv.DictReader(file)}
    assert float(written["Ours", "2"]["psnr_y"]) == pytest.approx(rows[1]["psnr_y"], abs=1e-6)
    assert float(written["Ours", "mean of 2"]["ssim_rgb"]) == pytest.approx(mean["ssim_rgb"], abs=1e-6)
    assert written["DIP", "mean of 100"]["psnr_rgb"] == "23.53" and written["DIP", "mean of 100"]["psnr_y"] == ""
    text = (folders / "scores/all.md").read_text()
    first = text.split("\n\n")[1].splitlines()
    assert len({line.count("|") for line in first}) == 1  # as many cells in every row
    assert "| **{psnr_rgb:.3f}** / **.{0:04.0f}** |".format(mean["ssim_rgb"] * 1e4, **mean) in text
    assert text.count("\n| mean | ") == 2 and sorted(path.name for path in (folders / "scores").iterdir()) == ["all.csv", "all.md"]


def test_a_method_without_all_images_says_so_and_is_not_ranked(folders):
    (folders / "good/2.png").unlink()
    done = evaluate(folders, *both(folders), ok=False)
    assert done.returncode == 1 and f"failed: nothing in {folders / 'good'} for 2" in done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith("Ours"))
    assert "1 of 2" in row and "*" not in row
    alone = evaluate(folders, "--result_path", folders / "good", ok=False)
    assert alone.stdout.count("mean of 1 of 2") == 2


def test_sizes_that_differ_name_both_files(folders):
    write_png(folders / "good/2.png", noise(0, 20, 20))
    done = evaluate(folders, *both(folders), ok=False)
    assert f"failed: {folders / 'good/2.png'}: 20x20, but {folders / 'target/2.png'} is 31x24" in done.stderr


def test_a_rainy_input_that_is_damaged_is_named_and_its_image_left_out_for_all(folders):
    (folders / "input/1.png").write_bytes(b"")
    done = evaluate(folders, *both(folders), ok=False)
    assert f"{folders / 'input/1.png'}: not an image" in done.stderr and done.stdout.count("1 of 2") == 2


def test_ranks_go_by_what_is_shown_and_only_where_there_is_something_to_compare():
    def method(name, value, ranked=True):
        return Method(name, "2", {"psnr_rgb": value, "lpips": value}, ranked=ranked)

    methods = [method("rainy", 9.0, False), method("a", 1.0001), method("b", 1.00012), method("c", 2.0), method("d", 0.5)]
    found = places(methods)
    assert {key: number for key, number in found.items() if key[1] == "psnr_rgb"} == {
        (3, "psnr_rgb"): 1, (1, "psnr_rgb"): 2, (2, "psnr_rgb"): 2}
    assert found[4, "lpips"] == 1 and (3, "lpips") not in found  # there the lowest is the best
    assert places(methods[:2]) == {}


@pytest.mark.parametrize("extra", [(), ("lpips", "niqe", "brisque")])
def test_tables_are_at_most_80_wide_whatever_is_in_them(extra):
    keys = [f"{score}_{name}" for name in ("rgb", "y", "y_float") for score in ("psnr", "ssim")] + list(extra)
    methods = [Method("a name of a method that is far too long", "998 of 1400", {key: 10.5 for key in keys}, ranked=True)] * 3
    methods += published("Rain100L", keys, 40)
    lines = overview(methods, "Rain100L").splitlines()
    assert max(map(len, lines)) <= 80
    for title in ("RGB", "Y", "Y, not rounded"):
        assert re.search(rf"  {title}( |$)", lines[0] if title != "Y, not rounded" else "\n".join(lines), re.MULTILINE)


def test_published_figures_have_a_source_and_are_those_of_the_reference(reference):
    with PUBLISHED.open(newline="") as file:
        rows = list(csv.DictReader(file))
    text = re.sub(r"(?<![0-9])\.", "0.", (reference / "RESULTS.md").read_text())
    assert len(rows) > 40
    for row in rows:
        assert row["source"] and row["method"] and None not in row
        values = {key: row[key] for key in ("psnr_rgb", "ssim_rgb", "psnr_y", "ssim_y", "lpips", "brisque", "niqe") if row[key]}
        assert values
        for key, value in values.items():
            assert value in text, (row["dataset"], row["method"], key)


def test_published_rows_are_of_the_same_data_set_and_protocol():
    assert {method.name for method in published("Rain100L", ["psnr_rgb"], 100)}.isdisjoint({"Restormer", "CSUD"})
    assert all(method.scores.keys() == {"psnr_y"} for method in published("Rain800", ["psnr_y"], 100))
    assert sum(method.images == "1 to 40" for method in published("Rain100L", ["psnr_y"], 40)) == 3
    with pytest.raises(ImageError, match="no figures of Nowhere; it has Rain100L"):
        published("Nowhere", ["psnr_y"], 1)


def test_folders_have_names(tmp_path):
    (tmp_path / "a=b").mkdir()
    assert named_folders([f"x={tmp_path}", str(tmp_path / "a=b"), "./result/"]) == {
        "x": str(tmp_path), "a=b": str(tmp_path / "a=b"), "result": "./result/"}
    for texts, words in ((["a/result", "b/result"], "give it another"), (["=x"], "a name"), (["x="], "a name"),
                         (["a=x", "b=./x"], "given twice")):
        with pytest.raises(ImageError, match=words):
            named_folders(texts)


@pytest.fixture
def pyiqa(monkeypatch):
    """There is a pyiqa."""
    module = types.ModuleType("pyiqa")
    exec(STAND_IN, module.__dict__)
    monkeypatch.setitem(sys.modules, "pyiqa", module)


def test_scores_of_pyiqa(folders, pyiqa):
    done = evaluate(folders, "--result_path", folders / "good", "--extra", "niqe", "brisque", "--csv", folders / "s.csv")
    assert max(map(len, done.stdout.splitlines()[1:])) <= 80 and "loading" not in done.stdout
    with (folders / "s.csv").open(newline="") as file:
        row = list(csv.DictReader(file))[1]
    mean = read_image(folders / "good/2.png").mean() / 255
    assert float(row["niqe"]) == pytest.approx(mean, abs=1e-5) and float(row["brisque"]) == pytest.approx(100 * mean, abs=1e-3)
    assert "niqe_gain" in row and "NIQE" in done.stdout


def test_photographs_without_clean_ones_have_the_scores_that_need_none(folders, pyiqa):
    done = inside("utils.evaluate", "--no_target", "--result_path", folders / "good", "--extra", "niqe")
    assert "mean of 2" in done.stdout and "PSNR" not in done.stdout
    wrong = inside("utils.evaluate", "--no_target", "--result_path", folders / "good", "--extra", "lpips", ok=False)
    assert "only --extra niqe brisque" in wrong.stderr and len(wrong.stderr.splitlines()) == 1


def test_what_pyiqa_lacks_is_one_line_and_the_other_scores_still_come(folders, pyiqa, monkeypatch):
    def complaints(done):
        return [line for line in done.stderr.splitlines() if "--extra" in line]

    done = evaluate(folders, "--result_path", folders / "good", "--extra", "lpips", "niqe", ok=False)
    assert done.returncode == 1 and done.stdout.count("mean of 2") == 3 and "Traceback" not in done.stderr
    [line] = complaints(done)
    assert line.startswith("evaluate.py: --extra lpips: not scored") and "weights" in line and "no connection" in line
    monkeypatch.setitem(sys.modules, "pyiqa", None)  # as if it were not installed
    done = evaluate(folders, "--result_path", folders / "good", "--extra", "niqe", ok=False)
    assert done.stdout.count("mean of 2") == 2 and "pip install pyiqa 'opencv-python-headless<5'" in complaints(done)[0]


def test_an_image_that_has_no_such_score_is_named(folders, pyiqa):
    for name in ("input", "good", "target"):
        write_png(folders / f"{name}/2.png", noise(3, 12, 12))
    done = evaluate(folders, "--result_path", folders / "good", "--extra", "niqe", ok=False)
    assert f"failed: {folders / 'good/2.png'}: niqe cannot be computed (too small)" in done.stderr
    assert "mean of 1 of 2" in done.stdout


def test_where_scores_cannot_be_written_is_said_before_the_work(folders):
    (folders / "file").write_text("mine")
    for flags in (("--csv", folders / "file/s.csv"), ("--save", folders / "file/s"), ("--csv", folders / "good")):
        done = evaluate(folders, *both(folders), *flags, ok=False)
        assert len(done.stderr.splitlines()) == 1 and done.stdout == "" and "Error" not in done.stderr
    done = evaluate(folders, *both(folders), "--dataset=Nowhere", ok=False)
    assert len(done.stderr.splitlines()) == 1 and "no figures of Nowhere" in done.stderr


def test_rows_do_not_depend_on_how_many_work(folders, monkeypatch):
    import os

    one = score_folders({"a": folders / "good"}, folders / "target", folders / "input")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)
    assert score_folders({"a": folders / "good"}, folders / "target", folders / "input") == one
    assert list(one.rows["a"]) == ["1", "2"] and (one.total, one.code) == (2, 0)
    methods = summarise(one, which="first ")
    assert [method.images for method in methods] == ["first 2"] * 2
    assert methods[1].scores["psnr_rgb"] == pytest.approx(np.mean([
        psnr(read_image(folders / f"good/{n}.png"), read_image(folders / f"target/{n}.png")) for n in "12"]))
    assert "| rainy input | | first 2 | " in overview_markdown(methods)
