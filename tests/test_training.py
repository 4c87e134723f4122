"""Learning: the paper's recipe against a plain loop, its flags, the mean of weights, and losses that are no numbers."""
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sdrl
from models import build
from sdrl import PAPER
from utils import cli
from utils.fast import mistakes
from utils.fast.mistakes import FAST, FAST_TRANSFORMER
from utils.image import uint8_to_tensor
from utils.metrics import psnr
from utils.training import fit, fresh_model

from conftest import ALL, DATA, ONLINE, SDRL, SHORT, complaint, complaints, files, name_of, photograph, stage, write_png


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


def test_average_of_weights():
    """The trained network is the one of the mean weights, statistics of the batch norms included, weighted by the decay.

    At the second step it is 2/11, lower than the 0.22 that is asked for.
    """
    states, x = [], uint8_to_tensor(photograph(40, 40, 0))
    model = fresh_model("DnCNN", "cpu", FAST)
    optimizer = torch.optim.Adam(model.parameters())
    trained = fit(model, [(x, 0.9 * x)] * 3, optimizer, F.mse_loss, PAPER._replace(average=0.22),
                  lambda _: states.append({name: value.double() for name, value in model.state_dict().items()}))
    for name, value in trained.state_dict().items():
        if value.is_floating_point():
            expected = 0.22 * (2 / 11 * states[0][name] + 9 / 11 * states[1][name]) + 0.78 * states[2][name]
            assert torch.allclose(value.double(), expected, atol=1e-6), name


def losses_that_become(value, patch, after=0, height=None):
    """From the call number `after` on, where outputs have that height, the error of every recipe is `value`."""
    for name in ("mse_loss", "l1_loss"):
        def loss(output, target, honest=getattr(F, name), calls=[]):
            calls.append(output.shape[2] == height or height is None)
            return honest(output, target) * (value if sum(calls) > after and calls[-1] else 1)

        patch.setattr(F, name, loss)


@pytest.mark.parametrize("command", [SDRL, ONLINE], ids=name_of)
def test_a_loss_that_is_no_number_stops_that_image_alone(copy, monkeypatch, command):
    losses_that_become(float("nan"), monkeypatch, after=1, height=40)
    done = stage(command, f"{SHORT[command]} --steps=3 --overwrite", copy, ok=False)
    complaint(done, f"failed: {DATA}/input/rue.png: the loss became NaN or infinite; use a smaller --lr")
    assert "2 images, 1 failed" in done.stdout and set(files(copy / DATA / "result")) == {"lac.png"}


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_every_way_to_learn_looks_at_its_loss(monkeypatch, amp, value):
    rainy, seen = photograph(12, 14, 1), []
    losses_that_become(value, monkeypatch, after=2)
    advice = "the loss became NaN or infinite; use a smaller --lr" + (" or leave out --amp$" if amp else "$")
    for way, reference, options in (
            (sdrl.derain, rainy[None], {}), (sdrl.derain, rainy[None], {"crop_size": 8, "average": 0.9}),
            (mistakes.learn, rainy, {"average": 0.9})):
        with pytest.raises(FloatingPointError, match=advice):
            model = nn.Conv2d(7 if way is mistakes.learn else 3, 3, 3, padding=1)
            way(model, rainy, reference, PAPER._replace(steps=200, amp=amp, **options), seen.append)
    assert len(seen) == 300  # it looks every 100 steps


def test_the_last_good_checkpoint_stays(copy, monkeypatch):
    """Where a loss tells, and where only the weights do, as the last step spoilt them."""
    before, honest = files(copy / "result_all"), torch.optim.Adam.step

    def step(self, *arguments):
        honest(self, *arguments)
        self.param_groups[0]["params"][0].data[0] = float("inf")

    model = "result_all/Rain100L/model.pkl"
    for words in (f"sdrl_all.py: {model}: left as it was, since the loss became NaN or infinite in epoch 4; use a smaller --lr",
                  f"sdrl_all.py: {model}: left as it was, as weights became NaN or infinite"):
        with monkeypatch.context() as patch:
            losses_that_become(float("nan"), patch) if "epoch 4" in words else patch.setattr(torch.optim.Adam, "step", step)
            *_, first, last = complaints(stage(ALL, f"{SHORT[ALL]} --epoch=4", copy, ok=False))
        assert "goes on after epoch 3" in first and last.startswith(words)
        assert {**files(copy / "result_all"), "Rain100L/loss.csv": before["Rain100L/loss.csv"]} == before
    stage(ALL, f"{SHORT[ALL]} --epoch=4", copy)  # it is good indeed


def test_networks_that_are_made_at_once_are_each_their_seeds_and_leave_the_callers_generator_alone():
    def weights(seed):
        return torch.cat([part.flatten() for part in fresh_model("DnCNN", "cpu", PAPER._replace(seed=seed)).parameters()])

    state = torch.get_rng_state()
    with ThreadPoolExecutor(8) as pool:
        assert all(map(torch.equal, pool.map(weights, range(8)), map(weights, range(8))))
    assert torch.equal(torch.get_rng_state(), state)
