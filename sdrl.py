"""SDRL: train a network on one rainy photograph alone, against its stochastic derained references, and keep its output.

    python sdrl.py --rainy_data_path="./dataset/Rain100L/" --sdr_data_path="./dataset/Rain100L/sdr/" \\
        --result_path="./dataset/Rain100L/result/" --backbone="Unet"
"""
import argparse
import signal
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":  # while libraries load, Ctrl-C ends without a word; `run.start` answers it from then on
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import numpy as np
import torch
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from models import build
from utils import run
from utils.inference import compiled, infer, mixed_precision, model_device
from utils.image import ImageError, check_size, list_images, only, png_like, read_image, tensor_to_uint8, uint8_to_tensor
from utils.record import LEARNING, Record

# What a recipe sets; a flag given on the command line wins.
RECIPES = {
    "paper": {"epoch": 100, "steps": 0, "lr": 1e-3, "identity": False, "average": 0.0, "crop_size": 0, "target": "sampled",
              "weigh": False, "fuse": False, "white": False, "one_pass": False},
    "fast": {"epoch": 100, "steps": 600, "lr": 1e-3, "identity": True, "average": 0.98, "crop_size": 64, "target": "mean",
             "weigh": True, "fuse": True, "white": True, "one_pass": True},
}
# What the fast recipe sets otherwise for Restormer and DRSFormer. They learn more in a step, each of which takes longer, and
# at the rate of the others they do not learn: Restormer's authors train it with this one (Zamir et al., CVPR 2022).
TRANSFORMERS = {"lr": 3e-4, "steps": 150}
LOOK_EVERY = {"cpu": 1, "gpu": 100}  # steps between looks at whether the loss is finite, each of which a GPU has to wait for
DOUBT = 10  # grey levels (0 to 255): the spread of a pixel's references at which its certainty is one half


def recipe_settings(recipe, backbone):
    """What a recipe sets for a backbone: a new dict with the keys of RECIPES[recipe]."""
    return {**RECIPES[recipe], **(TRANSFORMERS if recipe == "fast" and backbone in ("Restormer", "DRSFormer") else {})}


def fresh_model(backbone, seed, device, identity=False):
    """A backbone with the weights that this seed gives, on its device. identity: start at f(x) = x."""
    torch.manual_seed(seed)
    model = build(backbone, residual=identity).to(device)
    return model.to(memory_format=torch.channels_last) if model_device(model).type == "cuda" else model


def derain(model, rainy, references, epoch=100, steps=0, target="sampled", **options):
    """Train a fresh network on one rainy image against its references, in their order; return the derained image.

    model: a network (N, 3, H, W) -> the same in [0, 1], RGB, trained in place (paper, section 2.3). rainy: (H, W, 3) uint8
    BGR. references: (N, H, W, 3) uint8 BGR. steps: how many; 0 for every reference `epoch` times. target: "sampled", one
    reference a step, or "mean", always their mean. options: as `learn`'s. Returns (H, W, 3) uint8 BGR.
    Raises ValueError where shapes do not match.
    """
    if references.ndim != 4 or references.shape[1:] != rainy.shape or len(references) == 0:
        raise ValueError(f"references of shape {references.shape} do not belong to an image of shape {rainy.shape}")
    device = model_device(model)
    belief = believe(rainy, *mean_and_variance(references), device) if needs_belief(target, options) else None
    kept = None if target == "mean" else torch.from_numpy(references).to(device)

    def reference_at(step):
        return belief.mean if target == "mean" else uint8_to_tensor(kept[step % len(kept)])

    return learn(model, rainy, reference_at, steps or epoch * len(references), belief=belief, **options)


class Belief(NamedTuple):
    """What all references of an image say together: tensors on one device."""

    mean: torch.Tensor  # (1, 3, H, W) in [0, 1], RGB
    certainty: torch.Tensor  # (1, 1, H, W) in (0, 1]: 1 where all references agree
    filled: torch.Tensor  # (1, 1, H, W) bool: where a reference differs from the image


def believe(rainy, mean, variance, device):
    """The Belief of references with this mean and variance.

    rainy: (H, W, 3) uint8 BGR; mean, variance: (H, W, 3) float in (squared) values of [0, 255]. The certainty of a pixel is
    D^2 / (variance + D^2) with D = DOUBT and the variance's mean over the channels: the share that the references' mean has
    in the best average of it and an independent estimate of standard error D. It is low in texture, where the neighbours
    that may replace a pixel differ; there the mask is often wrong, too.
    """
    spread = variance.mean(axis=2)
    filled = (spread > 0) | (np.abs(mean - rainy) > 1e-3).any(axis=2)
    certainty = DOUBT**2 / (spread + DOUBT**2)
    maps = (torch.from_numpy(array).to(device)[None, None] for array in (certainty.astype(np.float32), filled))
    return Belief(uint8_to_tensor(mean, device), *maps)


def needs_belief(target, options):
    return target == "mean" or bool(options.get("weigh") or options.get("fuse"))


