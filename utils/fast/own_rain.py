"""Learning from self-made rain: a network learns, on a whole data set, to subtract rain that was added to backgrounds (ours).

The backgrounds are photographs as far as the guided samples know them without rain. The rain is what these subtracted, of any
photograph and from anywhere. So the network learns which lines belong to scenes.
"""
from functools import cached_property, lru_cache

import numpy as np

from utils.image import read_image, read_scale, shrink, uint8_to_tensor
from utils.inference import infer
from utils.training import Crops, read_reference

FAINTEST = 3  # grey levels: fainter rain is not used again as self-made rain
FACTORS = 0.6, 1.5  # self-made rain is the photograph's own, times a factor between these
DENSITY = 4  # grey levels: fainter rain, by its mean, is laid over itself, up to four times, or it would teach nothing
LEARNT = 0.4  # a network that subtracts a smaller share of the rain than this, against what was found, has learnt nothing yet
TRUST = 1 / 3  # the network's share of the rain that is subtracted; the rest is what was found before it learnt


def learnt_rain(model, rainy, background, recipe):
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
