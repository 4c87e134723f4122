"""LDGP: find likely rain in photographs from the locally dominant gradient, one mask per photograph.

    python ldgp.py --dataset="Rain100L" --patch_size=80 --kernel_size=10
"""
import math
from collections import Counter
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from utils import cli
from utils.image import ImageError, check_image, list_images, png_bytes, read_image, shrink
from utils.progress import each_image
from utils.results import Results

CELL = 8  # pixels; the cells, blocks and bins of Dalal and Triggs' descriptor as the paper uses it
BLOCK = 4  # cells a side
BINS = 36  # unsigned, of 5 degrees
SMALLEST = CELL * BLOCK  # pixels: one block


def check_opencv():
    """Raise ImageError on OpenCV 5: it has no HOGDescriptor, and its warpAffine rounds differently."""
    if int(cv2.__version__.split(".")[0]) >= 5:
        raise ImageError(f"OpenCV {cv2.__version__} gives other masks; run: pip install 'opencv-python>=4.8,<5'")


@lru_cache
def _credit(width, height, exchange_cells):
    """Weights (blocks_x * blocks_y * BLOCK * BLOCK,) by which a patch's block histograms add up to its cell histograms.

    Every cell counts once: the histograms of the blocks that hold it are averaged. With `exchange_cells` the two cell axes
    within a block are exchanged, as in the published angles.
    """
    cells_x, cells_y = width // CELL, height // CELL
    blocks_x, blocks_y = cells_x - BLOCK + 1, cells_y - BLOCK + 1
    bx, by, cx, cy = np.ix_(range(blocks_x), range(blocks_y), range(BLOCK), range(BLOCK))
    x, y = (bx + cy, by + cx) if exchange_cells else (bx + cx, by + cy)
    holders_x = np.bincount((np.arange(blocks_x)[:, None] + np.arange(BLOCK)).ravel(), minlength=cells_x)
    holders_y = np.bincount((np.arange(blocks_y)[:, None] + np.arange(BLOCK)).ravel(), minlength=cells_y)
    return (1 / (holders_x[x] * holders_y[y])).ravel()


@lru_cache
def _descriptor(width, height):
    return cv2.HOGDescriptor((width, height), (SMALLEST, SMALLEST), (CELL, CELL), (CELL, CELL), BINS)


def patch_angle(grey, exchange_cells=True):
    """The dominant gradient angle of one patch: 5 times the first bin that attains the histogram's maximum.

    grey: (h, w) uint8, both sides at least 32; whole cells of 8x8 pixels are used. Returns degrees in 0, 5, ..., 175.
    """
    height, width = (side - side % CELL for side in grey.shape)
    histograms = _descriptor(width, height).compute(np.ascontiguousarray(grey[:height, :width]))
    total = _credit(width, height, exchange_cells) @ histograms.reshape(-1, BINS).astype(np.float64)
    return 5 * int(total.argmax())


