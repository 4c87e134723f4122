"""What NSS and guided samples share: fusing references and writing them."""
import numpy as np
import pytest

from utils import sampling
from utils.image import png_bytes
from utils.sampling import fuse, write_references

from conftest import folder_of, noise



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
        kept = folder_of(folder)
        assert len(kept) == 3 and all(np.array_equal(kept[f"{n}.png"], references[n]) for n in range(3))
        assert [path.name for path in (tmp_path / "sdr").iterdir()] == ["a"]
