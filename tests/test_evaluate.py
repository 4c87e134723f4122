"""Scores: published figures, a literal SSIM; utils.evaluate and its tables: methods compared, what is missing, pyiqa."""
import csv
import json
import math
import re
import sys
import types
from fractions import Fraction

import cv2
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from utils.evaluate import named_folders, target_stem
from utils.image import ImageError, list_images, read_image
from utils.metrics import luma, mean_scores, psnr, rounded_luma, scores, ssim
from utils.tables import PUBLISHED, Method, best_two, columns, markdown, overview, published

from conftest import ROOT, complaint, complaints, inside, near, noise, write_png


@pytest.mark.parametrize("data_set", ["Rain100L", "SIRR_val"])
def test_scores_of_rainy_inputs_are_those_published(reference, data_set):
    golden = json.loads((reference / "golden/metrics_of_rainy_inputs.json").read_text())[data_set]
    inputs, targets = (list_images(reference / "data" / data_set / name) for name in ("input", "target"))
    rows = []
    for stem, expected in golden["images"].items():
        rows.append(scores(read_image(inputs[stem]), read_image(targets[stem])))
        assert rows[-1] == pytest.approx(expected, rel=0, abs=6e-7), stem
    assert mean_scores(rows) == pytest.approx(golden["mean"], rel=0, abs=6e-7)


def literal_ssim(first, second):
    """Wang et al. 2004, as their ssim.m has it: (H, W) float64 each."""
    line = np.exp(-np.arange(-5, 6) ** 2 / (2 * 1.5**2))
    window = np.outer(line, line) / np.outer(line, line).sum()

    def blur(image):
        return cv2.filter2D(image, cv2.CV_64F, window)[5:-5, 5:-5]

    mean_1, mean_2 = blur(first), blur(second)
    var_1, var_2 = blur(first**2) - mean_1**2, blur(second**2) - mean_2**2
    both = blur(first * second) - mean_1 * mean_2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return np.mean((2 * mean_1 * mean_2 + c1) * (2 * both + c2) / ((mean_1**2 + mean_2**2 + c1) * (var_1 + var_2 + c2)))


@pytest.mark.parametrize("size", [(11, 11), (24, 31)])
def test_ssim_on_luma_is_the_original(size):
    image = noise(0, *size)
    other = near(image, 1)
    assert ssim(image, other, "y_float") == pytest.approx(literal_ssim(luma(image), luma(other)), abs=1e-9)
    views = rounded_luma(image).astype(float), rounded_luma(other).astype(float)
    assert ssim(image, other, "y") == pytest.approx(literal_ssim(*views), abs=1e-9)


@given(st.tuples(*[st.integers(0, 255)] * 3))
@example((0, 206, 22))  # 125.5
@example((5, 48, 46))  # 52.5: ties to even would give 52
def test_luma_is_rounded_halves_up(bgr):
    blue, green, red = bgr
    exact = 16 + Fraction(65481 * red + 128553 * green + 24966 * blue, 255000)
    pixel = np.array([[bgr]], np.uint8)
    assert rounded_luma(pixel)[0, 0] == math.floor(exact + Fraction(1, 2))
    assert luma(pixel)[0, 0] == pytest.approx(float(exact), abs=1e-9)


@pytest.mark.filterwarnings("error")
def test_psnr_of_a_known_error_and_of_none():
    image = np.full((12, 12, 3), 100, np.uint8)
    assert psnr(image, image + np.uint8(5)) == pytest.approx(20 * math.log10(255 / 5))
    wrong_blue = image + np.array([5, 0, 0], np.uint8)  # luma gives blue a weight of 0.098
    assert psnr(image, wrong_blue, "y_float") == pytest.approx(20 * math.log10(255 * 255 / (5 * 24.966)))
    image = noise(3)
    perfect, good = scores(image, image), scores(near(image, 4), image)
    assert all(value == (math.inf if "psnr" in key else 1) for key, value in perfect.items())
    mean = mean_scores([perfect, good])
    assert mean["psnr_rgb"] == good["psnr_rgb"]  # the infinite one is left out
    assert mean["ssim_rgb"] == pytest.approx((1 + good["ssim_rgb"]) / 2)
    assert mean_scores([perfect, perfect])["psnr_y"] == math.inf


def test_what_cannot_be_scored_is_refused():
    image = noise(5)
    for other in (image[:-1], image[..., 0], image.astype(float)):
        with pytest.raises(ValueError):
            psnr(image, other)
    assert set(scores(image[:7], image[:7], ["rgb"])) == {"psnr_rgb", "ssim_rgb"}
    with pytest.raises(ImageError, match="at least 7"):
        ssim(image[:6], image[:6])
    with pytest.raises(ImageError, match="at least 11"):
        ssim(image[:10], image[:10], "y")


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


