"""What all learning shares: recipes, fresh networks, the loop, the mean of weights, random crops."""
import threading
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import Dataset

from models import build
from utils.image import check_size, read_image
from utils.inference import mixed_precision, model_device

DRAWING = threading.Lock()  # for networks that are made at once


class Recipe(NamedTuple):
    """Hyperparameters of learning and of running a network; each is a flag."""

    epoch: int  # times that every reference is used, where steps does not say how long to learn
    steps: int
    lr: float  # learning rate of Adam
    identity: bool  # start at f(x) = x
    average: float  # decay of the exponential moving average of the weights; 0: none
    crop_size: int  # pixels a side of random squares to learn from; 0: the whole photograph
    batch_size: int  # squares in a step
    seed: int = 3
    tile_size: int = 1024  # the largest side that is derained at once
    amp: bool = False  # mixed precision


def fresh_model(backbone, device, recipe, inputs=3):
    """Return a backbone with the weights that the recipe's seed gives, on a device. inputs: as of `models.build`."""
    with DRAWING, torch.random.fork_rng(devices=[]):  # torch's own generator is global: leave it to the caller as it was
        torch.manual_seed(recipe.seed)
        model = build(backbone, recipe.identity, inputs)
    return model.to(device, memory_format=torch.channels_last)  # faster, other roundings: see `utils.benchmark sdrl`


def fit(model, pairs, optimizer, criterion, recipe, report=None):
    """Train a network on pairs (x, y) of (N, 3, h, w) tensors on its device, a step each: the loop of all recipes.

    criterion: the loss as a function of (f(x), y). report: called with each step's loss. Returns the trained network, or the
    one of the mean weights. Raises FloatingPointError where a loss is NaN or infinite.
    """
    device = model_device(model)
    precision, finite = mixed_precision(device, recipe.amp), torch.ones((), dtype=torch.bool, device=device)
    mean = averaged(model, recipe.average) if recipe.average else None
    model.train()
    for step, (x, y) in enumerate(pairs, 1):
        loss = learn_step(model, x, y, optimizer, criterion, precision, mean)
        if report:
            report(loss)
        finite &= loss.isfinite()
        if step % 100 == 0 and not finite:  # a GPU has to wait for the answer
            break
    if not finite:
        amp = " or leave out --amp" if recipe.amp else ""
        raise FloatingPointError(f"the loss became NaN or infinite; use a smaller --lr{amp}")
    return mean.module if mean else model


def learn_step(model, x, y, optimizer, criterion, precision, mean=None):
    """Take an optimiser step on criterion(f(x), y); return the loss. precision, mean: of `mixed_precision` and `averaged`."""
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
    """Return the exponential moving average of a network: its `module`, which `update_parameters` keeps up to date.

    The decay is lower at first, (1 + n) / (10 + n) after n steps, or the mean would hold on to the fresh weights.
    """
    def average(means, weights, count):
        get_ema_multi_avg_fn(min(decay, float(1 + count) / float(10 + count)))(means, weights, count)

    return AveragedModel(model, multi_avg_fn=average, use_buffers=True)


def crop_window(shape, size, random):
    """Return the index (..., rows, columns) of a random square of an image of shape (H, W), smaller where the image is."""
    top, left = (int(random.integers(max(side - size, 0) + 1)) for side in shape)
    return ..., slice(top, top + size), slice(left, left + size)


class Crops(Dataset):
    """Random crops of one of the references of a rainy image, and of what the network sees of the image: items (crop, crop, C).

    Both lie one behind the other, in BGR and grey levels: here (crop, crop, 6) uint8, the reference and the rainy image.

    images: a list of (path of the rainy image, [paths of its references]). An item is named by (epoch, index) and depends on
    nothing but these and the seed: so an interrupted training can go on, with any number of workers or processes.
    """

    def __init__(self, images, crop_size, seed, cache_gb):
        self.images, self.crop_size, self.seed = images, crop_size, seed
        self.kept = int(cache_gb * 1e9 / read_image(images[0][0]).nbytes)  # photographs

    @cached_property
    def read(self):
        """`read_image` with a cache, one in each process that prepares crops."""
        return lru_cache(self.kept)(read_image)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, name):
        epoch, index = name
        random = np.random.default_rng((self.seed, epoch, index))
        crops = self.pair(index, random)
        return np.ascontiguousarray(crops[:, ::-1] if random.random() < 0.5 else crops)

    def pair(self, index, random):
        """Return the crops of a reference of a photograph and of the photograph, (crop, crop, C)."""
        path, references = self.images[index]
        rainy = self.read(path)
        reference = read_reference(references[random.integers(len(references))], rainy, path, self.read)
        return np.dstack(self.crop([reference, rainy], random))

    def crop(self, images, random):
        """Return the same random square of images of one size, reflected beyond the border where they are smaller than it."""
        window = crop_window(images[0].shape[:2], self.crop_size, random)[1:]
        crops = np.stack([image[window] for image in images])
        missing = [(0, self.crop_size - side) for side in crops.shape[1:3]]
        return np.pad(crops, [(0, 0), *missing, (0, 0)], mode="symmetric")


def read_reference(path, rainy, image_path, read=read_image):
    """Read one SDR of an image, (H, W, 3) uint8 BGR. Raises ImageError where it is of another size."""
    reference = read(path)
    check_size(reference, path, rainy, image_path)
    return reference
