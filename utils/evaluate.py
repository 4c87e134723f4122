"""Score derained photographs against the clean ones: PSNR and SSIM in RGB and in Y, image by image and on average.

    python -m utils.evaluate ./dataset/Demo/result/ ./dataset/Demo/target/ --input_path="./dataset/Demo/input/"

The last folder holds the clean photographs. Several folders before it, each FOLDER or NAME=FOLDER, are compared in one table,
with the published figures of the data set below. The target of 901_3 is 901_3 or 901, and that of rain-001 is norain-001. rgb
is the protocol of the Rain2Avoid papers, y that of most others.
"""
import math
import sys
from pathlib import Path

from utils import run
from utils.image import ImageError, check_size, companion, list_images, one_line, read_image, write_bytes
from utils.metrics import EXTRA, PROTOCOLS, extra_score, mean_scores, scores
from utils.tables import Method, columns, csv_text, image_table, latex, markdown, overview, published

RAINY = "rainy input"  # its row


def target_stem(targets, stem):
    """The stem of an image's clean photograph among `targets`: of 901_3 it is 901_3 or 901, of rain-001 norain-001."""
    names = stem, stem.rpartition("_")[0], f"no{stem}", stem.removeprefix("no")
    return next((name for name in names if name in targets), stem)


def named_folders(texts):
    """{name: folder} of texts "NAME=FOLDER" or "FOLDER", whose name is its last part. Raises ImageError where two are equal."""
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
    """Score several folders. What cannot be scored, and what is missing, is listed on stderr.

    folders: {method: folder}; under the name RAINY the rainy photographs, which say what results there should be, and of
    which only those with a result are scored. target_path: the clean photographs; None leaves the `extras` that need none.
    protocols: keys of PROTOCOLS. extras: {name: function of `extra_score`}. Returns ({method: {image: its scores}}, number of
    images that there should be, exit code: 1 where an image is missing or failed). Raises ImageError for a folder that is
    missing or holds no image.
    """
    results = {name: list_images(folder) for name, folder in folders.items()}
    targets = list_images(target_path, "name the clean photographs' folder last") if target_path else {}
    there = dict.fromkeys(stem for name, found in results.items() for stem in found if name != RAINY)
    covered = {target_stem(targets, stem) for stem in there}
    expected = list(results.get(RAINY) or [*there, *(stem for stem in targets if stem not in covered)])

    def score(path):
        image, clean = read_image(path), None
        if target_path:
            named = path.with_stem(target_stem(targets, path.stem))
            clean_path = companion(targets, named, target_path, "without its target it has no score")
            clean = read_image(clean_path)
            check_size(image, path, clean, clean_path)
        try:
            return scores(image, clean, protocols) | {name: extra(image, clean) for name, extra in extras.items()}
        except ImageError as error:
            raise ImageError(f"{path}: {error}") from None

    rows, failures = {name: {} for name in folders}, []
    jobs = [(name, stem, path) for name, found in results.items() for stem, path in found.items() if stem in there]
    for name, stem, path in run.progress_bar(jobs, unit="image"):
        try:
            rows[name][stem] = score(path)
        except ImageError as error:
            failures.append(str(error))
    for name, found in results.items():
        missing = [stem for stem in expected if stem not in found]
        if missing:
            failures.append(f"nothing in {folders[name]} for {', '.join(missing)}")
    for text in failures:
        print(one_line(f"evaluate.py: failed: {text}"), file=sys.stderr)
    return {name: found for name, found in rows.items() if found}, len(expected), int(bool(failures))


def summarise(rows, total, dataset):
    """The rows of the overview, a list of `Method`: every folder, and what is published of the data set."""
    methods = []
    for name, found in rows.items():
        images = str(total) if len(found) == total else f"{len(found)} of {total}"
        methods.append(Method(name, images, mean_scores(list(found.values()))))
    return methods + published(dataset, list(methods[0].scores), total)


def main(args):
    given = args.folders or ["./dataset/Rain100L/result/", "./dataset/Rain100L/target/"]
    target = None if args.no_target else given.pop()
    folders, alone = named_folders(given), [name for name, needs_target in EXTRA.items() if not needs_target]
    if not folders:
        raise ImageError(f"{target}: name the folders with derained photographs before it, if it has the clean ones")
    if not target and not set(args.extra or ["none"]) <= set(alone):
        raise ImageError(f"--no_target: without clean photographs, only --extra {' '.join(alone)} can be scored")
    dataset = args.dataset or Path(target or given[-1]).resolve().parent.name
    protocols = args.protocol if target else ()
    base = args.save and args.save.removesuffix(".csv").removesuffix(".md")
    if base:
        Path(base).parent.mkdir(parents=True, exist_ok=True)  # before the work, not after: can it be written?
    extras, code = {}, 0
    for name in args.extra or ():
        try:
            extras[name] = extra_score(name)
        except ImageError as error:  # the other scores still come
            print(f"evaluate.py: {error}", file=sys.stderr)
            code = 1
    if args.input_path:
        folders = {RAINY: args.input_path, **folders}
    rows, total, failed = score_folders(folders, target, protocols, extras)
    if not rows or not (protocols or extras):
        return 1

    methods = summarise(rows, total, dataset)
    shown = columns(methods[0].scores)
    text = [f"{dataset}, {total} images", *(f"{PROTOCOLS[name].name}: {PROTOCOLS[name].about}" for name in protocols)]
    perfect = sum(math.inf in row.values() for found in rows.values() for row in found.values())
    if perfect:
        text.append(f"Equal to the target: {perfect}; an infinite PSNR is left out of the mean PSNR.")
    images = [f"\n{heading}\n\n{markdown(image_table(rows, keys, total))}" for heading, keys in shown]
    means = [f"\n{markdown(overview(methods, shown))}"]
    if args.latex:
        print(latex(overview(methods, shown)))
    else:
        print("\n".join([*text, *(images if len(rows.keys() - {RAINY}) == 1 else []), *means]))
    if base:
        write_bytes(f"{base}.md", "\n".join([*text, *means, *images, ""]).encode())
        lines = [{"method": name, "image": image, **row} for name, found in rows.items() for image, row in found.items()]
        lines += [{"method": method.name, "image": f"mean of {method.images or 'all'}", **method.scores,
                   "source": method.source} for method in methods]
        write_bytes(f"{base}.csv", csv_text(lines).encode())
    return max(code, failed)


if __name__ == "__main__":
    parser = run.Parser(__doc__)
    parser.add_argument("folders", nargs="*", metavar="[NAME=]FOLDER",
                        help="derained photographs, and at last the clean ones (default: result/ and target/ of Rain100L)")
    parser.add_argument("--no_target", action="store_true", help="there are no clean ones: only --extra scores that need none")
    parser.add_argument("--input_path", help="rainy photographs, to show their scores as well")
    parser.add_argument("--protocol", nargs="+", default=["rgb", "y"], choices=list(PROTOCOLS), metavar="NAME",
                        help=f"what is compared, of {', '.join(PROTOCOLS)}")
    parser.add_argument("--extra", nargs="+", choices=list(EXTRA), metavar="NAME",
                        help=f"scores by the package pyiqa, lower is better, of {', '.join(EXTRA)}")
    parser.add_argument("--dataset", help="whose published figures are shown (default: the folder that the last one lies in)")
    parser.add_argument("--latex", action="store_true", help="print the means as rows of a LaTeX table")
    parser.add_argument("--save", metavar="FILE", help="write FILE.csv, all scores, and FILE.md, the tables in Markdown")
    run.start(main, parser)
