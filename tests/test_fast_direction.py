"""The direction of the rain: of drawn rain at every slant, and before upright houses."""
import numpy as np
import pytest

from utils.fast.direction import LineStatistics, rain_direction
from utils.rain import add_rain

from conftest import demo



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
