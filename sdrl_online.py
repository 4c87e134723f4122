"""SDRL with references drawn while the network trains: nothing is written to or read from an SDR folder.

    python sdrl_online.py --rainy_data_path="./dataset/Rain100L/" --sdr_data_path="./dataset/Rain100L/sdr/" \\
        --result_path="./dataset/Rain100L/result/" --backbone="Unet"
"""
from pathlib import Path

import torch

from ldgp import rain_mask
from sdr import Sampler, add_nss_flags, nss_options
from sdrl import add_flags, believe, fresh_model, learn, needs_belief, recipe_options
from utils import run
from utils.inference import model_device
from utils.image import ImageError, check_size, list_images, only, read_image, read_mask, uint8_to_tensor, write_like, write_png

# The 50 published draws of NSS vary by this share of what all draws would: with it, certainties are those of sdrl.py.
SHARE = 0.89


def derain_online(model, rainy, mask, epoch=100, steps=0, sdr_num=50, nss=None, seed=3, target="sampled",
                  **options):
    """Train a fresh network on one rainy image against references that it draws itself, a new one in every step.

    model: a network (N, 3, H, W) -> the same in [0, 1], RGB, trained in place. rainy: (H, W, 3) uint8 BGR; mask: (H, W)
    uint8. steps: how many; 0 for epoch * sdr_num, as many as with stored references. nss: parameters of `sdr.Sampler`.
    target: "sampled", a fresh reference a step, or "mean", always the mean of infinitely many. options: as
    `sdrl.learn`'s. Returns (H, W, 3) uint8 BGR. Raises ValueError as `sdr.Sampler`.
    """
    device = model_device(model)
    sampler = Sampler(rainy, mask, **(nss or {}))
    belief = None
    if needs_belief(target, options):
        belief = believe(rainy, sampler.expectation(), SHARE * sampler.variance(), device)
    if target == "sampled":
        sampler, random = sampler.to(device), torch.Generator(device).manual_seed(seed)

    def reference_at(step):
        return belief.mean if target == "mean" else uint8_to_tensor(sampler.fresh(random))

    return learn(model, rainy, reference_at, steps or epoch * sdr_num, belief=belief, seed=seed, **options)


def main(args):
    device, (identity, options) = run.device(args.device), recipe_options(args)
    folder, result = Path(args.rainy_data_path), Path(args.result_path)
    masks_path = Path(args.ldgp_path) if args.ldgp_path else folder / "ldgp"
    images = list_images(folder / "input")
    masks = list_images(masks_path, optional=True)
    run.check_results(images, masks_path)

    def work(path, bar):
        rainy = read_image(path)
        if path.stem in masks:
            mask_path = only(masks[path.stem])
            mask = read_mask(mask_path)
            check_size(mask, mask_path, rainy, path)
        else:
            try:
                mask = rain_mask(rainy)
            except ImageError as error:
                raise ImageError(f"{path}: {error}") from None
            write_png(masks_path / f"{path.stem}.png", mask)
        model = fresh_model(args.backbone, args.seed, device, identity)
        bar.reset(options["steps"] or options["epoch"] * args.sdr_num)
        derained = derain_online(model, rainy, mask, sdr_num=args.sdr_num, nss=nss_options(args),
                                 report=run.LossLine(bar), **options)
        write_like(result / f"{path.stem}.png", derained, path)

    return run.each_image(images, work, result, unit="step")


if __name__ == "__main__":
    parser = add_flags(run.Parser(__doc__))
    parser.add_argument("--ldgp_path", help="rain masks; missing ones are made here (default: ldgp/ of the data set)")
    add_nss_flags(parser)
    run.start(main, parser)