def dominant_angle(image, patch_size=80, exchange_cells=True):
    """The most frequent patch angle of an image (ties go to the smallest angle), before it is turned into a rotation.

    image: (H, W, 3) uint8 BGR. Returns degrees in 0, 5, ..., 175.
    Raises ImageError for a side below 32 pixels, ValueError for such a patch_size.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    height, width = grey.shape
    if min(height, width) < SMALLEST:
        raise ImageError(f"{width}x{height} pixels is too small: LDGP needs at least {SMALLEST} a side")
    if patch_size < SMALLEST:
        raise ValueError(f"patch_size must be at least {SMALLEST} (one block), not {patch_size}")
    if min(height, width) < patch_size:
        return patch_angle(grey, exchange_cells)
    angles = Counter(
        patch_angle(grey[top : top + patch_size, left : left + patch_size], exchange_cells)
        for left in range(0, width - patch_size + 1, patch_size)
        for top in range(0, height - patch_size + 1, patch_size)
    )
    return min(angles, key=lambda angle: (-angles[angle], angle))


def rotation(angle):
    """The rotation in degrees that turns streaks of this dominant gradient angle upright."""
    if angle in (85, 90):
        return 0
    return angle - 180 if angle > 90 else angle


def rotate(image, degrees):
    """Rotate about the centre onto a canvas that holds the whole image, bilinear, with a white border.

    image: (H, W) or (H, W, 3) uint8. Returns int(H|sin| + W|cos|) by int(H|cos| + W|sin|) pixels.
    """
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1)
    cos, sin = abs(matrix[0, 0]), abs(matrix[0, 1])
    canvas = int(height * sin + width * cos), int(height * cos + width * sin)
    matrix[:, 2] += canvas[0] / 2 - width / 2, canvas[1] / 2 - height / 2
    return cv2.warpAffine(image, matrix, canvas, flags=cv2.INTER_LINEAR, borderValue=(255, 255, 255))


def rain_mask(image, patch_size=80, kernel_size=10, exchange_cells=True):
    """The rain mask of a photograph by the locally dominant gradient prior (paper, section 2.1).

    image: (H, W, 3) uint8 BGR, sides of at least 32 pixels. patch_size: pixels a side of the patches whose gradients vote
    for the rain's direction, at least 32. kernel_size: the shortest vertical run, in pixels, that counts as a streak.
    exchange_cells: as in the published masks; False credits each histogram to the cell that it was measured in.
    Returns (H, W) uint8, high where rain is likely; grey values on the edges come from rotating back.
    Raises ImageError for a side below 32 pixels and for OpenCV 5, ValueError for other arrays and for sizes below these.
    """
    check_opencv()
    check_image(image)
    if kernel_size < 1:  # OpenCV would take an empty kernel as one of 3x3
        raise ValueError(f"kernel_size must be at least 1, not {kernel_size}")
    degrees = rotation(dominant_angle(image, patch_size, exchange_cells))
    upright = cv2.cvtColor(rotate(image, degrees), cv2.COLOR_BGR2GRAY)
    bright = cv2.adaptiveThreshold(upright, 255, cv2.ADAPTIVE_THRESH_MEAN_C, cv2.THRESH_BINARY, 5, 0)
    line = np.ones((kernel_size, 1), np.uint8)
    streaks = cv2.dilate(cv2.erode(bright, line), line)
    height, width = image.shape[:2]
    cos, sin = abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
    top, left = math.floor(width * sin * cos), math.floor(height * cos * sin)
    return np.ascontiguousarray(rotate(streaks, -degrees)[top : top + height, left : left + width])


# ---- the rain layer: how bright the rain is, at every pixel (the fast recipe)
#
# Rain adds the same light to red, green and blue, is brighter than what is behind it, thin across and long along one
# direction. So where the chroma C = (red - green, green - blue) changes, it is the scene that changes, not the rain.
# `rain_layer`, below, finds the scale at which rain is thin (`thin_scale`) and the direction in which it falls
# (`rain_direction`), turns the photograph so that rain is upright, sets what rain costs (`rain_price`), and solves for it
# (`solve_layer`).

DIRECTIONS = range(-56, 57, 8)  # degrees, of the first search
PLACES = 8  # a side, around which lines are counted
ACROSS, ALONG = 7, 9  # pixels: rain is thinner than the one and longer than the other
MARGIN = 8  # pixels: what is farther away has no part in a line
LEAST_DARK = 0.02  # grey levels added to what dark lines there are, as drawings have none
SMALLEST_SCALED, LARGEST_SCALED = 75_000, 3_000_000  # pixels that a photograph may have at a scale that is tried
PRICE = 0.09  # what rain costs against as large a change across it, in a photograph of usual colour, and thin rain
CHANGE = 1.6  # what as large a change along it costs
STEP = 0.05  # of the solver


def turning(height, width, degrees):
    """The matrix (2, 3) that turns an image about its centre, and the (width, height) of a canvas that holds all of it."""
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1)
    cos, sin = abs(matrix[0, 0]), abs(matrix[0, 1])
    canvas = math.ceil(height * sin + width * cos), math.ceil(height * cos + width * sin)
    matrix[:, 2] += (canvas[0] - width) / 2, (canvas[1] - height) / 2
    return matrix, canvas


def shown(height, width, matrix, canvas):
    """Where the canvas shows the image itself that was turned by a matrix, (h, w) uint8 of 0 and 1."""
    corners = np.array([(0, 0, 1), (width - 1, 0, 1), (width - 1, height - 1, 1), (0, height - 1, 1)]) @ matrix.T
    return cv2.fillConvexPoly(np.zeros(canvas[::-1], np.uint8), np.rint(corners).astype(np.int32), 1)


def turn(image, degrees):
    """An image (H, W, ...) turned so that rain of this direction is upright, mirrored where the canvas exceeds it.

    Returns it and where the canvas shows the image itself, (h, w) uint8 of 0 and 1.
    """
    height, width = image.shape[:2]
    if degrees == 0:
        return image.copy(), np.ones((height, width), np.uint8)
    matrix, canvas = turning(height, width, degrees)
    turned = cv2.warpAffine(image, matrix, canvas, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
    return turned, shown(height, width, matrix, canvas)


def brightness_and_chroma(image):
    """The mean of the channels, (H, W), and (red - green, green - blue), (H, W, 2), blurred by a pixel; float32."""
    blue, green, red = cv2.split(image.astype(np.float32))
    chroma = cv2.merge([red - green, green - blue])
    return (blue + green + red) / 3, cv2.GaussianBlur(chroma, (0, 0), 1)


def line_planes(image):
    """Brightness and both parts of the chroma in 1/32 grey level, (H, W, 3) int16, in which `Lines` are counted."""
    return np.rint(32 * np.dstack(brightness_and_chroma(image))).astype(np.int16)


def hats(planes):
    """Of an image with upright rain, how bright the upright bright lines are, then how dark the dark ones: (h, w) int16 each.

    The one is what is brighter than its surroundings across (the white top-hat), counted less where the chroma changes there,
    and eroded along; the other is the same of what is darker. planes: as from `line_planes`; so are the results.
    """
    light, *chroma = cv2.split(planes)
    across, along = np.ones((1, ACROSS), np.uint8), np.ones((ALONG, 1), np.uint8)
    ranges = cv2.add(*(cv2.morphologyEx(plane, cv2.MORPH_GRADIENT, across) for plane in chroma))
    weight = cv2.exp(ranges * np.float32(-1 / (12 * 32)))  # 1/e where the chroma's range is 12 grey levels
    for kind in (cv2.MORPH_TOPHAT, cv2.MORPH_BLACKHAT):
        hat = cv2.multiply(cv2.morphologyEx(light, kind, across), weight, dtype=cv2.CV_16S)
        yield cv2.erode(hat, along)


class Lines(dict):
    """How much there is of lines in each direction around PLACES x PLACES places of an image, counted when first asked for:

    {degrees: (PLACES^2, 2) float32}, bright lines and dark ones, mean grey levels. image: (H, W, 3) uint8 BGR.
    """

    def __init__(self, image):
        self.size = image.shape[:2]  # mirrored no farther than hats reach, as mirroring while turning takes twice as long
        self.planes = cv2.copyMakeBorder(line_planes(image), *[MARGIN] * 4, cv2.BORDER_REFLECT_101)

    def __missing__(self, degrees):
        height, width = self.size
        matrix, canvas = turning(height, width, degrees)
        inside = shown(height, width, matrix, canvas)
        turned = cv2.warpAffine(self.planes, matrix @ [(1, 0, -MARGIN), (0, 1, -MARGIN), (0, 0, 1)], canvas)
        rows, columns = (np.indices((PLACES, PLACES)).reshape(2, -1) + 0.5) / PLACES * [[height], [width]] - 0.5
        x, y = np.rint(matrix @ [columns, rows, np.ones_like(rows)]).astype(int)
        side = max(round(math.sqrt(height * width) / PLACES), 12)  # in a small image the places overlap

        def around(plane):
            return cv2.boxFilter(plane, cv2.CV_32F, (side, side), borderType=cv2.BORDER_CONSTANT)[y, x]

        area = 32 * np.maximum(around(inside), 0.01)
        self[degrees] = np.transpose([around(cv2.copyTo(hat, inside)) / area for hat in hats(turned)])
        return self[degrees]

    def amounts(self, degrees):
        """How much there is of bright lines and of dark ones in all of the image: (W, B)."""
        return self[degrees].mean(axis=0) + LEAST_DARK


def direction_scores(lines, scene):
    """How likely rain is in each direction that is counted: {degrees: score}. lines: `Lines`, with all DIRECTIONS.

    It is W^1.75 / B: with W^2 upright houses win over fine rain, with W the few dark lines decide. Rain falls everywhere, so
    that lines count against how many a place has in all directions. scene: whether to use what is known of a scene's own
    lines, which tells rain from them, but moves the best direction by some degrees: at one slant there are about as many as at
    the opposite one, so 0.4 of the smaller number is taken off; and most are upright or level, so directions in between count
    up to 0.3 more (all ours).
    """
    known = np.array(sorted(lines))
    usual = np.mean([lines[degrees].sum(axis=1) for degrees in DIRECTIONS], axis=0)[:, None] + 0.05
    even = np.array([(lines[degrees] / usual).mean(axis=0) for degrees in known]) * usual.mean()
    opposite = np.transpose([np.interp(-known, known, line) for line in even.T])
    bright, dark = (even - 0.4 * scene * np.minimum(even, opposite)).T
    slanted = 1 + 0.3 * scene * np.sin(np.radians(2 * known)) ** 2
    return dict(zip(known.tolist(), slanted * bright**1.75 / (dark + LEAST_DARK)))


def rain_direction(image, lines=None):
    """The degrees, from -59 to 59, by which `turn` makes a photograph's rain upright; 0 for a picture without lines.

    Of all directions, the one with the largest of `direction_scores`. image: (H, W, 3) uint8 BGR. Rain that falls to the lower
    left has a positive direction. lines: the image's `Lines`, if there are some already.
    """
    lines = Lines(image) if lines is None else lines

    def best(directions, number, scene):
        for degrees in directions:
            lines[degrees]  # counts them, if they are not counted yet
        scores = direction_scores(lines, scene)
        return sorted(directions, key=lambda degrees: (-scores[degrees], abs(degrees), degrees))[:number]

    tried = set(DIRECTIONS)
    for step, number in (4, 3), (2, 2):
        beside = (degrees + side for degrees in best(tried, number, scene=True) for side in (-step, step))
        tried.update(degrees for degrees in beside if abs(degrees) <= max(DIRECTIONS))
    [found] = best(tried, 1, scene=True)
    for step in (2, 1):
        [found] = best((found - step, found, found + step), 1, scene=False)
    return found


def thin_scale(image):
    """The factor, 1, 2, 4, ..., by which a photograph is to be shrunk so that its rain is a few pixels thin.

    Of those that leave 0.075 to 3 megapixels, it is the largest that leaves half as much rain as the best one, by W^2 / B
    of `Lines`. image: (H, W, 3) uint8 BGR.
    """
    pixels = image.shape[0] * image.shape[1]
    scales = [2**n for n in range(16) if SMALLEST_SCALED <= pixels / 4**n <= LARGEST_SCALED] or [1]
    if len(scales) == 1:
        return scales[0]
    amounts = {}
    for scale in scales:
        small = shrink(image, scale)
        lines = Lines(small)
        bright, dark = lines.amounts(rain_direction(small, lines))
        amounts[scale] = bright**2 / dark
    return max(scale for scale in scales if amounts[scale] >= max(amounts.values()) / 2)


def chroma_weight(turned):
    """How freely the scene's brightness may change from a pixel to its right neighbour: w = exp(-|change of C| / 8).

    1 where only brightness changes. Also 1 where a channel may have been cut off at 255 by rain, which changes C: where it is
    above 250 in pale surroundings, as sky. Elsewhere, a thin thing that bright may be the scene's own (ours).
    turned: (h, w, 3) float32 BGR, rain upright. Returns (h, w) float32.
    """
    chroma, largest = brightness_and_chroma(turned)[1], turned.max(axis=2)
    change = np.abs(np.roll(chroma, -1, axis=1) - chroma).sum(axis=2)
    pale = cv2.morphologyEx(largest, cv2.MORPH_OPEN, np.ones((1, 9), np.uint8)) > 225
    unknown = (largest > 250) & pale
    change[unknown | np.roll(unknown, -1, axis=1)] = 0
    return np.exp(change * np.float32(-1 / 8))


def rain_price(image, direction, lines, weight):
    """The price b of rain in a photograph, in the first round of `solve_layer`: a number (ours).

    Where noise of the chroma makes w small, what rain saves is small, and so is its price. A grey photograph has no chroma
    that would tell rain from the scene, and rain costs twice as much. Where bright lines are as strong in an image shrunk 4
    times, rain is wide and soft, and costs half as much. Where there are fewer of them than of dark ones at both sizes, it may
    not rain at all, and rain costs far more; as where lines in its direction do not prevail: `doubt`.
    image: (H, W, 3) uint8 BGR; direction: degrees; lines: the image's `Lines`; weight: the mean of w in the image.
    """
    grey = (image.max(axis=2) == image.min(axis=2)).all()
    colour = 2 if grey else (weight / 0.83) ** 2
    bright, dark = lines.amounts(direction)
    bright_small, dark_small = Lines(shrink(image, 4)).amounts(direction)
    softness = np.clip((0.8 * bright / bright_small) ** 4, 0.5, 1)
    darker = max(1, min(dark / bright, dark_small / bright_small)) ** 8
    return PRICE * colour * softness * darker * doubt(lines, direction)


def doubt(lines, direction):
    """What rain costs for the lines around `PLACES` that a photograph has in its direction and in others (ours).

    Rain falls everywhere: its bright lines are more than the usual direction's in all but a quarter of the places, and more
    than its dark lines in half of them; or, if it slants, lines are more than at the opposite slant in all but a quarter, as a
    scene has about as many at both. What prevails less than 1.5 times may not be rain, and costs more, to the third power. So
    does, up to three times, what is outnumbered in the median place by lines of another direction, such as a mesh's.
    But dark lines that are n times those at the opposite slant are gaps in dense rain, which costs as sqrt(2 / n), from 1 to
    0.5. lines: `Lines`; direction: degrees. Returns a number.
    """
    here, opposite = lines[direction] + LEAST_DARK, lines[-direction] + LEAST_DARK
    usual = np.mean([lines[degrees] for degrees in DIRECTIONS], axis=0) + LEAST_DARK
    prevails = np.percentile(here[:, 0] / usual[:, 0], 25) * np.median(here[:, 0] / here[:, 1])
    prevails *= max(np.percentile(here.sum(axis=1) / opposite.sum(axis=1), 25), 1) ** 4
    ordinary = usual.sum(axis=1)
    others = [degrees for degrees in DIRECTIONS if abs(degrees) < 50 and abs(degrees - direction) > 10]
    rival = max(np.median(lines[degrees][:, 0] / ordinary) for degrees in others) / np.median(here[:, 0] / ordinary)
    gaps = np.clip(math.sqrt(here[:, 1].mean() / opposite[:, 1].mean() / 2), 1, 2)
    return float(max(1, 1.5 / prevails) ** 3 * np.clip((1.07 * rival) ** 4, 1, 3) / gaps)


def later_price(rain, inside):
    """What the price of rain is multiplied with after the first round of `solve_layer`, (h, w) float32.

    It doubles where there is no rain and falls to a fifth where there is, R' near the pixel: max(2 d / (d + R'), 0.2) with
    d = 1e-5 / (mean of R)^2 within [0.004, 0.1], so that an image with little rain pays more (reweighting in the manner of
    Candes, Wakin and Boyd 2008).
    And rain falls everywhere: where R is larger in the 91x91 pixels around a pixel than around the median one, it costs as
    much more, from half to four times (ours). rain: R, (h, w) float32 in [0, 1]; inside: (h, w) uint8, where it counts.
    """

    def around(plane):
        return cv2.blur(plane, (91, 91), borderType=cv2.BORDER_CONSTANT)

    level = np.clip(1e-5 / max(cv2.mean(rain, inside)[0], 1e-6) ** 2, 0.004, 0.1)
    reweighted = np.maximum(2 * level / (level + cv2.blur(rain, (3, 21))), 0.2)
    weight = inside.astype(np.float32)
    density = around(rain * weight) / np.maximum(around(weight), 1e-3) + 1e-4
    return np.float32(reweighted * np.clip(density / np.median(density[inside > 0]), 0.5, 4))


def inverse_spectrum(height, width):
    """1 / (1 + the spectra of both second differences), as a factor for the packed spectra of cv2.dft: (h, w) float32."""

    def spectrum(frequency, size):
        return 2 - 2 * np.cos(2 * np.pi * frequency / size)

    row, column = np.arange(height), np.arange(width)
    packed_row = (row + 1) // 2  # a frequency's real and imaginary part are neighbours: across, and down at both ends
    across = spectrum((column + 1) // 2, width)
    inverse = 1 / (1 + spectrum(row, height)[:, None] + across)
    for end in (0, -1) if width % 2 == 0 else (0,):
        inverse[:, end] = 1 / (1 + spectrum(packed_row, height) + across[end])
    return inverse.astype(np.float32)


def differences(plane, axis):
    """Of each pixel from its next one along an axis, the first being next to the last."""
    result, step = np.empty_like(plane), plane.shape[1] if axis == 0 else 1
    flat = plane.ravel()
    np.subtract(flat[step:], flat[:-step], out=result.ravel()[:-step])
    lines, ends = (plane, result) if axis == 0 else (plane.T, result.T)
    np.subtract(lines[0], lines[-1], out=ends[-1])
    return result


def differences_transposed(plane, axis):
    result, step = np.empty_like(plane), plane.shape[1] if axis == 0 else 1
    flat = plane.ravel()
    np.subtract(flat[:-step], flat[step:], out=result.ravel()[step:])
    lines, ends = (plane, result) if axis == 0 else (plane.T, result.T)
    np.subtract(lines[-1], lines[0], out=ends[0])
    return result


def solve_layer(bright, weight, price, inside, rounds=4, steps=12):
    """The rain R, 0 <= R <= Y, of an image in which it is upright: a low point of

        sum c |D_along R|  +  sum b R  +  sum w |D_across (R - Y)|.

    Rain changes little along itself and is rare (UGSM, Deng et al. 2018; FastDeRain, Jiang et al. 2019), and what it leaves
    behind changes little across it (both), except where the chroma does: w; rain that is there gets cheaper: b (ours); c is
    CHANGE. ADMM, each step's R clipped to [0, Y] before the next one, which makes it other than the minimum, and better by
    3 dB, and stopped early, which leaves wide things alone.
    Differences are forward and periodic. bright: Y, (h, w) float32 in [0, 1], of a size that suits cv2.dft; weight: w,
    (h, w) float32; price: b in the first round, later times `later_price`; inside: (h, w) uint8. Returns (h, w) float32.
    """
    rain = along_dual = price_dual = across_dual = np.zeros_like(bright)
    change, inverse = differences(bright, 1), inverse_spectrum(*bright.shape)
    most, least = STEP * weight, -STEP * weight
    for number in range(rounds):
        cost = np.float32(STEP * price) * (later_price(rain, inside) if number else np.ones_like(rain))
        for _ in range(steps):
            along = differences(rain, 0)
            along += along_dual
            along_dual = np.clip(along, -CHANGE * STEP, CHANGE * STEP)  # for numbers it is faster than cv2.min, not for arrays
            here = rain + price_dual
            price_dual = cv2.min(here, cost)
            across = differences(rain, 1)
            across -= change
            across += across_dual
            across_dual = cv2.min(cv2.max(across, least), most)
            right = cv2.scaleAdd(price_dual, -2, here)
            right += differences_transposed(cv2.scaleAdd(along_dual, -2, along), 0)
            across += change
            right += differences_transposed(cv2.scaleAdd(across_dual, -2, across), 1)
            spectrum = cv2.dft(right)
            spectrum *= inverse
            rain = cv2.dft(spectrum, flags=cv2.DFT_INVERSE | cv2.DFT_SCALE)
            rain = cv2.min(np.clip(rain, 0, 1), bright)
    return rain


def rain_layer(image, direction=None, scale=None, strength=1.0):
    """The rain of a photograph: the grey levels that it adds to every pixel, (H, W) uint8, at most the channels' mean.

    image: (H, W, 3) uint8 BGR. direction: degrees, at the scale, as from `rain_direction`; scale: as from `thin_scale`, how
    much smaller the photograph is made for it. What is not given is found. strength: above 1 more is taken for rain, streaks as
    well as texture; its price is divided by it. Raises ValueError for another array and for a strength of 0 or less.
    """
    check_image(image)
    if not strength > 0:
        raise ValueError(f"strength must be above 0, not {strength}")
    small = shrink(image, thin_scale(image) if scale is None else scale)
    lines = Lines(small)
    direction = rain_direction(small, lines) if direction is None else direction
    turned, inside = turn(small.astype(np.float32), direction)
    height, width = turned.shape[:2]
    below, beside = cv2.getOptimalDFTSize(height) - height, cv2.getOptimalDFTSize(width) - width
    weight, turned = (cv2.copyMakeBorder(plane, 0, below, 0, beside, cv2.BORDER_REPLICATE)
                      for plane in (chroma_weight(turned), turned))
    inside = cv2.copyMakeBorder(inside, 0, below, 0, beside, cv2.BORDER_CONSTANT, value=0)
    bright = np.clip(turned.mean(axis=2) / 255, 0, 1)
    price = rain_price(small, direction, lines, cv2.mean(weight, inside)[0]) / strength
    # The solver, stopped early, makes rain too faint; and rain has none of its steps.
    layer = 1.15 * 255 * solve_layer(bright, weight, price, inside)[:height, :width]
    layer = cv2.GaussianBlur(layer, (0, 0), 0.4, sigmaY=2.5)
    if direction:
        matrix, _ = turning(*small.shape[:2], direction)
        layer = cv2.warpAffine(layer, matrix, small.shape[1::-1], flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                               borderMode=cv2.BORDER_REPLICATE)
    if layer.shape != image.shape[:2]:
        layer = cv2.resize(layer, image.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    most = image.sum(axis=2, dtype=np.uint16) // 3
    return np.minimum(np.rint(layer).clip(0, 255).astype(np.uint8), most.astype(np.uint8))


def find_rain(image, recipe="paper", strength=1.0, patch_size=80, kernel_size=10, true_cells=False):
    """The mask of the paper's recipe, or the layer of the fast one: see `rain_mask` and `rain_layer`."""
    if recipe == "fast":
        return rain_layer(image, strength=strength)
    return rain_mask(image, patch_size, kernel_size, not true_cells)


