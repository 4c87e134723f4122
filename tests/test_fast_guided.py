"""Guided samples: the expectation and the law of the draws against the literal ones."""
from unittest import mock

import literal
import numpy as np
import pytest

from utils.fast import guided
from utils.fast.guided import GuidedSampler

from conftest import noise, speckled



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
    "black": (np.zeros((8, 9, 3), np.uint8), speckled(0, 8, 9)),
    "floats": shower(1, 12, 14),
    "float64": shower(2, 9, 8, np.float64),
    "whole levels": shower(3, 12, 14, np.uint8),
    "dark and bright": dark_and_bright(4, 12, 14),
    "rain of 255 everywhere": (noise(5, 6, 7), np.full((6, 7), 255, np.uint8)),
    **{f"no rain, {kind.__name__}": (noise(8, 9, 11), np.zeros((9, 11), kind)) for kind in (np.uint8, np.float32)},
    **{f"{height} x {width}": shower(6, height, width) for height, width in [(1, 1), (1, 4), (4, 1), (3, 5), (2, 20)]},
}


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
