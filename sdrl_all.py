"""SDRL for a whole data set: train one network on the stochastic derained references of all its rainy photographs.

    python sdrl_all.py --rainy_data_path="./dataset/Rain100L/" --sdr_data_path="./dataset/Rain100L/sdr/" \\
        --result_path="./dataset/Rain100L/result/"
"""
import io
import math
import os
import signal
import sys
import tempfile
import time
import warnings
import zipfile
from pathlib import Path

if __name__ == "__main__":  # while libraries load, Ctrl-C ends without a word; `run.start` answers it from then on
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from sdrl import fresh_model
from utils import run
from utils.inference import infer, mixed_precision
from utils.image import (ImageError, check_size, clear_unfinished, list_images, only, png_like, read_image, tensor_to_uint8,
                         write_bytes)
from utils.record import LEARNING, Record, digest, file_digest, input_digest, new_folder, short

CHECKPOINT = "model.pkl"  # what test_all.py reads
PROGRESS = "resume.pkl"  # what --resume goes on from: the same, with the optimiser's state
LOSSES = "loss.csv"


class Crops(Dataset):
    """Random crops of rainy images with one of their references each: items (2, crop, crop, 3) uint8 BGR.

    images: a list of (path of the rainy image, [paths of its references]). An item is named by (epoch, index) and depends on
    nothing but these and the seed: so an interrupted training can go on, with any number of workers or processes.
    cache: decode everything once into a temporary file that is mapped into memory.
    """

    def __init__(self, images, crop_size, seed, cache):
        self.images, self.crop_size, self.seed = images, crop_size, seed
        self.cache = self._decode() if cache else None

    def __getstate__(self):  # a worker that is no fork of this process cannot share the file: it decodes what it needs
        return {**self.__dict__, "cache": None}

    def __len__(self):
        return len(self.images)

    def _decode(self):
        file = tempfile.TemporaryFile()  # goes away with the process
        places = []
        for rainy, references in tqdm(self.images, desc="reading", unit="image", dynamic_ncols=True, leave=False):
            first = file.tell()
            for path in (rainy, *references):
                image = read_image(path)
                file.write(image.tobytes())
            places.append((first, (1 + len(references), *image.shape)))
        file.flush()
        return file, np.memmap(file, np.uint8, "r"), places

    def _pair(self, index, random):
        rainy, references = self.images[index]
        chosen = int(random.integers(len(references)))
        if self.cache is None:
            return read_image(rainy), read_image(references[chosen])
        _, data, places = self.cache
        first, shape = places[index]
        stack = data[first : first + int(np.prod(shape, dtype=np.int64))].reshape(shape)
        return stack[0], stack[1 + chosen]

    def __getitem__(self, name):
        epoch, index = name
        random = np.random.default_rng((self.seed, epoch, index))
        pair = self._pair(index, random)
        height, width = pair[0].shape[:2]
        top, left = (int(random.integers(max(side - self.crop_size, 0) + 1)) for side in (height, width))
        crop = np.stack([image[top : top + self.crop_size, left : left + self.crop_size] for image in pair])
        missing = [(0, self.crop_size - side) for side in crop.shape[1:3]]
        if any(after for _, after in missing):  # an image smaller than a crop
            crop = np.pad(crop, [(0, 0), *missing, (0, 0)], mode="symmetric")
        return np.ascontiguousarray(crop[:, :, ::-1] if random.random() < 0.5 else crop)


class Batches:
    """A sampler of batches of (epoch, index): every image once an epoch, in an order drawn anew; dealt out to `world` ranks."""

    def __init__(self, number, batch_size, seed, epoch, rank=0, world=1):
        self.number, self.batch_size, self.seed, self.epoch = number, batch_size, seed, epoch
        self.rank, self.world = rank, world

    def __len__(self):
        return -(-self.number // self.batch_size)

    def __iter__(self):
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.number)
        for first in range(0, self.number, self.batch_size):
            batch = order[first : first + self.batch_size]
            # every rank needs an item, also of a last batch with fewer items than ranks
            mine = batch[self.rank :: self.world] if self.rank < len(batch) else batch[:1]
            yield [(self.epoch, int(index)) for index in mine]


