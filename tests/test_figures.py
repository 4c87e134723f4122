"""Pictures: what is shown is shown unchanged and in its place, and what is missing is named with the command that makes it."""
import shutil

import numpy as np
import pytest

from ldgp import dominant_angle, rain_mask
from utils.charts import bars, curves, round_steps
from utils.figures import comparison, detail_of, grid, resize, side_by_side, votes
from utils.image import read_image, write_png

from test_evaluate import inside
from test_stages import photograph


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


def figures(dataset, *more, ok=True):
    return inside("utils.figures", "--dataset_path", dataset, "--save_path", dataset / "img", *more, ok=ok)


def test_figures_makes_the_three_pictures(dataset):
    figures(dataset)
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
def test_figures_says_which_command_makes_what_is_missing(dataset, folder, command):
    if folder == "sdr":
        shutil.rmtree(dataset / "sdr/b")
    else:
        (dataset / folder / "b.png").unlink()
    done = figures(dataset, "--images", "a", "b", ok=False)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and command in done.stderr
    assert not (dataset / "img").exists()


def test_a_comparison_shows_every_version_unchanged_and_the_same_detail_of_it():
    columns = {"rainy": noise(1), "mask": noise(2)[..., 0], "target": noise(3)}
    picture = comparison(columns, (8, 12, 16), width=1000)
    head = len(picture) - 48 - 8 - 48
    assert picture.shape[1] == 3 * 64 + 2 * 8
    for number, image in enumerate(columns.values()):
        left = 72 * number
        image = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
        shown = picture[head : head + 48, left : left + 64]
        framed = (shown != image).any(axis=2)
        assert framed.any() and framed[14:22, 11:21].sum() == 0 and framed[:10].sum() == 0 and framed[:, 27:].sum() == 0
        assert np.array_equal(picture[-48:, left : left + 64], resize(image[12:24, 8:24], 64, 48))
    assert comparison(columns, width=104).shape[1] <= 104


def test_the_detail_is_where_the_rain_was():
    clean = np.full((40, 60, 3), 90, np.uint8)
    rainy = clean.copy()
    rainy[20:25, 41:46] = 200
    left, top = detail_of(rainy, [clean], 15, 10)
    assert left <= 41 and left + 15 >= 46 and top <= 20 and top + 10 >= 25
    assert detail_of(rainy, [clean], 60, 40) == (0, 0)
    for detail in ((46, 0, 15), (0, 31, 15), (0, 0, 61), (0, 0, 0)):
        with pytest.raises(ValueError, match="not within 60x40"):
            comparison({"rainy": rainy, "target": clean}, detail)


def test_a_comparison_has_the_columns_that_there_are(dataset):
    done = figures(dataset, "--figure=comparison")
    assert done.stdout == f"figures.py: {dataset / 'img/comparison.png'}, {4 * 64 + 3 * 8}x{2 * (28 + 48 + 8 + 48) + 16}\n"
    shutil.copytree(dataset / "result", dataset / "target")
    shutil.rmtree(dataset / "ldgp")
    more = "--result_path", f"A={dataset / 'result'}", "--result_path", f"B={dataset / 'sdr(fuse)'}"
    assert f" {5 * 64 + 4 * 8}x" in figures(dataset, "--figure=comparison", "--images", "b", *more).stdout
    for flags, words in ((["--images", "c"], "c: nothing for it in"), (["--detail", "60", "0", "10"], "not within 64x48"),
                         (["--result_path", dataset / "nowhere"], "no such folder; run sdrl.py")):
        done = figures(dataset, "--figure=comparison", *flags, ok=False)
        assert len(done.stderr.splitlines()) == 1 and words in done.stderr, done.stderr
    write_png(dataset / "target/a.png", noise(0, 20, 20))
    assert "20x20, but" in figures(dataset, "--figure=comparison", ok=False).stderr


def test_the_layer_figure_shows_mask_layer_and_result_beside_each_photograph(dataset):
    from ldgp import rain_layer

    figures(dataset, "--figure=layer")
    picture = read_image(dataset / "img/layer.png")
    assert picture.shape[1] == 4 * 64 + 3 * 8
    for number, image in enumerate((noise(0), rain_mask(noise(0)), rain_layer(noise(0)), noise(3))):
        assert np.array_equal(picture[-48:, 72 * number : 72 * number + 64], resize(image, 64, 48))


