"""SDRL: the paper's recipe against a plain loop, flags, and the order of references."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sdrl
from models import build
from sdrl import PAPER
from utils import cli
from utils.fast.own_rain import FAST, FAST_TRANSFORMER
from utils.metrics import psnr
from utils.training import fresh_model

from conftest import photograph, write_png



class InFloat64(nn.Module):
    """A network that calculates in float64: within 10 steps, Adam makes of the rounding of float32 a difference of 45 dB."""

    def __init__(self, network):
        super().__init__()
        self.network = network.double()

    def forward(self, x):
        return self.network(x.double()).float()


def plain_loop(backbone, rainy, references, epochs, seed=3):
    """The paper's protocol, word for word: what `derain` must give."""
    def to_tensor(image):
        return torch.tensor(np.ascontiguousarray(image[:, :, ::-1].transpose(2, 0, 1))[None] / np.float32(255))

    torch.manual_seed(seed)
    model = InFloat64(build(backbone))
    x, optimizer = to_tensor(rainy), torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        for reference in references:
            optimizer.zero_grad()
            F.mse_loss(model(x), to_tensor(reference)).backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        output = model(x).clamp(0, 1)[0].numpy().transpose(1, 2, 0)[:, :, ::-1]
    return np.rint(output * 255).astype(np.uint8)


def test_the_paper_recipe_is_the_plain_loop():
    """40 steps: the outputs agree beyond 60 dB, that is to less than a grey level but for a few roundings."""
    rainy, random = photograph(32, 48, 0), np.random.default_rng(1)
    references, where = np.repeat(rainy[None], 10, 0), random.random((32, 48)) < 0.2  # where they differ, as SDRs do
    references[:, where] = (references[:, where] - random.integers(20, 60, (10, where.sum(), 1))).clip(0, 255)
    expected = plain_loop("Unet", rainy, references, epochs=4)
    result = sdrl.derain(InFloat64(fresh_model("Unet", "cpu", PAPER)), rainy, references, PAPER._replace(epoch=4))
    assert psnr(expected, rainy) < 50  # it learned something that the comparison can see
    assert psnr(result, expected) > 60


@pytest.mark.parametrize("given, expected", [
    ("", PAPER), ("--recipe fast", FAST), ("--recipe fast --steps 0", FAST._replace(steps=0)),
    ("--recipe fast --lr 0.5 --seed 4", FAST._replace(lr=0.5, seed=4)), ("--steps 9", PAPER._replace(steps=9, epoch=0)),
    ("--recipe fast --backbone DRSFormer --steps 7", FAST_TRANSFORMER._replace(steps=7)), ("--backbone Restormer", PAPER)])
def test_a_given_flag_wins_over_the_recipe(given, expected):
    assert sdrl.recipe_of(sdrl.add_flags(cli.Parser("")).parse_args(given.split())) == expected
    assert PAPER[:7] == (100, 0, 1e-3, False, 0, 0, 1) and PAPER.seed == 3


def test_references_are_read_in_string_order(tmp_path):
    for number in range(12):
        write_png(tmp_path / f"{number}.png", np.full((4, 5, 3), number, np.uint8))
    read, scale = sdrl.read_references(tmp_path, np.zeros((4, 5, 3), np.uint8), "x.png", "")
    assert scale == 1 and read[:, 0, 0, 0].tolist() == [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]
