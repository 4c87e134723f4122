"""What backbones share: padding to a multiple, convolutions, the four-level transformer of Restormer and DRSFormer."""
from collections import OrderedDict

import torch
from torch import nn

LEVELS = ((4, 1), (6, 2), (6, 4), (8, 8))  # transformer blocks, and attention heads in each; as published for both networks


def mirror(size, padded, device=None):
    """(padded,) int64 positions into a side of `size` pixels, continued by reflection about its last pixel.

    Reflection repeats where that asks for more than the side holds, as in np.pad(mode="reflect"); a single pixel is repeated.
    """
    period = max(2 * (size - 1), 1)
    position = torch.arange(padded, device=device) % period
    return torch.minimum(position, period - position)


def pad_to_multiple(x, multiple, batch_norm=False):
    """Pad (N, C, H, W) at the bottom and right by reflection until both sides are multiples of `multiple`.

    batch_norm: the network is about to take batch statistics at 1 / multiple of the padded size, which needs more than one
    value per channel. If only one would be left, both sides grow to their second multiple.
    Returns x itself where nothing is to be padded. It looks at sizes alone, so nothing waits for the device.
    """
    height, width = x.shape[-2:]
    rows, columns = -(-height // multiple), -(-width // multiple)
    if batch_norm and x.shape[0] * rows * columns == 1:
        rows, columns = 2, 2
    if rows * multiple != height:
        x = x.index_select(-2, mirror(height, rows * multiple, x.device))
    if columns * multiple != width:
        x = x.index_select(-1, mirror(width, columns * multiple, x.device))
    return x


def crop_like(y, x):
    """The top left of (N, C, H', W') y, as high and wide as x."""
    return y[..., : x.shape[-2], : x.shape[-1]]


def zero_(layer):
    """Set a layer's weight and bias, if it has one, to zero: a residual around it then starts at the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def conv(inputs, outputs, kernel, stride=1, groups=1, dilation=1, bias=False):
    """Convolution that pads with zeros so as to keep the size (stride 1) or to halve an even one (stride 2)."""
    return nn.Conv2d(inputs, outputs, kernel, stride, dilation * (kernel // 2), dilation, groups, bias)


def depthwise(channels, kernel, dilation=1):
    """Convolution of every channel with a kernel of its own."""
    return conv(channels, channels, kernel, groups=channels, dilation=dilation)


def pointwise(x, weight):
    """1x1 convolution with a weight of its own for every image: (N, C, H, W), (N, D, C) -> (N, D, H, W)."""
    return (weight @ x.flatten(2)).unflatten(2, x.shape[2:])  # (N, D, HW), then (N, D, H, W)


def named(**modules):
    """Modules one after the other, under the names that they have in published checkpoints."""
    return nn.Sequential(OrderedDict(modules))


class LayerNorm(nn.Module):
    """Normalise every pixel of (N, C, H, W) over its channels."""

    def __init__(self, dim):
        super().__init__()
        self.body = nn.LayerNorm(dim)

    def forward(self, x):
        y = self.body(x.permute(0, 2, 3, 1))  # (N, H, W, C)
        # Depthwise convolutions want whole channels: copying here is cheaper than copying what the next layer makes.
        return y.permute(0, 3, 1, 2).contiguous()  # (N, C, H, W)


class ChannelAttention(nn.Module):
    """Attention of the channels of (N, C, H, W) to each other: the matrix is C/heads square whatever the image size."""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = conv(dim, 3 * dim, 1)
        self.qkv_dwconv = depthwise(3 * dim, 3)
        self.project_out = conv(dim, dim, 1)

    def weights(self, q, k):
        """Queries and keys, each (N, heads, C/heads, HW) -> weights (N, heads, C/heads, C/heads), keys last."""
        # The norms divide the small product instead of the images q and k: the same scores, two images fewer.
        q_norm = torch.linalg.vector_norm(q, dim=-1).clamp_min(1e-12)[..., :, None]  # (N, heads, C/heads, 1)
        k_norm = torch.linalg.vector_norm(k, dim=-1).clamp_min(1e-12)[..., None, :]  # (N, heads, 1, C/heads)
        return ((q @ k.transpose(-2, -1)) * (self.temperature / q_norm) / k_norm).softmax(dim=-1)

    def forward(self, x):
        q, k, v = self.qkv_dwconv(self.qkv(x)).chunk(3, dim=1)  # each (N, C, H, W)
        q, k = (x.flatten(2).unflatten(1, (self.heads, -1)) for x in (q, k))  # each (N, heads, C/heads, HW)
        weights = self.weights(q, k)
        # The heads' products with v and project_out after them are one matrix for an image: multiply it out first.
        out = self.project_out.weight.flatten(1).unflatten(1, (self.heads, -1)).transpose(0, 1)  # (heads, C, C/heads)
        mixing = (out @ weights).transpose(1, 2).flatten(2)  # (N, C, C)
        return pointwise(v, mixing)


class TransformerBlock(nn.Module):
    """Attention, then feed-forward, each behind a LayerNorm and with a residual: (N, C, H, W) to the same.

    attention, feed_forward: classes of (dim, heads) and of (dim).
    """

    def __init__(self, dim, heads, attention, feed_forward):
        super().__init__()
        self.norm1 = LayerNorm(dim)
        self.attn = attention(dim, heads)
        self.norm2 = LayerNorm(dim)
        self.ffn = feed_forward(dim)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


def downsample(dim):
    """(N, C, H, W) to (N, 2C, H/2, W/2)."""
    return named(body=nn.Sequential(conv(dim, dim // 2, 3), nn.PixelUnshuffle(2)))


def upsample(dim):
    """(N, C, H, W) to (N, C/2, 2H, 2W)."""
    return named(body=nn.Sequential(conv(dim, 2 * dim, 3), nn.PixelShuffle(2)))


class FourLevels(nn.Module):
    """The encoder and decoder that Restormer and DRSFormer share: (N, 3, H, W) to the same, any H and W from 1 up.

    dim: channels at the first level, doubled at every level below. attention, feed_forward: as of `TransformerBlock`.
    stem, refinement: modules at full size, of `dim` channels before the encoder and 2 `dim` after the decoder.
    residual, inputs: as of `models.build`.
    """

    def __init__(self, dim, attention, feed_forward, stem, refinement, residual=False, inputs=3):
        super().__init__()

        def level(n, width):
            blocks, heads = LEVELS[n - 1]
            return nn.Sequential(*[TransformerBlock(width, heads, attention, feed_forward) for _ in range(blocks)])

        self.patch_embed = named(proj=conv(inputs, dim, 3))
        self.encoder_level0 = stem
        self.encoder_level1 = level(1, dim)
        self.down1_2 = downsample(dim)
        self.encoder_level2 = level(2, 2 * dim)
        self.down2_3 = downsample(2 * dim)
        self.encoder_level3 = level(3, 4 * dim)
        self.down3_4 = downsample(4 * dim)
        self.latent = level(4, 8 * dim)
        self.up4_3 = upsample(8 * dim)
        self.reduce_chan_level3 = conv(8 * dim, 4 * dim, 1)
        self.decoder_level3 = level(3, 4 * dim)
        self.up3_2 = upsample(4 * dim)
        self.reduce_chan_level2 = conv(4 * dim, 2 * dim, 1)
        self.decoder_level2 = level(2, 2 * dim)
        self.up2_1 = upsample(2 * dim)
        self.decoder_level1 = level(1, 2 * dim)
        self.refinement = refinement
        self.output = conv(2 * dim, 3, 3)
        if residual:
            zero_(self.output)

    def forward(self, x):
        padded = pad_to_multiple(x, 8)  # three halvings
        level1 = self.encoder_level1(self.encoder_level0(self.patch_embed(padded)))
        level2 = self.encoder_level2(self.down1_2(level1))
        level3 = self.encoder_level3(self.down2_3(level2))
        y = self.latent(self.down3_4(level3))
        y = self.decoder_level3(self.reduce_chan_level3(torch.cat([self.up4_3(y), level3], dim=1)))
        y = self.decoder_level2(self.reduce_chan_level2(torch.cat([self.up3_2(y), level2], dim=1)))
        y = self.decoder_level1(torch.cat([self.up2_1(y), level1], dim=1))  # level 1 keeps both halves: 2 dim channels
        return x[:, :3] + crop_like(self.output(self.refinement(y)), x)
