"""SDRL with references drawn while the network trains: nothing is written to or read from an SDR folder.

    python sdrl_online.py --rainy_data_path="./dataset/Rain100L/" --sdr_data_path="./dataset/Rain100L/sdr/" \\
        --result_path="./dataset/Rain100L/result/" --backbone="Unet"
"""
import signal
from pathlib import Path

if __name__ == "__main__":  # while libraries load, Ctrl-C ends without a word; `run.start` answers it from then on
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import torch

from ldgp import mask_record, rain_mask
from sdr import Sampler, add_nss_flags, nss_options
from sdrl import add_flags, believe, fresh_model, learn, needs_belief, recipe_options, result_record
from utils import run
from utils.inference import model_device
from utils.image import ImageError, check_size, list_images, only, png_bytes, png_like, read_image, read_mask, uint8_to_tensor

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
    run.check_results(images, masks_path)
    masks = mask_record(masks_path)

    def mask_of(path):
        """The file of a photograph's mask, made now if there is none."""
        found = list_images(masks_path, optional=True).get(path.stem)
        if found:
            return only(found)
        masks.look(path)
        try:
            mask = rain_mask(read_image(path))
        except ImageError as error:
            raise ImageError(f"{path}: {error}") from None
        masks_path.mkdir(parents=True, exist_ok=True)
        masks.write(path, png_bytes(mask))
        return masks.results(path)["mask"]

    record = result_record("sdrl_online.py", args, device, lambda path: (path, mask_of(path)), sdr_num=args.sdr_num,
                           **nss_options(args))

    def work(path, bar):
        rainy, mask_path = read_image(path), mask_of(path)
        mask = read_mask(mask_path)
        check_size(mask, mask_path, rainy, path)
        model = fresh_model(args.backbone, args.seed, device, identity)
        bar.reset(options["steps"] or options["epoch"] * args.sdr_num)
        derained = derain_online(model, rainy, mask, sdr_num=args.sdr_num, nss=nss_options(args),
                                 report=run.LossLine(bar), **options)
        record.write(path, png_like(derained, path))

    return run.each_image(images, work, result, record=record, unit="step")


if __name__ == "__main__":
    parser = add_flags(run.Parser(__doc__))
    parser.add_argument("--ldgp_path", help="rain masks; missing ones are made here (default: ldgp/ of the data set)")
    add_nss_flags(parser)
    run.start(main, parser)
