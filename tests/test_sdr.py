"""NSS: the published references, the literal sampling on awkward inputs, draws of the right law, fusing, and the script."""
import hashlib
import json
from itertools import islice
from unittest import mock

import literal
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import sdr
from sdr import Sampler, sample_references
from sdrl_online import fresh_references
from utils import sampling
from utils.fast.guided import GuidedSampler
from utils.image import png_bytes, read_image, read_mask
from utils.sampling import fuse, write_references

from conftest import DATA, SDR, noise, read_references, speckled, stage, write_png


DEVICES = ["cpu", *["cuda"] * torch.cuda.is_available()]


def rectangle(height, width, top, left, bottom, right, value=255):
    mask = np.zeros((height, width), np.uint8)
    mask[top:bottom, left:right] = value
    return mask


def fresh(sampler, source, number, seed=0):
    """References in which each pixel draws for itself, (number, H, W, 3) uint8. source: "numpy" or a torch device."""
    if source == "numpy":
        return np.stack(list(sampler.references(number, seed, independent=True)))
    references = fresh_references(sampler, torch.Generator(source).manual_seed(seed))
    return torch.stack(list(islice(references, number))).cpu().numpy()


def drawn_by(sampler, source, uniform):
    """The reference (H, W, 3) uint8 in which each pixel's own number is this one."""
    ours = mock.Mock(random=lambda number: np.full(number, uniform))

    def torchs(number, dtype, device, generator):
        return torch.full((number,), uniform, dtype=dtype, device=device)

    with mock.patch.object(np.random, "default_rng", lambda seed: ours), mock.patch.object(torch, "rand", torchs):
        return fresh(sampler, source, 1)[0]


def test_published_cases(reference):
    """The eight small ones; also where each pixel draws for itself, from the published numbers."""
    arrays, cases = np.load(reference / "golden/nss_cases.npz"), json.loads((reference / "golden/nss_cases.json").read_text())
    assert len(cases) == 8
    for name, options in cases.items():
        rainy, mask, references = (arrays[f"{name}/{part}"] for part in ("rainy_bgr", "mask", "references_bgr"))
        assert np.array_equal(sample_references(rainy, mask, **options), references), name
        assert np.array_equal(literal.references(rainy, mask, **options), references), name
        sampler = Sampler(rainy, mask, **{key: value for key, value in options.items() if key != "sdr_num"})
        for n, uniform in enumerate(np.random.RandomState(0).random_sample(len(references))):
            for source in ("numpy", *DEVICES):
                assert np.array_equal(drawn_by(sampler, source, uniform), references[n]), (name, n, source)


@pytest.mark.parametrize("stem", ["1", "2", "3"])
def test_published_references_of_a_whole_image(reference, stem):
    golden = json.loads((reference / "golden/nss_full_images.json").read_text())[stem]
    data = reference / "data/Rain100L"
    references = sample_references(read_image(data / f"input/{stem}.png"), read_mask(data / f"ldgp/{stem}.png"))
    assert [hashlib.sha256(one.tobytes()).hexdigest() for one in references] == golden["references_sha256"]
    assert hashlib.sha256(fuse(references).tobytes()).hexdigest() == golden["fuse_sha256"]


def check_against_literal(image, mask, sdr_num=20, seed=0, chunk=sdr.CHUNK, **parameters):
    """References are equal, and so are cumulative weights, to the bit."""
    before = image.copy(), mask.copy()
    sampler = Sampler(image, mask, **parameters)
    with mock.patch.object(sdr, "CHUNK", chunk):
        drawn, chunks = np.stack(list(sampler.references(sdr_num, seed))), list(sampler.chunks())
    assert drawn.dtype == np.uint8 and np.array_equal(drawn, literal.references(image, mask, sdr_num, seed, **parameters))
    filled = ((pixel, own) for pixels, cumulative in chunks for pixel, own in zip(pixels, cumulative.T))
    for y, x, candidates, probabilities in literal.filled_pixels(image, mask, **parameters):
        pixel, own = next(filled)
        shifts = [(v - y) * mask.shape[1] + u - x for v, u in candidates]
        expected = np.cumsum(probabilities, dtype=np.float64)
        assert pixel == y * mask.shape[1] + x and np.array_equal(own[np.diff(own, prepend=0) > 0], expected / expected[-1])
        assert sampler.shift[np.diff(own, prepend=0) > 0].tolist() == shifts
    assert next(filled, None) is None
    left = ~np.isin(np.arange(mask.size), [pixel for pixels, _ in chunks for pixel in pixels]).reshape(mask.shape)
    assert all(np.array_equal(fresh(sampler, source, 1)[0][left], image[left]) for source in ("numpy", *DEVICES))
    assert np.array_equal(image, before[0]) and np.array_equal(mask, before[1])


