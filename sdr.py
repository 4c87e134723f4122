"""NSS: replace likely rain at random by similar rain-free neighbours, which gives stochastic derained references (SDRs).

    python sdr.py --input_path="./dataset/Rain100L/input/" --ldgp_path="./dataset/Rain100L/ldgp/" \\
        --save_path "./dataset/Rain100L/sdr/" --fuse_save_path "./dataset/Rain100L/sdr(fuse)/"
"""
import itertools
import os
import shutil
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from ldgp import thin_scale
from utils import cli
from utils.image import (PNG_FAST, ImageError, check_image, check_size, list_images, matching_file, png_bytes, read_image,
                         read_mask, shrink)
from utils.progress import each_image
from utils.results import Results, check_made_for

CHUNK = 1 << 20  # weights held at once, about: photographs are worked on in strips


# ---- NSS (paper, section 2.2)


class Sampler:
    """Non-local stochastic sampling (NSS; paper, section 2.2) of one photograph. Each filled pixel draws a candidate.

    image: (H, W, 3) uint8. mask: (H, W) uint8; a pixel is rain above 0, filled above `threshold`, and a candidate at 0.
    K: pixels a side of the window around a pixel that its candidates come from; at least 3 are used. k: pixels a side of
    the window that is compared, odd. Where all of it is rain, it grows. pow: exponent of the distance, the paper's eta.
    Raises ValueError for other shapes, types and values.
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
        """Yield, strip by strip, the filled pixels (F,) as flat indices, and the cumulative weights (S, F) of their places.

        A pixel p has a window of S places, in row-major order. A candidate q there has the weight 1 / max(d^pow, 1e-4).
        d is the sum of |I(p+o) - I(q+o)| over the channels and over the offsets o in the compared window where p+o is no
        rain. That window is as much larger than k as it takes to hold a clear pixel. Outside the image, I is 0.
        """
        width, reach = self.mask.shape[1], self.reach
        most = max(self.k // 2, reach)  # half a side of the largest compared window: candidates are within reach
        clear = self.mask == 0
        to_clear = cv2.distanceTransform((~clear).astype(np.uint8), cv2.DIST_C, 3)  # steps, diagonal ones too
        filled = (self.mask > self.threshold) & (to_clear <= reach)  # without a candidate, a pixel stays as it is
        planes = [np.pad(plane, reach + most) for plane in cv2.split(self.image)]
        candidate = np.pad(clear, reach)  # candidates lie inside the image ...
        counts = np.pad(clear, most, constant_values=True).astype(np.uint16)  # ... but what is outside counts, as black
        places = list(np.ndindex(2 * reach + 1, 2 * reach + 1))
        for top, pixels in strips(filled, CHUNK // len(places)):
            y, x = np.divmod(pixels, width)
            tall, wide = y[-1] - top + 1 + 2 * most, width + 2 * most
            half = to_clear[y, x].astype(int).clip(self.k // 2, most)
            above = (y - top + most - half) * (wide + 1) + x + most - half  # the window's corners in a table of sums
            across, below = 2 * half + 1, above + (2 * half + 1) * (wide + 1)
            here = [plane[top + reach :][:tall, reach : reach + wide] for plane in planes]
            weight = np.empty((len(places), len(pixels)), np.float32)
            for place, (dy, dx) in enumerate(places):
                there = [plane[top + dy :][:tall, dx : dx + wide] for plane in planes]
                blue, green, red = (cv2.absdiff(one, other) for one, other in zip(here, there))
                sums = cv2.integral((np.add(blue, green, dtype=np.uint16) + red) * counts[top:][:tall], sdepth=cv2.CV_64F)
                d = sums.take(below + across) - sums.take(below) - sums.take(above + across) + sums.take(above)
                weight[place] = candidate[dy:, dx:][y, x] / np.maximum(d**self.pow, 1e-4)
            yield pixels, cumulate(weight / sum_in_float32(weight))

    def colours(self, pixels, place):
        """The colours (F, 3) uint8 of the candidates that pixels have drawn. place: (F,), of their windows."""
        return self.flat.take(pixels + self.shift.take(place), axis=0)

    def references(self, sdr_num=50, seed=0, independent=False):
        """Yield SDRs one by one, each (H, W, 3) uint8: see `draw_references`."""
        return draw_references(self, sdr_num, seed, independent)


def draw_references(sampler, sdr_num=50, seed=0, independent=False):
    """Yield SDRs one by one, each (H, W, 3) uint8, from the chunks and colours of a sampler.

    As published, all pixels share the numbers of np.random.seed(seed) and np.random.random_sample(sdr_num). With
    `independent`, every pixel has numbers of its own. Raises ValueError for a sdr_num below 1.
    """
    if sdr_num < 1:
        raise ValueError(f"sdr_num must be at least 1, not {sdr_num}")
    uniforms, drawn = np.random.RandomState(seed).random_sample(sdr_num), []
    generators = [np.random.default_rng((seed, number)) for number in range(sdr_num)]
    for pixels, cumulative in sampler.chunks():
        if independent:
            uniforms = (generator.random(len(pixels)) for generator in generators)
        kind = np.min_scalar_type(len(cumulative))
        places = [(cumulative <= uniform).sum(axis=0, dtype=kind) for uniform in uniforms]  # the first that exceeds it
        drawn.append((pixels, places))
    for number in range(sdr_num):
        reference = sampler.image.copy().reshape(-1, 3)
        for pixels, places in drawn:
            reference[pixels] = sampler.colours(pixels, places[number])
        yield reference.reshape(sampler.image.shape)


def strips(filled, size):
    """Yield (first row, flat indices of the filled pixels) of strips, of about `size` pixels, of a mask (H, W) bool."""
    height, width = filled.shape
    rows = max(1, size // width)
    for top in range(0, height, rows):
        pixels = np.flatnonzero(filled[top : top + rows])
        if len(pixels):
            yield top, pixels + top * width


def sum_in_float32(weight):
    """The sum of the weights above 0 in each column of (S, F) float32, to the bit as np.sum adds them up alone.

    NumPy adds in pairs, which zeros in between would change. So columns with equally many weights are added up together.
    """
    number, total = np.count_nonzero(weight, axis=0), np.empty(weight.shape[1], np.float32)
    for n in np.unique(number):
        columns = weight.T[number == n]
        total[number == n] = columns[columns > 0].reshape(-1, n).sum(axis=1)
    return total


def cumulate(weight):
    """The cumulative weights (S, F) float64 of weights (S, F) float32, divided by the last of them."""
    cumulative = np.cumsum(weight, axis=0, dtype=np.float64)
    cumulative /= cumulative[-1].copy()
    return cumulative


def sample_references(image, mask, sdr_num=50, seed=0, independent=False, **parameters):
    """All SDRs of a photograph at once, (sdr_num, H, W, 3) uint8: see `Sampler` and `draw_references`."""
    return np.stack(list(Sampler(image, mask, **parameters).references(sdr_num, seed, independent)))


def fuse(references):
    """The fused reference (H, W, 3) uint8: the mean of SDRs, rounded to nearest, ties to even.

    references: (N, H, W, 3) uint8, or any iterable of (H, W, 3) uint8, of which one at a time is held.
    """
    references = iter(references)
    total, number = next(references).astype(np.uint32), 1
    for number, reference in enumerate(references, 2):
        total += reference
    return np.stack([np.rint(row / number).astype(np.uint8) for row in total])  # floats of one row at a time


# ---- guided samples: what NSS becomes when it knows how bright the rain is

WINDOW = 11  # pixels a side of the window that candidates come from
RAIN, SPACE, CHROMA, PATTERN, LIGHT = 4, 18, 50, 288, 128  # what the exponents of a weight are divided by; by trials
DOUBT = 100  # grey levels of rain behind which the brightness of the scene is known half as well
SMALLEST = -87  # least exponent of a weight: processors are slow with float32 numbers that are smaller still
CUT_OFF = 254  # grey levels: a channel that rain has driven so far may have been cut off at 255
STRIP = 1 << 15  # pixels that the expectation works on at once: their arrays fit a processor's cache of 2 MB


class GuidedSampler:
    """Stochastic references from one photograph and its layer of rain: built once, drawn from as often as needed.

    The photograph is I = J + R, R being the layer. L is the mean of J's channels, C = (red - green, green - blue) of I. D is
    the layer with gaps of up to 4 pixels between streaks filled up (a closing by 5x5), as there, too, the scene is in doubt.
    A pixel p with rain draws a place q of the window around it, p itself included, with the weight

        exp(-D(q)/RAIN - |p-q|^2/SPACE - |C(p)-C(q)|^2/CHROMA - (m(p,q)/PATTERN + (L(p)-L(q))^2/LIGHT) / (1 + D(p)/DOUBT)),

    m being the mean over 3x3 offsets o of (L(p+o)-L(q+o))^2. The new brightness is L(p) + (1-exp(-D(p)/RAIN)) (L(q)-L(p)).
    What the mean of I's channels exceeds it by is taken off all three, so C stays as it is. But a channel of 254 or more may
    have been cut off: it becomes J's at q, if that is less, and such a p weighs without the term of C.
    Beyond the border the photograph is mirrored.
    image: (H, W, 3) uint8 BGR; layer: (H, W) uint8 or float, grey levels of rain, at least 0.
    Raises ValueError for arrays of another shape, type or range.
    """

    def __init__(self, image, layer):
        check_image(image)
        if layer.shape != image.shape[:2] or layer.dtype.kind not in "uf" or not (layer >= 0).all():
            raise ValueError(f"the layer must be {image.shape[:2]} of levels from 0, not {layer.shape} of {layer.dtype}")
        self.image, self.shape, self.flat = image, image.shape, np.ascontiguousarray(image).reshape(-1, 3)
        self.margin = WINDOW // 2 + 1

        def pad(plane):
            return cv2.copyMakeBorder(plane, *[self.margin] * 4, cv2.BORDER_REFLECT_101)

        layer = np.minimum(layer, 255).astype(np.float32)
        doubt = cv2.morphologyEx(layer, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
        channels = [plane.astype(np.float32) for plane in cv2.split(image)]
        derained = [np.maximum(plane - layer, 0) for plane in channels]
        mean, clean = (sum(planes) / 3 for planes in (channels, derained))
        self.rainy, self.mix = doubt > 0, 1 - np.exp(-doubt / RAIN)
        self.most = mean - (1 - self.mix) * clean  # less mix * L(q), it is what a draw takes off the channels
        self.light, self.clean = pad(clean), np.stack([pad(plane) for plane in derained])
        self.rain_term = pad(np.maximum(-doubt / RAIN, -70))  # above SMALLEST, so that a pixel's own weight stays the larger
        self.chroma = [pad((b - a) / np.float32(CHROMA**0.5)) for a, b in zip(channels, channels[1:])]
        self.chroma_sign = np.where(np.max(channels, axis=0) < CUT_OFF, np.float32(-1), np.float32(0))
        self.certainty = 1 / (1 + doubt / DOUBT)
        self.kernel = np.full((3, 3), -1 / (9 * PATTERN), np.float32)  # for squared differences of L: their mean, m, ...
        self.kernel[1, 1] -= 1 / LIGHT  # ... and the middle one once more
        dy, dx = np.mgrid[:WINDOW, :WINDOW] - WINDOW // 2
        self.shift = (dy * self.light.shape[1] + dx).ravel()  # of each place, in flat pixels of the padded planes

    def weights(self, top, bottom):
        """Yield, place by place, the weights of all pixels in rows top to bottom, (rows, W) float32, and where q is, padded."""
        tall, wide, reach = bottom - top, self.shape[1], WINDOW // 2

        def at(plane, dy, dx, around=0):
            return plane[top + dy + 1 - around :][: tall + 2 * around, dx + 1 - around :][:, : wide + 2 * around]

        for dy, dx in itertools.product(range(WINDOW), repeat=2):
            square = cv2.subtract(at(self.light, reach, reach, 1), at(self.light, dy, dx, 1))
            pattern_and_light = cv2.filter2D(cv2.multiply(square, square), -1, self.kernel)[1:-1, 1:-1]
            space_term = -((dy - reach) ** 2 + (dx - reach) ** 2) / SPACE
            exponent = at(self.rain_term, dy, dx) + np.float32(space_term)
            exponent = cv2.accumulateProduct(pattern_and_light, self.certainty[top:bottom], exponent)
            first, second = (cv2.subtract(at(plane, reach, reach), at(plane, dy, dx)) for plane in self.chroma)
            chroma = cv2.accumulateProduct(second, second, cv2.multiply(first, first))  # adds a product to its last argument
            exponent = cv2.accumulateProduct(chroma, self.chroma_sign[top:bottom], exponent)
            there = slice(top + dy + 1, bottom + dy + 1), slice(dx + 1, dx + 1 + wide)
            yield cv2.exp(np.maximum(exponent, SMALLEST)), there

    def expectation(self):
        """The mean of infinitely many SDRs that are not rounded, (H, W, 3) float32 in [0, 255]."""
        expected = self.flat.reshape(self.shape).astype(np.float32)
        for top, pixels in strips(self.rainy, STRIP):
            rows = slice(top, pixels[-1] // self.shape[1] + 1)
            channels, most, mix = cv2.split(expected[rows]), self.most[rows], self.mix[rows]
            total, *taken = (np.zeros(most.shape, np.float32) for _ in range(4))
            cut_off = [np.nonzero(self.rainy[rows] & (channel >= CUT_OFF)) for channel in channels]
            for weight, there in self.weights(rows.start, rows.stop):
                amount = np.maximum(cv2.subtract(most, cv2.multiply(mix, self.light[there])), 0)
                cv2.accumulate(weight, total)
                for channel, cut, clean, sums in zip(channels, cut_off, self.clean, taken):
                    less = cv2.min(amount, channel)
                    if len(cut[0]):
                        less[cut] = np.maximum(channel[cut] - clean[there][cut], 0)
                    cv2.accumulateProduct(weight, less, sums)
            expected[rows] -= np.stack(taken, axis=2) / total[..., None]
        return expected

    def chunks(self):
        """As `Sampler.chunks`, of the pixels with rain."""
        for top, pixels in strips(self.rainy, CHUNK // WINDOW**2):
            weights = self.weights(top, pixels[-1] // self.shape[1] + 1)
            yield pixels, cumulate(np.stack([weight.take(pixels - top * self.shape[1]) for weight, _ in weights]))

    def colours(self, pixels, place):
        """The pixels' own colours less the same whole levels in each channel, as far as it goes; J's where one was cut off."""
        padded = pixels + pixels // self.shape[1] * 2 * self.margin + self.margin * (self.shape[1] + 2 * self.margin + 1)
        drawn = padded + self.shift.take(place)
        amount = self.most.take(pixels) - self.mix.take(pixels) * self.light.take(drawn)
        colours, clean = self.flat.take(pixels, axis=0), np.stack([plane.take(drawn) for plane in self.clean], axis=1)
        less = colours - np.minimum(colours, amount.clip(0, 255).round().astype(np.uint8)[:, None])
        return np.where(colours >= CUT_OFF, np.minimum(colours, clean.round().astype(np.uint8)), less)

    def references(self, sdr_num=50, seed=0, independent=False):
        """Yield SDRs one by one, each (H, W, 3) uint8: see `draw_references`."""
        return draw_references(self, sdr_num, seed, independent)


class ScaledSampler:
    """Guided samples of a photograph whose rain is thin only at a smaller scale: `GuidedSampler` there.

    They are drawn there. The light that they take off is enlarged and taken off the photograph, which keeps its details.
    image: (H, W, 3) uint8 BGR; layer: (H, W) uint8; scale: by how much both are shrunk, from 1 on, where nothing changes.
    """

    def __init__(self, image, layer, scale=1):
        self.image, self.small = image, shrink(image, scale)
        self.sampler = GuidedSampler(self.small, shrink(layer, scale))

    def references(self, sdr_num=50, seed=0, independent=False):
        yield from map(self.enlarged, self.sampler.references(sdr_num, seed, independent))

    def expectation(self):
        return self.enlarged(self.sampler.expectation())

    def fused(self):
        """The fused reference (H, W, 3) uint8: the expectation, rounded."""
        return np.rint(self.expectation()).astype(np.uint8)

    def enlarged(self, derained):
        """The photograph less what its small version has lost, of the same type."""
        if self.small.shape == self.image.shape:
            return derained
        lost = cv2.resize(self.small - derained.astype(np.float32), self.image.shape[1::-1], interpolation=cv2.INTER_CUBIC)
        lost = np.maximum(np.rint(lost) if derained.dtype == np.uint8 else lost, 0)
        return np.maximum(self.image - lost, 0).astype(derained.dtype)


def write_references(references, folder):
    """Write SDRs as <folder>/0.png, 1.png, ..., all or none, in the place of older ones. Returns their mean."""
    new, pending = folder.with_name(f".{folder.name}.part"), deque()
    shutil.rmtree(new, ignore_errors=True)  # a killed run's
    new.mkdir(parents=True)

    def write(path, reference):
        path.write_bytes(png_bytes(reference, PNG_FAST))

    def written(pool):
        for number, reference in enumerate(references):
            pending.append(pool.submit(write, new / f"{number}.png", reference))
            yield reference
            if len(pending) > 2 * os.cpu_count():  # large references must not pile up in memory
                pending.popleft().result()

    try:
        with ThreadPoolExecutor() as pool:
            mean = fuse(written(pool))
        for writing in pending:
            writing.result()
        if folder.exists():
            shutil.rmtree(folder)
        new.rename(folder)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    return mean


def add_nss_flags(parser):
    """The flags of NSS, here and in sdrl_online.py."""
    parser.add_argument("--sdr_num", type=cli.number(int, 1, 100_000), default=50, help="references an image")
    parser.add_argument("--K", type=cli.number(int, 1, 255), default=7, help="paper: pixels a side of the window of candidates")
    parser.add_argument("--k", type=cli.number(int, 1, 255, odd=True), default=3,
                        help="paper: pixels a side of the window compared")
    parser.add_argument("--pow", type=cli.number(float, 0, 4), default=0.5, help="paper: exponent of the distance, its eta")
    parser.add_argument("--threshold", type=cli.number(int, 0, 255), default=10,
                        help="paper: pixels with a mask above it are filled")


def nss_options(args):
    """The parameters of `Sampler` among parsed flags."""
    return {"K": args.K, "k": args.k, "pow": args.pow, "threshold": args.threshold}


def sampler_for(image, mask, mask_path, args):
    """The `Sampler` of a mask file and parsed flags. Raises ImageError, which names the file, where the mask cannot be used."""
    try:
        return Sampler(image, mask, **nss_options(args))
    except ValueError as error:
        raise ImageError(f"{mask_path}: {error}") from None


def main(args):
    fast, source = args.recipe == "fast", Path(args.input_path or "./dataset/Rain100L/input/")
    masks_path, save_path, fuse_save_path = (Path(given or source.parent / name) for given, name in (
        (args.ldgp_path, "ldgp"), (args.save_path, "sdr"), (args.fuse_save_path, "sdr(fuse)")))
    hint = f'run ldgp.py first: python ldgp.py --input_path="{source}" --save_path="{masks_path}" --recipe={args.recipe}'
    images = list_images(source, "put the photographs there, or name their folder with --input_path")
    masks = list_images(masks_path, hint)
    check_made_for(masks_path, source, args.recipe, hint)
    settings = {"recipe": args.recipe, **{name: getattr(args, name) for name in ("sdr_num", "seed", "independent")}}
    settings.update({} if fast else nss_options(args))

    def sources(path):
        return path, matching_file(masks, path, masks_path, hint)

    about = settings, {"input": source, "ldgp": masks_path}, sources
    references = Results("sdr.py", save_path, *about, suffix="", overwrite=args.overwrite, flag="--save_path")
    fused = Results("sdr.py", fuse_save_path, *about, overwrite=args.overwrite, flag="--fuse_save_path")

    def work(path, progress):
        image, mask_path = read_image(path), sources(path)[1]
        mask = read_mask(mask_path)
        check_size(mask, mask_path, image, path)
        sampler = ScaledSampler(image, mask, thin_scale(image)) if fast else sampler_for(image, mask, mask_path, args)
        mean = write_references(sampler.references(args.sdr_num, args.seed, args.independent), references.path(path))
        fused.write(path, png_bytes(sampler.fused() if fast else mean))  # last: the mark that all is done

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
    parser.add_argument("--independent", action="store_true",
                        help="every pixel draws numbers of its own; published: the same numbers for all")
    cli.add_overwrite_flag(parser)
    cli.start(main, parser)
