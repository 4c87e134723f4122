"""The backbones: golden outputs and parameter names, any image size, the start at the identity, slow literal versions of what
layers.py and drsformer.py rearrange; and tiles of whole photographs, which leave no seam."""
import json
import math
import sys
from functools import lru_cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from models import BACKBONES, build
from models.drsformer import Step, TopKAttention
from models.layers import ChannelAttention, LayerNorm
from utils import inference
from utils.image import tensor_to_uint8, uint8_to_tensor

from conftest import photograph

PARAMETERS = {"Unet": 4539988, "ResNet": 13998147, "DnCNN": 558336, "Restormer": 26126644, "DRSFormer": 15609136}
MULTIPLE = {"Unet": 16, "ResNet": 32, "DnCNN": 1, "Restormer": 8, "DRSFormer": 8}
CNNS = ("Unet", "ResNet", "DnCNN")
SHAPES = [(name, shape) for name in BACKBONES for shape in  # (N, H, W)
          ([(1, 1, 1), (1, 1, 7), (1, 5, 3), (1, 16, 16), (1, 17, 33), (1, 32, 32), (2, 16, 16)] if name in CNNS
           else [(1, 1, 1), (1, 5, 3), (1, 9, 16), (1, 8, 16)])]
every_backbone = pytest.mark.parametrize("name", BACKBONES)


def rain(*shape, seed=0, dtype=torch.float32):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def seeded(name, residual=False):
    torch.manual_seed(0)
    return build(name, residual)


@lru_cache(maxsize=None)
def shared(name):
    """One model for the tests that leave it as it was: building one takes longer than running it on a small image."""
    return seeded(name)


def run(model, x, training=False):
    """The model's output, its running statistics left as they were."""
    fresh = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        y = model.train(training)(x)
    model.load_state_dict(fresh)
    return y


def mirrored(x, height, width):
    """NumPy's own reflection, as the oracle of the padding; copied to memory of torch's, whose alignment may decide digits."""
    pad = ((0, 0), (0, 0), (0, height - x.shape[2]), (0, width - x.shape[3]))
    return torch.from_numpy(np.pad(x.numpy(), pad, mode="reflect")).clone()


@every_backbone
def test_golden_parameters_and_outputs(name, reference):
    folder = reference / "golden/backbones"
    golden, model = np.load(folder / f"{name}.npz"), build(name)
    shapes = [[key, list(parameter.shape)] for key, parameter in model.named_parameters()]
    assert shapes == json.loads((folder / f"{name}_parameters.json").read_text())
    x = torch.from_numpy((0.5 + 0.5 * np.sin(0.013 * np.arange(3 * 64 * 96))).astype(np.float32).reshape(1, 3, 64, 96))
    for i, (key, parameter) in enumerate(model.named_parameters()):
        value = np.sin(0.37 * np.arange(parameter.numel()) + i).reshape(parameter.shape)
        if parameter.ndim > 1:
            value /= math.sqrt(parameter[0].numel())
        else:
            value = 0.1 * value + (0 if key.endswith("bias") else 1)
        parameter.data = torch.from_numpy(value.astype(np.float32))
    y = run(model, x)
    assert y.dtype == torch.float32
    assert np.abs(y[0].numpy() - golden["eval"]).max() <= 1e-5 * np.abs(golden["eval"]).max()
    model, x = model.double(), x.double()
    assert np.abs(run(model, x)[0].numpy() - golden["eval_float64"]).max() <= 1e-9
    # Batch norm divides by variances that are next to nothing here: in float32 that makes the rounding of this processor large.
    training = run(model, x, training=True)[0].numpy()
    expected, most = (golden["train_float64"], 1e-6) if name in CNNS else (golden["eval_float64"], 1e-9)
    assert np.abs(training - expected).max() <= most


@every_backbone
def test_parameter_count_and_residual_names(name):
    plain, residual = build(name), build(name, residual=True)
    assert list(BACKBONES) == list(PARAMETERS)
    assert isinstance(plain, BACKBONES[name]) and sum(p.numel() for p in plain.parameters()) == PARAMETERS[name]
    assert [(k, v.shape) for k, v in plain.state_dict().items()] == [(k, v.shape) for k, v in residual.state_dict().items()]
    if name not in CNNS:  # nothing but parameters, or published checkpoints would not load
        assert list(plain.state_dict()) == [key for key, _ in plain.named_parameters()]
    with pytest.raises(ValueError, match=f"^unknown backbone '{name.lower()}'.*Unet, ResNet, DnCNN, Restormer, DRSFormer$"):
        build(name.lower())


@pytest.mark.parametrize("name, shape", SHAPES)
@pytest.mark.parametrize("training", [False, True])
def test_any_size_is_the_crop_of_the_unpadded_network_on_the_reflected_image(name, shape, training, monkeypatch):
    (number, *size), multiple, model = shape, MULTIPLE[name], shared(name)
    height, width = (math.ceil(side / multiple) * multiple for side in size)
    if training and name in CNNS and number == 1 and height == width == multiple:  # batch norm needs a second value
        height, width = 2 * multiple, 2 * multiple
    x = rain(number, 3, *size)
    y = run(model, x, training)
    module = sys.modules[BACKBONES[name].__module__ if name in CNNS else "models.layers"]
    monkeypatch.setattr(module, "pad_to_multiple", lambda x, *args, **kwargs: x)
    assert y.shape == x.shape and y.dtype == x.dtype and torch.isfinite(y).all() and not torch.equal(y, x)
    assert torch.equal(y, run(model, mirrored(x, height, width), training)[..., : size[0], : size[1]])


