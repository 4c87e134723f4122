"""NSS: replace likely rain at random by similar rain-free neighbours, which gives stochastic derained references (SDRs).

    python sdr.py --input_path="./dataset/Rain100L/input/" --ldgp_path="./dataset/Rain100L/ldgp/" \\
        --save_path "./dataset/Rain100L/sdr/" --fuse_save_path "./dataset/Rain100L/sdr(fuse)/"
"""
import copy
import errno
import itertools
import os
import shutil
import signal
import tempfile
from collections import deque
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache
from pathlib import Path

if __name__ == "__main__":  # while libraries load, Ctrl-C ends without a word; `run.start` answers it from then on
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import cv2
import numpy as np

from utils import run
from utils.image import (GUIDED, LAYER, PNG_FAST, UMASK, ImageError, check_note, check_size, companion, list_images,
                         png_bytes, read_image, read_mask, shrink, unfinished, write_bytes)
from utils.record import Record, digest

CHUNK = 1 << 20  # references are drawn for chunks of about this many places to draw from, which bounds the memory


# ---- NSS (paper, section 2.2)


def check_parameters(K, k, pow, threshold):
    """Raise ValueError for parameters of NSS that have no meaning."""
    if K < 1 or k < 1 or k % 2 == 0:
        raise ValueError(f"K must be at least 1 and k at least 1 and odd, not K={K}, k={k}")
    if not 0 <= pow < float("inf") or not 0 <= threshold <= 255:
        raise ValueError(f"pow must be at least 0 and threshold from 0 to 255, not pow={pow}, threshold={threshold}")


@lru_cache(maxsize=8)
def weight_table(largest, pow):
    """Weights 1 / max(d^pow, 1e-4) of the distances d = 0 .. largest, as float32 (paper, section 2.2)."""
    try:
        table = np.fromiter((1 / max(float(d) ** pow, 1e-4) for d in range(largest + 1)), np.float32)
    except OverflowError:
        table = np.zeros(1, np.float32)
    if table[-1] == 0:
        raise ValueError(f"pow={pow} is too large: weights of this comparison window vanish in float32")
    return table


