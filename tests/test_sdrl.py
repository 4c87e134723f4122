"""The learning: the paper's protocol against a plain loop, the fast recipe's pieces, crops, tiles, averages."""
import numpy as np
import pytest
import torch

import sdrl
import sdrl_online
from models import BACKBONES, build
from utils import inference, run
from utils.image import ImageError, tensor_to_uint8, uint8_to_tensor, write_png

from test_stages import photograph


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(height, width, seed=0):
    """A picture-like array (H, W, 3) uint8."""
    y, x = np.mgrid[:height, :width]
    waves = [127 + 60 * np.sin(x / (9 + c) + seed) + 50 * np.cos(y / (7 + c)) for c in range(3)]
    return np.clip(np.dstack(waves) + np.random.default_rng(seed).normal(0, 8, (height, width, 3)), 0, 255).astype(np.uint8)


def references_of(rainy, number=6, seed=1):
    """References that differ from their image in some pixels, as SDRs do."""
    random = np.random.default_rng(seed)
    result = np.repeat(rainy[None], number, 0)
    where = random.random(rainy.shape[:2]) < 0.2
    result[:, where] = np.clip(result[:, where].astype(int) - random.integers(20, 60, (number, where.sum(), 1)), 0, 255)
    return result


def psnr(a, b):
    error = np.mean((a.astype(float) - b) ** 2)
    return np.inf if error == 0 else 10 * np.log10(255**2 / error)


class InFloat64(torch.nn.Module):
    """A network that calculates in float64: within 10 steps, Adam makes of the rounding of float32 a difference of 45 dB."""

    def __init__(self, network):
        super().__init__()
        self.network = network.double()

    def forward(self, x):
        return self.network(x.double()).float()


def plain_loop(backbone, rainy, references, epochs, seed=3):
    """The paper's protocol, word for word: what `derain` must give."""
    torch.manual_seed(seed)
    model = InFloat64(build(backbone))
    to_tensor = lambda image: torch.tensor(np.ascontiguousarray(image[:, :, ::-1].transpose(2, 0, 1))[None] / np.float32(255))
    x, optimizer = to_tensor(rainy), torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        for reference in references:
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(model(x), to_tensor(reference)).backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        output = model(x).clamp(0, 1)[0].numpy().transpose(1, 2, 0)[:, :, ::-1]
    return np.rint(output * 255).astype(np.uint8)


def test_the_paper_recipe_is_the_plain_loop():
    """40 steps: the outputs agree beyond 60 dB, that is to less than a grey level but for a few roundings."""
    rainy = smooth(32, 48)
    references = references_of(rainy, 10)
    expected = plain_loop("Unet", rainy, references, epochs=4)
    options = {name: value for name, value in sdrl.RECIPES["paper"].items() if name != "identity"}
    model = InFloat64(sdrl.fresh_model("Unet", 3, "cpu"))
    result = sdrl.derain(model, rainy, references, **{**options, "epoch": 4})
    assert psnr(expected, rainy) < 50  # it learned something that the comparison can see
    assert psnr(result, expected) > 60


def test_the_recipe_of_the_paper_is_the_default():
    paper = sdrl.RECIPES["paper"]
    assert (paper["epoch"], paper["steps"], paper["lr"]) == (100, 0, 1e-3)
    assert not any(paper[name] for name in ("identity", "average", "crop_size"))
    assert all(recipe.keys() == paper.keys() for recipe in sdrl.RECIPES.values())


@pytest.mark.parametrize("given, steps, lr", [
    ("", 0, 1e-3), ("--recipe fast", 750, 1e-3), ("--recipe fast --steps 0", 0, 1e-3), ("--recipe fast --lr 0.5", 750, 0.5),
    ("--recipe fast --backbone DRSFormer", 150, 3e-4), ("--backbone Restormer", 0, 1e-3),
    ("--recipe fast --backbone Restormer --steps 7 --lr 0.5", 7, 0.5), ("--steps 9", 9, 1e-3)])
def test_a_given_flag_wins_over_the_recipe(given, steps, lr):
    args = sdrl.add_flags(run.Parser("")).parse_args(given.split())
    identity, options = sdrl.recipe_options(args)
    assert identity == ("fast" in given)
    assert (options["steps"], options["lr"]) == (steps, lr)


def test_the_fast_recipe_has_no_epochs():
    args = sdrl.add_flags(run.Parser("")).parse_args(["--recipe=fast", "--epoch=2"])
    with pytest.raises(ImageError, match="--epoch is of --recipe=paper"):
        sdrl.recipe_options(args)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_starts_at_the_identity(backbone):
    """Before the first step of the fast recipe the network gives back its input."""
    image = noise(24, 40, 3)
    model = sdrl.fresh_model(backbone, 3, torch.device("cpu"), identity=True)
    x = uint8_to_tensor(image)
    for mode in (True, False):
        with torch.no_grad():
            assert torch.equal(model.train(mode)(x), x)
    assert np.array_equal(tensor_to_uint8(inference.infer(model, image)), image)


