"""Guided non-local samples: what NSS becomes when it knows the rain layer (ours)."""
import itertools

import cv2
import numpy as np

from utils.image import check_image
from utils.sampling import CHUNK, cumulate, draw_references, strips

WINDOW = 11  # pixels a side of the window that candidates come from
RAIN, SPACE, CHROMA, PATTERN, BRIGHTNESS = 4, 18, 50, 288, 128  # divisors of a weight's exponents, found by trials
UNCERTAINTY = 100  # grey levels of rain behind which the background's brightness is known half as well
MIN_EXPONENT = -87  # least exponent of a weight: processors are slow with float32 numbers that are smaller still
SATURATED = 254  # grey levels: a channel that rain has driven so far may have been cut off at 255
STRIP = 1 << 15  # pixels that the expectation works on at once: their arrays fit a processor's cache of 2 MB


class GuidedSampler:
    """Stochastic references from a photograph and its rain layer: built once, drawn from as often as needed.

    The photograph is I = B + R. L is the mean of B's channels, C = (red - green, green - blue) of I's. D is the layer R with
    gaps of up to 4 pixels between streaks filled up (a closing by 5x5), as there, too, the background is uncertain. A pixel
    p with rain draws a place q of the window around it, p itself included, with the weight

        exp(-D(q)/RAIN - |p-q|^2/SPACE - |C(p)-C(q)|^2/CHROMA
            - (m(p,q)/PATTERN + (L(p)-L(q))^2/BRIGHTNESS) / (1 + D(p)/UNCERTAINTY)),

    m being the mean over 3x3 offsets o of (L(p+o)-L(q+o))^2. The new brightness is L(p) + (1-exp(-D(p)/RAIN)) (L(q)-L(p)).
    What the mean of I's channels exceeds it by is subtracted from all three, so C stays as it is. But a channel of 254 or
    more may be saturated: it becomes B's at q, if that is less, and such a p weighs without the term of C.
    Beyond the border the photograph is reflected.
    image: (H, W, 3) uint8 BGR; layer: (H, W) uint8 or float, grey levels of rain, at least 0.
    Raises ValueError for arrays of another shape, type or range.
    """

    def __init__(self, image, layer):
        check_image(image)
        if layer.shape != image.shape[:2] or layer.dtype.kind not in "uf" or not (layer >= 0).all():
            raise ValueError(f"the layer must be {image.shape[:2]} of levels from 0, not {layer.shape} of {layer.dtype}")
        self.image, self.shape, self.flat = image, image.shape, np.ascontiguousarray(image).reshape(-1, 3)
        self.margin = WINDOW // 2 + 1

        def pad(plane):
            return cv2.copyMakeBorder(plane, *[self.margin] * 4, cv2.BORDER_REFLECT_101)

        layer = np.minimum(layer, 255).astype(np.float32)
        closed = cv2.morphologyEx(layer, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
        channels = [plane.astype(np.float32) for plane in cv2.split(image)]
        background = [np.maximum(plane - layer, 0) for plane in channels]
        rainy_mean, mean = (sum(planes) / 3 for planes in (channels, background))
        self.rainy, self.mix = closed > 0, 1 - np.exp(-closed / RAIN)
        self.most = rainy_mean - (1 - self.mix) * mean  # less mix * L(q), it is what a draw subtracts from the channels
        self.brightness, self.background = pad(mean), np.stack([pad(plane) for plane in background])
        self.rain_term = pad(np.maximum(-closed / RAIN, -70))  # above MIN_EXPONENT, so a pixel's own weight stays larger
        self.chroma = [pad((b - a) / np.float32(CHROMA**0.5)) for a, b in zip(channels, channels[1:])]
        self.chroma_sign = np.where(np.max(channels, axis=0) < SATURATED, np.float32(-1), np.float32(0))
        self.certainty = 1 / (1 + closed / UNCERTAINTY)
        self.kernel = np.full((3, 3), -1 / (9 * PATTERN), np.float32)  # for squared differences of L: their mean, m, ...
        self.kernel[1, 1] -= 1 / BRIGHTNESS  # ... and the middle one once more
        dy, dx = np.mgrid[:WINDOW, :WINDOW] - WINDOW // 2
        self.shift = (dy * self.brightness.shape[1] + dx).ravel()  # of each place, in flat pixels of the padded planes

    def weights(self, top, bottom):
        """Yield, for each place of the window, the weights of rows top to bottom, (rows, W) float32, and q's padded slices."""
        tall, wide, reach = bottom - top, self.shape[1], WINDOW // 2

        def at(plane, dy, dx, around=0):
            return plane[top + dy + 1 - around :][: tall + 2 * around, dx + 1 - around :][:, : wide + 2 * around]

        for dy, dx in itertools.product(range(WINDOW), repeat=2):
            square = cv2.subtract(at(self.brightness, reach, reach, 1), at(self.brightness, dy, dx, 1))
            pattern_and_brightness = cv2.filter2D(cv2.multiply(square, square), -1, self.kernel)[1:-1, 1:-1]
            space_term = -((dy - reach) ** 2 + (dx - reach) ** 2) / SPACE
            exponent = at(self.rain_term, dy, dx) + np.float32(space_term)
            exponent = cv2.accumulateProduct(pattern_and_brightness, self.certainty[top:bottom], exponent)
            first, second = (cv2.subtract(at(plane, reach, reach), at(plane, dy, dx)) for plane in self.chroma)
            chroma = cv2.accumulateProduct(second, second, cv2.multiply(first, first))  # adds a product to its last argument
            exponent = cv2.accumulateProduct(chroma, self.chroma_sign[top:bottom], exponent)
            place = slice(top + dy + 1, bottom + dy + 1), slice(dx + 1, dx + 1 + wide)
            yield cv2.exp(np.maximum(exponent, MIN_EXPONENT)), place

    def expectation(self):
        """Return the exact expectation of an SDR before rounding, (H, W, 3) float32 in [0, 255]."""
        expected = self.flat.reshape(self.shape).astype(np.float32)
        for top, pixels in strips(self.rainy, STRIP):
            rows = slice(top, pixels[-1] // self.shape[1] + 1)
            channels, most, mix = cv2.split(expected[rows]), self.most[rows], self.mix[rows]
            total, *subtracted = (np.zeros(most.shape, np.float32) for _ in range(4))
            saturated = [np.nonzero(self.rainy[rows] & (channel >= SATURATED)) for channel in channels]
            for weight, place in self.weights(rows.start, rows.stop):
                amount = np.maximum(cv2.subtract(most, cv2.multiply(mix, self.brightness[place])), 0)
                cv2.accumulate(weight, total)
                for channel, cut, background, sums in zip(channels, saturated, self.background, subtracted):
                    less = cv2.min(amount, channel)
                    if len(cut[0]):
                        less[cut] = np.maximum(channel[cut] - background[place][cut], 0)
                    cv2.accumulateProduct(weight, less, sums)
            expected[rows] -= np.stack(subtracted, axis=2) / total[..., None]
        return expected

    def chunks(self):
        """Yield the pixels with rain and the cumulative weights of their places: see `utils.sampling`."""
        for top, pixels in strips(self.rainy, CHUNK // WINDOW**2):
            weights = self.weights(top, pixels[-1] // self.shape[1] + 1)
            yield pixels, cumulate(np.stack([weight.take(pixels - top * self.shape[1]) for weight, _ in weights]))

    def colours(self, pixels, place):
        """Return the pixels' colours less the drawn amount of rain, (F, 3) uint8; B's where a channel is saturated."""
        padded = pixels + pixels // self.shape[1] * 2 * self.margin + self.margin * (self.shape[1] + 2 * self.margin + 1)
        drawn = padded + self.shift.take(place)
        amount = self.most.take(pixels) - self.mix.take(pixels) * self.brightness.take(drawn)
        colours = self.flat.take(pixels, axis=0)
        background = np.stack([plane.take(drawn) for plane in self.background], axis=1)
        less = colours - np.minimum(colours, amount.clip(0, 255).round().astype(np.uint8)[:, None])
        return np.where(colours >= SATURATED, np.minimum(colours, background.round().astype(np.uint8)), less)

    references = draw_references