def evaluate(folders, *more, ok=True):
    return inside("utils.evaluate", "--input_path", folders / "input", "--target_path", folders / "target", *more, ok=ok)


def both(folders):
    return "--result_path", folders / "fair", "--result_path", f"Ours={folders / 'good'}"


def cells(text, start):
    """The cells of the first row of a Markdown table that starts so."""
    return [cell.strip() for cell in next(line for line in text.splitlines() if line.startswith(f"| {start}")).split("|")[1:-1]]


def row_of(folders, name, stem):
    return scores(read_image(folders / f"{name}/{stem}.png"), read_image(folders / f"target/{stem}.png"))


def test_one_folder_is_scored_image_by_image_beside_the_rainy_input(folders, tmp_path):
    done = inside("utils.evaluate", folders / "good", folders / "target", "--input_path", folders / "input", "--protocol=all")
    assert max(map(len, done.stdout.splitlines())) <= 80
    for title in ("RGB: 8-bit RGB, ", "Y: 8-bit luma, ", "Y float: luma not rounded, "):
        assert f"\n{title}" in done.stdout
    after, before = (row_of(folders, name, 2) for name in ("good", "input"))
    pairs = ["{psnr_rgb:.3f} / {ssim_rgb:.4f}".format(**row).replace(" 0.", " .") for row in (before, after)]
    gain = f"{after['psnr_rgb'] - before['psnr_rgb']:+.3f} / {after['ssim_rgb'] - before['ssim_rgb']:+.4f}".replace("+0.", "+.")
    assert cells(done.stdout, "2 ") == ["2", *pairs, gain]
    assert done.stdout.count("| mean of 2 ") == 3
    write_png(folders / "good/2.png", read_image(folders / "target/2.png"))
    done = inside("utils.evaluate", "--result_path", folders / "good")  # the clean ones are beside it
    assert "nan" not in done.stdout and "Equal to the target: 1;" in done.stdout
    grey = noise(8)[..., :1]
    for stem, image in (("grey", grey), ("alpha", np.dstack([grey] * 4))):
        write_png(folders / f"target/{stem}.png", np.dstack([grey] * 3))
        write_png(folders / f"good/{stem}.png", image)
    assert "Equal to the target: 3;" in inside("utils.evaluate", "--result_path", folders / "good").stdout
    beside = inside("utils.evaluate", "--dataset=Rain100L", "--result_path", folders / "good", cwd=tmp_path, ok=False)
    assert beside.stderr == ("evaluate.py: dataset/Rain100L/target: no such folder; name the clean photographs' folder with "
                             "--target_path\n")


def test_results_of_utils_derain_are_scored_beside_their_photographs_and_apart(tmp_path):
    for name in ("1", "901_3", "x_derained"):
        write_png(tmp_path / f"rainy/{name}.png", noise(1))
        write_png(tmp_path / f"target/{name.removesuffix('_3')}.png", noise(2))
    inside("utils.derain", "rainy", "--save_path=out", "--show_rain", cwd=tmp_path)
    inside("utils.derain", "rainy", "--show_rain", cwd=tmp_path)
    said = []
    for folder in ("out", "rainy"):
        said.append(inside("utils.evaluate", folder, "target", cwd=tmp_path))
        said.append(inside("utils.evaluate", folder, "target", "--input_path=rainy", cwd=tmp_path))
    for done in said:
        assert done.stdout.count("| mean of 3 ") == 2 and "_rain" not in done.stdout
        assert all(len(cells(done.stdout, f"{stem} ")) > 1 for stem in ("1", "901_3", "x_derained"))
    rows = [[line for line in done.stdout.splitlines() if "0" in line] for done in said]
    assert rows[0] == rows[2] and rows[1] == rows[3]
    write_png(tmp_path / "rainy/x.png", noise(3))
    write_png(tmp_path / "target/x.png", noise(4))
    inside("utils.derain", "rainy/x.png", "--save_path=out", cwd=tmp_path)
    done = inside("utils.evaluate", "out", "target", "--input_path=rainy", cwd=tmp_path)
    assert [done.stdout.count(f"| {row} ") for row in ("mean of 4", "x ", "x_derained", "x_derained_derained")] == [2, 2, 2, 0]


