"""NSS: replace likely rain at random by similar rain-free neighbours, which gives stochastic derained references (SDRs).

    python sdr.py --input_path="./dataset/Rain100L/input/" --ldgp_path="./dataset/Rain100L/ldgp/" \\
        --save_path "./dataset/Rain100L/sdr/" --fuse_save_path "./dataset/Rain100L/sdr(fuse)/"
"""
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
from typing import NamedTuple

if __name__ == "__main__":  # while libraries load, Ctrl-C ends without a word; `run.start` answers it from then on
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import cv2
import numpy as np

from utils import run
from utils.image import (PNG_FAST, UMASK, ImageError, check_size, companion, list_images, png_bytes, read_image, read_mask,
                         unfinished, write_bytes)
from utils.record import Record, digest

STRIP_PIXELS = 1 << 19  # an image is worked on in strips of about this many pixels, which bounds the memory


class Block(NamedTuple):
    """The filled pixels of one strip that have candidates, sorted by how many; candidates in row-major order."""

    filled: np.ndarray  # (F,) flat index of each filled pixel in the image
    count: np.ndarray  # (F,) number of candidates of each
    offset: np.ndarray  # (E,) place of each candidate in the window, E = sum of the counts
    distance: np.ndarray  # (E,) d(p, q)


def check_parameters(K, k, pow, threshold):
    """Raise ValueError for parameters of NSS that have no meaning."""
    if K < 1 or k < 1 or k % 2 == 0:
        raise ValueError(f"K must be at least 1 and k at least 1 and odd, not K={K}, k={k}")
    if not 0 <= pow < float("inf") or not 0 <= threshold <= 255:
        raise ValueError(f"pow must be at least 0 and threshold from 0 to 255, not pow={pow}, threshold={threshold}")


@lru_cache(maxsize=8)
def weight_table(largest, pow):
    """Weights 1 / max(d^pow, 1e-4) of the distances d = 0 .. largest, as float32 (SPEC step 4; paper, section 2.2)."""
    try:
        table = np.array([1 / max(float(d) ** pow, 1e-4) for d in range(largest + 1)]).astype(np.float32)
    except OverflowError:
        table = np.zeros(1, np.float32)
    if table[-1] == 0:
        raise ValueError(f"pow={pow} is too large: weights of this comparison window vanish in float32")
    return table


