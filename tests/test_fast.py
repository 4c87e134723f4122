"""The fast recipe on arrays: drawn rain, the data set, pictures without rain, large photographs, and learning its mistakes."""
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from models import BACKBONES
from utils import fast
from utils.fast import direction, rain_layer, thin_scale
from utils.fast.direction import rain_direction
from utils.fast.fold import MARGIN, fold, pieces, unfold
from utils.fast.guided import GuidedSampler
from utils.fast.mistakes import FAST, Versions, crops, learner, version, what_was_found
from utils.image import png_bytes, read_image
from utils.metrics import psnr
from utils.rain import add_rain, draw_streaks

from conftest import demo, enlarge, noise, photograph, speckled


def without(image, layer):
    return image - np.minimum(image, layer[..., None])


@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee", "rocket"])
def test_the_layer_is_most_of_drawn_rain_and_little_else(name):
    rainy, clean = demo(name), demo(name, "target")
    layer = rain_layer(rainy)
    assert layer.dtype == np.uint8 and layer.shape == rainy.shape[:2] and (layer <= rainy.mean(axis=2)).all()
    derained = without(rainy, layer)
    assert psnr(derained, clean) > psnr(rainy, clean) + 4.5
    whole = derained.min(axis=2) > 0
    assert np.array_equal(np.diff(derained[whole].astype(int)), np.diff(rainy[whole].astype(int)))  # the chroma is the same
    assert rain_layer(clean).mean() < layer.mean() / 2


def test_the_layer_of_the_data_set_is_as_good_as_when_it_was_chosen(reference):
    folder = reference / "data/Rain100L"
    for stem, tilt in {"1": -4, "4": 10, "8": 2, "17": 28, "22": -28, "40": -10}.items():
        assert abs(rain_direction(read_image(folder / f"input/{stem}.png")) - tilt) <= 4
    for stem, least in {"8": 29.9, "28": 25.2, "36": 35.8, "40": 32.0}.items():
        rainy, clean = (read_image(folder / f"{part}/{stem}.png") for part in ("input", "target"))
        assert psnr(without(rainy, rain_layer(rainy)), clean) > least, stem


def test_pictures_without_rain_have_none_and_made_lines_stay():
    def layer_of(grey):
        return rain_layer(np.dstack([np.uint8(grey)] * 3))
    for height, width in ((1, 1), (1, 300), (300, 1), (2, 3), (7, 5), (40, 33)):
        for grey in (0, 130, 255):
            picture = np.full((height, width, 3), grey, np.uint8)
            assert rain_direction(picture) == 0 and thin_scale(picture) == 1 and not rain_layer(picture).any()
        for picture in (noise(1, height, width), np.repeat(noise(2, height, width)[..., :1], 3, axis=2)):
            assert (rain_layer(picture) <= picture.mean(axis=2)).all()
    places = np.arange(320) + np.arange(240)[:, None] // 6
    slanted = np.where(np.isin(places, np.cumsum(np.random.default_rng(1).integers(5, 40, 20))), 210, 90).astype(np.uint8)
    assert layer_of(slanted).mean() > 2 > 0.5 > layer_of(255 - slanted).mean()  # dark lines are next to no rain
    shading = 30 * np.sin(places * 2 * np.pi / 9) * np.linspace(0.7, 1.3, 320)  # a corrugated sheet, and battens
    for made in (120 + shading, np.where(places % 23 < 3, 210, 90)):  # more than 20 without `regularity`
        assert np.sqrt(np.mean(np.square(layer_of(made), dtype=float))) < 6


