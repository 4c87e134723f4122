"""SDRL: train a network on one rainy photograph alone, against its stochastic derained references, and keep its output.

    python sdrl.py --rainy_data_path="./dataset/Rain100L/" --sdr_data_path="./dataset/Rain100L/sdr/" \\
        --result_path="./dataset/Rain100L/result/" --backbone="Unet"
"""
import argparse
import itertools
import signal
from pathlib import Path

if __name__ == "__main__":  # while libraries load, Ctrl-C ends without a word; `run.start` answers it from then on
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import numpy as np
import torch
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from models import build
from utils import run
from utils.inference import infer, mixed_precision, model_device
from utils.image import (GUIDED, ImageError, check_note, check_size, list_images, only, png_like, read_image, shrink, take_off,
                         tensor_to_uint8, uint8_to_tensor)
from utils.record import LEARNING, Record

# What a recipe sets; a flag given on the command line wins.
RECIPES = {
    "paper": {"epoch": 100, "steps": 0, "lr": 1e-3, "identity": False, "average": 0.0, "crop_size": 0, "batch_size": 1},
    "fast": {"epoch": 0, "steps": 750, "lr": 1e-3, "identity": True, "average": 0.98, "crop_size": 64, "batch_size": 2},
}
# What the fast recipe sets otherwise for Restormer and DRSFormer. They learn more in a step, each of which takes longer, and
# at the rate of the others they do not learn: Restormer's authors train it with this one (Zamir et al., CVPR 2022).
TRANSFORMERS = {"lr": 3e-4, "steps": 150}
LOOK_EVERY = {"cpu": 1, "gpu": 100}  # steps between looks at whether the loss is finite, each of which a GPU has to wait for
FAINTEST = 3  # grey levels: fainter rain is not used again as self-made rain
FACTORS = 0.6, 1.5  # self-made rain is the photograph's own, times a factor between these
DENSITY = 4  # grey levels: fainter rain, by its mean, is laid over itself, up to four times, or it would teach nothing
LEARNT = 0.4  # a network that takes off a smaller share of the light than this, against what was found, has learnt nothing yet
TRUST = 1 / 3  # the network's share of the light that is taken off; the rest is what was taken off before it learnt


def recipe_settings(recipe, backbone):
    """What a recipe sets for a backbone: a new dict with the keys of RECIPES[recipe]."""
    return {**RECIPES[recipe], **(TRANSFORMERS if recipe == "fast" and backbone in ("Restormer", "DRSFormer") else {})}


def fresh_model(backbone, seed, device, identity=False):
    """A backbone with the weights that this seed gives, on its device. identity: start at f(x) = x."""
    torch.manual_seed(seed)
    model = build(backbone, residual=identity).to(device)
    return model.to(memory_format=torch.channels_last) if model_device(model).type == "cuda" else model


def derain(model, rainy, references, epoch=100, steps=0, **options):
    """Train a fresh network on one rainy image against its references, in their order; return the derained image.

    model: a network (N, 3, H, W) -> the same in [0, 1], RGB, trained in place (paper, section 2.3). rainy: (H, W, 3) uint8
    BGR. references: (N, H, W, 3) uint8 BGR. steps: how many; 0 for every reference `epoch` times. options: as
    `learn_references`'. Returns (H, W, 3) uint8 BGR. Raises ValueError where shapes do not match.
    """
    if references.ndim != 4 or references.shape[1:] != rainy.shape or len(references) == 0:
        raise ValueError(f"references of shape {references.shape} do not belong to an image of shape {rainy.shape}")
    kept = torch.from_numpy(references).to(model_device(model))
    return learn_references(model, rainy, lambda step: kept[step % len(kept)], steps or epoch * len(kept), **options)


def learn_references(model, rainy, reference_at, steps, crop_size=0, batch_size=1, seed=3, tile_size=1024, **options):
    """The paper's learning, with references from anywhere: `steps` times Adam on mean((f(x) - y_n)^2), x the rainy image.

    reference_at: a function step -> y_n, (H, W, 3) uint8 BGR tensor on the model's device. crop_size: learn from random
    squares of that many pixels a side, batch_size of them in a step; 0: from the whole image. tile_size: the largest side
    that is derained at once. options: as `fit`'s. Returns (H, W, 3) uint8 BGR. Raises as `fit` and `infer` do.
    """
    x, random = uint8_to_tensor(rainy, model_device(model)), np.random.default_rng(seed)

    def pair(step):
        y = uint8_to_tensor(reference_at(step))
        if not crop_size or crop_size >= max(x.shape[2:]):
            return x, y
        windows = [crop_window(x.shape[2:], crop_size, random) for _ in range(batch_size)]
        return tuple(torch.cat([image[window] for window in windows]) for image in (x, y))

    trained = fit(model, map(pair, range(steps)), torch.optim.Adam, F.mse_loss, **options)
    return tensor_to_uint8(infer(trained, rainy, tile_size, options.get("amp", False)))


