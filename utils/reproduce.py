"""Run the stages on a data set, score what they made, and write the table: the command behind the figures of the README.

    python -m utils.reproduce --dataset="Rain100L" --recipe=fast --backbones Unet --limit=40

Stop it whenever you like: called again, it goes on. A stage whose folders are as it left them is not run again. The table,
dataset/<dataset>/scores/scores.md and .csv, holds all runs of the data set that are complete.
"""
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from models import BACKBONES
from sdrl import RECIPES
from utils import run
from utils.demo import show
from utils.evaluate import extra_scores, save, score_folders, summarise, target_stem
from utils.image import ImageError, companion, list_images, natural_order, write_bytes
from utils.metrics import EXTRA
from utils.tables import check_file, known, overview

ROOT = Path(__file__).resolve().parent.parent
FUSED = {"paper": "LDGP + NSS, fused references", "fast": "rain layers + guided samples, fused references"}
NEEDS = {"sdrl": "one image", "sdrl_online": "one image", "sdrl_all": "rainy images"}
RECORD = "runs.json"  # in the folder of scores: what has been run on which files


class Stage(NamedTuple):
    """One command, the folders that it reads and writes, and the row of the table that it ends, if it does."""

    command: list  # a script and its flags
    reads: list
    writes: list
    row: tuple = ()  # (name, what the method learns from, folder of results)


