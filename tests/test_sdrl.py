"""The learning: the paper's protocol against a plain loop, the fast recipe's pieces, crops, tiles, averages."""
import numpy as np
import pytest
import torch

import sdrl
import sdrl_online
from models import BACKBONES, build
from sdr import Sampler
from utils import inference, run
from utils.image import tensor_to_uint8, uint8_to_tensor, write_png


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
    assert not any(paper[name] for name in ("identity", "average", "crop_size", "weigh", "fuse", "white", "one_pass"))
    assert all(recipe.keys() == paper.keys() for recipe in sdrl.RECIPES.values())


@pytest.mark.parametrize("given, steps, lr", [
    ("", 0, 1e-3), ("--recipe fast", 600, 1e-3), ("--recipe fast --steps 7", 7, 1e-3), ("--recipe fast --lr 0.5", 600, 0.5),
    ("--recipe fast --backbone DRSFormer", 150, 3e-4), ("--backbone Restormer", 0, 1e-3),
    ("--recipe fast --backbone Restormer --steps 7 --lr 0.5", 7, 0.5), ("--recipe fast --epoch 2", 0, 1e-3), ("--recipe fast --epoch 2 --steps 9", 9, 1e-3), ("--steps 9", 9, 1e-3)])
def test_a_given_flag_wins_over_the_recipe(given, steps, lr):
    args = sdrl.add_flags(run.Parser("")).parse_args(given.split())
    identity, options = sdrl.recipe_options(args)
    assert identity == ("fast" in given)
    assert (options["steps"], options["lr"]) == (steps, lr)


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


class Tiny(torch.nn.Module):
    """A network that is compiled in seconds."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1, bias=False), torch.nn.BatchNorm2d(4),
                                          torch.nn.ReLU(), torch.nn.Conv2d(4, 3, 3, padding=1))

    def forward(self, x):
        return x + self.layers(x)


def test_a_compiled_network_learns_the_same(capsys, monkeypatch, tmp_path):
    """And the trial that compiles it leaves no trace: neither in the weights nor in the statistics of the batch norms."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # torch takes from it what another kind of processor left
    rainy = smooth(32, 40)
    references = references_of(rainy)
    results = [sdrl.derain(Tiny(), rainy, references, steps=30, crop_size=16, compile=way) for way in (False, True)]
    if "not possible here" in capsys.readouterr().err:
        pytest.skip("torch cannot compile anything on this machine")
    assert psnr(results[0], rainy) < 50
    assert psnr(*results) > 60


def test_what_cannot_be_compiled_goes_on_without(monkeypatch, capsys):
    def refuse(model, **options):
        def call(x):
            model(x)  # after this the statistics of the batch norms have moved
            raise RuntimeError("no compiler\nin sight")
        return call

    monkeypatch.setattr(torch, "compile", refuse)
    rainy = smooth(32, 40)
    references = references_of(rainy)
    plain, fallen = (sdrl.derain(Tiny(), rainy, references, steps=5, compile=way) for way in (False, True))
    assert np.array_equal(plain, fallen)
    assert capsys.readouterr().err == "--compile: not possible here, going on without (RuntimeError: no compiler)\n"


def test_average_of_outputs():
    """The mean is that of the outputs of training, weighted by powers of the decay."""
    rainy = smooth(32, 32)
    references = references_of(rainy)
    outputs = []
    model = sdrl.fresh_model("DnCNN", 3, "cpu", identity=True)
    model.register_forward_hook(lambda module, inputs, output: outputs.append(output.detach().clone()))
    result = sdrl.derain(model, rainy, references, steps=4, average=0.5)
    weights = torch.tensor([0.5**3, 0.5**2, 0.5, 1.0])
    expected = sum(w * o for w, o in zip(weights / weights.sum(), outputs))
    assert len(outputs) == 4
    assert np.abs(result.astype(int) - tensor_to_uint8(expected).astype(int)).max() <= 1


def test_average_of_weights_where_crops_are_seen():
    rainy = smooth(40, 40)
    references = references_of(rainy)
    learn = lambda average: sdrl.derain(sdrl.fresh_model("DnCNN", 3, "cpu", True), rainy, references, steps=6, crop_size=16, average=average)
    assert not np.array_equal(learn(0.9), learn(0.0))


def test_mean_and_variance_of_references():
    references = noise(9, 7, 5, 3)
    mean, variance = sdrl.mean_and_variance(references)
    assert mean == pytest.approx(references.mean(axis=0), abs=1e-4)
    assert variance == pytest.approx(references.astype(float).var(axis=0), rel=1e-3, abs=0.02)


def test_certainties_online_are_those_of_stored_references():
    """The published draws are 50 numbers that vary less than uniform ones do."""
    draws = np.random.RandomState(0).random_sample(50)
    assert abs(draws.var() * 12 - sdrl_online.SHARE) < 0.001


def test_sampler_variance_is_that_of_many_draws():
    image, mask = noise(12, 14, 3), np.where(noise(12, 14, seed=5) < 90, 255, 0).astype(np.uint8)
    sampler = Sampler(image, mask)
    drawn = np.stack(list(sampler.references(4000, independent=True))).astype(float)
    spread = sampler.variance()
    assert (spread[mask == 0] == 0).all() and spread.max() > 1000
    assert drawn.var(axis=0).mean() == pytest.approx(spread.mean(), rel=0.02)


def test_belief():
    rainy, mean, variance = np.full((2, 2, 3), 100, np.uint8), np.full((2, 2, 3), 100.0), np.zeros((2, 2, 3))
    variance[0, 0], variance[1, 1], mean[1, 0] = sdrl.DOUBT**2, 1e9, 90
    belief = sdrl.believe(rainy, mean, variance, "cpu")
    assert belief.certainty[0, 0].numpy() == pytest.approx(np.array([[0.5, 1], [1, 0]]), abs=1e-6)
    assert belief.filled[0, 0].tolist() == [[True, False], [True, True]]
    fused = sdrl.fuse_by_certainty(torch.full((1, 3, 2, 2), 0.2), belief)[0, 0]
    assert fused.numpy() == pytest.approx(np.array([[0.1 + 50 / 255, 0.2], [90 / 255, 0.2]]), abs=1e-6)


def test_white_rain_takes_off_the_same_of_all_channels_and_adds_nothing():
    rainy, derained = torch.rand(1, 3, 20, 30), torch.rand(1, 3, 20, 30)
    change = rainy - sdrl.white_rain(derained, rainy)
    assert (change >= 0).all()
    assert torch.allclose(change.amax(dim=1), change.amin(dim=1), atol=1e-6)
    assert torch.allclose(change[:, 0], (rainy - derained).amin(dim=1).clamp(min=0), atol=1e-6)
    assert change.max() > 0.1


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


def test_online_learns_from_the_expectation_or_from_fresh_references():
    rainy = smooth(40, 40)
    mask = np.zeros((40, 40), np.uint8)
    mask[::3, 5:30] = 255
    learn = lambda **options: sdrl_online.derain_online(sdrl.fresh_model("Unet", 3, "cpu", True), rainy, mask, steps=3, **options)
    sampled, again, mean = learn(), learn(), learn(target="mean", weigh=True, fuse=True, white=True)
    assert np.array_equal(sampled, again) and not np.array_equal(sampled, mean)
    assert (mean <= rainy).all()


@pytest.mark.parametrize("shape", [(0, 8, 8, 3), (2, 8, 9, 3), (8, 8, 3)])
def test_references_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="do not belong"):
        sdrl.derain(build("DnCNN"), np.zeros((8, 8, 3), np.uint8), np.zeros(shape, np.uint8))
