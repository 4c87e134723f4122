"""The backbones: golden outputs and parameter names, any image size, the start at the identity, and slow literal
versions of what layers.py and drsformer.py rearrange."""
import json
import math
import sys
from functools import lru_cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models import BACKBONES, build
from models.drsformer import Step, TopKAttention
from models.layers import ChannelAttention, LayerNorm, mirror, pad_to_multiple

PARAMETERS = {"Unet": 4539988, "ResNet": 13998147, "DnCNN": 558336, "Restormer": 26126644, "DRSFormer": 15609136}
MULTIPLE = {"Unet": 16, "ResNet": 32, "DnCNN": 1, "Restormer": 8, "DRSFormer": 8}
CNNS = ("Unet", "ResNet", "DnCNN")
SIZES = [(name, size) for name in BACKBONES for size in
         ([(1, 1), (1, 7), (5, 3), (16, 16), (17, 33), (32, 32)] if name in CNNS else [(1, 1), (5, 3), (9, 16)])]


def rain(*shape, seed=0, dtype=torch.float32):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def seeded(name, residual=False, seed=0):
    torch.manual_seed(seed)
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


def up_to(side, multiple):
    return math.ceil(side / multiple) * multiple


# --- golden --------------------------------------------------------------------------------------------------------

def golden_model(name):
    model = build(name)
    for i, (key, parameter) in enumerate(model.named_parameters()):
        value = np.sin(0.37 * np.arange(parameter.numel()) + i).reshape(parameter.shape)
        if parameter.ndim > 1:
            value /= math.sqrt(parameter[0].numel())
        else:
            value = 0.1 * value + (0 if key.endswith("bias") else 1)
        parameter.data = torch.from_numpy(value.astype(np.float32))
    return model


@pytest.mark.parametrize("name", BACKBONES)
def test_golden_parameters(name, reference):
    expected = json.loads((reference / "golden" / "backbones" / f"{name}_parameters.json").read_text())
    assert [[key, list(p.shape)] for key, p in build(name).named_parameters()] == expected


@pytest.mark.parametrize("name", BACKBONES)
def test_golden_outputs(name, reference):
    golden = np.load(reference / "golden" / "backbones" / f"{name}.npz")
    x = torch.from_numpy((0.5 + 0.5 * np.sin(0.013 * np.arange(3 * 64 * 96))).astype(np.float32).reshape(1, 3, 64, 96))
    model = golden_model(name)
    y = run(model, x)
    assert y.dtype == torch.float32
    assert np.abs(y[0].numpy() - golden["eval"]).max() <= 1e-5 * np.abs(golden["eval"]).max()
    model, x = model.double(), x.double()
    assert np.abs(run(model, x)[0].numpy() - golden["eval_float64"]).max() <= 1e-9
    # Batch norm divides by variances that are next to nothing here: in float32 that makes the rounding of this processor large.
    training = run(model, x, training=True)[0].numpy()
    if name in CNNS:
        assert np.abs(training - golden["train_float64"]).max() <= 1e-6
    else:  # nothing in them depends on the mode
        assert np.abs(training - golden["eval_float64"]).max() <= 1e-9


# --- registry ------------------------------------------------------------------------------------------------------

def test_registry():
    assert list(BACKBONES) == ["Unet", "ResNet", "DnCNN", "Restormer", "DRSFormer"]
    with pytest.raises(ValueError, match="'unet'.*Unet, ResNet, DnCNN, Restormer, DRSFormer") as error:
        build("unet")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", BACKBONES)
def test_parameter_count_and_residual_names(name):
    plain, residual = build(name), build(name, residual=True)
    assert isinstance(plain, BACKBONES[name])
    assert sum(p.numel() for p in plain.parameters()) == PARAMETERS[name]
    assert [(k, v.shape) for k, v in plain.state_dict().items()] == [
        (k, v.shape) for k, v in residual.state_dict().items()]
    if name not in CNNS:  # nothing but parameters, or published checkpoints would not load
        assert list(plain.state_dict()) == [key for key, _ in plain.named_parameters()]