SMALL = {"content": 1, "height": 9, "width": 9, "levels": 256, "clear": 1, "block": (0, 0, 9, 9), "solid": 200, "viewed": True,
         "K": 7, "k": 3, "pow": 0.5, "threshold": 10, "sdr_num": 7, "seed": 0, "chunk": 1}


@settings(max_examples=600)
@given(
    content=st.integers(0, 2**32 - 1), height=st.integers(1, 9), width=st.integers(1, 9), viewed=st.booleans(),
    levels=st.sampled_from([1, 2, 4, 256]),  # few levels give equal distances, also of 0
    clear=st.sampled_from([0, 0.05, 0.3, 0.6, 0.95, 1]), block=st.tuples(*[st.integers(0, 9)] * 4),
    solid=st.sampled_from([10, 200]), K=st.integers(1, 17), k=st.sampled_from([1, 3, 5, 7, 11]),
    pow=st.sampled_from([0, 0.5, 1, 2]), threshold=st.sampled_from([0, 10, 120, 254, 255]),
    sdr_num=st.sampled_from([1, 2, 7, 50]), seed=st.sampled_from([0, 1, 2**32 - 1]),
    chunk=st.sampled_from([1, 1000, sdr.CHUNK]),
)
@example(**SMALL)  # all rain
@example(**{**SMALL, "solid": 10})  # all of it too faint to fill
@example(**{**SMALL, "block": (0, 0, 0, 0)})  # no rain
@example(**{**SMALL, "block": (1, 1, 5, 5), "solid": 1, "threshold": 0})  # a mask of 0 and 1
@example(**{**SMALL, "height": 1, "width": 1})
@example(**{**SMALL, "block": (1, 1, 9, 9), "K": 3})  # most pixels have no candidates
@example(**{**SMALL, "block": (1, 1, 8, 8), "k": 1})  # the compared window grows
@example(**{**SMALL, "block": (8, 0, 9, 9), "K": 17, "pow": 0, "sdr_num": 50})  # the number of a place exceeds a byte
@example(**{**SMALL, "block": (0, 0, 9, 5), "levels": 1})  # black on black
def test_every_reference_is_the_literal_one(content, height, width, levels, clear, block, solid, viewed, **options):
    mask = speckled(content, height, width, clear) | rectangle(height, width, *block, value=solid)
    image = noise(content, height, width, levels) * np.uint8(255 if levels == 2 else 1)  # also the largest distances
    check_against_literal(image[:, ::-1] if viewed else image, mask[::-1] if viewed else mask, **options)


@pytest.mark.parametrize("k", [9, 11, 151])
def test_distances_beyond_16_bits_and_beyond_float32(k):
    side = k + 9
    middle, stripes = side // 2, np.zeros((side, side, 3), np.uint8)
    stripes[:, ::2] = 255  # a step aside differs everywhere, by 765 * k * k in all
    stripes[middle - 1, middle - 1] = 1, 0, 0
    mask = rectangle(side, side, middle, middle, middle + 1, middle + 2)
    check_against_literal(stripes, mask, K=3, k=k, pow=2)


