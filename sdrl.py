"""SDRL: train a network on one rainy photograph alone, against its stochastic derained references, and keep its output.

    python sdrl.py --rainy_data_path="./dataset/Rain100L/" --sdr_data_path="./dataset/Rain100L/sdr/" \\
        --result_path="./dataset/Rain100L/result/" --backbone="Unet"
"""
import argparse
import itertools
from pathlib import Path
from typing import NamedTuple

import utils  # noqa: F401  before torch: how its threads wait
import numpy as np
import torch
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ldgp import thin_scale
from models import BACKBONES, build
from utils import cli
from utils.image import (ImageError, check_image, check_size, list_images, photograph_bytes, read_image, read_photograph,
                         shrink, subtract_rain, tensor_to_uint8, uint8_to_tensor)
from utils.inference import infer, mixed_precision, model_device
from utils.progress import each_image
from utils.results import Results, check_made_for


class Recipe(NamedTuple):
    """How a network learns and runs; each is a flag."""

    epoch: int  # times that every reference is used, where steps does not say how long to learn
    steps: int
    lr: float  # learning rate of Adam
    identity: bool  # start at f(x) = x
    average: float  # decay of the mean that is taken of recent weights; 0: none
    crop_size: int  # pixels a side of random squares to learn from; 0: the whole photograph
    batch_size: int  # squares in a step
    seed: int = 3
    tile_size: int = 1024  # the largest side that is derained at once
    amp: bool = False  # mixed precision


PAPER = Recipe(epoch=100, steps=0, lr=1e-3, identity=False, average=0.0, crop_size=0, batch_size=1)
FAST = Recipe(epoch=0, steps=750, lr=1e-3, identity=True, average=0.98, crop_size=64, batch_size=2)
# Restormer and DRSFormer learn more in a step, each of which takes longer, and at the rate of the others they do not learn:
# Restormer's authors train it with this one (Zamir et al., CVPR 2022).
FAST_TRANSFORMER = FAST._replace(steps=150, lr=3e-4)

FAINTEST = 3  # grey levels: fainter rain is not used again as self-made rain
FACTORS = 0.6, 1.5  # self-made rain is the photograph's own, times a factor between these
DENSITY = 4  # grey levels: fainter rain, by its mean, is laid over itself, up to four times, or it would teach nothing
LEARNT = 0.4  # a network that takes off a smaller share of the light than this, against what was found, has learnt nothing yet
TRUST = 1 / 3  # the network's share of the light that is taken off; the rest is what was taken off before it learnt


def recipe_for(name, backbone):
    """The `Recipe` of a name, "paper" or "fast", for a backbone."""
    return PAPER if name == "paper" else FAST_TRANSFORMER if backbone in ("Restormer", "DRSFormer") else FAST


def fresh_model(backbone, device="cpu", recipe=PAPER):
    """A backbone with the weights that the recipe's seed gives, on its device."""
    torch.manual_seed(recipe.seed)
    model = build(backbone, residual=recipe.identity).to(device)
    return model.to(memory_format=torch.channels_last) if model_device(model).type == "cuda" else model


def derain(model, rainy, references, recipe=PAPER, report=None):
    """Train a fresh network on one rainy image against its references, in their order; return the derained image.

    model: a network (N, 3, H, W) -> the same in [0, 1], RGB, trained in place (paper, section 2.3). rainy: (H, W, 3) uint8
    BGR. references: (N, H, W, 3) uint8 BGR. report: called with each step's loss.
    Returns (H, W, 3) uint8 BGR. Raises ValueError where shapes do not match, and as `fit` and `infer` do.
    """
    check_image(rainy)
    if references.shape[1:] != rainy.shape or len(references) == 0:
        raise ValueError(f"references of shape {references.shape} do not belong to an image of shape {rainy.shape}")
    kept = torch.from_numpy(references).to(model_device(model))
    steps = recipe.steps or recipe.epoch * len(kept)
    return learn_references(model, rainy, (kept[step % len(kept)] for step in range(steps)), recipe, report)