def neighbour_blocks(image, mask, K=7, k=3, threshold=10):
    """The candidates of every filled pixel and their distances, strip by strip.

    image: (H, W, 3) uint8; mask: (H, W) uint8. Yields `Block`s.
    """
    height, width = mask.shape
    reach = max(K, 3) // 2
    # A pixel that has a candidate has a clear pixel within `reach`, so no comparison window grows beyond that.
    grown = max(k // 2, reach)
    rain = mask > 0
    if not rain.any() or rain.all():
        return
    to_clear = cv2.distanceTransform(rain.astype(np.uint8), cv2.DIST_C, 3)  # chessboard distance to the nearest clear pixel
    half = np.clip(to_clear, k // 2, grown, out=to_clear).astype(np.uint8 if grown < 256 else np.uint16)
    window = (2 * reach + 1, 2 * reach + 1)
    candidates = cv2.boxFilter(np.uint8(~rain), cv2.CV_32S, window, normalize=False, borderType=cv2.BORDER_CONSTANT)
    filled = (mask > threshold) & (candidates > 0)

    pad = reach + grown
    planes = [cv2.copyMakeBorder(plane, pad, pad, pad, pad, cv2.BORDER_CONSTANT, value=0) for plane in cv2.split(image)]
    clear = np.pad(~rain, reach)  # candidates lie inside the image ...
    valid = np.pad(~rain, grown, constant_values=True)  # ... but what is outside takes part in the distance, as black
    deep = 765 * (2 * grown + 1) ** 2 > 65535
    rows = max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows):
        strip = slice(top, min(top + rows, height))
        place = np.flatnonzero(filled[strip])
        if not len(place):
            continue
        count = candidates[strip].ravel()[place]
        order = np.argsort(count, kind="stable")
        place, count = place[order], count[order]
        yield _strip_block(strip, place, count, half, planes, clear, valid, reach, grown, deep)


def _strip_block(strip, place, count, half, planes, clear, valid, reach, grown, deep):
    """The Block of one strip of rows; place: flat index, within the strip, of its filled pixels."""
    width = half.shape[1]
    tall, wide = strip.stop - strip.start + 2 * grown, width + 2 * grown
    weight = np.where(valid[strip.start : strip.start + tall], np.uint16(0xFFFF), np.uint16(0))
    y, x = np.divmod(place, width)
    centre = (y + grown) * wide + x + grown  # where the pixels lie in the strip with its margins
    halves = half[strip].ravel()[place]
    sizes = [(int(h), np.flatnonzero(halves == h)) for h in np.unique(halves)]
    sum_up = {h: _window_sum(h, centre[which], tall * wide, wide, deep) for h, which in sizes}
    side = 2 * reach + 1
    distance = np.empty((side * side, len(place)), np.int32 if deep else np.uint16)
    is_candidate = np.empty((side * side, len(place)), bool)
    here = [plane[strip.start + reach :][:tall, reach : reach + wide] for plane in planes]
    clear_place = y * clear.shape[1] + x
    clear_rows = clear[strip.start :].ravel()
    for j, (dy, dx) in enumerate(itertools.product(range(side), range(side))):
        there = [plane[strip.start + dy :][:tall, dx : dx + wide] for plane in planes]
        parts = [cv2.absdiff(a, b) for a, b in zip(here, there)]
        difference = cv2.add(cv2.add(parts[0], parts[1], dtype=cv2.CV_16U), parts[2], dtype=cv2.CV_16U)
        difference = cv2.bitwise_and(difference, weight)
        for h, which in sizes:
            if len(sizes) == 1:
                distance[j] = sum_up[h](difference)
            else:
                distance[j, which] = sum_up[h](difference)
        clear_rows.take(clear_place + (dy * clear.shape[1] + dx), out=is_candidate[j])
    edges = np.flatnonzero(is_candidate.T)
    offset = np.tile(np.arange(side * side, dtype=np.min_scalar_type(side * side)), len(place))
    return Block(place + strip.start * width, count, offset[edges], distance.T.ravel()[edges])


def _window_sum(h, centre, area, wide, deep):
    """A function that sums an array over the windows of half width h around the flat places `centre`."""
    side = 2 * h + 1
    if len(centre) * side * side < area // 4:  # few windows: one by one
        window = (np.arange(-h, h + 1)[:, None] * wide + np.arange(-h, h + 1)).ravel()
        places = centre + window[:, None]
        return lambda array: array.take(places).sum(axis=0, dtype=np.int32)
    depth = cv2.CV_32S if deep else cv2.CV_16U
    return lambda array: cv2.boxFilter(array, depth, (side, side), normalize=False).take(centre)


def cumulative_weights(block, table):
    """The cumulative probability of every candidate, (E,) float64, last of each filled pixel exactly 1.

    Weights are normalised by their float32 sum, in NumPy's order of summation over the candidates of one pixel: so they
    are summed in groups of pixels with equally many candidates, a row each.
    """
    cumulative = np.empty(len(block.distance))
    weight = table[block.distance]
    for count, rows, edges in _groups(block):
        group = weight[edges].reshape(rows, count)
        group /= group.sum(axis=1, keepdims=True)
        running = cumulative[edges].reshape(rows, count)
        np.cumsum(group, axis=1, dtype=np.float64, out=running)
        running /= running[:, -1:].copy()
    return cumulative


def _groups(block):
    """Runs of pixels with equally many candidates: (candidates, pixels, slice of their edges)."""
    counts, pixels = np.unique(block.count, return_counts=True)
    ends = np.cumsum(counts * pixels)
    return [(c, n, slice(end - c * n, end)) for c, n, end in zip(counts.tolist(), pixels.tolist(), ends.tolist())]


def _draw_same(block, cumulative, uniforms):
    """The candidates that the same uniform numbers draw for every pixel: window offsets (len(uniforms), F).

    Each number draws the first candidate whose cumulative weight exceeds it. Turned around: a candidate is drawn by those
    of the sorted numbers that lie between its predecessor's cumulative weight and its own.
    """
    order = np.argsort(uniforms, kind="stable")
    below = np.searchsorted(uniforms[order], cumulative, side="left")
    times = np.diff(below, prepend=0)
    firsts = np.cumsum(block.count) - block.count
    times[firsts] = below[firsts]
    drawn = np.repeat(block.offset, times).reshape(-1, len(uniforms))
    result = np.empty(drawn.shape[::-1], drawn.dtype)
    result[order] = drawn.T
    return result


def _draw_own(xp, edges, uniforms):
    """The edge that each pixel's own uniform number draws: (F,), by bisection. xp: numpy or torch, as edges and uniforms."""
    low, high = edges.first, edges.last
    for _ in range((edges.most - 1).bit_length()):
        middle = (low + high) // 2
        beyond = edges.cumulative[middle] <= uniforms  # never at the last edge, where it is 1
        low, high = xp.where(beyond, middle + 1, low), xp.where(beyond, high, middle)
    return low


class Sampler:
    """Non-local stochastic sampling (NSS; paper, section 2.2) of one photograph: built once, drawn from as often as needed.

    image: (H, W, 3) uint8; mask: (H, W) uint8, rain where above 0, filled where above `threshold`, candidates where 0.
    K: pixels a side of the window that candidates come from (at least 3 are used). k: odd, pixels a side of the window
    that is compared; it grows where all of it is rain. pow: exponent of the distance, the paper's eta.
    Raises ValueError for an image or mask of another shape or type and for parameters without meaning.
    """

    def __init__(self, image, mask, K=7, k=3, pow=0.5, threshold=10):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"the image must be (H, W, 3) of uint8, not {image.shape} of {image.dtype}")
        if mask.dtype != np.uint8 or mask.shape != image.shape[:2]:
            raise ValueError(f"the mask must be {image.shape[:2]} of uint8, not {mask.shape} of {mask.dtype}")
        check_parameters(K, k, pow, threshold)
        self.image = np.ascontiguousarray(image)
        self.blocks = list(neighbour_blocks(self.image, mask, K, k, threshold))
        largest = max((int(block.distance.max()) for block in self.blocks), default=0)
        self.table = weight_table(765 * (2 * max(k // 2, max(K, 3) // 2) + 1) ** 2, pow) if largest else np.ones(1, np.float32)
        reach = max(K, 3) // 2
        dy, dx = np.divmod(np.arange((2 * reach + 1) ** 2), 2 * reach + 1)
        self.shift = (dy - reach) * image.shape[1] + dx - reach  # of each window offset, in flat pixels
        self._edges = None

    def references(self, sdr_num=50, seed=0, independent=False):
        """Yield the SDRs one by one, each (H, W, 3) uint8.

        All pixels share the uniform numbers of np.random.seed(seed) and np.random.random_sample(sdr_num), as published;
        with `independent` every pixel has numbers of its own.
        """
        random = np.random.RandomState(seed)
        if independent:
            for _ in range(sdr_num):
                yield self.fresh(random)
            return
        uniforms = random.random_sample(sdr_num)
        drawn = [_draw_same(block, cumulative_weights(block, self.table), uniforms) for block in self.blocks]
        flat = cv2.cvtColor(self.image, cv2.COLOR_BGR2BGRA).view(np.uint32).ravel()  # a pixel a number moves faster
        for n in range(sdr_num):
            reference = flat.copy()
            for block, offsets in zip(self.blocks, drawn):
                reference[block.filled] = flat.take(self.shift.take(offsets[n]) + block.filled)
            yield cv2.cvtColor(reference.view(np.uint8).reshape(*self.image.shape[:2], 4), cv2.COLOR_BGRA2BGR)

    def expectation(self):
        """The mean of infinitely many SDRs, (H, W, 3) float64 in [0, 255]."""
        return self._expected(self.image)

    def variance(self):
        """The variance of infinitely many SDRs, (H, W, 3) float64 in squared values of [0, 255]."""
        squares = self._expected(np.square(self.image, dtype=np.uint16))
        return np.maximum(squares - self.expectation() ** 2, 0)

    def _expected(self, values):
        """The probable value of every pixel's draw, (H, W, 3) float64, of an array (H, W, 3)."""
        flat = values.reshape(-1, 3)
        mean = flat.astype(np.float64)
        for block in self.blocks:
            first, candidate = self._candidates(block)
            probability = np.diff(cumulative_weights(block, self.table), prepend=0)
            probability[first[1:]] += 1  # the difference to the predecessor's last weight, which is 1
            for channel in range(3):
                mean[block.filled, channel] = np.add.reduceat(probability * flat[candidate, channel], first)
        return mean.reshape(values.shape)

    def fresh(self, random):
        """One SDR (H, W, 3) uint8 with every pixel's own draw. random: np.random.RandomState or Generator."""
        if self._edges is None:
            self._edges = self._collect_edges()
        edges = self._edges
        edge = _draw_own(np, edges, random.random(len(edges.filled)))
        reference = self.image.reshape(-1, 3).copy()
        reference[edges.filled] = reference[edges.candidate[edge]]
        return reference.reshape(self.image.shape)

    def to(self, device):
        """The same sampler on a torch device, for drawing there: see `DeviceSampler`."""
        return DeviceSampler(self, device)

    def _candidates(self, block):
        first = np.cumsum(block.count) - block.count
        return first, np.repeat(block.filled, block.count) + self.shift[block.offset]

    def _collect_edges(self):
        parts = []
        for block in self.blocks:
            first, candidate = self._candidates(block)
            parts.append((block.filled, first, block.count, candidate, cumulative_weights(block, self.table)))
        starts = np.cumsum([0] + [len(part[3]) for part in parts])
        joined = [np.concatenate(column) for column in zip(*parts)] if parts else [np.zeros(0, np.int64)] * 5
        filled, first, count, candidate, cumulative = joined
        first = first + np.repeat(starts[: len(parts)], [len(part[0]) for part in parts])
        return Edges(filled, first, first + count - 1, candidate, cumulative, int(count.max(initial=1)))


class Edges(NamedTuple):
    """What a draw per pixel needs, for all filled pixels: F of them, with E candidates together."""

    filled: np.ndarray  # (F,) flat index of each filled pixel
    first: np.ndarray  # (F,) its first candidate among the E
    last: np.ndarray  # (F,) its last one
    candidate: np.ndarray  # (E,) flat index of each candidate
    cumulative: np.ndarray  # (E,) its cumulative probability, float64, the last of each filled pixel 1
    most: int  # candidates that any pixel has


class DeviceSampler:
    """A `Sampler` whose tables lie on a torch device; nothing is copied back while drawing."""

    def __init__(self, sampler, device):
        import torch

        self.torch = torch
        *parts, most = sampler._collect_edges()
        self.edges = Edges(*(torch.from_numpy(part).to(device) for part in parts), most)
        self.image = torch.from_numpy(sampler.image).to(device)
        self.mean = torch.from_numpy(sampler.expectation()).to(device)

    def fresh(self, generator=None):
        """One SDR, (H, W, 3) uint8 tensor, BGR. generator: a torch.Generator of the device, or None for the default one."""
        torch, edges = self.torch, self.edges
        uniforms = torch.rand(len(edges.filled), dtype=torch.float64, device=self.image.device, generator=generator)
        edge = _draw_own(torch, edges, uniforms)
        reference = self.image.reshape(-1, 3).clone()
        reference[edges.filled] = reference[edges.candidate[edge]]
        return reference.reshape(self.image.shape)

    def expectation(self):
        """The mean of infinitely many SDRs, (H, W, 3) float64 tensor in [0, 255]."""
        return self.mean


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


def write_references(references, folder, pool, announce=None):
    """Write SDRs as <folder>/0.png, 1.png, ..., all or none, in the place of older ones. Returns their mean.

    announce: called with ({"0.png": digest of its bytes, ...}, mean) when all are written, before they take their place.
    Raises ImageError where the folder is a link: what it leads to is not ours to write to.
    """
    if folder.is_symlink():
        raise ImageError(f"{folder}: a link, through which references would be written elsewhere; remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    fusion, pending, digests = Fusion(), deque(), {}
    new = Path(tempfile.mkdtemp(**unfinished(folder.parent)))

    def write(name, reference):
        data = png_bytes(reference, PNG_FAST)
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
    parser.add_argument("--K", type=run.number(int, 1, 255), default=7, help="pixels a side of the window of candidates")
    parser.add_argument("--k", type=run.number(int, 1, 255, odd=True), default=3, help="pixels a side of the window compared")
    parser.add_argument("--pow", type=run.number(float, 0, 4), default=0.5, help="exponent of the distance, the paper's eta")
    parser.add_argument("--threshold", type=run.number(int, 0, 255), default=10, help="pixels with a mask above it are filled")


def nss_options(args):
    """The parameters of `Sampler` among parsed flags."""
    return {"K": args.K, "k": args.k, "pow": args.pow, "threshold": args.threshold}


def main(args):
    hint = f'run ldgp.py first: python ldgp.py --input_path="{args.input_path}" --save_path="{args.ldgp_path}"'
    inputs, masks = list_images(args.input_path), list_images(args.ldgp_path, hint)
    pool = ThreadPoolExecutor()
    settings = {**nss_options(args), **{name: getattr(args, name) for name in ("sdr_num", "seed", "independent")}}

    def results(path):
        return {"references": Path(args.save_path) / path.stem, "fused": Path(args.fuse_save_path) / f"{path.stem}.png"}

    def sources(path):
        return path, companion(masks, path, args.ldgp_path, hint)

    record = Record("sdr.py", settings, results, sources, overwrite=args.overwrite)

    def work(path, bar):
        image = read_image(path)
        _, mask_path = sources(path)
        mask = read_mask(mask_path)
        check_size(mask, mask_path, image, path)
        sampler = Sampler(image, mask, **nss_options(args))
        fused = []

        def announce(digests, mean):
            fused.append(png_bytes(mean))
            names = {f"references/{name}": value for name, value in digests.items()}
            record.enter(path, {**names, "fused": digest(fused[0])})

        references = sampler.references(args.sdr_num, args.seed, args.independent)
        write_references(references, results(path)["references"], pool, announce)
        write_bytes(results(path)["fused"], fused[0])
        bar.set_postfix_str(f"filled {np.mean(mask > args.threshold):.0%}", refresh=False)

    return run.each_image(inputs, work, args.save_path, args.fuse_save_path, record=record)


if __name__ == "__main__":
    parser = run.Parser(__doc__)
    folder = "./dataset/Rain100L/"
    parser.add_argument("--input_path", default=folder + "input/", help="photographs")
    parser.add_argument("--ldgp_path", default=folder + "ldgp/", help="their rain masks, by ldgp.py")
    parser.add_argument("--save_path", default=folder + "sdr/", help="where the references go, a folder an image")
    parser.add_argument("--fuse_save_path", default=folder + "sdr(fuse)/", help="where their means go")
    add_nss_flags(parser)
    parser.add_argument("--seed", type=run.number(int, 0, 2**32 - 1), default=0, help="of the random draws")
    parser.add_argument("--independent", action="store_true",
                        help="every pixel draws numbers of its own; published: the same numbers for all")
    run.add_overwrite_flag(parser)
    run.start(main, parser)
