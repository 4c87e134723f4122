"""Learning from self-made rain: a network learns, on the photograph itself, to subtract rain that was added to it (ours).

The paper's references are turned round: not stochastic references of one rainy image, but stochastic rainy images of one
reference, the background as far as the guided samples know it. The rain is what they subtracted, found elsewhere in the
photograph. So the network learns from the scene itself which of its lines are no rain.
"""
import itertools
from functools import cached_property, lru_cache

import numpy as np
import torch
import torch.nn.functional as F

from utils.image import read_image, read_scale, shrink, uint8_to_tensor
from utils.inference import infer, model_device
from utils.training import Crops, Recipe, crop_window, fit, fresh_model, read_reference

FAST = Recipe(epoch=0, steps=750, lr=1e-3, identity=True, average=0.98, crop_size=64, batch_size=2)
# Restormer and DRSFormer learn more in a step, each of which takes longer, and at the rate of the others they do not learn:
# Restormer's authors train it with this one (Zamir et al., CVPR 2022).
FAST_TRANSFORMER = FAST._replace(steps=150, lr=3e-4)

FAINTEST = 3  # grey levels: fainter rain is not used again as self-made rain
FACTORS = 0.6, 1.5  # self-made rain is the photograph's own, times a factor between these
DENSITY = 4  # grey levels: fainter rain, by its mean, is laid over itself, up to four times, or it would teach nothing
LEARNT = 0.4  # a network that subtracts a smaller share of the rain than this, against what was found, has learnt nothing yet
TRUST = 1 / 3  # the network's share of the rain that is subtracted; the rest is what was found before it learnt


def recipe_for(backbone):
    """Return the `Recipe` by which a backbone learns."""
    return FAST_TRANSFORMER if backbone in ("Restormer", "DRSFormer") else FAST


def learner(backbone="Unet", device="cpu", recipe=None, report=None):
    """Return a learner for `utils.fast.derain`, which trains a fresh network on each photograph.

    backbone: a key of `models.BACKBONES`. recipe: by default the backbone's; None is returned for one without steps. report:
    called with each step's loss.
    """
    recipe = recipe or recipe_for(backbone)
    if not recipe.steps:
        return None
    return lambda rainy, background: learn(fresh_model(backbone, device, recipe), rainy, background, recipe, report)


def learn(model, rainy, background, recipe=FAST, report=None):
    """Train a network to subtract self-made rain from a background; return the rain to subtract from the rainy photograph.

    model: a network that starts at the identity, trained in place; rainy, background: (H, W, 3) uint8 BGR. Returns as
    `learnt_rain`; raises as `fit` and `infer` do.
    """
    device = model_device(model)
    rain = torch.from_numpy(rain_between(rainy, background)).to(device) / 255
    pairs = itertools.islice(self_made_rain(uint8_to_tensor(background, device), rain, recipe), recipe.steps)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr, fused=True)  # faster than the paper's, other roundings
    return learnt_rain(fit(model, pairs, optimizer, F.l1_loss, recipe, report), rainy, background, recipe)


def learnt_rain(model, rainy, background, recipe=FAST):
    """Return the rain to subtract, a third by a trained network and two thirds by guided samples, (H, W, 3) float32.

    Of what the network changes only what rain can have made counts, the same in all channels. Where it subtracts next to
    nothing it has learnt nothing, and only the guided samples count. rainy, background: (H, W, 3) uint8 BGR.
    """
    sampled = np.maximum(rainy - background.astype(np.float32), 0)  # of each channel: a saturated one lost less rain
    output = infer(model, rainy, recipe.tile_size, recipe.amp).cpu()
    learnt = 255 * (uint8_to_tensor(rainy) - output).amin(dim=1)[0].clamp(min=0).numpy()
    trust = TRUST if learnt.mean() > LEARNT * rain_between(rainy, background).mean() else 0
    return trust * learnt[..., None] + (1 - trust) * sampled


def rain_between(rainy, derained):
    """Return the rain between two images, (H, W) float32 in grey levels: the largest difference of a channel, at least 0."""
    return np.maximum((rainy - derained.astype(np.float32)).max(axis=2), 0)


def self_made_rain(background, rain, recipe=FAST):
    """Yield batches of (the background with rain, the background), (N, 3, crop, crop) each, for ever.

    background: (1, 3, H, W) in [0, 1], RGB; rain: (H, W) in [0, 1], of which windows from anywhere, rotated by 180 degrees or
    not and times a random factor, are added to windows of the background; several to one where rain is sparse.
    """
    random = np.random.default_rng(recipe.seed)
    rain = torch.where(rain > FAINTEST / 255, rain, 0)[None, None]
    layers = overlays(255 * float(rain.mean()))
    shape, crop_size = background.shape[2:], recipe.crop_size or max(background.shape)
    while True:
        backgrounds, rains = [], []
        for _ in range(recipe.batch_size):
            backgrounds.append(background[crop_window(shape, crop_size, random)])
            windows = (rain[crop_window(shape, crop_size, random)] for _ in range(layers))
            rains.append(sum((window.flip(2, 3) if random.random() < 0.5 else window) * random.uniform(*FACTORS)
                             for window in windows))
        y = torch.cat(backgrounds)
        yield (y + torch.cat(rains)).clamp(max=1), y


def overlays(mean):
    """Return how many windows of rain of this mean, in grey levels, are added up so that they teach something: 1 to 4."""
    return min(max(round(DENSITY / max(mean, 1e-3)), 1), 4)


class OwnRain(Crops):
    """Crops of the backgrounds of photographs with and without self-made rain, of any photograph of the data set.

    The backgrounds are the means of guided samples, shrunk to the scale that is written into these files.
    """

    @cached_property
    def read_pair(self):
        return lru_cache(self.kept * 3 // 7)(self.background_and_rain)  # which takes 7 bytes a pixel

    def background_and_rain(self, index):
        """Return a photograph's background, (H, W, 3) uint8, and its rain, (H, W, 1) float32, in grey levels."""
        path, references = self.images[index]
        rainy, scale = read_image(path), read_scale(references[0])
        total = sum(read_reference(name, rainy, path).astype(np.float32) for name in references)
        background = shrink(np.rint(total / len(references)).astype(np.uint8), scale)
        rain = rain_between(shrink(rainy, scale), background)
        return background, (rain * (rain > FAINTEST))[..., None]

    def pair(self, index, random):
        background, = self.crop([self.read_pair(index)[0]], random)
        rain, total = self.read_pair(int(random.integers(len(self))))[1], 0
        for _ in range(overlays(rain.mean())):
            square, = self.crop([rain], random)
            total += (square[::-1] if random.random() < 0.5 else square) * random.uniform(*FACTORS)
        return np.stack([np.minimum(background + total, 255).astype(np.uint8), background])
