"""Scores: the published figures of rainy inputs, a literal SSIM, and properties."""
import json
import math
from fractions import Fraction

import cv2
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from utils.image import ImageError, list_images, read_image
from utils.metrics import luma, mean_scores, psnr, rounded_luma, scores, ssim

from conftest import noise


def near(image, seed, most=20):
    change = np.random.default_rng(seed).integers(-most, most + 1, image.shape)
    return np.clip(image + change, 0, 255).astype(np.uint8)


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
