"""Make the demo set, dataset/Demo/input and dataset/Demo/target, from photographs of scikit-image and synthetic rain.

    python -m utils.rain

All arithmetic that decides a pixel is in whole numbers, so that the set comes out the same everywhere.
"""
import math
from pathlib import Path

import numpy as np
import skimage.data
from skimage.measure import block_reduce

from utils import cli
from utils.image import check_image, png_bytes, write_bytes
from utils.metrics import psnr

UNIT = 256  # lengths and positions are in 1/256 of a pixel, cover and fading in 1/256
TURN = 1 << 14  # sine and cosine are in 1/16384

# name in skimage.data: (top, left, height, width) of the part shown, its size as a fraction of that, seed, tilt
DEMO = {
    "astronaut": ((0, 0, 384, 512), (5, 8), 1, 18),
    "chelsea": ((0, 30, 300, 400), (4, 5), 2, -6),
    "coffee": ((10, 60, 384, 512), (5, 8), 3, 5),
    "rocket": ((7, 40, 420, 560), (4, 7), 4, -13),
}


def draw_streaks(shape, seed, tilt=10, density=3.0, length=(12, 60), thickness=(0.5, 1.8), brightness=(20, 170), spread=2):
    """Draw synthetic rain streaks: an array of this shape (height, width), int64 grey levels; streaks that cross add up.

    seed: 0 to 2**32 - 1. tilt: degrees from the vertical; at a positive tilt rain falls to the lower left. density: streaks
    for 1,000 pixels. length (at least 1), thickness (pixels) and brightness (grey levels): the least and the most of a
    streak; faint ones are more frequent. spread: whole degrees by which a streak's direction may differ from the tilt.
    """
    height, width = shape
    random = np.random.RandomState(seed)  # its numbers are frozen across versions of NumPy
    reach = math.ceil(length[1] / 2 + thickness[1]) + 1
    layer = np.zeros((height + 2 * reach, width + 2 * reach), np.int64)
    for _ in range(round(density * height * width / 1000)):
        x, y = (between(random, 0, side * UNIT - 1) for side in (width, height))
        half_length, half_width = (between(random, UNIT * low / 2, UNIT * high / 2) for low, high in (length, thickness))
        peak = min(between(random, *brightness) for _ in range(2))
        angle = math.radians(tilt + between(random, -spread, spread))
        sine, cosine = round(TURN * math.sin(angle)), round(TURN * math.cos(angle))
        top, left = y // UNIT, x // UNIT  # of the streak's square in the padded layer
        side = np.arange(-reach, reach + 1) * UNIT
        down, right = (side - y % UNIT)[:, None], side - x % UNIT
        along = abs(down * cosine - right * sine) // TURN
        across = abs(down * sine + right * cosine) // TURN
        cover = np.clip(half_width + UNIT - across, 0, 2 * UNIT) // 2  # soft by a pixel: hard edges make staircases
        # A drop moves while the shutter is open: full in the middle half of its streak, fading towards both ends.
        fade = np.clip((half_length - along) * 2 * UNIT // half_length, 0, UNIT)
        layer[top : top + 2 * reach + 1, left : left + 2 * reach + 1] += peak * cover * fade // UNIT**2
    return layer[reach : reach + height, reach : reach + width]


def between(random, low, high):
    """Draw a whole number from low to high."""
    low, high = round(low), round(high)
    return low + int(random.random_sample() * (high + 1 - low))


def add_rain(image, seed, **options):
    """Add synthetic rain streaks to the three channels of a photograph, clipped at 255.

    image: (H, W, 3) uint8. seed, options: as of `draw_streaks`. Returns (H, W, 3) uint8.
    Raises ValueError for another shape or type.
    """
    check_image(image)
    layer = draw_streaks(image.shape[:2], seed, **options)
    return np.minimum(image + layer[..., None], 255).astype(np.uint8)


def shrink(image, numerator, denominator):
    """Shrink an image (H, W, C) uint8 by a fraction: each pixel is the mean of the area it stands for.

    Exact, rounded to nearest, halves up. H * numerator and W * numerator must be multiples of the denominator.
    """
    large = image.repeat(numerator, axis=0).repeat(numerator, axis=1)
    total, area = block_reduce(large, (denominator, denominator, 1), np.sum), denominator**2
    return ((2 * total + area) // (2 * area)).astype(np.uint8)


def main(args):
    for name, ((top, left, height, width), fraction, seed, tilt) in DEMO.items():
        photograph = getattr(skimage.data, name)()[top : top + height, left : left + width, ::-1]
        clean = shrink(photograph, *fraction)
        rainy = add_rain(clean, seed, tilt=tilt)
        for folder, image in (("input", rainy), ("target", clean)):
            place = Path(args.save_path, folder)
            place.mkdir(parents=True, exist_ok=True)
            write_bytes(place / f"{name}.png", png_bytes(image))
        print(f"{name}: {clean.shape[1]}x{clean.shape[0]}, rainy input {psnr(rainy, clean):.2f} dB (RGB)")
    print(f"rain.py: {len(DEMO)} pairs in {args.save_path}")
    return 0


if __name__ == "__main__":
    parser = cli.Parser(__doc__)
    parser.add_argument("--save_path", default="./dataset/Demo", help="gets the folders input/ and target/")
    cli.start(main, parser)
