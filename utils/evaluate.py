"""Score derained photographs against the clean ones: PSNR and SSIM in RGB and in Y, image by image and on average.

    python -m utils.evaluate --result_path="./dataset/Demo/result/" --target_path="./dataset/Demo/target/" \\
        --input_path="./dataset/Demo/input/"

The target of 901_3 is 901_3 or, where there is none, 901. rgb is the protocol of the Rain2Avoid papers, y that of most others.
Several folders, --result_path Unet=FOLDER --result_path ResNet=FOLDER, give one table, beside the published figures of the data
set if there are any.
"""
import functools
import os
import signal
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from utils import run
from utils.image import ImageError, companion, list_images, read_image
from utils.metrics import EXTRA, PROTOCOLS, extra_score, mean_scores, score_files
from utils.tables import (MEASURED, Method, check_file, csv_text, gains, image_table, images_markdown, known, mean_name,
                          overview, overview_markdown, published, write_text)

RESULTS = "./dataset/Rain100L/result/"
RAINY = "rainy input"  # its row


def target_stem(targets, stem):
    """The stem of an image's clean photograph: of 901_3 it is 901_3 or, where `targets` has only that, 901."""
    shared = stem.rpartition("_")[0]
    return shared if stem not in targets and shared in targets else stem


def named_folders(texts):
    """{name: folder} of texts "NAME=FOLDER" or "FOLDER", whose name is its last part. Raises ImageError where two are equal."""
    folders = {}
    for text in texts:
        name, equals, folder = text.partition("=")
        if not equals or Path(text).exists():
            name, folder = Path(text).resolve().name, text
        if not name or not folder:
            raise ImageError(f"--result_path {text}: should be a folder, or a name, = and a folder")
        if name in folders:
            raise ImageError(f"--result_path {text}: a second folder named {name}; give it another name: NAME={folder}")
        if Path(folder) in map(Path, folders.values()):
            raise ImageError(f"--result_path {text}: given twice; leave one out")
        folders[name] = folder
    return folders


class Scored(NamedTuple):
    """What `score_folders` returns."""

    rows: dict  # {method: {image: row of `scores` or, with the rainy input, of `gains`}}, without what could not be scored
    total: int  # images there should be
    code: int  # 0, or 1 where an image failed or is missing


def score_folders(folders, target_path=None, input_path=None, protocols=("rgb", "y"), extras=None, where="the table"):
    """Score the results of several methods, on all cores, and report on stderr what cannot be scored.

    folders: {method: folder of results}, all different. target_path: the clean photographs; None where there are none, which
    leaves the `extras` that need none. input_path: the rainy ones, for their scores and the gain, or None. protocols: keys of
    PROTOCOLS. extras: {name: function of `extra_score`}. where: named in the last line. Returns a `Scored`.
    Raises ImageError for a folder that is missing or holds no image.
    """
    results = {name: list_images(folder) for name, folder in folders.items()}
    targets = list_images(target_path) if target_path else None
    inputs = list_images(input_path) if input_path else None
    rows, method_of = {name: {} for name in folders}, {}
    for name, found in results.items():
        method_of |= {path: name for paths in found.values() for path in paths}

    def sources(path):
        """The files that a row is made of: ([the result and, if asked for, the rainy input], the target or None)."""
        found, clean_path = [path], None
        if targets is not None:
            named = path.with_stem(target_stem(targets, path.stem))
            clean_path = companion(targets, named, target_path, "without its target it has no score")
        if inputs is not None:
            found.append(companion(inputs, path, input_path, "leave out --input_path"))
        return found, clean_path

    @functools.cache  # of a rainy input for every method
    def score(path, clean_path):
        row = dict(pending[path, clean_path].result()) if protocols else {}
        if extras:
            image, target = read_image(path), None if clean_path is None else read_image(clean_path)
            for name, function in extras.items():
                try:
                    row[name] = function(image, target)
                except ImageError as error:
                    raise ImageError(f"{path}: {error}") from None
        return row

    def work(path, bar):
        found, clean_path = sources(path)
        result, *rainy = (score(file, clean_path) for file in found)
        rows[method_of[path]][path.stem] = gains(result, *rainy) if rainy else result

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    # Ctrl-C is for this process alone
    pool = ProcessPoolExecutor(min(cores, len(method_of)), initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))
    pending = {}
    try:
        for path in method_of if protocols else ():
            try:
                found, clean_path = sources(path)
            except ImageError:
                continue  # `work` meets it again, and it is reported there
            for file in found:
                if (file, clean_path) not in pending:
                    pending[file, clean_path] = pool.submit(score_files, file, clean_path, protocols)
        jobs = {f"{name}/{stem}": paths for name, found in results.items() for stem, paths in found.items()}
        code = run.each_image(jobs, work, where)
    finally:
        pool.shutdown(cancel_futures=True)

    every = list(inputs or dict.fromkeys(stem for found in results.values() for stem in found))
    missing = {name: [stem for stem in every if stem not in found] for name, found in results.items()}
    if inputs is None and targets is not None:
        covered = {target_stem(targets, stem) for stem in every}
        without = [stem for stem in targets if stem not in covered]
        every, missing = every + without, {name: stems + without for name, stems in missing.items()}
    for name, stems in missing.items():
        if stems:
            names = ", ".join(stems[:5]) + f" and {len(stems) - 5} more" * (len(stems) > 5)
            print(f"{Path(sys.argv[0]).name}: failed: nothing in {folders[name]} for {names}", file=sys.stderr)
    return Scored({name: found for name, found in rows.items() if found}, len(every), 1 if any(missing.values()) else code)


