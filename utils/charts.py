"""Bars and curves as pictures, drawn by Pillow: no plotting library is needed."""
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK, GRID, PAPER = (44, 52, 60), (224, 226, 230), (255, 255, 255)  # RGB, as Pillow has it
COLOURS = ((32, 96, 160), (200, 90, 30), (70, 140, 60), (130, 70, 150), (150, 120, 20), (90, 90, 90))
LEFT, RIGHT, TOP, BOTTOM = 76, 24, 44, 56  # margins, in pixels


def round_steps(low, high, most=6):
    """Round numbers from at most `low` to at least `high`, `most` intervals or fewer, for an axis."""
    span = (high - low) or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(span / most))
    step = next(power * factor for factor in (1, 2, 5, 10, 20) if span / (power * factor) <= most)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


class Axes:
    """An empty chart on white with its title and axes; `at` gives the pixel (x, y) of a value."""

    def __init__(self, size, title, x_title, y_title, x_ticks, y_ticks, x_range=None, log=False):
        width, height = size
        self.image = Image.new("RGB", size, PAPER)
        self.draw = ImageDraw.Draw(self.image)
        self.box = LEFT, TOP, width - RIGHT, height - BOTTOM
        self.scale = math.log10 if log else float
        self.x_range, self.y_range = x_range or (x_ticks[0], x_ticks[-1]), (y_ticks[0], y_ticks[-1])
        for tick in y_ticks:
            _, y = self.at(self.x_range[0], tick)
            self.draw.line([(LEFT, y), (self.box[2], y)], GRID)
            self.text((LEFT - 8, y), f"{tick:.3g}", 13, "rm")
        for tick in x_ticks:
            x, _ = self.at(tick, self.y_range[0])
            self.draw.line([(x, self.box[3]), (x, self.box[3] + 4)], INK)
            self.text((x, self.box[3] + 14), f"{tick:g}", 13, "mm")
        self.draw.line([(LEFT, self.box[3]), (self.box[2], self.box[3])], INK)
        self.text((width / 2, TOP / 2), title, 17, "mm")
        self.text(((LEFT + self.box[2]) / 2, height - 16), x_title, 14, "mm")
        self.text((10, TOP - 14), y_title, 14, "lm")

    def at(self, x, y):
        left, top, right, bottom = self.box
        low, high = map(self.scale, self.y_range)
        across = (x - self.x_range[0]) / (self.x_range[1] - self.x_range[0])
        return left + across * (right - left), bottom - (self.scale(y) - low) / (high - low) * (bottom - top)

    def text(self, place, text, size, anchor, colour=INK):
        self.draw.text(place, text, fill=colour, font=ImageFont.load_default(size), anchor=anchor)

    def array(self):
        """The chart as (H, W, 3) uint8 BGR."""
        return np.ascontiguousarray(np.asarray(self.image)[..., ::-1])


def bars(values, title, x_title, y_title, marked=None, size=(720, 360)):
    """A bar chart, (H, W, 3) uint8 BGR. values: {x: height}, the x evenly spaced; marked: the x of the bar that stands out."""
    places = sorted(values)
    gap = places[1] - places[0] if len(places) > 1 else 1
    heights = round_steps(0, max(max(values.values()), 1))
    ticks, ends = places[:: max(1, len(places) // 12)], (places[0] - gap, places[-1] + gap)
    axes = Axes(size, title, x_title, y_title, ticks, heights, ends)
    for place, height in values.items():
        if height:
            colour = COLOURS[1] if place == marked else COLOURS[0]
            left, top = axes.at(place - 0.4 * gap, height)
            right, bottom = axes.at(place + 0.4 * gap, 0)
            axes.draw.rectangle([left, top, right, bottom - 1], colour)
    return axes.array()


def curves(lines, title, x_title, y_title, size=(720, 400)):
    """Curves on a logarithmic y axis, (H, W, 3) uint8 BGR. lines: {name: [(x, y), ...]}, each not empty, all y above 0."""
    points = [point for line in lines.values() for point in line]
    low, high = (pick(y for _, y in points) for pick in (min, max))
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    ticks = [factor * 10.0**power for power in range(first, last + 1) for factor in (1, 2, 5)]
    below = max(tick for tick in ticks if tick <= low * (1 + 1e-9))
    above = min(tick for tick in ticks if tick >= high * (1 - 1e-9))
    above = above if above > below else 2 * below
    shown = [tick for tick in ticks if below < tick < above]
    if len(shown) > 12:  # the powers of ten of a wide range, and not all of them
        shown = [10.0**power for power in range(first, last + 1, len(shown) // 36 + 1) if below < 10.0**power < above]
    x_ticks = round_steps(min(x for x, _ in points), max(x for x, _ in points))
    axes = Axes(size, title, x_title, y_title, x_ticks, [below, *shown, above], log=True)
    for number, (name, line) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        pixels = [axes.at(x, y) for x, y in line]
        if len(pixels) > 1:
            axes.draw.line(pixels, colour, 2, joint="curve")
        else:
            (x, y), = pixels
            axes.draw.ellipse([x - 3, y - 3, x + 3, y + 3], colour)
        if len(lines) > 1:
            y = TOP + 14 + 18 * number
            axes.draw.line([(axes.box[2] - 170, y), (axes.box[2] - 146, y)], colour, 3)
            axes.text((axes.box[2] - 140, y), name, 13, "lm")
    return axes.array()