def test_same_seed_same_bytes_and_another_seed_others():
    rainy = smooth(32, 32)
    references = references_of(rainy)
    learn = lambda seed: sdrl.derain(sdrl.fresh_model("Unet", seed, "cpu"), rainy, references, steps=3, seed=seed, crop_size=24)
    assert np.array_equal(learn(3), learn(3))
    assert not np.array_equal(learn(3), learn(4))


def test_average_of_weights():
    """The trained network is the one of the mean weights, statistics of the batch norms included, weighted by the decay."""
    rainy, states = smooth(40, 40), []
    model = sdrl.fresh_model("DnCNN", 3, "cpu", identity=True)
    note = lambda loss: states.append({name: value.double() for name, value in model.state_dict().items()})
    x = uint8_to_tensor(rainy)
    trained = sdrl.fit(model, [(x, 0.9 * x)] * 3, torch.optim.Adam, torch.nn.functional.mse_loss, average=0.5, report=note)
    for name, value in trained.state_dict().items():
        if value.is_floating_point():
            expected = 0.25 * states[0][name] + 0.25 * states[1][name] + 0.5 * states[2][name]
            assert torch.allclose(value.double(), expected, atol=1e-6), name


# ---- the fast recipe


def test_own_rain_is_light_added_to_the_scene():
    """In batches of windows no larger than the scene, the same light in all channels, from elsewhere, up to white."""
    scene, rain = torch.rand(1, 3, 40, 56), torch.zeros(40, 56)
    rain[::3, ::5], rain[1::3, ::5] = 0.4, 2 / 255  # the second is too faint
    draw = lambda seed, **options: [next(sdrl.own_rain(scene, rain, seed=seed, **options)) for _ in range(2)]
    first, again = draw(5, crop_size=24, batch_size=3)
    other = draw(6, crop_size=24, batch_size=3)[0]
    assert all(torch.equal(*both) for both in zip(first, again)) and not torch.equal(first[0], other[0])
    factors = set()
    for x, y in (first, next(sdrl.own_rain(scene, rain)), next(sdrl.own_rain(scene, rain, 0))):
        assert x.shape == y.shape and (x >= y).all() and x.max() <= 1
        added = torch.where(x < 1, x - y, torch.nan)
        light = added.nanmean(dim=1, keepdim=True)
        assert torch.allclose(added.nan_to_num(), torch.where(x < 1, light, 0).nan_to_num(), atol=1e-6)
        factors |= {round(value, 3) for value in (light[light > 1e-3] / 0.4).tolist()}
    assert min(factors) >= sdrl.FACTORS[0] - 0.001 and max(factors) <= sdrl.FACTORS[1] + 0.001 and len(factors) > 3
    assert first[1].shape == (3, 3, 24, 24)
    windows = scene.unfold(2, 24, 1).unfold(3, 24, 1)[0].permute(1, 2, 0, 3, 4).flatten(0, 1)
    assert all((windows == y).flatten(1).all(dim=1).any() for y in first[1])  # y is the scene
    assert next(sdrl.own_rain(scene, rain))[0].shape == (2, 3, 40, 56)  # which is smaller than a square of 64


def learn(rainy, fused, steps=2, backbone="Unet", seed=3, scale=1, **options):
    model = sdrl.fresh_model(backbone, seed, "cpu", identity=True)
    return sdrl.derain_by_own_rain(model, rainy, fused, steps, scale, own={"seed": seed, "batch_size": 1}, **options)


def by_own_rain(height=37, width=53):
    """A photograph of middling levels, and the photograph without what guided samples might take off."""
    rainy = photograph(height, width, 1) // 2 + 80
    fused = rainy - np.where((np.arange(width) + np.arange(height)[:, None]) % 9 < 2, 30, 0).astype(np.float32)[..., None]
    return rainy, fused


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_learns_to_take_off_self_made_rain(backbone):
    """On odd sides: the same light off each channel, and none is put on."""
    rainy, fused = by_own_rain()
    result = learn(rainy, fused, backbone=backbone)
    taken = rainy.astype(int) - result
    assert result.shape == rainy.shape and (taken == taken[..., :1]).all() and (taken >= 0).all() and taken.max() > 10


def test_learning_is_repeatable_and_left_out_with_no_steps():
    rainy, fused = by_own_rain()
    fused[3, 4] = 100.4, 99.5, 98.6
    assert np.array_equal(learn(rainy, fused, steps=0), np.rint(fused))
    once = learn(rainy, fused, steps=3, average=0.9)
    assert np.array_equal(once, learn(rainy, fused, steps=3, average=0.9))
    assert not np.array_equal(once, learn(rainy, fused, steps=3, average=0.9, seed=4))
    with pytest.raises(ValueError, match="does not belong"):
        learn(rainy, fused[1:])