def learn_references(model, rainy, references, recipe=PAPER, report=None):
    """The paper's learning: for each reference y_n a step of Adam on mean((f(x) - y_n)^2), x being the rainy image.

    references: an iterable of (H, W, 3) uint8 BGR tensors on the model's device. Returns (H, W, 3) uint8 BGR. Raises as `fit`
    and `infer` do.
    """
    x, random = uint8_to_tensor(rainy, model_device(model)), np.random.default_rng(recipe.seed)

    def pair(reference):
        y = uint8_to_tensor(reference)
        if not recipe.crop_size or recipe.crop_size >= max(x.shape[2:]):
            return x, y
        windows = [crop_window(x.shape[2:], recipe.crop_size, random) for _ in range(recipe.batch_size)]
        return tuple(torch.cat([image[window] for window in windows]) for image in (x, y))

    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr)
    trained = fit(model, map(pair, references), optimizer, F.mse_loss, recipe, report)
    return tensor_to_uint8(infer(trained, rainy, recipe.tile_size, recipe.amp))


def derain_by_own_rain(model, rainy, fused, recipe=FAST, scale=1, report=None):
    """Learn to take off self-made rain, which is added to what is known of the scene; then take off the real one (ours).

    The references are turned round: not stochastic references of one rainy image, but stochastic rainy images of one
    reference, the photograph without what the guided samples took off. The rain is what they took off, found elsewhere in
    the photograph. So the network learns from the scene itself which of its lines are no rain.

    model: as `derain`'s, trained in place, starting at the identity. rainy: (H, W, 3) uint8 BGR; fused: the same shape,
    uint8 or float, the mean of guided samples; returned as it is, rounded, where the recipe has no steps. scale: by how much
    the photograph is to be shrunk, as from `ldgp.thin_scale`. report: called with each step's loss.
    Returns (H, W, 3) uint8 BGR. Raises ValueError where shapes do not match, and as `fit` and `infer` do.
    """
    check_image(rainy)
    if fused.shape != rainy.shape:
        raise ValueError(f"a reference of shape {fused.shape} does not belong to an image of shape {rainy.shape}")
    if not recipe.steps:
        return np.rint(fused).astype(np.uint8)
    scene, device = shrink(np.rint(fused).astype(np.uint8), scale), model_device(model)
    rain = torch.from_numpy(light_between(shrink(rainy, scale), scene)).to(device) / 255
    pairs = itertools.islice(own_rain(uint8_to_tensor(scene, device), rain, recipe), recipe.steps)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr, fused=True)  # faster than the paper's, other roundings
    return take_off_learnt(fit(model, pairs, optimizer, F.l1_loss, recipe, report), rainy, fused, recipe, scale)


def take_off_learnt(model, rainy, fused, recipe=FAST, scale=1):
    """A photograph less a third of the light that a trained network takes off and two thirds of what guided samples do.

    Of what the network changes only what rain can have made counts, the same light in all channels. Where it takes off next to
    nothing it has learnt nothing, and only the guided samples count. Parameters as of `derain_by_own_rain`.
    """
    small, scene = shrink(rainy, scale), shrink(np.rint(fused).astype(np.uint8), scale)
    found = np.maximum(small - scene.astype(np.float32), 0)  # of each channel, as one that was cut off at 255 lost less light
    output = infer(model, small, recipe.tile_size, recipe.amp).cpu()
    learnt = 255 * (uint8_to_tensor(small) - output).amin(dim=1)[0].clamp(min=0).numpy()
    trust = TRUST if learnt.mean() > LEARNT * light_between(small, scene).mean() else 0
    return subtract_rain(rainy, trust * learnt[..., None] + (1 - trust) * found)


def light_between(rainy, derained):
    """The light, (H, W) float32 in grey levels, that was taken off: of the channels, one that was not cut off at 0."""
    return np.maximum((rainy - derained.astype(np.float32)).max(axis=2), 0)