def test_a_sea_of_rain_wider_than_a_byte_counts():
    image, mask, left = noise(23, 700, 600), rectangle(700, 600, 0, 1, 700, 600), np.ones((700, 600), bool)
    mask[5, 599] = 0
    with np.errstate(all="raise"):
        references = sample_references(image, mask, 2)
    left[:, :4] = left[2:9, 596:] = False  # within reach of the clear pixels
    assert np.array_equal(references[0][left], image[left])
    corner = literal.references(image[:20, :20], mask[:20, :20], 2)
    assert np.array_equal(references[:, :8, :4], corner[:, :8, :4])


@pytest.mark.parametrize("source", ["numpy", *DEVICES])
def test_a_number_that_meets_a_cumulative_weight_draws_the_next_candidate(source):
    image, mask = noise(25, 8, 8), rectangle(8, 8, 3, 0, 5, 8)
    sampler = Sampler(image, mask, K=3, pow=0)  # 2 to 6 equally likely candidates
    ((pixels, cumulative),) = sampler.chunks()
    assert (np.diff(cumulative, axis=0) == 0).any() and (cumulative[-1] == 1).all()
    for uniform in [0, 0.25, 0.5, 0.75, *np.unique(cumulative[cumulative < 1])]:
        places = [np.searchsorted(own, uniform, side="right") for own in cumulative.T]
        expected = image.copy().reshape(-1, 3)
        expected[pixels] = expected[pixels + sampler.shift[places]]
        assert np.array_equal(drawn_by(sampler, source, uniform), expected.reshape(image.shape)), uniform