def notice(rain):
    """What is to be said of a mask or layer in which next to nothing is rain, or next to everything; else None."""
    none, everywhere = np.mean(rain > 0) < 0.01, np.mean(rain > 1) > 0.9
    return "no rain found" if none else "rain found nearly everywhere" if everywhere else None


def add_strength_flag(parser):
    parser.add_argument("--strength", type=cli.number(float, 0.1, 100), default=1.0,
                        help="fast: above 1, say 1.5, more is taken for rain: fewer streaks stay, and more texture goes")


def main(args):
    source = Path(args.input_path or f"./dataset/{args.dataset}/input")
    target = Path(args.save_path or source.parent / "ldgp")
    names = ["strength"] if args.recipe == "fast" else ["patch_size", "kernel_size", "true_cells"]
    settings = {"recipe": args.recipe, **{name: getattr(args, name) for name in names}}
    results = Results("ldgp.py", target, settings, {"input": source}, overwrite=args.overwrite, flag="--save_path")

    def work(path, progress):
        image = read_image(path)
        try:
            rain = find_rain(image, **settings)
        except ImageError as error:
            raise ImageError(f"{path}: {error}") from None
        results.write(path, png_bytes(rain))
        return notice(rain)

    images = list_images(source, "put the photographs there, or name their folder with --input_path")
    return each_image(images, work, [results])


if __name__ == "__main__":
    parser = cli.Parser(__doc__)
    parser.add_argument("--dataset", default="Rain100L", help="a folder under ./dataset/, with its photographs in input/")
    parser.add_argument("--input_path", help="photographs, instead of ./dataset/<dataset>/input/")
    parser.add_argument("--save_path", help="where the masks go (default: ldgp/ beside the photographs' folder)")
    parser.add_argument("--recipe", default="paper", choices=["paper", "fast"],
                        help="paper: a mask of likely rain; fast: a layer, how bright the rain is")
    parser.add_argument("--patch_size", type=cli.number(int, SMALLEST), default=80,
                        help="paper: pixels a side of the patches whose gradients vote for the rain's direction")
    parser.add_argument("--kernel_size", type=cli.number(int, 1, 10_000), default=10,
                        help="paper: shortest bright run, in pixels along the rain, that counts as a streak")
    parser.add_argument("--true_cells", action="store_true",
                        help="paper: credit gradients to the cell they were measured in; the published masks do not")
    add_strength_flag(parser)
    cli.add_overwrite_flag(parser)
    cli.start(main, parser)
