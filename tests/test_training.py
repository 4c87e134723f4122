"""The loop of all learning: the mean of weights, and losses that are no numbers."""
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sdrl
from sdrl import PAPER
from utils.fast import own_rain
from utils.fast.own_rain import FAST
from utils.image import uint8_to_tensor
from utils.training import fit, fresh_model

from conftest import ALL, DATA, ONLINE, SDRL, SHORT, complaint, complaints, files, name_of, photograph, stage



def test_average_of_weights():
    """The trained network is the one of the mean weights, statistics of the batch norms included, weighted by the decay."""
    states, x = [], uint8_to_tensor(photograph(40, 40, 0))
    model = fresh_model("DnCNN", "cpu", FAST)
    optimizer = torch.optim.Adam(model.parameters())
    trained = fit(model, [(x, 0.9 * x)] * 3, optimizer, F.mse_loss, PAPER._replace(average=0.5),
                       lambda _: states.append({name: value.double() for name, value in model.state_dict().items()}))
    for name, value in trained.state_dict().items():
        if value.is_floating_point():
            expected = 0.25 * states[0][name] + 0.25 * states[1][name] + 0.5 * states[2][name]
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
            (own_rain.learn, rainy, {"average": 0.9})):
        with pytest.raises(FloatingPointError, match=advice):
            way(nn.Conv2d(3, 3, 3, padding=1), rainy, reference, PAPER._replace(steps=150, amp=amp, **options), seen.append)
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
    recipes = [PAPER._replace(seed=seed) for seed in range(8)]
    alone, state = [fresh_model("DnCNN", "cpu", recipe) for recipe in recipes], torch.get_rng_state()
    with ThreadPoolExecutor(8) as pool:
        at_once = list(pool.map(partial(fresh_model, "DnCNN", "cpu"), recipes))
    for one, other in zip(alone, at_once):
        assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))
    assert torch.equal(torch.get_rng_state(), state)
