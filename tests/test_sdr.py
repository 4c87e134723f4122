"""NSS: the published references, the literal sampling on awkward inputs, fresh draws of the right law, and the script."""
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import cv2
import literal
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sdr
from sdr import Fusion, GuidedSampler, Sampler, ScaledSampler, fuse, sample_references, write_references
from utils.image import ImageError, read_image, read_mask, write_bytes, write_png

DEVICES = ["cpu", *["cuda"] * torch.cuda.is_available()]
FULL_IMAGES = ["1", "2", "3"]
DRAWS = 400  # of a fresh reference, where their law is looked at


def colours(seed, height, width, levels=256):
    return np.random.default_rng(seed).integers(0, levels, (height, width, 3), dtype=np.uint8)


def speckled(seed, height, width, clear=0.6):
    """A mask that is 0 at about this share of the pixels and anything from 1 to 255 at the others."""
    random = np.random.default_rng(seed)
    return np.where(random.random((height, width)) < clear, 0, random.integers(1, 256, (height, width))).astype(np.uint8)


def rectangle(height, width, top, left, bottom, right, value=255):
    mask = np.zeros((height, width), np.uint8)
    mask[top:bottom, left:right] = value
    return mask


def sha256(image):
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()


# ---- published results


@pytest.fixture(scope="module")
def cases(reference):
    """The eight small published cases: {name: (rainy, mask, references, parameters)}."""
    arrays = np.load(reference / "golden/nss_cases.npz")
    parameters = json.loads((reference / "golden/nss_cases.json").read_text())
    assert len(parameters) == 8
    return {
        name: tuple(arrays[f"{name}/{part}"] for part in ("rainy_bgr", "mask", "references_bgr")) + (options,)
        for name, options in parameters.items()
    }


def test_published_cases(cases):
    for name, (rainy, mask, references, options) in cases.items():
        assert np.array_equal(sample_references(rainy, mask, **options), references), name


def test_the_literal_sampling_gives_the_published_cases_too(cases):
    for name, (rainy, mask, references, options) in cases.items():
        assert np.array_equal(literal.references(rainy, mask, **options), references), name


@pytest.mark.parametrize("stem", FULL_IMAGES)
def test_published_references_of_a_whole_image(reference, stem):
    golden = json.loads((reference / "golden/nss_full_images.json").read_text())[stem]
    rainy = read_image(reference / f"data/Rain100L/input/{stem}.png")
    sampler, fusion = Sampler(rainy, read_mask(reference / f"data/Rain100L/ldgp/{stem}.png")), Fusion()
    hashes = []
    for one in sampler.references(50):
        hashes.append(sha256(one))
        fusion.add(one)
    assert hashes == golden["references_sha256"]
    assert sha256(fusion.mean()) == golden["fuse_sha256"]
    assert fusion.mean().mean(axis=(0, 1)) == pytest.approx(golden["fuse_mean_bgr"], abs=1e-6)


@pytest.mark.parametrize("device", ["numpy", *DEVICES])
def test_draws_of_ones_own_from_the_published_numbers_are_the_published_draws(cases, device):
    for name, (rainy, mask, references, options) in cases.items():
        options = dict(options)
        sdr_num = options.pop("sdr_num")
        sampler = Sampler(rainy, mask, **options)
        for n, uniform in enumerate(np.random.RandomState(0).random_sample(sdr_num)):
            assert np.array_equal(drawn_by(sampler, uniform, device), references[n]), (name, n)


def drawn_by(sampler, uniform, device):
    """The reference (H, W, 3) uint8 in which each pixel's own number is this one. device: of torch, or "numpy"."""
    if device == "numpy":
        return sampler.fresh(mock.Mock(random=lambda number: np.full(number, uniform)))
    with mock.patch.object(torch, "rand", lambda number, dtype, device, generator: torch.full((number,), uniform, dtype=dtype,
                                                                                            device=device)):
        return sampler.to(device).fresh().cpu().numpy()


# ---- the fast sampling against the literal one


def check_against_literal(image, mask, sdr_num=20, seed=0, chunk=sdr.CHUNK, **parameters):
    before = image.copy(), mask.copy()
    sampler = Sampler(image, mask, **parameters)
    expected = literal.references(image, mask, sdr_num, seed, **parameters)
    with mock.patch.object(sdr, "CHUNK", chunk):
        drawn = list(sampler.references(sdr_num, seed))
        assert len(drawn) == sdr_num
        for n, (one, other) in enumerate(zip(drawn, expected)):
            assert one.dtype == np.uint8 and np.array_equal(one, other), n
        assert np.abs(sampler.expectation() - literal.expectation(image, mask, **parameters)).max() < 1e-9
        assert np.abs(sampler.variance() - literal.variance(image, mask, **parameters)).max() < 1e-8
    assert np.array_equal(image, before[0]) and np.array_equal(mask, before[1])
    return sampler


