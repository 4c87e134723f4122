"""Pictures: what is shown is shown unchanged and in its place, and what is missing is named with the command that makes it."""
import shutil

import numpy as np
import pytest

from utils.figures import grid, resize, side_by_side
from utils.image import read_image, write_png


def noise(seed, height=48, width=64):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_side_by_side_shows_the_images_unchanged_under_their_labels():
    first, second = noise(1), noise(2)
    row = side_by_side([first, second[..., 0]], ["rainy", "mask"], gap=10)
    head = row.shape[0] - 48
    assert row.dtype == np.uint8 and row.shape[1:] == (64 + 10 + 64, 3) and head > 10
    assert np.array_equal(row[head:, :64], first)
    assert np.array_equal(row[head:, 74:], np.repeat(second[..., :1], 3, axis=2))
    assert (row[head:, 64:74] == 255).all()
    for left in (0, 74):
        ink = np.argwhere(row[:head, left : left + 64].min(axis=2) < 128)
        assert len(ink) > 20 and abs(ink[:, 1].mean() - 32) < 6
        assert ink[:, 0].min() > 0 and ink[:, 0].max() < head - 1  # no letter is cut off


def test_side_by_side_without_labels_is_the_images_alone():
    first, second = noise(1), noise(2)
    assert np.array_equal(side_by_side([first, second], gap=0), np.hstack([first, second]))


@pytest.mark.parametrize("width", [1, 20, 100, 133])
def test_side_by_side_keeps_to_its_width(width):
    row = side_by_side([noise(1), noise(2)], ["a label that is far too long for its image", "b"], width=width, gap=5)
    assert row.shape[1] <= max(width, 7)
    assert side_by_side([noise(1), noise(2)], width=5000, gap=5).shape == (48, 133, 3)  # never enlarged


def test_side_by_side_brings_images_to_one_height():
    row = side_by_side([noise(1, 40, 30), noise(2, 80, 100)], gap=0)
    assert row.shape == (40, 30 + 50, 3)
    assert np.array_equal(row[:, 30:], resize(noise(2, 80, 100), 50, 40))


def test_a_long_label_is_made_smaller_to_stay_whole_above_its_image():
    row = side_by_side([noise(1), noise(2)], ["derained photo", ""], gap=4)
    ink = np.argwhere(row[:-48].min(axis=2) < 200)
    assert len(ink) > 20 and ink[:, 1].min() > 0 and ink[:, 1].max() < 63


def test_side_by_side_wants_a_label_for_each():
    with pytest.raises(ValueError, match="2 images, but 1 labels"):
        side_by_side([noise(1), noise(2)], ["one"])


def test_grid_puts_rows_of_any_width_together():
    picture = grid([[noise(1), noise(2)], [noise(3), noise(4, 48, 30)]], ("a", "b"))
    assert picture.shape[1] == 136
    assert np.array_equal(picture[-48:, :64], noise(3))
    assert (picture[-48:, -30:] == 255).all()


@pytest.fixture
def dataset(tmp_path):
    """A data set that all stages have worked on, of two photographs of noise."""
    for stem in ("a", "b"):
        for number, folder in enumerate(("input", "ldgp", "sdr(fuse)", "result")):
            write_png(tmp_path / folder / f"{stem}.png", noise(number)[..., : 1 if folder == "ldgp" else 3].squeeze())
        for k in range(4):
            write_png(tmp_path / "sdr" / stem / f"{k}.png", noise(10 + k))
    return tmp_path


def figures(script, dataset, *more, ok=True):
    return script("-m", "utils.figures", "--dataset_path", dataset, "--save_path", dataset / "img", *more, ok=ok)


def test_figures_makes_the_three_pictures(script, dataset):
    figures(script, dataset)
    sizes = {path.stem: read_image(path).shape[:2] for path in (dataset / "img").iterdir()}
    assert sizes.keys() == {"scheme", "masks", "before_after"}
    assert sizes["scheme"] == (540, 1000)
    after = read_image(dataset / "img/before_after.png")
    assert np.array_equal(after[-48:, -64:], noise(3)) and np.array_equal(after[-48:, :64], noise(0))
    masks = read_image(dataset / "img/masks.png")
    places = [slice(72 * n, 72 * n + 64) for n in range(4)]
    shown = noise(0), np.repeat(noise(1)[..., :1], 3, axis=2), noise(10), noise(2)
    assert all(np.array_equal(masks[-48:, place], picture) for place, picture in zip(places, shown))


@pytest.mark.parametrize("folder, command", [
    ("ldgp", "python ldgp.py --input_path="), ("sdr", "python sdr.py --input_path="),
    ("sdr(fuse)", "python sdr.py --input_path="), ("result", "python sdrl.py --rainy_data_path="),
    ("input", "dataset/README.md"),
])
def test_figures_says_which_command_makes_what_is_missing(script, dataset, folder, command):
    if folder == "sdr":
        shutil.rmtree(dataset / "sdr/b")
    else:
        (dataset / folder / "b.png").unlink()
    done = figures(script, dataset, "--images", "a", "b", ok=False)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and command in done.stderr
    assert not (dataset / "img").exists()
