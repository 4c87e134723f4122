"""SDRL: train a network on one rainy photograph alone, against its stochastic derained references, and keep its output.

    python sdrl.py --rainy_data_path="./dataset/Rain100L/" --sdr_data_path="./dataset/Rain100L/sdr/" \\
        --result_path="./dataset/Rain100L/result/" --backbone="Unet"
"""
import argparse
from pathlib import Path

import utils  # noqa: F401  before torch: how its threads wait
import numpy as np
import torch
import torch.nn.functional as F

from models import BACKBONES
from utils import cli, fast
from utils.fast import mistakes
from utils.image import ImageError, check_image, list_images, read_scale, tensor_to_uint8, uint8_to_tensor, write_bytes
from utils.inference import infer, model_device
from utils.photograph import photograph_bytes, read_photograph
from utils.progress import each_image
from utils.results import Results, check_made_for
from utils.training import Recipe, crop_window, fit, fresh_model, read_reference

PAPER = Recipe(epoch=100, steps=0, lr=1e-3, identity=False, average=0.0, crop_size=0, batch_size=1)


def derain(model, rainy, references, recipe=PAPER, report=None):
    """Train a network on one rainy image against its references, in their order; return the derained image.

    Parameters
    ----------
    model : network from (N, 3, H, W) in [0, 1], RGB, to the same; trained in place
    rainy : (H, W, 3) uint8, BGR
    references : (N, H, W, 3) uint8, BGR
    recipe : Recipe
    report : called with each step's loss

    Returns
    -------
    (H, W, 3) uint8, BGR

    Raises
    ------
    ValueError, FloatingPointError
        Where shapes do not match; where a loss or the network's output is not finite.

    References
    ----------
    "Rain2Avoid: Self-Supervised Single Image Deraining", ICASSP 2023, section 2.3.
    """
    check_image(rainy)
    if references.shape[1:] != rainy.shape or len(references) == 0:
        raise ValueError(f"references of shape {references.shape} do not belong to an image of shape {rainy.shape}")
    kept = torch.from_numpy(np.ascontiguousarray(references)).to(model_device(model))
    steps = recipe.steps or recipe.epoch * len(kept)
    return learn_references(model, rainy, (kept[step % len(kept)] for step in range(steps)), recipe, report)


def learn_references(model, rainy, references, recipe=PAPER, report=None):
    """Train on a stream of references y_n, a step of Adam on mean((f(x) - y_n)^2) each; return the derained image f(x).

    references: an iterable of (H, W, 3) uint8 BGR tensors on the model's device. Returns an array of that. Raises as `fit`.
    """
    x = uint8_to_tensor(rainy, model_device(model)).contiguous(memory_format=torch.channels_last)  # as the weights are
    random = np.random.default_rng(recipe.seed)

    def pair(reference):
        y = uint8_to_tensor(reference)
        if not recipe.crop_size or recipe.crop_size >= max(x.shape[2:]):
            return x, y
        windows = [crop_window(x.shape[2:], recipe.crop_size, random) for _ in range(recipe.batch_size)]
        return tuple(torch.cat([image[window] for window in windows]) for image in (x, y))

    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr)
    trained = fit(model, map(pair, references), optimizer, F.mse_loss, recipe, report)
    return tensor_to_uint8(infer(trained, rainy, recipe.tile_size, recipe.amp))


def read_references(folder, rainy, image_path, hint):
    """Read the SDRs of one image, (N, H, W, 3) uint8 BGR, in the paper's order, of names as strings, and their scale."""
    paths = [path for _, path in sorted(list_images(folder, hint).items())]
    read = (read_reference(path, rainy, image_path) for path in paths)
    return np.fromiter(read, np.dtype((np.uint8, rainy.shape)), len(paths)), read_scale(paths[0])


def write_so_far(model, photograph, path, steps, recipe):
    """Write what a network in training makes of a photograph after so many steps, in a folder of that name by the result."""
    derained = tensor_to_uint8(infer(model, photograph.image, recipe.tile_size, recipe.amp))
    model.train()
    (path.parent / str(steps)).mkdir(exist_ok=True)
    write_bytes(path.parent / str(steps) / path.name, photograph_bytes(derained, photograph))


