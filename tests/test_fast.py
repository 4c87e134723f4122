"""The fast recipe from end to end, on arrays: drawn rain, the data set, pictures without rain, large photographs."""
import cv2
import numpy as np
import pytest

from utils import fast
from utils.fast import rain_layer, thin_scale
from utils.fast.direction import rain_direction
from utils.fast.guided import GuidedSampler
from utils.fast.own_rain import FAST, learner
from utils.image import read_image
from utils.metrics import psnr

from conftest import demo, enlarge, noise, photograph, slanted_lines, speckled



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


def test_pictures_without_rain_have_none():
    for height, width in ((1, 1), (1, 300), (300, 1), (2, 3), (7, 5), (40, 33)):
        for grey in (0, 130, 255):
            picture = np.full((height, width, 3), grey, np.uint8)
            assert rain_direction(picture) == 0 and thin_scale(picture) == 1 and not rain_layer(picture).any()
        for picture in (noise(1, height, width), np.repeat(noise(2, height, width)[..., :1], 3, axis=2)):
            assert (rain_layer(picture) <= picture.mean(axis=2)).all()
    slanted = slanted_lines(10)
    assert rain_layer(slanted).mean() > 5 > 0.5 > rain_layer(255 - slanted).mean()  # dark lines are next to no rain


def test_a_higher_strength_takes_more_for_rain():
    rainy = demo("chelsea")
    weak, usual, strong = (rain_layer(rainy, strength=strength).mean() for strength in (0.5, 1, 2))
    assert 1.2 * weak < usual < strong / 1.2 and usual == rain_layer(rainy).mean()
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


def test_a_large_photograph_is_sampled_small_and_keeps_its_details():
    """The rain is enlarged, the same in each channel, and fine checks stay; what is written reads back with its scale."""
    image, layer = noise(8, 24, 30) // 2 + 90, np.minimum(speckled(8, 24, 30), 40)  # no channel is cut off
    checks = np.where(np.indices((48, 60)).sum(axis=0) % 2, 20, -20)[..., None]  # of no mean in 2x2 pixels
    large = (np.kron(image, np.ones((2, 2, 1), np.uint8)) + checks).astype(np.uint8)
    references, fused = fast.guided_references(large, np.kron(layer, np.ones((2, 2), np.uint8)), 2, sdr_num=2)
    small = GuidedSampler(image, layer).expectation()
    for one in (fused, *references):
        rain = large.astype(int) - one
        assert one.dtype == np.uint8 and (rain == rain[..., :1]).all() and rain.min() >= 0
    expected = cv2.resize((image - small).max(axis=2), (60, 48), interpolation=cv2.INTER_CUBIC).clip(0)
    assert expected.max() > 20 and np.abs(large.astype(int) - fused - expected[..., None]).max() < 0.502


@pytest.mark.parametrize("steps", [0, 2])
def test_the_fast_recipe_on_an_array(steps):
    rainy, losses = photograph(48, 64, 1), []

    def derain():
        return fast.derain(rainy, learner(recipe=FAST._replace(steps=steps), report=losses.append) if steps else None)

    derained, layer = derain()
    assert derained.shape == rainy.shape and (derained <= rainy).all() and (derained < rainy).any()
    assert layer.shape == rainy.shape[:2] and len(losses) == steps
    assert np.array_equal(derained, derain()[0])
    rainy = np.ascontiguousarray(rainy[:, ::-1])[:, ::-1]  # a view
    assert np.array_equal(derained, derain()[0])
