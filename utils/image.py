"""Reading, writing, listing and converting images: the only owner of all four.

Images in memory are arrays (H, W, 3) of uint8 in OpenCV's order, blue, green, red; masks are (H, W) of uint8.
"""
import contextlib
import io
import logging
import os
import re
import struct
import unicodedata
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

Image.init()  # loads all readers now: a Ctrl-C while one is loaded later could read as a damaged file
READ_ALONE = {".gif", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".tga"}  # not written
READ_ALONE |= {".avif"} if "AVIF" in Image.OPEN else set()  # from Pillow 11.3 on
EXTENSIONS = {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".bmp", ".dib", ".tif", ".tiff", ".webp"} | READ_ALONE
WRITTEN = "PNG", "JPEG", "BMP", "TIFF", "WEBP"  # results of the others are PNG files
# By content, and no other: among Pillow's 40 one starts Ghostscript. TGA is last, as it has no signature.
FORMATS = tuple(name for name in (*WRITTEN, "GIF", "AVIF", "JPEG2000", "PPM", "TGA") if name in Image.OPEN)
DEEP = {"AVIF": rb"av1C..[\x40-\x7f\xc0-\xff]", "JPEG2000": rb"\xff\x4f\xff\x51.{38}[\x08-\x7f\x88-\xff]"}  # over 8 bits
# Kinds that people have and that are not read, and how images begin whose extension says nothing.
UNREAD = set(".heic .heif .hif .avif .jxl .jxr .psd .psb .xcf .exr .hdr .qoi .cr2 .cr3 .crw .nef .nrw .arw .sr2 .dng .orf .rw2 "
             ".rwl .raf .pef .srw .x3f .3fr .iiq .kdc .dcr .mrw .mef .erf".split())
SIGNATURE = re.compile(rb"\xff\xd8\xff|\x89PNG|GIF8|II\*\0|MM\0\*|RIFF....WEBP|\0\0\0\x0cjP|....ftyp(hei|mif1|avif)|8BPS", re.S)

logging.getLogger("PIL").addHandler(logging.NullHandler())  # else what it logs of a damaged file is a line on stderr

# For files that are many and soon read again: half the time of compression level 1 for files 14% larger.
PNG_FAST = (cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY)


class ImageError(ValueError):
    """A file or folder that cannot be used; its text is one line for the user that names it and says what to do."""

    def __str__(self):
        return one_line(super().__str__())


def one_line(text):
    """Escape the line ends, control characters and undecodable bytes of a text, as names of files may hold them."""
    return "".join(repr(char)[1:-1] if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") else char for char in str(text))


def expand_home(value):
    """Expand ~ at the start of a path or behind NAME=, in texts and lists of them; other values stay."""
    if isinstance(value, list):
        return [expand_home(part) for part in value]
    name = re.match("(?:[^/~]*=)?", value)[0] if isinstance(value, str) else None
    return value if name is None else name + os.path.expanduser(value.removeprefix(name))


def data_set(name):
    """Return the folder of a data set: ./dataset/<name>, or the one whose path was given as its name."""
    folder = Path("dataset", name)
    return Path(name) if len(Path(name).parts) > 1 and not folder.is_dir() else folder


def natural_order(name):
    """Return a sort key that puts 2 before 10."""
    return [int(part) if part.isdecimal() else part.lower() for part in re.split(r"(\d+)", str(name))]


def image_files(folder, hint="put the images there or name another one", optional=False):
    """Return the paths of a folder's image files, which their extension tells, in natural order.

    Hidden files and sub-folders are no images. Broken links are listed; reading one reports the error.
    Raises ImageError, with `hint` on what to do, where the folder is missing or holds no image, unless it is `optional`.
    """
    folder = Path(folder)
    paths = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in EXTENSIONS
             and not path.name.startswith(".") and not path.is_dir()] if folder.is_dir() else []
    if not paths and not optional:
        reason = f"no image in this folder (looked for {' '.join(sorted(EXTENSIONS))})" if folder.is_dir() else "no such folder"
        raise ImageError(f"{folder}: {reason}; {hint}")
    return sorted(paths, key=lambda path: natural_order(path.stem))


def list_images(folder, hint="put the images there or name another one", optional=False):
    """Return a folder's image files as {stem: path}, in natural order of the stems.

    Raises ImageError as `image_files` does, and where two images share a stem: their results would overwrite each other.
    """
    images = {}
    for path in image_files(folder, hint, optional):
        if path.stem in images:
            raise ImageError(f"{folder}: {images[path.stem].name} and {path.name} share a name; rename or remove one")
        images[path.stem] = path
    return images


def unread_images(folder):
    """Return the names of a folder's image files that are not read: .heic, raw files, images without an image's extension."""
    def begins_as_image(path):
        with contextlib.suppress(OSError), open(path, "rb") as file:
            return SIGNATURE.match(file.read(16)) is not None
        return False

    paths = [path for path in Path(folder).iterdir() if not path.name.startswith(".") and path.is_file()
             and path.suffix.lower() not in EXTENSIONS]
    return sorted(path.name for path in paths if path.suffix.lower() in UNREAD or begins_as_image(path))


