"""Make the pictures of the README from the demo set and what the stages made of it: the scheme, the masks, before and after.

    python -m utils.figures --dataset_path="./dataset/Demo" --save_path="./img"

--figure makes others. comparison: rainy, mask, fused reference, results and target side by side with a detail enlarged;
layer: what the two recipes take for rain; ldgp: each photograph above its mask; angles: which angles the patches of a
photograph vote for in LDGP; curve: the loss that sdrl_all.py has written to loss.csv.
"""
import csv
import math
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

import ldgp
from utils import run
from utils.charts import bars, curves
from utils.evaluate import named_folders, target_stem
from utils.image import ImageError, check_size, companion, list_images, read_image, write_png

SHOWN = ("chelsea", "coffee")  # of the demo set, unless --images names others
WIDTH = 1000  # pixels; about what a README shows
INK, PALE, ACCENT, PAPER = (60, 52, 44), (236, 228, 220), (160, 96, 32), (255, 255, 255)  # BGR
FRAME = 0, 220, 255  # of a detail, a yellow that stands out in most photographs


def write_text(image, text, centre, size=15, color=INK, room=None):
    """Write one line into an array (H, W, 3) uint8 BGR, centred at (x, y); made smaller, down to 8, to fit `room` pixels."""
    font = ImageFont.load_default(size)
    while room is not None and font.getlength(text) > room and size > 8:
        size -= 1
        font = ImageFont.load_default(size)
    canvas = Image.fromarray(np.ascontiguousarray(image[..., ::-1]))
    ImageDraw.Draw(canvas).text(centre, text, fill=color[::-1], font=font, anchor="mm")
    image[:] = np.asarray(canvas)[..., ::-1]


