"""NSS: replace likely rain at random by similar rain-free neighbours, which gives stochastic derained references (SDRs).

    python sdr.py --input_path="./dataset/Rain100L/input/" --ldgp_path="./dataset/Rain100L/ldgp/" \\
        --save_path "./dataset/Rain100L/sdr/" --fuse_save_path "./dataset/Rain100L/sdr(fuse)/"
"""
from pathlib import Path

import cv2
import numpy as np

from utils import cli, fast
from utils.image import (ImageError, check_image, check_size, list_images, matching_file, png_bytes, read_image, read_mask,
                         read_scale)
from utils.progress import each_image
from utils.results import Results, beside, check_made_for
from utils.sampling import CHUNK, cumulate, draw_references, strips, write_references


class Sampler:
    """Non-local stochastic sampling (NSS) of one photograph: each filled pixel draws a candidate.

    Parameters
    ----------
    image : (H, W, 3) uint8
    mask : (H, W) uint8; a pixel is rain above 0, filled above `threshold`, and a candidate at 0
    K : pixels a side of the window around a pixel that its candidates come from; at least 3 are used
    k : pixels a side of the window that is compared, odd; where all of it is rain, it grows
    pow : exponent of the distance, the paper's eta
    threshold : from 0 to 255

    Raises
    ------
    ValueError
        For other shapes, types and values.

    References
    ----------
    "Rain2Avoid: Self-Supervised Single Image Deraining", ICASSP 2023, section 2.2.
    """

    def __init__(self, image, mask, K=7, k=3, pow=0.5, threshold=10):
        check_image(image)
        kind = f"{getattr(mask, 'dtype', type(mask).__name__)} {np.shape(mask)}"
        if kind != f"uint8 {image.shape[:2]}":
            raise ValueError(f"the mask of this image must be an array of uint8 {image.shape[:2]}, not {kind}")
        if not (1 <= K <= 255 and 1 <= k <= 255 and k % 2 == 1 and 0 <= pow <= 4 and 0 <= threshold <= 255):
            raise ValueError("K must be from 1 to 255, k odd and from 1 to 255, pow from 0 to 4, threshold from 0 to 255, "
                             f"not K={K}, k={k}, pow={pow}, threshold={threshold}")
        if mask.max() == 1 and threshold > 0:
            raise ValueError("the mask is 0 and 1; multiply it by 255")
        self.image, self.mask, self.k, self.pow, self.threshold = image, mask, k, pow, threshold
        self.flat, self.reach = np.ascontiguousarray(image).reshape(-1, 3), max(K, 3) // 2
        rows, columns = np.mgrid[-self.reach : self.reach + 1, -self.reach : self.reach + 1]
        self.shift = (rows * image.shape[1] + columns).ravel()  # from a pixel to the places of its window, in flat indices

    def chunks(self):
        """Yield, strip by strip, the pixels to fill (F,), flat indices, and the cumulative weights (S, F) of their candidates.

        A pixel p has a window of S places q, in row-major order. A candidate there has the weight 1 / max(d^pow, 1e-4), any
        other place 0. d is the sum of |I(p+o) - I(q+o)| over the channels and over the offsets o in the compared window where
        p+o is no rain. That window is as much larger than k as it takes to hold a rain-free pixel. Outside the image, I is 0.
        """
        width, reach = self.mask.shape[1], self.reach
        widest = max(self.k // 2, reach)  # half a side of the largest compared window: candidates are within reach
        rain_free = self.mask == 0
        distance = cv2.distanceTransform((~rain_free).astype(np.uint8), cv2.DIST_C, 3)  # to a rain-free pixel, in steps
        filled = (self.mask > self.threshold) & (distance <= reach)  # without a candidate, a pixel stays as it is
        planes = [np.pad(plane, reach + widest) for plane in cv2.split(self.image)]
        candidate = np.pad(rain_free, reach)  # candidates lie inside the image ...
        counted = np.pad(rain_free, widest, constant_values=True).astype(np.uint16)  # ... but what is outside counts, as black
        offsets = list(np.ndindex(2 * reach + 1, 2 * reach + 1))
        for top, pixels in strips(filled, CHUNK // len(offsets)):
            y, x = np.divmod(pixels, width)
            tall, wide = y[-1] - top + 1 + 2 * widest, width + 2 * widest
            half = distance[y, x].astype(int).clip(self.k // 2, widest)
            upper = (y - top + widest - half) * (wide + 1) + x + widest - half  # the window's corners in a table of sums
            side, lower = 2 * half + 1, upper + (2 * half + 1) * (wide + 1)
            planes_at_p = [plane[top + reach :][:tall, reach : reach + wide] for plane in planes]
            weight = np.empty((len(offsets), len(pixels)), np.float32)
            for number, (dy, dx) in enumerate(offsets):
                planes_at_q = [plane[top + dy :][:tall, dx : dx + wide] for plane in planes]
                blue, green, red = (cv2.absdiff(one, other) for one, other in zip(planes_at_p, planes_at_q))
                sums = cv2.integral((np.add(blue, green, dtype=np.uint16) + red) * counted[top:][:tall], sdepth=cv2.CV_64F)
                d = sums.take(lower + side) - sums.take(lower) - sums.take(upper + side) + sums.take(upper)
                weight[number] = candidate[dy:, dx:][y, x] / np.maximum(d**self.pow, 1e-4)
            yield pixels, cumulate(weight / sum_in_float32(weight))  # divided first as the authors do, for the same rounding

    def colours(self, pixels, place):
        """Return the colours (F, 3) uint8 of the candidates that pixels have drawn. place: (F,), of 0 to S - 1."""
        return self.flat.take(pixels + self.shift.take(place), axis=0)

    references = draw_references


def sum_in_float32(weight):
    """Return the sums of the columns of (S, F) float32, to the bit as np.sum adds up the weights above 0 alone."""
    number, total = np.count_nonzero(weight, axis=0), np.empty(weight.shape[1], np.float32)
    for n in np.unique(number):  # columns with equally many: NumPy adds in pairs, which zeros in between would change
        columns = weight.T[number == n]
        total[number == n] = columns[columns > 0].reshape(-1, n).sum(axis=1)
    return total


def sample_references(image, mask, sdr_num=50, seed=0, independent=False, **parameters):
    """Return all SDRs at once, (sdr_num, H, W, 3) uint8. Parameters and errors as of `Sampler` and `draw_references`."""
    return np.stack(list(Sampler(image, mask, **parameters).references(sdr_num, seed, independent)))


def add_nss_flags(parser):
    """Add the flags of NSS, here and in sdrl_online.py."""
    parser.add_argument("--sdr_num", type=cli.number(int, 1, 100_000), default=50, help="references an image")
    parser.add_argument("--K", type=cli.number(int, 1, 255), default=7, help="paper: pixels a side of the window of candidates")
    parser.add_argument("--k", type=cli.number(int, 1, 255, odd=True), default=3, help="paper: pixels a side that are compared")
    parser.add_argument("--pow", type=cli.number(float, 0, 4), default=0.5, help="paper: exponent of the distance, its eta")
    parser.add_argument("--threshold", type=cli.number(int, 0, 255), default=10, help="paper: fill pixels with a mask above it")


def nss_options(args):
    """Return the parameters of `Sampler` among parsed flags."""
    return {"K": args.K, "k": args.k, "pow": args.pow, "threshold": args.threshold}


def sampler_for(image, mask, mask_path, args):
    """Return the `Sampler` of a mask file and parsed flags. Raises ImageError, with the file, where the mask cannot be used."""
    try:
        return Sampler(image, mask, **nss_options(args))
    except ValueError as error:
        raise ImageError(f"{mask_path}: {error}") from None


def main(args):
    source = Path(args.input_path or "./dataset/Rain100L/input/")
    masks_path, save_path, fuse_save_path = (Path(given or beside(source, name)) for given, name in (
        (args.ldgp_path, "ldgp"), (args.save_path, "sdr"), (args.fuse_save_path, "sdr(fuse)")))
    images = list_images(source, "put the photographs there, or name their folder with --input_path")
    hint = check_made_for(masks_path, source, args.recipe, "ldgp.py")
    masks = list_images(masks_path, hint)
    draws = {name: getattr(args, name) for name in ("sdr_num", "seed", "independent")}
    settings = {"recipe": args.recipe, **draws, **({} if args.recipe == "fast" else nss_options(args))}

    def sources(path):
        return path, matching_file(masks, path, masks_path, hint)

    about = settings, {"input": source, "ldgp": masks_path}, sources
    references = Results("sdr.py", save_path, *about, suffix="", overwrite=args.overwrite, flag="--save_path")
    fused = Results("sdr.py", fuse_save_path, *about, overwrite=args.overwrite, flag="--fuse_save_path")

    def work(path, progress):
        image, mask_path = read_image(path), sources(path)[1]
        mask = read_mask(mask_path)
        check_size(mask, mask_path, image, path)
        if args.recipe == "fast":
            scale = read_scale(mask_path)
            drawn, mean = fast.guided_references(image, mask, scale, **draws)
            write_references(drawn, references.path(path), scale)
        else:
            drawn = sampler_for(image, mask, mask_path, args).references(**draws)
            mean = write_references(drawn, references.path(path))
        fused.write(path, png_bytes(mean))  # last: the mark that all is done

    return each_image(images, work, [references, fused])


if __name__ == "__main__":
    parser = cli.Parser(__doc__)
    parser.add_argument("--input_path", help="photographs (default: ./dataset/Rain100L/input/)")
    parser.add_argument("--ldgp_path", help="their masks or layers, by ldgp.py (default: ldgp/ beside --input_path)")
    parser.add_argument("--recipe", default="paper", choices=["paper", "fast"],
                        help="paper: NSS on masks; fast: guided samples on layers, and their exact mean")
    parser.add_argument("--save_path", help="where the references go, a folder an image (default: sdr/ beside --input_path)")
    parser.add_argument("--fuse_save_path", help="where their means go (default: sdr(fuse)/ beside --input_path)")
    add_nss_flags(parser)
    parser.add_argument("--seed", type=cli.number(int, 0, 2**32 - 1), default=0, help="of the random draws")
    parser.add_argument("--independent", action="store_true", help="pixels draw their own numbers; published: the same for all")
    cli.add_overwrite_flag(parser)
    cli.start(main, parser)