def add_data_flags(parser):
    """Add the flags that all learning stages have."""
    parser.add_argument("--rainy_data_path", default="./dataset/Rain100L/", help="a data set; its photographs are in input/")
    parser.add_argument("--sdr_data_path", help="their references, by sdr.py (default: sdr/ of the data set)")
    parser.add_argument("--result_path", help="where the derained photographs go (default: result/ of the data set)")
    parser.add_argument("--backbone", default="Unet", choices=list(BACKBONES), help="network to train")
    parser.add_argument("--recipe", default="paper", choices=["paper", "fast"], help="paper: learn the references from the "
                        "photographs; fast: learn to correct what the rain layer and guided samples find")
    parser.add_argument("--seed", type=cli.number(int, 0, 2**32 - 1), default=3, help="of all draws, set anew for every image")
    cli.add_inference_flags(parser)
    cli.add_overwrite_flag(parser)


def add_flags(parser):
    """Add the flags of learning from one photograph, here and in sdrl_online.py; those of a `Recipe` start from its values."""
    add_data_flags(parser)

    def add(name, meaning, **options):
        defaults = f"paper: {getattr(PAPER, name)}, fast: {getattr(mistakes.FAST, name)}"
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
    """Return a recipe's values, replaced by the flags that are given. Raises ImageError for epochs of the fast one."""
    if args.recipe == "fast" and hasattr(args, "epoch"):
        raise ImageError("--epoch is of --recipe=paper; --recipe=fast is told how long to learn by --steps")
    given = {name: getattr(args, name) for name in Recipe._fields if hasattr(args, name)}
    recipe = (mistakes.recipe_for(args.backbone) if args.recipe == "fast" else PAPER)._replace(**given)
    return recipe._replace(epoch=0) if recipe.steps else recipe


def main(args):
    device, recipe, data = cli.device(args.device), recipe_of(args), Path(args.rainy_data_path)
    if args.recipe == "fast" and args.save_every:
        raise ImageError("--save_every is of --recipe=paper; --recipe=fast is told how long to learn by --steps")
    source, references_path = data / "input", Path(args.sdr_data_path or data / "sdr")
    images = list_images(source, "put the photographs there, or name their data set with --rainy_data_path")
    hint = check_made_for(references_path, source, args.recipe, "sdr.py")
    settings = {"recipe": args.recipe, "backbone": args.backbone, "device": device.type, **recipe._asdict()}
    results = Results("sdrl.py", args.result_path or data / "result", settings, {"input": source, "sdr": references_path},
                      lambda path: (path, references_path / path.stem), overwrite=args.overwrite)

    def work(path, progress):
        photograph = read_photograph(path)
        references, scale = read_references(references_path / path.stem, photograph.image, path, hint)
        progress.reset(recipe.steps or recipe.epoch * len(references))
        if args.recipe == "fast":
            learner = mistakes.learner(args.backbone, device, recipe, progress.step)
            fused = np.mean(references, axis=0, dtype=np.float32)
            derained = fast.derain_by_learning(photograph.image, fused, learner, scale)
        else:
            model = fresh_model(args.backbone, device, recipe)

            def report(loss):
                progress.step(loss)
                if args.save_every and progress.steps % args.save_every == 0:
                    write_so_far(model, photograph, results.path(path), progress.steps, recipe)

            derained = derain(model, photograph.image, references, recipe, report)
        results.write(path, photograph_bytes(derained, photograph))
        return photograph.notice()

    return each_image(images, work, [results])


if __name__ == "__main__":
    parser = add_flags(cli.Parser(__doc__))
    parser.add_argument("--save_every", type=cli.number(int, 0), default=0, help="paper: keep what the network gives each time "
                        "that so many steps are done, in result/<steps>/, for utils.figures --figure=steps; 0: never")
    cli.start(main, parser)