def derain_by_own_rain(model, rainy, fused, steps, scale=1, own=None, tile_size=1024, **options):
    """Learn to take off self-made rain, which is added to what is known of the scene; then take off the real one (ours).

    The references are turned round: not stochastic references of one rainy image, but stochastic rainy images of one
    reference, the photograph without what the guided samples took off. The rain is what they took off, found elsewhere in
    the photograph. So the network learns from the scene itself which of its lines are no rain. Then it sees the photograph;
    of the change only what rain can have made counts, the same light in all channels. A third of that and two thirds of what
    the samples took off are taken off, or only the latter where the network has not learnt to take off anything.

    model: as `derain`'s, trained in place, starting at the identity. rainy: (H, W, 3) uint8 BGR; fused: the same shape,
    uint8 or float, the mean of guided samples. steps: 0 for `fused` as it is. scale: by how much the photograph is to be
    shrunk, as from `ldgp.thin_scale`. own: parameters of `own_rain`. options: as `fit`'s.
    Returns (H, W, 3) uint8 BGR. Raises ValueError where shapes do not match, and as `fit` and `infer` do.
    """
    if fused.shape != rainy.shape:
        raise ValueError(f"a reference of shape {fused.shape} does not belong to an image of shape {rainy.shape}")
    if not steps:
        return np.rint(fused).astype(np.uint8)
    small, device = shrink(rainy, scale), model_device(model)
    scene = shrink(np.rint(fused).astype(np.uint8), scale)
    found = np.maximum((small - scene.astype(np.float32)).max(axis=2), 0)  # of the channels, one that was not cut off at 0
    pairs = own_rain(uint8_to_tensor(scene, device), torch.from_numpy(found).to(device) / 255, **(own or {}))
    trained = fit(model, itertools.islice(pairs, steps), FusedAdam, F.l1_loss, **options)
    output = infer(trained, small, tile_size, options.get("amp", False)).cpu()
    learnt = 255 * (uint8_to_tensor(small) - output).amin(dim=1)[0].clamp(min=0).numpy()
    trust = TRUST if learnt.mean() > LEARNT * found.mean() else 0
    return take_off(rainy, trust * learnt + (1 - trust) * found)


def own_rain(scene, rain, crop_size=64, batch_size=2, seed=3):
    """Yield batches of (the scene with rain, the scene), (N, 3, crop, crop) each, for ever.

    scene: (1, 3, H, W) in [0, 1], RGB; rain: (H, W) in [0, 1], of which windows from anywhere, turned by half a turn or not
    and times a random factor, are added to windows of the scene; several to one where rain is sparse.
    """
    random = np.random.default_rng(seed)
    rain = torch.where(rain > FAINTEST / 255, rain, 0)[None, None]
    layers = min(max(round(DENSITY / 255 / max(float(rain.mean()), 1e-6)), 1), 4)
    shape, crop_size = scene.shape[2:], crop_size or max(scene.shape)
    while True:
        scenes, rains = [], []
        for _ in range(batch_size):
            scenes.append(scene[crop_window(shape, crop_size, random)])
            windows = (rain[crop_window(shape, crop_size, random)] for _ in range(layers))
            rains.append(sum((window.flip(2, 3) if random.random() < 0.5 else window) * random.uniform(*FACTORS)
                             for window in windows))
        y = torch.cat(scenes)
        yield (y + torch.cat(rains)).clamp(max=1), y


def crop_window(shape, size, random):
    """The index (..., rows, columns) of a random square of an image of this shape (H, W); as much as there is of it."""
    top, left = (int(random.integers(max(side - size, 0) + 1)) for side in shape)
    return ..., slice(top, top + size), slice(left, left + size)