def nss_distances(image, mask, K=7, k=3, threshold=10):
    """The distance d(p, q) of every filled pixel p from the S places q of its window (paper, section 2.2), in chunks.

    d sums |I(p+o) - I(q+o)| over the channels and the offsets o of a comparison window around p, where p+o is no rain.
    That window is k pixels a side, and as much larger as it takes to hold a clear pixel; outside the image, I is 0.
    image: (H, W, 3) uint8; mask: (H, W) uint8. Yields (pixels (F,) flat indices in the image, distances (S, F) int64,
    (S, F) bool: whether q is a candidate). Places in row-major order; pixels without a candidate are left out.
    """
    width, reach = mask.shape[1], max(K, 3) // 2
    side, grown = 2 * reach + 1, max(k // 2, reach)  # a pixel with candidates has a clear one within reach
    clear = mask == 0
    filled = (mask > threshold) & (cv2.dilate(clear.astype(np.uint8), np.ones((side, side), np.uint8)) > 0)
    to_clear = cv2.distanceTransform((~clear).astype(np.uint8), cv2.DIST_C, 3)  # chessboard, to the nearest clear pixel
    margins = [reach + grown] * 4
    planes = [cv2.copyMakeBorder(plane, *margins, cv2.BORDER_CONSTANT, value=0) for plane in cv2.split(image)]
    candidate = np.pad(clear, reach)  # candidates lie inside the image ...
    counts = np.pad(clear, grown, constant_values=True).astype(np.uint16)  # ... but what is outside counts, as black
    for top, pixels in strips(filled, CHUNK // side**2):
        y, x = np.divmod(pixels, width)
        half = np.clip(to_clear[y, x], k // 2, grown).astype(np.int64)
        tall, wide = y[-1] - top + 1 + 2 * grown, width + 2 * grown
        above = (y - top + grown - half) * (wide + 1) + x + grown - half  # the window's corners in a table of running sums
        across, below = 2 * half + 1, above + (2 * half + 1) * (wide + 1)
        here = [plane[top + reach :][:tall, reach : reach + wide] for plane in planes]
        distance = np.empty((side * side, len(pixels)), np.int64)
        is_candidate = np.empty(distance.shape, bool)
        for place, (dy, dx) in enumerate(itertools.product(range(side), repeat=2)):
            there = [plane[top + dy :][:tall, dx : dx + wide] for plane in planes]
            blue, green, red = (cv2.absdiff(a, b) for a, b in zip(here, there))
            difference = (np.add(blue, green, dtype=np.uint16) + red) * counts[top:][:tall]
            sums = cv2.integral(difference, sdepth=cv2.CV_64F)
            distance[place] = sums.take(below + across) - sums.take(below) - sums.take(above + across) + sums.take(above)
            is_candidate[place] = candidate[dy:, dx:][y, x]
        yield pixels, distance, is_candidate


def strips(filled, size):
    """Yield (first row, flat indices of the filled pixels) of strips, of about `size` pixels, of a mask (H, W) bool."""
    height, width = filled.shape
    rows = max(1, size // width)
    for top in range(0, height, rows):
        pixels = np.flatnonzero(filled[top : top + rows])
        if len(pixels):
            yield top, pixels + top * width


def sum_in_float32(weight):
    """The sum of the weights above 0 in each column of an array (S, F) float32: (F,) float32, as np.sum adds them alone.

    NumPy adds in pairs, which zeros in between would change: so columns with equally many are added at a time, without them.
    """
    number, total = np.count_nonzero(weight, axis=0), np.empty(weight.shape[1], np.float32)
    for n in np.unique(number):
        columns = weight.T[number == n]
        total[number == n] = columns[columns > 0].reshape(-1, n).sum(axis=1)
    return total


def cumulate(weight):
    """Cumulative weights (S, F) float64, the last of them 1, of weights (S, F); constant where the weight is 0."""
    cumulative = weight.astype(np.float64)
    for before, row in zip(cumulative, cumulative[1:]):
        row += before
    cumulative /= cumulative[-1].copy()
    return cumulative


def take(array, index):
    """array[index] along the first axis, for NumPy and torch; NumPy's own `take` is several times faster than brackets."""
    return array.take(index, axis=0) if isinstance(array, np.ndarray) else array[index]


class Draws:
    """References (SDRs) in which every filled pixel draws one of the S places of its window. Both recipes share this.

    image: (H, W, 3) uint8; places: S. A subclass gives `chunks()`, which yields (pixels (F,) int64: flat indices in the
    image, cumulative (S, F) float64: as from `cumulate`), and `colours(pixels, place)`, (F, 3) uint8: what draws give.
    """

    xp, arrays = np, ("flat", "shift")  # the library that draws, and what `colours` needs

    def __init__(self, image, places):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"the image must be (H, W, 3) of uint8, not {image.shape} of {image.dtype}")
        self.shape, self.flat = image.shape, np.ascontiguousarray(image).reshape(-1, 3)
        self.held, self.place_type = None, np.min_scalar_type(places)

    def references(self, sdr_num=50, seed=0, independent=False):
        """Yield the SDRs one by one, each (H, W, 3) uint8.

        All pixels share the uniform numbers of np.random.seed(seed) and np.random.random_sample(sdr_num), as published;
        with `independent` every pixel has numbers of its own.
        """
        random = np.random.RandomState(seed)
        if independent:
            yield from (self.fresh(random) for _ in range(sdr_num))
            return
        uniforms = random.random_sample(sdr_num)
        drawn = [(pixels, [self._draw(cumulative, u) for u in uniforms]) for pixels, cumulative in self.chunks()]
        for n in range(sdr_num):
            yield self._reference((pixels, places[n]) for pixels, places in drawn)

    def fresh(self, random=None):
        """One SDR (H, W, 3) uint8 with every pixel's own draw. random: np.random.RandomState or Generator.

        On a torch device: a tensor; random is a torch.Generator of the device, or None for the default one. From the first
        call on, the cumulative weights of all filled pixels are kept: 8 bytes a place.
        """
        if self.held is None:
            self.held = list(self.chunks())
        return self._reference((pixels, self._draw(cumulative, self._uniforms(len(pixels), random)))
                               for pixels, cumulative in self.held)

    def expectation(self):
        """The mean of infinitely many SDRs, (H, W, 3) float64 in [0, 255]."""
        return self._expected(1)

    def variance(self):
        """The variance of infinitely many SDRs, (H, W, 3) float64 in squared values of [0, 255]."""
        return np.maximum(self._expected(2) - self._expected(1) ** 2, 0)

    def to(self, device):
        """The same sampler on a torch device: its `fresh` and `expectation` give tensors there, and copy nothing back."""
        import torch

        def move(array):
            return torch.from_numpy(array).to(device)

        there, mean = copy.copy(self), move(self.expectation())
        vars(there).update({name: move(getattr(self, name)) for name in self.arrays}, xp=torch, place_type=torch.int64)
        there.held = [(move(pixels), move(cumulative)) for pixels, cumulative in self.held or self.chunks()]
        there.expectation = lambda: mean
        return there

    def _draw(self, cumulative, uniforms):
        """The place that a uniform number, or each pixel's own (F,), draws: the first whose cumulative weight exceeds it."""
        return (cumulative <= uniforms).sum(axis=0, dtype=self.place_type)

    def _uniforms(self, number, random):
        if self.xp is np:
            return random.random(number)
        return self.xp.rand(number, dtype=self.xp.float64, device=self.flat.device, generator=random)

    def _reference(self, draws):
        reference = copy.deepcopy(self.flat)
        for pixels, place in draws:
            reference[pixels] = self.colours(pixels, place)
        return reference.reshape(self.shape)

    def _expected(self, power):
        expected = self.flat.astype(np.float64) ** power
        for pixels, cumulative in self.chunks():
            probability = np.diff(cumulative, axis=0, prepend=0)
            draws = (self.colours(pixels, place).astype(np.float64) ** power for place in range(len(probability)))
            expected[pixels] = sum(p[:, None] * draw for p, draw in zip(probability, draws))
        return expected.reshape(self.shape)


class Sampler(Draws):
    """Non-local stochastic sampling (NSS; paper, section 2.2) of one photograph: built once, drawn from as often as needed.

    image: (H, W, 3) uint8; mask: (H, W) uint8, rain where above 0, filled where above `threshold`, candidates where 0.
    K: pixels a side of the window that candidates come from (at least 3 are used). k: odd, pixels a side of the window
    that is compared; it grows where all of it is rain. pow: exponent of the distance, the paper's eta.
    Raises ValueError for an image or mask of another shape or type and for parameters without meaning.
    """

    def __init__(self, image, mask, K=7, k=3, pow=0.5, threshold=10):
        reach = max(K, 3) // 2
        super().__init__(image, (2 * reach + 1) ** 2)
        if mask.dtype != np.uint8 or mask.shape != image.shape[:2]:
            raise ValueError(f"the mask must be {image.shape[:2]} of uint8, not {mask.shape} of {mask.dtype}")
        check_parameters(K, k, pow, threshold)
        self.inputs = image, mask, K, k, threshold
        self.table = weight_table(765 * (2 * max(k // 2, reach) + 1) ** 2, pow)
        dy, dx = np.mgrid[-reach : reach + 1, -reach : reach + 1]
        self.shift = (dy * image.shape[1] + dx).ravel()  # of each place, in flat pixels

    def chunks(self):
        for pixels, distance, is_candidate in nss_distances(*self.inputs):
            weight = self.table.take(distance) * is_candidate
            yield pixels, cumulate(weight / sum_in_float32(weight))

    def colours(self, pixels, place):
        """The colours at the places drawn. One outside the image is never drawn: clipping just keeps its index valid."""
        return take(self.flat, (pixels + take(self.shift, place)).clip(0, len(self.flat) - 1))


# ---- guided samples: what NSS becomes when it knows how bright the rain is

WINDOW = 11  # pixels a side of the window that candidates come from
RAIN, SPACE, CHROMA, PATTERN, LIGHT = 4, 18, 50, 288, 128  # what the exponents of a weight are divided by; by trials
SMALLEST = -87  # least exponent of a weight: processors are slow with float32 numbers that are smaller still
CUT_OFF = 254  # grey levels: a channel that rain has driven so far may have been cut off at 255
STRIP = 1 << 15  # pixels that the expectation works on at once: their arrays fit a processor's cache of 2 MB


class GuidedSampler(Draws):
    """Stochastic references from one photograph and its layer of rain: built once, drawn from as often as needed.

    The photograph is I = J + R, R being the layer. L is the mean of J's channels, C = (red - green, green - blue) of I.
    A pixel p with rain draws a place q of the window around it, p itself included, with the weight

        exp(-R(q)/rain - |p-q|^2/space - |C(p)-C(q)|^2/chroma - m(p,q)/pattern - (L(p)-L(q))^2/light),

    m being the mean over 3x3 offsets o of (L(p+o)-L(q+o))^2. The new brightness is L(p) + (1-exp(-R(p)/rain)) (L(q)-L(p)).
    What the mean of I's channels exceeds it by is taken off all three, so C stays as it is. But a channel of 254 or more may
    have been cut off: it becomes J's at q, if that is less, and such a p weighs without the term of C.
    Beyond the border the photograph is mirrored.
    image: (H, W, 3) uint8 BGR; layer: (H, W) uint8 or float, grey levels of rain, at least 0; window: odd; the others: above 0.
    Raises ValueError for arrays of another shape, type or range and for parameters without meaning.
    """

    arrays = ("flat", "shift", "clean", "light", "most", "strength")

    def __init__(self, image, layer, window=WINDOW, rain=RAIN, space=SPACE, chroma=CHROMA, pattern=PATTERN, light=LIGHT):
        super().__init__(image, window * window)
        if layer.shape != image.shape[:2] or layer.dtype.kind not in "uf" or not (layer >= 0).all():
            raise ValueError(f"the layer must be {image.shape[:2]} of levels from 0, not {layer.shape} of {layer.dtype}")
        if window < 1 or window % 2 == 0 or min(rain, space, chroma, pattern, light) <= 0:
            raise ValueError(f"window={window} must be odd and at least 1, and what exponents are divided by above 0")
        self.window, self.margin, self.space = window, window // 2 + 1, space

        def pad(plane):
            return cv2.copyMakeBorder(plane, *[self.margin] * 4, cv2.BORDER_REFLECT_101)

        layer = np.minimum(layer, 255).astype(np.float32)
        channels = [plane.astype(np.float32) for plane in cv2.split(image)]
        derained = [np.maximum(plane - layer, 0) for plane in channels]
        mean, clean = (sum(planes) / 3 for planes in (channels, derained))
        self.rainy, self.strength = layer > 0, 1 - np.exp(-layer / rain)
        self.most = mean - (1 - self.strength) * clean  # less strength * L(q), it is what a draw takes off the channels
        self.light, self.clean = pad(clean), np.stack([pad(plane) for plane in derained])
        self.rain_term = pad(np.maximum(-layer / rain, -70))  # above SMALLEST, so that a pixel's own weight stays the larger
        self.chroma = [pad((b - a) / np.float32(chroma**0.5)) for a, b in zip(channels, channels[1:])]
        self.chroma_sign = np.where(np.max(channels, axis=0) < CUT_OFF, np.float32(-1), np.float32(0))
        self.kernel = np.full((3, 3), -1 / (9 * pattern), np.float32)  # for squared differences of L: their mean, m, ...
        self.kernel[1, 1] -= 1 / light  # ... and the middle one once more
        dy, dx = np.mgrid[:window, :window] - window // 2
        self.shift = (dy * self.light.shape[1] + dx).ravel()  # of each place, in flat pixels of the padded planes

    def weights(self, top, bottom):
        """Yield, place by place, the weights of all pixels in rows top to bottom, (rows, W) float32, and where q is, padded."""
        tall, wide, reach = bottom - top, self.shape[1], self.window // 2

        def at(plane, dy, dx, around=0):
            return plane[top + dy + 1 - around :][: tall + 2 * around, dx + 1 - around :][:, : wide + 2 * around]

        for dy, dx in itertools.product(range(self.window), repeat=2):
            square = cv2.subtract(at(self.light, reach, reach, 1), at(self.light, dy, dx, 1))
            square = cv2.multiply(square, square)
            space_term = -((dy - reach) ** 2 + (dx - reach) ** 2) / self.space
            pattern_and_light = cv2.filter2D(square, -1, self.kernel, delta=space_term)[1:-1, 1:-1]
            exponent = cv2.add(pattern_and_light, at(self.rain_term, dy, dx))
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
            channels, most, strength = cv2.split(expected[rows]), self.most[rows], self.strength[rows]
            total, *taken = (np.zeros(most.shape, np.float32) for _ in range(4))
            cut_off = [np.nonzero(self.rainy[rows] & (channel >= CUT_OFF)) for channel in channels]
            for weight, there in self.weights(rows.start, rows.stop):
                amount = np.maximum(cv2.subtract(most, cv2.multiply(strength, self.light[there])), 0)
                cv2.accumulate(weight, total)
                for channel, cut, clean, sums in zip(channels, cut_off, self.clean, taken):
                    less = cv2.min(amount, channel)
                    if len(cut[0]):
                        less[cut] = np.maximum(channel[cut] - clean[there][cut], 0)
                    cv2.accumulateProduct(weight, less, sums)
            expected[rows] -= np.stack(taken, axis=2) / total[..., None]
        return expected

    def chunks(self):
        for top, pixels in strips(self.rainy, CHUNK // self.window**2):
            weights = self.weights(top, pixels[-1] // self.shape[1] + 1)
            yield pixels, cumulate(np.stack([weight.take(pixels - top * self.shape[1]) for weight, _ in weights]))

    def colours(self, pixels, place):
        """The pixels' own colours less the same whole levels in each channel, as far as it goes; J's where one was cut off."""
        padded = pixels + pixels // self.shape[1] * 2 * self.margin + self.margin * (self.shape[1] + 2 * self.margin + 1)
        drawn = padded + take(self.shift, place)
        light, *clean = (take(plane.reshape(-1), drawn) for plane in (self.light, *self.clean))
        amount = take(self.most.reshape(-1), pixels) - take(self.strength.reshape(-1), pixels) * light
        amount = self.xp.asarray(amount.clip(0, 255).round(), dtype=self.xp.uint8)[:, None]
        colours, clean = take(self.flat, pixels), self.xp.asarray(self.xp.stack(clean, 1).round(), dtype=self.xp.uint8)
        less = colours - self.xp.minimum(colours, amount)
        return self.xp.where(colours >= CUT_OFF, self.xp.minimum(colours, clean), less)


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


def sample_references(image, mask, sdr_num=50, seed=0, independent=False, **parameters):
    """All SDRs of a photograph at once, (sdr_num, H, W, 3) uint8: see `Sampler` and `Sampler.references`."""
    return np.stack(list(Sampler(image, mask, **parameters).references(sdr_num, seed, independent)))


class Fusion:
    """The running sum of SDRs, for the fused reference without holding them all."""

    def __init__(self):
        self.total, self.number = None, 0

    def add(self, reference):
        if self.total is None:
            self.total = np.zeros(reference.shape, np.uint16)
        elif self.number == 257:  # as many values of 255 as 16 bits hold
            self.total = self.total.astype(np.uint32)
        self.total += reference
        self.number += 1

    def mean(self):
        """The fused reference (H, W, 3) uint8: the mean in float64, rounded to nearest, ties to even."""
        return np.stack([np.rint(row / self.number).astype(np.uint8) for row in self.total])  # floats of one row at a time


def fuse(references):
    """The fused reference (H, W, 3) uint8 of SDRs, (N, H, W, 3) or any iterable of (H, W, 3) uint8."""
    fusion = Fusion()
    for reference in references:
        fusion.add(reference)
    return fusion.mean()


def write_references(references, folder, pool, announce=None, note=""):
    """Write SDRs as <folder>/0.png, 1.png, ..., all or none, in the place of older ones. Returns their mean.

    announce: called with ({"0.png": digest of its bytes, ...}, mean) when all are written, before they take their place.
    note: what each file says of itself, see `png_bytes`.
    Raises ImageError where the folder is a link: what it leads to is not ours to write to.
    """
    if folder.is_symlink():
        raise ImageError(f"{folder}: a link, through which references would be written elsewhere; remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    fusion, pending, digests = Fusion(), deque(), {}
    new = Path(tempfile.mkdtemp(**unfinished(folder.parent)))

    def write(name, reference):
        data = png_bytes(reference, PNG_FAST, note)
        write_bytes(new / name, data)
        digests[name] = digest(data)

    try:
        try:
            for number, reference in enumerate(references):
                pending.append(pool.submit(write, f"{number}.png", reference))
                fusion.add(reference)
                if len(pending) > 2 * os.cpu_count():  # large references must not pile up in memory
                    pending.popleft().result()
        finally:
            wait(pending)  # after a failure too: the folder is about to be removed
        for writing in pending:
            writing.result()
        new.chmod(0o777 & ~UMASK)
        mean = fusion.mean()
        if announce:
            announce({name: digests[name] for name in sorted(digests)}, mean)
        replace_references(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)  # it is gone where all went well
    return mean


def replace_references(new, folder):
    """Give a new folder of references the place of an old one, whose other files, if any, it takes over."""
    replaced = []
    while True:
        try:
            new.rename(folder)
            break
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        old = Path(tempfile.mkdtemp(**unfinished(folder.parent)))
        old.rmdir()  # it was made for its name
        try:
            folder.rename(old)
        except FileNotFoundError:  # another process is replacing it as well
            continue
        replaced.append(old)
    for old in replaced:
        for path in old.iterdir():
            if path.suffix == ".png" and path.stem.isdigit():
                path.unlink()
            else:
                path.rename(folder / path.name)
        old.rmdir()


def add_nss_flags(parser):
    """The flags of NSS, here and in sdrl_online.py."""
    parser.add_argument("--sdr_num", type=run.number(int, 1, 100_000), default=50, help="references an image")
    parser.add_argument("--K", type=run.number(int, 1, 255), default=7, help="paper: pixels a side of the window of candidates")
    parser.add_argument("--k", type=run.number(int, 1, 255, odd=True), default=3,
                        help="paper: pixels a side of the window compared")
    parser.add_argument("--pow", type=run.number(float, 0, 4), default=0.5, help="paper: exponent of the distance, its eta")
    parser.add_argument("--threshold", type=run.number(int, 0, 255), default=10,
                        help="paper: pixels with a mask above it are filled")


def nss_options(args):
    """The parameters of `Sampler` among parsed flags."""
    return {"K": args.K, "k": args.k, "pow": args.pow, "threshold": args.threshold}


def main(args):
    fast = args.recipe == "fast"
    hint = (f'run ldgp.py first: python ldgp.py --input_path="{args.input_path}" --save_path="{args.ldgp_path}"'
            + " --recipe=fast" * fast)
    inputs, masks = list_images(args.input_path), list_images(args.ldgp_path, hint)
    first = next((masks[stem][0] for stem in inputs if stem in masks), None)
    if first:  # before anything is moved or made: the folder is probably all of this kind
        check_note(first, LAYER if fast else "", hint)
    pool = ThreadPoolExecutor()
    settings = {"recipe": args.recipe, **{name: getattr(args, name) for name in ("sdr_num", "seed", "independent")}}
    settings.update({} if fast else nss_options(args))

    def results(path):
        return {"references": Path(args.save_path) / path.stem, "fused": Path(args.fuse_save_path) / f"{path.stem}.png"}

    def sources(path):
        return path, companion(masks, path, args.ldgp_path, hint)

    record = Record("sdr.py", settings, results, sources, overwrite=args.overwrite)

    def work(path, bar):
        image = read_image(path)
        _, mask_path = sources(path)
        scale = check_note(mask_path, LAYER if fast else "", hint)
        mask = read_mask(mask_path)
        check_size(mask, mask_path, image, path)
        sampler = ScaledSampler(image, mask, scale) if fast else Sampler(image, mask, **nss_options(args))
        note, fused = f"{GUIDED}, scale {scale}" if fast else "", []

        def announce(digests, mean):
            fused.append(png_bytes(sampler.fused() if fast else mean, note=note))
            names = {f"references/{name}": value for name, value in digests.items()}
            record.enter(path, {**names, "fused": digest(fused[0])})

        references = sampler.references(args.sdr_num, args.seed, args.independent)
        write_references(references, results(path)["references"], pool, announce, note)
        write_bytes(results(path)["fused"], fused[0])
        bar.set_postfix_str(f"filled {np.mean(mask > (0 if fast else args.threshold)):.0%}", refresh=False)

    return run.each_image(inputs, work, args.save_path, args.fuse_save_path, record=record)


if __name__ == "__main__":
    parser = run.Parser(__doc__)
    folder = "./dataset/Rain100L/"
    parser.add_argument("--input_path", default=folder + "input/", help="photographs")
    parser.add_argument("--ldgp_path", default=folder + "ldgp/", help="their masks or layers, by ldgp.py")
    parser.add_argument("--recipe", default="paper", choices=["paper", "fast"],
                        help="paper: NSS on masks; fast: guided samples on layers, and their exact mean")
    parser.add_argument("--save_path", default=folder + "sdr/", help="where the references go, a folder an image")
    parser.add_argument("--fuse_save_path", default=folder + "sdr(fuse)/", help="where their means go")
    add_nss_flags(parser)
    parser.add_argument("--seed", type=run.number(int, 0, 2**32 - 1), default=0, help="of the random draws")
    parser.add_argument("--independent", action="store_true",
                        help="every pixel draws numbers of its own; published: the same numbers for all")
    run.add_overwrite_flag(parser)
    run.start(main, parser)
