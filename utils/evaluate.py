"""Score derained photographs against the clean ones: PSNR and SSIM in RGB and in Y, image by image and on average.

    python -m utils.evaluate ./dataset/Demo/result/ ./dataset/Demo/target/ --input_path="./dataset/Demo/input/"

The last folder holds the clean photographs. Several folders before it, each FOLDER or NAME=FOLDER, are compared in one table,
with the published figures of the data set below. The target of 901_3 is 901_3 or 901, and that of rain-001 is norain-001. Of
what utils.derain wrote, 1_derained is the result of 1, and its rain layers are left out. rgb is the protocol of the Rain2Avoid
papers, y that of most others.
"""
import math
import os
import sys
from pathlib import Path

from tqdm import tqdm

from utils import cli
from utils.image import (ImageError, check_size, data_set, list_images, matching_file, natural_order, one_line, read_image,
                         write_bytes)
from utils.metrics import EXTRA, PROTOCOLS, extra_score, mean_scores, scores
from utils.photograph import DERAINED, LAYER, mark_of
from utils.tables import LATEX_MARKS, MEASURED, Method, columns, csv_text, image_table, latex, markdown, overview, published

RAINY = "rainy input"  # its row
NOTE = "* best, ' second best of complete results. Published figures are not ranked."


def target_stem(targets, stem):
    """Return the stem of an image's clean photograph among `targets`: of 901_3 901_3 or 901, of rain-001 norain-001."""
    names = stem, stem.rpartition("_")[0], f"no{stem}", stem.removeprefix("no")
    return next((name for name in names if name in targets), stem)


def scored_images(folder, known=None):
    """Return the images of a folder, {stem: path}, without rain layers; x_derained is x, unless it is among the `known` stems.

    Where utils.derain wrote x_derained beside x, the photograph x is left out. known: stems of the clean and rainy
    photographs; None for a folder of rainy photographs, in which x stays and x_derained is left out.
    """
    files = list_images(folder)
    marks = {stem: mark_of(path) for stem, path in files.items()}
    beside = {stem for stem in files if marks[stem] == DERAINED and marks.get(stem.removesuffix("_derained"), DERAINED) is None}
    if known is None:
        return {stem: path for stem, path in files.items() if marks[stem] != LAYER and stem not in beside}
    images, left_out = {}, {stem.removesuffix("_derained") for stem in beside}
    for stem in sorted((stem for stem in files if marks[stem] != LAYER and stem not in left_out), key=len):
        source, of_another = stem.removesuffix("_derained"), f"{stem}_derained" in files
        images[stem if source in images or stem in known and not of_another else source] = files[stem]
    return dict(sorted(images.items(), key=lambda item: natural_order(item[0])))


def named_folders(texts):
    """Parse texts NAME=FOLDER or FOLDER, named after its last part, to {name: folder}. Raises ImageError for a name twice."""
    folders = {}
    for text in texts:
        name, equals, folder = text.partition("=")
        if not equals or Path(text).exists():
            name, folder = Path(text).resolve().name, text
        if not name or not folder:
            raise ImageError(f"{text}: should be a folder, or a name, = and a folder")
        if name in folders:
            raise ImageError(f"{text}: a second folder named {name}; give it another name: NAME={folder}")
        folders[name] = folder
    return folders


def score_folders(folders, target_path, protocols, extras):
    """Score the images of several folders; print on stderr which are missing or cannot be scored.

    folders: {method: folder}; under the name RAINY the rainy photographs, which say what results there should be; those with a
    result are scored. target_path: the clean photographs; None for `extras` that need none. protocols: keys of PROTOCOLS.
    extras: {name: function of `extra_score`}. Returns ({method: {image: its scores}}, number of images that there should be,
    exit code: 1 where an image is missing or failed). Raises ImageError for a folder that is missing or holds no image.
    """
    targets = list_images(target_path, "name the clean photographs' folder with --target_path") if target_path else {}
    rainy = scored_images(folders[RAINY]) if RAINY in folders else {}
    known = targets.keys() | rainy.keys()
    images = {name: rainy if name == RAINY else scored_images(folder, known) for name, folder in folders.items()}
    derained = dict.fromkeys(stem for name, files in images.items() for stem in files if name != RAINY)
    covered = {target_stem(targets, stem) for stem in derained}
    expected = list(rainy or [*derained, *(stem for stem in targets if stem not in covered)])

    def score(stem, path):
        image, clean = read_image(path), None
        if target_path:
            named = path.with_stem(target_stem(targets, stem))
            clean_path = matching_file(targets, named, target_path, "without its target it has no score")
            clean = read_image(clean_path)
            check_size(image, path, clean, clean_path)
        try:
            return scores(image, clean, protocols) | {name: extra(image, clean) for name, extra in extras.items()}
        except ImageError as error:
            raise ImageError(f"{path}: {error}") from None

    rows, failures = {name: {} for name in folders}, []
    jobs = [(name, stem, path) for name, files in images.items() for stem, path in files.items() if stem in derained]
    for name, stem, path in tqdm(jobs, unit="image", disable=None):
        try:
            rows[name][stem] = score(stem, path)
        except ImageError as error:
            failures.append(str(error))
    for name, files in images.items():
        missing = [stem for stem in expected if stem not in files]
        if missing:
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            failures.append(f"nothing in {folders[name]} for {', '.join(missing[:5])}{more}")
    for text in failures:
        print(one_line(f"evaluate.py: failed: {text}"), file=sys.stderr)
    return {name: scored for name, scored in rows.items() if scored}, len(expected), int(bool(failures))


