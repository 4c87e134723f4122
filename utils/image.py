"""Reading, writing, listing and converting images: the only owner of all four.

Images in memory are arrays (H, W, 3) of uint8 in OpenCV's order, blue, green, red; masks are (H, W) of uint8.
"""
import io
import os
import re
import tempfile
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}

# Options of `write_png` for files that are many and soon read again. By measurement on references of 480x320, this is half
# the time of compression level 1 for files 8% larger (`python -m utils.benchmark sdr` prints the table).
PNG_FAST = (cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY)


class ImageError(ValueError):
    """A file or folder that cannot be used; its text is one line for the user that names it and says what to do."""


def natural_order(name):
    """Sort key that puts 2 before 10."""
    return [int(part) if part.isdigit() else part.lower() for part in re.split(r"(\d+)", str(name))]


def list_images(folder):
    """The images of a folder, as {stem: [path, ...]} in natural order of the stems.

    Files that are no images by their extension (any letter case), hidden files and sub-folders are passed over. A stem
    with several paths is a clash, which `only` reports.
    Raises ImageError where the folder is missing or holds no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ImageError(f"{folder}: no such folder; put the images there or name another one")
    found = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".") and path.is_file():
            found.setdefault(path.stem, []).append(path)
    if not found:
        raise ImageError(f"{folder}: no image in this folder (looked for {' '.join(sorted(EXTENSIONS))})")
    return dict(sorted(found.items(), key=lambda item: natural_order(item[0])))


def only(paths):
    """The one path of a stem. Raises ImageError where several files share it: their results would overwrite each other."""
    if len(paths) > 1:
        names = " and ".join(path.name for path in paths)
        raise ImageError(f"{paths[0].parent}: {names} share the name '{paths[0].stem}'; rename or remove all but one")
    return paths[0]


def _open(path):
    """A fully decoded PIL image, turned upright as its EXIF orientation says."""
    path = Path(path)
    try:
        image = Image.open(io.BytesIO(path.read_bytes()))
        # Pillow cuts 16-bit colour down to 8 bits without a word; the raw mode of its decoder still tells.
        deep = image.mode[0] in "IF" or any(re.search(r";16[BLN]", str(tile)) for tile in image.tile)
        image.load()
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise ImageError(f"{path}: not an image that can be read; remove it or replace it") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise ImageError(f"{path}: damaged or cut short ({error}); replace it") from None
    if deep:
        raise ImageError(f"{path}: more than 8 bits a channel; convert it to 8 bits first")
    return ImageOps.exif_transpose(image)


def read_image(path):
    """An image file as (H, W, 3) uint8, BGR. Grey becomes three equal channels; alpha is left out (see `write_like`).

    Raises ImageError for a file that is missing, no image, cut short, or of more than 8 bits a channel.
    """
    return cv2.cvtColor(np.asarray(_open(path).convert("RGB")), cv2.COLOR_RGB2BGR)


def read_mask(path):
    """A mask file as (H, W) uint8; a mask in colour is turned to grey. Raises ImageError as `read_image` does."""
    image = _open(path)
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


def png_bytes(image, options=()):
    """An array (H, W), (H, W, 3) BGR or (H, W, 4) BGRA of uint8 as the bytes of a PNG file."""
    ok, data = cv2.imencode(".png", image, list(options))
    if not ok:
        raise ImageError(f"an array of shape {image.shape} and type {image.dtype} cannot be written as PNG")
    return data.tobytes()


def write_bytes(path, data):
    """Write a file whole or not at all: under another name first, then moved into place."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_png(path, image, options=()):
    """Write an array as an 8-bit PNG (shapes as in `png_bytes`), whole or not at all; the folder is made if needed."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, png_bytes(image, options))


def write_like(path, image, source):
    """Write a derained image (H, W, 3) BGR uint8 as PNG in the manner of the file it came from.

    From a grey photograph it is written grey (OpenCV's luma of the three channels); the alpha channel of a source that
    has one is carried over unchanged.
    """
    original = _open(source)
    if original.mode in ("L", "1", "LA"):
        image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    if original.has_transparency_data:
        alpha = np.asarray(original.convert("RGBA"))[..., 3]
        if image.ndim == 2:
            image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
        image = np.dstack([image, alpha])
    write_png(path, image)


def uint8_to_tensor(image, device="cpu"):
    """(H, W, 3) or (N, H, W, 3) uint8 BGR to a float32 tensor (N, 3, H, W), RGB, in [0, 1]."""
    import torch  # here, so that the stages that learn nothing do not wait for it

    array = np.ascontiguousarray(np.atleast_3d(image)[..., ::-1])
    batch = torch.from_numpy(array if array.ndim == 4 else array[None]).to(device)
    return batch.permute(0, 3, 1, 2).float() / 255


def tensor_to_uint8(tensor):
    """A tensor (1, 3, H, W), RGB, to (H, W, 3) uint8 BGR: clipped to [0, 1], times 255, rounded to nearest."""
    rgb = (tensor[0].float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return np.ascontiguousarray(rgb[..., ::-1])