@settings(max_examples=400)
@given(
    content=st.integers(0, 2**32 - 1), height=st.integers(1, 9), width=st.integers(1, 9),
    levels=st.sampled_from([2, 4, 256]),  # few levels give equal distances, also of 0
    clear=st.sampled_from([0.05, 0.3, 0.6, 0.95]), block=st.tuples(*[st.integers(0, 9)] * 4),
    K=st.integers(1, 11), k=st.sampled_from([1, 3, 5, 7]), pow=st.sampled_from([0, 0.5, 1, 2]),
    threshold=st.sampled_from([0, 10, 120, 254, 255]), sdr_num=st.sampled_from([1, 2, 7, 50]),
    seed=st.sampled_from([0, 1, 2**32 - 1]), chunk=st.sampled_from([1, 1000, sdr.CHUNK]),
)
def test_every_reference_is_the_literal_one(content, height, width, levels, clear, block, **options):
    mask = speckled(content, height, width, clear)
    top, left, bottom, right = block
    mask[top:bottom, left:right] = 200  # solid rain makes the comparison window grow
    check_against_literal(colours(content, height, width, levels), mask, **options)


AWKWARD = {
    "rain on every border": (colours(1, 9, 11), 255 - rectangle(9, 11, 2, 2, 7, 9)),
    "rain in the corners": (colours(2, 9, 11), np.pad(np.zeros((7, 9), np.uint8), 1)
                            | rectangle(9, 11, 0, 0, 3, 3) | rectangle(9, 11, 6, 8, 9, 11)),
    "windows that grow": (colours(3, 14, 14), rectangle(14, 14, 3, 3, 10, 10)),
    "pixels without candidates": (colours(4, 14, 14), rectangle(14, 14, 1, 1, 12, 12)),
    "one clear pixel": (colours(5, 9, 9), 255 - rectangle(9, 9, 4, 4, 5, 5)),
    "one clear pixel in a corner": (colours(6, 9, 9), 255 - rectangle(9, 9, 0, 0, 1, 1)),
    "narrower than the window": (colours(7, 12, 2), speckled(7, 12, 2)),
    "shorter than the window": (colours(8, 2, 12), speckled(8, 2, 12)),
    "a single row": (colours(9, 1, 15), speckled(9, 1, 15)),
    "a single column": (colours(10, 15, 1), speckled(10, 15, 1)),
    "a single clear pixel": (colours(11, 1, 1), np.zeros((1, 1), np.uint8)),
    "a single rainy pixel": (colours(12, 1, 1), np.full((1, 1), 255, np.uint8)),
    "all rain": (colours(13, 8, 9), np.full((8, 9), 255, np.uint8)),
    "all rain too faint to fill": (colours(14, 8, 9), np.full((8, 9), 10, np.uint8)),
    "no rain": (colours(15, 8, 9), np.zeros((8, 9), np.uint8)),
    "rain too faint to fill": (colours(16, 8, 9), np.minimum(speckled(16, 8, 9), 10)),
    "black on black": (np.zeros((8, 9, 3), np.uint8), speckled(17, 8, 9)),  # all distances are 0
    "the largest distances": (np.where(speckled(18, 9, 9)[..., None] > 0, 255, colours(18, 9, 9, 2) * 255), speckled(18, 9, 9)),
}


@pytest.mark.parametrize("chunk", [sdr.CHUNK, 1, 1500])
@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_cases(name, chunk):
    check_against_literal(*AWKWARD[name], chunk=chunk)


def test_the_awkward_cases_are_what_they_are_called():
    def halves(mask):
        return {half for half in range(9) for y, x in np.argwhere(mask > 10)
                if literal.all_rain(mask.tolist(), y, x, half - 1) and not literal.all_rain(mask.tolist(), y, x, half)}

    assert halves(AWKWARD["windows that grow"][1]) == {1, 2, 3, 4}
    for name, left in (("pixels without candidates", 25), ("all rain", 72), ("one clear pixel", 81 - 49)):
        image, mask = AWKWARD[name]
        filled = sum(1 for _ in literal.filled_pixels(image, mask))
        assert np.sum(mask > 10) - filled == left, name
    for name in ("all rain", "all rain too faint to fill", "no rain", "rain too faint to fill", "a single rainy pixel"):
        image, mask = AWKWARD[name]
        for one in (*sample_references(image, mask, 3), fuse([image]), Sampler(image, mask).fresh(np.random.RandomState(0)),
                    Sampler(image, mask).to("cpu").fresh().numpy(), Sampler(image, mask).expectation()):
            assert np.array_equal(one, image), name


