"""Run all stages on a data set, one after the other, and print the table of their scores.

    python -m utils.reproduce --dataset="Rain100L" --recipe=fast --limit=40 --methods sdrl_online

Stop it whenever you like: called again, it goes on. Each run has folders of its own in the data set. The table,
dataset/<dataset>/scores/scores.md and .csv, holds all that are there.
"""
import filecmp
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from utils import cli
from models import BACKBONES
from utils.evaluate import target_stem
from utils.image import ImageError, data_set, list_images, matching_file, natural_order
from utils.metrics import EXTRA

ROOT = Path(__file__).resolve().parent.parent
METHODS = "sdrl", "sdrl_online", "sdrl_all"
SUFFIX = {"paper": "", "fast": "_fast"}  # each recipe has folders of its own


def first_images(data, limit):
    """Bring data/limit_<limit>/ up to date, a data set of copies of the first photographs and their clean ones; return it."""
    inputs, targets = list_images(data / "input"), list_images(data / "target")
    chosen = list(inputs.values())[:limit]
    stems = dict.fromkeys(target_stem(targets, path.stem) for path in chosen)
    for name, paths in (("input", chosen), ("target", [targets[stem] for stem in stems if stem in targets])):
        folder = data / f"limit_{limit}" / name
        folder.mkdir(parents=True, exist_ok=True)
        copies = {folder / path.name: path for path in paths}
        for path in set(folder.iterdir()) - copies.keys():
            path.unlink()
        for copy, path in copies.items():
            if not copy.exists() or not filecmp.cmp(path, copy):
                shutil.copy2(path, copy)
    return data / f"limit_{limit}"


def references(data, recipe):
    """Return the commands that make masks and references, or layers and guided samples."""
    ldgp, sdr, fused = (f"{data}/{name}{SUFFIX[recipe]}" for name in ("ldgp", "sdr", "sdr(fuse)"))
    source = f"--input_path={data}/input", f"--recipe={recipe}"
    return [["ldgp.py", *source, f"--save_path={ldgp}"],
            ["sdr.py", *source, f"--ldgp_path={ldgp}", f"--save_path={sdr}", f"--fuse_save_path={fused}"]]


def learning(data, method, recipe, backbone, flags):
    """Return the command of one learning stage, whose folders are named after all its settings."""
    run_name = "_".join([method, recipe, backbone, *(re.sub(r"[^\w.=-]+", "-", flag.lstrip("-")) for flag in flags)])
    source = f"--ldgp_path={data}/ldgp" if method == "sdrl_online" else f"--sdr_data_path={data}/sdr"
    network = [f"--model_save_dir={data}/network_{run_name}"] if method == "sdrl_all" else []
    return [f"{method}.py", f"--rainy_data_path={data}", f"--recipe={recipe}", f"--backbone={backbone}",
            source + SUFFIX[recipe], f"--result_path={data}/result_{run_name}", *network, *flags]


def main(args):
    whole = data_set(args.dataset)
    list_images(whole / "input", "see dataset/README.md")
    targets = list_images(whole / "target", "without clean photographs there is nothing to score")
    data = first_images(whole, args.limit) if args.limit else whole
    for path in list_images(data / "input").values():  # now rather than after hours
        named = path.with_stem(target_stem(targets, path.stem))
        matching_file(targets, named, whole / "target", "it has no score without its target")
    for word in args.flags:
        if re.match("--(rainy_data|sdr_data|ldgp|result)_path|--(recipe|backbone|model_save_dir|overwrite)", word):
            raise ImageError(f"{word}: cannot stand behind --, since it is set here (see --help)")
    commands = [command for recipe in args.recipe for command in references(data, recipe)]
    commands += [learning(data, method, recipe, backbone, args.flags)
                 for method in args.methods for recipe in args.recipe for backbone in args.backbones]

    code = 0
    for number, command in enumerate(commands, 1):
        print(f"\nstage {number} of {len(commands)}: python {shlex.join(command)}", flush=True)
        ended = subprocess.run([sys.executable, ROOT / command[0], *command[1:]]).returncode
        if ended not in (0, 1):
            raise ImageError(f"{command[0]}: ended with exit code {ended}, see above; the same command goes on from there")
        code = max(code, ended)

    runs = [path for pattern in ("sdr(fuse)*", "result_*") for path in sorted(data.glob(pattern), key=natural_order)]
    folders = [f"{run.name.removeprefix('result_').replace('=', ' ')}={run}" for run in runs if list_images(run, optional=True)]
    print(f"\nscores, also in {data}/scores/scores.md and .csv:\n", flush=True)
    command = [sys.executable, "-m", "utils.evaluate", *folders, f"{data}/target", f"--input_path={data}/input",
               f"--dataset={args.dataset}", f"--save={data}/scores/scores", *(["--extra", *args.extra] if args.extra else [])]
    return max(code, subprocess.run(command).returncode)


if __name__ == "__main__":
    parser = cli.Parser(__doc__)
    parser.add_argument("--dataset", default="Rain100L", help="a folder under ./dataset/, or its path, with input/ and target/")
    parser.add_argument("--methods", nargs="*", default=["sdrl"], choices=METHODS, metavar="NAME",
                        help=f"learning stages, of {', '.join(METHODS)}; none: masks and references alone")
    parser.add_argument("--backbones", nargs="+", default=["Unet"], choices=list(BACKBONES), metavar="NAME",
                        help=f"networks to train, of {', '.join(BACKBONES)}")
    parser.add_argument("--recipe", nargs="+", default=["paper"], choices=["paper", "fast"], help="one or both")
    parser.add_argument("--limit", type=cli.number(int, 1), metavar="N", help="only the first N photographs, by their names")
    parser.add_argument("--extra", nargs="+", choices=EXTRA, metavar="NAME", help=f"scores by pyiqa, of {', '.join(EXTRA)}")
    parser.add_argument("flags", nargs="*", metavar="-- FLAG", help="behind --: flags for the learning stages, as --steps=100")
    cli.start(main, parser)
