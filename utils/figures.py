"""Make the pictures of the README, the masks and before and after, from the demo set and its results.

    python -m utils.figures --dataset_path="./dataset/Demo" --save_path="./img"

--figure makes others. comparison: a photograph in all versions side by side, with a detail enlarged; layer: what the two
recipes take for rain; ldgp: each photograph above its mask; curve: the loss of sdrl_all.py; steps: the mean PSNR of what
sdrl.py --save_every kept; both need matplotlib. page: an HTML file that shows all photographs, with a divider to drag between
any two versions of each, and their scores.
"""
import os
import sys
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from utils import cli, fast
from ldgp import rain_mask
from utils.curves import draw_curves, read_losses, read_steps
from utils.evaluate import named_folders, target_stem
from utils.image import (ImageError, check_size, list_images, matching_file, one_line, png_bytes, read_image, read_mask,
                         write_bytes)
from utils.page import write_page

SHOWN = ("chelsea", "coffee")  # of the demo set, unless --images names others
WIDTH = 1000  # pixels; about what a README shows
GAP = 8  # pixels between two pictures
LETTERS = 16  # pixels, the height of a label; it gets smaller where its image is narrow
INK, FRAME = (60, 52, 44), (0, 220, 255)  # BGR, of labels and around details

# What a figure shows of each photograph, {label: what}, the input first: a folder of the data set, or a function of the input.
# The label of a result is the name that --result_path gives it.
FIGURES = {
    "masks": {"rainy photograph": "input", "likely rain": "ldgp", "one of the SDRs": "sdr", "mean of the SDRs": "sdr(fuse)"},
    "before_after": {"rainy": "input", "derained": "result"},
    "comparison": {"rainy": "input", "likely rain": "ldgp", "fused reference": "sdr(fuse)", "derained": "result",
                   "target": "target"},
    "layer": {"rainy photograph": "input", "rain mask (LDGP)": rain_mask, "rain layer": fast.rain_layer, "derained": "result"},
    "ldgp": {"rainy": "input", "mask": "ldgp"},
}
README = "see dataset/README.md"
HINTS = {
    "ldgp": 'run: python ldgp.py --input_path="{0}/input"',
    **dict.fromkeys(("sdr", "sdr(fuse)"), 'run: python sdr.py --input_path="{0}/input"'),
    "result": 'run: python sdrl.py --rainy_data_path="{0}", or name another folder with --result_path',
}


