"""LDGP's angle, NSS, guided samples and the rain layer, block by block and pixel by pixel: the slow oracle of the fast code.

Nothing is taken from the code that it checks, so that a slip there cannot hide here.
"""
import cv2
import numpy as np

# ---- LDGP: the dominant angle


def patch_angle(grey, exchange_cells=True):
    """5 times the first bin that attains the maximum of one patch's histogram. grey: (h, w) uint8."""
    cells_y, cells_x = grey.shape[0] // 8, grey.shape[1] // 8
    patch = np.ascontiguousarray(grey[: 8 * cells_y, : 8 * cells_x])
    descriptor = cv2.HOGDescriptor((8 * cells_x, 8 * cells_y), (32, 32), (8, 8), (8, 8), 36)
    blocks = descriptor.compute(patch).reshape(cells_x - 3, cells_y - 3, 4, 4, 36)
    cells, holders = np.zeros((cells_y, cells_x, 36)), np.zeros((cells_y, cells_x, 1))
    for bx, by, cx, cy in np.ndindex(blocks.shape[:4]):
        x, y = (bx + cy, by + cx) if exchange_cells else (bx + cx, by + cy)
        cells[y, x] += blocks[bx, by, cx, cy]
        holders[y, x] += 1
    return 5 * int(np.argmax((cells / holders).sum(axis=(0, 1))))


