"""Pictures: what is shown is shown unchanged and in its place, and what is missing is named with the command that makes it."""
import os
import shutil
import sys

import numpy as np
import pytest

from ldgp import rain_mask
from utils import fast
from utils.figures import compare, grid, place_of_detail, resize
from utils.image import ImageError, read_image

from conftest import complaint, inside, noise, write_png


def in_colour(mask):
    return np.repeat(mask[..., None], 3, axis=2)


def test_a_grid_shows_the_images_unchanged_under_their_labels():
    first, second = noise(1), noise(2)
    picture = grid([[first, second[..., 0]], [noise(3), noise(4)]], ["rainy", "mask"])
    head = len(picture) - 48 - 8 - 48
    assert picture.dtype == np.uint8 and picture.shape[1:] == (64 + 8 + 64, 3) and head > 10
    assert np.array_equal(picture[head : head + 48, :64], first)
    assert np.array_equal(picture[head : head + 48, 72:], in_colour(second[..., 0]))
    assert np.array_equal(picture[-48:, :64], noise(3)) and np.array_equal(picture[-48:, 72:], noise(4))
    assert (picture[head:, 64:72] == 255).all() and (picture[head + 48 : -48] == 255).all()
    long = grid([[first, second]], ["derained photo", ""])[:-48]  # is made smaller to stay whole
    for label, left in ((picture[:head], 0), (picture[:head], 72), (long, 0)):
        ink = np.argwhere(label[:, left : left + 64].min(axis=2) < 200)
        assert len(ink) > 20 and abs(ink[:, 1].mean() - 32) < 6
        for place, size in zip(ink.T, (len(label), 64)):
            assert place.min() > 0 and place.max() < size - 1  # no letter is cut off
    with pytest.raises(ValueError):
        grid([[first, second]], ["one"])
    for width in (1, 20, 100, 133):
        assert grid([[first, second]], ["a label far too long for its image", "b"], width).shape[1] <= max(width, 10)
    assert grid([[first, second]], ["a", "b"], 5000).shape[1] == 136  # never enlarged
    picture = grid([[noise(1, 80, 100), noise(2, 40, 30)], [noise(3), noise(4, 48, 20)]], ("a", "b"))
    assert np.array_equal(picture[-96:-56, :50], resize(noise(1, 80, 100), 50, 40)) and (picture[-96:-56, -4:] == 255).all()
    assert picture.shape[1] == 64 + 8 + 20 and np.array_equal(picture[-48:, :64], noise(3))


@pytest.fixture
def dataset(tmp_path):
    """A data set that all stages have worked on, of two photographs of noise; one name has a dot in it."""
    for stem in ("a", "b.1"):
        for number, folder in enumerate(("input", "ldgp", "sdr(fuse)", "result")):
            write_png(tmp_path / folder / f"{stem}.png", noise(number)[..., 0] if folder == "ldgp" else noise(number))
        for k in range(2):
            write_png(tmp_path / "sdr" / stem / f"{k}.png", noise(10 + k))
    return tmp_path


def figures(dataset, *more, ok=True):
    return inside("utils.figures", "--dataset_path", dataset, "--save_path", dataset / "img", *more, ok=ok)


def last_row(picture, number):
    return [picture[-48:, 72 * place : 72 * place + 64] for place in range(number)]


@pytest.mark.parametrize("figure, shown", [
    ("before_after", [noise(0), noise(3)]), ("masks", [noise(0), in_colour(noise(1)[..., 0]), noise(10), noise(2)]),
    ("layer", [noise(0), in_colour(rain_mask(noise(0))), in_colour(fast.rain_layer(noise(0))), noise(3)]),
    ("ldgp", [in_colour(noise(1)[..., 0])] * 2)])
def test_a_figure_shows_what_it_says(dataset, figure, shown):
    figures(dataset, f"--figure={figure}")
    picture = read_image(dataset / f"img/{figure}.png")
    assert picture.shape[1] == 72 * len(shown) - 8
    for place, image in zip(last_row(picture, len(shown)), shown, strict=True):
        assert np.array_equal(place, image)
    if figure == "ldgp":  # the masks are below the photographs
        assert np.array_equal(picture[-104:-56, :64], noise(0))


@pytest.mark.parametrize("folder, command", [
    ("ldgp", "python ldgp.py --input_path="), ("sdr", "python sdr.py --input_path="), ("input", "dataset/README.md"),
    ("sdr(fuse)", "python sdr.py --input_path="), ("result", "python sdrl.py --rainy_data_path=")])