def label_above(text, width):
    """Draw a line of text, (28, width, 3) uint8 BGR, in smaller letters where it would be too long, down to 8 pixels."""
    size = next((size for size in range(LETTERS, 8, -1) if ImageFont.load_default(size).getlength(text) <= width), 8)
    head = Image.new("RGB", (width, LETTERS * 7 // 4), "white")
    ImageDraw.Draw(head).text((width / 2, head.height / 2), text, INK[::-1], ImageFont.load_default(size), anchor="mm")
    return np.asarray(head)[..., ::-1]


def resize(image, width, height):
    """Resize an array (H, W, 3) or (H, W) to (height, width, 3) uint8 BGR, cut to whole pixels; averaged where it shrinks."""
    if image.ndim == 2:
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    width, height = max(1, int(width)), max(1, int(height))
    shrinks = width <= image.shape[1] and height <= image.shape[0]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def stack(pictures, gap=GAP):
    """Put pictures (H, W, 3) uint8 below each other on white, `gap` pixels apart."""
    width = max(picture.shape[1] for picture in pictures)
    margins = [((gap, 0), (0, width - picture.shape[1]), (0, 0)) for picture in pictures]
    return np.vstack([np.pad(picture, margin, constant_values=255) for picture, margin in zip(pictures, margins)])[gap:]


def grid(rows, labels, width=WIDTH):
    """Lay out rows of images on white, (H, W, 3) uint8 BGR, with labels above the first row.

    rows: lists of (H, W, 3) or (H, W) uint8, each shrunk to its lowest image and to a width in pixels, and never enlarged.
    """
    lines = []
    for row in rows:
        height = min(len(image) for image in row)
        widths = [image.shape[1] * height / len(image) for image in row]
        scale = min(1, (width - GAP * (len(row) - 1)) / sum(widths))
        tiles = [resize(image, wide * scale, height * scale) for image, wide in zip(row, widths)]
        if not lines:
            tiles = [np.vstack([label_above(label, tile.shape[1]), tile]) for label, tile in zip(labels, tiles, strict=True)]
        lines.append(stack([tile.swapaxes(0, 1) for tile in tiles]).swapaxes(0, 1))  # beside each other
    return stack(lines)


def load(figure, dataset, stem, results):
    """Read or compute what a key of FIGURES shows of one photograph: {label: (H, W, 3) or (H, W) uint8}.

    results: {label: folder}. A comparison leaves out what there is not, unless it is the photograph or a result. Raises
    ImageError where something is missing, with the command that makes it, or is of another size.
    """
    images, rainy = {}, ()
    for label, what in FIGURES[figure].items():
        if callable(what):
            images[label] = what(rainy[0])
            continue
        hint = HINTS.get(what, README).format(dataset)
        optional = figure == "comparison" and what not in ("input", "result")
        for name, folder in (results if what == "result" else {label: Path(dataset, what)}).items():
            files = list_images(Path(folder, stem) if what == "sdr" else folder, hint, optional)
            file = next(iter(files)) if what == "sdr" else target_stem(files, stem) if what == "target" else stem
            if optional and file not in files:
                continue
            path = matching_file(files, f"{file}.png", folder, hint)
            images[name] = read_mask(path) if what == "ldgp" else read_image(path)
            rainy = rainy or (images[name], path)
            check_size(images[name], path, *rainy)
    return images


def draw(figure, dataset, stems, results=None, width=WIDTH, detail=None):
    """Draw a key of FIGURES for photographs of a data set: (H, W, 3) uint8 BGR. Raises ImageError as `load` does."""
    shown = [load(figure, dataset, stem, results or {"derained": f"{dataset}/result"}) for stem in stems]
    if figure == "comparison":
        return stack([compare(images, detail, width) for images in shown], 2 * GAP)
    if figure == "ldgp":
        return grid(zip(*(images.values() for images in shown)), stems, width)
    return grid([images.values() for images in shown], shown[0], width)


def compare(images, detail=None, width=WIDTH):
    """Draw a photograph in several versions, and below each the same window of it, enlarged: (H, W, 3) uint8 BGR.

    images: {label: (H, W, 3) or (H, W) uint8}, the rainy one first. detail: (left, top, width) of the window; None for a
    quarter of the width, where rainy and derained ones differ most. Raises ImageError for one that is not within.
    """
    rainy, *others = images.values()
    high, wide = rainy.shape[:2]
    side = detail[2] if detail else max(wide // 4, 1)
    tall = max(side * high // wide, 1)
    left, top = detail[:2] if detail else place_of_detail(rainy, others, side, tall)
    if side < 1 or left + side > wide or top + tall > high:
        raise ImageError(f"--detail {left} {top} {side}: not within {wide}x{high} pixels; name another")
    scale = min(1, (width - GAP * (len(images) - 1)) / len(images) / wide)
    corners = [(int(x * scale), int(y * scale)) for x, y in ((left, top), (left + side - 1, top + tall - 1))]
    pictures = [cv2.rectangle(resize(image, wide * scale, high * scale), *corners, FRAME, 2) for image in images.values()]
    window = slice(top, top + tall), slice(left, left + side)
    details = [resize(image[window], wide * scale, high * scale) for image in images.values()]
    return grid([pictures, details], images, width)


def place_of_detail(rainy, others, width, height):
    """Return (left, top) of the window in which a photograph and its other versions (H, W, 3), without masks, differ most."""
    change = sum(cv2.absdiff(rainy, other).sum(axis=2, dtype=np.float64) for other in others if other.ndim == 3)
    sums = cv2.boxFilter(change, -1, (width, height), anchor=(0, 0), normalize=False)  # of the window that starts there
    return cv2.minMaxLoc(sums[: len(sums) - height + 1, : sums.shape[1] - width + 1])[3]


def make_page(args):
    """Write the page; returns the exit code, 1 where something could not be shown."""
    folder, path = Path(args.dataset_path) / "input", Path(args.save_path or args.dataset_path) / "page.html"
    inputs = list_images(folder, README)
    rainy = {stem: matching_file(inputs, f"{stem}.png", folder, README) for stem in args.images or inputs}
    path.parent.mkdir(parents=True, exist_ok=True)
    failures = write_page(path, args.dataset_path, rainy, named_folders(args.result_path or []), args.embed)
    for text in failures:
        print(one_line(f"figures.py: failed: {text}"), file=sys.stderr)
    print(f"figures.py: {path}, {len(rainy)} photographs")
    return int(bool(failures))


def main(args):
    if args.figure == "page":
        return make_page(args)
    if args.figure == "curve":
        places = args.loss_path or [f"./result_all/{Path(os.path.abspath(args.dataset_path)).name}/loss.csv"]
        losses = {place: read_losses(place) for place in places}
        pictures = {"curve": draw_curves(losses, "Training loss of sdrl_all.py", "epoch", "mean squared error", "log")}
    elif args.figure == "steps":
        data = Path(args.dataset_path)
        [folder] = named_folders(args.result_path or [str(data / "result")]).values()
        curves = read_steps(data, Path(folder))
        pictures = {"steps": draw_curves(curves, f"Results of sdrl.py, {data.resolve().name}", "steps", "PSNR in dB, mean")}
    else:
        inputs = list_images(Path(args.dataset_path) / "input", README)
        stems = args.images or (SHOWN if inputs.keys() >= set(SHOWN) else list(inputs)[:2])
        figures = ["masks", "before_after"] if args.figure == "readme" else [args.figure]
        results = named_folders(args.result_path or [])
        pictures = {name: draw(name, args.dataset_path, stems, results, args.width, args.detail) for name in figures}
    folder = Path(args.save_path or "./img")
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        path = folder / f"{name}.png"
        write_bytes(path, png_bytes(picture))
        print(f"figures.py: {path}, {picture.shape[1]}x{picture.shape[0]}")
    return 0


if __name__ == "__main__":
    parser = cli.Parser(__doc__)
    parser.add_argument("--dataset_path", default="./dataset/Demo", help="a data set that all three stages have worked on")
    parser.add_argument("--save_path", help="where the pictures go (default: ./img; a page: the data set)")
    parser.add_argument("--images", nargs="+", metavar="NAME", help="photographs to show, by name (default: two; a page: all)")
    parser.add_argument("--figure", default="readme", choices=["readme", *FIGURES, "curve", "steps", "page"],
                        help="readme: masks, before_after")
    parser.add_argument("--result_path", action="append", metavar="[NAME=]FOLDER", help="results to show; may be given several "
                        "times (default: result/ of the data set; a page: and sdr(fuse)/, what there is)")
    parser.add_argument("--embed", action="store_true", help="put the images into the page, which is then one file to pass on")
    parser.add_argument("--detail", nargs=3, type=cli.number(int, 0), metavar=("LEFT", "TOP", "WIDTH"),
                        help="what a comparison enlarges, in pixels (default: where the rain matters most)")
    parser.add_argument("--width", type=cli.number(int, 100), default=WIDTH, help="of the picture, in pixels, at most")
    parser.add_argument("--loss_path", action="append", metavar="FILE",
                        help="of a curve; may be given several times (default: ./result_all/<data set>/loss.csv)")
    cli.start(main, parser)