@pytest.mark.parametrize("K, k", [(1, 1), (2, 1), (3, 3), (4, 3), (6, 5), (8, 3), (10, 3), (3, 11), (17, 3)])
def test_windows_even_small_and_large(K, k):
    check_against_literal(colours(20, 12, 13), speckled(20, 12, 13, clear=0.8), K=K, k=k)
    check_against_literal(colours(21, 12, 13), rectangle(12, 13, 2, 3, 9, 11) | speckled(21, 12, 13, clear=0.9), K=K, k=k)


@pytest.mark.parametrize("k", [9, 11])
def test_distances_below_and_beyond_16_bits(k):
    stripes = np.zeros((15, 15, 3), np.uint8)
    stripes[:, ::2] = 255  # a step aside differs everywhere
    sampler = check_against_literal(stripes, rectangle(15, 15, 7, 7, 8, 8), K=3, k=k, pow=1)
    ((_, distance, is_candidate),) = sdr.nss_distances(*sampler.inputs)
    assert distance[is_candidate].max() == 765 * (k * k - 1)


def test_even_and_next_odd_K_are_the_same():
    image, mask = colours(22, 12, 13), speckled(22, 12, 13)
    for even in (2, 4, 6):
        assert np.array_equal(sample_references(image, mask, 5, K=even), sample_references(image, mask, 5, K=even + 1))
    assert not np.array_equal(sample_references(image, mask, 5, K=4), sample_references(image, mask, 5, K=7))


def test_distances_beyond_what_a_float32_holds_are_exact():
    # Stripes, black and white by columns: a step aside differs everywhere, by 765 * 151**2, which takes 25 bits.
    image, mask = np.zeros((160, 160, 3), np.uint8), rectangle(160, 160, 80, 80, 81, 82)
    image[:, ::2], image[79, 79] = 255, (1, 0, 0)
    ((pixels, distance, is_candidate),) = sdr.nss_distances(image, mask, K=3, k=151)
    wide = np.pad(image.astype(int), ((75, 75), (75, 75), (0, 0)))
    valid = np.pad(mask == 0, 75, constant_values=True)
    assert distance.max() > 1 << 24 and is_candidate.sum(axis=0).tolist() == [7, 7]
    for pixel, distances in zip(pixels, distance.T[is_candidate.T].reshape(2, 7)):
        y, x = divmod(int(pixel), 160)
        here, *there = (np.s_[v : v + 151, u : u + 151] for v, u in [
            (y, x), *((v, u) for v in (79, 80, 81) for u in (x - 1, x, x + 1) if not mask[v, u])])
        assert distances.tolist() == [np.abs(wide[here] - wide[q]).sum(axis=2)[valid[here]].sum() for q in there]


def test_a_sea_of_rain_wider_than_a_byte_counts():
    mask = rectangle(700, 600, 0, 1, 700, 600)
    mask[5, 599] = 0
    image = colours(23, 700, 600)
    with np.errstate(all="raise"):
        references = sample_references(image, mask, 2)
    left = np.ones((700, 600), bool)
    left[:, :4] = left[2:9, 596:] = False  # within reach of the clear pixels
    assert np.array_equal(references[0][left], image[left])
    corner = literal.references(image[:20, :20], mask[:20, :20], 2)
    assert np.array_equal(np.stack(references)[:, :8, :4], corner[:, :8, :4])


def test_views_and_copies_are_sampled_alike():
    image, mask = colours(24, 24, 26)[::2, ::-2], speckled(24, 12, 13).T[:, ::-1].T
    assert np.array_equal(sample_references(image, mask, 3), sample_references(image.copy(), mask.copy(), 3))


def test_a_number_that_meets_a_cumulative_weight_draws_the_next_candidate():
    image, mask = colours(25, 8, 8), rectangle(8, 8, 3, 0, 5, 8)
    sampler = Sampler(image, mask, K=3, pow=0)  # 2 to 6 equally likely candidates
    ((pixels, cumulative),) = sampler.chunks()
    assert (np.diff(cumulative, axis=0) == 0).any() and (cumulative[-1] == 1).all()
    for uniform in [0, 0.25, 0.5, 0.75, *np.unique(cumulative[cumulative < 1])]:
        places = [np.searchsorted(own, uniform, side="right") for own in cumulative.T]
        expected = image.copy().reshape(-1, 3)
        expected[pixels] = expected[pixels + sampler.shift[places]]
        for device in ("numpy", "cpu"):
            assert np.array_equal(drawn_by(sampler, uniform, device), expected.reshape(image.shape)), uniform