def made_things():
    """Pictures of things that are long and thin, but no rain, in colours: a sheet, a railing, battens, letters, twigs."""
    x, y = np.arange(360), np.arange(270)[:, None]
    height, random = 120 + 20 * np.sin(y / 50) + 0 * x, np.random.default_rng(1)
    yield height + 40 * np.sin((x + y / 9) * 2 * np.pi / 11)
    yield np.where((x - y // 7) % 26 < 4, 205, height)
    yield np.where(x % 17 < 5, 170, 90) + 0 * y
    letters, twigs = np.full((2, 270, 360), 190, np.uint8)
    for line in range(1, 9):
        cv2.putText(letters, "illicit lIl Till HILL", (5, 30 * line), cv2.FONT_HERSHEY_SIMPLEX, 0.9, 40, 2, cv2.LINE_AA)
        start, end = random.integers(0, 360, (2, 2))
        cv2.line(twigs, start, end, 70, 3, cv2.LINE_AA)
    yield from (letters, twigs)


def test_made_things_and_twigs_stay():
    for picture in made_things():
        coloured = np.clip(picture[..., None] * np.array([0.8, 1, 1.1]), 0, 255).astype(np.uint8)
        derained = fast.derain(coloured)[0].astype(float)
        assert np.sqrt(np.mean((derained - coloured) ** 2)) < 3


@pytest.mark.parametrize("kind, least", [("thin", 0.6), ("wide", 0.5), ("short", 0.2), ("slanted", 0.6), ("long", 0.7)])
def test_sparse_streaks_of_every_kind_go_before_dark_and_bright_and_not_from_the_negative(kind, least):
    options = {"thin": {"thickness": (0.5, 1)}, "wide": {"thickness": (4, 7), "length": (50, 90), "density": 0.15},
               "short": {"length": (8, 16)}, "slanted": {"tilt": 20}, "long": {"length": (80, 120)}}[kind]
    clean = demo("rocket", "target")
    rain = draw_streaks(clean.shape[:2], 1, **{"tilt": 0, "density": 0.4, "brightness": (50, 120), **options})
    rainy = np.minimum(clean + rain[..., None], 255).astype(np.uint8)
    derained = fast.derain(rainy)[0]
    dark = clean.mean(axis=2) < 100
    for part in (dark & (rain > 20), ~dark & (rain > 20)):
        removed, added = ((rainy - image.astype(float)).mean(axis=2)[part].sum() for image in (derained, clean))
        assert removed > least * added
    negative = 255 - rainy
    assert np.sqrt(np.mean((fast.derain(negative)[0].astype(float) - negative) ** 2)) < 2


def test_a_higher_strength_takes_more_for_rain():
    rainy = demo("chelsea")
    weak, usual, strong = (rain_layer(rainy, strength=strength).mean() for strength in (0.5, 1, 2))
    assert 1.2 * weak < usual < strong / 1.2 and usual == rain_layer(rainy).mean()
    sparse = add_rain(demo("rocket", "target"), 1, tilt=0, density=0.4)
    means = [rain_layer(sparse, strength=strength).mean() for strength in (0.5, 0.8, 1, 1.3, 2, 4)]
    assert means == sorted(means) and means[0] > 0
    for strength in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="strength must be above 0"):
            rain_layer(rainy, strength=strength)


def test_large_photographs_are_looked_at_where_their_rain_is_thin():
    rainy, clean = demo("astronaut"), demo("astronaut", "target")
    assert [thin_scale(enlarge(rainy, scale)) for scale in (1, 2, 4)] == [1, 2, 4]
    large = enlarge(rainy, 4)
    layer = rain_layer(large)
    assert layer.shape == large.shape[:2] and (layer <= large.mean(axis=2)).all()
    derained = cv2.resize(without(large, layer), rainy.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert psnr(derained, clean) > psnr(without(rainy, rain_layer(rainy)), clean) - 0.5


@pytest.mark.parametrize("tall", [False, True])
def test_a_very_wide_photograph_is_rotated_in_pieces_on_small_canvases_and_shows_no_seams(monkeypatch, tall):
    canvases = []

    def recorded(*arguments, function=direction.rotation_matrix):
        matrix, canvas = function(*arguments)
        canvases.append(canvas[0] * canvas[1])
        return matrix, canvas

    for module in (direction, fast.layer):
        monkeypatch.setattr(module, "rotation_matrix", recorded)
    clean = np.hstack([demo(name, "target")[:140] for name in ("coffee", "chelsea", "astronaut", "rocket")])
    clean = clean.swapaxes(0, 1).copy() if tall else clean
    rainy = add_rain(clean, 7, tilt=40)
    derained = without(rainy, rain_layer(rainy))
    assert max(canvases) < 4 * 140 * 1280 and psnr(derained, clean) > psnr(rainy, clean) + 6  # whole: 5.4 times the photograph
    error = np.abs(derained.astype(float) - clean).mean(axis=1 if tall else 0).mean(axis=1)
    starts, length = pieces(140, 1280)
    assert all(error[start : start + 2 * MARGIN].mean() < 1.5 * error.mean() for start in starts[1:]) and len(starts) > 1
    for image in (rainy, rainy[..., 0].astype(np.float32)):
        stack = fold(image, MARGIN)
        assert max(stack.shape[:2]) < 3 * min(stack.shape[:2])
    assert np.allclose(unfold(stack, *image.shape, MARGIN), image, atol=1e-3)
    usual = rainy[:840, :840]  # 6 to 1
    assert fold(usual) is usual and fold(stack) is stack


def with_checks(image):
    """An image enlarged to twice its size, with fine checks, which have no mean in 2x2 pixels."""
    large = np.kron(image, np.ones((2, 2, 1), image.dtype))
    return (large + np.where(np.indices(large.shape[:2]).sum(axis=0) % 2, 20, -20)[..., None]).astype(image.dtype)


def test_a_large_photograph_is_sampled_and_learnt_small_and_keeps_its_details():
    image, layer = noise(8, 24, 30) // 2 + 90, np.minimum(speckled(8, 24, 30), 40)  # no channel is cut off
    large = with_checks(image)
    references, fused = fast.guided_references(large, np.kron(layer, np.ones((2, 2), np.uint8)), 2, sdr_num=2)
    small = GuidedSampler(image, layer).expectation()
    for one in (fused, *references):
        rain = large.astype(int) - one
        assert one.dtype == np.uint8 and (rain == rain[..., :1]).all() and rain.min() >= 0
    expected = cv2.resize((image - small).max(axis=2), (60, 48), interpolation=cv2.INTER_CUBIC).clip(0)
    assert expected.max() > 20 and np.abs(large.astype(int) - fused - expected[..., None]).max() < 0.502
    rainy, fused = map(with_checks, with_stripes())
    taken = rainy.astype(int) - learn(rainy, fused, scale=2)
    assert taken.min() >= 0 and taken.max() > 10
    assert abs(np.diff(taken[..., 0])).max() < 20  # without a trace of the checks


def test_the_fast_recipe_on_an_array():
    rainy, losses = photograph(48, 64, 1), []
    derained, layer = fast.derain(rainy, learner(recipe=FAST._replace(steps=2), report=losses.append))
    assert derained.shape == rainy.shape and (derained <= rainy).all() and (derained < rainy).any()
    assert np.array_equal(layer, rain_layer(rainy)) and len(losses) == 2
    view = np.ascontiguousarray(rainy[:, ::-1])[:, ::-1]
    assert np.array_equal(derained, fast.derain(view, learner(recipe=FAST._replace(steps=2)))[0])


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_learns(backbone):
    """On odd sides, to correct what was found, and to put no light on."""
    rainy, fused = with_stripes(21, 33)
    fused = np.rint(fused).astype(np.uint8)
    rain = learner(backbone, recipe=FAST._replace(steps=3, batch_size=1))(rainy, fused)
    assert rain.shape == rainy.shape and (rain >= 0).all() and (rain <= rainy).all() and rain.max() > 10
    assert np.abs(rain - (rainy - fused)).max() > 1e-3


def learn(rainy, fused, backbone="Unet", scale=1, **options):
    recipe = FAST._replace(**{"steps": 2, "batch_size": 1, "lr": 0.05, **options})
    return fast.derain_by_learning(rainy, fused, learner(backbone, recipe=recipe), scale)


def with_stripes(height=37, width=53):
    """A photograph of middling levels, and the photograph without what guided samples might take off."""
    rainy = photograph(height, width, 1) // 2 + 80
    fused = rainy - np.where((np.arange(width) + np.arange(height)[:, None]) % 9 < 2, 30, 0).astype(np.float32)[..., None]
    return rainy, fused


def test_a_data_set_is_learnt_at_the_scale_at_which_rain_is_thin(tmp_path):
    scenes = {}
    for scale in (1, 4):
        paths = tmp_path / "input.png", tmp_path / "target.png"
        for path in paths:
            path.write_bytes(png_bytes(enlarge(demo("astronaut", path.stem), scale), scale=scale))
        (scenes[scale], rainy, _), *more = Versions([(paths[0], paths[1:])], 64, 3, 1).read_versions(0)
        assert len(more) == 6 and rainy.shape == scenes[scale].shape == (240, 320, 3) and (rainy - scenes[scale]).mean() > 3
    assert psnr(scenes[1], scenes[4]) > 30


def test_a_data_set_that_is_larger_than_the_cache_is_learnt_part_by_part(tmp_path, monkeypatch):
    """Each part for a hundred epochs; one that the cache holds has all its photographs in every epoch, and more versions."""
    paths = [tmp_path / f"{name}.png" for name in range(5)]
    for number, path in enumerate(paths):
        path.write_bytes(png_bytes(np.full((24, 30, 3), 100 + number, np.uint8)))
    monkeypatch.setattr(Versions, "versions", lambda self, index: made.append(index) or [[np.full((24, 30, 3), index)] * 3])

    def seen(epoch, photographs):
        items = Versions([(path, [path]) for path in paths], 8, 3, photographs * 9 * 24 * 30 / 1e9)
        return items.number, sorted(items[epoch, index][0, 0, 0] for index in range(5))

    made = []
    assert seen(0, 5) == seen(150, 9) == (1, [0, 1, 2, 3, 4]) and seen(3, 10)[0] == 2 and seen(3, 1000)[0] == 7
    assert [seen(epoch, 2)[1] for epoch in (0, 99, 100, 200)] == [[0, 0, 0, 1, 1]] * 2 + [[2, 2, 2, 3, 3], [0, 0, 4, 4, 4]]
    assert len(made) == 20 + 4 * 2 and seen(0, 0.1)[1] == [0] * 5


def test_versions_are_backgrounds_under_the_rain_that_was_found():
    """The same light in all channels, from elsewhere, up to white, on the background, mirrored or not, every other rotated."""
    rainy, fused = with_stripes()
    rainy[5:9, 5:40] += 2  # with fainter rain, which is not used
    random, flipped, factors = np.random.default_rng(1), 0, set()
    for number in range(12):
        clean, *images = version(rainy, fused, 0, 1.0, number, random)
        found = what_was_found(*images)
        assert found.shape == (37, 53, 7) and clean.shape == rainy.shape and clean.dtype == np.uint8
        added = found[..., 1:4] - clean
        assert added.min() == 0 and (added == added.max(axis=2, keepdims=True))[found[..., 1:4] < 255].all()
        assert np.array_equal(found[..., 0], 4 * (found[..., 1:4] - found[..., 4:]).max(axis=2))
        factors |= set(np.unique(added[added > 0] / 30).round(3))
        same, mirrored = (int(np.abs(clean - side).max() < 1) for side in (fused, fused[:, ::-1]))
        assert same + mirrored == 1 - number % 2
        flipped += mirrored
    assert 0 < flipped < 6 and len(factors) > 6 and 0.58 < min(factors) < max(factors) < 1.62


def test_crops_are_of_one_place_of_a_version():
    versions = [[torch.rand(1, 3, 40, 56) for _ in range(2)] for _ in range(2)]
    for pair in versions:
        pair[0] = torch.cat([pair[1] + 1, pair[0]], dim=1)
    schedule, steps = SimpleNamespace(step=lambda: steps.append(1)), []

    def draw(**options):
        return next(crops(versions, schedule, FAST._replace(**options), np.random.default_rng(3)))

    x, y = draw(crop_size=24, batch_size=50)
    assert y.shape == (50, 3, 24, 24) and torch.equal(x[:, :3], y + 1) and draw()[0].shape == (4, 6, 40, 56)
    for turned in ([], [2, 3]):  # windows of either version, rotated by 180 degrees or not
        for _, clean in versions:
            windows = clean.unfold(2, 24, 1).unfold(3, 24, 1)[0].permute(1, 2, 0, 3, 4).flatten(0, 1)
            assert 3 < sum((windows == square).flatten(1).all(dim=1).any() for square in y.flip(turned)) < 25


def test_learning_is_repeatable_and_left_out_with_no_steps():
    rainy, fused = with_stripes()
    fused[3, 4] = 100.4, 99.5, 98.6
    assert np.array_equal(learn(rainy, fused, steps=0), np.rint(fused))
    once = learn(rainy, fused, steps=3)
    assert np.array_equal(once, learn(rainy, fused, steps=3)) and not np.array_equal(once, learn(rainy, fused, steps=3, seed=4))
    with pytest.raises(ValueError, match="does not belong"):
        learn(rainy, fused[1:])
    rainy, fused = with_stripes()  # what does not learn leaves what was found
    assert np.array_equal(learn(rainy, fused, lr=0), fused)
    rainy = np.full((40, 40, 3), (255, 200, 180), np.uint8)  # of which one channel was cut off: it keeps its own light
    fused = rainy.astype(np.float32) - (10, 30, 30)
    assert np.array_equal(learn(rainy, fused, lr=0), fused)