def dominant_angle(image, patch_size=80, exchange_cells=True):
    """The most frequent angle of an image's patches. image: (H, W, 3) uint8 BGR, sides of at least 32 pixels."""
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    height, width = grey.shape
    if height < patch_size or width < patch_size:
        return patch_angle(grey, exchange_cells)
    angles = []
    for column in range(width // patch_size):
        for row in range(height // patch_size):
            patch = grey[row * patch_size : (row + 1) * patch_size, column * patch_size : (column + 1) * patch_size]
            angles.append(patch_angle(patch, exchange_cells))
    return max(sorted(set(angles)), key=angles.count)  # of equally frequent ones, the first: the smallest


# ---- NSS


def references(image, mask, sdr_num=50, seed=0, **parameters):
    """The SDRs of the published draw, (sdr_num, H, W, 3) uint8. image: (H, W, 3) uint8; mask: (H, W) uint8."""
    result = np.stack([image] * sdr_num)
    for y, x, candidates, probabilities in filled_pixels(image, mask, **parameters):
        drawn = np.random.RandomState(seed).choice(len(candidates), sdr_num, p=probabilities)
        for n in range(sdr_num):
            result[n, y, x] = image[candidates[drawn[n]]]
    return result


def filled_pixels(image, mask, K=7, k=3, pow=0.5, threshold=10):
    """Yield (y, x, its candidates [(y, x), ...], their probabilities, float32) for every filled pixel that has candidates."""
    (height, width), reach = mask.shape, max(K, 3) // 2
    margin = reach + max(reach, k // 2)
    black = np.pad(image.astype(int), ((margin, margin), (margin, margin), (0, 0)))  # outside the image is black ...
    clear = np.pad(mask == 0, margin, constant_values=True)  # ... and no rain
    for y, x in np.argwhere(mask > threshold):
        candidates = [(v, u) for v in range(max(y - reach, 0), min(y + reach + 1, height))
                      for u in range(max(x - reach, 0), min(x + reach + 1, width)) if mask[v, u] == 0]
        if not candidates:
            continue
        half = half_window(mask, y, x, k // 2)

        def compared(array, y, x):
            return array[y + margin - half : y + margin + half + 1, x + margin - half : x + margin + half + 1]

        distances = [np.abs(compared(black, y, x) - compared(black, *q))[compared(clear, y, x)].sum() for q in candidates]
        weights = np.array([np.float32(1 / max(float(d) ** pow, 1e-4)) for d in distances])
        yield y, x, candidates, weights / weights.sum()


def half_window(mask, y, x, half):
    """Half a side of the window compared: it grows from `half` until it holds a clear pixel of the image."""
    while mask[max(y - half, 0) : y + half + 1, max(x - half, 0) : x + half + 1].all():
        half += 1
    return half


# ---- guided samples


def closing(plane, reach):
    """The least of the largest around each pixel of (h, w), in squares that reach so far."""
    for extreme in (np.max, np.min):
        windows = {(y, x): plane[max(y - reach, 0) : y + reach + 1, max(x - reach, 0) : x + reach + 1]
                   for y, x in np.ndindex(plane.shape)}
        plane = np.array([extreme(windows[y, x]) for y, x in np.ndindex(plane.shape)]).reshape(plane.shape)
    return plane


def guided_laws(image, layer, window=11, rain=4, space=18, chroma=50, pattern=288, brightness=128, uncertainty=100):
    """Yield (y, x, its S draws' probabilities, what they take off the channels, J there) for every pixel with rain."""
    colours, reach = image.astype(np.float64), window // 2
    derained = np.clip(colours - layer.astype(np.float64)[..., None], 0, 255)
    hues = colours[..., 2] - colours[..., 1], colours[..., 1] - colours[..., 0]
    closed = closing(layer.astype(np.float64), 2)
    planes = derained.mean(axis=2), closed, *hues, *np.moveaxis(derained, 2, 0)
    L, R, red_green, green_blue, *J = (np.pad(plane, reach + 1, mode="reflect") for plane in planes)
    for y, x in np.argwhere(closed > 0):
        p, weights, taken, seen = (y + reach + 1, x + reach + 1), [], [], []
        for dy, dx in np.ndindex(window, window):
            q = y + 1 + dy, x + 1 + dx
            here, there = (L[v - 1 : v + 2, u - 1 : u + 2] for v, u in (p, q))
            exponent = -R[q] / rain - ((dy - reach) ** 2 + (dx - reach) ** 2) / space
            exponent -= (np.mean((here - there) ** 2) / pattern + (L[p] - L[q]) ** 2 / brightness) / (1 + R[p] / uncertainty)
            if colours[y, x].max() < 254:
                exponent -= ((red_green[p] - red_green[q]) ** 2 + (green_blue[p] - green_blue[q]) ** 2) / chroma
            weights.append(np.exp(exponent))
            taken.append(max(0, colours[y, x].mean() - L[p] - (1 - np.exp(-R[p] / rain)) * (L[q] - L[p])))
            seen.append([plane[q] for plane in J])
        yield y, x, np.array(weights) / np.sum(weights), np.array(taken), np.array(seen)


def guided_expectation(image, layer, rounded=False, power=1, **widths):
    """The mean of this power of infinitely many guided samples, (H, W, 3) float64, of whole levels or before rounding."""
    result = image.astype(np.float64) ** power
    for y, x, probabilities, taken, seen in guided_laws(image, layer, **widths):
        taken, seen = (np.rint(taken), np.rint(seen)) if rounded else (taken, seen)
        drawn = np.maximum(image[y, x] - taken[:, None], 0)
        drawn = np.where(image[y, x] >= 254, np.minimum(image[y, x], seen), drawn)
        result[y, x] = probabilities @ drawn**power
    return result


# ---- the rain layer


def chroma_weight(turned):
    """w of an upright image (h, w, 3), float64."""
    turned = turned.astype(np.float64)
    blue, green, red = np.moveaxis(turned, 2, 0)
    chroma = [cv2.GaussianBlur(plane, (0, 0), 1) for plane in (red - green, green - blue)]
    change, largest = sum(abs(np.roll(plane, -1, 1) - plane) for plane in chroma), turned.max(axis=2)

    def across(plane, extreme):
        return np.stack([extreme(plane[:, max(x - 4, 0) : x + 5], axis=1) for x in range(plane.shape[1])], axis=1)

    unknown = (largest > 250) & (across(across(largest, np.min), np.max) > 225)
    change[unknown | np.roll(unknown, -1, 1)] = 0
    return np.exp(-change / 8)


def evidence_weight(counts, direction):
    """counts: {degrees: [(bright, dark) lines of each place]}, every 8 degrees from -56 to 56, and there and opposite."""
    searched, places = range(-56, 57, 8), range(len(counts[direction]))

    def level(degrees, place, kind):
        return counts[degrees][place][kind] + 0.02

    def usual(place, kind):
        return sum(level(degrees, place, kind) for degrees in searched) / 15

    def both(degrees, place):
        return level(degrees, place, 0) + level(degrees, place, 1)

    def prevailing(degrees):
        return np.median([counts[degrees][p][0] / (usual(p, 0) + usual(p, 1)) for p in places])

    here = np.median([level(direction, p, 0) / (usual(p, 0) + usual(p, 1)) for p in places])
    against_usual = np.percentile([level(direction, p, 0) / usual(p, 0) for p in places], 25)
    against_dark = np.median([level(direction, p, 0) / level(direction, p, 1) for p in places])
    against_opposite = np.percentile([both(direction, p) / both(-direction, p) for p in places], 25)
    evidence = against_usual * against_dark * max(against_opposite, 1) ** 4
    rival = max(prevailing(degrees) for degrees in searched if abs(degrees) <= 48 and abs(degrees - direction) > 10) / here
    dark, opposite = (np.mean([level(degrees, p, 1) for p in places]) for degrees in (direction, -direction))
    factor = 1 if evidence > 1.5 else (1.5 / evidence) ** 3
    return factor * min(max((1.07 * rival) ** 4, 1), 3) / min(max((dark / opposite / 2) ** 0.5, 1), 2)


def mean_around(plane, valid):
    """The mean of what lies valid the image in the 91x91 pixels around each pixel of (h, w)."""
    result = np.zeros(plane.shape)
    for y, x in np.ndindex(plane.shape):
        window = slice(max(y - 45, 0), y + 46), slice(max(x - 45, 0), x + 46)
        result[y, x] = plane[window][valid[window]].mean()
    return result


def reweighted(R, valid, base):
    """b of the rounds after the first, where it is `base` in the first."""
    d = np.clip(1e-5 / max(R[valid].mean(), 1e-6) ** 2, 0.004, 0.1)
    around = mean_around(R, valid) + 1e-4
    return base * np.maximum(2 * d / (d + cv2.blur(R, (3, 21))), 0.2) * np.clip(around / np.median(around[valid]), 0.5, 4)


def solve_layer(Y, w, sparsity, rounds=4, steps=12, t=0.05, c=1.6):
    """The rain of an image in which it is upright; Y, w and what sparsity(R, round) gives are (h, w) float64."""

    def along(R):
        return np.roll(R, -1, 0) - R

    def across(R):
        return np.roll(R, -1, 1) - R

    def along_transposed(v):
        return np.roll(v, 1, 0) - v

    def across_transposed(v):
        return np.roll(v, 1, 1) - v

    def soft(u, t):
        return np.sign(u) * np.maximum(abs(u) - t, 0)

    fy, fx = (np.exp(2j * np.pi * np.fft.fftfreq(size)) for size in Y.shape)
    spectrum = 1 + abs(fy[:, None] - 1) ** 2 + abs(fx - 1) ** 2
    R, d1, d2, d3 = (np.zeros(Y.shape) for _ in range(4))
    for number in range(rounds):
        b = sparsity(R, number)
        for _ in range(steps):
            n1, n2, n3 = along(R) + d1, R + d2, across(Y - R) + d3
            v1, v2, v3 = soft(n1, c * t), np.maximum(n2 - t * b, 0), soft(n3, t * w)
            d1, d2, d3 = n1 - v1, n2 - v2, n3 - v3
            right = along_transposed(v1 - d1) + (v2 - d2) + across_transposed(across(Y) - v3 + d3)
            R = np.clip(np.fft.ifft2(np.fft.fft2(right) / spectrum).real, 0, Y)
    return R


def credible_share(found, control):
    """What the negative's layer lacks of the image's, around each pixel and among lines as strong, by counting."""

    def mean(plane, across, along):
        padded = np.pad(plane, [(along // 2,) * 2, (across // 2,) * 2], mode="reflect")
        return np.array([[padded[y : y + along, x : x + across].mean() for x in range(plane.shape[1])]
                         for y in range(plane.shape[0])])

    lines, control_lines = mean(found, 1, 9), mean(control, 1, 9)
    here = 1 - 1.25 * (mean(control**2, 91, 91) + 1) / (mean(found**2, 91, 91) + 1)
    levels, lacking = np.arange(0, 255.5, 0.5), [0.0]
    for level in levels:
        share = 1 - 1.25 * ((control_lines >= level).sum() + 9) / max((lines >= level).sum(), 1)
        lacking.append(max(lacking[-1], share))
    return here.clip(0, 1) * np.interp(lines, levels, lacking[1:])
