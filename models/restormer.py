"""Restormer: Efficient Transformer for High-Resolution Image Restoration (Zamir et al., CVPR 2022).

The published network for deraining: a four-level encoder and decoder of transformer blocks whose attention runs over
channels, so that its cost grows with the number of pixels and not with its square.
"""
import torch.nn.functional as F
from torch import nn

from .layers import ChannelAttention, FourLevels, TransformerBlock, conv, depthwise

EXPANSION = 2.66  # hidden channels of the feed-forward, relative to its input


class FeedForward(nn.Module):
    """Gated depthwise feed-forward: (N, C, H, W) to the same; one half of the hidden channels gates the other."""

    def __init__(self, dim):
        super().__init__()
        hidden = int(EXPANSION * dim)
        self.project_in = conv(dim, 2 * hidden, 1)
        self.dwconv = depthwise(2 * hidden, 3)
        self.project_out = conv(hidden, dim, 1)

    def forward(self, x):
        gate, value = self.dwconv(self.project_in(x)).chunk(2, dim=1)  # each (N, hidden, H, W)
        return self.project_out(F.gelu(gate) * value)


class Restormer(FourLevels):
    """(N, 3, H, W) in [0, 1] to the same shape, any H and W from 1 up; not clipped. residual: as of `models.build`."""

    def __init__(self, residual=False, inputs=3):
        dim, blocks = 48, 4  # of the refinement
        refinement = nn.Sequential(*[TransformerBlock(2 * dim, 1, ChannelAttention, FeedForward) for _ in range(blocks)])
        super().__init__(dim, ChannelAttention, FeedForward, nn.Identity(), refinement, residual, inputs)
