"""The rain layer R of a rainy photograph I = B + R: how many grey levels the rain adds at every pixel.

Rain adds the same light to red, green and blue, is thin across and long along one direction, and rare. So where the chroma
C = (red - green, green - blue) changes, the background changes, not the rain. `estimate_layer` rotates the photograph so that
rain is upright, and looks for it twice: for rain that falls everywhere, at a sparsity weight chosen from the photograph's line
statistics, and for sparse rain, at a low weight, where each streak counts as far as the photograph's negative has none like it.
"""
import math

import cv2
import numpy as np

from utils.fast.direction import (ALONG, DIRECTIONS, FLOOR, LineStatistics, brightness_and_chroma, rain_direction,
                                  rotate_upright, rotation_matrix)
from utils.fast.fold import MARGIN, fold, unfold
from utils.fast.solver import SURROUNDINGS, solve_layer
from utils.image import shrink

SPARSITY = 0.09  # sparsity weight against the total variation across, of thin rain in a photograph of usual colour
GAIN = 1.15  # the solver, stopped early, makes rain too faint by this factor
SPARSE, SCALES = 0.03, (1, 2)  # sparsity weight of rain that need not fall everywhere, and scales at which it is looked for
CAUTION = 1.25  # what is found in the negative counts so many times
LAGS = range(5, 33)  # pixels across: distances at which lines may repeat
SMOOTHING = 0.4, 2.5  # pixels across and along: sigma of the blur that removes the solver's staircases


def chroma_weight(upright):
    """Return the weight w = exp(-|change of C| / 8) of the background's total variation across, (h, w) float32.

    1 where only brightness changes from a pixel to its right neighbour. Also 1 where rain may have saturated a channel at
    255, which changes C: where it is above 250 in pale surroundings, as sky. Elsewhere, a thin thing that bright may be the
    scene's own (ours). upright: (h, w, 3) float32 BGR, rain upright.
    """
    chroma, largest = brightness_and_chroma(upright)[1], upright.max(axis=2)
    change = np.abs(np.roll(chroma, -1, axis=1) - chroma).sum(axis=2)
    pale = cv2.morphologyEx(largest, cv2.MORPH_OPEN, np.ones((1, 9), np.uint8)) > 225
    saturated = (largest > 250) & pale
    change[saturated | np.roll(saturated, -1, axis=1)] = 0
    return np.exp(change * np.float32(-1 / 8))


def sparsity_weight(image, direction, statistics, mean_weight):
    """Return the sparsity weight of rain in a photograph, for the first round of `solve_layer` (ours).

    Where noise of the chroma makes w small, the data term is small, and so is this weight. In a grey photograph no chroma tells
    rain from the background, and it doubles. Where bright lines are as strong in the image shrunk 4 times, rain is wide and
    soft, and it halves. Where there are fewer of them than of dark ones at both sizes, it may not rain at all, and the weight
    is far higher; as where `evidence_weight` says so.
    image: (H, W, 3) uint8 BGR; direction: degrees; statistics: the image's `LineStatistics`; mean_weight: the mean of w.
    """
    grey = (image.max(axis=2) == image.min(axis=2)).all()
    colour = 2 if grey else (mean_weight / 0.83) ** 2
    white, black = statistics.amounts(direction)
    white_small, black_small = LineStatistics(shrink(image, 4)).amounts(direction)
    softness = np.clip((0.8 * white / white_small) ** 4, 0.5, 1)
    darker = max(1, min(black / white, black_small / white_small)) ** 8
    return SPARSITY * colour * softness * darker * evidence_weight(statistics, direction)


def evidence_weight(statistics, direction):
    """Return the factor on the sparsity weight that follows from the evidence of rain in a direction, a number (ours).

    Rain falls everywhere: its white responses exceed the usual direction's in all but a quarter of the places, and the
    black ones in half of them; or, if rain slants, responses exceed those at the opposite slant in all but a quarter, as a
    scene has about as many at both. Evidence below 1.5 raises the weight, to the third power. Where another direction's
    responses are stronger in the median place, as of a mesh, the weight rises up to three times. But black responses n times
    those at the opposite slant are gaps in dense rain: the weight falls as sqrt(2 / n), from 1 to 0.5.
    statistics: `LineStatistics`; direction: degrees.
    """
    in_direction, opposite = statistics[direction] + FLOOR, statistics[-direction] + FLOOR
    usual = np.mean([statistics[degrees] for degrees in DIRECTIONS], axis=0) + FLOOR
    evidence = np.percentile(in_direction[:, 0] / usual[:, 0], 25) * np.median(in_direction[:, 0] / in_direction[:, 1])
    evidence *= max(np.percentile(in_direction.sum(axis=1) / opposite.sum(axis=1), 25), 1) ** 4
    both_kinds = usual.sum(axis=1)
    others = [degrees for degrees in DIRECTIONS if abs(degrees) < 50 and abs(degrees - direction) > 10]
    rival = max(np.median(statistics[degrees][:, 0] / both_kinds) for degrees in others)
    rival /= np.median(in_direction[:, 0] / both_kinds)
    gaps = np.clip(math.sqrt(in_direction[:, 1].mean() / opposite[:, 1].mean() / 2), 1, 2)
    return float(max(1, 1.5 / evidence) ** 3 * np.clip((1.07 * rival) ** 4, 1, 3) / gaps)


