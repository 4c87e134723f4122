"""The learning's part of the benchmark: PSNR against steps and seconds of the recipes, side by side on the same images.

    python -m utils.benchmark sdrl --data_path="./dataset/Rain100L" --every=4 --recipe fast online
"""
import time

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from ldgp import rain_mask
from models import BACKBONES
from sdr import fuse, sample_references
from sdrl import derain, fresh_model, recipe_settings
from sdrl_online import derain_online
from utils import run
from utils.inference import mixed_precision
from utils.image import ImageError, companion, list_images, only, read_image
from utils.metrics import psnr

PAPER_STEPS = (250, 500, 1000, 2000, 5000)  # at which the paper's recipe is looked at
FAST_STEPS = (50, 75, 100, 150, 300, 450)


def middle(size, *arrays):
    """The middle of arrays (..., H, W, C), of `size` (width, height), turned if the arrays are upright; None: all of them."""
    if size is None:
        return arrays
    height, width = arrays[0].shape[:2]
    wide, high = size if width >= height else size[::-1]
    top, left = max(height - high, 0) // 2, max(width - wide, 0) // 2
    return [array[..., top : top + high, left : left + wide, :] for array in arrays]


def settings(recipe, backbone):
    return recipe_settings("paper" if recipe == "paper" else "fast", backbone)


def operations(recipe, backbone, device, shape):
    """Floating-point operations of a step's convolutions and matrix products on images (H, W).

    Torch counts those of the forward pass; backward takes twice as many, for the gradients of the inputs and of the weights.
    """
    crop = settings(recipe, backbone)["crop_size"]
    model = fresh_model(backbone, 3, device)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, *(min(side, crop or side) for side in shape), device=device))
    return 3 * counter.get_total_flops()


def peak_rate(device, amp, seconds=1.0):
    """Operations a second of the product of two large matrices: what the hardware gives a program at best."""
    side = 8192 if device.type == "cuda" else 1024
    autocast, _ = mixed_precision(device, amp)
    a, wait = torch.ones(side, side, device=device), torch.cuda.synchronize if device.type == "cuda" else lambda: None
    best, began = float("inf"), time.perf_counter()
    with autocast():
        while time.perf_counter() - began < seconds:
            wait()
            start = time.perf_counter()
            a @ a
            wait()
            best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def learn_once(recipe, args, device, rainy, mask, references):
    """Run a recipe; returns ({steps: derained image}, seconds a step)."""
    options, steps = settings(recipe, args.backbone), args.steps
    total = steps or options["steps"] or options["epoch"] * len(references)
    model = fresh_model(args.backbone, 3, device, options.pop("identity"))
    looks = {at: None for at in (PAPER_STEPS if recipe == "paper" else FAST_STEPS) if at < total}
    ticks = []
    options.update(steps=total, amp=args.amp, compile=args.compile, snapshots=looks,
                   report=lambda loss: ticks.append(time.perf_counter()))
    if recipe == "online":
        result = derain_online(model, rainy, mask, **options)
    else:
        result = derain(model, rainy, references, **options)
    # the median leaves out what looking at intermediate results takes
    return {**looks, total: result}, float(np.median(np.diff(ticks)))


def measure_sdrl(args, table):
    """Rows of every image and recipe, and their means. table: as in utils.benchmark."""
    device = run.device(args.device)
    if args.backbone not in BACKBONES:
        raise ImageError(f"--backbone {args.backbone}: not one of {', '.join(BACKBONES)}")
    targets = list_images(f"{args.data_path}/target")
    paths = [only(paths) for paths in list_images(f"{args.data_path}/input").values()][args.every - 1 :: args.every]
    chosen = paths[: args.images] if args.images else paths
    what = "{}x{}".format(*args.size) if args.size else "whole images"
    row = table(f"SDRL, {args.backbone}, {what}, {device}, {torch.get_num_threads()} threads, RGB PSNR",
                ("image", 12), ("recipe", 9), ("steps", 6), ("seconds", 8), ("PSNR", 7), ("rainy", 7), ("fused", 7))
    sums = {}
    for path in chosen:
        whole, clean = read_image(path), read_image(companion(targets, path, "target", "no target, no score"))
        mask = rain_mask(whole)
        stored = sample_references(whole, mask)
        rainy, target, references, mask = middle(args.size, whole, clean, stored, mask[..., None])
        rainy, references, mask = map(np.ascontiguousarray, (rainy, references, mask[..., 0]))
        before, fused = psnr(rainy, target), psnr(fuse(references), target)
        for recipe in args.recipe:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            results, pace = learn_once(recipe, args, device, rainy, mask, references)
            for steps, image in results.items():
                score = psnr(image, target)
                row(path.stem, recipe, steps, f"{pace * steps:.1f}", f"{score:.3f}", f"{before:.3f}", f"{fused:.3f}")
                sums.setdefault((recipe, steps), []).append((pace * steps, score, before, fused))
            if device.type == "cuda":
                print(f"peak memory {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")
    for (recipe, steps), values in sums.items():
        mean = np.mean(values, axis=0)
        row(f"mean of {len(values)}", recipe, steps, f"{mean[0]:.1f}", *(f"{value:.3f}" for value in mean[1:]))
    peak = peak_rate(device, args.amp)
    for recipe in args.recipe:
        steps, values = next((steps, values) for (name, steps), values in sums.items() if name == recipe)
        work, pace = operations(recipe, args.backbone, device, rainy.shape[:2]), np.mean(values, axis=0)[0] / steps
        print(f"{recipe}: {1e3 * pace:.1f} ms a step, {work / 1e9:.1f} GFLOP a step, {work / pace / 1e9:.0f} GFLOP/s: "
              f"{work / pace / peak:.0%} of a large matrix product's rate")