@pytest.mark.parametrize("name", BACKBONES)
def test_state_dict_round_trip(name):
    one, two, x = shared(name), seeded(name, seed=1), rain(1, 3, 9, 10)
    assert not torch.equal(run(one, x), run(two, x))
    two.load_state_dict(one.state_dict())
    assert torch.equal(run(one, x), run(two, x))


# --- sizes ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, size", SIZES)
@pytest.mark.parametrize("training", [False, True])
def test_any_size_is_the_crop_of_the_reflected_image(name, size, training):
    """Against images reflected by NumPy to a size that the network takes as it is."""
    multiple = MULTIPLE[name]
    height, width = (up_to(side, multiple) for side in size)
    if training and name in CNNS and height == width == multiple:  # batch norm needs a second value
        height, width = 2 * multiple, 2 * multiple
    x = rain(1, 3, *size)
    y = run(shared(name), x, training)
    expected = run(shared(name), mirrored(x, height, width), training)[..., : size[0], : size[1]]
    assert y.shape == x.shape and y.dtype == x.dtype
    assert torch.isfinite(y).all()
    assert torch.equal(y, expected)
    assert not torch.equal(y, x)


@pytest.mark.parametrize("name, shape, training", [
    ("Unet", (1, 3, 32, 48), False), ("Unet", (1, 3, 16, 32), True), ("Unet", (2, 3, 16, 16), True),
    ("Unet", (1, 3, 16, 16), False), ("ResNet", (1, 3, 32, 32), False), ("ResNet", (1, 3, 64, 32), True),
    ("DnCNN", (1, 3, 1, 1), False), ("DnCNN", (1, 3, 1, 2), True), ("DnCNN", (1, 3, 5, 7), True),
    ("Restormer", (1, 3, 8, 16), True), ("DRSFormer", (1, 3, 16, 8), True)])
def test_nothing_to_pad_is_the_unpadded_network(name, shape, training, monkeypatch):
    model, x = shared(name), rain(*shape)
    y = run(model, x, training)
    module = sys.modules["models.layers" if name not in CNNS else BACKBONES[name].__module__]
    monkeypatch.setattr(module, "pad_to_multiple", lambda x, *args, **kwargs: x)
    assert torch.equal(y, run(model, x, training))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("padded", [8, 9, 32])
def test_mirror_is_numpys_reflection(size, padded):
    assert np.array_equal(mirror(size, padded).numpy(), np.pad(np.arange(size), (0, padded - size), mode="reflect"))


def test_pad_to_multiple():
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.uint8):
        x = (rain(2, 3, 3, 20) * 255).to(dtype)
        padded = pad_to_multiple(x, 16)
        assert padded.dtype == dtype and padded.shape == (2, 3, 16, 32)
        assert torch.equal(padded.double(), mirrored(x.double(), 16, 32))
    x = rain(1, 3, 16, 16)
    assert pad_to_multiple(x, 16) is x
    assert torch.equal(pad_to_multiple(x, 16, batch_norm=True), mirrored(x, 32, 32))
    x = rain(2, 3, 16, 16)
    assert pad_to_multiple(x, 16, batch_norm=True) is x


@pytest.mark.parametrize("name", BACKBONES)
def test_nothing_looks_at_values(name):
    """Meta tensors have none: what runs on them can be traced, and captured as a CUDA graph."""
    with torch.device("meta"):
        model, x = build(name), torch.empty(1, 3, 17, 33)
    assert model(x).shape == x.shape


# --- learning ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", BACKBONES)
def test_gradient_reaches_every_parameter(name):
    model, x = seeded(name).train(), rain(1, 3, 17, 33)
    F.mse_loss(model(x), rain(1, 3, 17, 33, seed=1)).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all() and parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", BACKBONES)
def test_residual_starts_at_the_identity(name):
    model = seeded(name, residual=True)
    x, y = rain(1, 3, 5, 19), rain(1, 3, 5, 19, seed=1)
    single = rain(1, 3, 1, 1)
    with torch.no_grad():
        assert torch.equal(model.eval()(x), x) and torch.equal(model(single), single)
        assert torch.equal(model.train()(single), single)
    out = model(x)
    assert torch.equal(out, x)
    F.mse_loss(out, y).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    with torch.no_grad():
        assert not torch.equal(model.eval()(x), x)
        assert not torch.equal(model.train()(x), x)