def regularity(brightness):
    """Return how regularly upright lines repeat across, (h, w) float32: 0 if they do not, 1 and more if all do (ours).

    The largest correlation of the surroundings with themselves shifted across by one of LAGS, less the smallest one at a
    shorter lag, if that is positive. brightness: (h, w) float32, grey levels.
    """
    height, width = brightness.shape
    low = cv2.resize(brightness, (width, max(1, height // 8)), interpolation=cv2.INTER_AREA)
    low -= cv2.blur(low, (LAGS.stop, 1))
    around = SURROUNDINGS, SURROUNDINGS // 8
    energy = cv2.blur(low * low, around) + 0.5  # grey levels squared: noise is not regular
    best, lowest = np.zeros_like(low), np.ones_like(low)
    for lag in LAGS:
        correlation = cv2.blur(low * np.roll(low, -lag, axis=1), around)
        correlation /= np.sqrt(energy * np.roll(energy, -lag, axis=1))
        best = np.maximum(best, correlation - np.maximum(lowest, 0))
        lowest = np.minimum(lowest, correlation)
    return cv2.resize(best, (width, height))


def find_rain(upright, valid, sparsity, everywhere):
    """Find the rain of an image in which it is upright, (h, w) float32 in grey levels, less the solver's staircases.

    upright: (h, w, 3) float32 BGR; valid: (h, w) uint8; sparsity, everywhere: as of `solve_layer`.
    """
    height, width = valid.shape
    below, beside = cv2.getOptimalDFTSize(height) - height, cv2.getOptimalDFTSize(width) - width
    weight, brightness = (cv2.copyMakeBorder(plane, 0, below, 0, beside, cv2.BORDER_REPLICATE)
                          for plane in (chroma_weight(upright), np.clip(upright.mean(axis=2) / 255, 0, 1)))
    valid = cv2.copyMakeBorder(valid, 0, below, 0, beside, cv2.BORDER_CONSTANT, value=0)
    rain = GAIN * 255 * solve_layer(brightness, weight, sparsity, valid, everywhere)[:height, :width]
    return cv2.GaussianBlur(rain, (0, 0), SMOOTHING[0], sigmaY=SMOOTHING[1])


def credible_share(found, control):
    """Return what share of a layer is credible as rain, given that of the image's negative, (h, w) float32 in [0, 1] (ours).

    Rain is brighter than its background, and a scene has as many dark lines as bright ones. So what is found in the negative
    tells how much of what is found in the image would be found without rain. The share that the negative lacks of the squared
    layer around a pixel, times the share that it lacks of all lines of this strength or more: a line's strength is the layer's
    mean along it. found, control: (h, w) float32 in grey levels.
    Reference: Elias and Gygi, "Target-decoy search strategy", 2007, count false finds by finds in decoys.
    """
    power, control_power = (cv2.blur(rain * rain, (SURROUNDINGS, SURROUNDINGS)) + 1 for rain in (found, control))
    lines, control_lines = (cv2.blur(rain, (1, ALONG)) for rain in (found, control))
    levels = np.arange(0, 256, 0.5)
    counts, control_counts = (np.histogram(plane, levels)[0][::-1].cumsum()[::-1] for plane in (lines, control_lines))
    lacking = np.maximum.accumulate(1 - CAUTION * (control_counts + ALONG) / np.maximum(counts, 1))
    here = np.clip(1 - CAUTION * control_power / power, 0, 1)
    return np.float32(here * np.interp(lines, levels[:-1], lacking.clip(0)))


def find_sparse_rain(upright, valid, sparsity):
    """Find rain that need not fall everywhere, as far as it is credible. As `find_rain`.

    Dense rain has dark gaps, which the negative takes for rain, and so it does not count here.
    """
    found, control = (find_rain(image, valid, sparsity, everywhere=False) for image in (upright, 255 - upright))
    return found * credible_share(found, control)


def estimate_layer(image, strength=1.0, direction=None, statistics=None):
    """Estimate the rain layer of a photograph whose rain is thin, (H, W) float32 in grey levels, not rounded.

    Rain that falls everywhere, and sparse rain at each scale of SCALES. Lines at a regular distance are left alone.
    image: (H, W, 3) uint8 BGR. strength: the sparsity weight is divided by it: above 1 more is taken for rain, streaks as well
    as texture. direction: degrees, by default those of `rain_direction`. statistics: the image's `LineStatistics`, if there are
    some already. Raises ValueError for a strength of 0 or less.
    """
    if not strength > 0:
        raise ValueError(f"strength must be above 0, not {strength}")
    statistics = LineStatistics(image) if statistics is None else statistics
    direction = rain_direction(image, statistics) if direction is None else direction
    folded = fold(image, MARGIN)
    if folded is not image:
        return unfold(estimate_layer(folded, strength, direction, statistics), *image.shape[:2], MARGIN)
    upright, valid = rotate_upright(image.astype(np.float32), direction)
    sparsity = sparsity_weight(image, direction, statistics, cv2.mean(chroma_weight(upright), valid)[0])
    layer = find_rain(upright, valid, sparsity / strength, everywhere=True)
    for scale in SCALES if np.ptp(image, axis=2).any() else ():  # no chroma of a grey one tells rain from joints of bricks
        sparse = find_sparse_rain(shrink(upright, scale), shrink(valid, scale), SPARSE / strength)
        layer = np.maximum(layer, cv2.resize(sparse, layer.shape[::-1], interpolation=cv2.INTER_LINEAR))
    regular = regularity(upright.mean(axis=2))  # rain falls at random, made lines do not
    regular = np.maximum(regular, 1.5 * np.median(regular[valid > 0]))  # nor are they rain where one is broken
    layer *= np.clip(1.5 - 2 * regular, 0, 1)
    if direction:
        matrix, _ = rotation_matrix(*image.shape[:2], direction)
        layer = cv2.warpAffine(layer, matrix, image.shape[1::-1], flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                               borderMode=cv2.BORDER_REPLICATE)
    return layer