def test_several_methods_are_compared_with_each_other_and_with_what_is_published(folders):
    done = evaluate(folders, *both(folders), "--save", folders / "scores/all.md")
    assert max(map(len, done.stdout.splitlines())) <= 80
    mean = mean_scores([row_of(folders, "good", n) for n in "12"])
    best = ["{psnr_%s:.3f}* / {ssim_%s:.4f}*" % (name, name) for name in ("rgb", "y")]
    assert cells(done.stdout, "Ours") == ["Ours", "2", *(text.format(**mean).replace(" 0.", " .") for text in best)]
    assert next(line for line in done.stdout.splitlines() if line.startswith("| fair")).count("'") == 4
    assert done.stdout.count("| rainy input") == 2 and "1 to 40" not in done.stdout  # a part with another number of images
    assert cells(done.stdout, "DIP") == ["DIP", "100", "23.53 / .667", ""]
    with (folders / "scores/all.csv").open(newline="") as file:
        written = {(row["method"], row["image"]): row for row in csv.DictReader(file)}
    assert float(written["Ours", "2"]["psnr_y"]) == pytest.approx(row_of(folders, "good", 2)["psnr_y"], abs=1e-6)
    assert float(written["Ours", "mean of 2"]["ssim_rgb"]) == pytest.approx(mean["ssim_rgb"], abs=1e-6)
    assert written["DIP", "mean of 100"]["psnr_rgb"] == "23.53" and written["DIP", "mean of 100"]["psnr_y"] == ""
    text = (folders / "scores/all.md").read_text()
    assert text.startswith(done.stdout.rstrip("\n")) and text.count("\n| mean of 2 ") == 2
    assert sorted(path.name for path in (folders / "scores").iterdir()) == ["all.csv", "all.md"]
    rows = evaluate(folders, *both(folders), "--latex").stdout.splitlines()
    assert all(row.count(" & ") == 3 and row.endswith(r" \\") for row in rows)
    assert next(row for row in rows if row.startswith("Ours & 2 & ")).count(r"\textbf{") == 4


def test_what_is_missing_or_bad_is_reported_and_the_rest_is_scored_and_not_ranked(folders):
    (folders / "good/2.png").unlink()
    done = evaluate(folders, *both(folders), ok=False)
    complaint(done, f"failed: nothing in {folders / 'good'} for 2")
    row = cells(done.stdout, "Ours")
    assert row[1] == "1 of 2" and "*" not in "".join(row)
    assert evaluate(folders, "--result_path", folders / "good", ok=False).stdout.count("| mean of 1 of 2") == 2
    alone = inside("utils.evaluate", folders / "good", folders / "target", ok=False)  # 2 has a target and no result
    assert "failed: nothing in" in alone.stderr and alone.stdout.count("| mean of 1 of 2") == 2
    write_png(folders / "good/800.png", noise(0))  # has no target
    write_png(folders / "good/2.png", noise(0, 20, 20))  # of another size
    (folders / "fair/2.png").write_bytes(b"no image")
    (folders / "input/1.png").write_bytes(b"")
    done = evaluate(folders, *both(folders), ok=False)
    assert len(complaints(done)) == 4 and cells(done.stdout, "fair")[1] == "1 of 2"
    for part in (f"{folders / 'good/800.png'}: nothing for it", f"{folders / 'good/2.png'}: 20x20, but {folders}/target/2.png",
                 f"{folders / 'fair/2.png'}: not an image", f"{folders / 'input/1.png'}: not an image"):
        assert f"failed: {part}" in done.stderr
    (folders / "file").write_text("mine")  # where scores cannot be written is said before the work
    for place in ("file/s", "fair/", "fair/..", ".csv"):
        done = evaluate(folders, *both(folders), f"--save={folders}/{place}", ok=False)
        assert len([line for line in complaints(done) if "failed: " not in line]) == 1 and done.stdout == ""


def test_ranks_go_by_what_is_shown_and_only_where_there_is_something_to_compare():
    def method(name, value, ranked=True):
        return Method(name, "2", {"psnr_rgb": value, "lpips": value}, ranked=ranked)

    methods = [method("rainy", 9.0, False), method("a", 1.0001), method("b", 1.00012), method("c", 2.0), method("d", 0.5)]
    found = best_two(methods)
    assert {key: number for key, number in found.items() if key[1] == "psnr_rgb"} == {
        (3, "psnr_rgb"): 1, (1, "psnr_rgb"): 2, (2, "psnr_rgb"): 2}
    assert found[4, "lpips"] == 1 and (3, "lpips") not in found  # there the lowest is the best
    assert best_two(methods[:2]) == {}


