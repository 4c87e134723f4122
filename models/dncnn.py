"""DnCNN: Beyond a Gaussian Denoiser (Zhang et al., IEEE TIP 2017), 17 layers; it returns the image, not the noise."""
from torch import nn

from .layers import conv, crop_like, pad_to_multiple, zero_

LAYERS = 17
FEATURES = 64


class DnCNN(nn.Module):
    """(N, 3, H, W) in [0, 1] to the same shape, any H and W from 1 up; not clipped. residual: as of `models.build`."""

    def __init__(self, residual=False, inputs=3):
        super().__init__()
        self.residual = residual
        layers = [conv(inputs, FEATURES, 3), nn.ReLU(inplace=True)]
        for _ in range(LAYERS - 2):
            layers += [conv(FEATURES, FEATURES, 3), nn.BatchNorm2d(FEATURES), nn.ReLU(inplace=True)]
        self.dncnn = nn.Sequential(*layers, conv(FEATURES, 3, 3))
        if residual:
            zero_(self.dncnn[-1])

    def forward(self, x):
        # Nothing is halved: only the single pixel of a training step is ever padded.
        y = crop_like(self.dncnn(pad_to_multiple(x, 1, batch_norm=self.training)), x)
        return x[:, :3] + y if self.residual else y
