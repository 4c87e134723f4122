"""Learning from self-made rain: of one photograph and of a data set."""
import cv2
import numpy as np
import pytest
import torch

from models import BACKBONES
from utils import fast
from utils.fast.own_rain import FAST, OwnRain, learner, self_made_rain
from utils.image import png_bytes, read_image
from utils.metrics import psnr

from conftest import ROOT, photograph



@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_learns_to_take_off_its_own_rain(backbone):
    """On odd sides, to take off the same light of each channel, and to put none on."""
    rainy, fused = by_own_rain(21, 33)
    taken = rainy.astype(int) - learn(rainy, fused, backbone=backbone)
    assert taken.shape == rainy.shape and (taken == taken[..., :1]).all() and (taken >= 0).all() and taken.max() > 10


def learn(rainy, fused, backbone="Unet", scale=1, **options):
    recipe = FAST._replace(**{"steps": 2, "batch_size": 1, **options})
    return fast.derain_by_learning(rainy, fused, learner(backbone, recipe=recipe), scale)


def by_own_rain(height=37, width=53):
    """A photograph of middling levels, and the photograph without what guided samples might take off."""
    rainy = photograph(height, width, 1) // 2 + 80
    fused = rainy - np.where((np.arange(width) + np.arange(height)[:, None]) % 9 < 2, 30, 0).astype(np.float32)[..., None]
    return rainy, fused


def test_a_data_set_is_learnt_at_the_scale_at_which_rain_is_thin(tmp_path):
    scenes = {}
    for scale in (1, 4):
        for part in ("input", "target"):
            image = read_image(ROOT / f"dataset/Demo/{part}/astronaut.png")
            large = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
            path = tmp_path / f"{scale}/{part}.png"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(png_bytes(large, scale=scale))
        pairs = [(tmp_path / f"{scale}/input.png", [tmp_path / f"{scale}/target.png"])]
        scenes[scale], rain = OwnRain(pairs, 64, 3, 1).read_pair(0)
        assert rain.shape[:2] == scenes[scale].shape[:2] == (240, 320) and rain.mean() > 3
    assert psnr(scenes[1], scenes[4]) > 30


def test_own_rain_is_light_added_to_the_scene():
    """In batches of windows no larger than the scene, the same light in all channels, from elsewhere, up to white."""
    scene, rain = torch.rand(1, 3, 40, 56), torch.zeros(40, 56)
    rain[::3, ::5], rain[1::3, ::5] = 0.4, 2 / 255  # the second is too faint

    def draw(**options):
        return next(self_made_rain(scene, rain, FAST._replace(**options)))

    x, y = draw(crop_size=24, batch_size=3)
    assert y.shape == (3, 3, 24, 24) and draw()[0].shape == (2, 3, 40, 56)  # which is smaller than a square of 64
    assert torch.equal(x, draw(crop_size=24, batch_size=3)[0])
    assert not torch.equal(x, draw(crop_size=24, batch_size=3, seed=4)[0])
    factors = set()
    for x, y in ((x, y), draw(), draw(crop_size=0)):
        assert x.shape == y.shape and (x >= y).all() and x.max() <= 1
        added = (x - y)[x.amax(dim=1, keepdim=True).expand_as(x) < 1]
        factors |= set((added[added > 1e-6] / 0.4).numpy().round(3))
    assert all(0.59 < factor < 3.01 for factor in factors) and len(factors) > 3
    windows = scene.unfold(2, 24, 1).unfold(3, 24, 1)[0].permute(1, 2, 0, 3, 4).flatten(0, 1)
    assert all((windows == square).flatten(1).all(dim=1).any() for square in draw(crop_size=24, batch_size=3)[1])
    for streaks, layers in ((1, 4), (16, 1)):  # sparse rain is laid over itself
        rain = torch.zeros(32, 32)
        rain[:, :streaks] = 0.1  # a mean of 0.8 or 12.75 grey levels
        pairs = self_made_rain(torch.zeros(1, 3, 32, 32), rain, FAST._replace(crop_size=32, batch_size=1))
        batches = torch.cat([next(pairs)[0] for _ in range(50)])
        assert abs(float(batches.mean() / rain.mean()) / layers - 1.05) < 0.1  # 1.05: the mean of the factors
        assert layers > 1 or 10 < (batches[:, 0, 0, 0] > 0).sum() < 40  # half of the rain is turned


def test_learning_is_repeatable_and_left_out_with_no_steps():
    rainy, fused = by_own_rain()
    fused[3, 4] = 100.4, 99.5, 98.6
    assert np.array_equal(learn(rainy, fused, steps=0), np.rint(fused))
    once = learn(rainy, fused, steps=3)
    assert np.array_equal(once, learn(rainy, fused, steps=3)) and not np.array_equal(once, learn(rainy, fused, steps=3, seed=4))
    with pytest.raises(ValueError, match="does not belong"):
        learn(rainy, fused[1:])
    rainy, fused = by_own_rain()  # a network that takes nothing off has learnt nothing, and is not asked
    assert np.array_equal(learn(rainy, fused, lr=0), fused)
    rainy = np.full((40, 40, 3), (255, 200, 180), np.uint8)  # of which one channel was cut off: it keeps its own light
    fused = rainy.astype(np.float32) - (10, 30, 30)
    assert np.array_equal(learn(rainy, fused, lr=0), fused)


def test_a_large_photograph_keeps_its_details():
    """Learnt at half the size, the light is enlarged: what is finer than that stays as it is."""
    rainy, fused = (np.kron(image, np.ones((2, 2, 1), image.dtype)) for image in by_own_rain())
    checks = np.where(np.indices(rainy.shape[:2]).sum(axis=0) % 2, 20, -20)[..., None]  # of no mean in 2x2 pixels
    rainy, fused = (rainy + checks).astype(np.uint8), (fused + checks).astype(np.float32)
    taken = rainy.astype(int) - learn(rainy, fused, scale=2)
    assert (taken == taken[..., :1]).all() and taken.min() >= 0 and taken.max() > 10
    assert abs(np.diff(taken[..., 0])).max() < 20  # without a trace of the checks