class FusedAdam(torch.optim.Adam):
    """Adam that goes over the memory once: faster than the paper's, with other roundings."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, lr=lr, fused=True)


def fit(model, pairs, optimizer, loss, lr=1e-3, average=0.0, amp=False, report=None):
    """Train a network on pairs (x, y) of (N, 3, h, w) tensors on its device, a step each: the loop of all recipes.

    optimizer: a class; loss: a function of (f(x), y). average: the decay of the exponential mean of the weights; 0: none.
    amp: mixed precision. report: called with each step's loss, a tensor still on the device.
    Returns the trained network, or the one of the mean weights. Raises FloatingPointError where a loss is NaN or infinite.
    """
    device = model_device(model)
    optimizer, (autocast, scaler) = optimizer(model.parameters(), lr=lr), mixed_precision(device, amp)
    mean = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(average), use_buffers=True) if average else None
    finite, look_every = torch.ones((), dtype=torch.bool, device=device), LOOK_EVERY["cpu" if device.type == "cpu" else "gpu"]
    model.train()
    for step, (x, y) in enumerate(pairs, 1):
        optimizer.zero_grad(set_to_none=True)
        with autocast():
            output = model(x)
        error = loss(output.float(), y)
        scaler.scale(error).backward()
        scaler.step(optimizer)
        scaler.update()
        if mean:
            mean.update_parameters(model)
        finite &= error.detach().isfinite()
        if step % look_every == 0 and not finite:
            break
        if report:
            report(error.detach())
    if not finite:
        raise FloatingPointError(f"the loss became NaN or infinite within {step} steps; use a smaller --lr"
                                 f"{' or leave out --amp' if amp else ''}")
    return mean.module if mean else model


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
    parser.add_argument("--recipe", default="paper", choices=list(RECIPES), help="paper: learn each reference from the "
                        "photograph; fast: learn to take off self-made rain; the flags below start from it")

    def add(name, meaning, **options):
        defaults = ", ".join(f"{recipe}: {values[name]}" for recipe, values in RECIPES.items())
        parser.add_argument(f"--{name}", default=argparse.SUPPRESS, help=f"{meaning} ({defaults})", **options)

    add("epoch", "times that every reference is used; of the paper's recipe alone", type=run.number(int, 1))
    add("steps", "steps; 0 is for as many as the epochs ask for, fast: for the result without learning; fast with a "
        "transformer: 150", type=run.number(int, 0))
    add("lr", "learning rate of Adam; fast with a transformer: 0.0003", type=run.number(float, 0, 1e30))
    add("identity", "start at f(x) = x", action=argparse.BooleanOptionalAction)
    add("average", "decay of the mean that is taken of recent weights; 0: none", type=run.number(float, 0, 0.9999))
    add("crop_size", "train on random squares of that many pixels a side; 0: the whole photograph", type=run.number(int, 0))
    add("batch_size", "squares in a step, where there are any", type=run.number(int, 1, 4096))
    return parser


def recipe_options(args):
    """(start at the identity?, the options of learning) of parsed flags: what was given, else what the recipe says.

    Raises ImageError for epochs of the fast recipe, which has none.
    """
    if args.recipe == "fast" and hasattr(args, "epoch"):
        raise ImageError("--epoch is of --recipe=paper; --recipe=fast is told how long to learn by --steps")
    chosen = {name: getattr(args, name, value) for name, value in recipe_settings(args.recipe, args.backbone).items()}
    running = {name: getattr(args, name) for name in ("tile_size", "amp", "seed")}
    return chosen.pop("identity"), {**chosen, **running}


def fast_options(options):
    """The keywords of `derain_by_own_rain` among the options of `recipe_options`."""
    own = {name: options[name] for name in ("crop_size", "batch_size", "seed")}
    return {"own": own, **{name: value for name, value in options.items() if name not in (*own, "epoch")}}


def result_record(stage, args, device, sources, **more):
    """The `Record` of the photographs derained with these flags, here and in sdrl_online.py. more: settings besides."""
    identity, options = recipe_options(args)
    settings = {"recipe": args.recipe, "backbone": args.backbone, "identity": identity, **options, **more}
    if settings["steps"] or args.recipe == "fast":
        del settings["epoch"]  # which means nothing then
    return Record(stage, settings, lambda path: {"result": Path(args.result_path) / f"{path.stem}.png"}, sources, LEARNING,
                  {"device": device.type}, args.overwrite)


def main(args):
    device, (identity, options) = run.device(args.device), recipe_options(args)
    source, result, references_path = Path(args.rainy_data_path) / "input", Path(args.result_path), Path(args.sdr_data_path)
    images, folder, fast = list_images(source), Path(args.rainy_data_path), args.recipe == "fast"
    hint = (f'run sdr.py first: python sdr.py{" --recipe=fast" if fast else ""} --input_path="{source}" '
            f'--ldgp_path="{folder / "ldgp"}" --save_path="{references_path}" --fuse_save_path="{folder / "sdr(fuse)"}"')

    def sources(path):
        return path, *(only(paths) for paths in list_images(references_path / path.stem, hint).values())

    def scale_of(path):
        """The scale at which the references of a photograph were drawn. Raises ImageError for the other recipe's."""
        return check_note(sources(path)[1], GUIDED if fast else "", hint)

    first = next((paths[0] for paths in images.values() if list_images(references_path / paths[0].stem, optional=True)), None)
    if first:
        scale_of(first)  # references of the other recipe are most likely all so: a line for the run
    record = result_record("sdrl.py", args, device, sources)

    def work(path, bar):
        rainy, scale = read_image(path), scale_of(path)
        references = read_references(references_path / path.stem, rainy, path, hint)
        bar.reset(options["steps"] or options["epoch"] * len(references))
        model, report = fresh_model(args.backbone, args.seed, device, identity), run.LossLine(bar)
        if fast:
            fused = np.mean(references, axis=0, dtype=np.float32)
            derained = derain_by_own_rain(model, rainy, fused, scale=scale, report=report, **fast_options(options))
        else:
            derained = derain(model, rainy, references, report=report, **options)
        record.write(path, png_like(derained, path))

    return run.each_image(images, work, result, record=record, unit="step")


if __name__ == "__main__":
    run.start(main, add_flags(run.Parser(__doc__)))