def own_rain(scene, rain, recipe=FAST):
    """Yield batches of (the scene with rain, the scene), (N, 3, crop, crop) each, for ever.

    scene: (1, 3, H, W) in [0, 1], RGB; rain: (H, W) in [0, 1], of which windows from anywhere, turned by half a turn or not
    and times a random factor, are added to windows of the scene; several to one where rain is sparse.
    """
    random = np.random.default_rng(recipe.seed)
    rain = torch.where(rain > FAINTEST / 255, rain, 0)[None, None]
    layers = overlays(255 * float(rain.mean()))
    shape, crop_size = scene.shape[2:], recipe.crop_size or max(scene.shape)
    while True:
        scenes, rains = [], []
        for _ in range(recipe.batch_size):
            scenes.append(scene[crop_window(shape, crop_size, random)])
            windows = (rain[crop_window(shape, crop_size, random)] for _ in range(layers))
            rains.append(sum((window.flip(2, 3) if random.random() < 0.5 else window) * random.uniform(*FACTORS)
                             for window in windows))
        y = torch.cat(scenes)
        yield (y + torch.cat(rains)).clamp(max=1), y


def overlays(mean):
    """How often rain of this mean, in grey levels, is laid over itself to make rain that teaches something: 1 to 4."""
    return min(max(round(DENSITY / max(mean, 1e-3)), 1), 4)


def crop_window(shape, size, random):
    """The index (..., rows, columns) of a random square of an image of this shape (H, W); as much as there is of it."""
    top, left = (int(random.integers(max(side - size, 0) + 1)) for side in shape)
    return ..., slice(top, top + size), slice(left, left + size)


def fit(model, pairs, optimizer, criterion, recipe=PAPER, report=None):
    """Train a network on pairs (x, y) of (N, 3, h, w) tensors on its device, a step each: the loop of all recipes.

    criterion: the loss as a function of (f(x), y). Returns the trained network, or the one of the mean weights.
    Raises FloatingPointError where a loss is NaN or infinite.
    """
    device = model_device(model)
    precision, finite = mixed_precision(device, recipe.amp), torch.ones((), dtype=torch.bool, device=device)
    mean = averaged(model, recipe.average) if recipe.average else None
    model.train()
    for step, (x, y) in enumerate(pairs, 1):
        loss = learn(model, x, y, optimizer, criterion, precision, mean)
        if report:
            report(loss)
        finite &= loss.isfinite()
        if step % 100 == 0 and not finite:  # a GPU has to wait for the answer
            break
    if not finite:
        amp = " or leave out --amp" if recipe.amp else ""
        raise FloatingPointError(f"the loss became NaN or infinite; use a smaller --lr{amp}")
    return mean.module if mean else model


def learn(model, x, y, optimizer, criterion, precision, mean=None):
    """A step towards f(x) = y, here and in sdrl_all.py; returns the loss.

    precision: as from `mixed_precision`. mean: of the weights, as from `averaged`, which is kept up to date.
    """
    autocast, scaler = precision
    optimizer.zero_grad(set_to_none=True)
    with autocast():
        output = model(x)
    loss = criterion(output.float(), y)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    if mean:
        mean.update_parameters(getattr(model, "module", model))  # not the wrapper of several processes
    return loss.detach()