def train_epoch(model, batches, optimizer, scaler, autocast, device, report=None):
    """One pass over `batches` of pairs (N, 2, h, w, 3) uint8 BGR; returns the mean loss, a tensor on the device."""
    total, number = torch.zeros((), device=device), 0
    for pairs in batches:
        pairs = pairs.to(device, non_blocking=True)
        rainy, reference = (pairs[:, n].flip(-1).permute(0, 3, 1, 2).float() / 255 for n in (0, 1))
        optimizer.zero_grad(set_to_none=True)
        with autocast():
            loss = F.mse_loss(model(rainy).float(), reference)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        total, number = total + loss.detach(), number + 1
        if report:
            report(loss.detach())
    return total / number


def checkpoint_bytes(**content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def load(path, device="cpu"):
    """Read a checkpoint, tensors and plain values only. Raises ImageError for a file that is none.

    Nothing in it is executed, and it takes no more memory than the file has bytes.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise ImageError(f"{path}: no such checkpoint; train one first with sdrl_all.py") from None
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that it refuses next
            # torch stores as it is what others could compress a thousand times; its formats before version 1.6 are no
            # zip files, say nothing of the sizes that they ask for, and could execute code up to torch 2.5
            if not data.startswith(b"PK\3\4"):
                raise ValueError("not in the zip format that torch writes since version 1.6")
            if sum(entry.file_size for entry in zipfile.ZipFile(io.BytesIO(data)).infolist()) > len(data):
                raise ValueError("compressed")
            content = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
    except Exception as error:  # torch raises many kinds for what is no checkpoint; all mean the same to the user
        raise ImageError(f"{path}: damaged, or not a checkpoint of tensors and plain values, the only kind that is opened "
                         f"({error if type(error) is ValueError else type(error).__name__}); "
                         "train one with sdrl_all.py") from None
    if not isinstance(content, dict) or "model" not in content:
        raise ImageError(f"{path}: a checkpoint without an entry 'model'; train one with sdrl_all.py")
    return content


def load_weights(model, weights, path, backbone):
    """Put the weights of a checkpoint into a network. Raises ImageError where they are another network's or not finite."""
    try:
        own = model.state_dict()
        kinds = {name: tensor.is_floating_point() for name, tensor in weights.items()}
        if any(kinds[name] != own[name].is_floating_point() for name in own.keys() & kinds.keys()):
            raise TypeError("whole numbers in place of fractions, or the reverse")
        model.load_state_dict(weights)
    except Exception as error:  # as many kinds as there are ways to be something else
        detail = " ".join(str(error).split())[:200]
        raise ImageError(f"{path}: its weights are not those of a {backbone} ({detail})") from None
    check_weights(model, path)


def check_weights(model, path):
    """Raise ImageError naming `path` where a network's weights are not all finite."""
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise ImageError(f"{path}: NaN or infinite weights ({name}); take an older one, or train again with a smaller --lr")


def gather_images(images, folder, references_path):
    """[(rainy, [references])] of all images that have both, and one line on each that has to be left out.

    images: {stem: [path]} of folder/input/.
    """
    hint = (f'run sdr.py first: python sdr.py --input_path="{folder / "input"}" --ldgp_path="{folder / "ldgp"}" '
            f'--save_path="{references_path}" --fuse_save_path="{folder / "sdr(fuse)"}"')
    pairs, failures = [], []
    for stem, paths in images.items():
        try:
            image = read_image(only(paths))
            references = [only(found) for found in list_images(references_path / stem, hint).values()]
            for path in references:
                check_size(read_image(path), path, image, paths[0])
            pairs.append((paths[0], references))
        except ImageError as error:
            failures.append(f"failed: {error}")
    return pairs, failures


def cache_fits(pairs, limit_gb):
    """Whether all images and references, decoded, take at most that many gigabytes (judged by the first image)."""
    size = read_image(pairs[0][0]).size * sum(1 + len(references) for _, references in pairs)
    return size <= limit_gb * 1e9


def resume_state(path, options):
    """The content of a progress file. Raises ImageError where it was made with other options."""
    content = load(path)
    missing = {"backbone", "epoch", "losses", "optimizer", "options"} - content.keys()
    if missing:
        raise ImageError(f"{path}: nothing to go on from (without {', '.join(sorted(missing))}); start anew without --resume")
    saved = content["options"] if isinstance(content["options"], dict) else {}
    # the types first: a tensor compares to nothing
    different = [name for name, value in options.items() if (type(saved.get(name)), saved.get(name)) != (type(value), value)]
    if different:
        raise ImageError(f"{path}: was made with another --{', --'.join(different)}; "
                         "use the same or start anew without --resume")
    return content


MOMENTS = ("exp_avg", "exp_avg_sq")


def restore(content, path, model, optimizer):
    """Put the content of a progress file into a network and its Adam; returns (epochs done, [(loss, seconds)] of each).

    Raises ImageError where it does not belong there or is not finite.
    """
    load_weights(model, content["model"], path, content["backbone"])
    try:
        # of the file only what Adam has learnt: its settings are those of the command line, which are the same
        steps = {index: {name: content["optimizer"]["state"][index][name] for name in ("step", *MOMENTS)}
                 for index, _ in enumerate(model.parameters())}
        for parameter, entry in zip(model.parameters(), steps.values()):
            if entry["step"].shape != () or not entry["step"] >= 1:
                raise ValueError("a number of steps")
            for name in MOMENTS:
                if (entry[name].shape, entry[name].dtype) != (parameter.shape, parameter.dtype):
                    raise ValueError(f"{name} of another size")
                if not entry[name].isfinite().all():
                    raise ValueError(f"{name} is not finite")
        optimizer.load_state_dict({"state": steps, "param_groups": optimizer.state_dict()["param_groups"]})
        epoch, losses = content["epoch"], [(float(loss), float(seconds)) for loss, seconds in content["losses"]]
        if type(epoch) is not int or epoch != len(losses):
            raise ValueError("epochs that do not fit the losses")
    except Exception as error:  # as many kinds as there are ways to be something else
        detail = " ".join(str(error).split())[:200]
        raise ImageError(f"{path}: its progress is not that of such a training ({type(error).__name__}: {detail}); "
                         "start anew with --overwrite") from None
    return epoch, losses


def differences(path, run_now, epochs):
    """In words, how the run that left a progress file differs from this one; "" where this one can go on from it."""
    try:
        content = resume_state(path, {})
    except ImageError:
        return "a damaged resume.pkl" if path.exists() else "without a resume.pkl"
    then = content.get("run")
    if not isinstance(then, dict) or type(content["epoch"]) is not int:
        return "without a record"
    # the types first: a tensor compares to nothing
    words = [f"{name} {short(then.get(name))}, now {short(value)}" for name, value in run_now.items()
             if type(then.get(name)) is not type(value) or then[name] != value]
    if content["epoch"] > epochs:
        words.append(f"--epoch {content['epoch']}, now {epochs}")
    return f"of another run: {'; '.join(words[:3])}{'; ...' * (len(words) > 3)}" if words else ""


def set_aside(folder, why):
    """Move what a training left in a folder to a sub-folder of it, and say so in one line."""
    names = [name for name in (PROGRESS, CHECKPOINT, LOSSES) if (folder / name).exists()]
    aside = folder / new_folder(folder)
    for name in names:
        (folder / name).rename(aside / name)
    print(f"sdrl_all.py: {folder}: {', '.join(names)} ({why}) moved to {aside}", file=sys.stderr)


def weights_digest(model):
    """The digest of all that a network holds."""
    return digest(b"".join(value.cpu().contiguous().numpy().tobytes() for value in model.state_dict().values()))


def main(args):
    rank, world = run.ranks()
    device = run.device(args.device)
    folder = Path(args.rainy_data_path)
    model_path = Path(args.model_save_dir or f"./result_all/{Path(os.path.realpath(folder)).name}")
    images = list_images(folder / "input")
    run.check_results(images, args.result_path, model_path)
    options = {key: getattr(args, key) for key in ("backbone", "seed", "lr", "lr_steps", "batch_size", "crop_size", "identity")}
    if args.resume and args.overwrite:
        raise ImageError("--resume goes on from what is there and --overwrite starts anew; use one of them")
    state = resume_state(model_path / PROGRESS, options) if args.resume else None
    pairs, failures = gather_images(images, folder, Path(args.sdr_data_path))
    if rank == 0:
        for failure in failures:
            print(f"sdrl_all.py: {failure}", file=sys.stderr)
    if not pairs:
        raise ImageError(f"{args.rainy_data_path}: no image to train on is left")
    files = [path for rainy, references in pairs for path in (rainy, *references)]
    # what decides on the digits besides, also of the photographs; that is not asked of who says --resume
    run_now = {**{f"--{name}": value for name, value in options.items()}, "--amp": args.amp, "device": device.type,
               "processes": world, "torch": str(torch.__version__), "photographs and references":
               digest("".join(map(input_digest, files)).encode()) if rank == 0 else None}
    if rank == 0:
        model_path.mkdir(parents=True, exist_ok=True)
        clear_unfinished(model_path)
        left = any((model_path / name).exists() for name in (PROGRESS, CHECKPOINT, LOSSES))
        why = differences(model_path / PROGRESS, run_now, args.epoch) if left else ""
        if why and not args.resume and not args.overwrite:
            set_aside(model_path, why)
    run.wait_for_ranks()
    if not args.resume and not args.overwrite and (model_path / PROGRESS).exists():
        state = resume_state(model_path / PROGRESS, options)
    if state and rank == 0:
        print(f"sdrl_all.py: goes on after epoch {state['epoch']} of {model_path / PROGRESS}"
              + f" ({why})" * bool(why), file=sys.stderr)
    model = fresh_model(args.backbone, args.seed, device, args.identity)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    autocast, scaler = mixed_precision(device, args.amp)
    first, losses = 0, []
    if state:
        first, losses = restore(state, model_path / PROGRESS, model, optimizer)

    data = Crops(pairs, args.crop_size, args.seed, cache_fits(pairs, args.cache_gb))
    batches = Batches(len(data), args.batch_size, args.seed, first, rank, world)
    loader = DataLoader(data, batch_sampler=batches, num_workers=args.workers, pin_memory=device.type == "cuda",
                        persistent_workers=args.workers > 0, worker_init_fn=run.let_the_main_process_stop)
    trained = DistributedDataParallel(model) if world > 1 else model
    began = time.perf_counter()

    def write_checkpoints(epoch, names=(PROGRESS, CHECKPOINT, LOSSES)):
        check_weights(model, f"{model_path / CHECKPOINT}, which is left as it was")
        holds = {"backbone": args.backbone, "identity": args.identity, "options": options, "epoch": epoch}
        lines = [f"{number},{loss:.8g},{seconds:.1f}" for number, (loss, seconds) in enumerate(losses, 1)]
        contents = {
            PROGRESS: checkpoint_bytes(**holds, model=model.state_dict(), optimizer=optimizer.state_dict(), losses=losses,
                                       run=run_now),
            CHECKPOINT: checkpoint_bytes(**holds, model=model.state_dict()),
            LOSSES: "\n".join(["epoch,loss,seconds", *lines, ""]).encode()}
        for name in names:
            if file_digest(model_path / name) != digest(contents[name]):
                write_bytes(model_path / name, contents[name])

    if state and rank == 0:
        write_checkpoints(first, [CHECKPOINT, LOSSES])  # which a run did not come to that was killed after the first
    with tqdm(total=args.epoch, initial=first, unit="epoch", dynamic_ncols=True, disable=rank > 0, desc="sdrl_all.py") as bar:
        for batches.epoch in range(first, args.epoch):
            for group in optimizer.param_groups:
                group["lr"] = args.lr * 0.5 ** (batches.epoch // args.lr_steps if args.lr_steps else 0)
            trained.train()
            loss = train_epoch(trained, loader, optimizer, scaler, autocast, device)
            if world > 1:
                dist.all_reduce(loss)
                loss /= world
            losses.append((loss.item(), time.perf_counter() - began))
            if not math.isfinite(losses[-1][0]):
                raise ImageError(f"{model_path / CHECKPOINT}: left as it was, since the loss became NaN or infinite in epoch "
                                 f"{batches.epoch + 1}; use a smaller --lr" + (" or leave out --amp" if args.amp else ""))
            bar.update()
            bar.set_postfix_str(f"loss {losses[-1][0]:.2e}", refresh=False)
            done = batches.epoch + 1
            if rank == 0 and (done % args.save_every == 0 or done == args.epoch):
                write_checkpoints(done)

    if world > 1:
        for buffer in model.buffers():  # every process derains with the statistics that are in the checkpoint
            dist.broadcast(buffer, 0)
    if rank == 0:
        print(f"sdrl_all.py: {len(pairs)} images, {len(failures)} failed, {max(args.epoch - first, 0)} epochs in "
              f"{time.perf_counter() - began:.0f} s, network in {model_path / CHECKPOINT}")

    record = Record("sdrl_all.py", {"backbone": args.backbone, "identity": args.identity, "tile_size": args.tile_size,
                                    "amp": args.amp},
                    lambda path: {"result": Path(args.result_path) / f"{path.stem}.png"}, lambda path: [path], LEARNING,
                    {"device": device.type, "network": weights_digest(model)}, args.overwrite)

    def work(path, bar):
        derained = tensor_to_uint8(infer(model, read_image(path), args.tile_size, args.amp))
        record.write(path, png_like(derained, path))

    return run.each_image({path.stem: [path] for path, _ in pairs}, work, args.result_path, record=record,
                          failed=len(failures))


if __name__ == "__main__":
    folder = "./dataset/Rain100L/"
    parser = run.Parser(__doc__)
    parser.add_argument("--rainy_data_path", default=folder, help="a data set; its photographs are in input/")
    parser.add_argument("--sdr_data_path", default=folder + "sdr/", help="their references, by sdr.py")
    parser.add_argument("--result_path", default=folder + "result/", help="where the derained training photographs go")
    parser.add_argument("--model_save_dir",
                        help="where model.pkl, resume.pkl and loss.csv go "
                             "(default: ./result_all/<last folder of --rainy_data_path>/)")
    run.add_learning_flags(parser)
    run.add_overwrite_flag(parser)
    parser.add_argument("--epoch", type=run.number(int, 1), default=2000, help="times that every photograph is used")
    parser.add_argument("--lr", type=run.number(float, 0, 1e30), default=1e-3, help="learning rate of Adam")
    parser.add_argument("--lr_steps", type=run.number(int, 0), default=0, help="halve the rate every so many epochs; 0: never")
    parser.add_argument("--batch_size", type=run.number(int, 1), default=64, help="crops a step, of all processes together")
    parser.add_argument("--crop_size", type=run.number(int, 1, 16_384), default=64, help="pixels a side of the crops")
    parser.add_argument("--identity", action="store_true", help="start at f(x) = x")
    parser.add_argument("--resume", action="store_true", help="go on from resume.pkl in --model_save_dir")
    parser.add_argument("--save_every", type=run.number(int, 1), default=50, help="epochs between checkpoints")
    parser.add_argument("--workers", type=run.number(int, 0, 256), default=0, help="processes that prepare crops")
    parser.add_argument("--cache_gb", type=run.number(float, 0), default=8,
                        help="decode everything once into a temporary file of at most that size, else when needed")
    run.start(main, parser)
