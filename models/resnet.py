"""ResNet: the stages of an untrained ResNet-18 (He et al., CVPR 2016) as encoder, transposed convolutions as decoder."""
from torch import nn
from torchvision.models import resnet18

from .layers import conv, crop_like, named, pad_to_multiple, zero_


def up(inputs, outputs, *activation):
    """Transposed convolution, (N, C, H, W) to (N, D, 2H, 2W), and what follows it."""
    return named(main=nn.Sequential(nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1), *activation))


class ResNet(nn.Module):
    """(N, 3, H, W) in [0, 1] to the same shape, any H and W from 1 up; not clipped. residual: as of `models.build`."""

    def __init__(self, residual=False, inputs=3):
        super().__init__()
        self.residual = residual
        self.resnet18 = resnet18(weights=None)
        if inputs != 3:
            self.resnet18.conv1 = conv(inputs, 64, 7, stride=2)
        del self.resnet18.avgpool, self.resnet18.fc
        self.up1 = up(512, 256, nn.ReLU(inplace=True))
        self.up2 = up(256, 128, nn.ReLU(inplace=True))
        self.up3 = up(128, 64, nn.ReLU(inplace=True))
        self.up4 = up(64, 64, nn.ReLU(inplace=True))
        self.up5 = up(64, 3)
        if residual:
            zero_(self.up5)

    def forward(self, x):
        net = self.resnet18
        x1 = net.relu(net.bn1(net.conv1(pad_to_multiple(x, 32, batch_norm=self.training))))  # (N, 64, H/2, W/2)
        x2 = net.layer1(net.maxpool(x1))  # (N, 64, H/4, W/4)
        x3 = net.layer2(x2)  # (N, 128, H/8, W/8)
        x4 = net.layer3(x3)  # (N, 256, H/16, W/16)
        y = net.layer4(x4)  # (N, 512, H/32, W/32)
        for enlarge, skip in ((self.up1, x4), (self.up2, x3), (self.up3, x2), (self.up4, x1)):
            y = enlarge(y) + skip
        y = crop_like(self.up5(y), x)
        return x[:, :3] + y if self.residual else y
