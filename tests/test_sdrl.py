"""The learning: the paper's recipe against a plain loop, the fast one's pieces, tiles, wrong numbers, checkpoints."""
import io
import os
import pickle
import re
import zipfile

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import sdrl
import sdrl_all
import sdrl_online
from models import BACKBONES, build
from sdrl import FAST, FAST_TRANSFORMER, PAPER
from utils import checkpoint, cli, inference
from utils.image import ImageError, read_image, tensor_to_uint8, uint8_to_tensor
from utils.metrics import psnr

from conftest import (ALL, DATA, ONLINE, ROOT, SDRL, SHORT, TEST, complaint, complaints, files, name_of, photograph, stage,
                      write_png)


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
    result = sdrl.derain(InFloat64(sdrl.fresh_model("Unet")), rainy, references, PAPER._replace(epoch=4))
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
    read = sdrl.read_references(tmp_path, np.zeros((4, 5, 3), np.uint8), "x.png", "")
    assert read[:, 0, 0, 0].tolist() == [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]


def test_average_of_weights():
    """The trained network is the one of the mean weights, statistics of the batch norms included, weighted by the decay."""
    states, x = [], uint8_to_tensor(photograph(40, 40, 0))
    model = sdrl.fresh_model("DnCNN", recipe=FAST)
    optimizer = torch.optim.Adam(model.parameters())
    trained = sdrl.fit(model, [(x, 0.9 * x)] * 3, optimizer, F.mse_loss, PAPER._replace(average=0.5),
                       lambda _: states.append({name: value.double() for name, value in model.state_dict().items()}))
    for name, value in trained.state_dict().items():
        if value.is_floating_point():
            expected = 0.25 * states[0][name] + 0.25 * states[1][name] + 0.5 * states[2][name]
            assert torch.allclose(value.double(), expected, atol=1e-6), name


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_learns_to_take_off_its_own_rain(backbone):
    """On odd sides, to take off the same light of each channel, and to put none on."""
    rainy, fused = by_own_rain(21, 33)
    taken = rainy.astype(int) - learn(rainy, fused, backbone=backbone)
    assert taken.shape == rainy.shape and (taken == taken[..., :1]).all() and (taken >= 0).all() and taken.max() > 10


def learn(rainy, fused, backbone="Unet", scale=1, **options):
    recipe = FAST._replace(**{"steps": 2, "batch_size": 1, **options})
    return sdrl.derain_by_own_rain(sdrl.fresh_model(backbone, recipe=recipe), rainy, fused, recipe, scale)


def by_own_rain(height=37, width=53):
    """A photograph of middling levels, and the photograph without what guided samples might take off."""
    rainy = photograph(height, width, 1) // 2 + 80
    fused = rainy - np.where((np.arange(width) + np.arange(height)[:, None]) % 9 < 2, 30, 0).astype(np.float32)[..., None]
    return rainy, fused


def test_a_data_set_is_learnt_at_the_scale_at_which_rain_is_thin(tmp_path):
    scenes = {}
    for scale in (1, 4):
        for part in ("input", "target"):
            image = read_image(ROOT / f"dataset/Demo/{part}/astronaut.png")
            large = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
            write_png(tmp_path / f"{scale}/{part}.png", large)
        pairs = [(tmp_path / f"{scale}/input.png", [tmp_path / f"{scale}/target.png"])]
        scenes[scale], rain = sdrl_all.OwnRain(pairs, 64, 3, 1).known(0)
        assert rain.shape[:2] == scenes[scale].shape[:2] == (240, 320) and rain.mean() > 3
    assert psnr(scenes[1], scenes[4]) > 30


