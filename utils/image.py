"""Reading, writing, listing and converting images: the only owner of all four.

Images in memory are arrays (H, W, 3) of uint8 in OpenCV's order, blue, green, red; masks are (H, W) of uint8.
"""
import contextlib
import io
import logging
import os
import re
import socket
import tempfile
import time
import unicodedata
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
FORMATS = ("PNG", "JPEG", "BMP", "TIFF")  # by content, and no other: among Pillow's 40 one starts Ghostscript

# A few kB can claim any number of pixels, so what a header says is looked at before anything is decoded. Cameras have up to
# 400 megapixels; Pillow refuses what is above twice its own limit. Reading takes 10 bytes a pixel (a grey mask: 3), so that
# FREE of them stay below 1 GB whatever the file; above, a file must be as large as photographs are: JPEGs of 100 megapixels
# have 10 MB and more, while PNG reaches 300 pixels a byte with a picture of one colour.
LARGEST = 512 * 10**6
Image.MAX_IMAGE_PIXELS = LARGEST // 2
FREE, FREE_MASK = 64 * 10**6, 200 * 10**6
PIXELS_PER_BYTE = 20

logging.getLogger("PIL").addHandler(logging.NullHandler())  # else what it logs of a damaged file is a line on stderr

# Options of `write_png` for files that are many and soon read again. By measurement on references of 480x320, this is half
# the time of compression level 1 for files 14% larger (`python -m utils.benchmark sdr` prints the table).
PNG_FAST = (cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY)

# What turns a photograph upright, by its EXIF orientation.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(ValueError):
    """A file or folder that cannot be used; its text is one line for the user that names it and says what to do."""

    def __str__(self):
        return one_line(super().__str__())


