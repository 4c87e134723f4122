"""The backbones: networks from a rainy image (N, 3, H, W) in [0, 1] to a clean one of the same size."""
from .dncnn import DnCNN
from .drsformer import DRSFormer
from .resnet import ResNet
from .restormer import Restormer
from .unet import SmallUnet, Unet

BACKBONES = {"Unet": Unet, "ResNet": ResNet, "DnCNN": DnCNN, "Restormer": Restormer, "DRSFormer": DRSFormer}
INPUTS = {"paper": 3, "fast": 7}  # channels that a recipe's network sees: the rainy image; `utils.fast.mistakes.what_was_found`


def build(name, residual=False, inputs=3):
    """Build a backbone with fresh weights, drawn from torch's global random generator.

    Parameters
    ----------
    name : a key of `BACKBONES`
    residual : whether it starts at the identity: it returns input + network, whose last convolution starts at zero. Names of
        parameters do not change with it. Transformers add the input in any case.
    inputs : channels that it sees, of which it returns the first three, changed. With more than three, Unet is a `SmallUnet`

    Returns
    -------
    a torch module that maps (N, inputs, H, W) in [0, 1], RGB, to (N, 3, H, W), for H and W from 1 on

    Raises
    ------
    ValueError : for an unknown name
    """
    if name not in BACKBONES:
        raise ValueError(f"unknown backbone {name!r}: choose from {', '.join(BACKBONES)}")
    return (SmallUnet if name == "Unet" and inputs > 3 else BACKBONES[name])(residual, inputs)