def mean_and_variance(references):
    """The mean of references (N, H, W, 3) uint8, and their variance: both (H, W, 3) float32, of values in [0, 255]."""
    total, squares = (np.zeros(references.shape[1:], np.float32) for _ in range(2))
    for reference in references:
        total += reference
        squares += np.square(reference, dtype=np.float32)
    mean = total / len(references)
    return mean, np.maximum(squares / len(references) - mean**2, 0)


def fuse_by_certainty(derained, belief):
    """Average a network's output (1, 3, H, W) with the references' mean, by certainty, at the pixels that were filled."""
    return torch.where(belief.filled, derained.lerp(belief.mean, belief.certainty), derained)


def white_rain(derained, rainy):
    """What is left of a change of an image if rain adds the same light to red, green and blue, and takes none away.

    Both (N, 3, H, W): the smallest of the three channels' changes is taken off all of them, none where one got brighter.
    """
    return rainy - (rainy - derained).amin(dim=1, keepdim=True).clamp(min=0)


def learn(model, rainy, reference_at, steps, lr=1e-3, average=0.0, crop_size=0, belief=None, weigh=False, fuse=False,
          white=False, one_pass=False, tile_size=1024, amp=False, compile=False, seed=3, report=None, snapshots=None):
    """The learning of SDRL with references from anywhere: `steps` times Adam on mean((f(x) - y)^2).

    reference_at: a function step -> (1, 3, H, W) float RGB tensor in [0, 1] on the model's device. average: 0 for the
    network's output in evaluation mode after the last step, as in the paper; else the decay of an exponential mean of the
    outputs that the training itself produced, or of the weights where it sees crops. crop_size: train on random squares
    of that many pixels a side (0: the whole image), drawn with `seed`. belief: what all references say; weigh: multiply the
    squared error by its certainty; fuse: see `fuse_by_certainty`. white: see `white_rain`. one_pass: let Adam update
    in one pass over the memory, with other roundings. tile_size: the largest side that is derained at once. amp: mixed
    precision. compile: see `utils.inference.compiled`. report: called with each step's loss, a tensor still on the device.
    snapshots: a dict {steps: None} whose values become the derained images after so many steps. Returns (H, W, 3) uint8 BGR.
    Raises FloatingPointError where a loss or the network's output is NaN or infinite.
    """
    device = model_device(model)
    x = uint8_to_tensor(rainy, device)
    if device.type == "cuda":
        x = x.contiguous(memory_format=torch.channels_last)
    crop = _Crop(x.shape, crop_size, seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=one_pass or None)
    autocast, scaler = mixed_precision(device, amp)
    mean = _Mean(model, average, whole=crop.whole)

    def result():
        output = mean.result() if mean.output is not None else infer(mean.network() or model, rainy, tile_size, amp).to(device)
        if fuse:
            output = fuse_by_certainty(output, belief)
        return tensor_to_uint8(white_rain(output, x) if white else output)

    finite = torch.ones((), dtype=torch.bool, device=device)
    look_every = LOOK_EVERY["cpu" if device.type == "cpu" else "gpu"]
    model.train()
    with autocast():
        network = compiled(model, x[crop.first()]) if compile else model
    for step in range(steps):
        window = crop.next()
        target = reference_at(step)[window]
        optimizer.zero_grad(set_to_none=True)
        with autocast():
            output = network(x[window])
        error = F.mse_loss(output.float(), target, reduction="none" if weigh else "mean")
        loss = (error * belief.certainty[window]).mean() if weigh else error
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        mean.add(output.detach())
        finite &= loss.detach().isfinite()
        if ((step + 1) % look_every == 0 or step + 1 == steps) and not finite:
            raise FloatingPointError(f"the loss became NaN or infinite within {step + 1} steps; use a smaller --lr"
                                     f"{' or leave out --amp' if amp else ''}")
        if report:
            report(loss.detach())
        if snapshots and step + 1 in snapshots:
            snapshots[step + 1] = result()
            model.train()
    return result()


class _Crop:
    """Random squares of an image, or always the whole of it."""

    def __init__(self, shape, size, seed):
        self.height, self.width = shape[2:]
        self.size = size or max(shape[2:])
        self.whole = self.size >= max(self.height, self.width)
        self.random = np.random.default_rng(seed)

    def first(self):
        return ..., slice(self.size), slice(self.size)

    def next(self):
        if self.whole:
            return ...
        top, left = (self.random.integers(max(side - self.size, 0) + 1) for side in (self.height, self.width))
        return ..., slice(top, top + self.size), slice(left, left + self.size)


class _Mean:
    """The exponential mean of outputs, where the network sees the whole image, or of weights, where it sees crops."""

    def __init__(self, model, decay, whole):
        self.decay, self.steps, self.output = decay, 0, None
        self.whole = whole
        averaged = decay and not whole
        self.model = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True) if averaged else None
        self.source = model

    def add(self, output):
        self.steps += 1
        if self.model is not None:
            self.model.update_parameters(self.source)
        elif self.decay:
            self.output = output.float() * (1 - self.decay) if self.output is None else torch.lerp(
                output.float(), self.output, self.decay)

    def result(self):
        return self.output / (1 - self.decay**self.steps)  # the first steps' share is missing from the sum of weights

    def network(self):
        return None if self.model is None else self.model.module