def matching_file(files, image_path, folder, hint):
    """Return the path of an image's mask, target, ... by its stem, among `files` as `list_images(folder)` returns them.

    Raises ImageError with `hint` on how to make it where there is none.
    """
    if Path(image_path).stem not in files:
        raise ImageError(f"{image_path}: nothing for it in {folder}; {hint}")
    return files[Path(image_path).stem]


def open_image(path):
    """Decode a file to a PIL image, upright. Raises ImageError as `read_image` does."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow warns of does no harm, or is raised as an error next
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            # Pillow cuts 16-bit colour down to 8 bits without a word; its decoder's raw mode or a TIFF's tag still tells.
            deep = np.max(getattr(image, "tag_v2", {}).get(258, 8)) > 8
            deep = deep or image.format in DEEP and re.search(DEEP[image.format], data, re.S)
            if image.format == "PPM" and isinstance(image.tile[0][3], tuple):
                deep = image.tile[0][3][-1] > 255  # its largest value
            if deep or image.mode[0] in "IF" or any(re.search(r";16[BLN]", str(tile)) for tile in image.tile):
                raise ImageError(f"{path}: more than 8 bits a channel; convert it to 8 bits first")
            image.load()
            with contextlib.suppress(Exception):  # a damaged EXIF block is no damage to the picture
                ImageOps.exif_transpose(image, in_place=True)
        return image
    except (ImageError, MemoryError):
        raise
    except UnidentifiedImageError:
        what = "not a kind of TIFF" if data[:4] in (b"II*\0", b"MM\0*") else "not an image"
        raise ImageError(f"{path}: {what} that can be read; replace it by a PNG or JPEG of 8 bits a channel") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{path}: more than {2 * Image.MAX_IMAGE_PIXELS // 10**6} megapixels; make it smaller") from None
    except Exception as error:  # Pillow raises many kinds for a damaged file; all mean the same to the user
        raise ImageError(f"{path}: damaged or cut short ({error or type(error).__name__}); replace it") from None


def read_image(path):
    """Read an image file, upright, as (H, W, 3) uint8 BGR. Grey becomes three equal channels; alpha is left out.

    Raises ImageError for a file that is missing, no image, cut short, of more than 8 bits a channel, or of more pixels than
    Pillow takes for safe.
    """
    return cv2.cvtColor(np.asarray(open_image(path).convert("RGB")), cv2.COLOR_RGB2BGR)


def read_mask(path):
    """Read a mask or rain layer as (H, W) uint8, colours as grey. Raises ImageError as `read_image` does."""
    return np.array(open_image(path).convert("L"))


def check_image(image):
    """Raise ValueError unless an argument is an image: an array (H, W, 3) of uint8 that has pixels."""
    kind = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    if kind != f"uint8 {np.shape(image)[:2] + (3,)}" or image.size == 0:
        raise ValueError(f"an image must be an array of uint8 (height, width, 3), blue, green, red, not {kind}")


def check_size(other, other_path, image, image_path):
    """Raise ImageError unless two arrays have the same height and width."""
    if other.shape[:2] != image.shape[:2]:
        sizes = [f"{array.shape[1]}x{array.shape[0]}" for array in (other, image)]
        raise ImageError(f"{other_path}: {sizes[0]}, but {image_path} is {sizes[1]}; make it again for this image")


def png_bytes(image, options=(), scale=1):
    """Encode an array (H, W), (H, W, 3) BGR or (H, W, 4) BGRA of uint8 as a PNG file.

    scale: that of a rain layer or reference by the fast recipe, which `read_scale` reads; 1 leaves no trace in the file.
    """
    data = cv2.imencode(".png", image, list(options))[1].tobytes()
    if scale == 1:
        return data
    text = b"tEXt" + b"scale\0%d" % scale  # a chunk: its length, type and content, checksum; it follows the head of 33 bytes
    return data[:33] + struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text)) + data[33:]


def read_scale(path):
    """Return the scale that is written in a layer or reference; 1 where none is."""
    text = open_image(path).info.get("scale", "")
    return int(text) if re.fullmatch("[1-9][0-9]{0,4}", str(text)) else 1


def write_bytes(path, data):
    """Write a file atomically: under another name first, then moved into place. Raises OSError naming the file."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.part")
    try:
        try:
            temporary.write_bytes(data)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # not the name that the user has never seen


def shrink(image, scale):
    """Shrink an image (H, W, ...) by a whole factor: each pixel is the mean of the area it stands for."""
    if scale == 1:
        return image
    height, width = (max(1, round(side / scale)) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def uint8_to_tensor(image, device=None):
    """Convert an array or tensor (H, W, 3), BGR in [0, 255], to a float32 tensor (1, 3, H, W), RGB in [0, 1]."""
    import torch  # here, so that the stages that learn nothing do not wait for it

    tensor = torch.as_tensor(np.ascontiguousarray(image) if isinstance(image, np.ndarray) else image).to(device)
    return tensor.flip(-1).permute(2, 0, 1)[None].contiguous().float() / 255


def tensor_to_uint8(tensor):
    """Convert a tensor (1, 3, H, W), RGB, to (H, W, 3) uint8 BGR: clipped to [0, 1], times 255, rounded to nearest."""
    rgb = (tensor[0].float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return np.ascontiguousarray(rgb[..., ::-1])
