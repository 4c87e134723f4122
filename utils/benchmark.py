"""Measure a stage on this machine: seconds and their spread, growth with the photograph's size, memory.

    python -m utils.benchmark sdr --data_path="./dataset/Rain100L"

The tables are Markdown. A time is the median over the photographs, each measured --repeats times (the median again), with
the quartiles over the photographs. Nothing is left behind: what is written goes to a temporary folder.
"""
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np

from ldgp import dominant_angle, rain_direction, rain_layer, rain_mask
from sdr import GuidedSampler, Sampler, fuse
from utils import run
from utils.image import PNG_FAST, ImageError, list_images, only, png_bytes, read_image, write_png

ROOT = Path(__file__).resolve().parent.parent
SIZES = (0.15, 0.6, 2.4, 9.6)  # megapixels; the first is about what Rain100L has
LARGE = 12  # megapixels, a photograph as telephones take them; for memory
THRESHOLD = 10  # of NSS: what is above it is filled
RECIPES = {"paper": (rain_mask, Sampler), "fast": (rain_layer, GuidedSampler)}


# ---- shared by all stages


def machine():
    """What the figures depend on: date, processor, cores, load, versions; a few lines of text."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    versions = f"Python {platform.python_version()}, NumPy {np.__version__}, OpenCV {cv2.__version__}"
    text = f"{time.strftime('%Y-%m-%d')}, {processor()}, {cores} cores{load}, {platform.system()} {platform.machine()}\n"
    if not find_spec("torch"):
        return text + versions
    import torch

    gpu = f"\n{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}" if torch.cuda.is_available() else ", no GPU"
    return text + versions + f", torch {torch.__version__}" + gpu


def processor():
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"


@contextmanager
def one_core():
    """Keep this process to one core, where the system can, and OpenCV to one thread; say so if others used that core."""
    threads, cores = cv2.getNumThreads(), os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    cv2.setNumThreads(1)
    if cores:
        os.sched_setaffinity(0, {max(cores)})
    began = time.process_time(), time.perf_counter()
    try:
        yield
        share = (time.process_time() - began[0]) / (time.perf_counter() - began[1])
        if share < 0.95:
            print(f"\nOther programs were busy: this one had {share:.0%} of its core, so the times are too long.")
    finally:
        cv2.setNumThreads(threads)
        if cores:
            os.sched_setaffinity(0, cores)


def seconds(function, repeats, settle=lambda: None):
    """The median time of a call. settle: waits for what the call has set going, on a GPU."""
    taken = []
    for _ in range(repeats):
        settle()
        began = time.perf_counter()
        function()
        settle()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def table(title, *columns):
    """Print a title and the head of a Markdown table; return the function that prints a row, text to the left of numbers.

    columns: (name, width) each; the widths and 3 more a column make at most 79.
    """
    assert sum(width + 3 for _, width in columns) < 80

    def row(*cells):
        text = [f"{cell:{'<' if at == 0 else '>'}{width}}" for at, (cell, (_, width)) in enumerate(zip(cells, columns))]
        print(f"| {' | '.join(text)} |", flush=True)

    print(f"\n{title}\n")
    row(*(name for name, _ in columns))
    row(*("-" * (width - (at > 0)) + ":" * (at > 0) for at, (_, width) in enumerate(columns)))
    return row


def spread(values):
    """Cells of a table: the median of some seconds, and their quartiles."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return scaled(middle), f"{scaled(low)} to {scaled(high)}"


def scaled(value):
    """Seconds as text with a unit and three digits."""
    scale, unit = (1, "s") if value >= 1 else (1e3, "ms") if value >= 1e-3 else (1e6, "us")
    number = value * scale
    return f"{number:.{max(0, 2 - int(math.log10(number)))}f} {unit}" if number > 0 else "0 s"