def test_the_ldgp_figure_puts_each_photograph_above_its_mask(dataset):
    figures(dataset, "--figure=ldgp", "--images", "b", "a")
    picture = read_image(dataset / "img/ldgp.png")
    assert picture.shape[1] == 136 and np.array_equal(picture[-104:-56, :64], noise(0))
    assert np.array_equal(picture[-48:, 72:], np.repeat(noise(1)[..., :1], 3, axis=2))
    (dataset / "ldgp/a.png").unlink()
    assert "run: python ldgp.py" in figures(dataset, "--figure=ldgp", ok=False).stderr


@pytest.mark.parametrize("size", [(170, 250), (40, 60)])
def test_the_votes_are_those_that_decide_the_angle(size):
    image = photograph(*size, 3)
    counted = votes(image)
    assert list(counted) == list(range(0, 180, 5)) and sum(counted.values()) == max(size[0] // 80 * (size[1] // 80), 1)
    assert max(counted, key=lambda angle: (counted[angle], -angle)) == dominant_angle(image)


def test_the_angles_figure(dataset):
    figures(dataset, "--figure=angles", "--images", "a")
    assert read_image(dataset / "img/angles.png").shape == (360, 720, 3)
    write_png(dataset / "input/a.png", noise(1, 20, 50))
    done = figures(dataset, "--figure=angles", "--images", "a", ok=False)
    assert f"{dataset / 'input/a.png'}: 50x20 pixels is too small" in done.stderr


def test_bars_are_as_high_as_their_values():
    chart = bars({0: 2, 5: 4, 10: 0}, "title", "x", "y", marked=5).astype(int)
    blue, orange = (chart[..., 0] - chart[..., 2] > 80), (chart[..., 2] - chart[..., 0] > 100)
    heights = [np.ptp(np.flatnonzero(colour.any(axis=1))) + 1 for colour in (blue, orange)]
    assert heights[1] == pytest.approx(2 * heights[0], abs=2) and heights[1] > 200


def test_a_curve_goes_through_its_points_on_a_logarithmic_axis():
    chart = curves({"a": [(0, 1.0), (50, 0.1), (100, 0.01)]}, "title", "x", "y").astype(int)
    blue = chart[..., 0] - chart[..., 2] > 80
    columns = np.flatnonzero(blue.any(axis=0))
    rows = [np.flatnonzero(blue[:, column]).mean() for column in (columns[2], columns[len(columns) // 2], columns[-3])]
    assert rows[0] < rows[1] < rows[2] and rows[1] - rows[0] == pytest.approx(rows[2] - rows[1], abs=8)
    for line in ([(1, 0.3)], [(1, 1.0), (2, 1.0)], [(1, 2e-9), (3, 7e5)]):  # one point, a level line, a wide range
        assert curves({"a": line, "b": line}, "", "", "").shape == (400, 720, 3)


@pytest.mark.parametrize("low, high", [(0, 1), (0, 0), (1, 1), (3, 2000), (0.2, 0.21), (-5, 7)])
def test_ticks_are_round_and_enclose_the_values(low, high):
    ticks = round_steps(low, high)
    assert ticks[0] <= low + 1e-9 and ticks[-1] >= high - 1e-9 and 2 <= len(ticks) <= 8
    assert np.allclose(np.diff(ticks), ticks[1] - ticks[0])


def test_the_curve_figure_reads_loss_csv(dataset):
    path = dataset / "loss.csv"
    path.write_text("epoch,loss,seconds\n1,0.5,1.0\n2,0.25,2.0\n")
    figures(dataset, "--figure=curve", "--loss_path", path, "--loss_path", f"other={path}")
    assert read_image(dataset / "img/curve.png").shape == (400, 720, 3)
    for text, words in (("epoch,loss,seconds\n", "no epoch in it"), ("a,b\n1,2\n", "not a loss.csv"),
                        ("epoch,loss\n1,x\n", "not a loss.csv"), (None, "no such file; sdrl_all.py writes it")):
        path.unlink() if text is None else path.write_text(text)
        done = figures(dataset, "--figure=curve", "--loss_path", path, ok=False)
        assert len(done.stderr.splitlines()) == 1 and f"{path}: {words}" in done.stderr
