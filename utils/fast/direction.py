"""The direction in which rain falls, and the scale at which it is thin, from the statistics of thin lines (ours).

Rain is brighter than the background, thin across its direction and long along it. A scene has thin dark lines as well.
"""
import math

import cv2
import numpy as np

from utils.fast.fold import fold
from utils.image import shrink

DIRECTIONS = range(-56, 57, 8)  # degrees, of the first search
PLACES = 8  # a side: the grid of places around which lines are measured
ACROSS, ALONG = 7, 9  # pixels: rain is thinner than the one and longer than the other
MARGIN = 8  # pixels: what is farther away does not change a top-hat response
FLOOR = 0.02  # grey levels added to the response to dark lines, as drawings have none
FEWEST_PIXELS, MOST_PIXELS = 75_000, 3_000_000  # of a photograph at the scales that are tried


def rotation_matrix(height, width, degrees):
    """Return the (2, 3) matrix that rotates an image about its centre, and the (width, height) of a canvas that holds it."""
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1)
    cos, sin = abs(matrix[0, 0]), abs(matrix[0, 1])
    canvas = math.ceil(height * sin + width * cos), math.ceil(height * cos + width * sin)
    matrix[:, 2] += (canvas[0] - width) / 2, (canvas[1] - height) / 2
    return matrix, canvas


def valid_region(height, width, matrix, canvas):
    """Return the (h, w) uint8 mask, 1 or 0, of the canvas pixels that a rotated image covers."""
    corners = np.array([(0, 0, 1), (width - 1, 0, 1), (width - 1, height - 1, 1), (0, height - 1, 1)]) @ matrix.T
    return cv2.fillConvexPoly(np.zeros(canvas[::-1], np.uint8), np.rint(corners).astype(np.int32), 1)


