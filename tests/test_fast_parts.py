"""The fast recipe's parts: direction, rain layer and guided samples, against the literal ones where there are any."""
from unittest import mock

import cv2
import literal
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.fast import guided
from utils.fast.direction import LineStatistics, rain_direction
from utils.fast.guided import GuidedSampler
from utils.fast.layer import chroma_weight, credible_share, evidence_weight, sparsity_weight
from utils.fast.solver import reweighting, solve_layer
from utils.rain import add_rain

from conftest import demo, enlarge, noise, speckled


@pytest.mark.parametrize("tilt", range(-50, 51, 10))
def test_the_direction_of_drawn_rain_is_found(tilt):
    for name in ("chelsea", "rocket"):
        assert abs(rain_direction(add_rain(demo(name, "target"), 100 + tilt, tilt=tilt)) - tilt) <= 4


def test_slanted_rain_is_told_from_upright_houses():
    """As many upright bright and dark lines as there are on one side of a street are stronger than the rain before them."""
    street = demo("coffee", "target")
    slats = 60 * np.sin(np.arange(150) * np.pi / 6)[:, None]
    street[:, :150] = np.clip(street[:, :150] + slats, 0, 255)
    for tilt in (-35, 25):
        rainy = add_rain(street, 5, tilt=tilt)
        upright, rain = (LineStatistics(rainy).amounts(degrees) for degrees in (0, tilt))
        assert upright[0] ** 1.5 / upright[1] > rain[0] ** 1.5 / rain[1] and abs(rain_direction(rainy) - tilt) <= 4


