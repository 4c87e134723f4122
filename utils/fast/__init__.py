"""The fast recipe: derain a photograph by its rain layer, guided samples and, if asked, learning (ours).

    from utils import fast
    derained, layer = fast.derain(image)

Rain of a large photograph is wide. So rain is found, sampled and learnt at the scale at which it is thin: `derain` shrinks the
photograph once, and enlarges what is to be subtracted, so that the photograph keeps its details. The stages that hand files
on write that scale into the layers and references (`utils.image.png_bytes`), and the next one reads it there. A program of
your own may call `utils.cli.keep_memory` first, as the scripts do: it saves a third of the time.
"""
import cv2
import numpy as np

from utils.fast.direction import thin_scale
from utils.fast.guided import GuidedSampler
from utils.fast.layer import estimate_layer
from utils.image import check_image, shrink


def derain(photograph, learner=None, strength=1.0, layer=None, scale=None):
    """Derain a photograph by the fast recipe. Raises ValueError for other arrays, and for a strength of 0 or less.

    Parameters
    ----------
    photograph : (H, W, 3) uint8, BGR
    learner : function of the shrunk photograph and its background, (h, w, 3) uint8 each, that returns the rain to subtract,
        (h, w, 3) float32 in grey levels: `utils.fast.mistakes.learner()`; without it nothing is learnt
    strength : above 1, more is taken for rain; of no effect on a layer that is given
    layer, scale : as from `rain_layer` and `thin_scale`, where they are known already

    Returns
    -------
    The derained photograph, (H, W, 3) uint8 BGR, and its rain layer before learning, (H, W) uint8 in grey levels.
    """
    check_image(photograph)
    scale = scale or thin_scale(photograph)
    small = shrink(photograph, scale)
    if layer is None:
        layer = enlarge_layer(estimate_layer(small, strength), photograph)
    elif np.shape(layer) != photograph.shape[:2]:
        raise ValueError(f"the layer of this photograph must be {photograph.shape[:2]}, not {np.shape(layer)}")
    expectation = GuidedSampler(small, shrink(layer, scale)).expectation()
    fused = np.rint(enlarge_derained(expectation, small, photograph)).astype(np.uint8)
    if learner is None:
        return fused, layer
    return subtract_rain(photograph, learner(small, shrink(fused, scale))), layer


def rain_layer(photograph, strength=1.0, scale=None):
    """Return the rain layer of a photograph, (H, W) uint8 in grey levels. Arguments and errors as of `derain`."""
    check_image(photograph)
    small = shrink(photograph, scale or thin_scale(photograph))
    return enlarge_layer(estimate_layer(small, strength), photograph)


def guided_references(photograph, layer, scale, **draws):
    """Draw stochastic references of a photograph by its rain layer; return (an iterator over them, their exact mean).

    photograph, references and mean: (H, W, 3) uint8 BGR; layer: (H, W) uint8; scale: as from `thin_scale`. draws: as of
    `utils.sampling.draw_references`.
    """
    small = shrink(photograph, scale)
    sampler = GuidedSampler(small, shrink(layer, scale))
    references = (enlarge_derained(reference, small, photograph) for reference in sampler.references(**draws))
    return references, np.rint(enlarge_derained(sampler.expectation(), small, photograph)).astype(np.uint8)


def derain_by_learning(photograph, fused, learner, scale):
    """Derain a photograph by a learner, given the mean of its guided samples, (H, W, 3) uint8 or float.

    Without a learner the result is this mean, rounded. Other arguments as of `derain`. Raises ValueError where shapes differ.
    """
    check_image(photograph)
    if fused.shape != photograph.shape:
        raise ValueError(f"a reference of shape {fused.shape} does not belong to an image of shape {photograph.shape}")
    fused = np.rint(fused).astype(np.uint8)
    return subtract_rain(photograph, learner(shrink(photograph, scale), shrink(fused, scale))) if learner else fused


def enlarge_layer(layer, photograph):
    """Enlarge a rain layer (h, w) float32 to whole levels (H, W) uint8, at most the mean of the photograph's channels."""
    if layer.shape != photograph.shape[:2]:
        layer = cv2.resize(layer, photograph.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    most = photograph.sum(axis=2, dtype=np.uint16) // 3
    return np.minimum(np.rint(layer).clip(0, 255).astype(np.uint8), most.astype(np.uint8))


def enlarge_derained(derained, small, photograph):
    """Subtract from a photograph what its shrunk version lost when it was derained; returns the type of `derained`."""
    if small.shape == photograph.shape:
        return derained
    lost = cv2.resize(small - derained.astype(np.float32), photograph.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    lost = np.maximum(np.rint(lost) if derained.dtype == np.uint8 else lost, 0)
    return np.maximum(photograph - lost, 0).astype(derained.dtype)


def subtract_rain(photograph, layer):
    """Return a photograph less a rain layer, (H, W, 3) uint8. layer: (h, w, 3) float32, enlarged if it is smaller."""
    if layer.shape != photograph.shape:
        layer = cv2.resize(layer, photograph.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    return photograph - np.minimum(photograph, np.rint(layer).clip(0, 255).astype(np.uint8))