def test_own_rain_is_light_added_to_the_scene():
    """In batches of windows no larger than the scene, the same light in all channels, from elsewhere, up to white."""
    scene, rain = torch.rand(1, 3, 40, 56), torch.zeros(40, 56)
    rain[::3, ::5], rain[1::3, ::5] = 0.4, 2 / 255  # the second is too faint

    def draw(**options):
        return next(sdrl.own_rain(scene, rain, FAST._replace(**options)))

    x, y = draw(crop_size=24, batch_size=3)
    assert y.shape == (3, 3, 24, 24) and draw()[0].shape == (2, 3, 40, 56)  # which is smaller than a square of 64
    assert torch.equal(x, draw(crop_size=24, batch_size=3)[0])
    assert not torch.equal(x, draw(crop_size=24, batch_size=3, seed=4)[0])
    factors = set()
    for x, y in ((x, y), draw(), draw(crop_size=0)):
        assert x.shape == y.shape and (x >= y).all() and x.max() <= 1
        added = (x - y)[x.amax(dim=1, keepdim=True).expand_as(x) < 1]
        factors |= set((added[added > 1e-6] / 0.4).numpy().round(3))
    assert all(0.59 < factor < 3.01 for factor in factors) and len(factors) > 3
    windows = scene.unfold(2, 24, 1).unfold(3, 24, 1)[0].permute(1, 2, 0, 3, 4).flatten(0, 1)
    assert all((windows == square).flatten(1).all(dim=1).any() for square in draw(crop_size=24, batch_size=3)[1])
    for streaks, layers in ((1, 4), (16, 1)):  # sparse rain is laid over itself
        rain = torch.zeros(32, 32)
        rain[:, :streaks] = 0.1  # a mean of 0.8 or 12.75 grey levels
        pairs = sdrl.own_rain(torch.zeros(1, 3, 32, 32), rain, FAST._replace(crop_size=32, batch_size=1))
        batches = torch.cat([next(pairs)[0] for _ in range(50)])
        assert abs(float(batches.mean() / rain.mean()) / layers - 1.05) < 0.1  # 1.05: the mean of the factors
        assert layers > 1 or 10 < (batches[:, 0, 0, 0] > 0).sum() < 40  # half of the rain is turned


def test_learning_is_repeatable_and_left_out_with_no_steps():
    rainy, fused = by_own_rain()
    fused[3, 4] = 100.4, 99.5, 98.6
    assert np.array_equal(learn(rainy, fused, steps=0), np.rint(fused))
    once = learn(rainy, fused, steps=3)
    assert np.array_equal(once, learn(rainy, fused, steps=3)) and not np.array_equal(once, learn(rainy, fused, steps=3, seed=4))
    with pytest.raises(ValueError, match="does not belong"):
        learn(rainy, fused[1:])
    rainy, fused = by_own_rain()  # a network that takes nothing off has learnt nothing, and is not asked
    assert np.array_equal(learn(rainy, fused, lr=0), fused)
    rainy = np.full((40, 40, 3), (255, 200, 180), np.uint8)  # of which one channel was cut off: it keeps its own light
    fused = rainy.astype(np.float32) - (10, 30, 30)
    assert np.array_equal(learn(rainy, fused, lr=0), fused)


def test_a_large_photograph_keeps_its_details():
    """Learnt at half the size, the light is enlarged: what is finer than that stays as it is."""
    rainy, fused = (np.kron(image, np.ones((2, 2, 1), image.dtype)) for image in by_own_rain())
    checks = np.where(np.indices(rainy.shape[:2]).sum(axis=0) % 2, 20, -20)[..., None]  # of no mean in 2x2 pixels
    rainy, fused = (rainy + checks).astype(np.uint8), (fused + checks).astype(np.float32)
    taken = rainy.astype(int) - learn(rainy, fused, scale=2)
    assert (taken == taken[..., :1]).all() and taken.min() >= 0 and taken.max() > 10
    assert abs(np.diff(taken[..., 0])).max() < 20  # without a trace of the checks


@pytest.mark.parametrize("steps", [0, 2])
def test_the_fast_recipe_on_an_array(steps):
    rainy, losses = photograph(48, 64, 1), []
    options = {"learn": steps > 0, "recipe": FAST._replace(steps=steps)}
    derained, layer = sdrl_online.derain_photograph(rainy, **options, report=losses.append)
    assert derained.shape == rainy.shape and (derained <= rainy).all() and (derained < rainy).any()
    assert layer.shape == rainy.shape[:2] and len(losses) == steps
    assert np.array_equal(derained, sdrl_online.derain_photograph(rainy, **options)[0])


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
    for way, known, options in ((sdrl.derain, rainy[None], {}), (sdrl.derain, rainy[None], {"crop_size": 8, "average": 0.9}),
                                (sdrl.derain_by_own_rain, rainy, {"average": 0.9})):
        with pytest.raises(FloatingPointError, match=advice):
            way(nn.Conv2d(3, 3, 3, padding=1), rainy, known, PAPER._replace(steps=150, amp=amp, **options), report=seen.append)
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


