"""SDRL for a whole data set: train one network on the stochastic derained references of all its rainy photographs.

    python sdrl_all.py --rainy_data_path="./dataset/Rain100L/" --sdr_data_path="./dataset/Rain100L/sdr/" \\
        --result_path="./dataset/Rain100L/result/"
"""
import math
import os
import sys
import time
from pathlib import Path

import utils  # noqa: F401  before torch: how its threads wait
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from models import INPUTS
from sdrl import add_data_flags
from test_all import derain_images
from utils import checkpoint, cli
from utils.distributed import ranks, wait_for_ranks
from utils.fast.mistakes import Versions
from utils.image import ImageError, check_size, list_images, read_image, write_bytes
from utils.inference import mixed_precision
from utils.progress import Progress
from utils.results import Results, check_made_for
from utils.training import Crops, Recipe, averaged, fresh_model, learn_step

AVERAGE = 0.999  # fast: decay of the mean that is taken of recent weights


class Order(DistributedSampler):
    """A sampler of every photograph once an epoch, shuffled anew; items are indexed by (epoch, index)."""

    def __iter__(self):
        return ((self.epoch, index) for index in super().__iter__())


def gather_images(images, references_path, hint):
    """Return [(path, [paths of its references])] of photographs, {stem: path}; print a line for each without."""
    pairs = []
    for stem, path in images.items():
        try:
            references = list(list_images(references_path / stem, hint).values())
            check_size(read_image(references[0]), references[0], read_image(path), path)
            pairs.append((path, references))
        except ImageError as error:
            if ranks()[0] == 0:
                print(f"sdrl_all.py: failed: {error}", file=sys.stderr)
    if not pairs:
        raise ImageError(f"{references_path}: no photograph is left to train on; {hint}")
    return pairs


def restore(path, model, mean, optimizer):
    """Load a training's checkpoint into its networks and its Adam; return its losses. Raises ImageError for one of another."""
    content = checkpoint.load(path)
    try:
        checkpoint.load_weights(model, content["model"], path)
        if mean:
            mean.load_state_dict(content["mean"])
        optimizer.load_state_dict(content["optimizer"])
        return [float(loss) for loss in content["losses"]]
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        detail = " ".join(str(error).split())[:200]
        raise ImageError(f"{path}: not the progress of such a training ({detail}); start anew with --overwrite") from None


def save(folder, model, mean, optimizer, losses, about):
    """Save the loss curve, the network and, at last, the progress: after a kill in between, some epochs are done again."""
    lines = [f"{epoch},{loss:.8g}\n" for epoch, loss in enumerate(losses, 1)]
    write_bytes(folder / "loss.csv", "".join(["epoch,loss\n", *lines]).encode())
    checkpoint.save(folder / "model.pkl", mean.module if mean else model, **about)
    more = {"mean": mean.state_dict()} if mean else {}
    checkpoint.save(folder / "resume.pkl", model, optimizer=optimizer.state_dict(), losses=losses, **about, **more)


