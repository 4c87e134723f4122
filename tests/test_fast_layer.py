"""The rain layer's parts: the solver against the literal one, the sparsity weight and what it follows from."""
import cv2
import literal
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.fast.direction import LineStatistics, rain_direction
from utils.fast.layer import chroma_weight, evidence_weight, reweighting, solve_layer, sparsity_weight
from utils.rain import add_rain

from conftest import demo, enlarge, noise



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