@every_backbone
def test_gradient_reaches_every_parameter(name):
    model, x = seeded(name).train(), rain(1, 3, 17, 33)
    F.mse_loss(model(x), rain(1, 3, 17, 33, seed=1)).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all() and parameter.grad.abs().max() > 0, key


@every_backbone
def test_residual_starts_at_the_identity_and_leaves_it(name):
    model, x = seeded(name, residual=True), rain(1, 3, 5, 19)
    for one in (x, rain(1, 3, 1, 1)):
        assert torch.equal(run(model, one), one) and torch.equal(run(model, one, training=True), one)
    F.mse_loss(model.train()(x), rain(1, 3, 5, 19, seed=1)).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert not torch.equal(run(model, x), x) and not torch.equal(run(model, x, training=True), x)


@every_backbone
def test_bfloat16_autocast(name):
    x = rain(1, 3, 9, 17)
    y = run(shared(name), x)
    with torch.autocast("cpu", torch.bfloat16):
        low = run(shared(name), x).float()
    assert not torch.equal(low, y)
    assert (low - y).abs().max() < 0.05 * y.abs().max()  # 8 bits of each of many layers: up to 0.016 was seen


def randomised(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.double().parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.5
    return module


def literal_weights(attention, scores):
    """(N, heads, C/heads, C/heads): the softmax of each row, or the sum of four over its largest entries."""
    if not isinstance(attention, TopKAttention):
        return scores.softmax(dim=-1)
    size, total = scores.shape[-1], 0
    kept = (int(size / 2), int(size * 2 / 3), int(size * 3 / 4), int(size * 4 / 5))
    for scale, k in zip((attention.attn1, attention.attn2, attention.attn3, attention.attn4), kept):
        mask = torch.zeros_like(scores).scatter(-1, scores.topk(k, dim=-1)[1], 1)
        total = total + scale * scores.masked_fill(mask == 0, -math.inf).softmax(dim=-1)
    return total


@pytest.mark.parametrize("dim, heads", [(12, 1), (20, 2), (32, 4)])
@pytest.mark.parametrize("kind", [ChannelAttention, TopKAttention])
def test_attention_is_the_literal_one(kind, dim, heads):
    attention, x = randomised(kind(dim, heads)), rain(2, dim, 5, 7, dtype=torch.float64) - 0.5
    q, k, v = (part.reshape(2, heads, -1, 5 * 7) for part in attention.qkv_dwconv(attention.qkv(x)).chunk(3, dim=1))
    scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * attention.temperature
    expected = attention.project_out((literal_weights(attention, scores) @ v).reshape(x.shape))
    torch.testing.assert_close(attention(x), expected, rtol=0, atol=1e-11)


def test_top_k_keeps_exactly_k_of_equal_scores():
    attention = TopKAttention(32, 1)
    q = torch.ones(1, 1, 32, 4)
    weights = attention.weights(q, q)[0, 0]
    shares = [0.2 / k for k in (16, 21, 24, 25)]
    expected = [sum(shares)] * 16 + [sum(shares[1:])] * 5 + [sum(shares[2:])] * 3 + [shares[3]] + [0.0] * 7
    ordered = weights.sort(dim=-1, descending=True)[0]
    torch.testing.assert_close(ordered, torch.tensor(expected).expand(32, 32))
    assert ((weights == 0).sum(dim=-1) == 7).all()


def test_layer_norm_over_channels_and_the_step_of_experts_are_the_literal_ones():
    norm, x = randomised(LayerNorm(6)), rain(2, 6, 3, 4, dtype=torch.float64)
    variance, mean = torch.var_mean(x, dim=1, correction=0, keepdim=True)
    expected = (x - mean) / (variance + 1e-5).sqrt() * norm.body.weight[:, None, None] + norm.body.bias[:, None, None]
    torch.testing.assert_close(norm(x), expected, rtol=0, atol=1e-12)
    step, gates = randomised(Step(6)), rain(2, 8, dtype=torch.float64)
    x = rain(2, 6, 5, 7, seed=1, dtype=torch.float64)  # not negative: a step follows a ReLU
    experts = [op(x) * gates[:, n, None, None, None] for n, op in enumerate(step._ops)]
    torch.testing.assert_close(step(x, gates), F.relu(step._out(torch.cat(experts, dim=1)) + x), rtol=0, atol=1e-11)


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
    model = seeded(backbone, residual=backbone != "Unet")
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
    model = seeded(backbone, residual=True)
    with torch.no_grad():  # a network that does not change its input much, as after some steps
        last = model.up5.main[0].weight if backbone == "ResNet" else model.output.weight
        last.add_(0.003 * torch.randn_like(last))
    whole, tiled = (inference.infer(model, image, tile_size=size)[0].numpy() * 255 for size in (1024, 192))
    assert np.abs(whole - tiled).max() > 0.01  # tiles were used
    for axis in (1, 2):
        assert np.abs(np.diff(tiled - whole, axis=axis)).max() < 2  # grey levels
