"""Scores of a derained photograph: PSNR and SSIM under three protocols, which must not be mixed, and scores of pyiqa."""
import contextlib
import math
import sys
from textwrap import shorten
from typing import Callable, NamedTuple

import numpy as np
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from utils.image import ImageError, check_image, uint8_to_tensor


class Protocol(NamedTuple):
    """How two photographs are compared."""

    name: str
    about: str
    view: Callable  # of (H, W, 3) uint8 BGR: the channels that are compared, with a peak of 255
    window: int  # pixels a side of the SSIM window: no image may be smaller
    ssim: dict  # options of skimage's structural_similarity


def luma(image):
    """Return MATLAB's Y of YCbCr (ITU-R BT.601), not rounded: (H, W, 3) uint8 BGR to (H, W) float64 in [16, 235]."""
    return 16 + image @ np.array([24.966, 128.553, 65.481]) / 255


def rounded_luma(image):
    """Return `luma` rounded to nearest, halves up, by whole numbers alone: (H, W, 3) uint8 BGR to (H, W) uint8."""
    thousandths = image @ np.array([24966, 128553, 65481])
    return (16 + (thousandths + 127500) // 255000).astype(np.uint8)


# Wang et al., Image quality assessment: from error visibility to structural similarity, IEEE TIP 2004: an 11x11 Gaussian
# window, population variance. skimage's mean leaves out the margin where it does not fit.
WANG = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}

PROTOCOLS = {
    "rgb": Protocol("RGB", "8-bit RGB, SSIM in a uniform 7x7 window", lambda image: image, 7, {"channel_axis": 2}),
    "y": Protocol("Y", "8-bit luma, SSIM in an 11x11 Gaussian window", rounded_luma, 11, WANG),
    "y_float": Protocol("Y float", "luma not rounded, SSIM in an 11x11 Gaussian window", luma, 11, WANG),
}

# The scores of pyiqa. Lower is better in all of them. Does it compare with the clean photograph?
EXTRA = {"lpips": True, "niqe": False, "brisque": False}
INSTALL = "pip install pyiqa 'opencv-python-headless<5'"  # pyiqa asks for this OpenCV, which replaces the one that is there


def psnr(image, target, protocol="rgb"):
    """Return the peak signal-to-noise ratio in dB, at a peak of 255; inf for images that are equal under the protocol.

    image, target: (H, W, 3) uint8 BGR, else ValueError. protocol: a key of `PROTOCOLS`; "rgb" is the Rain2Avoid papers'.
    """
    check_image(image)
    check_image(target)
    view = PROTOCOLS[protocol].view
    with np.errstate(divide="ignore"):
        return float(peak_signal_noise_ratio(view(target), view(image), data_range=255))


def ssim(image, target, protocol="rgb"):
    """Return the SSIM of Wang et al. (IEEE TIP 2004), at most 1. As `psnr`, but with ImageError for a side below the window."""
    check_image(image)
    check_image(target)
    _, _, view, window, options = PROTOCOLS[protocol]
    if min(image.shape[:2]) < window:
        raise ImageError(f"{image.shape[1]}x{image.shape[0]} pixels is too small: this SSIM needs at least {window} a side")
    return float(structural_similarity(view(target), view(image), data_range=255, **options))


def scores(image, target, protocols=tuple(PROTOCOLS)):
    """Return PSNR and SSIM as {"psnr_rgb": dB, "ssim_rgb": ..., "psnr_y": ...}. Parameters and errors as of `psnr`, `ssim`."""
    return {f"{score.__name__}_{name}": score(image, target, name) for name in protocols for score in (psnr, ssim)}


def extra_score(name):
    """Return a score of the package pyiqa as a function (image, target) -> float.

    name: a key of `EXTRA`. The images are (H, W, 3) uint8 BGR; the target may be None where EXTRA says that none is needed.
    Raises ImageError where pyiqa or its weights are missing. The function raises it for an image that has no such score.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):  # pyiqa prints what it loads
            import pyiqa

            metric = pyiqa.create_metric(name, device="cpu")
    except ImportError as error:
        raise ImageError(f"--extra {name}: not scored, needs the package pyiqa; run: {INSTALL} ({error})") from None
    except Exception as error:  # of many kinds, by where its weights come from
        raise ImageError(f"--extra {name}: not scored, pyiqa could not load its weights, which it downloads the first time; "
                         f"run it once with a connection ({shorten(str(error), 100)})") from None

    def score(image, target=None):
        tensors = [uint8_to_tensor(array) for array in ((image, target) if EXTRA[name] else (image,))]
        try:
            value = float(metric(*tensors))
        except (RuntimeError, ValueError, AssertionError) as error:
            raise ImageError(f"{name} cannot be computed ({shorten(str(error), 100)}); leave out --extra {name}") from None
        if not math.isfinite(value):
            raise ImageError(f"{name} is {value} here; leave out --extra {name}")
        return value

    return score


def mean_scores(rows):
    """Return the mean of each score over images, {score: mean}. rows: a list of {score: value}, not empty.

    The infinite PSNR of a perfect image has no place in a mean: an image that has one is left out of every PSNR mean, so
    that all of them are over the same images. Where no other is left, they are inf.
    """
    finite = [row for row in rows if all(map(math.isfinite, row.values()))] or rows
    return {key: float(np.mean([row[key] for row in (finite if "psnr" in key else rows)])) for key in rows[0]}