class Runs:
    """A pickle of it calls a function when it is opened by pickle.load."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    path, trace = tmp_path / "model.pkl", tmp_path / "executed"
    hidden = pickle.dumps(Runs(os.mkdir, str(trace)))
    attacks = [Runs(os.system, f"touch {trace}"), Runs(exec, f"open({str(trace)!r}, 'w')"), Runs(pickle.loads, hidden)]
    weights = nn.Conv2d(3, 3, 3).state_dict()
    for attack in attacks:
        for content in (attack, {"model": attack}, {"model": weights, "more": [{1: (attack,)}]}, {"model": weights, attack: 1}):
            for how in (torch.save, lambda *what: torch.save(*what, _use_new_zipfile_serialization=False),
                        lambda what, where: where.write_bytes(pickle.dumps(what))):
                how(content, path)
                with pytest.raises(ImageError, match="model.pkl: damaged, or not a checkpoint of tensors and plain values"):
                    checkpoint.load(path)
                assert not trace.exists()
    pickle.loads(pickle.dumps(attacks[2]))
    assert trace.exists()  # they are real


def test_files_that_are_no_checkpoints(tmp_path):
    """Cut anywhere, compressed, of the formats before zip, of other content: one line."""
    path, data, packed = tmp_path / "x.pkl", io.BytesIO(), io.BytesIO()
    model = {"model": {"weight": torch.zeros(1 << 10)}}
    torch.save(model, data)
    with zipfile.ZipFile(data) as whole, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as made:
        for name in whole.namelist():
            made.writestr(name, whole.read(name))
    torch.save(model, path, _use_new_zipfile_serialization=False)
    bad, whole = [path.read_bytes(), packed.getvalue(), b"text", pickle.dumps({"model": 1})], data.getvalue()
    bad += [whole[:length] for length in range(0, len(whole) - 1, 1 + len(whole) // 40)]
    for content in ([1, 2], {"weights": {}}, {"model": None}, {"model": [1]}, {"model": torch.zeros(3)}):
        torch.save(content, path)
        bad.append(path.read_bytes())
    for content in bad:
        path.write_bytes(content)
        with pytest.raises(ImageError, match=r"x\.pkl: damaged, or not a checkpoint") as raised:
            checkpoint.load(path)
        assert len(str(raised.value).splitlines()) == 1
    path.write_bytes(whole)
    assert checkpoint.load(path)["model"]["weight"].shape == (1 << 10,)


def test_weights_that_do_not_fit():
    """NaN, infinite, of other types or sizes, of another network, sparse, without memory, and no weights at all."""
    good = build("DnCNN").state_dict()
    first = next(iter(good))
    spoilt = [good[first] * value for value in (float("nan"), float("inf"))]
    spoilt += [good[first].long(), good[first].bool(), good[first][:1], good[first][None], good[first].to_sparse(),
               good[first].to("meta"), None, "new\nline"]
    bad = [{**good, first: value} for value in spoilt]
    for weights in (*bad, {**good, "new\nline": good[first]}, build("Unet").state_dict(), {}, {1: good[first]}):
        with pytest.raises(ImageError, match=r"x\.pkl: its weights cannot be used in a DnCNN") as raised:
            checkpoint.load_weights(build("DnCNN"), weights, "x.pkl")
        assert len(str(raised.value).splitlines()) == 1
    checkpoint.load_weights(build("DnCNN"), good, "x.pkl")


def test_test_all_on_checkpoints_of_others(copy):
    """Missing, a folder, of an unknown network; and a finite network whose output is not: one line, and no picture of it."""
    path = copy / "result_all/Rain100L/model.pkl"
    before, weights = files(copy / "result_all/Rain100L/image"), torch.load(path, weights_only=True)["model"]

    def refused(*words):
        complaint(stage(TEST, "", copy, ok=False), "test_all.py: ./result_all/Rain100L/model.pkl: ".replace("./", ""), *words)

    path.unlink()
    refused("no such checkpoint; train one first with sdrl_all.py")
    path.mkdir()
    refused("cannot be read")
    path.rmdir()
    for backbone in ("VGG", ["Unet"], None, "new\nline" * 99, [[[["x"]]]]):
        torch.save({"model": weights, "backbone": backbone}, path)
        refused("holds an unknown backbone", "known: Unet, ResNet, DnCNN")
    assert files(copy / "result_all/Rain100L/image") == before
    name = next(name for name in weights if re.search("running_var", name))
    torch.save({"model": {**weights, name: -torch.ones_like(weights[name])}, "backbone": "DnCNN"}, path)
    lines = complaints(stage(TEST, "--overwrite", copy, ok=False))
    assert len(lines) == 2 and all("the network's output is not finite" in line for line in lines)
