"""Photographs with what their results keep of their files, and the mark by which a file tells that it was made here.

A name says nothing about who made a file. So the EXIF tag Software, which programs set for this, says it: DERAINED or LAYER. A
BMP file, which has no EXIF, says it in the four bytes of its head that are left to programs.
"""
import contextlib
import io
import re
import warnings
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from utils.image import FORMATS, WRITTEN, ImageError, open_image

SOFTWARE = 0x0131  # the EXIF tag
DERAINED, LAYER = "Rain2Avoid: derained photograph", "Rain2Avoid: rain layer"
BMP_MARK = b"R2A\0"  # of DERAINED; at the bytes 6 to 10
# Of a TIFF's tags, those of EXIF: the others say how its pixels were stored.
TIFF_TAGS = {*range(0x010D, 0x0111), 0x0132, 0x013B, 0x013C, 0x4746, 0x4749, 0x8298, 0x8769, 0x8825, *range(0x9C9B, 0x9CA0)}
SAVE = {"PNG": {"compress_level": 1}, "JPEG": {"quality": 95}, "WEBP": {"quality": 95}}  # options of Pillow


class Photograph(NamedTuple):
    """An image file, upright, with what its results keep."""

    image: np.ndarray  # (H, W, 3) uint8 BGR; grey is three equal channels
    grey: bool  # whether the file has no colours
    alpha: Image.Image | None  # its transparency
    format: str  # one of WRITTEN
    about: dict  # what its results keep, as options of Pillow: EXIF with the mark, colour profile, dpi, WebP without loss
    frames: int = 1  # of which the image is the first

    def notice(self, other=None):
        """Return a notice for the user of frames that are left out, and another one; None where there is neither."""
        return "; ".join(filter(None, [other, "only the first of several frames read" if self.frames > 1 else None])) or None


@contextlib.contextmanager
def tolerant():
    """Leave a block, without a word, at what Pillow cannot read in a file whose first picture is whole."""
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_photograph(path):
    """Read an image file and what its results keep, as a `Photograph`. Raises ImageError as `read_image` does."""
    picture = open_image(path)
    alpha = picture.convert("RGBA").getchannel("A") if picture.has_transparency_data else None
    kind = {**dict(zip(WRITTEN, WRITTEN)), "MPO": "JPEG"}.get(picture.format, "PNG")  # MPO is of some cameras
    about = {name: picture.info[name] for name in ("icc_profile", "dpi") if picture.info.get(name)}
    about["exif"] = marked_exif(DERAINED, picture)
    if picture.mode == "CMYK":
        about.pop("icc_profile", None)  # it is not of red, green and blue
    if not all(0 < float(dots) < 1e6 for dots in about.get("dpi", ())):  # such as 0/0, which could not be written
        about.pop("dpi")
    frames = 1
    with tolerant():
        data = Path(path).read_bytes()
        if kind == "WEBP" and re.search(b"VP8[ L]", data)[0] == b"VP8L":  # the first frame's kind
            about |= {"lossless": True, "quality": 50}  # then quality is effort
        with Image.open(io.BytesIO(data), formats=FORMATS) as again:  # counting moves from frame to frame
            frames = again.n_frames if picture.format != "MPO" else 1  # its others are views and depths
    image = cv2.cvtColor(np.asarray(picture.convert("RGB")), cv2.COLOR_RGB2BGR)
    return Photograph(image, picture.mode in ("L", "1", "LA"), alpha, kind, about, frames)


def marked_exif(mark, picture=None):
    """Return EXIF as bytes: a mark, and that of a picture without its thumbnail, which shows the rain; of a TIFF its TIFF_TAGS.

    What is damaged, or more than a JPEG file takes, is left out.
    """
    with tolerant():
        exif = picture.getexif()
        for tag in set(exif) - TIFF_TAGS if picture.format == "TIFF" else ():
            del exif[tag]
        exif[SOFTWARE], exif.bigtiff = mark, False  # of a BigTIFF, which other formats do not hold
        data = exif.tobytes()
        if len(data) <= 65533 or picture.format not in ("JPEG", "MPO"):
            return data
    exif = Image.Exif()
    exif[SOFTWARE] = mark
    return exif.tobytes()


def mark_of(path):
    """Return the mark of a file, DERAINED or LAYER, if it was made here, else None."""
    with tolerant(), Image.open(path, formats=FORMATS) as picture:  # whatever is no image has none
        if picture.format == "BMP":
            return DERAINED if Path(path).read_bytes()[6:10] == BMP_MARK else None
        return {DERAINED: DERAINED, LAYER: LAYER}.get(picture.getexif().get(SOFTWARE))
    return None


def check_made_here(path):
    """Raise ImageError for a path at which there is something that was not made here, and so must not be replaced."""
    if path.exists() and not mark_of(path):
        raise ImageError(f"{path}: does not say that it was made by this program, so it is not replaced; rename it, or name "
                         "another folder for the results")


def layer_bytes(layer):
    """Encode a rain layer (H, W) uint8 as a PNG file with its mark."""
    buffer = io.BytesIO()
    Image.fromarray(layer).save(buffer, "PNG", exif=marked_exif(LAYER), **SAVE["PNG"])
    return buffer.getvalue()


def photograph_bytes(derained, original, format="PNG"):
    """Encode a derained image as a file, with its mark and the alpha, EXIF, colour profile and dpi of its `Photograph`.

    derained: (H, W, 3) uint8 BGR. From a grey photograph the file is grey.
    """
    code = cv2.COLOR_BGR2GRAY if original.grey else cv2.COLOR_BGR2RGB
    picture, buffer = Image.fromarray(cv2.cvtColor(derained, code)), io.BytesIO()
    if original.alpha:
        picture.putalpha(original.alpha)
    picture.save(buffer, format, **{**SAVE.get(format, {}), **original.about})
    data = buffer.getvalue()
    return data[:6] + BMP_MARK + data[10:] if format == "BMP" else data