def summarise(rows, total, dataset):
    """Return the mean scores of each folder and the published ones of the data set, a list of `Method`."""
    whole = [name for name, scored in rows.items() if len(scored) == total]
    methods = [Method(name, str(total) if name in whole else f"{len(scored)} of {total}", mean_scores(list(scored.values())),
                      ranked=name in whole and name != RAINY) for name, scored in rows.items()]
    return methods + published(dataset, list(methods[0].scores), total)


def gain(row, before):
    """Return the scores of an image less those that it had before."""
    return {key: 0.0 if row[key] == before[key] else row[key] - before[key] for key in row}  # where both are infinite as well


def gains(rows):
    """Add rows "gain", result less rainy input, where the rows are of these two alone."""
    if len(rows) != 2 or RAINY not in rows:
        return rows
    rainy, result = rows.values()  # in this order
    return {**rows, "gain": {image: gain(row, rainy[image]) for image, row in result.items() if image in rainy}}


def main(args):
    results = (args.result_path or []) + args.folders
    target = args.target_path or (results.pop() if args.folders and len(results) > 1 and not args.no_target else None)
    place = data_set(args.dataset or "Rain100L")
    folders = named_folders(results or [str(place / "result")])
    if not args.dataset and results:
        place = Path(target or next(iter(folders.values()))).resolve().parent  # the stages write results beside the targets
    target = None if args.no_target else target or place / "target"
    protocols = {"all": tuple(PROTOCOLS), "both": ("rgb", "y")}.get(args.protocol, (args.protocol,)) if target else ()
    alone = [name for name, needs_target in EXTRA.items() if not needs_target]
    if not target and not set(args.extra or ["none"]) <= set(alone):
        raise ImageError(f"--no_target: without clean photographs, only --extra {' '.join(alone)} can be scored")
    base = args.save and args.save.removesuffix(".csv").removesuffix(".md")
    if base is not None:  # before the work, not after: can it be written?
        folder, name = os.path.split(base)
        os.makedirs(folder or ".", exist_ok=True)
        if name in ("", ".", "..") or not os.access(folder or ".", os.W_OK) or os.path.isdir(f"{base}.md"):
            raise ImageError(f"--save={args.save}: no file that can be written; name one, as {os.path.join(folder, 'scores')}")

    extras, code = {}, 0
    for name in args.extra or ():
        try:
            extras[name] = extra_score(name)
        except ImageError as error:
            print(f"evaluate.py: {error}", file=sys.stderr)
            code = 1
    if not protocols and not extras:
        return code
    if args.input_path:
        folders = {RAINY: args.input_path, **folders}
    rows, total, failed = score_folders(folders, target, protocols, extras)
    if not rows:
        return 1
    methods = summarise(rows, total, place.name)
    shown, single = columns(methods[0].scores), len(rows.keys() - {RAINY}) == 1
    text = [f"{place.name}, {total} images", *(f"{PROTOCOLS[name].name}: {PROTOCOLS[name].about}" for name in protocols)]
    perfect = sum(math.inf in row.values() for scored in rows.values() for row in scored.values())
    if perfect:
        text.append(f"Equal to the target: {perfect}; an infinite PSNR is left out of the mean PSNR.")
    images = [f"\n{heading}\n\n{markdown(image_table(gains(rows), keys, total))}" for heading, keys in shown]
    means = [f"\n{markdown(overview(methods, shown[first : first + 2]))}" for first in range(0, len(shown), 2)] + [f"\n{NOTE}"]
    if args.latex:
        print(latex(overview(methods, shown, LATEX_MARKS)))
    else:
        compared = not single or methods[-1].source != MEASURED
        print("\n".join(text + (images if single else []) + (means if compared else [])))
    if base:
        write_bytes(f"{base}.md", "\n".join([*text, *means, *images, ""]).encode())
        lines = [{"method": name, "image": image, **row} for name, scored in rows.items() for image, row in scored.items()]
        for name, number, means, source, _ in methods:
            lines.append({"method": name, "image": f"mean of {number or 'all'}", **means, "source": source})
        write_bytes(f"{base}.csv", csv_text(lines).encode())
    return max(code, failed)


if __name__ == "__main__":
    parser = cli.Parser(__doc__)
    parser.add_argument("folders", nargs="*", metavar="FOLDER", help="derained photographs, and at last the clean ones")
    parser.add_argument("--result_path", action="append", metavar="[NAME=]FOLDER",
                        help="derained photographs; may be given several times, to compare (default: result/ of the data set)")
    parser.add_argument("--target_path", help="clean photographs (default: target/ of the data set or beside the results)")
    parser.add_argument("--no_target", action="store_true", help="there are none: only --extra scores that need none")
    parser.add_argument("--input_path", help="rainy photographs, to show their scores and the gain as well")
    parser.add_argument("--protocol", default="both", choices=[*PROTOCOLS, "both", "all"], help="how to compare; both: rgb, y")
    parser.add_argument("--extra", nargs="+", choices=list(EXTRA), metavar="NAME",
                        help=f"scores by the package pyiqa, lower is better, of {', '.join(EXTRA)}")
    parser.add_argument("--dataset", help="a folder under ./dataset/, of which the published figures are shown (default: that "
                                          "of the targets, or Rain100L)")
    parser.add_argument("--latex", action="store_true", help="print the means as rows of a LaTeX table")
    parser.add_argument("--save", metavar="FILE", help="write FILE.csv, all scores, and FILE.md, the tables in Markdown")
    cli.start(main, parser)
