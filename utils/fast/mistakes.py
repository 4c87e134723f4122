"""Learning the layer's mistakes: a network learns, on the photograph itself, to correct what was found to be rain (ours).

The paper's references are turned round: not stochastic references of one rainy image, but stochastic rainy versions of one
reference, the derained photograph. The rain that was found is added to it again, at other places, and looked for again. So at
every pixel of a version it is known what rain there is, and what the rain layer and the guided samples make of it.
"""
import itertools
import math
from functools import cached_property, lru_cache

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import LambdaLR

from models import INPUTS
from utils.fast import enlarge_layer
from utils.fast.direction import rain_direction
from utils.fast.guided import GuidedSampler
from utils.fast.layer import estimate_layer
from utils.image import read_image, read_scale, shrink, uint8_to_tensor
from utils.inference import infer, model_device
from utils.training import Crops, Recipe, crop_window, fit, fresh_model, read_reference

FAST = Recipe(epoch=0, steps=600, lr=2e-3, identity=True, average=0, crop_size=80, batch_size=4)
# Restormer and DRSFormer learn more in a step, each of which takes longer, and at the rate of the others they do not learn:
# Restormer's authors train it with this one (Zamir et al., CVPR 2022).
FAST_TRANSFORMER = FAST._replace(steps=150, lr=3e-4)

ROUNDS = 2  # equal parts of the steps, each with new versions, of the photograph as it is derained by then
VERSIONS = 7  # of a photograph in a round, and in a data set that the cache holds
FAINTEST = 3  # grey levels: fainter rain is not added again
FACTORS = 0.6, 1.5  # the rain is added times a factor between these
MOST = 99  # percentile of the rain that was found: the most that a correction adds at a pixel
TURN = 100  # epochs: long against the time in which a part of a data set gets its versions
ROTATIONS = 20, 160  # degrees: lines of the background, lost where they were mistaken for rain, do not run along it then


def recipe_for(backbone):
    """Return the `Recipe` by which a backbone learns."""
    return FAST_TRANSFORMER if backbone in ("Restormer", "DRSFormer") else FAST


def learner(backbone="Unet", device="cpu", recipe=None, report=None, strength=1.0):
    """Return a learner for `utils.fast.derain`, which trains a fresh network on each photograph.

    backbone: a key of `models.BACKBONES`. recipe: by default the backbone's; None is returned for one without steps. report:
    called with each step's loss. strength: that by which the photograph's layer was found.
    """
    recipe = recipe or recipe_for(backbone)
    if not recipe.steps:
        return None
    return lambda *images: learn(fresh_model(backbone, device, recipe, INPUTS["fast"]), *images, recipe, report, strength)


def learn(model, rainy, derained, recipe=FAST, report=None, strength=1.0):
    """Train a network to correct a derained photograph; return the rain to subtract, (H, W, 3) float32 in grey levels.

    model: maps `what_was_found`, as a tensor, to a derained image, and starts at the one that it is given; trained in place.
    rainy, derained: (H, W, 3) uint8 BGR. Raises as `fit` and `infer` do.
    """
    random, direction, corrected = np.random.default_rng(recipe.seed), rain_direction(rainy), derained
    for number in range(ROUNDS):
        steps = recipe.steps * (number + 1) // ROUNDS - recipe.steps * number // ROUNDS
        made = (version(rainy, corrected, direction, strength, count, random) for count in range(VERSIONS))
        versions = [[uint8_to_tensor(image, model_device(model)) for image in (what_was_found(*images), clean)]
                    for clean, *images in made]
        optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr, fused=True)  # faster than the paper's, other roundings
        schedule = LambdaLR(optimizer, lambda step, steps=steps: math.sin(math.pi * (step + 0.5) / max(steps, 1)))
        pairs = itertools.islice(crops(versions, schedule, recipe, random), steps)
        model = fit(model, pairs, optimizer, F.mse_loss, recipe, report)
        corrected = correct(model, rainy, derained, recipe)
    return credible_rain(rainy, derained, corrected)


def corrector(model, recipe=FAST):
    """Return a learner for `utils.fast.derain` that has learnt before: of a network that a data set trained."""
    return lambda *images: credible_rain(*images, correct(model, *images, recipe))


def correct(model, rainy, derained, recipe=FAST):
    """Return a derained photograph, corrected by a network, (H, W, 3) float32 in grey levels, nowhere above the rainy one."""
    output = infer(model, what_was_found(rainy, derained), recipe.tile_size, recipe.amp)[0].permute(1, 2, 0).flip(2)
    return np.clip(255 * output.cpu().numpy(), 0, rainy, dtype=np.float32)