# ---- draws of their own


def distinct(seed, height, width):
    """An image in which every pixel's colour occurs once, and a function from references to the pixel numbers drawn."""
    image = colours(seed, height, width, 32)
    number = np.random.default_rng(seed).permutation(height * width).reshape(height, width)
    image[..., 0], image[..., 1] = number % 256, number // 256
    pixel = np.argsort(number.ravel())
    return image, lambda reference: pixel[reference[..., 1].astype(int) * 256 + reference[..., 0]]


def draws(sampler, seed, source, number=DRAWS):
    """References with draws of their own, (number, H, W, 3) uint8. source: "numpy", "independent" or a torch device."""
    if source == "independent":
        return np.stack(list(sampler.references(number, seed, independent=True)))
    if source == "numpy":
        random = np.random.RandomState(seed)
        return np.stack([sampler.fresh(random) for _ in range(number)])
    there, random = sampler.to(source), torch.Generator(source).manual_seed(seed)
    return torch.stack([there.fresh(random) for _ in range(number)]).cpu().numpy()


def surprise(drawn, laws):
    """By how many of its standard deviations Pearson's chi-squared, over all pixels, exceeds its mean.

    drawn: (N, H, W) pixel numbers; laws: {(y, x): {pixel number: probability}}. Raises KeyError for one not in the law.
    """
    excess = variance = 0
    for (y, x), law in laws.items():
        counts = dict.fromkeys(law, 0)
        for q in drawn[:, y, x].tolist():
            counts[q] += 1
        n, size, p = len(drawn), len(law), np.array(list(law.values()))
        excess += np.sum((np.array(list(counts.values())) - n * p) ** 2 / (n * p)) - (size - 1)
        variance += 2 * (size - 1) + (np.sum(1 / p) - size**2 - 2 * size + 2) / n
    return excess / np.sqrt(variance)


def literal_laws(image, mask, **parameters):
    return {(y, x): {v * image.shape[1] + u: float(p) for (v, u), p in zip(candidates, probabilities)}
            for y, x, candidates, probabilities in literal.filled_pixels(image, mask, **parameters)}


