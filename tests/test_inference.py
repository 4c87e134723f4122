"""Networks over whole photographs: tiles cover them, change nothing that they need not, and leave no seam."""
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models import build
from utils import inference
from utils.image import tensor_to_uint8, uint8_to_tensor

from conftest import photograph



@given(st.integers(1, 5000), st.sampled_from([256, 320, 1000, 1024]))
def test_tiles_cover_a_side(side, tile):
    starts, weights = inference._tile_starts(side, tile), torch.zeros(side)
    assert starts[0] == 0 and all(start % 32 == 0 for start in starts)
    for start in starts:
        length = min(tile, side - start)
        weights[start : start + length] += inference._fade(start, length, side)
    assert weights.min() > 0.4 if len(starts) > 1 else weights.min() == weights.max() > 0  # one tile has one weight


@pytest.mark.parametrize("backbone", ["Unet", "DnCNN"])
def test_tiles_give_the_untiled_result_where_convolutions_reach_less_far_than_the_guard(backbone):
    image = photograph(290, 350, 0)
    torch.manual_seed(0)
    model = build(backbone, residual=backbone != "Unet")
    with torch.no_grad():  # a network that changes its input, with running statistics of its own
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        model.train()(uint8_to_tensor(image[:64, :64]))
    whole, tiled = (tensor_to_uint8(inference.infer(model, image, tile_size=size)).astype(int) for size in (1024, 256))
    assert np.abs(whole - image).max() > 3 and np.abs(tiled - whole).max() <= 1


@pytest.mark.parametrize("backbone, height, width", [("ResNet", 290, 350), ("Restormer", 40, 230)])
def test_tiles_leave_no_seam(backbone, height, width):
    """Networks that see all of a tile give something else in a tile; between neighbouring pixels that must not show."""
    image = photograph(height, width, 0)
    torch.manual_seed(0)
    model = build(backbone, residual=True)
    with torch.no_grad():  # a network that does not change its input much, as after some steps
        last = model.up5.main[0].weight if backbone == "ResNet" else model.output.weight
        last.add_(0.003 * torch.randn_like(last))
    whole, tiled = (inference.infer(model, image, tile_size=size)[0].numpy() * 255 for size in (1024, 192))
    assert np.abs(whole - tiled).max() > 0.01  # tiles were used
    for axis in (1, 2):
        assert np.abs(np.diff(tiled - whole, axis=axis)).max() < 2  # grey levels