@pytest.mark.parametrize("source", ["numpy", *DEVICES])
def test_pixels_draw_for_themselves_in_fresh_references_and_alike_in_the_published_ones(source):
    number, mask = np.arange(29 * 29).reshape(29, 29), np.zeros((29, 29), np.uint8)
    image = np.stack([number % 256, number // 256, number * 0], axis=2).astype(np.uint8)
    mask[2::5, 2::5] = 255  # 36 pixels, far apart, with 8 equally likely candidates each
    sampler = Sampler(image, mask, K=3, pow=0)

    def directions(references):  # (N, 36), which neighbour was drawn
        return (references[..., 0] + 256 * references[..., 1].astype(int) - number)[:, mask > 0]

    published = directions(np.stack(list(sampler.references(50))))
    assert (published == published[:, :1]).all() and len(set(published[:, 0])) == 8
    own = directions(fresh(sampler, source, 400, seed=7))
    drawn, shares = np.unique(own, return_counts=True)
    assert len(drawn) == 8 and np.abs(shares / own.size - 1 / 8).max() < 5 * np.sqrt(1 / 8 * 7 / 8 / own.size)
    for one, other in ((own[:, 1:], own[:, :-1]), (own[1:], own[:-1])):  # neighbouring pixels; references in a row
        assert abs(np.mean(one == other) - 1 / 8) < 5 * np.sqrt(1 / 8 * 7 / 8 / one.size)


@pytest.mark.parametrize("source", ["numpy", *DEVICES])
def test_references_follow_from_the_seed_alone_and_leave_the_callers_random_numbers_alone(source):
    image, mask = noise(34, 20, 25), speckled(34, 20, 25)
    sampler, state, torch_state = Sampler(image, mask), np.random.get_state()[1].copy(), torch.get_rng_state()
    many = fresh(sampler, source, 6, seed=2)
    assert many.dtype == np.uint8 and many.shape == (6, 20, 25, 3) and len(np.unique(many, axis=0)) == 6
    assert np.array_equal(many[:3], fresh(sampler, source, 3, seed=2))
    assert not np.array_equal(many, fresh(sampler, source, 6, seed=3))
    sample_references(image, mask, 4)
    assert np.array_equal(np.random.get_state()[1], state) and torch.equal(torch.get_rng_state(), torch_state)


IMAGE, MASK, LAYER = noise(0, 5, 6), speckled(0, 5, 6), np.zeros((5, 6))


@pytest.mark.parametrize("call, mask, parameters, message", [
    (Sampler, MASK.T, {}, r"mask of this image must be an array of uint8 \(5, 6\), not uint8 \(6, 5\)"),
    (Sampler, MASK[..., None], {}, "must be"), (Sampler, MASK > 0, {}, "must be .* not bool"),
    (Sampler, MASK / 255, {}, "must be .* float64"), (Sampler, MASK.tolist(), {}, "must be .* not list"),
    (Sampler, None, {}, "must be .* not NoneType"), (Sampler, np.minimum(MASK, 1), {}, "mask is 0 and 1; multiply it by 255"),
    *[(GuidedSampler, layer, {}, "layer must be") for layer in (
        LAYER.T, LAYER[..., None], LAYER - 1, LAYER * np.nan, LAYER.astype(int), LAYER > 0)],
    *[(sample_references, MASK, {name: value}, name) for name, values in {
        "K": [0], "k": [0, 2, -1], "pow": [-0.1, float("nan"), float("inf"), 12, 1e6], "threshold": [-1, 256],
        "sdr_num": [0]}.items() for value in values]])
def test_masks_layers_and_parameters_without_meaning_are_refused(call, mask, parameters, message):
    with pytest.raises(ValueError, match=message):
        call(IMAGE, mask, **parameters)


def test_the_fused_reference_is_the_mean_in_float64_rounded_to_nearest_and_ties_to_even():
    values = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    brighter = np.minimum(values, 254) + np.uint8(1)
    fused = fuse([values, brighter])  # every mean but the last ends in a half
    assert fused.dtype == np.uint8 and fused[..., 0].ravel()[:6].tolist() == [0, 2, 2, 4, 4, 6]
    assert np.array_equal(fuse(np.stack([values, values, brighter])), values)  # a third more is rounded down
    references = np.stack([noise(seed, 30, 40) for seed in range(50)])
    assert np.array_equal(fuse(iter(references)), np.rint(references.mean(axis=0, dtype=np.float64)))
    assert np.array_equal(fuse(np.full((300, 2, 2, 3), 255, np.uint8)), np.full((2, 2, 3), 255))


def test_references_replace_older_ones_and_a_failure_leaves_those(tmp_path, monkeypatch):
    references, folder = [noise(seed, 8, 9) for seed in range(40)], tmp_path / "sdr/a"
    write_references(references[:12], folder)
    assert np.array_equal(write_references(references[:3], folder), fuse(references[:3]))

    def full_disk(reference, options, scale):
        if reference is last:
            raise OSError(28, "No space left on device")
        return png_bytes(reference, options, scale)

    def out_of_memory():
        yield references[9]
        raise MemoryError

    monkeypatch.setattr(sampling, "png_bytes", full_disk)
    no_space = OSError, "No space"
    for last, ones, (error, words) in ((references[3], references, no_space), (references[39], references, no_space),
                                       (None, out_of_memory(), (MemoryError, None))):
        with pytest.raises(error, match=words):
            write_references(ones, folder)
        assert np.array_equal(read_references(folder), references[:3])
        assert [path.name for path in (tmp_path / "sdr").iterdir()] == ["a"]


def test_the_script_writes_what_the_functions_give(tmp_path):
    place = tmp_path / DATA
    for seed, stem in enumerate("ab"):
        write_png(place / f"input/{stem}.png", noise(seed, 20, 30))
        write_png(place / f"ldgp/{stem}.png", speckled(seed, 20, 30))
    done = stage(SDR, "--sdr_num=4 --seed=9 --K=5 --k=1 --pow=1 --threshold=100", tmp_path)
    assert "2 images, 0 failed" in done.stdout.splitlines()[-1]
    for seed, stem in enumerate("ab"):
        references = literal.references(noise(seed, 20, 30), speckled(seed, 20, 30), 4, 9, K=5, k=1, pow=1, threshold=100)
        assert np.array_equal(read_references(place / "sdr" / stem), references)
        assert np.array_equal(read_image(place / f"sdr(fuse)/{stem}.png"), fuse(references))
    stage(SDR, "--sdr_num=2 --independent", tmp_path)
    own = sample_references(noise(0, 20, 30), speckled(0, 20, 30), 2, independent=True)
    assert np.array_equal(read_references(place / "sdr/a"), own)
