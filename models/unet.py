"""Unet: an encoder of four halvings and a decoder with skips.

After U-Net (Ronneberger et al., MICCAI 2015), with the large first kernels, the nearest upsampling and the leaky
decoder of networks for image inpainting (Liu et al., ECCV 2018).
"""
import torch
import torch.nn.functional as F
from torch import nn

from .layers import conv, crop_like, named, pad_to_multiple, zero_


class Unet(nn.Module):
    """(N, 3, H, W) in [0, 1] to the same shape, any H and W from 1 up; not clipped. residual: as of `models.build`."""

    def __init__(self, residual=False, inputs=3):
        super().__init__()
        self.residual = residual

        def encoder(channels, outputs, kernel):
            return named(conv=conv(channels, outputs, kernel, stride=2), bn=nn.BatchNorm2d(outputs), relu=nn.ReLU(inplace=True))

        def decoder(channels, outputs):
            return named(conv=conv(channels, outputs, 3), bn=nn.BatchNorm2d(outputs), relu=nn.LeakyReLU(0.2, inplace=True))

        self.enc_1 = named(conv=conv(inputs, 64, 7, stride=2), relu=nn.ReLU(inplace=True))
        self.enc_2 = encoder(64, 128, 5)
        self.enc_3 = encoder(128, 256, 5)
        self.enc_4 = encoder(256, 512, 3)
        self.dec_4 = decoder(512 + 256, 256)
        self.dec_3 = decoder(256 + 128, 128)
        self.dec_2 = decoder(128 + 64, 64)
        self.dec_1 = named(conv=conv(64 + inputs, 3, 3, bias=True))
        if residual:
            zero_(self.dec_1)

    def forward(self, x):
        padded = pad_to_multiple(x, 16, batch_norm=self.training)
        half = self.enc_1(padded)  # (N, 64, H/2, W/2)
        quarter = self.enc_2(half)  # (N, 128, H/4, W/4)
        eighth = self.enc_3(quarter)  # (N, 256, H/8, W/8)
        y = self.enc_4(eighth)  # (N, 512, H/16, W/16)
        for decoder, skip in ((self.dec_4, eighth), (self.dec_3, quarter), (self.dec_2, half), (self.dec_1, padded)):
            y = decoder(torch.cat([F.interpolate(y, scale_factor=2, mode="nearest"), skip], dim=1))
        y = crop_like(y, x)
        return x[:, :3] + y if self.residual else y


class SmallUnet(nn.Module):
    """A U-Net of two halvings that is 60 times smaller: it learns detail in seconds. Sizes and arguments as of `Unet`."""

    def __init__(self, residual=False, inputs=3):
        super().__init__()
        self.residual = residual

        def block(channels, outputs):
            sides = (conv(channels, outputs, 3), conv(outputs, outputs, 3))
            return nn.Sequential(*[part for side in sides for part in (side, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))])

        self.enc_1, self.enc_2, self.enc_3 = block(inputs, 12), block(12, 24), block(24, 48)
        self.dec_2, self.dec_1, self.out = block(48 + 24, 24), block(24 + 12, 12), conv(12, 3, 3, bias=True)
        if residual:
            zero_(self.out)

    def forward(self, x):
        full = self.enc_1(pad_to_multiple(x, 4, batch_norm=self.training))  # (N, 12, H, W)
        half = self.enc_2(F.max_pool2d(full, 2))  # (N, 24, H/2, W/2)
        y = self.enc_3(F.max_pool2d(half, 2))  # (N, 48, H/4, W/4)
        for decoder, skip in ((self.dec_2, half), (self.dec_1, full)):
            y = decoder(torch.cat([F.interpolate(y, scale_factor=2, mode="nearest"), skip], dim=1))
        y = crop_like(self.out(y), x)
        return x[:, :3] + y if self.residual else y
