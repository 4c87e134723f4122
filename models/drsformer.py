"""DRSFormer: Learning A Sparse Transformer Network for Effective Image Deraining (Chen et al., CVPR 2023), width 32.

Restormer's encoder and decoder with three changes: attention that keeps only the largest entries of each row, a
feed-forward at two scales, and a mixture of experts before the encoder and after the decoder.
"""
import torch
import torch.nn.functional as F
from torch import nn

from .layers import ChannelAttention, FourLevels, conv, depthwise, named, pointwise

EXPANSION = 2.66  # hidden channels of the feed-forward, relative to its input
KEPT = ((1, 2), (2, 3), (3, 4), (4, 5))  # the four masks keep 1/2, 2/3, 3/4, 4/5 of a row's entries, rounded down
STEPS = 4  # of a mixture of experts
EXPERTS = 8  # in each step


class TopKAttention(ChannelAttention):
    """Channel attention as the learned sum of four softmaxes, over ever more of each row's largest scores."""

    def __init__(self, dim, heads):
        super().__init__(dim, heads)
        for name in ("attn1", "attn2", "attn3", "attn4"):
            self.register_parameter(name, nn.Parameter(torch.tensor([0.2])))
        kept = [dim // heads * part // whole for part, whole in KEPT]
        # (4, K), K = kept[-1]: the ranks that each mask drops. Published checkpoints have no such entry.
        self.register_buffer("dropped", torch.arange(kept[-1]) >= torch.tensor(kept)[:, None], persistent=False)

    def weights(self, q, k):
        # Which of two nearly equal scores is kept is a matter of rounding: round where the published network does.
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.temperature
        # The four kept sets are nested: one sorted selection holds them all, and ties are settled once.
        top, index = scores.topk(self.dropped.shape[1], dim=-1)  # (N, heads, C/heads, K)
        rows = top.unsqueeze(-2).masked_fill(self.dropped, float("-inf"))  # (N, heads, C/heads, 4, K)
        scales = torch.cat([self.attn1, self.attn2, self.attn3, self.attn4])
        top = (rows.softmax(dim=-1) * scales[:, None]).sum(dim=-2)  # (N, heads, C/heads, K)
        return top.new_zeros(scores.shape).scatter(-1, index, top)  # (N, heads, C/heads, C/heads)


class FeedForward(nn.Module):
    """Feed-forward at two scales, 3x3 and 5x5, that exchange half of their channels: (N, C, H, W) to the same."""

    def __init__(self, dim):
        super().__init__()
        hidden = int(EXPANSION * dim)
        self.project_in = conv(dim, 2 * hidden, 1)
        self.dwconv3x3 = depthwise(2 * hidden, 3)
        self.dwconv5x5 = depthwise(2 * hidden, 5)
        self.dwconv3x3_1 = conv(2 * hidden, hidden, 3, groups=hidden)
        self.dwconv5x5_1 = conv(2 * hidden, hidden, 5, groups=hidden)
        self.project_out = conv(2 * hidden, dim, 1)

    def forward(self, x):
        x = self.project_in(x)
        halves = zip(self.dwconv3x3(x).chunk(2, dim=1), self.dwconv5x5(x).chunk(2, dim=1))
        # ReLU after joining the scales, in place: training then keeps one copy of the widest tensors, not two.
        y = [mix(F.relu(torch.cat(half, dim=1), inplace=True))  # of (N, 2 hidden, H, W), to (N, hidden, H, W)
             for mix, half in zip((self.dwconv3x3_1, self.dwconv5x5_1), halves)]
        return self.project_out(F.relu(torch.cat(y, dim=1), inplace=True))


def separable(dim, kernel):
    return named(op=nn.Sequential(depthwise(dim, kernel), conv(dim, dim, 1), nn.ReLU(inplace=True),
                                  depthwise(dim, kernel), conv(dim, dim, 1)))


def dilated(dim, kernel):
    return named(op=nn.Sequential(depthwise(dim, kernel, dilation=2), conv(dim, dim, 1)))


class Step(nn.Module):
    """Eight experts side by side, each times its gate, mixed by a 1x1 convolution: (N, C, H, W) to the same."""

    def __init__(self, dim):
        super().__init__()
        self._ops = nn.ModuleList([*(separable(dim, kernel) for kernel in (1, 3, 5, 7)),
                                   *(dilated(dim, kernel) for kernel in (3, 5, 7)),
                                   nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)])
        self._out = nn.Sequential(conv(EXPERTS * dim, dim, 1), nn.ReLU())

    def forward(self, x, gates):
        """gates: (N, 8), one for each expert."""
        mixing, relu = self._out
        # A gate is the same at every pixel, so it scales the small weight instead of the expert's image; and the
        # convolution of the concatenation is a sum over the experts, which spares its eightfold width.
        weights = mixing.weight.flatten(1).unflatten(1, (EXPERTS, -1)).transpose(0, 1)  # (8, C, C)
        weights = gates[:, :, None, None] * weights  # (N, 8, C, C)
        y = sum(pointwise(op(x), weights[:, n]) for n, op in enumerate(self._ops))
        # x comes out of a ReLU: their sum has nothing left for the second ReLU of the paper to cut.
        return relu(y) + x


class MixtureOfExperts(nn.Module):
    """1x1 convolution, then four steps of eight experts, whose gates follow from the image's mean: (N, C, H, W) to the same."""

    def __init__(self, dim):
        super().__init__()
        count = STEPS * EXPERTS
        gates = named(ca_fc=nn.Sequential(nn.Linear(dim, 2 * count), nn.ReLU(), nn.Linear(2 * count, count)))
        first = named(op=nn.Sequential(conv(dim, dim, 1), nn.ReLU(inplace=True)))
        steps = nn.ModuleDict({"preprocess": first, "_ops": nn.ModuleList([Step(dim) for _ in range(STEPS)])})
        self.layers = nn.ModuleList([gates, steps])

    def forward(self, x):
        gates, steps = self.layers
        gates = gates(x.mean(dim=(2, 3))).unflatten(1, (STEPS, EXPERTS)).softmax(dim=-1)  # (N, 4, 8)
        x = steps["preprocess"](x)
        for n, step in enumerate(steps["_ops"]):
            x = step(x, gates[:, n])
        return x


class DRSFormer(FourLevels):
    """(N, 3, H, W) in [0, 1] to the same shape, any H and W from 1 up; not clipped. residual: as of `models.build`."""

    def __init__(self, residual=False, inputs=3):
        dim = 32
        super().__init__(dim, TopKAttention, FeedForward, MixtureOfExperts(dim), MixtureOfExperts(2 * dim), residual, inputs)
