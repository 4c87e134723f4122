"""Measure how long a stage takes on this machine, and how that grows with the size of the photograph.

    python -m utils.benchmark ldgp --data_path="./dataset/Rain100L" --limit=40

All is measured on one core, over the first --limit photographs: the median and the quartiles of their times, each of which is
the median of --repeats. For the growth a photograph is cut or tiled to each size. sdrl also learns on all cores, alone and
beside another process that keeps a core busy, and there it says what a step of the paper's recipe costs with each backbone.
"""
import math
import os
import platform
import subprocess
import sys
import time
import timeit
from collections import deque
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from models import BACKBONES
from utils import cli, fast
from ldgp import rain_mask
from sdr import Sampler
from sdrl import PAPER, derain
from utils.fast.direction import rain_direction
from utils.fast.guided import GuidedSampler
from utils.fast.mistakes import FAST, learner
from utils.image import list_images, read_image
from utils.tables import markdown
from utils.inference import mixed_precision
from utils.training import fresh_model, learn_step

MEGAPIXELS = [0.15, 0.6, 2.4, 9.6]  # the first is about what Rain100L has
THRESHOLD = 10  # of NSS: what is above it in a mask is filled
BUSY = [sys.executable, "-c", """import os, sys, threading
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0))).start()
while True: pass"""]  # keeps a core busy until the pipe to it closes, as it does when this process ends, however that ends


CPU = torch.device("cpu")


class Case(NamedTuple):
    """A photograph, and what the stages need of it."""

    path: Path
    image: np.ndarray  # (H, W, 3) uint8 BGR
    mask: np.ndarray  # (H, W) uint8, the paper's
    layer: np.ndarray  # (H, W) uint8, the fast recipe's


FROM_FILE, NSS, FAST_STEPS = "LDGP, from the file to the mask", "NSS, 50 references", "fast, 50 steps of 600"
WORK = {
    "ldgp": {
        FROM_FILE: lambda case: rain_mask(read_image(case.path)),
        "LDGP, from the image to the mask": lambda case: rain_mask(case.image),
        "direction of the rain": lambda case: rain_direction(case.image),
        "rain layer, with its scale and direction": lambda case: fast.rain_layer(case.image),
    },
    "sdr": {
        NSS: lambda case: deque(Sampler(case.image, case.mask).references(50), maxlen=0),  # keeps none
        "guided samples, their expectation": lambda case: GuidedSampler(case.image, case.layer).expectation(),
        "guided samples, 50 references": lambda case: deque(GuidedSampler(case.image, case.layer).references(50), maxlen=0),
    },
    "sdrl": {
        "paper, 10 steps of 5,000": lambda case: derain(fresh_model("Unet", CPU, PAPER), case.image,
                                                        case.image[None], PAPER._replace(steps=10)),
        FAST_STEPS: lambda case: fast.derain(case.image, learner(recipe=FAST._replace(steps=50))),
    },
}


def scaled(seconds):
    """Format seconds with a unit and three digits."""
    scale, unit = (1, "s") if seconds >= 1 else (1e3, "ms") if seconds >= 1e-3 else (1e6, "us")
    return f"{seconds * scale:.{max(0, 2 - int(math.log10(seconds * scale)))}f} {unit}"


def seconds(work, case, repeats):
    """Return the median time of a call in seconds."""
    return np.median(timeit.repeat(lambda: work(case), number=1, repeat=repeats))


def size(text):
    """Parse pixels such as 480x320. Raises ValueError for anything else."""
    width, height = map(int, text.split("x"))
    return max(width, 1), max(height, 1)


def tile(array, megapixels):
    """Cut or tile a photograph or mask to a size, 3 to 2, which keeps its share of rain and its direction."""
    height = round(math.sqrt(megapixels * 1e6 / 1.5))
    width = round(1.5 * height)
    return array.take(range(height), axis=0, mode="wrap").take(range(width), axis=1, mode="wrap")


def measure_beside(cases, args):
    """Print how long learning takes with a thread a core, alone and beside another busy process."""
    def middle():
        return np.median([seconds(WORK["sdrl"][FAST_STEPS], case, args.repeats) for case in cases])

    alone = middle()
    with subprocess.Popen(BUSY, stdin=subprocess.PIPE):
        beside = middle()
    print(markdown([[f"a photograph, threads: {torch.get_num_threads()}", "alone", "beside another busy process", "ratio"],
                    [FAST_STEPS, scaled(alone), scaled(beside), f"{beside / alone:.2f}"]]), end="\n\n", flush=True)