def train(pairs, folder, recipe, device, args):
    """Train a network, or go on with the folder's; return how many epochs it took. Raises ImageError for an infinite loss."""
    (rank, world), fast, resume = ranks(), args.recipe == "fast", folder / "resume.pkl"
    model = fresh_model(args.backbone, device, recipe, INPUTS[args.recipe])
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    mean = averaged(model, recipe.average) if fast else None
    losses = restore(resume, model, mean, optimizer) if resume.exists() else []
    first = len(losses)
    if first > args.epoch:
        raise ImageError(f"{resume}: has {first} epochs, more than --epoch={args.epoch}; start anew with --overwrite")
    if rank == 0 and first:
        print(f"sdrl_all.py: goes on after epoch {first} of {resume}", file=sys.stderr)

    crops = (Versions if fast else Crops)(pairs, args.crop_size, args.seed, args.cache_gb)
    if fast and rank == 0 and first < args.epoch:
        print(f"sdrl_all.py: the first epoch takes longer, as it makes {crops.number} rainy versions of each photograph",
              file=sys.stderr)
    order = Order(crops, world, rank, seed=args.seed)
    loader = DataLoader(crops, max(args.batch_size // world, 1), sampler=order, num_workers=args.workers,
                        pin_memory=device.type == "cuda", persistent_workers=args.workers > 0, worker_init_fn=cli.quiet_worker)
    trained, precision = DistributedDataParallel(model) if world > 1 else model, mixed_precision(device, args.amp)
    progress = Progress(f"sdrl_all.py: {folder / 'model.pkl'}", "epoch")
    about = {"recipe": args.recipe, "backbone": args.backbone, "identity": recipe.identity}
    progress.reset(args.epoch, done=first)
    trained.train()
    for epoch in range(first, args.epoch):
        order.set_epoch(epoch)
        for group in optimizer.param_groups:
            group["lr"] = args.lr * 0.5 ** (epoch // args.lr_steps if args.lr_steps else 0)
        total = torch.zeros((), device=device)
        for batch in loader:  # (N, h, w, C), BGR, in grey levels
            batch = batch.to(device, non_blocking=True).flip(-1).permute(0, 3, 1, 2).float() / 255  # (N, C, h, w), RGB
            total += learn_step(trained, batch[:, :-3], batch[:, -3:], optimizer, F.mse_loss, precision, mean)
        if world > 1:
            dist.all_reduce(total)
        losses.append(float(total) / len(loader) / world)
        if not math.isfinite(losses[-1]):
            raise ImageError(f"{folder / 'model.pkl'}: left as it was, since the loss became NaN or infinite in epoch "
                             f"{epoch + 1}; use a smaller --lr{' or leave out --amp' if args.amp else ''}")
        if rank == 0:
            progress.step(losses[-1])
            if (epoch + 1) % args.save_every == 0 or epoch + 1 == args.epoch:
                save(folder, model, mean, optimizer, losses, about | {"epoch": epoch + 1})
    progress.close()
    return len(losses) - first


def main(args):
    (rank, world), device = ranks(), cli.device(args.device)
    fast, data = args.recipe == "fast", Path(args.rainy_data_path)
    source, references_path = data / "input", Path(args.sdr_data_path or data / "sdr")
    folder = Path(args.model_save_dir or f"./result_all/{Path(os.path.abspath(data)).name}")
    images = list_images(source, "put the photographs there, or name their data set with --rainy_data_path")
    hint = check_made_for(references_path, source, args.recipe, "sdr.py")
    pairs = gather_images(images, references_path, hint)
    failed = len(images) - len(pairs)

    identity = fast if args.identity is None else args.identity
    recipe = Recipe(args.epoch, 0, args.lr, identity, AVERAGE if fast else 0, args.crop_size, args.batch_size, args.seed,
                    args.tile_size, args.amp)
    names = "recipe", "backbone", "seed", "lr", "lr_steps", "batch_size", "crop_size", "amp", *["cache_gb"] * fast
    settings = {name: getattr(args, name) for name in names} | {"identity": identity, "device": device.type, "processes": world}
    made_from, network = {"input": source, "sdr": references_path}, folder / "model.pkl"
    networks = Results("sdrl_all.py", folder, settings, made_from, lambda _: [references[0].parent for _, references in pairs],
                       suffix=".pkl", overwrite=args.overwrite, flag="--model_save_dir")
    results = Results("sdrl_all.py", args.result_path or data / "result", settings | {"epoch": args.epoch}, made_from,
                      lambda path: (path, network), overwrite=args.overwrite)
    if rank == 0:
        networks.prepare([Path("resume"), Path("model")])
        if not networks.claim(network):
            raise ImageError(f"{folder}: another process trains there; name another folder with --model_save_dir")
        results.prepare(images.values())  # of those that are left out too: an older network's result must not stay
    wait_for_ranks()

    began = time.perf_counter()
    epochs = train(pairs, folder, recipe, device, args)
    if rank == 0:
        print(f"sdrl_all.py: {len(pairs)} images, {failed} failed, {epochs} epochs in {time.perf_counter() - began:.0f} s, "
              f"network in {network}")
    wait_for_ranks()
    model, name = checkpoint.load_model(network, device)
    return derain_images({path.stem: path for path, _ in pairs}, model, name, recipe, results, failed)


if __name__ == "__main__":
    parser = cli.Parser(__doc__)
    add_data_flags(parser)
    parser.add_argument("--model_save_dir", help="where model.pkl, resume.pkl and loss.csv go; the same command goes on from "
                                                 "there (default: ./result_all/<data set>/)")
    parser.add_argument("--epoch", type=cli.number(int, 1), default=2000, help="times that every photograph is used")
    parser.add_argument("--lr", type=cli.number(float, 0, 1e30), default=1e-3, help="learning rate of Adam")
    parser.add_argument("--lr_steps", type=cli.number(int, 0), default=0, help="halve the rate every so many epochs; 0: never")
    parser.add_argument("--batch_size", type=cli.number(int, 1, 10**6), default=64, help="crops a step, all processes together")
    parser.add_argument("--crop_size", type=cli.number(int, 1, 16_384), default=64, help="pixels a side of the crops")
    parser.add_argument("--identity", action="store_true", default=None, help="start at f(x) = x, as --recipe=fast does")
    parser.add_argument("--save_every", type=cli.number(int, 1), default=50, help="epochs between checkpoints")
    parser.add_argument("--workers", type=cli.number(int, 0, 256), default=0, help="processes that prepare crops")
    parser.add_argument("--cache_gb", type=cli.number(float, 0, 1e6), default=2,
                        help="memory for images that are kept decoded, of each process and worker; fast: that holds the "
                             "versions, so with less there are fewer")
    cli.start(main, parser)