@pytest.mark.parametrize("name", BACKBONES)
def test_bfloat16_autocast(name):
    x = rain(1, 3, 9, 17)
    y = run(shared(name), x)
    with torch.autocast("cpu", torch.bfloat16):
        low = run(shared(name), x).float()
    assert not torch.equal(low, y)
    assert (low - y).abs().max() < 0.05 * y.abs().max()  # 8 bits of each of many layers: up to 0.016 was seen


@pytest.mark.parametrize("name", BACKBONES)
def test_images_of_a_batch_do_not_mix(name):
    model, x = seeded(name).double().eval(), rain(2, 3, 9, 7, dtype=torch.float64)
    with torch.no_grad():
        y, alone = model(x), torch.cat([model(x[:1]), model(x[1:])])
    torch.testing.assert_close(y, alone, rtol=0, atol=1e-9 * float(y.abs().max()))


# --- literal versions ----------------------------------------------------------------------------------------------

def randomised(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.double().parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.5
    return module


def literal_attention(attention, x, weigh):
    n, c, height, width = x.shape
    q, k, v = (part.reshape(n, attention.heads, -1, height * width)
               for part in attention.qkv_dwconv(attention.qkv(x)).chunk(3, dim=1))
    scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * attention.temperature
    return attention.project_out((weigh(scores) @ v).reshape(n, c, height, width))


def literal_top_k(attention):
    def weigh(scores):
        c, total = scores.shape[-1], 0
        kept = (int(c / 2), int(c * 2 / 3), int(c * 3 / 4), int(c * 4 / 5))
        for scale, k in zip((attention.attn1, attention.attn2, attention.attn3, attention.attn4), kept):
            mask = torch.zeros_like(scores).scatter(-1, scores.topk(k, dim=-1)[1], 1)
            total = total + scale * scores.masked_fill(mask == 0, -math.inf).softmax(dim=-1)
        return total
    return weigh


@pytest.mark.parametrize("dim, heads", [(12, 1), (20, 2), (32, 4)])
@pytest.mark.parametrize("kind", [ChannelAttention, TopKAttention])
def test_attention_is_the_literal_one(kind, dim, heads):
    attention, x = randomised(kind(dim, heads)), rain(2, dim, 5, 7, dtype=torch.float64) - 0.5
    weigh = literal_top_k(attention) if kind is TopKAttention else lambda scores: scores.softmax(dim=-1)
    torch.testing.assert_close(attention(x), literal_attention(attention, x, weigh), rtol=0, atol=1e-11)


def test_top_k_keeps_exactly_k_of_equal_scores():
    attention = TopKAttention(32, 1)
    q = torch.ones(1, 1, 32, 4)
    weights = attention.weights(q, q)[0, 0]
    shares = [0.2 / k for k in (16, 21, 24, 25)]
    expected = [sum(shares)] * 16 + [sum(shares[1:])] * 5 + [sum(shares[2:])] * 3 + [shares[3]] + [0.0] * 7
    ordered = weights.sort(dim=-1, descending=True)[0]
    torch.testing.assert_close(ordered, torch.tensor(expected).expand(32, 32))
    assert ((weights == 0).sum(dim=-1) == 7).all()


def test_layer_norm_is_over_channels():
    norm, x = randomised(LayerNorm(6)), rain(2, 6, 3, 4, dtype=torch.float64)
    variance, mean = torch.var_mean(x, dim=1, correction=0, keepdim=True)
    expected = (x - mean) / (variance + 1e-5).sqrt() * norm.body.weight[:, None, None] + norm.body.bias[:, None, None]
    torch.testing.assert_close(norm(x), expected, rtol=0, atol=1e-12)


def test_step_of_experts_is_the_literal_one():
    step, gates = randomised(Step(6)), rain(2, 8, dtype=torch.float64)
    x = rain(2, 6, 5, 7, seed=1, dtype=torch.float64)  # not negative: a step follows a ReLU
    experts = [op(x) * gates[:, n, None, None, None] for n, op in enumerate(step._ops)]
    torch.testing.assert_close(step(x, gates), F.relu(step._out(torch.cat(experts, dim=1)) + x), rtol=0, atol=1e-11)