def test_a_network_that_has_learnt_nothing_is_not_asked():
    """At a rate of 0 the network takes nothing off, and what the samples took off is left as it is."""
    rainy, fused = by_own_rain()
    assert np.array_equal(learn(rainy, fused, lr=0), fused)


def test_sparse_rain_is_laid_over_itself():
    scene, rain = torch.zeros(1, 3, 32, 32), torch.zeros(32, 32)
    for streaks, layers in ((1, 4), (16, 1)):
        rain[:, :streaks] = 0.1  # a mean of 0.8 or 12.75 grey levels
        pairs = sdrl.own_rain(scene, rain, crop_size=32, batch_size=1)
        added = np.mean([float(next(pairs)[0].mean()) for _ in range(50)]) / float(rain.mean())
        assert abs(added / layers - 1.05) < 0.1  # 1.05: the mean of the factors


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
    derained, layer = sdrl_online.derain_photograph(rainy, steps, report=losses.append)
    assert derained.shape == rainy.shape and (derained <= rainy).all() and (derained < rainy).any()
    assert layer.shape == rainy.shape[:2] and len(losses) == steps
    assert np.array_equal(derained, sdrl_online.derain_photograph(rainy, steps)[0])


# ---- running over a photograph, and files


@pytest.mark.parametrize("side, tile", [(256, 256), (257, 256), (300, 256), (1000, 256), (481, 320), (4000, 1024)])
def test_tiles_cover_a_side(side, tile):
    starts = inference._tile_starts(side, tile)
    assert starts[0] == 0 and all(start % 32 == 0 for start in starts)
    weights = torch.zeros(side)
    for start in starts:
        length = min(tile, side - start)
        assert length <= tile and start + length <= side
        weights[start : start + length] += inference._fade(start, length, side)
    assert weights.min() > 0.4 if len(starts) > 1 else (weights == 1).all()


def changed(backbone, image, residual):
    """A network that changes its input, with running statistics of its own."""
    torch.manual_seed(0)
    model = build(backbone, residual=residual)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        model.train()(uint8_to_tensor(image[:64, :64]))
    return model


@pytest.mark.parametrize("backbone", ["Unet", "DnCNN"])
def test_tiles_give_the_untiled_result_where_convolutions_reach_less_far_than_the_guard(backbone):
    image = smooth(290, 350)
    model = changed(backbone, image, backbone != "Unet")
    whole, tiled = (tensor_to_uint8(inference.infer(model, image, tile_size=size)).astype(int) for size in (1024, 256))
    assert np.abs(whole - image).max() > 3
    assert np.abs(tiled - whole).max() <= 1


@pytest.mark.parametrize("backbone, height, width", [("ResNet", 290, 350), ("Restormer", 100, 230)])
def test_tiles_leave_no_seam(backbone, height, width):
    """Networks that see all of a tile give something else in a tile; between neighbouring pixels that must not show."""
    image = smooth(height, width)
    torch.manual_seed(0)
    model = build(backbone, residual=True)
    with torch.no_grad():  # a network that does not change its input much, as after some steps
        last = model.up5.main[0].weight if backbone == "ResNet" else model.output.weight
        last.add_(0.003 * torch.randn_like(last))
    whole, tiled = (inference.infer(model, image, tile_size=size)[0].numpy() * 255 for size in (1024, 192))
    assert np.abs(whole - tiled).max() > 0.01  # tiles were used
    for axis in (1, 2):
        assert np.abs(np.diff(tiled - whole, axis=axis)).max() < 2  # grey levels


def test_references_are_read_in_string_order(tmp_path):
    for number in range(12):
        write_png(tmp_path / f"{number}.png", np.full((4, 5, 3), number, np.uint8))
    read = sdrl.read_references(tmp_path, np.zeros((4, 5, 3), np.uint8), "x.png", "")
    assert read[:, 0, 0, 0].tolist() == [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]


def test_online_learns_from_fresh_references():
    rainy = smooth(40, 40)
    mask = np.zeros((40, 40), np.uint8)
    mask[::3, 5:30] = 255
    learnt = lambda **options: sdrl_online.derain_online(sdrl.fresh_model("Unet", 3, "cpu"), rainy, mask, steps=3, **options)
    first = learnt()
    assert np.array_equal(first, learnt()) and not np.array_equal(first, learnt(seed=4))


@pytest.mark.parametrize("shape", [(0, 8, 8, 3), (2, 8, 9, 3), (8, 8, 3)])
def test_references_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="do not belong"):
        sdrl.derain(build("DnCNN"), np.zeros((8, 8, 3), np.uint8), np.zeros(shape, np.uint8))