def read_references(folder, rainy, image_path, hint):
    """The SDRs of one image, (N, H, W, 3) uint8 BGR, in string order of their file names as in the paper's protocol.

    Raises ImageError where there are none (with `hint` on how to make them) or one is of another size.
    """
    paths = [only(paths) for _, paths in sorted(list_images(folder, hint).items())]
    references = np.empty((len(paths), *rainy.shape), np.uint8)
    for place, path in enumerate(paths):
        reference = read_image(path)
        check_size(reference, path, rainy, image_path)
        references[place] = reference
    return references


def add_flags(parser):
    """The flags of the learning from one photograph, here and in sdrl_online.py."""
    folder = "./dataset/Rain100L/"
    parser.add_argument("--rainy_data_path", default=folder, help="a data set; its photographs are in input/")
    parser.add_argument("--sdr_data_path", default=folder + "sdr/", help="their references, by sdr.py")
    parser.add_argument("--result_path", default=folder + "result/", help="where the derained photographs go")
    run.add_learning_flags(parser)
    run.add_overwrite_flag(parser)
    parser.add_argument("--recipe", default="paper", choices=list(RECIPES), help="what the flags below start from")
    parser.add_argument("--compile", action="store_true", help="let torch compile the network first, which takes a minute")

    def add(name, meaning, **options):
        defaults = ", ".join(f"{recipe}: {values[name]}" for recipe, values in RECIPES.items())
        parser.add_argument(f"--{name}", default=argparse.SUPPRESS, help=f"{meaning} ({defaults})", **options)

    add("epoch", "times that every reference is used", type=run.number(int, 1))
    add("steps", "steps, instead of epochs; 0: as many as the epochs ask for; fast with a transformer: 150",
        type=run.number(int, 0))
    add("lr", "learning rate of Adam; fast with a transformer: 0.0003", type=run.number(float, 0, 1e30))
    add("identity", "start at f(x) = x", action=argparse.BooleanOptionalAction)
    add("average", "decay of the mean that is taken of recent outputs, or of weights where --crop_size is set; 0: none",
        type=run.number(float, 0, 0.9999))
    add("target", "what a step learns from: one reference, or always the mean of all", choices=["sampled", "mean"])
    add("weigh", "count a pixel's error by the certainty of its references", action=argparse.BooleanOptionalAction)
    add("fuse", "average the output with the mean of the references, by their certainty", action=argparse.BooleanOptionalAction)
    add("white", "take off only what rain can have added: the same light in all channels",
        action=argparse.BooleanOptionalAction)
    add("one_pass", "update Adam in one pass over the memory: faster, with other roundings",
        action=argparse.BooleanOptionalAction)
    add("crop_size", "train on random squares of that many pixels a side; 0: the whole photograph", type=run.number(int, 0))
    return parser


def recipe_options(args):
    """(start at the identity?, the options of `derain`) of parsed flags: what was given, else what the recipe says."""
    chosen = {name: getattr(args, name, value) for name, value in recipe_settings(args.recipe, args.backbone).items()}
    if hasattr(args, "epoch") and not hasattr(args, "steps"):
        chosen["steps"] = 0  # who asks for epochs gets them, whatever the recipe counts in
    running = {name: getattr(args, name) for name in ("tile_size", "amp", "compile", "seed")}
    return chosen.pop("identity"), {**chosen, **running}


def result_record(stage, args, device, sources, **more):
    """The `Record` of the photographs derained with these flags, here and in sdrl_online.py. more: settings besides."""
    identity, options = recipe_options(args)
    settings = {"backbone": args.backbone, "identity": identity, **options, **more}
    if settings["steps"]:
        del settings["epoch"]  # which means nothing then
    return Record(stage, settings, lambda path: {"result": Path(args.result_path) / f"{path.stem}.png"}, sources, LEARNING,
                  {"device": device.type}, args.overwrite)


def main(args):
    device, (identity, options) = run.device(args.device), recipe_options(args)
    source, result, references_path = Path(args.rainy_data_path) / "input", Path(args.result_path), Path(args.sdr_data_path)
    images = list_images(source)
    folder = Path(args.rainy_data_path)
    hint = (f'run sdr.py first: python sdr.py --input_path="{source}" --ldgp_path="{folder / "ldgp"}" '
            f'--save_path="{references_path}" --fuse_save_path="{folder / "sdr(fuse)"}"')

    def sources(path):
        return path, *(only(paths) for paths in list_images(references_path / path.stem, hint).values())

    record = result_record("sdrl.py", args, device, sources)

    def work(path, bar):
        rainy = read_image(path)
        references = read_references(references_path / path.stem, rainy, path, hint)
        model = fresh_model(args.backbone, args.seed, device, identity)
        bar.reset(options["steps"] or options["epoch"] * len(references))
        derained = derain(model, rainy, references, report=run.LossLine(bar), **options)
        record.write(path, png_like(derained, path))

    return run.each_image(images, work, result, record=record, unit="step")


if __name__ == "__main__":
    run.start(main, add_flags(run.Parser(__doc__)))