def test_figures_says_which_command_makes_what_is_missing(dataset, folder, command):
    if folder == "sdr":
        shutil.rmtree(dataset / "sdr/b.1")
    else:
        (dataset / folder / "b.1.png").unlink()
    complaint(figures(dataset, "--images", "a", "b.1", ok=False), command)
    assert not (dataset / "img").exists()


def test_a_comparison_shows_every_version_unchanged_and_a_detail_of_it():
    columns = {"rainy": noise(1), "mask": noise(2)[..., 0], "target": noise(3)}
    picture = compare(columns, (8, 12, 16))
    head = len(picture) - 48 - 8 - 48
    for number, image in enumerate(columns.values()):
        left = 72 * number
        shown = picture[head : head + 48, left : left + 64]
        framed = (shown != (in_colour(image) if image.ndim == 2 else image)).any(axis=2)
        assert framed.any() and framed[14:22, 11:21].sum() == 0 and framed[:10].sum() == 0 and framed[:, 27:].sum() == 0
        assert np.array_equal(picture[-48:, left : left + 64], resize(image[12:24, 8:24], 64, 48))
    assert compare(columns, width=104).shape[1] <= 104
    clean = np.full((40, 60, 3), 90, np.uint8)
    rainy = clean.copy()
    rainy[20:25, 41:46] = 200
    left, top = place_of_detail(rainy, [clean, clean[..., 0]], 15, 10)
    assert left <= 41 and left + 15 >= 46 and top <= 20 and top + 10 >= 25
    assert place_of_detail(rainy, [clean], 60, 40) == (0, 0)
    for detail in ((46, 0, 15), (0, 31, 15), (0, 0, 61), (0, 0, 0)):
        with pytest.raises(ImageError, match="not within 60x40"):
            compare({"rainy": rainy, "target": clean}, detail)


def test_the_two_pictures_of_the_readme_and_a_comparison_has_the_columns_that_there_are(dataset):
    figures(dataset, "--width=150")
    assert sorted(os.listdir(dataset / "img")) == ["before_after.png", "masks.png"]
    assert all(read_image(path).shape[1] <= 150 for path in (dataset / "img").iterdir())
    done = figures(dataset, "--figure=comparison")
    assert done.stdout == f"figures.py: {dataset / 'img/comparison.png'}, {4 * 64 + 3 * 8}x{2 * (28 + 48 + 8 + 48) + 16}\n"
    shutil.copytree(dataset / "result", dataset / "target")
    shutil.rmtree(dataset / "ldgp")
    more = "--result_path", f"A={dataset / 'result'}", "--result_path", f"B={dataset / 'sdr(fuse)'}"
    assert f" {5 * 64 + 4 * 8}x" in figures(dataset, "--figure=comparison", "--images", "b.1", *more).stdout
    for flags, words in ((["--images", "c"], "c.png: nothing for it in"), (["--detail", "60", "0", "10"], "not within 64x48"),
                         (["--result_path", dataset / "nowhere"], "no such folder; run: python sdrl.py")):
        complaint(figures(dataset, "--figure=comparison", *flags, ok=False), words)
    write_png(dataset / "target/a.png", noise(0, 20, 20))
    complaint(figures(dataset, "--figure=comparison", ok=False), "20x20, but")


def test_the_curve_figure_reads_loss_csv_and_needs_matplotlib(dataset, monkeypatch):
    path = dataset / "loss.csv"
    for text, words in (("a,b\n1,2\n", "not a loss.csv"), ("epoch,loss\n1,x\n", "not a loss.csv"),
                        ("epoch,loss\n", "no epoch in it yet"), (None, "no such file; sdrl_all.py writes it")):
        path.unlink() if text is None else path.write_text(text)
        complaint(figures(dataset, "--figure=curve", "--loss_path", path, ok=False), f"{path}: {words}")
    path.write_text("epoch,loss,seconds\n1,0.5,1.0\n2,0.25,2.0\n")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
        done = figures(dataset, "--figure=curve", "--loss_path", path, ok=False)
    assert done.stderr == "figures.py: a figure with curves needs the package matplotlib; run: pip install matplotlib\n"
    pytest.importorskip("matplotlib")
    figures(dataset, "--figure=curve", "--loss_path", path)
    assert read_image(dataset / "img/curve.png").shape == (400, 720, 3)