def measure_steps(args):
    """Print what a step of the paper's recipe costs with each backbone, in both memory formats and against the operations a
    second of a large matrix product. A step has three times the operations of running the network: of its gradients, torch
    counts those of grouped convolutions as if they were not grouped."""
    square = torch.rand(2048, 2048)
    rate = 2 * 2048**3 / min(timeit.repeat(lambda: square @ square, number=1, repeat=5))
    for backbone in args.backbones:
        rows = []
        for width, height in args.sizes:
            x, y, times = *torch.rand(2, 1, 3, height, width), []
            for memory_format in torch.contiguous_format, torch.channels_last:
                model = fresh_model(backbone, CPU, PAPER).to(memory_format=memory_format)
                adam = torch.optim.Adam(model.parameters(), lr=PAPER.lr)
                arguments = model, x.contiguous(memory_format=memory_format), y, adam, F.mse_loss, mixed_precision(CPU, False)
                with FlopCounterMode(display=False) as counter:
                    model(x)
                learn_step(*arguments)  # the first one takes longer
                times.append(min(timeit.repeat(lambda: learn_step(*arguments), number=1, repeat=args.repeats)))
            count = 3 * counter.get_total_flops()
            rows.append([f"{width}x{height}", *map(scaled, times), f"{times[0] / times[1]:.2f}", f"{count / 1e9:.3g} billion",
                         f"{count / times[1] / rate:.0%}"])
        print(markdown([[f"{backbone}, a step of the paper's recipe", "contiguous", "channels last", "ratio", "operations",
                         "rate, of a matrix product's"], *rows]), end="\n\n", flush=True)


def measure(cases, args):
    """Print the times of a stage's work on one core, and how they grow."""
    work = WORK[args.stage]
    if args.stage == "sdrl":
        measure_steps(args)  # first, as below all threads share a core
        measure_beside(cases, args)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    times = {name: [seconds(function, case, args.repeats) for case in cases] for name, function in work.items()}
    if NSS in times:
        filled = [max(1, np.count_nonzero(case.mask > THRESHOLD)) for case in cases]
        times["NSS, a filled pixel"] = np.divide(times[NSS], filled)
    rows = [[name, scaled(np.median(taken)), " to ".join(map(scaled, np.percentile(taken, [25, 75])))]
            for name, taken in times.items()]
    print(markdown([["a photograph, one core", "median", "quartiles"], *rows]), end="\n\n", flush=True)

    if len(args.megapixels) < 2 or args.stage == "sdrl":  # whose memory grows as well
        return
    path, *arrays = cases[0]
    sizes, rows = [Case(path, *(tile(array, size) for array in arrays)) for size in args.megapixels], []
    for name in [name for name in work if name != FROM_FILE]:
        grown = [seconds(work[name], case, args.repeats) for case in sizes]
        power = np.polyfit(np.log(args.megapixels), np.log(grown), 1)[0]
        rows.append([name, *map(scaled, grown), f"pixels to the power {power:.2f}"])
    print(markdown([[f"megapixels ({path.name})", *map(str, args.megapixels), "time grows as"], *rows]))


def main(args):
    paths = list(list_images(f"{args.data_path}/input", "name a data set with --data_path, such as ./dataset/Demo").values())
    paths = paths[: args.limit or None]
    cases = [Case(path, image, rain_mask(image), fast.rain_layer(image)) for path, image in zip(paths, map(read_image, paths))]
    print(f"{time.strftime('%Y-%m-%d')}, {platform.processor() or platform.machine()}, Python {platform.python_version()}, "
          f"NumPy {np.__version__}, OpenCV {cv2.__version__}, torch {torch.__version__}\n"
          f"{len(cases)} photographs of {args.data_path}\n")
    measure(cases, args)
    return 0


if __name__ == "__main__":
    parser = cli.Parser(__doc__)
    parser.add_argument("stage", choices=list(WORK), help="what to measure")
    parser.add_argument("--data_path", default="./dataset/Rain100L", help="a data set with photographs in input/")
    parser.add_argument("--limit", type=cli.number(int, 0), default=0, help="how many photographs; 0: all")
    parser.add_argument("--repeats", type=cli.number(int, 1), default=3, help="how often each is measured")
    parser.add_argument("--megapixels", nargs="*", type=cli.number(float, 0.01), default=MEGAPIXELS,
                        help="of ldgp and sdr: sizes for the growth, at least two, or none")
    parser.add_argument("--backbones", nargs="+", choices=list(BACKBONES), default=list(BACKBONES), help="of sdrl: networks")
    parser.add_argument("--sizes", nargs="+", type=size, default=[(480, 320), (128, 128)], metavar="WxH",
                        help="of sdrl: pixels of the image in a step, of which Restormer and DRSFormer need 33 GB at 480x320 "
                             "(default: 480x320 128x128)")
    cli.start(main, parser)
