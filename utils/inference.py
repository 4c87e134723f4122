"""Running a network on a whole photograph, in tiles where it is large."""
import itertools

import torch
from tqdm import tqdm

from utils.image import uint8_to_tensor

TILE_GUARD = 64  # pixels along a tile's cut sides that are not used: beyond the reach of the Unet's convolutions
TILE_FADE = 64  # pixels over which a tile fades into the next


def model_device(model):
    """Return the device of a network's weights."""
    return next(model.parameters()).device


def mixed_precision(device, enabled):
    """Return (a function that makes a context to run the network in, a gradient scaler), which do nothing unless enabled."""
    half = torch.bfloat16 if device.type == "cpu" or torch.cuda.is_bf16_supported() else torch.float16
    scaler = torch.amp.GradScaler(device.type, enabled=enabled and half is torch.float16)
    return lambda: torch.autocast(device.type, dtype=half, enabled=enabled), scaler


@torch.inference_mode()
def infer(model, rainy, tile_size=1024, amp=False):
    """Run a network in evaluation mode on a whole image, in tiles that overlap and fade into each other.

    model: maps (N, 3, H, W) in [0, 1], RGB, to the same shape. rainy: (H, W, 3) uint8 BGR. tile_size: pixels; an image with no
    side above it is one tile. amp: whether to compute in mixed precision.
    Returns (1, 3, H, W) float32, RGB, not clipped, on the model's device or, where there are tiles, on the CPU.
    Raises FloatingPointError where the output is not finite.
    """
    model.eval()
    device = model_device(model)
    autocast, _ = mixed_precision(device, amp)
    height, width = rainy.shape[:2]
    tops, lefts = (_tile_starts(side, tile_size) for side in (height, width))

    def output(window):
        with autocast():
            image = model(uint8_to_tensor(rainy[window], device)).float()
        if not image.isfinite().all():
            raise FloatingPointError(f"the network's output is not finite; {'leave out --amp or ' if amp else ''}"
                                     "train it with a smaller --lr")
        return image

    if len(tops) == len(lefts) == 1:
        return output(...)
    total, weights = torch.zeros(1, 3, height, width), torch.zeros(height, width)
    for top, left in tqdm(list(itertools.product(tops, lefts)), unit="tile", dynamic_ncols=True, leave=False, disable=None):
        window = slice(top, top + tile_size), slice(left, left + tile_size)
        tile = output(window).cpu()
        weight = torch.outer(_fade(top, tile.shape[2], height), _fade(left, tile.shape[3], width))
        total[(..., *window)] += tile * weight
        weights[window] += weight
    return total / weights


def _tile_starts(side, tile_size):
    """Return where tiles begin along a side: at multiples of 32, so that every backbone's grid is the untiled one's."""
    if side <= tile_size:
        return [0]
    last = -(-(side - tile_size) // 32) * 32
    stride = max(32, (tile_size - 2 * TILE_GUARD - TILE_FADE) // 32 * 32)
    return [*range(0, last, stride), last]


def _fade(first, length, side):
    """Return a tile's weights (length,) along a side: 1, but falling to next to nothing towards the guard of a cut side."""
    position = torch.arange(length)
    before = position if first > 0 else torch.full_like(position, side)
    after = position.flip(0) if first + length < side else torch.full_like(position, side)
    return ((torch.minimum(before, after) - TILE_GUARD + 0.5) / TILE_FADE).clamp(1e-6, 1)
