"""The demo set comes out as it is committed, and rain is what its seed makes it."""
import numpy as np
import pytest

from utils.image import list_images, read_image
from utils.rain import DEMO, add_rain, draw_streaks

from conftest import ROOT, inside, noise


def test_the_demo_set_made_again_is_the_one_committed(tmp_path):
    inside("utils.rain", "--save_path", tmp_path)
    for folder in ("input", "target"):
        kept, made = list_images(ROOT / "dataset/Demo" / folder), list_images(tmp_path / folder)
        assert list(kept) == list(made) == sorted(DEMO)
        for stem in DEMO:
            assert np.array_equal(read_image(kept[stem]), read_image(made[stem])), f"{folder}/{stem}"


def test_rain_is_added_follows_from_its_seed_and_is_cut_off_at_255():
    image, state = noise(0), np.random.get_state()[1].copy()
    before, rainy, layer = image.copy(), add_rain(image, 5), draw_streaks((48, 64), 5)
    assert rainy.dtype == np.uint8 and np.array_equal(rainy, np.minimum(255, image.astype(int) + layer[..., None]))
    assert np.array_equal(image, before) and (rainy > image).mean() > 0.1
    assert np.array_equal(layer, draw_streaks((48, 64), 5)) and not np.array_equal(layer, draw_streaks((48, 64), 6))
    assert not draw_streaks((48, 64), 5, density=0).any()
    assert np.array_equal(np.random.get_state()[1], state)  # the caller's random numbers are left alone
    for wrong in (image[..., 0], image / 255):
        with pytest.raises(ValueError):
            add_rain(wrong, 1)
