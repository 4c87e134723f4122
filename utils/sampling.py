"""Drawing stochastic derained references (SDRs) from cumulative weights: what NSS and the guided samples share.

A sampler has `image`, (H, W, 3) uint8; `chunks()`, which yields pixels (F,) as flat indices and the cumulative weights (S, F)
of the S places of their windows; and `colours(pixels, place)`, the (F, 3) uint8 colours that a draw gives.
"""
import os
import shutil
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from utils.image import PNG_FAST, png_bytes

CHUNK = 1 << 20  # weights held at once, about: photographs are worked on in strips


def strips(filled, size):
    """Split a mask (H, W) bool into strips of about `size` pixels; yield each one's first row and set pixels, flat indices."""
    height, width = filled.shape
    rows = max(1, size // width)
    for top in range(0, height, rows):
        pixels = np.flatnonzero(filled[top : top + rows])
        if len(pixels):
            yield top, pixels + top * width


def cumulate(weight):
    """Return the cumulative weights (S, F) float64 of weights (S, F) float32, divided by the last of them."""
    cumulative = np.cumsum(weight, axis=0, dtype=np.float64)
    cumulative /= cumulative[-1].copy()
    return cumulative


def draw_references(sampler, sdr_num=50, seed=0, independent=False):
    """Yield SDRs one by one, each (H, W, 3) uint8. Raises ValueError for a sdr_num below 1.

    As published, all pixels share np.random.seed(seed) and np.random.random_sample(sdr_num), but not if `independent`.
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


def fuse(references):
    """Return the mean of an iterable of SDRs, (H, W, 3) uint8 each, held one at a time: rounded to nearest, ties to even."""
    references = iter(references)
    total, number = next(references).astype(np.uint32), 1
    for number, reference in enumerate(references, 2):
        total += reference
    return np.stack([np.rint(row / number).astype(np.uint8) for row in total])  # floats of one row at a time


def write_references(references, folder, scale=1):
    """Write SDRs as <folder>/0.png, 1.png, ..., all or none, replacing older ones; return their mean. scale: of `png_bytes`."""
    new, pending = folder.with_name(f".{folder.name}.part"), deque()
    shutil.rmtree(new, ignore_errors=True)  # a killed run's
    new.mkdir(parents=True)

    def write(path, reference):
        path.write_bytes(png_bytes(reference, PNG_FAST, scale))

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
    finally:
        shutil.rmtree(new, ignore_errors=True)  # what a failure left
    return mean