def summarise(scored, dataset=None, needs=None, which=""):
    """The rows of the overview, a list of `Method`: the rainy input, every method, and what is published of the data set.

    needs: {method: what it learns from}, if that is known. which: in front of the number of images.
    """
    methods, rainy = [], {}
    for name, rows in scored.rows.items():
        means = mean_scores(list(rows.values()))
        for image, row in rows.items():
            rainy[image] = {key[: -len("_input")]: value for key, value in row.items() if key.endswith("_input")}
        images = f"{which}{len(rows)}" + f" of {scored.total}" * (len(rows) != scored.total)
        own = {key: value for key, value in means.items() if not key.endswith(("_input", "_gain"))}
        methods.append(Method(name, images, own, needs=(needs or {}).get(name, ""), ranked=len(rows) == scored.total))
    if any(rainy.values()):
        methods.insert(0, Method(RAINY, f"{which}{len(rainy)}", mean_scores(list(rainy.values()))))
    return methods + (published(dataset, list(methods[0].scores), scored.total) if dataset else [])


def chunks(keys):
    """[(title, [one or two scores])] of the scores of a row, as tables of images show them."""
    shown = {name: protocol.title for name, protocol in PROTOCOLS.items() if f"psnr_{name}" in keys}
    pairs = [(title, [f"psnr_{name}", f"ssim_{name}"]) for name, title in shown.items()]
    extras = [key for key in keys if key in EXTRA]
    return pairs + [("pyiqa (lower is better)", extras[first : first + 2]) for first in range(0, len(extras), 2)]


def save(path, scored, methods, title):
    """Write <path>.csv, all images, means and published figures, and <path>.md, the overview and the images by protocol."""
    lines = []
    for name, rows in scored.rows.items():
        means = {mean_name(rows, scored.total): mean_scores(list(rows.values()))}
        lines += [{"method": name, "image": image, "source": MEASURED, **row} for image, row in {**rows, **means}.items()]
    lines += [{"method": method.name, "image": f"mean of {method.images}".removesuffix(" of "), "source": method.source,
               **method.scores} for method in methods if method.source != MEASURED]
    write_text(f"{path}.csv", csv_text(lines))
    totals = dict.fromkeys(scored.rows, scored.total)
    tables = [images_markdown(scored.rows, keys, title, totals) for title, keys in chunks(methods[0].scores)]
    write_text(f"{path}.md", "\n\n".join([title, overview_markdown(methods), *tables]) + "\n")


def extra_scores(names, program):
    """({name: its `extra_score`} of those that can be had, exit code); a line for each that cannot."""
    found, code = {}, 0
    for name in dict.fromkeys(names or []):
        try:
            found[name] = extra_score(name)
        except ImageError as error:
            print(f"{program}: {error}", file=sys.stderr)
            code = 1
    return found, code


def main(args):
    folders = named_folders(args.result_path or [RESULTS])
    base = args.save and args.save.removesuffix(".csv").removesuffix(".md")
    files = [args.csv] * bool(args.csv) + [f"{base}.csv", f"{base}.md"] * bool(args.save)
    for path in files:
        check_file(path)
    target = None if args.no_target else args.target_path
    protocols = {"all": tuple(PROTOCOLS), "both": ("rgb", "y")}.get(args.protocol, (args.protocol,)) if target else ()
    if not target and (not args.extra or any(EXTRA[name] for name in args.extra)):
        alone = " ".join(name for name, needs_target in EXTRA.items() if not needs_target)
        raise ImageError(f"--no_target: without clean photographs, only --extra {alone} can be scored")
    place = Path(target or args.input_path or next(iter(folders.values()))).resolve().parent.name
    dataset = args.dataset or (place if known(place) else None)
    if args.dataset:
        published(dataset, [], 0)  # before the work, not after: is it a data set with figures?

    extras, code = extra_scores(args.extra, "evaluate.py")
    if not protocols and not extras:
        return code
    scored = score_folders(folders, target, args.input_path, protocols, extras, " and ".join(["the table", *files]))
    if not scored.rows:
        return 1
    methods = summarise(scored, dataset)
    if len(scored.rows) == 1:
        for title, keys in chunks(methods[0].scores):
            print(f"\n{image_table(*scored.rows.values(), keys, title, scored.total)}")
    if len(folders) > 1 or methods[-1].source != MEASURED:
        print(f"\n{overview(methods, dataset or place)}")
    if args.csv:
        lines = [{**({"method": name} if len(folders) > 1 else {}), "image": image, **row}
                 for name, rows in scored.rows.items() for image, row in rows.items()]
        write_text(args.csv, csv_text(lines))
    if args.save:
        save(base, scored, methods, f"{dataset or place}, {scored.total} images")
    return max(code, scored.code)


if __name__ == "__main__":
    parser = run.Parser(__doc__)
    parser.add_argument("--result_path", action="append", metavar="[NAME=]FOLDER",
                        help=f"derained photographs; may be given several times, to compare (default: {RESULTS})")
    parser.add_argument("--target_path", default="./dataset/Rain100L/target/", help="clean photographs, by the same names")
    parser.add_argument("--no_target", action="store_true", help="there are none: only --extra scores that need none")
    parser.add_argument("--input_path", help="rainy photographs, to show their scores and the gain as well")
    parser.add_argument("--protocol", default="both", choices=[*PROTOCOLS, "both", "all"],
                        help="what is compared; both: rgb and y")
    parser.add_argument("--extra", nargs="+", choices=list(EXTRA), metavar="NAME",
                        help=f"scores by the package pyiqa, lower is better, of {', '.join(EXTRA)}")
    parser.add_argument("--dataset", help="show the published figures of this one (default: the folder that holds the targets)")
    parser.add_argument("--csv", help="a file for the scores of the images as comma-separated values")
    parser.add_argument("--save", metavar="FILE", help="write FILE.csv, images and means, and FILE.md, the tables as Markdown")
    run.start(main, parser)
