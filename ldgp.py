"""LDGP: find likely rain in photographs from the locally dominant gradient, one mask per photograph.

    python ldgp.py --dataset="Rain100L" --patch_size=80 --kernel_size=10
"""
import math
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from utils import cli, fast
from utils.image import ImageError, check_image, data_set, list_images, png_bytes, read_image
from utils.progress import each_image
from utils.results import Results, beside

CELL = 8  # pixels; the cells, blocks and bins of Dalal and Triggs' descriptor as the paper uses it
BLOCK = 4  # cells a side
BIN_WIDTH = 5  # degrees, of unsigned gradients
BINS = 180 // BIN_WIDTH
SMALLEST = CELL * BLOCK  # pixels: one block
WINDOW, OFFSET = 5, 0  # of the adaptive mean threshold: pixels a side, grey levels


@lru_cache
def _credit(width, height, exchange_cells):
    """Return the weights that sum a patch's overlapping block histograms to one histogram, (blocks_x * blocks_y * BLOCK^2,).

    Every cell counts once: the blocks that hold it are averaged. exchange_cells: swap a block's cell axes, as was published.
    """
    blocks_x, blocks_y = width // CELL - BLOCK + 1, height // CELL - BLOCK + 1
    bx, by, cx, cy = np.ix_(range(blocks_x), range(blocks_y), range(BLOCK), range(BLOCK))
    x, y = (bx + cy, by + cx) if exchange_cells else (bx + cx, by + cy)
    holders_x, holders_y = (np.convolve(np.ones(blocks), np.ones(BLOCK)) for blocks in (blocks_x, blocks_y))  # of each cell
    return (1 / (holders_x[x] * holders_y[y])).ravel()


def patch_angle(grey, exchange_cells=True):
    """Return the dominant gradient angle of a patch: the lower edge of the first bin that attains the histogram's maximum.

    grey: (h, w) uint8, both sides at least 32; whole cells of 8x8 pixels are used. Returns degrees in 0, 5, ..., 175.
    """
    height, width = (side - side % CELL for side in grey.shape)
    descriptor = cv2.HOGDescriptor((width, height), (SMALLEST, SMALLEST), (CELL, CELL), (CELL, CELL), BINS)
    histograms = descriptor.compute(np.ascontiguousarray(grey[:height, :width])).reshape(-1, BINS)
    total = _credit(width, height, exchange_cells) @ histograms.astype(np.float64)
    return BIN_WIDTH * int(total.argmax())


def dominant_angle(image, patch_size=80, exchange_cells=True):
    """Return the most frequent patch angle of an image; ties go to the smallest angle.

    image: (H, W, 3) uint8 BGR. Returns 0, 5, ..., 175. Raises ImageError for a side, ValueError for a patch_size below 32.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    height, width = grey.shape
    if min(height, width) < SMALLEST:
        raise ImageError(f"{width}x{height} pixels is too small: LDGP needs at least {SMALLEST} a side")
    if patch_size < SMALLEST:
        raise ValueError(f"patch_size must be at least {SMALLEST} (one block), not {patch_size}")
    if min(height, width) < patch_size:
        return patch_angle(grey, exchange_cells)
    patches = np.lib.stride_tricks.sliding_window_view(grey, (patch_size, patch_size))[::patch_size, ::patch_size]
    angles = [patch_angle(patch, exchange_cells) for patch in patches.reshape(-1, patch_size, patch_size)]
    return int(np.bincount(angles).argmax())


def rotation(angle):
    """Return the rotation in degrees that makes streaks of this dominant gradient angle upright; as published, none near 90."""
    if angle in (85, 90):
        return 0
    return angle - 180 if angle > 90 else angle


def rotate(image, degrees):
    """Rotate (H, W) or (H, W, 3) uint8 about the centre, bilinear, onto a canvas that holds all of it, with a white border."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1)
    cos, sin = abs(matrix[0, 0]), abs(matrix[0, 1])
    canvas = int(height * sin + width * cos), int(height * cos + width * sin)
    matrix[:, 2] += canvas[0] / 2 - width / 2, canvas[1] / 2 - height / 2
    return cv2.warpAffine(image, matrix, canvas, flags=cv2.INTER_LINEAR, borderValue=(255, 255, 255))