def photographs(args):
    """{stem: path} of the first --images photographs of the data set or, where it has none, of the demo set."""
    folder = Path(args.data_path) / "input"
    try:
        files = list_images(folder)
    except ImageError as error:
        folder = ROOT / "dataset/Demo/input"
        print(f"{error}\nMeasured on the demo set instead.")
        files = list_images(folder)
    chosen = {stem: only(paths) for stem, paths in list(files.items())[: args.images or None]}
    print(f"{len(chosen)} photographs of {'/'.join(folder.parts[-3:])}, {args.repeats} times each")
    return chosen


def enlarge(array, megapixels):
    """A photograph or mask of this size, 3 to 2: cut, or tiled, which keeps its share of rain and its direction."""
    height = round(math.sqrt(megapixels * 1e6 / 1.5))
    width = round(1.5 * height)
    margins = [(0, max(0, height - array.shape[0])), (0, max(0, width - array.shape[1])), (0, 0)]
    return np.ascontiguousarray(np.pad(array, margins[: array.ndim], mode="wrap")[:height, :width])


def growth(title, prepare, repeats):
    """A table of time against size with the fitted exponent. prepare(megapixels) -> (function to time, share of rain)."""
    row = table(title, ("megapixels", 12), ("seconds", 12), ("a megapixel", 14), ("rain", 8))
    taken = []
    for size in SIZES:
        function, rain = prepare(size)
        taken.append(seconds(function, repeats))
        row(f"{size:.2f}", f"{taken[-1]:.3f}", scaled(taken[-1] / size), f"{rain:.1%}")
    print(f"\nTime grows as the number of pixels to the power {np.polyfit(np.log(SIZES), np.log(taken), 1)[0]:.2f}.")


# ---- ldgp


def measure_ldgp(args):
    paths = photographs(args)
    with one_core():
        steps = {
            "read the file": lambda path, image: read_image(path),
            "angle of an image in memory": lambda path, image: dominant_angle(image),
            "mask of an image in memory, with its angle": lambda path, image: rain_mask(image),
            "from the file to the mask": lambda path, image: rain_mask(read_image(path)),
            "fast: direction of the rain": lambda path, image: rain_direction(image),
            "fast: rain layer, with scale and direction": lambda path, image: rain_layer(image),
        }
        row = table("LDGP, an image, one core", ("step", 42), ("median", 9), ("quartiles", 18))
        for name, step in steps.items():
            taken = []
            for path in paths.values():
                image = read_image(path)
                taken.append(seconds(lambda: step(path, image), args.repeats))
            row(name, *spread(taken))

        stem, path = next(iter(paths.items()))
        photograph = read_image(path)
        for recipe, (find, _) in RECIPES.items():

            def prepare(size):
                image = enlarge(photograph, size)
                return lambda: find(image), np.mean(find(image) > 0)

            growth(f"Finding the rain, {recipe}, against size, one core, photograph {stem} tiled", prepare, args.repeats)


# ---- sdr


