"""Score derained photographs against the clean ones: PSNR and SSIM, image by image and on average.

    python -m utils.evaluate --result_path="./dataset/Demo/result/" --target_path="./dataset/Demo/target/" \\
        --input_path="./dataset/Demo/input/"

The target of 901_3 is 901_3 or, where there is none, 901. rgb is the protocol of the Rain2Avoid papers, y that of most others.
"""
import csv
import io
import math
import sys
from pathlib import Path

from utils import run
from utils.image import ImageError, check_size, companion, list_images, read_image, write_bytes
from utils.metrics import PROTOCOLS, mean_scores, scores

NAME_WIDTH = 24  # of the table's first column; with three pairs of numbers the table is 78 wide


def target_stem(targets, stem):
    """The stem of an image's clean photograph: of 901_3 it is 901_3 or, where `targets` has only that, 901."""
    shared = stem.rpartition("_")[0]
    return shared if stem not in targets and shared in targets else stem


def gains(result, rainy):
    """A row of the table: the scores of a result, those of its rainy input (keys + "_input") and the differences ("_gain")."""
    row = dict(result)
    for key, value in rainy.items():
        row[f"{key}_input"] = value
        row[f"{key}_gain"] = 0.0 if result[key] == value else result[key] - value
    return row


def table(rows, protocol):
    """The table of one protocol as text of at most 80 columns. rows: {name: row of `scores` or `gains`}, not empty."""
    groups = [""] + (["_input", "_gain"] if f"psnr_{protocol}_gain" in next(iter(rows.values())) else [])
    keys = [f"{score}_{protocol}{group}" for group in groups for score in ("psnr", "ssim")]
    rows = {name: {key: row[key] for key in keys} for name, row in rows.items()}
    perfect = sum(not all(map(math.isfinite, row.values())) for row in rows.values())

    def line(name, row):
        name = name if len(name) <= NAME_WIDTH else "..." + name[3 - NAME_WIDTH :]
        cells = (f"{row[key]:{'+' if 'gain' in key else ''}{'9.3f' if 'psnr' in key else '9.4f'}}" for key in keys)
        return f"{name:{NAME_WIDTH}}" + "".join(cells)

    lines = [PROTOCOLS[protocol].title]
    if len(groups) > 1:
        lines.append(" " * NAME_WIDTH + "".join(f"{head:>18}" for head in ("result", "input", "gain")))
    lines.append(f"{'image':{NAME_WIDTH}}" + f"{'PSNR':>9}{'SSIM':>9}" * len(groups))
    lines += [line(name, row) for name, row in rows.items()]
    lines.append(line(f"mean of {len(rows)}", mean_scores(list(rows.values()))))
    if perfect:
        lines.append(f"Equal to the target: {perfect}; an infinite PSNR is left out of the mean PSNR.")
    return "\n".join(lines)


def write_csv(path, rows):
    """Write rows as in `table`, of all protocols that they have, as comma-separated values with six decimals."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", *next(iter(rows.values()))])
    writer.writerows([name, *(f"{value:.6f}" for value in row.values())] for name, row in rows.items())
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, text.getvalue().encode())
    except OSError as error:
        raise ImageError(f"{path}: cannot be written ({error.strerror})") from None


def main(args):
    results, targets = list_images(args.result_path), list_images(args.target_path)
    inputs = list_images(args.input_path) if args.input_path else None
    protocols = tuple(PROTOCOLS) if args.protocol == "all" else (args.protocol,)
    rows = {}

    def work(path, bar):
        named = path.with_stem(target_stem(targets, path.stem))
        clean_path = companion(targets, named, args.target_path, "without its target it has no score")
        target = read_image(clean_path)
        found = [path] if inputs is None else [path, companion(inputs, path, args.input_path, "leave out --input_path")]
        images = [read_image(name) for name in found]
        for image, name in zip(images, found):
            check_size(image, name, target, clean_path)
        try:
            result, *rainy = (scores(image, target, protocols) for image in images)
        except ImageError as error:
            raise ImageError(f"{path}: {error}") from None
        rows[path.stem] = gains(result, *rainy) if rainy else result

    code = run.each_image(results, work, "the table" + f" and {args.csv}" * bool(args.csv))
    present = results if inputs else {target_stem(targets, stem) for stem in results}
    missing = [stem for stem in inputs or targets if stem not in present]
    if missing:
        names = ", ".join(missing[:5]) + f" and {len(missing) - 5} more" * (len(missing) > 5)
        print(f"evaluate.py: failed: nothing in {args.result_path} for {names}", file=sys.stderr)
    for protocol in protocols if rows else ():
        print(f"\n{table(rows, protocol)}")
    if rows and args.csv:
        write_csv(args.csv, rows)
    return 1 if missing else code


if __name__ == "__main__":
    parser = run.Parser(__doc__)
    parser.add_argument("--result_path", default="./dataset/Rain100L/result/", help="derained photographs")
    parser.add_argument("--target_path", default="./dataset/Rain100L/target/", help="clean photographs, by the same names")
    parser.add_argument("--input_path", help="rainy photographs, to show their scores and the gain as well")
    parser.add_argument("--protocol", default="rgb", choices=[*PROTOCOLS, "all"], help="what is compared")
    parser.add_argument("--csv", help="a file for the same numbers as comma-separated values")
    run.start(main, parser)
