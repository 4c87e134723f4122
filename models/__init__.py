"""The backbones: networks from a rainy image (N, 3, H, W) in [0, 1] to a clean one of the same size."""
from .dncnn import DnCNN
from .drsformer import DRSFormer
from .resnet import ResNet
from .restormer import Restormer
from .unet import Unet

BACKBONES = {
    "Unet": Unet,
    "ResNet": ResNet,
    "DnCNN": DnCNN,
    "Restormer": Restormer,
    "DRSFormer": DRSFormer,
}


def build(name, residual=False):
    """A freshly initialised backbone, drawn from torch's global random generator.

    name: a key of BACKBONES; residual: start at the identity (see the classes).
    Raises ValueError for an unknown name.
    """
    if name not in BACKBONES:
        raise ValueError(f"unknown backbone {name!r}: choose from {', '.join(BACKBONES)}")
    return BACKBONES[name](residual=residual)