@pytest.mark.parametrize("source", ["numpy", "independent", *DEVICES])
def test_fresh_references_follow_the_law(source):
    image, pixels = distinct(30, 12, 14)
    mask = speckled(30, 12, 14, clear=0.6) | rectangle(12, 14, 3, 4, 10, 11)
    sampler, laws = Sampler(image, mask, pow=1), literal_laws(image, mask, pow=1)
    assert len(laws) > 80
    references = draws(sampler, 5, source)
    drawn = pixels(references)
    still = np.ones(mask.shape, bool)
    still[tuple(np.transpose(list(laws)))] = False
    assert np.array_equal(drawn[:, still], np.broadcast_to(np.arange(12 * 14).reshape(12, 14)[still], (DRAWS, still.sum())))
    assert abs(surprise(drawn, laws)) < 5
    assert surprise(drawn, literal_laws(image, mask, pow=0.5)) > 20  # another law would be noticed
    assert surprise(np.repeat(drawn[: DRAWS // 8], 8, axis=0), laws) > 20  # and so would too few draws


@pytest.mark.parametrize("source", ["numpy", *DEVICES])
def test_the_mean_of_fresh_references_approaches_the_expectation(source):
    image, mask = colours(31, 12, 14), speckled(31, 12, 14)
    sampler = Sampler(image, mask)
    mean, variance = literal.expectation(image, mask), literal.variance(image, mask)
    filled = variance > 0
    assert filled.sum() > 100
    if source != "numpy":
        there = sampler.to(source).expectation()
        assert there.dtype == torch.float64 and np.array_equal(there.cpu().numpy(), sampler.expectation())
    references = draws(sampler, 6, source)

    def deviation(expected):  # in standard deviations of the mean
        return (references.mean(axis=0) - expected)[filled] / np.sqrt(variance[filled] / DRAWS)

    assert np.abs(deviation(mean)).max() < 5
    assert 0.7 < np.mean(deviation(mean) ** 2) < 1.3  # neither too far from it nor too close
    assert np.mean(deviation(Sampler(image, mask, pow=2).expectation()) ** 2) > 1.5


@pytest.mark.parametrize("source", ["numpy", "independent", *DEVICES])
def test_pixels_draw_for_themselves_in_fresh_references_and_alike_in_the_published_ones(source):
    image, pixels = distinct(32, 29, 29)
    mask = np.zeros((29, 29), np.uint8)
    mask[2::5, 2::5] = 255  # 36 pixels, far apart, with 8 equally likely candidates each
    sampler = Sampler(image, mask, K=3, pow=0)
    home = np.arange(29 * 29).reshape(29, 29)

    def directions(references):  # (N, 36), which neighbour was drawn
        return (pixels(references) - home)[:, mask > 0]

    published = directions(np.stack(list(sampler.references(50))))
    assert (published == published[:, :1]).all() and len(set(published[:, 0])) == 8
    own = directions(draws(sampler, 7, source))
    for one, other in ((own[:, 1:], own[:, :-1]), (own[1:], own[:-1])):  # neighbouring pixels; references in a row
        assert abs(np.mean(one == other) - 1 / 8) < 5 * np.sqrt(1 / 8 * 7 / 8 / one.size)


def test_the_same_seed_draws_the_same_bytes():
    image, mask = colours(33, 20, 25), speckled(33, 20, 25)
    for new in (np.random.RandomState, np.random.default_rng):
        first, again, other = (Sampler(image, mask).fresh(new(seed)) for seed in (3, 3, 4))
        assert np.array_equal(first, again) and not np.array_equal(first, other)
    for device in DEVICES:
        there = Sampler(image, mask).to(device)
        first, again, other = (there.fresh(torch.Generator(device).manual_seed(seed)) for seed in (3, 3, 4))
        assert first.device.type == device and first.dtype == torch.uint8 and first.shape == image.shape
        assert torch.equal(first, again) and not torch.equal(first, other)


def test_independent_references_follow_from_the_seed_alone():
    image, mask = colours(34, 20, 25), speckled(34, 20, 25)
    many = sample_references(image, mask, 6, seed=2, independent=True)
    assert np.array_equal(many[:3], sample_references(image, mask, 3, seed=2, independent=True))
    assert not np.array_equal(many, sample_references(image, mask, 6, seed=3, independent=True))
    assert len(np.unique(many, axis=0)) == 6


def test_drawing_leaves_the_callers_random_numbers_alone():
    image, mask = colours(35, 20, 25), speckled(35, 20, 25)
    state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    sample_references(image, mask, 3)
    Sampler(image, mask).fresh(np.random.default_rng(0))
    Sampler(image, mask).to("cpu").fresh(torch.Generator().manual_seed(0))
    assert np.array_equal(np.random.get_state()[1], state) and torch.equal(torch.get_rng_state(), torch_state)


def test_one_sampler_serves_many_times():
    image, mask = colours(36, 20, 25), speckled(36, 20, 25)
    sampler = Sampler(image, mask)
    first = np.stack(list(sampler.references(4)))
    first[:] = 0  # what was handed out is the caller's
    sampler.fresh(np.random.RandomState(0))[:] = 0
    assert np.array_equal(np.stack(list(sampler.references(4))), literal.references(image, mask, 4))


# ---- the fused reference


def test_the_fused_reference_is_rounded_to_nearest_and_ties_to_even():
    values = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    brighter = np.minimum(values, 254) + np.uint8(1)
    fused = fuse([values, brighter])  # every mean but the last ends in a half
    assert fused.dtype == np.uint8 and fused.shape == (16, 16, 3)
    assert fused[..., 0].ravel()[:6].tolist() == [0, 2, 2, 4, 4, 6]
    assert np.array_equal(fused, np.rint((values.astype(float) + brighter) / 2).astype(np.uint8))
    assert np.array_equal(fuse([values] * 3), values)
    assert np.array_equal(fuse(np.stack([values, values, brighter])), values)  # a third more is rounded down


def test_the_fused_reference_is_the_mean_in_float64():
    references = np.stack([colours(seed, 30, 40) for seed in range(50)])
    assert np.array_equal(fuse(iter(references)), np.rint(references.mean(axis=0, dtype=np.float64)))
    assert np.array_equal(fuse(np.full((300, 2, 2, 3), 255, np.uint8)), np.full((2, 2, 3), 255))


# ---- guided samples


def shower(seed, height, width, kind=np.float32):
    """A smooth photograph with rain of up to 60 levels on half of its pixels, and that layer of rain."""
    random = np.random.default_rng(seed)
    layer = np.where(random.random((height, width)) < 0.5, random.uniform(0, 60, (height, width)), 0).astype(kind)
    scene = 60 + 80 * np.sin(np.arange(width) / 5 + seed)[:, None] ** 2 + random.uniform(0, 12, (height, width, 3))
    return np.rint(scene + layer[..., None]).astype(np.uint8), layer


def dark_and_bright(seed, height, width):
    """A photograph of black, middling and white, where channels reach 0 and 255, and a layer that exceeds it in places."""
    image = np.random.default_rng(seed).choice(np.array([0, 3, 120, 128, 250, 254, 255], np.uint8), (height, width, 3))
    return image, speckled(seed, height, width)


GUIDED = {
    "floats": shower(1, 12, 14),
    "float64": shower(2, 9, 8, np.float64),
    "whole levels": shower(3, 12, 14, np.uint8),
    "dark and bright": dark_and_bright(4, 12, 14),
    "rain of 255 everywhere": (colours(5, 6, 7), np.full((6, 7), 255, np.uint8)),
    **{f"{height} x {width}": shower(6, height, width) for height, width in [(1, 1), (1, 4), (4, 1), (3, 5), (2, 20)]},
}


@pytest.mark.parametrize("name", GUIDED)
def test_the_guided_expectation_is_the_literal_one(name):
    image, layer = GUIDED[name]
    before = image.copy(), layer.copy()
    sampler = GuidedSampler(image, layer)
    whole = sampler.expectation()
    assert whole.shape == image.shape and np.abs(whole - literal.guided_expectation(image, layer)).max() < 2e-3
    with mock.patch.object(sdr, "STRIP", 40), mock.patch.object(sdr, "CHUNK", 121 * 30):
        assert np.abs(sampler.expectation() - whole).max() < 1e-3
        parts = list(sampler.references(4))
    assert all(np.array_equal(one, other) for one, other in zip(sampler.references(4), parts))
    assert np.array_equal(image, before[0]) and np.array_equal(layer, before[1])


def test_the_guided_widths_are_those_of_the_formula():
    image, layer = shower(7, 8, 9)
    usual = GuidedSampler(image, layer).expectation()
    for widths in ({"window": 5}, {"rain": 9}, {"space": 4}, {"chroma": 200}, {"pattern": 50}, {"light": 1000}):
        other = GuidedSampler(image, layer, **widths).expectation()
        assert np.abs(other - literal.guided_expectation(image, layer, **widths)).max() < 2e-3
        assert np.abs(other - usual).max() > 0.1, widths


@pytest.mark.parametrize("source", ["numpy", "independent", *DEVICES])
@pytest.mark.parametrize("name", ["floats", "whole levels", "dark and bright"])
def test_the_mean_of_guided_draws_approaches_the_expectation(name, source):
    image, layer = GUIDED[name]
    sampler, number = GuidedSampler(image, layer), 2000
    drawn = draws(sampler, 5, source, number)
    assert drawn.dtype == np.uint8
    mean, variance = literal.guided_expectation(image, layer, rounded=True), sampler.variance()
    assert np.abs(drawn.var(axis=0) - variance).max() < 0.25 * variance.max()
    error = drawn.mean(axis=0) - mean
    assert np.abs(error / np.sqrt(variance / number + 1e-4)).max() < 6
    assert np.abs(drawn.mean(axis=0) - sampler.expectation()).max() < 0.5 + 6 * np.sqrt(variance.max() / number)
    if source in DEVICES:
        assert np.array_equal(sampler.to(source).expectation().cpu().numpy(), sampler.expectation())


def test_guided_references_with_shared_numbers_spread_round_the_expectation():
    image, layer = GUIDED["floats"]
    sampler = GuidedSampler(image, layer)
    references = np.stack(list(sampler.references(500)))
    assert np.abs(references.mean(axis=0) - sampler.expectation()).max() < 2
    assert len(np.unique(references, axis=0)) > 100


def test_guided_samples_change_brightness_only():
    image, layer = GUIDED["floats"]
    sampler = GuidedSampler(image, layer)
    for one in (*sampler.references(20), sampler.expectation()):
        change = image - one.astype(np.float64)
        assert (change >= 0).all() and (change[layer == 0] == 0).all() and change.max() > 10
        assert np.abs(change - change[..., :1]).max() < 1e-4 and one.min() > 0
    black = np.zeros((8, 9, 3), np.uint8)
    assert np.array_equal(GuidedSampler(black, speckled(0, 8, 9)).expectation(), black)


def test_a_channel_that_rain_cuts_off_takes_the_colour_of_its_neighbours():
    scene = np.full((20, 24, 3), (120, 160, 230), np.uint8)
    layer = np.where(np.arange(24) % 8 == 3, 60, 0).astype(np.uint8) + np.zeros((20, 1), np.uint8)
    rainy = np.minimum(scene.astype(int) + layer[..., None], 255).astype(np.uint8)
    sampler = GuidedSampler(rainy, layer)
    assert rainy.max() == 255 and all(np.array_equal(one[..., 2], scene[..., 2]) for one in sampler.references(5))
    assert np.abs(sampler.expectation()[..., 2] - 230.0).max() < 1e-3


def test_a_large_photograph_is_sampled_small_and_keeps_its_details():
    """At scale 1 it is the guided sampler; at 2 the light is enlarged, the same off each channel, and fine checks stay."""
    image, layer = colours(8, 24, 30) // 2 + 90, np.minimum(speckled(8, 24, 30), 40)  # no channel is cut off
    assert np.array_equal(ScaledSampler(image, layer).expectation(), GuidedSampler(image, layer).expectation())
    checks = np.where(np.indices((48, 60)).sum(axis=0) % 2, 20, -20)[..., None]  # of no mean in 2x2 pixels
    large = (np.kron(image, np.ones((2, 2, 1), np.uint8)) + checks).astype(np.uint8)
    sampler = ScaledSampler(large, np.kron(layer, np.ones((2, 2), np.uint8)), 2)
    small = GuidedSampler(image, layer).expectation()
    for one in (sampler.fused(), *sampler.references(2)):
        taken = large.astype(int) - one
        assert one.dtype == np.uint8 and (taken == taken[..., :1]).all() and taken.min() >= 0
    expected = cv2.resize((image - small).max(axis=2), (60, 48), interpolation=cv2.INTER_CUBIC).clip(0)
    assert expected.max() > 20 and np.abs(large - sampler.expectation() - expected[..., None]).max() < 1e-3


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_a_layer_without_rain_leaves_the_photograph(kind):
    image = colours(8, 9, 11)
    sampler = GuidedSampler(image, np.zeros((9, 11), kind))
    for one in (sampler.expectation(), *sampler.references(2), sampler.fresh(np.random.RandomState(0)),
                sampler.to("cpu").fresh().numpy()):
        assert np.array_equal(one, image)
    assert (sampler.variance() == 0).all()


@pytest.mark.parametrize("layer", [np.zeros((6, 5)), np.zeros((5, 6, 1)), np.full((5, 6), -1.0), np.full((5, 6), np.nan),
                                   np.zeros((5, 6), int), np.zeros((5, 6), bool)])
def test_layers_of_another_kind_are_refused(layer):
    with pytest.raises(ValueError, match="layer must be"):
        GuidedSampler(colours(0, 5, 6), layer)


def test_guided_parameters_without_meaning_are_refused():
    for parameters in ({"window": 4}, {"window": -1}, {"rain": 0}, {"light": -1}):
        with pytest.raises(ValueError, match="window"):
            GuidedSampler(colours(0, 5, 6), np.zeros((5, 6)), **parameters)


# ---- errors


@pytest.mark.parametrize("image, mask", [
    (np.zeros((5, 6), np.uint8), np.zeros((5, 6), np.uint8)),
    (np.zeros((5, 6, 4), np.uint8), np.zeros((5, 6), np.uint8)),
    (np.zeros((5, 6, 3)), np.zeros((5, 6), np.uint8)),
    (np.zeros((5, 6, 3), np.uint8), np.zeros((6, 5), np.uint8)),
    (np.zeros((5, 6, 3), np.uint8), np.zeros((5, 6, 1), np.uint8)),
    (np.zeros((5, 6, 3), np.uint8), np.zeros((5, 6), bool)),
])
def test_arrays_of_another_kind_are_refused(image, mask):
    with pytest.raises(ValueError, match="must be"):
        Sampler(image, mask)


@pytest.mark.parametrize("parameters", [
    {"K": 0}, {"k": 0}, {"k": 2}, {"k": -1}, {"pow": -0.1}, {"pow": float("nan")}, {"pow": float("inf")},
    {"threshold": -1}, {"threshold": 256}, {"pow": 12}, {"pow": 1e6},
])
def test_parameters_without_meaning_are_refused(parameters):
    with pytest.raises(ValueError, match=next(iter(parameters))):
        Sampler(colours(0, 8, 9), speckled(0, 8, 9), **parameters)


# ---- files


def folder_of(path):
    return {entry.name: read_image(entry) for entry in path.iterdir()}


def test_references_are_written_whole_and_older_ones_go(tmp_path):
    references = [colours(seed, 8, 9) for seed in range(12)]
    with ThreadPoolExecutor(2) as pool:
        write_references(references, tmp_path / "sdr/a", pool)
        (tmp_path / "sdr/a/notes.txt").write_text("mine")
        fused = write_references(references[::-1][:3], tmp_path / "sdr/a", pool)
    assert np.array_equal(fused, fuse(references[::-1][:3]))
    assert {path.name for path in (tmp_path / "sdr/a").iterdir()} == {"0.png", "1.png", "2.png", "notes.txt"}
    for n in range(3):
        assert np.array_equal(read_image(tmp_path / f"sdr/a/{n}.png"), references[11 - n])
    assert [path.name for path in (tmp_path / "sdr").iterdir()] == ["a"]


@pytest.mark.parametrize("number", [3, 39])
def test_a_failure_while_writing_leaves_the_folder_as_it_was(tmp_path, monkeypatch, number):
    references = [colours(seed, 8, 9) for seed in range(40)]

    def full_disk(path, data):
        if path.name == f"{number}.png":
            raise OSError(28, "No space left on device")
        write_bytes(path, data)

    with ThreadPoolExecutor(2) as pool:
        write_references(references[:2], tmp_path / "sdr/a", pool)
        monkeypatch.setattr(sdr, "write_bytes", full_disk)
        with pytest.raises(OSError, match="No space"):
            write_references(references[::-1], tmp_path / "sdr/a", pool)
    assert [path.name for path in (tmp_path / "sdr").iterdir()] == ["a"]
    kept = folder_of(tmp_path / "sdr/a")
    assert sorted(kept) == ["0.png", "1.png"] and all(np.array_equal(kept[f"{n}.png"], references[n]) for n in range(2))


@pytest.fixture
def dataset(tmp_path):
    """Two photographs with their masks; the flags that name the folders."""
    for seed, stem in enumerate(("a", "b")):
        write_png(tmp_path / f"input/{stem}.png", colours(seed, 20, 30))
        write_png(tmp_path / f"ldgp/{stem}.png", speckled(seed, 20, 30))
    flags = {"input": "input_path", "ldgp": "ldgp_path", "sdr": "save_path", "sdr(fuse)": "fuse_save_path"}
    return tmp_path, [word for folder, flag in flags.items() for word in (f"--{flag}", tmp_path / folder)]


def test_the_script_writes_what_the_functions_give(dataset, script):
    folder, flags = dataset
    options = {"K": 5, "k": 1, "pow": 1, "threshold": 100}
    done = script("sdr.py", *flags, "--sdr_num=4", "--seed=9", *[f"--{name}={value}" for name, value in options.items()])
    assert "2 images, 0 failed" in done.stdout.splitlines()[-1]
    for seed, stem in enumerate(("a", "b")):
        references = literal.references(colours(seed, 20, 30), speckled(seed, 20, 30), 4, 9, **options)
        written = folder_of(folder / "sdr" / stem)
        assert sorted(written) == ["0.png", "1.png", "2.png", "3.png"]
        assert all(np.array_equal(written[f"{n}.png"], references[n]) for n in range(4))
        assert np.array_equal(read_image(folder / f"sdr(fuse)/{stem}.png"), fuse(references))
    script("sdr.py", *flags, "--sdr_num=2", "--independent")
    own = sample_references(colours(0, 20, 30), speckled(0, 20, 30), 2, independent=True)
    assert [np.array_equal(image, own[int(name[0])]) for name, image in folder_of(folder / "sdr/a").items()] == [True] * 2


def test_an_image_without_a_fitting_mask_is_named_with_what_to_do(dataset, script):
    folder, flags = dataset
    (folder / "ldgp/a.png").unlink()
    write_png(folder / "ldgp/b.png", speckled(0, 20, 31))
    write_png(folder / "input/c.png", colours(3, 6, 7))
    write_png(folder / "ldgp/c.png", speckled(3, 6, 7))
    done = script("sdr.py", *flags, "--sdr_num=2", ok=False)
    assert "run ldgp.py first: python ldgp.py --input_path=" in done.stderr and "a.png: nothing for it" in done.stderr
    assert "31x20, but" in done.stderr and "Traceback" not in done.stderr
    assert "3 images, 2 failed" in done.stdout.splitlines()[-1]
    assert [path.name for path in (folder / "sdr").glob("[!.]*")] == ["c"]


@pytest.mark.parametrize("flag", ["--k=2", "--K=0", "--pow=-1", "--threshold=256", "--sdr_num=0", "--seed=-1"])
def test_flags_without_meaning_are_refused_in_one_line(dataset, script, flag):
    done = script("sdr.py", *dataset[1], flag, ok=False)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and flag.split("=")[0] in done.stderr


def test_a_missing_folder_is_an_image_error(tmp_path):
    with pytest.raises(ImageError, match="no such folder"):
        sdr.main(mock.Mock(input_path=tmp_path / "none", ldgp_path=tmp_path))