def measure_sdr(args):
    images = {stem: read_image(path) for stem, path in photographs(args).items()}
    masks = {stem: rain_mask(image) for stem, image in images.items()}
    layers = {stem: rain_layer(image) for stem, image in images.items()}
    filled = {stem: np.count_nonzero(mask > THRESHOLD) for stem, mask in masks.items()}
    stem = sorted(images, key=lambda stem: filled[stem] / masks[stem].size)[len(images) // 2]
    image, mask, layer = images[stem], masks[stem], layers[stem]  # of middling rain, for what takes one photograph
    shares = ([np.mean(found[stem] > low) for stem in images] for found, low in ((masks, THRESHOLD), (layers, 0)))
    print("{:.1%} of the pixels are filled by NSS, {:.1%} by guided samples (median)".format(*map(np.median, shares)))

    with one_core():
        taken = {stem: seconds(lambda: sample(Sampler(images[stem], masks[stem])), args.repeats) for stem in images}
        row = table("References in memory, one core", ("for", 42), ("median", 9), ("quartiles", 18))
        row("NSS, 50 references", *spread(list(taken.values())))
        row("NSS, a filled pixel", *spread([taken[stem] / max(1, filled[stem]) for stem in images]))
        for name, work in {"their expectation": GuidedSampler.expectation, "50 references": sample}.items():
            guided = [seconds(lambda: work(GuidedSampler(images[stem], layers[stem])), args.repeats) for stem in images]
            row(f"guided samples, {name}", *spread(guided))
        literal_rows(row, image, mask, taken[stem] / max(1, filled[stem]))
        png_table(images, masks, args.repeats)
        for name, rain, low, make, work in (("NSS, 50 references", mask, THRESHOLD, Sampler, sample),
                                            ("Guided samples, expectation", layer, 0, GuidedSampler, GuidedSampler.expectation),
                                            ("Guided samples, 50 references", layer, 0, GuidedSampler, sample)):

            def prepare(size):
                large, large_rain = enlarge(image, size), enlarge(rain, size)
                return lambda: work(make(large, large_rain)), np.mean(large_rain > low)

            growth(f"{name}, against size, one core, photograph {stem} tiled", prepare, args.repeats)
    whole_script(images, masks)
    large_table(image)
    fresh_table(Sampler(image, mask), args.repeats)


def sample(sampler, number=50):
    """Draw all references, each let go of before the next."""
    for _ in sampler.references(number):
        pass


def literal_rows(row, image, mask, fast):
    """How much slower the literal version is, on a crop that it can manage. fast: seconds a filled pixel of the fast one."""
    sys.path.append(str(ROOT / "tests"))
    import literal

    top, left = (max(0, (side - size) // 2) for side, size in zip(mask.shape, (64, 96)))
    crop, crop_mask = (np.ascontiguousarray(array[top : top + 64, left : left + 96]) for array in (image, mask))
    number = np.count_nonzero(crop_mask > THRESHOLD)
    if not number:
        return print("The middle of this photograph holds no rain: the literal version is left out.")
    began = time.perf_counter()
    expected = literal.references(crop, crop_mask)
    slow = (time.perf_counter() - began) / number
    same = np.array_equal(expected, list(Sampler(crop, crop_mask).references()))
    row("a filled pixel, literal version, on a crop", scaled(slow), f"{slow / fast:.0f} times")
    print(f"\nThe two give {'the same bytes' if same else 'DIFFERENT REFERENCES'} on the crop, {number} filled pixels.")


def png_table(images, masks, repeats):
    choices = {
        "level 1": (cv2.IMWRITE_PNG_COMPRESSION, 1),
        "OpenCV's default": (),
        "runs only (RLE)": (cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE),
        "Huffman codes only": (cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY),
    }
    references = [next(Sampler(images[stem], masks[stem]).references(1)) for stem in images]
    row = table("PNG of a reference, one core", ("compression", 31), ("median", 9), ("quartiles", 18), ("kB", 6))
    for name, options in choices.items():
        taken = [seconds(lambda: png_bytes(one, options), repeats) for one in references]
        size = statistics.median(len(png_bytes(one, options)) for one in references)
        row(name + ", as written" * (options == PNG_FAST), *spread(taken), f"{size / 1e3:.0f}")


def whole_script(images, masks):
    """sdr.py as a user runs it, over all photographs, on all cores."""
    with tempfile.TemporaryDirectory() as folder:
        for stem in images:
            write_png(f"{folder}/input/{stem}.png", images[stem])
            write_png(f"{folder}/ldgp/{stem}.png", masks[stem])
        names = {"input_path": "input", "ldgp_path": "ldgp", "save_path": "sdr", "fuse_save_path": "sdr(fuse)"}
        command = [sys.executable, ROOT / "sdr.py", *(f"--{flag}={folder}/{name}" for flag, name in names.items())]
        began = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        taken = time.perf_counter() - began
    row = table("sdr.py as a whole, 50 references and their mean as files, all cores", ("over", 60), ("an image", 12))
    row(f"{len(images)} photographs, the start of Python included", scaled(taken / len(images)))
    last = (done.stdout.splitlines() or [f"exit code {done.returncode}"])[-1]
    print(f"\nIts last line: {last.partition(', results in')[0]}")


def large_table(image):
    """Time and peak memory of processes of their own that work on one large photograph, of one recipe each."""
    row = table(f"{LARGE} megapixels, a process of its own, all cores", ("after", 51), ("seconds", 9), ("peak MB", 9))
    with tempfile.TemporaryDirectory() as folder:
        write_png(f"{folder}/image.png", enlarge(image, LARGE))
        for recipe in RECIPES:
            command = [sys.executable, "-c", "import sys, utils.benchmark as b; b.print_peaks(*sys.argv[1:])", folder, recipe]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            if done.returncode:
                print(f"\nCould not be measured: {(done.stderr.splitlines() or ['no message'])[-1]}")
            for step, (taken, peak) in json.loads(done.stdout or "{}").items():
                row(f"{recipe}: {step}", f"{taken:.2f}", f"{peak:.0f}")


def print_peaks(folder, recipe):
    done = {}

    def step(name, work):
        began = time.perf_counter()
        result = work()
        done[name] = time.perf_counter() - began, peak_memory()
        return result

    find, sampler_of = RECIPES[recipe]
    step("nothing but the imports", int)
    image = step("reading the photograph", lambda: read_image(f"{folder}/image.png"))
    rain = step("finding the rain", lambda: find(image))
    sampler = step("preparing to draw", lambda: sampler_of(image, rain))
    if recipe == "fast":
        step("the references' expectation", sampler.expectation)
    step("50 references, drawn and fused one by one", lambda: fuse(sampler.references()))
    print(json.dumps(done))


def peak_memory():
    """The most memory that this process has held, in MB.

    Linux counts a parent's memory into ru_maxrss of a new process, and says VmHWM for the process alone.
    """
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024 / 1e6
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def fresh_table(sampler, repeats):
    """A reference drawn afresh, as a network that learns from draws asks for in every step."""
    if not find_spec("torch"):
        return
    import torch

    from sdrl_online import fresh_references

    row = table("A fresh reference, all cores", ("with", 60), ("median", 12))
    for device in ["cpu", *["cuda"] * torch.cuda.is_available()]:
        references = fresh_references(sampler, torch.Generator(device).manual_seed(0))
        settle = torch.cuda.synchronize if device == "cuda" else lambda: None
        next(references)  # makes the tables
        row(f"NSS, torch on {device}", scaled(seconds(lambda: next(references), 10 * repeats, settle)))


def measure_learning(args):
    from utils.benchmark_sdrl import measure_sdrl  # here, so that the other stages do not wait for torch

    measure_sdrl(args, table)


def size(text):
    """An argparse type: 240x160 as (240, 160)."""
    width, height = map(int, text.lower().split("x"))
    if min(width, height) < 1:
        raise ValueError(text)
    return width, height


STAGES = {"ldgp": measure_ldgp, "sdr": measure_sdr, "sdrl": measure_learning}


def main(args):
    print(machine())
    STAGES[args.stage](args)


if __name__ == "__main__":
    parser = run.Parser(__doc__)
    parser.add_argument("stage", choices=list(STAGES), help="what to measure")
    parser.add_argument("--data_path", default="./dataset/Rain100L", help="a data set with photographs in input/")
    parser.add_argument("--images", type=run.number(int, 0), default=0, help="how many photographs; 0: all")
    parser.add_argument("--repeats", type=run.number(int, 1), default=3, help="how often each is measured")
    learning = parser.add_argument_group("sdrl only")
    learning.add_argument("--recipe", nargs="+", default=["paper", "fast"], choices=["paper", "fast"],
                          help="what is run on each photograph")
    learning.add_argument("--every", type=run.number(int, 1), default=1, help="take every so many-th photograph")
    learning.add_argument("--size", type=size, help="width x height of the middle that is used, as in 240x160 (default: all)")
    learning.add_argument("--steps", nargs="+", type=run.number(int, 0),
                          help="how long to learn, each a run of its own; 0: not at all (default: as the recipe has it)")
    learning.add_argument("--backbone", default="Unet", help="network to train: Unet, ResNet, DnCNN, Restormer, DRSFormer")
    learning.add_argument("--device", default="auto", help="cpu, cuda, ...; auto: a GPU if there is one")
    learning.add_argument("--amp", action="store_true", help="mixed precision")
    run.start(main, parser)