def rain_mask(image, patch_size=80, kernel_size=10, exchange_cells=True):
    """Mark likely rain in a photograph by the locally dominant gradient prior.

    Parameters
    ----------
    image : (H, W, 3) uint8, BGR, sides of at least 32 pixels
    patch_size : pixels a side of the patches whose gradients vote for the rain's direction, at least 32
    kernel_size : the shortest vertical run, in pixels, that counts as a streak
    exchange_cells : as in the published masks; False credits each histogram to the cell that it was measured in

    Returns
    -------
    (H, W) uint8, high where rain is likely; grey values on the edges come from rotating back.

    Raises
    ------
    ImageError
        For a side below 32 pixels, and for OpenCV 5.
    ValueError
        For other arrays, and for sizes below these.

    References
    ----------
    "Rain2Avoid: Self-Supervised Single Image Deraining", ICASSP 2023, section 2.1.
    """
    if int(cv2.__version__.split(".")[0]) >= 5:  # has no HOGDescriptor, and its warpAffine rounds differently
        raise ImageError(f"OpenCV {cv2.__version__} gives other masks; run: pip install 'opencv-python>=4.8,<5'")
    check_image(image)
    if kernel_size < 1:  # OpenCV would take an empty kernel as one of 3x3
        raise ValueError(f"kernel_size must be at least 1, not {kernel_size}")
    degrees = rotation(dominant_angle(image, patch_size, exchange_cells))
    upright = cv2.cvtColor(rotate(image, degrees), cv2.COLOR_BGR2GRAY)
    bright = cv2.adaptiveThreshold(upright, 255, cv2.ADAPTIVE_THRESH_MEAN_C, cv2.THRESH_BINARY, WINDOW, OFFSET)
    line = np.ones((kernel_size, 1), np.uint8)
    streaks = cv2.dilate(cv2.erode(bright, line), line)  # an opening, but that even lines keep OpenCV's anchor
    height, width = image.shape[:2]
    cos, sin = abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
    top, left = math.floor(width * sin * cos), math.floor(height * cos * sin)  # of the photograph on the canvas, rotated twice
    return np.ascontiguousarray(rotate(streaks, -degrees)[top : top + height, left : left + width])


def find_rain(path, image, recipe="paper", strength=1.0, patch_size=80, kernel_size=10, true_cells=False):
    """Return (`rain_mask`, 1) or, by the fast recipe, (`fast.rain_layer`, its scale). Raises ImageError that names the path."""
    if recipe == "fast":
        scale = fast.thin_scale(image)
        return fast.rain_layer(image, strength, scale), scale
    try:
        return rain_mask(image, patch_size, kernel_size, not true_cells), 1
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None


def notice(rain):
    """Return a notice for the user if a mask or layer is next to empty or full, else None."""
    none, everywhere = np.mean(rain > 0) < 0.01, np.mean(rain > 1) > 0.9
    return "no rain found" if none else "rain found nearly everywhere" if everywhere else None


def add_strength_flag(parser):
    """Add --strength, a flag of all that finds rain layers."""
    parser.add_argument("--strength", type=cli.number(float, 0.1, 100), default=1.0,
                        help="fast: above 1, say 1.5, more is taken for rain: fewer streaks stay, and more texture goes")


def main(args):
    source = Path(args.input_path or data_set(args.dataset) / "input")
    target = Path(args.save_path or beside(source, "ldgp"))
    names = ["strength"] if args.recipe == "fast" else ["patch_size", "kernel_size", "true_cells"]
    settings = {"recipe": args.recipe, **{name: getattr(args, name) for name in names}}
    results = Results("ldgp.py", target, settings, {"input": source}, overwrite=args.overwrite, flag="--save_path")

    def work(path, progress):
        rain, scale = find_rain(path, read_image(path), **settings)
        results.write(path, png_bytes(rain, scale=scale))
        return notice(rain)

    images = list_images(source, "put the photographs there, or name their folder with --input_path")
    return each_image(images, work, [results])


if __name__ == "__main__":
    parser = cli.Parser(__doc__)
    parser.add_argument("--dataset", default="Rain100L", help="a folder of ./dataset/, or its path; photographs in input/")
    parser.add_argument("--input_path", help="photographs, instead of ./dataset/<dataset>/input/")
    parser.add_argument("--save_path", help="where the masks go (default: ldgp/ beside the photographs' folder)")
    parser.add_argument("--recipe", default="paper", choices=["paper", "fast"],
                        help="paper: a mask of likely rain; fast: a layer, how bright the rain is")
    parser.add_argument("--patch_size", type=cli.number(int, SMALLEST), default=80,
                        help="paper: pixels a side of the patches whose gradients vote for the rain's direction")
    parser.add_argument("--kernel_size", type=cli.number(int, 1, 10_000), default=10,
                        help="paper: shortest bright run, in pixels along the rain, that counts as a streak")
    parser.add_argument("--true_cells", action="store_true", help="paper: credit each gradient to its own cell; published: not")
    add_strength_flag(parser)
    cli.add_overwrite_flag(parser)
    cli.start(main, parser)
