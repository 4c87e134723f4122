"""The learning's part of the benchmark: PSNR against steps and seconds of the recipes, side by side on the same images.

    python -m utils.benchmark sdrl --data_path="./dataset/Rain100L" --every=4 --recipe fast --steps 0 250 750
"""
import time

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from ldgp import find_rain, rain_layer, rain_mask
from models import BACKBONES
from sdr import ScaledSampler, fuse, sample_references
from sdrl import derain, derain_by_own_rain, fast_options, fresh_model, recipe_settings
from utils import run
from utils.image import ImageError, companion, list_images, only, read_image
from utils.metrics import psnr


def middle(size, image):
    """The middle of an image (H, W, 3), of `size` (width, height), turned if the image is upright; None: all of it."""
    height, width = image.shape[:2]
    wide, high = (size if width >= height else size[::-1]) if size else (width, height)
    top, left = max(height - high, 0) // 2, max(width - wide, 0) // 2
    return np.ascontiguousarray(image[top : top + high, left : left + wide])


def prepared(recipe, rainy):
    """What a recipe has before it learns: its result without learning, and what learning is called with after the model."""
    if recipe == "paper":
        references = sample_references(rainy, rain_mask(rainy))
        return fuse(references), lambda model, options: derain(model, rainy, references, **options)
    scale, direction = find_rain(rainy)
    fused = ScaledSampler(rainy, rain_layer(rainy, direction, scale), scale).fused()
    return fused, lambda model, options: derain_by_own_rain(model, rainy, fused, scale=scale, **fast_options(options))


def operations(recipe, backbone, device, shape):
    """Floating-point operations of a step's convolutions and matrix products on images (H, W).

    Torch counts those of the forward pass; backward takes twice as many, for the gradients of the inputs and of the weights.
    """
    chosen, model = recipe_settings(recipe, backbone), fresh_model(backbone, 3, device)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, *(min(side, chosen["crop_size"] or side) for side in shape), device=device))
    return 3 * counter.get_total_flops() * (chosen["batch_size"] if chosen["crop_size"] else 1)


def measure_sdrl(args, table):
    """Rows of every image, recipe and number of steps, and their means. table: as in utils.benchmark."""
    device = run.device(args.device)
    if args.backbone not in BACKBONES:
        raise ImageError(f"--backbone {args.backbone}: not one of {', '.join(BACKBONES)}")
    targets = list_images(f"{args.data_path}/target")
    paths = [only(paths) for paths in list_images(f"{args.data_path}/input").values()][args.every - 1 :: args.every]
    what = "{}x{}".format(*args.size) if args.size else "whole images"
    row = table(f"SDRL, {args.backbone}, {what}, {device}, {torch.get_num_threads()} threads, RGB PSNR",
                ("image", 12), ("recipe", 6), ("steps", 6), ("seconds", 8), ("rainy", 7), ("unlearnt", 8), ("learnt", 7))
    sums = {}
    for path in paths[: args.images or None]:
        rainy, clean = (middle(args.size, read_image(one)) for one in (path, companion(targets, path, "target", "no score")))
        for recipe in args.recipe:
            fused, learn = prepared(recipe, rainy)
            options = {**recipe_settings(recipe, args.backbone), "amp": args.amp, "seed": 3}
            identity, epochs = options.pop("identity"), 50 * options["epoch"]
            for steps in args.steps or [options["steps"] or epochs]:
                began = time.perf_counter()
                result = learn(fresh_model(args.backbone, 3, device, identity), {**options, "steps": steps}) if steps else fused
                values = time.perf_counter() - began, *(psnr(image, clean) for image in (rainy, fused, result))
                sums.setdefault((recipe, steps), []).append(values)
                row(path.stem, recipe, steps, f"{values[0]:.1f}", *(f"{value:.3f}" for value in values[1:]))
    for (recipe, steps), values in sums.items():
        mean = np.mean(values, axis=0)
        row(f"mean of {len(values)}", recipe, steps, f"{mean[0]:.1f}", *(f"{value:.3f}" for value in mean[1:]))
        sums[recipe, steps] = mean[0]
    for recipe in args.recipe:
        steps, taken = max((steps, taken) for (name, steps), taken in sums.items() if name == recipe)
        if steps:
            work = operations(recipe, args.backbone, device, rainy.shape[:2])
            print(f"{recipe}: {1e3 * taken / steps:.1f} ms a step, {work / 1e9:.1f} GFLOP a step, "
                  f"{work * steps / taken / 1e9:.0f} GFLOP/s")