def fingerprint(folders):
    """A text that changes when a file in one of the folders, or below, is added, removed or written.

    Records and what was set aside do not count.
    """
    files = [path for folder in folders for path in sorted(Path(folder).rglob("*")) if path.is_file()
             and not any(part.startswith((".", "earlier-")) for part in path.relative_to(folder).parts)]
    states = [(path.as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps(states).encode()).hexdigest()


class Record:
    """Which stages are done, kept in a file: a stage is done while its command and all its files are as it left them."""

    def __init__(self, path):
        self.path, self.entries = Path(path), {}
        if self.path.exists():
            try:
                self.entries = {key: dict(entry) for key, entry in json.loads(self.path.read_text()).items()}
            except (ValueError, TypeError, AttributeError):
                raise ImageError(f"{path}: damaged; remove it, and the stages run again") from None

    def done(self, stage):
        return self._same(self._entry(stage))

    def rows(self):
        """The rows of all methods that are done."""
        return [tuple(entry["row"]) for entry in self.entries.values() if entry["row"] and self._same(entry)]

    def begin(self, stage):
        """Forget a stage, and what else wrote to the same folders, before its files change."""
        self._put(stage, None)

    def finish(self, stage):
        self._put(stage, fingerprint(stage.writes))

    def _entry(self, stage):
        return self.entries.get(" ".join(stage.command))

    def _same(self, entry):
        return bool(entry) and all(entry[key] == fingerprint(entry[key + "_from"]) for key in ("read", "written"))

    def _put(self, stage, written):
        reads, writes = [Path(path).as_posix() for path in stage.reads], [Path(path).as_posix() for path in stage.writes]
        self.entries = {key: entry for key, entry in self.entries.items() if not set(writes) & set(entry["written_from"])}
        self.entries[" ".join(stage.command)] = {"read_from": reads, "read": fingerprint(reads), "written_from": writes,
                                                 "written": written, "row": list(map(str, stage.row))}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(self.path, json.dumps(self.entries, indent=1).encode())


def made(folder, recipe, name):
    """Where masks, references or their means go, `name` being ldgp, sdr or sdr(fuse): each recipe has folders of its own."""
    return folder / (name if recipe == "paper" else f"{name}_{recipe}")


def references(folder, recipe):
    """The stages that make masks and references of a data set, or what the fast recipe has in their place."""
    source, masks, sdr, fused = folder / "input", *(made(folder, recipe, name) for name in ("ldgp", "sdr", "sdr(fuse)"))
    paths = [f"--input_path={source.as_posix()}/", f"--recipe={recipe}"]
    sdr_paths = [f"--ldgp_path={masks.as_posix()}/", f"--save_path={sdr.as_posix()}/", f"--fuse_save_path={fused.as_posix()}/"]
    return [Stage(["ldgp.py", *paths, f"--save_path={masks.as_posix()}/"], [source], [masks]),
            Stage(["sdr.py", *paths, *sdr_paths], [source, masks], [sdr, fused], (FUSED[recipe], NEEDS["sdrl"], fused))]


def learning(folder, method, recipe, backbone, flags):
    """The stages of one method, each with folders of its own in the data set, which are named after all that sets it."""
    what = [*([] if method == "sdrl_all" else [recipe]), backbone, *flags]
    tag = "_".join([method, *(re.sub(r"[^\w.=-]+", "-", word.lstrip("-")) for word in what)])
    result, base = folder / f"result_{tag}", folder.as_posix()
    row = " ".join([f"{method}.py", *what]), NEEDS[method], result
    command = [f"{method}.py", f"--rainy_data_path={base}/", f"--backbone={backbone}"]
    if method != "sdrl_all":
        name = "sdr" if method == "sdrl" else "ldgp"
        learnt_from = made(folder, recipe, name)
        command += [f"--{'sdr_data' if name == 'sdr' else name}_path={learnt_from.as_posix()}/", f"--recipe={recipe}"]
        command += [f"--result_path={result.as_posix()}/", *flags]
        return [Stage(command, [folder / "input", learnt_from], [result], row)]
    network = folder / f"network_{tag}"
    test = ["test_all.py", f"--data_path={base}/", f"--model_path={network.as_posix()}/model.pkl",
            f"--result_path={result.as_posix()}/", *(flag for flag in flags if flag.startswith("--device"))]
    train = [*command, f"--sdr_data_path={base}/sdr/", f"--model_save_dir={network.as_posix()}/",
             f"--result_path={network.as_posix()}/training/", *flags]
    return [Stage(train, [folder / "input", folder / "sdr"], [network]),
            Stage(test, [folder / "input", network], [result], row)]


def first_images(folder, limit):
    """Make or mend a folder inside a data set with its first `limit` photographs and their clean ones, as links or copies."""
    inputs, targets = list_images(folder / "input"), list_images(folder / "target")
    chosen = [path for paths in list(inputs.values())[:limit] for path in paths]
    stems = dict.fromkeys(target_stem(targets, path.stem) for path in chosen)
    part = folder / f"limit_{limit}"
    for name, paths in (("input", chosen), ("target", [path for stem in stems for path in targets.get(stem, ())])):
        place = part / name
        place.mkdir(parents=True, exist_ok=True)
        for path in place.iterdir():
            if path.name not in {path.name for path in paths}:
                path.unlink()
        for path in paths:
            link, state = place / path.name, path.stat()
            if link.exists() and (link.stat().st_size, link.stat().st_mtime_ns) == (state.st_size, state.st_mtime_ns):
                continue
            link.unlink(missing_ok=True)
            try:
                os.link(path, link)
            except OSError:  # a file system without links
                shutil.copy2(path, link)
    return part


def run_stage(stage, record):
    """Run a stage that is not done, as a user would; returns its exit code. Raises ImageError where it was stopped."""
    if record.done(stage):
        print(f"done before: {show(stage.command)[2:]}", flush=True)
        return 0
    record.begin(stage)
    print(f"\n{show(stage.command)}", flush=True)
    code = subprocess.run([sys.executable, str(ROOT / stage.command[0]), *stage.command[1:]]).returncode
    if code not in (0, 1):
        raise ImageError(f"{stage.command[0]}: ended with exit code {code}, so nothing was scored; call again to go on")
    if code == 0:
        record.finish(stage)
    return code


def main(args):
    whole = Path("dataset") / args.dataset
    list_images(whole / "input", "see dataset/README.md")
    targets = list_images(whole / "target", "without clean photographs there is nothing to score")
    folder = first_images(whole, args.limit) if args.limit else whole
    inputs = list_images(folder / "input")
    for paths in inputs.values():  # now rather than after hours
        named = paths[0].with_stem(target_stem(targets, paths[0].stem))
        companion(targets, named, whole / "target", "it has no score without its target")
    base = folder / "scores/scores"
    check_file(f"{base}.md")
    record = Record(folder / "scores" / RECORD)
    rows, (extras, code) = [], extra_scores(args.extra, "reproduce.py")

    recipes, backbones = args.recipe or ["paper"], args.backbones or ["Unet"]
    names = ["sdrl"] if args.methods is None else args.methods
    chosen = [learning(folder, method, recipe, backbone, args.flags) for method in names
              for recipe in (recipes if method != "sdrl_all" else recipes[:1]) for backbone in backbones]
    kinds = dict.fromkeys([*(recipes if set(names) != {"sdrl_all"} else []), *["paper"] * ("sdrl_all" in names)])
    made_first = [stage for recipe in kinds for stage in references(folder, recipe)]
    for stage in [*made_first, *(stage for stages in chosen for stage in stages)]:
        code = max(code, run_stage(stage, record))
        rows += [tuple(map(str, stage.row))] * bool(stage.row)
    rows = list(dict.fromkeys(rows)) + [row for row in sorted(record.rows(), key=natural_order) if row not in rows]
    for name, _, place in rows:
        if not list_images(place, optional=True):
            print(f"reproduce.py: failed: {place}: no result of {name}; see what its stage said above", file=sys.stderr)
            code = 1
    rows = [row for row in rows if list_images(row[2], optional=True)]
    if not rows:
        return 1

    print(flush=True)
    scored = score_folders({name: place for name, _, place in rows}, folder / "target", folder / "input", extras=extras,
                           where=f"{base}.md and .csv")
    if not scored.rows:
        return 1
    methods = summarise(scored, whole.name if known(whole.name) else None, {name: needs for name, needs, _ in rows},
                        "first " * bool(args.limit))
    title = f"{whole.name}, {'first ' * bool(args.limit)}{scored.total} images"
    save(base, scored, methods, title)
    print(f"\n{overview(methods, title)}")
    return max(code, scored.code)


if __name__ == "__main__":
    parser = run.Parser(__doc__)
    parser.add_argument("--dataset", default="Rain100L", help="a folder under ./dataset/ with input/ and target/")
    parser.add_argument("--methods", nargs="*", choices=list(NEEDS), metavar="NAME",
                        help=f"learning stages, of {', '.join(NEEDS)}; none: masks and references alone (default: sdrl)")
    parser.add_argument("--backbones", nargs="+", choices=list(BACKBONES), metavar="NAME",
                        help=f"networks to train, of {', '.join(BACKBONES)} (default: Unet)")
    parser.add_argument("--recipe", nargs="+", choices=list(RECIPES), metavar="NAME",
                        help=f"of sdrl and sdrl_online, of {', '.join(RECIPES)} (default: paper)")
    parser.add_argument("--limit", type=run.number(int, 1), metavar="N",
                        help="only the first N photographs, in the order of their names")
    parser.add_argument("--extra", nargs="+", choices=list(EXTRA), metavar="NAME",
                        help=f"scores by the package pyiqa, of {', '.join(EXTRA)}")
    parser.add_argument("flags", nargs="*", default=None, metavar="-- FLAG",
                        help="behind --: flags for the learning stages, as --steps=100")
    run.start(main, parser)