def one_line(text):
    """A text with the line ends, control characters and undecodable bytes that names of files may hold spelt out."""
    return "".join(repr(char)[1:-1] if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") else char for char in str(text))


def natural_order(name):
    """Sort key that puts 2 before 10."""
    return [int(part) if part.isdecimal() else part.lower() for part in re.split(r"(\d+)", str(name))]


def list_images(folder, hint="put the images there or name another one", optional=False):
    """The images of a folder, as {stem: [path, ...]} in natural order of the stems.

    Files that are no images by their extension (any letter case), hidden files, sub-folders and devices are passed over. A
    stem with several paths is a clash, which `only` reports; a link to nothing is listed, for reading it to report.
    Raises ImageError, with `hint` on what to do, where the folder is missing or holds no image; nothing where it is optional.
    """
    folder = Path(folder)
    if not folder.is_dir() and not optional:
        raise ImageError(f"{folder}: no such folder; {hint}")
    found = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        image = path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")
        if image and (path.is_file() or path.is_symlink() and not os.path.exists(path)):
            found.setdefault(path.stem, []).append(path)
    if not found and not optional:
        raise ImageError(f"{folder}: no image in this folder (looked for {' '.join(sorted(EXTENSIONS))}); {hint}")
    return dict(sorted(found.items(), key=lambda item: natural_order(item[0])))


def only(paths):
    """The one path of a stem. Raises ImageError where several files share it: their results would overwrite each other."""
    if len(paths) > 1:
        names = " and ".join(path.name if path.parent == paths[0].parent else str(path) for path in paths)
        raise ImageError(f"{paths[0].parent}: {names} share the name '{paths[0].stem}'; rename or remove all but one")
    return paths[0]


def _open(path, mask=False):
    """A fully decoded PIL image, turned upright as its EXIF orientation says."""
    path = Path(path)
    try:
        if path.stat().st_size > 4 * LARGEST:
            raise ImageError(f"{path}: larger than {4 * LARGEST / 1e9:.0f} GB; make it smaller")
        data = path.read_bytes()
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file" + (" (a link to nothing)" if path.is_symlink() else "")) from None
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow warns of does no harm, or is raised as an error next
            return _decode(data, path, mask)
    except ImageError:
        raise
    except UnidentifiedImageError:
        formats = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        raise ImageError(f"{path}: not an image that can be read; remove it or replace it by a {formats} file") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{path}: more than {LARGEST // 10**6} megapixels; make it smaller") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises many kinds for a damaged file; all mean the same to the user
        raise ImageError(f"{path}: damaged or cut short ({error or type(error).__name__}); replace it") from None


def _decode(data, path, mask):
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    pixels = image.width * image.height
    free = FREE_MASK if mask and image.mode in ("L", "1") else FREE
    if pixels > max(free, PIXELS_PER_BYTE * len(data)):
        raise ImageError(f"{path}: claims {image.width}x{image.height} pixels, too many for a file of {len(data)} bytes; "
                         "replace it")
    # Each scan of a progressive JPEG goes over the whole picture, and takes as little as 100 bytes to ask for. Photographs
    # have some ten; two bytes in 65536 look like one in what may follow the picture.
    if image.format in ("JPEG", "MPO") and data.count(b"\xff\xda") > 100 + len(data) // 10_000:
        raise ImageError(f"{path}: a JPEG file of too many scans; replace it")
    # Pillow cuts 16-bit colour down to 8 bits without a word; the raw mode of its decoder still tells.
    if image.mode[0] in "IF" or any(re.search(r";16[BLN]", str(tile)) for tile in image.tile):
        raise ImageError(f"{path}: more than 8 bits a channel; convert it to 8 bits first")
    with _quiet_libtiff() if image.format == "TIFF" else contextlib.nullcontext():
        image.load()
    try:
        turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # as many for a damaged EXIF block, which is no damage to the picture
        turn = None
    return image if turn is None else image.transpose(turn)


@contextlib.contextmanager
def _quiet_libtiff():
    """Keep libtiff, which writes to the process's stderr by itself, from adding lines to the one that is about to be raised."""
    try:
        kept = os.dup(2)
    except OSError:  # there is no stderr
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def read_image(path):
    """An image file as (H, W, 3) uint8, BGR. Grey becomes three equal channels; alpha is left out (see `png_like`).

    Raises ImageError for a file that is missing, no image, cut short, of more than 8 bits a channel, or of more pixels than
    a photograph of its size can have (`PIXELS_PER_BYTE`).
    """
    return cv2.cvtColor(np.asarray(_open(path).convert("RGB")), cv2.COLOR_RGB2BGR)


def read_mask(path):
    """A mask file as (H, W) uint8; a mask in colour is turned to grey. Raises ImageError as `read_image` does."""
    image = _open(path, mask=True)
    if image.mode in ("L", "1"):
        return np.array(image.convert("L"))
    return cv2.cvtColor(np.asarray(image.convert("RGB")), cv2.COLOR_RGB2GRAY)


def companion(files, image_path, folder, hint):
    """The path of an image's companion (its mask, target, ...) among `files` of `list_images(folder)`, by stem.

    Raises ImageError with `hint` on how to make it where there is none.
    """
    if Path(image_path).stem not in files:
        raise ImageError(f"{image_path}: nothing for it in {folder}; {hint}")
    return only(files[Path(image_path).stem])


def check_size(other, other_path, image, image_path):
    """Raise ImageError unless two arrays have the same height and width."""
    if other.shape[:2] != image.shape[:2]:
        sizes = [f"{array.shape[1]}x{array.shape[0]}" for array in (other, image)]
        raise ImageError(f"{other_path}: {sizes[0]}, but {image_path} is {sizes[1]}; make it again for this image")


def check_results_folder(folder):
    """Raise ImageError unless `folder` is one that files can be written to, or can be made: before hours of work, not after."""
    folder = Path(folder)
    existing = next(part for part in (folder, *folder.parents) if part.exists() or part.is_symlink())
    if not existing.is_dir():
        raise ImageError(f"{existing}: a file, but a folder for results is needed there; move it or name another folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ImageError(f"{existing}: no permission to write there; name another folder for the results")


def png_bytes(image, options=(), note=""):
    """An array (H, W), (H, W, 3) BGR or (H, W, 4) BGRA of uint8 as the bytes of a PNG file, with a note for `read_note`."""
    ok, data = cv2.imencode(".png", image, list(options))
    if not ok:
        raise ImageError(f"an array of shape {image.shape} and type {image.dtype} cannot be written as PNG")
    data = data.tobytes()
    if note:
        text = b"tEXt" + NOTE + note.encode("latin-1")
        chunk = (len(text) - 4).to_bytes(4, "big") + text + zlib.crc32(text).to_bytes(4, "big")
        data = data[:HEADER] + chunk + data[HEADER:]
    return data


NOTE = b"Rain2Avoid\0"  # the keyword of the PNG text that says what a file is, which its pixels do not
LAYER, GUIDED = "rain layer", "guided"  # how notes of the fast recipe start: of layers; of references and their means
HEADER = 33  # bytes of a PNG file's signature and first chunk


def read_note(path):
    """The note that `png_bytes` put into a file; "" where there is none, or no such file."""
    try:
        with open(path, "rb") as file:
            start = file.read(HEADER + 1000)
    except OSError:
        return ""
    size, text = int.from_bytes(start[HEADER : HEADER + 4], "big"), start[HEADER + 4 :]
    return text[4 : 4 + size].removeprefix(NOTE).decode("latin-1") if text.startswith(b"tEXt" + NOTE) else ""


def check_note(path, kind, hint):
    """The scale in a file's note. kind: how the note must start; "": there must be none, and the scale is 1.

    Raises ImageError, with `hint` on what to run, for a file of another kind: a layer of rain is no mask, though both are
    grey pictures, and what is made from the one would be wrong if made from the other.
    """
    note = read_note(path)
    if kind and not re.match(rf"{kind}, scale [1-9]\d{{0,3}}$", note):
        raise ImageError(f"{path}: {note or 'no note'}, where --recipe=fast needs one of its own ({kind}); {hint}")
    if note and not kind:
        raise ImageError(f"{path}: made with --recipe=fast ({note}), where --recipe=paper needs one of its own; {hint}")
    return int(note.split()[-1]) if kind else 1


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


UMASK = _umask()  # once: asking for it sets it for a moment, which threads must not do to each other
HOST = re.sub(r"[^A-Za-z0-9]", "", socket.gethostname())[:40]
UNFINISHED = re.compile(r"\.(?P<host>[A-Za-z0-9]*)-(?P<process>\d+)-\w+\.part")
ABANDONED = 24 * 3600  # seconds after which what was begun on another machine of a shared folder counts as left behind


def unfinished(folder):
    """How `tempfile` is to name what is being written in a folder: `clear_unfinished` knows from it whether it still is."""
    return {"dir": folder, "prefix": f".{HOST}-{os.getpid()}-", "suffix": ".part"}


def clear_unfinished(folder):
    """Remove what killed processes left half-written in a folder: of this machine at once, of others after a day.

    With a folder nothing but references goes.
    """
    for path in Path(folder).glob(".*.part"):
        try:
            if not _left_behind(path):
                continue
            if path.is_dir():
                for file in path.iterdir():
                    if UNFINISHED.fullmatch(file.name) or file.suffix == ".png" and file.stem.isdigit():
                        file.unlink(missing_ok=True)
                path.rmdir()
            else:
                path.unlink(missing_ok=True)
        except OSError:
            continue  # another process was faster, or it is someone else's: nothing depends on it


def _left_behind(path):
    name = UNFINISHED.fullmatch(path.name)
    if name and name["host"] == HOST and os.name == "posix":  # elsewhere the signal 0 is no question
        try:
            os.kill(int(name["process"]), 0)
        except ProcessLookupError:
            return True
        except (PermissionError, OverflowError):
            pass
    return time.time() - path.stat().st_mtime > ABANDONED


def write_bytes(path, data):
    """Write a file whole or not at all: under another name first, then moved into place. Raises OSError naming the file."""
    path = Path(path)
    try:
        handle, temporary = tempfile.mkstemp(**unfinished(path.parent))
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.chmod(temporary, 0o666 & ~UMASK)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # not the name that the user has never seen


def write_png(path, image, options=()):
    """Write an array as an 8-bit PNG (shapes as in `png_bytes`), whole or not at all; the folder is made if needed."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, png_bytes(image, options))


def png_like(image, source):
    """A derained image (H, W, 3) BGR uint8 as the bytes of a PNG file in the manner of the file `source` that it came from.

    From a grey photograph it is grey (OpenCV's luma of the three channels); the alpha channel of a source that has one is
    carried over unchanged.
    """
    original = _open(source)
    if original.mode in ("L", "1", "LA"):
        image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    if original.has_transparency_data:
        alpha = np.asarray(original.convert("RGBA"))[..., 3]
        if image.ndim == 2:
            image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
        image = np.dstack([image, alpha])
    return png_bytes(image)


def shrink(image, scale):
    """An image (H, W, ...) at a whole fraction of its size, each pixel the mean of the area it stands for."""
    if scale == 1:
        return image
    height, width = (max(1, round(side / scale)) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def take_off(image, light):
    """An image (H, W, 3) uint8 less the same light in all channels, as far as it goes.

    light: (H, W) float32, grey levels, or of a smaller photograph of the same: it is enlarged, and the image keeps its details.
    """
    if light.shape != image.shape[:2]:
        light = cv2.resize(light, image.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    return image - np.minimum(image, np.rint(light).clip(0, 255).astype(np.uint8)[..., None])


def uint8_to_tensor(image, device=None):
    """(H, W, 3) BGR in [0, 255], an array of uint8 or float or a tensor, to a float32 tensor (1, 3, H, W), RGB, in [0, 1]."""
    import torch  # here, so that the stages that learn nothing do not wait for it

    tensor = torch.as_tensor(image).to(device)
    return tensor.flip(-1).permute(2, 0, 1)[None].contiguous().float() / 255


def tensor_to_uint8(tensor):
    """A tensor (1, 3, H, W), RGB, to (H, W, 3) uint8 BGR: clipped to [0, 1], times 255, rounded to nearest."""
    rgb = (tensor[0].float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return np.ascontiguousarray(rgb[..., ::-1])


def check_image(image):
    """Raise ValueError unless an argument is an image: an array (H, W, 3) of uint8 that has pixels."""
    kind = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    if kind != f"uint8 {np.shape(image)[:2] + (3,)}" or image.size == 0:
        raise ValueError(f"an image must be an array of uint8 (height, width, 3), blue, green, red, not {kind}")
