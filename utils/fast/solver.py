"""The solver of the rain layer: a sparse, directional model of an image in which rain is upright, by ADMM."""
import cv2
import numpy as np

ALONG_WEIGHT = 1.6  # weight of the total variation along the streaks
PENALTY = 20  # of ADMM
SURROUNDINGS = 91  # pixels a side: of all that is compared with what is around it


def reweighting(rain, valid, everywhere=True):
    """Return the factors on the sparsity weight after the first round of `solve_layer`, (h, w) float32.

    The weight doubles where there is no rain and falls to a fifth where there is, by R' near the pixel:
    max(2 d / (d + R'), 0.2) with d = 1e-5 / (mean of R)^2 within [0.004, 0.1], so it is higher in an image with little rain.
    And rain falls everywhere: where R is larger in the surroundings of a pixel than around the median one, the weight is
    higher in proportion, from half to four times (ours). rain: R, (h, w) float32 in [0, 1]; valid: (h, w) uint8.
    Reference: Candes, Wakin and Boyd, "Enhancing sparsity by reweighted l1 minimization", 2008.
    """

    def box_mean(plane):
        return cv2.blur(plane, (SURROUNDINGS, SURROUNDINGS), borderType=cv2.BORDER_CONSTANT)

    level = np.clip(1e-5 / max(cv2.mean(rain, valid)[0], 1e-6) ** 2, 0.004, 0.1)
    reweighted = np.maximum(2 * level / (level + cv2.blur(rain, (3, 21))), 0.2)
    if not everywhere:
        return np.float32(reweighted)
    weight = valid.astype(np.float32)
    density = box_mean(rain * weight) / np.maximum(box_mean(weight), 1e-3) + 1e-4
    return np.float32(reweighted * np.clip(density / np.median(density[valid > 0]), 0.5, 4))


def inverse_spectrum(height, width):
    """Return 1 / (1 + the spectra of both second differences), a factor for the packed spectra of cv2.dft, (h, w) float32."""

    def spectrum(frequency, size):
        return 2 - 2 * np.cos(2 * np.pi * frequency / size)

    row, column = np.arange(height), np.arange(width)
    packed_row = (row + 1) // 2  # a frequency's real and imaginary part are neighbours: across, and down at both ends
    across = spectrum((column + 1) // 2, width)
    inverse = 1 / (1 + spectrum(row, height)[:, None] + across)
    for end in (0, -1) if width % 2 == 0 else (0,):
        inverse[:, end] = 1 / (1 + spectrum(packed_row, height) + across[end])
    return inverse.astype(np.float32)


def differences(plane, axis, adjoint=False):
    """Return the periodic forward differences of (h, w) along an axis, or what their adjoint gives."""
    result, step = np.empty_like(plane), plane.shape[1] if axis == 0 else 1
    flat, flat_result = plane.ravel(), result.ravel()
    lines, ends = (plane, result) if axis == 0 else (plane.T, result.T)
    if adjoint:
        np.subtract(flat[:-step], flat[step:], out=flat_result[step:])
        np.subtract(lines[-1], lines[0], out=ends[0])
    else:
        np.subtract(flat[step:], flat[:-step], out=flat_result[:-step])
        np.subtract(lines[0], lines[-1], out=ends[-1])
    return result


def solve_layer(brightness, weight, sparsity, valid, everywhere=True, rounds=4, steps=12):
    """Estimate the rain R, 0 <= R <= Y, of an image in which it is upright, by ADMM stopped early on

        sum c |D_along R|  +  sum b R  +  sum w |D_across (R - Y)|.

    Rain changes little along itself and is sparse, and the background changes little across it, except where the chroma
    does: w. The sparsity weight b is reweighted (ours); c is ALONG_WEIGHT. Multipliers are scaled; each step's R is
    clipped to [0, Y] before the next one, which makes it other than the minimum, and better by 3 dB; stopping
    early leaves wide things alone. Differences are forward and periodic.

    brightness: Y, (h, w) float32 in [0, 1], of a size that suits cv2.dft; weight: w, (h, w) float32; sparsity: b in the first
    round, later times `reweighting`; valid: (h, w) uint8. Returns (h, w) float32.
    References: UGSM, Deng et al., "A directional global sparse model for single image rain removal", 2018; FastDeRain, Jiang
    et al., 2019.
    """
    rain = along_dual = sparse_dual = across_dual = np.zeros_like(brightness)
    change, inverse = differences(brightness, 1), inverse_spectrum(*brightness.shape)
    threshold = 1 / PENALTY
    upper, lower = threshold * weight, -threshold * weight
    for number in range(rounds):
        shrinkage = np.float32(threshold * sparsity) * (reweighting(rain, valid, everywhere) if number else np.ones_like(rain))
        for _ in range(steps):
            along = differences(rain, 0)
            along += along_dual
            bound = ALONG_WEIGHT * threshold
            along_dual = np.clip(along, -bound, bound)  # for numbers it is faster than cv2.min, not for arrays
            sparse = rain + sparse_dual
            sparse_dual = cv2.min(sparse, shrinkage)
            across = differences(rain, 1)
            across -= change
            across += across_dual
            across_dual = cv2.min(cv2.max(across, lower), upper)
            right = cv2.scaleAdd(sparse_dual, -2, sparse)
            right += differences(cv2.scaleAdd(along_dual, -2, along), 0, adjoint=True)
            across += change
            right += differences(cv2.scaleAdd(across_dual, -2, across), 1, adjoint=True)
            spectrum = cv2.dft(right)
            spectrum *= inverse
            rain = cv2.dft(spectrum, flags=cv2.DFT_INVERSE | cv2.DFT_SCALE)
            rain = cv2.min(np.clip(rain, 0, 1), brightness)
    return rain
