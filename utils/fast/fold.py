"""Very wide and very tall photographs: cut into pieces that are stacked, as the canvas of a whole one that is rotated, nearly
all of it empty, would take many times the memory and time (ours).
"""
import math

import cv2
import numpy as np

LONGEST = 6  # times the shorter side: up to there a photograph is rotated whole, on a canvas of 4 times its size at most
MARGIN = 32  # pixels: what is farther away hardly changes rain


def pieces(height, width):
    """Return where the pieces of a wide photograph begin, and their width: stacked they are about square, and overlap."""
    count = round(math.sqrt(width / (height + 2 * MARGIN)))
    length = math.ceil(width / count) + 2 * MARGIN
    return np.linspace(0, width - length, count).round().astype(int), length


def fold(image, margin=0):
    """Stack the pieces of an image (H, W, ...) whose one side is over LONGEST times the other; return any other as it is.

    margin: pixels by which each piece is reflected beyond the long sides, so that a rotation meets no other piece there.
    """
    height, width = image.shape[:2]
    if max(height, width) <= LONGEST * max(min(height, width), 2 * MARGIN):
        return image
    if height > width:
        return np.ascontiguousarray(fold(image.swapaxes(0, 1), margin).swapaxes(0, 1))
    starts, length = pieces(height, width)
    parts = [np.ascontiguousarray(image[:, start : start + length]) for start in starts]
    return np.vstack([cv2.copyMakeBorder(part, margin, margin, 0, 0, cv2.BORDER_REFLECT_101) for part in parts])


def unfold(stack, height, width, margin=0):
    """Return the plane (height, width) float32 whose pieces `fold` stacked; each fades into the next where they overlap."""
    if height > width:
        return np.ascontiguousarray(unfold(stack.T, width, height, margin).T)
    starts, length = pieces(height, width)
    fade = np.minimum(np.arange(length), np.arange(length)[::-1]).clip(0, 2 * MARGIN - 1) + np.float32(1)
    total, weight = np.zeros((height, width), np.float32), np.zeros(width, np.float32)
    for start, part in zip(starts, np.vsplit(stack, len(starts))):
        total[:, start : start + length] += fade * part[margin : margin + height]
        weight[start : start + length] += fade
    return total / weight