@pytest.mark.parametrize("height, width", [(20, 30), (27, 25), (1, 8), (9, 1), (2, 2)])
def test_the_solver_is_the_literal_one(height, width):
    image = cv2.GaussianBlur(noise(height, height, width), (0, 0), 0.8) // 4
    image[:, width // 2] += 90
    image[: height // 4] = 223 + image[: height // 4] // 4  # pale, and cut off in places
    image[height // 2] = 0  # black, so that there can be no rain, in the middle of a streak
    bright, weight, valid = image.mean(axis=2) / 255, literal.chroma_weight(image), np.ones((height, width), bool)
    valid[: height // 4] = False
    assert np.allclose(chroma_weight(image.astype(np.float32)), weight, atol=1e-5)

    def sparsity(rain, number):
        return literal.reweighted(rain.astype(np.float64), valid, 0.12) if number else np.full(rain.shape, 0.12)

    layer = solve_layer(bright.astype(np.float32), weight.astype(np.float32), 0.12, valid.astype(np.uint8))
    expected = literal.solve_layer(bright, weight, sparsity)
    assert abs(layer - expected).max() < 1e-3 and (expected.max() > 0.1 or min(height, width) < 20)


def test_the_credible_share_is_the_literal_one():
    random = np.random.default_rng(2)
    found, control = (cv2.blur(random.gamma(0.3, scale, (60, 70)), (1, 7)).astype(np.float32) for scale in (40, 20))
    share = credible_share(found, control)
    expected = literal.credible_share(found.astype(float), control.astype(float))
    assert np.abs(share - expected).mean() < 1e-3 and expected.max() > 0.3 and share.dtype == np.float32
    assert not credible_share(control, control).any() and not credible_share(0 * found, control).any()


def test_the_reweighting_is_the_literal_one():
    valid = np.ones((100, 120), bool)
    valid[:20, 90:] = False
    rain = np.where(np.arange(120) % 20 < 3, noise(4, 100, 120)[..., 0] / 600, 0).astype(np.float32)
    expected = literal.reweighted(rain.astype(np.float64), valid, 1)
    assert np.allclose(reweighting(rain, valid.astype(np.uint8)), expected, rtol=1e-3) and np.ptp(expected) > 0.5


def sparsity(image):
    return sparsity_weight(image, 0, LineStatistics(image), chroma_weight(image.astype(np.float32)).mean())


def test_the_sparsity_weight_follows_the_photograph():
    """More where lines are dark, in a grey photograph and where it may not rain; less where rain is soft."""
    bright, rainy = np.full((200, 240, 3), 100, np.uint8), demo("chelsea")
    bright[:, np.arange(240) % 40 < 4] = 160
    dark = bright.copy()
    dark[:, np.arange(240) % 40 // 4 == 5] = 20  # by more than the bright lines are bright
    grey = np.repeat(cv2.cvtColor(rainy, cv2.COLOR_BGR2GRAY)[..., None], 3, axis=2)
    assert sparsity(dark) > 1.5 * sparsity(bright) and sparsity(enlarge(rainy, 4)) < 0.75 * sparsity(rainy)
    assert sparsity(grey) > 1.3 * sparsity(rainy) and sparsity(demo("chelsea", "target")) > 2 * sparsity(rainy)


@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee", "rocket"])
def test_weak_evidence_of_rain_raises_the_sparsity_weight(name):
    clean = demo(name, "target")
    rainy = add_rain(clean, 7, tilt=20)
    denser = add_rain(add_rain(rainy, 8, tilt=20), 9, tilt=20)

    def weight(image, direction=20):
        return evidence_weight(LineStatistics(image), direction)

    assert 0.5 == weight(denser) <= weight(rainy) < 0.7  # no scene leaves such gaps at one slant alone
    assert weight(demo(name), rain_direction(demo(name))) <= 1 < 2.9 < weight(clean) and weight(rainy, -20) > 100
    mesh = 60 * np.uint8(np.indices(clean.shape[:2]).T @ (0.6, 1) % 14 < 3).T  # at another slant, all over the picture
    assert weight(rainy + np.minimum(255 - rainy, mesh[..., None])) > 2 * weight(rainy)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), direction=st.integers(-59, 59), more=st.floats(0.3, 9), dark=st.floats(0.2, 9))
def test_the_evidence_weight_is_the_literal_one(seed, direction, more, dark):
    random = np.random.default_rng(seed)
    counts = {degrees: random.random((64, 2)) for degrees in {*range(-56, 57, 8), direction, -direction}}
    counts[direction] = counts[direction] * (more, more * dark)
    assert np.isclose(evidence_weight(counts, direction), literal.evidence_weight(counts, direction))


def shower(seed, height, width, kind=np.float32):
    """A smooth photograph with rain of up to 60 levels on half of its pixels, and that layer of rain."""
    random = np.random.default_rng(seed)
    layer = np.where(random.random((height, width)) < 0.5, random.uniform(0, 60, (height, width)), 0).astype(kind)
    scene = 60 + 80 * np.sin(np.arange(width) / 5 + seed)[:, None] ** 2 + random.uniform(0, 12, (height, width, 3))
    return np.rint(scene + layer[..., None]).astype(np.uint8), layer


def dark_and_bright(seed, height, width):
    """A photograph of black, middling and white, where channels reach 0 and 255, and a layer that exceeds it in places."""
    image = np.random.default_rng(seed).choice(np.array([0, 3, 120, 128, 250, 254, 255], np.uint8), (height, width, 3))
    return image, speckled(seed, height, width)


STRIPES = np.where(np.arange(24) % 8 == 3, 60, 0).astype(np.uint8) + np.zeros((12, 1), np.uint8)
GUIDED = {
    "cut off": (np.minimum(np.array([120, 160, 230]) + STRIPES[..., None], 255).astype(np.uint8), STRIPES),
    "black": (np.zeros((8, 9, 3), np.uint8), speckled(0, 8, 9)), "dark and bright": dark_and_bright(4, 12, 14),
    "floats": shower(1, 12, 14), "float64": shower(2, 9, 8, np.float64), "whole levels": shower(3, 12, 14, np.uint8),
    "rain of 255 everywhere": (noise(5, 6, 7), np.full((6, 7), 255, np.uint8)),
    **{f"no rain, {kind.__name__}": (noise(8, 9, 11), np.zeros((9, 11), kind)) for kind in (np.uint8, np.float32)},
    **{f"{height} x {width}": shower(6, height, width) for height, width in [(1, 1), (1, 4), (4, 1), (3, 5), (2, 20)]}}
WIDTHS = {"window": 5, "rain": 9, "space": 4, "chroma": 200, "pattern": 50, "brightness": 1000, "uncertainty": 10}


@pytest.mark.parametrize("name, widths", [*((name, {}) for name in GUIDED),
                                          *(("floats", {name: value}) for name, value in WIDTHS.items())], ids=str)
def test_the_guided_expectation_is_the_literal_one(name, widths, monkeypatch):
    image, layer = GUIDED[name]
    before, usual = (image.copy(), layer.copy()), GuidedSampler(image, layer).expectation()
    for width, value in widths.items():
        monkeypatch.setattr(guided, width.upper(), value)
    sampler = GuidedSampler(image, layer)
    whole = sampler.expectation()
    assert whole.shape == image.shape and np.abs(whole - literal.guided_expectation(image, layer, **widths)).max() < 2e-3
    with mock.patch.object(guided, "STRIP", 40), mock.patch.object(guided, "CHUNK", 121 * 30):
        assert np.abs(sampler.expectation() - whole).max() < 1e-3
        parts = list(sampler.references(4))
    assert all(np.array_equal(one, other) for one, other in zip(sampler.references(4), parts))
    assert np.array_equal(image, before[0]) and np.array_equal(layer, before[1])
    if not layer.any():
        assert all(np.array_equal(one, image) for one in (whole, *parts, *sampler.references(1, independent=True)))
    if widths:
        assert np.abs(usual - whole).max() > 0.1


@pytest.mark.parametrize("independent", [True, False])
@pytest.mark.parametrize("name", ["floats", "whole levels", "dark and bright", "cut off"])
def test_guided_draws_follow_the_literal_law_and_change_brightness_only(name, independent):
    image, layer = GUIDED[name]
    sampler, number = GuidedSampler(image, layer), 2000
    drawn = np.stack(list(sampler.references(number, seed=5, independent=independent)))
    mean = literal.guided_expectation(image, layer, rounded=True)
    variance = np.maximum(literal.guided_expectation(image, layer, rounded=True, power=2) - mean**2, 0)
    assert drawn.dtype == np.uint8 and np.abs(drawn.var(axis=0) - variance).max() < 0.25 * variance.max() + 1e-3
    error = drawn.mean(axis=0) - mean
    assert np.abs(error / np.sqrt(variance / number + 1e-4)).max() < 6
    assert np.abs(drawn.mean(axis=0) - sampler.expectation()).max() < 0.5 + 6 * np.sqrt(variance.max() / number)
    change = image - drawn.astype(int)
    assert (change >= 0).all() and (change[:, literal.closing(layer, 2) == 0] == 0).all() and change.max() > 10
    if name == "floats":  # where no channel reaches 0 or 255, all three lose the same
        assert (change == change[..., :1]).all() and drawn.min() > 0 and len(np.unique(drawn, axis=0)) > 100
        exact = image - sampler.expectation().astype(float)
        assert np.abs(exact - exact[..., :1]).max() < 1e-4 and (exact >= 0).all()
    if name == "cut off":  # the channel that rain has cut off at 255 takes the colour of its neighbours
        assert image.max() == 255 and (drawn[..., 2] == 230).all()