def averaged(model, decay):
    """The exponential mean of a network's weights: a network, `module`, that `update_parameters` keeps up to date."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


def read_references(folder, rainy, image_path, hint):
    """The SDRs of one image, (N, H, W, 3) uint8 BGR, in string order of their file names as in the paper's protocol.

    Raises ImageError where there are none (with `hint` on how to make them) or one is of another size.
    """
    paths = [path for _, path in sorted(list_images(folder, hint).items())]
    references = np.empty((len(paths), *rainy.shape), np.uint8)
    for place, path in enumerate(paths):
        references[place] = read_reference(path, rainy, image_path)
    return references


def read_reference(path, rainy, image_path, read=read_image):
    """One SDR of an image, (H, W, 3) uint8 BGR. Raises ImageError where it is of another size."""
    reference = read(path)
    check_size(reference, path, rainy, image_path)
    return reference


def how_to_make_references(data, references_path, recipe):
    """What to run where references of a data set are missing or of another run."""
    return (f'run sdr.py first: python sdr.py --recipe={recipe} --input_path="{data / "input"}" --ldgp_path="{data / "ldgp"}" '
            f'--save_path="{references_path}" --fuse_save_path="{data / "sdr(fuse)"}"')


def add_data_flags(parser):
    """The flags that all learning stages have."""
    parser.add_argument("--rainy_data_path", default="./dataset/Rain100L/", help="a data set; its photographs are in input/")
    parser.add_argument("--sdr_data_path", help="their references, by sdr.py (default: sdr/ of the data set)")
    parser.add_argument("--result_path", help="where the derained photographs go (default: result/ of the data set)")
    parser.add_argument("--backbone", default="Unet", choices=list(BACKBONES), help="network to train")
    parser.add_argument("--recipe", default="paper", choices=["paper", "fast"], help="paper: learn the references from the "
                        "photographs; fast: learn to take off self-made rain")
    parser.add_argument("--seed", type=cli.number(int, 0, 2**32 - 1), default=3,
                        help="of weights and draws; set anew for every image")
    cli.add_inference_flags(parser)
    cli.add_overwrite_flag(parser)


def add_flags(parser):
    """The flags of the learning from one photograph, here and in sdrl_online.py; those of a `Recipe` start from its values."""
    add_data_flags(parser)

    def add(name, meaning, **options):
        defaults = f"paper: {getattr(PAPER, name)}, fast: {getattr(FAST, name)}"
        parser.add_argument(f"--{name}", default=argparse.SUPPRESS, help=f"{meaning} ({defaults})", **options)

    add("epoch", "times that every reference is used; of the paper's recipe alone", type=cli.number(int, 1))
    add("steps", "steps; 0 is for as many as the epochs ask for, fast: for the result without learning; fast with a "
        "transformer: 150", type=cli.number(int, 0))
    add("lr", "learning rate of Adam; fast with a transformer: 0.0003", type=cli.number(float, 0, 1e30))
    add("identity", "start at f(x) = x", action=argparse.BooleanOptionalAction)
    add("average", "decay of the mean that is taken of recent weights; 0: none", type=cli.number(float, 0, 0.9999))
    add("crop_size", "train on random squares of that many pixels a side; 0: the whole photograph", type=cli.number(int, 0))
    add("batch_size", "squares in a step, where there are any", type=cli.number(int, 1, 4096))
    return parser


def recipe_of(args):
    """The `Recipe` of parsed flags: what was given, else what the recipe says. Raises ImageError for epochs of the fast one."""
    if args.recipe == "fast" and hasattr(args, "epoch"):
        raise ImageError("--epoch is of --recipe=paper; --recipe=fast is told how long to learn by --steps")
    given = {name: getattr(args, name) for name in Recipe._fields if hasattr(args, name)}
    recipe = recipe_for(args.recipe, args.backbone)._replace(**given)
    return recipe._replace(epoch=0) if recipe.steps else recipe


def main(args):
    device, recipe, fast = cli.device(args.device), recipe_of(args), args.recipe == "fast"
    data = Path(args.rainy_data_path)
    source, references_path = data / "input", Path(args.sdr_data_path or data / "sdr")
    hint = how_to_make_references(data, references_path, args.recipe)
    images = list_images(source, "put the photographs there, or name their data set with --rainy_data_path")
    check_made_for(references_path, source, args.recipe, hint)
    settings = {"recipe": args.recipe, "backbone": args.backbone, "device": device.type, **recipe._asdict()}
    results = Results("sdrl.py", args.result_path or data / "result", settings, {"input": source, "sdr": references_path},
                      lambda path: (path, references_path / path.stem), overwrite=args.overwrite)

    def work(path, progress):
        photograph = read_photograph(path)
        references = read_references(references_path / path.stem, photograph.image, path, hint)
        progress.reset(recipe.steps or recipe.epoch * len(references))
        model = fresh_model(args.backbone, device, recipe)
        if fast:
            fused, scale = np.mean(references, axis=0, dtype=np.float32), thin_scale(photograph.image)
            derained = derain_by_own_rain(model, photograph.image, fused, recipe, scale, progress.step)
        else:
            derained = derain(model, photograph.image, references, recipe, progress.step)
        results.write(path, photograph_bytes(derained, photograph))

    return each_image(images, work, [results])


if __name__ == "__main__":
    cli.start(main, add_flags(cli.Parser(__doc__)))