def test_published_figures_have_a_source_and_are_those_of_the_reference(reference):
    with PUBLISHED.open(newline="") as file:
        rows = list(csv.DictReader(file))
    text = re.sub(r"(?<![0-9])\.", "0.", (reference / "RESULTS.md").read_text())
    assert len(rows) > 40
    for row in rows:
        values = {key: row[key] for key in ("psnr_rgb", "ssim_rgb", "psnr_y", "ssim_y", "lpips", "brisque", "niqe") if row[key]}
        assert values and row["source"] and row["method"] and None not in row
        for key, value in values.items():
            assert value in text, (row["dataset"], row["method"], key)


def test_published_rows_are_of_the_same_data_set_and_protocol_and_in_the_readme():
    names = {method.name for method in published("Rain100L", ["psnr_rgb"], 100)}
    assert "R2A" in names and not any(name.startswith(("Restormer", "CSUD")) for name in names)
    assert all(method.scores.keys() == {"psnr_y"} for method in published("Rain800", ["psnr_y"], 100))
    assert sum(method.images == "1 to 40" for method in published("Rain100L", ["psnr_y"], 40)) == 3
    assert published("Nowhere", ["psnr_y"], 1) == []

    def rows(text):
        return [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if line.startswith("|")]

    keys = "psnr_rgb", "ssim_rgb", "psnr_y", "ssim_y"
    known = rows(markdown(overview(published("Rain100L", keys, 40), columns(keys))))
    shown = rows((ROOT / "README.md").read_text().partition("<!-- table: ")[2].partition("<!-- /table -->")[0])
    first = next((number for number, row in enumerate(shown) if row[1].endswith(":")), len(shown))  # our own are above it
    assert len(shown[first:]) > 5 and all(row in known for row in shown[first:])


def test_a_target_is_found_by_stem_and_folders_have_names(tmp_path):
    stems = {"1": 0, "901": 0, "902": 0, "902_3": 0, "5": 0, "norain-001": 0, "rain-7": 0}
    for stem, expected in (("901_3", "901"), ("902_3", "902_3"), ("5", "5"), ("7_1", "7_1"), ("1_2", "1"),
                           ("901_3_1", "901_3_1"), ("rain-001", "norain-001"), ("norain-7", "rain-7")):
        assert target_stem(stems, stem) == expected
    (tmp_path / "a=b").mkdir()
    assert named_folders([f"x={tmp_path}", str(tmp_path / "a=b"), "./result/"]) == {
        "x": str(tmp_path), "a=b": str(tmp_path / "a=b"), "result": "./result/"}
    for texts, words in ((["a/result", "b/result"], "give it another"), (["=x"], "a name"), (["x="], "a name")):
        with pytest.raises(ImageError, match=words):
            named_folders(texts)


def test_scores_of_pyiqa_and_what_it_lacks(folders, monkeypatch):
    module = types.ModuleType("pyiqa")
    exec(STAND_IN, module.__dict__)
    monkeypatch.setitem(sys.modules, "pyiqa", module)
    good = "--result_path", folders / "good", "--extra"
    done = evaluate(folders, *good, "niqe", "brisque", "--save", folders / "s")
    assert max(map(len, done.stdout.splitlines())) <= 80 and "loading" not in done.stdout and "\nNIQE\n" in done.stdout
    with (folders / "s.csv").open(newline="") as file:
        row = next(row for row in csv.DictReader(file) if (row["method"], row["image"]) == ("good", "2"))
    mean = read_image(folders / "good/2.png").mean() / 255
    assert float(row["niqe"]) == pytest.approx(mean, abs=1e-5) and float(row["brisque"]) == pytest.approx(100 * mean, abs=1e-3)
    done = inside("utils.evaluate", "--no_target", *good, "niqe")
    assert "| mean of 2" in done.stdout and "PSNR" not in done.stdout
    complaint(inside("utils.evaluate", "--no_target", *good, "lpips", ok=False), "only --extra niqe brisque")
    done = evaluate(folders, *good, "lpips", "niqe", ok=False)  # what it lacks is one line, and the others still come
    line, = (line for line in complaints(done) if "--extra" in line)
    assert line.startswith("evaluate.py: --extra lpips: not scored") and "weights" in line and "no connection" in line
    assert done.stdout.count("| mean of 2") == 3
    for name in ("input", "good", "target"):
        write_png(folders / f"{name}/2.png", noise(3, 12, 12))
    done = evaluate(folders, *good, "niqe", ok=False)
    assert f"failed: {folders / 'good/2.png'}: niqe cannot be computed (too small)" in done.stderr
    monkeypatch.setitem(sys.modules, "pyiqa", None)  # as if it were not installed
    done = evaluate(folders, *good, "niqe", ok=False)
    complaint(done, "--extra", "pip install pyiqa 'opencv-python-headless<5'")
    assert done.stdout.count("| mean of 2") == 2