def side_by_side(images, labels=None, width=None, gap=8, size=16):
    """Images in a row on white, each with its label above: (H, W, 3) uint8 BGR.

    images: arrays (H, W, 3) BGR or (H, W) of uint8, one or more; taller ones are shrunk to the height of the lowest.
    labels: as many texts, or None for a row without. width: the most pixels of the row; it is shrunk to that, never
    enlarged. gap: pixels between two images. size: of the letters, in pixels.
    Raises ValueError where images and labels differ in number.
    """
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"{len(images)} images, but {len(labels)} labels")
    height = min(len(image) for image in images)
    widths = [image.shape[1] * height / len(image) for image in images]
    scale = 1 if width is None else min(1, (width - gap * (len(images) - 1)) / sum(widths))
    tiles = [resize(image, max(1, int(wide * scale)), max(1, int(height * scale))) for image, wide in zip(images, widths)]
    parts = []
    for number, tile in enumerate(tiles):
        head = np.full((size * 7 // 4 if labels else 0, tile.shape[1], 3), 255, np.uint8)
        if labels:
            write_text(head, labels[number], (tile.shape[1] / 2, len(head) / 2), size, room=tile.shape[1])
        parts += [np.full((len(head) + len(tile), gap, 3), 255, np.uint8)] * bool(number) + [np.vstack([head, tile])]
    return np.hstack(parts)


def grid(rows, labels, gap=8):
    """Rows of `side_by_side` on top of each other, at most `WIDTH` wide; the labels stand above the first."""
    rows = [side_by_side(row, None if number else labels, WIDTH, gap) for number, row in enumerate(rows)]
    widest = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((gap, 0), (0, widest - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    return np.vstack(padded)[gap:]


def resize(image, width, height):
    """An array (H, W, 3) or (H, W) as (height, width, 3) uint8 BGR; averaged where it shrinks."""
    if image.ndim == 2:
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    if image.shape[:2] == (height, width):
        return image
    shrinks = width <= image.shape[1] and height <= image.shape[0]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


class Example(NamedTuple):
    """One photograph and what the stages made of it, each (H, W, 3) uint8 BGR."""

    rainy: np.ndarray
    mask: np.ndarray
    references: list  # the first few SDRs
    number: int  # of all SDRs
    fused: np.ndarray
    derained: np.ndarray


def load_example(dataset, stem):
    """Read an `Example` of a data set's folder. Raises ImageError, with the command that makes it, where a part is missing."""
    folder = {name: Path(dataset) / name for name in ("input", "ldgp", "sdr", "sdr(fuse)", "result")}
    sdr = 'sdr.py --input_path="{input}" --ldgp_path="{ldgp}" --save_path="{sdr}" --fuse_save_path="{sdr(fuse)}"'
    commands = {
        "ldgp": 'ldgp.py --input_path="{input}" --save_path="{ldgp}"',
        "sdr": sdr,
        "sdr(fuse)": sdr,
        "result": 'sdrl.py --rainy_data_path="{all}" --sdr_data_path="{sdr}" --result_path="{result}"',
    }

    def files(where, name):
        hint = f"run: python {commands[name].format(all=dataset, **folder)}" if name in commands else "see dataset/README.md"
        try:
            return list_images(where), hint
        except ImageError:
            raise ImageError(f"{where}: no images there; {hint}") from None

    def picture(name):
        found, hint = files(folder[name], name)
        return read_image(companion(found, folder["input"] / stem, folder[name], hint))

    rainy, mask = picture("input"), picture("ldgp")
    references = [paths[0] for paths in files(folder["sdr"] / stem, "sdr")[0].values()]
    first = [read_image(path) for path in references[:3]]
    return Example(rainy, mask, first, len(references), picture("sdr(fuse)"), picture("result"))


def masks(examples):
    """What LDGP and NSS make of each photograph, a row each."""
    labels = "rainy photograph", "likely rain", "one of the SDRs", "mean of the SDRs"
    return grid([[one.rainy, one.mask, one.references[0], one.fused] for one in examples], labels)


def before_after(examples):
    """Each photograph beside its derained one."""
    return grid([[one.rainy, one.derained] for one in examples], ("rainy", "derained"))


def arrow(image, *points):
    """A line along points (x, y), upright or level between any two, with a head at its end."""
    *points, tip = map(np.array, points)
    step = np.sign(tip - points[-1])
    cv2.polylines(image, [np.array([*points, tip - step * 8])], False, INK, 2)
    side = step[::-1] * 6
    cv2.fillPoly(image, [np.array([tip, tip - step * 12 + side, tip - step * 12 - side])], INK, cv2.LINE_AA)


def stage(image, centre, name, script, half=(39, 25)):
    """A box with a stage's name and its script."""
    x, y = centre
    cv2.rectangle(image, (x - half[0], y - half[1]), (x + half[0], y + half[1]), ACCENT, -1)
    write_text(image, name, (x, y - 8), 18, PAPER)
    write_text(image, script, (x, y + 12), 13, PAPER)


def scheme(example):
    """The whole method in one picture (540, 1000, 3): the three stages, and what goes into and comes out of each."""
    wide, high, across, top, below = 232, 174, (20, 374, 728), 52, 322
    middle, lower = top + high // 2, below + high // 2
    image = np.full((540, WIDTH, 3), 255, np.uint8)

    def show(picture, left, upper, caption):
        image[upper : upper + high, left : left + wide] = resize(picture, wide, high)
        cv2.rectangle(image, (left, upper), (left + wide - 1, upper + high - 1), INK, 1)
        if caption:
            write_text(image, caption, (left + wide // 2, upper + high + 16), 16, room=wide)

    for behind in range(len(example.references) - 1, 0, -1):
        show(example.references[behind], across[2] + 10 * behind, top - 10 * behind, None)
    show(example.references[0], across[2], top, f"{example.number} stochastic references y")
    show(example.rainy, across[0], top, "rainy photograph x")
    show(example.mask, across[1], top, "likely rain")
    show(example.derained, across[2], below, "derained photograph f(x)")

    first, second = (left - (across[1] - across[0] - wide) // 2 for left in across[1:])
    arrow(image, (across[0] + wide, middle), (across[1] - 2, middle))
    arrow(image, (across[1] + wide, middle), (across[2] - 2, middle))
    arrow(image, (across[0] + wide // 2, top), (across[0] + wide // 2, 20), (second, 20), (second, middle - 26))
    stage(image, (first, middle), "LDGP", "ldgp.py")
    stage(image, (second, middle), "NSS", "sdr.py")

    # The third stage: the network, and the loss between what it makes of x and one reference after the other.
    box, centre = (across[1], below), across[1] + wide // 2
    cv2.rectangle(image, box, (box[0] + wide - 1, box[1] + high - 1), PALE, -1)
    cv2.rectangle(image, box, (box[0] + wide - 1, box[1] + 49), ACCENT, -1)
    write_text(image, "SDRL", (centre, below + 17), 18, PAPER)
    write_text(image, "sdrl.py", (centre, below + 37), 13, PAPER)
    for n, half in enumerate((42, 32, 22, 14, 22, 32, 42)):
        x, y = centre + (n - 3) * 26, below + 110
        cv2.rectangle(image, (x - 7, y - half), (x + 7, y + half), ACCENT, -1)
    write_text(image, "network f", (centre, below + high + 16), 16)
    arrow(image, (across[0] + wide // 2, top + high + 30), (across[0] + wide // 2, lower), (across[1] - 2, lower))
    arrow(image, (across[1] + wide, lower), (across[2] - 2, lower))
    right, loss = across[2] + wide // 2, (top + high + 30 + below) // 2
    arrow(image, (right, top + high + 28), (right, loss - 17))
    arrow(image, (right, below), (right, loss + 17))
    cv2.rectangle(image, (across[2], loss - 15), (across[2] + wide, loss + 15), PALE, -1)
    write_text(image, "loss: mean square of f(x) - y", (right, loss), 16, room=wide - 8)
    arrow(image, (across[2], loss), (centre, loss), (centre, below - 2))
    write_text(image, "trains", ((centre + across[2]) // 2, loss - 12), 15)
    write_text(image, "No clean photograph is used,", (across[0] + wide // 2 + 118, lower + 24), 15)
    write_text(image, "and no other photograph.", (across[0] + wide // 2 + 118, lower + 44), 15)
    return image


def detail_of(rainy, others, width, height):
    """Where rain matters most: (left, top) of the window in which a photograph and others differ most in sum.

    rainy: (H, W, 3) uint8; others: arrays of the same shape. width, height: of the window, at most those of the photograph.
    """
    change = sum(np.abs(rainy.astype(np.float64) - other).sum(axis=2) for other in others)
    sums = np.pad(change.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    windows = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    top, left = np.unravel_index(windows.argmax(), windows.shape)
    return int(left), int(top)


def comparison(columns, detail=None, width=WIDTH, gap=8):
    """One photograph in several versions side by side, and below each the same window of it, enlarged to the column's width.

    columns: {label: (H, W) or (H, W, 3) uint8}, the rainy one first; all of one size. detail: (left, top, width) of the
    window, which has the photograph's proportions; None for a quarter of its width, where the rainy one and the other
    photographs differ most. width: of the picture, in pixels, at most. Returns (h, w, 3) uint8 BGR.
    Raises ValueError for a window that is not within the photograph.
    """
    rainy, *others = columns.values()
    high, wide = rainy.shape[:2]
    side = detail[2] if detail else max(wide // 4, 1)
    cut = side, max(side * high // wide, 1)
    left, top = detail[:2] if detail else detail_of(rainy, [image for image in others if image.ndim == 3] or [rainy * 0], *cut)
    if side < 1 or left + cut[0] > wide or top + cut[1] > high:
        raise ValueError(f"the window {left} {top} {side} is not within {wide}x{high} pixels")
    scale = min(1, (width - gap * (len(columns) - 1)) / len(columns) / wide)
    shown = max(1, int(wide * scale)), max(1, int(high * scale))
    parts = []
    for image in columns.values():
        picture = resize(image, *shown).copy()
        corners = [(int(x * scale), int(y * scale)) for x, y in ((left, top), (left + cut[0] - 1, top + cut[1] - 1))]
        cv2.rectangle(picture, *corners, FRAME, 2)
        window = resize(image[top : top + cut[1], left : left + cut[0]], *shown)
        parts.append(np.vstack([picture, np.full((gap, shown[0], 3), 255, np.uint8), window]))
    return side_by_side(parts, list(columns), None, gap)


def results_of(args):
    """The folders of results to show, {label: folder}."""
    return named_folders(args.result_path) if args.result_path else {"derained": f"{args.dataset_path}/result"}


def load_columns(dataset, stem, results):
    """What there is of a photograph for a `comparison`: {label: array}; masks, fused references and targets as far as made.

    Raises ImageError where the photograph or a result is missing, or one is of another size.
    """
    dataset = Path(dataset)
    inputs = list_images(dataset / "input")
    path = companion(inputs, dataset / "input" / stem, dataset / "input", "name one that is there")
    optional = {"likely rain": dataset / "ldgp", "fused reference": dataset / "sdr(fuse)"}
    columns = {"rainy": read_image(path)}

    def add(label, found, name, folder, hint=None):
        if hint is None and name not in found:
            return
        place = companion(found, path.with_stem(name), folder, hint)
        columns[label] = read_image(place)
        check_size(columns[label], place, columns["rainy"], path)

    for label, folder in optional.items():
        add(label, list_images(folder, optional=True), path.stem, folder)
    for label, folder in results.items():
        hint = "run sdrl.py, or name another folder with --result_path"
        add(label, list_images(folder, hint), path.stem, folder, hint)
    targets = list_images(dataset / "target", optional=True)
    add("target", targets, target_stem(targets, path.stem), dataset / "target")
    if "likely rain" in columns:
        columns["likely rain"] = columns["likely rain"][..., 0]
    return columns


def draw_comparison(args, stems):
    rows = []
    for stem in stems:
        try:
            rows.append(comparison(load_columns(args.dataset_path, stem, results_of(args)), args.detail, args.width))
        except ValueError as error:
            if isinstance(error, ImageError):
                raise
            raise ImageError(f"{args.dataset_path}: --detail of {stem}: {error}; name another") from None
    return stack(rows, 16)


def stack(rows, gap):
    """Pictures (H, W, 3) on top of each other on white, `gap` pixels apart."""
    widest = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((gap, 0), (0, widest - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    return np.vstack(padded)[gap:]


def draw_layer(args, stems):
    """Each photograph, its rain mask and its rain layer, both made here, and its results, a row each."""
    rows, results = [], results_of(args)
    for stem in stems:
        columns = load_columns(args.dataset_path, stem, results)
        rainy = columns["rainy"]
        rows.append([rainy, ldgp.rain_mask(rainy), ldgp.rain_layer(rainy), *map(columns.get, results)])
    return grid(rows, ["rainy photograph", "rain mask (LDGP)", "rain layer", *results])


def draw_ldgp(args, stems):
    """Photographs in a row, each above its mask."""
    folder = Path(args.dataset_path)
    inputs = list_images(folder / "input")
    hint = f'run: python ldgp.py --input_path="{folder / "input"}" --save_path="{folder / "ldgp"}"'
    masks = list_images(folder / "ldgp", hint)
    columns = []
    for stem in stems:
        path = companion(inputs, folder / "input" / stem, folder / "input", "name one that is there")
        rainy = read_image(path)
        mask_path = companion(masks, path, folder / "ldgp", hint)
        mask = read_image(mask_path)
        check_size(mask, mask_path, rainy, path)
        columns.append(np.vstack([rainy, np.full((8, rainy.shape[1], 3), 255, np.uint8), mask]))
    return side_by_side(columns, stems, WIDTH)


def votes(image, patch_size=80):
    """How many patches of a photograph, (H, W, 3) uint8 BGR, vote for each angle: {0: n, 5: n, ..., 175: n}.

    As in `ldgp.dominant_angle`, with the patches that it looks at.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    height, width = grey.shape
    if min(height, width) < ldgp.SMALLEST:
        raise ImageError(f"{width}x{height} pixels is too small: LDGP needs at least {ldgp.SMALLEST} a side")
    patches = [grey[y : y + patch_size, x : x + patch_size] for x in range(0, width - patch_size + 1, patch_size)
               for y in range(0, height - patch_size + 1, patch_size)] if min(height, width) >= patch_size else [grey]
    found = Counter(map(ldgp.patch_angle, patches))
    return {angle: found[angle] for angle in range(0, 180, 5)}


def draw_angles(args, stems):
    inputs = list_images(Path(args.dataset_path) / "input")
    charts = []
    for stem in stems:
        path = companion(inputs, Path(args.dataset_path) / "input" / stem, args.dataset_path, "name one that is there")
        image = read_image(path)
        try:
            counted, angle = votes(image), ldgp.dominant_angle(image)
        except ImageError as error:
            raise ImageError(f"{path}: {error}") from None
        charts.append(bars(counted, f"{stem}: dominant gradient angle {angle}°", "angle of the gradient, degrees",
                           "patches", angle))
    return stack(charts, 16)


def read_losses(path):
    """The points (epoch, loss) of a loss.csv. Raises ImageError for a file that is missing or another."""
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            points = [(int(row["epoch"]), float(row["loss"])) for row in csv.DictReader(file)]
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file; sdrl_all.py writes it to its --model_save_dir") from None
    except (KeyError, TypeError, ValueError, csv.Error):
        raise ImageError(f"{path}: not a loss.csv of sdrl_all.py, with columns epoch and loss; name another file") from None
    points = [point for point in points if 0 < point[1] < math.inf]
    if not points:
        raise ImageError(f"{path}: no epoch in it yet; wait for the first checkpoint, see --save_every of sdrl_all.py")
    return points


def draw_curve(args, stems):
    places = args.loss_path or [f"./result_all/{Path(args.dataset_path).resolve().name}/loss.csv"]
    named = {}
    for text in places:
        name, equals, place = text.partition("=")
        name, place = (name, place) if equals and not Path(text).exists() else (Path(text).resolve().parent.name, text)
        if name in named:
            raise ImageError(f"--loss_path {text}: a second curve named {name}; give it another name: NAME={place}")
        named[name] = read_losses(place)
    return curves(named, "Training loss of sdrl_all.py", "epoch", "mean squared error")


def draw_readme(args, stems):
    """The scheme, the masks and before and after."""
    examples = [load_example(args.dataset_path, stem) for stem in stems]
    return {"scheme": scheme(examples[0]), "masks": masks(examples), "before_after": before_after(examples)}


FIGURES = {"readme": draw_readme, "comparison": draw_comparison, "layer": draw_layer, "ldgp": draw_ldgp, "angles": draw_angles,
           "curve": draw_curve}


def main(args):
    stems = args.images
    if not stems and args.figure != "curve":
        inputs = list_images(Path(args.dataset_path) / "input")
        stems = SHOWN if inputs.keys() >= set(SHOWN) else list(inputs)[:2]
    drawn = FIGURES[args.figure](args, stems)
    for name, picture in (drawn if isinstance(drawn, dict) else {args.figure: drawn}).items():
        path = Path(args.save_path) / f"{name}.png"
        write_png(path, picture)
        print(f"figures.py: {path}, {picture.shape[1]}x{picture.shape[0]}")
    return 0


if __name__ == "__main__":
    parser = run.Parser(__doc__)
    parser.add_argument("--dataset_path", default="./dataset/Demo", help="a data set that all three stages have worked on")
    parser.add_argument("--save_path", default="./img", help="where the pictures go")
    parser.add_argument("--images", nargs="+", metavar="NAME", help="photographs to show, by name (default: two)")
    parser.add_argument("--figure", default="readme", choices=list(FIGURES), help="what to draw; readme: three pictures")
    parser.add_argument("--result_path", action="append", metavar="[NAME=]FOLDER",
                        help="results of a comparison or layer; may be given several times (default: result/ of the data set)")
    parser.add_argument("--detail", nargs=3, type=run.number(int, 0), metavar=("LEFT", "TOP", "WIDTH"),
                        help="what a comparison enlarges, in pixels (default: where the rain matters most)")
    parser.add_argument("--width", type=run.number(int, 100), default=WIDTH, help="of a comparison, in pixels, at most")
    parser.add_argument("--loss_path", action="append", metavar="[NAME=]FILE",
                        help="of a curve; may be given several times (default: ./result_all/<data set>/loss.csv)")
    run.start(main, parser)
