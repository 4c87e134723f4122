"""The demo set comes out as it is committed, and its rain is rain: bright streaks in one direction that the method finds."""
from fractions import Fraction

import numpy as np
import pytest

from ldgp import dominant_angle, rain_mask, rotation
from sdr import fuse, sample_references
from utils.image import list_images, read_image
from utils.metrics import psnr, ssim
from utils.rain import DEMO, add_rain, demo_pair, rain_layer, shrink

from conftest import ROOT, inside, noise


def test_the_demo_set_made_again_is_the_one_committed(tmp_path):
    inside("utils.rain", "--save_path", tmp_path)
    for folder in ("input", "target"):
        kept, made = list_images(ROOT / "dataset/Demo" / folder), list_images(tmp_path / folder)
        assert list(kept) == list(made) == sorted(DEMO)
        for stem in DEMO:
            assert np.array_equal(read_image(kept[stem]), read_image(made[stem])), f"{folder}/{stem}"


@pytest.mark.parametrize("name", DEMO)
def test_the_method_finds_the_rain_of_the_demo_set(name):
    rainy, clean = demo_pair(name)
    tilt = DEMO[name][3]
    assert abs(rotation(dominant_angle(rainy)) - tilt) <= 8
    assert 22 < psnr(rainy, clean) < 27
    mask = rain_mask(rainy)
    rain = (rainy.astype(int) - clean).max(axis=2)
    assert np.mean(mask[rain > 20] > 10) > 0.75  # of what is clearly rain
    assert np.mean(mask[rain == 0] > 10) < 0.25
    fused = fuse(sample_references(rainy, mask))
    assert psnr(fused, clean) > psnr(rainy, clean) + 1
    assert ssim(fused, clean) > ssim(rainy, clean) + 0.05


def test_rain_only_brightens_and_is_cut_off_at_255():
    image = noise(0)
    before, rainy = image.copy(), add_rain(image, 5)
    assert rainy.shape == image.shape and rainy.dtype == np.uint8
    assert np.array_equal(image, before)
    assert np.array_equal(rainy, np.minimum(255, image.astype(int) + rain_layer((48, 64), 5)[..., None]))
    assert (rainy > image).mean() > 0.1


def test_rain_follows_from_its_seed():
    assert np.array_equal(rain_layer((40, 60), 1), rain_layer((40, 60), 1))
    assert not np.array_equal(rain_layer((40, 60), 1), rain_layer((40, 60), 2))
    assert not rain_layer((40, 60), 1, density=0).any()
    state = np.random.get_state()[1].copy()
    rain_layer((40, 60), 1)
    assert np.array_equal(np.random.get_state()[1], state)  # the caller's random numbers are left alone


@pytest.mark.parametrize("tilt", [-30, -10, 0, 10, 30])
def test_streaks_lie_along_the_tilt(tilt):
    layer = rain_layer((200, 200), 1, tilt=tilt, density=1, spread=0).astype(float)
    step = 12  # rows further down a streak, which lie this much to the left at a positive tilt:
    agreement = [np.sum(layer[:-step, 20:-20] * layer[step:, 20 + shift : 180 + shift]) for shift in range(-12, 13)]
    assert abs(np.argmax(agreement) - 12 - -step * np.tan(np.radians(tilt))) <= 1


@pytest.mark.parametrize("tilt", [-15, -5, 5, 15])
def test_a_streak_has_its_length_thickness_and_brightness(tilt):
    options = {"length": (40, 40), "thickness": (3, 3), "brightness": (100, 100), "spread": 0}
    layers = [rain_layer((120, 120), seed, tilt=tilt, density=1 / 14.4, **options) for seed in range(20)]  # a streak each
    whole = [layer for layer in layers if not (layer[[0, -1]].any() or layer[:, [0, -1]].any())]
    assert len(whole) > 3
    for layer in whole:
        rows, _ = np.nonzero(layer)
        assert 36 <= np.ptp(rows) <= 43 and layer.max() == 100
        assert layer.sum() / 100 == pytest.approx(40 * 3 * 0.75, rel=0.05)  # a quarter is lost to the fading ends


@pytest.mark.parametrize("numerator, denominator", [(1, 2), (2, 3), (5, 8), (1, 1)])
def test_shrinking_is_the_mean_over_the_area(numerator, denominator):
    image = noise(1, 2 * denominator, 3 * denominator)
    small = shrink(image, numerator, denominator)
    ratio = Fraction(denominator, numerator)

    def overlap(pixel, source):
        return max(Fraction(0), min((pixel + 1) * ratio, source + 1) - max(pixel * ratio, source))

    for y, x in np.ndindex(small.shape[:2]):
        total = sum(
            int(image[v, u, 0]) * overlap(y, v) * overlap(x, u) for v in range(len(image)) for u in range(image.shape[1])
        )
        assert small[y, x, 0] == (total / ratio**2 + Fraction(1, 2)).__floor__()
    assert small.shape == (2 * numerator, 3 * numerator, 3)


@pytest.mark.parametrize("image", [np.zeros((40, 40), np.uint8), np.zeros((40, 40, 3))])
def test_rain_wants_colour_in_8_bits(image):
    with pytest.raises(ValueError):
        add_rain(image, 1)