def rotate_upright(image, degrees):
    """Rotate an image (H, W, ...) so that rain of this direction is upright, reflected where the canvas exceeds it.

    Returns the rotated image and its `valid_region`.
    """
    height, width = image.shape[:2]
    if degrees == 0:
        return image.copy(), np.ones((height, width), np.uint8)
    matrix, canvas = rotation_matrix(height, width, degrees)
    rotated = cv2.warpAffine(image, matrix, canvas, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
    return rotated, valid_region(height, width, matrix, canvas)


def brightness_and_chroma(image):
    """Return the mean of the channels, (H, W), and the chroma (red - green, green - blue), blurred, (H, W, 2); float32."""
    blue, green, red = cv2.split(image.astype(np.float32))
    chroma = cv2.merge([red - green, green - blue])
    return (blue + green + red) / 3, cv2.GaussianBlur(chroma, (0, 0), 1)


def tophat_responses(planes):
    """Yield the white and the black top-hat response of an image in which rain is upright, (h, w) int16 each.

    A top-hat is what is brighter (white) or darker (black) than its surroundings across. It counts less where the chroma
    changes, and only where it is long along the rain (an erosion).
    planes: (h, w, 3) int16, brightness and both parts of the chroma in 1/32 grey level; so are the responses.
    """
    brightness, *chroma = cv2.split(planes)
    across, along = np.ones((1, ACROSS), np.uint8), np.ones((ALONG, 1), np.uint8)
    ranges = cv2.add(*(cv2.morphologyEx(plane, cv2.MORPH_GRADIENT, across) for plane in chroma))
    weight = cv2.exp(ranges * np.float32(-1 / (12 * 32)))  # 1/e where the chroma's range is 12 grey levels
    for kind in (cv2.MORPH_TOPHAT, cv2.MORPH_BLACKHAT):
        response = cv2.multiply(cv2.morphologyEx(brightness, kind, across), weight, dtype=cv2.CV_16S)
        yield cv2.erode(response, along)


class LineStatistics(dict):
    """Mean top-hat responses around PLACES x PLACES places of an image, for each direction that is asked for.

    A dict {degrees: (PLACES^2, 2) float32}, white and black top-hat in grey levels, measured at the first access.
    image: (H, W, 3) uint8 BGR.
    """

    def __init__(self, image):
        image = fold(image)
        self.size = image.shape[:2]
        planes = np.rint(32 * np.dstack(brightness_and_chroma(image))).astype(np.int16)
        # reflected no farther than a response reaches: a rotation that reflects takes twice as long
        self.planes = cv2.copyMakeBorder(planes, *[MARGIN] * 4, cv2.BORDER_REFLECT_101)

    def __missing__(self, degrees):
        height, width = self.size
        matrix, canvas = rotation_matrix(height, width, degrees)
        valid = valid_region(height, width, matrix, canvas)
        rotated = cv2.warpAffine(self.planes, matrix @ [(1, 0, -MARGIN), (0, 1, -MARGIN), (0, 0, 1)], canvas)
        rows, columns = (np.indices((PLACES, PLACES)).reshape(2, -1) + 0.5) / PLACES * [[height], [width]] - 0.5
        x, y = np.rint(matrix @ [columns, rows, np.ones_like(rows)]).astype(int)
        side = max(round(math.sqrt(height * width) / PLACES), 12)  # in a small image the places overlap

        def sum_around_places(plane):
            return cv2.boxFilter(plane, cv2.CV_32F, (side, side), borderType=cv2.BORDER_CONSTANT)[y, x]

        area = 32 * np.maximum(sum_around_places(valid), 0.01)
        responses = [sum_around_places(cv2.copyTo(response, valid)) / area for response in tophat_responses(rotated)]
        self[degrees] = np.transpose(responses)
        return self[degrees]

    def amounts(self, degrees):
        """Return the responses of the whole image in a direction, (white, black)."""
        return self[degrees].mean(axis=0) + FLOOR


def direction_scores(statistics, scene_prior):
    """Score the directions that were measured for rain, {degrees: score}; the largest is the most likely.

    The score is W^1.75 / B of the white and black responses: with W^2 upright houses win over fine rain, with W the few dark
    lines decide. Rain falls everywhere, so lines count against how many a place has in all directions. scene_prior: whether
    to use what is known of the lines of scenes, which tells rain from them but shifts the best direction by some degrees. A
    scene has about as many lines at a slant as at the opposite one, so 0.4 of the smaller response is subtracted; and most
    of its lines are upright or level, so directions in between count up to 0.3 more (all ours).

    statistics: `LineStatistics`, with all DIRECTIONS.
    """
    measured = np.array(sorted(statistics))
    mean_response = np.mean([statistics[degrees].sum(axis=1) for degrees in DIRECTIONS], axis=0)[:, None] + 0.05
    relative = np.array([(statistics[degrees] / mean_response).mean(axis=0) for degrees in measured]) * mean_response.mean()
    opposite = np.transpose([np.interp(-measured, measured, response) for response in relative.T])
    white, black = (relative - 0.4 * scene_prior * np.minimum(relative, opposite)).T
    slanted = 1 + 0.3 * scene_prior * np.sin(np.radians(2 * measured)) ** 2
    return dict(zip(measured.tolist(), slanted * white**1.75 / (black + FLOOR)))


def rain_direction(image, statistics=None):
    """Estimate the direction of the rain in a photograph: the largest of `direction_scores`, coarse to fine.

    image: (H, W, 3) uint8 BGR; statistics: its `LineStatistics`, if there are some already. Returns whole degrees from -59 to
    59 by which `rotate_upright` makes the rain upright: positive where it falls to the lower left, 0 without any lines.
    """
    statistics = LineStatistics(image) if statistics is None else statistics

    def best(directions, number, scene_prior):
        for degrees in directions:
            statistics[degrees]  # measured now, if it was not yet
        scores = direction_scores(statistics, scene_prior)
        return sorted(directions, key=lambda degrees: (-scores[degrees], abs(degrees), degrees))[:number]

    tried = set(DIRECTIONS)
    for step, number in (4, 3), (2, 2):
        beside = (degrees + side for degrees in best(tried, number, scene_prior=True) for side in (-step, step))
        tried.update(degrees for degrees in beside if abs(degrees) <= max(DIRECTIONS))
    [direction] = best(tried, 1, scene_prior=True)
    for step in (2, 1):
        [direction] = best((direction - step, direction, direction + step), 1, scene_prior=False)
    return direction


def thin_scale(image):
    """Find the factor 1, 2, 4, ... by which a photograph is shrunk so that its rain is a few pixels thin.

    Of the factors that leave 0.075 to 3 megapixels, it is the largest that leaves half as much rain as the best one, by
    W^2 / B of the white and black responses (ours). image: (H, W, 3) uint8 BGR.
    """
    pixels = image.shape[0] * image.shape[1]
    scales = [2**n for n in range(16) if FEWEST_PIXELS <= pixels / 4**n <= MOST_PIXELS] or [1]
    if len(scales) == 1:
        return scales[0]
    amounts = {}
    for scale in scales:
        small = shrink(image, scale)
        statistics = LineStatistics(small)
        white, black = statistics.amounts(rain_direction(small, statistics))
        amounts[scale] = white**2 / black
    return max(scale for scale in scales if amounts[scale] >= max(amounts.values()) / 2)