def credible_rain(rainy, derained, corrected):
    """Return the rain to subtract, (H, W, 3) float32 in grey levels, by a correction of a derained photograph.

    A network may say where more rain is and where less, but not that there is more in all: nothing in the photograph tells
    haze from rain, and where the scene is mistaken for rain the network would darken it all. And at no pixel does it add more
    than the percentile MOST of the rain that was found, as it errs at colours that are rare.
    """
    excess, most = max((derained - corrected).mean(), 0), np.percentile(rain_between(rainy, derained), MOST, method="higher")
    return np.clip(rainy - corrected - excess, 0, (rainy - derained) + most)


def rain_between(rainy, derained):
    """Return the rain between two images, (H, W) float32 in grey levels: the largest difference of a channel, at least 0."""
    return np.maximum((rainy - derained.astype(np.float32)).max(axis=2), 0)


def what_was_found(rainy, derained):
    """Return what the network sees of a rainy image, (H, W, 7): the rain that was found, times 4, and both images, BGR."""
    return np.dstack([4 * rain_between(rainy, derained), rainy, derained])


def crops(versions, schedule, recipe, random):
    """Yield batches of random crops of versions, (N, C, crop, crop) each, rotated by 180 degrees or not; step the schedule."""
    shape = versions[0][0].shape[2:]
    while True:
        batch = []
        for _ in range(recipe.batch_size):
            window, turned = crop_window(shape, recipe.crop_size or max(shape), random), [2, 3] if random.random() < 0.5 else []
            batch.append([image[window].flip(turned) for image in versions[random.integers(len(versions))]])
        yield tuple(map(torch.cat, zip(*batch)))
        schedule.step()


def version(rainy, background, direction, strength, number, random):
    """Make a rainy version of a background and derain it; return (its background, version, derained), (H, W, 3) uint8 each.

    The rain is that between the photograph and the background, shifted, rotated by 180 degrees or not, and times a random
    factor. The background is mirrored or not and, in every other version, rotated far enough that what it lost where the
    scene was mistaken for rain does not run along the rain.
    """
    rain, clean = rain_between(rainy, background), np.rint(background).astype(np.uint8)
    height, width = rain.shape
    if number % 2:
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), random.uniform(*ROTATIONS), 1)
        clean = cv2.warpAffine(clean, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
    clean = np.ascontiguousarray(clean[:, :: random.choice([-1, 1])])
    turn = random.choice([-1, 1])
    shifted = np.roll(np.where(rain > FAINTEST, rain, 0), random.integers(rain.shape), axis=(0, 1))[::turn, ::turn]
    version = np.minimum(np.rint(clean + random.uniform(*FACTORS) * shifted[..., None]), 255).astype(np.uint8)
    layer = enlarge_layer(estimate_layer(version, strength, direction), version)
    return clean, version, np.rint(GuidedSampler(version, layer).expectation()).astype(np.uint8)


class Versions(Crops):
    """Crops of rainy versions of the photographs of a data set: of their backgrounds, and of what the network sees of them.

    The backgrounds are the means of guided samples, shrunk to the scale that is written into these files. Of a data set that
    is larger than the cache a part has its turn, each for TURN epochs.
    """

    @cached_property
    def read_versions(self):
        return lru_cache(self.part)(self.versions)

    @property
    def number(self):
        """How many versions a photograph has, 1 to 7: as many as the cache holds of all; one takes 9 bytes a pixel."""
        return min(max(self.kept // (3 * len(self)), 1), VERSIONS)

    @property
    def part(self):
        """How many photographs have their turn at once, all or as many as the cache holds."""
        return min(max(self.kept // 3, 1), len(self))

    def versions(self, index):
        """Make the versions of a photograph, a list of what `version` returns."""
        path, references = self.images[index]
        rainy, scale, random = read_image(path), read_scale(references[0]), np.random.default_rng((self.seed, index))
        total = sum(read_reference(name, rainy, path).astype(np.float32) for name in references)
        small, background = shrink(rainy, scale), shrink(np.rint(total / len(references)).astype(np.uint8), scale)
        direction = rain_direction(small)
        return [version(small, background, direction, 1.0, index + count, random) for count in range(self.number)]

    def __getitem__(self, name):
        epoch, index = name
        return super().__getitem__((epoch, (index % self.part + epoch // TURN * self.part) % len(self)))

    def pair(self, index, random):
        versions = self.read_versions(index)
        clean, *found = self.crop(versions[random.integers(len(versions))], random)
        return np.dstack([clean, what_was_found(*found)])
