"""Curves for utils.figures: the loss of sdrl_all.py, and the scores of sdrl.py after so many steps; drawn by matplotlib."""
import csv

import cv2
import numpy as np

from utils.evaluate import RAINY, score_folders
from utils.image import ImageError
from utils.metrics import mean_scores


def read_losses(path):
    """Read the points (epoch, loss) of a loss.csv. Raises ImageError for a file that is missing or another."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            points = [(int(row["epoch"]), float(row["loss"])) for row in csv.DictReader(file)]
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file; sdrl_all.py writes it to its --model_save_dir") from None
    except (KeyError, TypeError, ValueError, csv.Error):
        raise ImageError(f"{path}: not a loss.csv of sdrl_all.py, with columns epoch and loss; name another file") from None
    if not points:
        raise ImageError(f"{path}: no epoch in it yet; wait for the first checkpoint, see --save_every of sdrl_all.py")
    return points


def read_steps(dataset, folder):
    """Return the mean PSNR of a folder's results after so many steps, {name: [(steps, dB)]}, and of what they are learnt from.

    Raises ImageError where sdrl.py --save_every has kept nothing in the folder.
    """
    steps = sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal()) if folder.is_dir() else []
    if not steps:
        raise ImageError(f"{folder}: no results after so many steps; run: python sdrl.py --save_every=500")
    folders = {RAINY: dataset / "input", "fused references": dataset / "sdr(fuse)", **{str(n): folder / str(n) for n in steps}}
    rows, _, _ = score_folders(folders, dataset / "target", ["rgb"], {})
    common = set.intersection(*map(set, rows.values()))  # photographs that have all, while others are still learnt from
    means = {name: mean_scores([scored[stem] for stem in common])["psnr_rgb"] for name, scored in rows.items()}
    level = {name: [(0, means[name]), (steps[-1], means[name])] for name in folders if not name.isdecimal()}
    return {"SDRL": [(n, means[str(n)]) for n in steps], **level}


def draw_curves(curves, title, x, y, scale="linear"):
    """Draw curves {name: [(x, y)]} on named axes, (H, W, 3) uint8 BGR. Raises ImageError without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ImageError("a figure with curves needs the package matplotlib; run: pip install matplotlib") from None
    figure = Figure(figsize=(7.2, 4), layout="tight")
    axes = figure.add_subplot(xlabel=x, ylabel=y, yscale=scale, title=title)
    for name, points in curves.items():
        axes.plot(*zip(*points), label=name, marker="." if len(points) == 1 else "")
    axes.legend()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return cv2.cvtColor(np.asarray(canvas.buffer_rgba()), cv2.COLOR_RGBA2BGR)
