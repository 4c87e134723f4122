"""SDRL with references drawn while the network trains: nothing is written but results. Missing masks are made in passing.

    python sdrl_online.py --rainy_data_path="./dataset/Rain100L/" --sdr_data_path="./dataset/Rain100L/sdr/" \\
        --result_path="./dataset/Rain100L/result/" --backbone="Unet"
"""
from itertools import islice
from pathlib import Path

import utils  # noqa: F401  before torch: how its threads wait
import torch

from ldgp import find_rain, notice
from sdr import add_nss_flags, nss_options, sampler_for
from sdrl import add_flags, learn_references, recipe_of
from utils import cli, fast
from utils.fast import mistakes
from utils.image import check_size, list_images, read_mask, read_scale
from utils.photograph import photograph_bytes, read_photograph
from utils.progress import each_image
from utils.results import Results, check_made_for, read_run
from utils.training import fresh_model


def fresh_references(sampler, random):
    """Yield SDRs of a `Sampler` without end, (H, W, 3) uint8 on a torch.Generator's device; every pixel draws for itself."""
    flat, shift = (torch.as_tensor(array, device=random.device) for array in (sampler.flat, sampler.shift))
    chunks = [[torch.as_tensor(array, device=random.device) for array in chunk] for chunk in sampler.chunks()]
    while True:
        reference = flat.clone()
        for pixels, cumulative in chunks:
            uniforms = torch.rand(len(pixels), dtype=torch.float64, device=random.device, generator=random)
            place = (cumulative <= uniforms).sum(dim=0)
            reference[pixels] = flat[pixels + shift[place]]
        yield reference.reshape(sampler.image.shape)


def main(args):
    device, recipe, data = cli.device(args.device), recipe_of(args), Path(args.rainy_data_path)
    source, masks_path, paper = data / "input", Path(args.ldgp_path or data / "ldgp"), args.recipe == "paper"
    images = list_images(source, "put the photographs there, or name their data set with --rainy_data_path")
    check_made_for(masks_path, source, args.recipe, "ldgp.py")
    masks = list_images(masks_path, optional=True)
    run_of_masks = read_run(masks_path)  # missing ones are made as the others were
    how = run_of_masks["settings"] if run_of_masks.get("stage") == "ldgp.py" else {"recipe": args.recipe}
    settings = {"recipe": args.recipe, "backbone": args.backbone, "device": device.type, **recipe._asdict()}
    settings.update({"sdr_num": args.sdr_num, **nss_options(args)} if paper else {})
    results = Results("sdrl_online.py", args.result_path or data / "result", settings, {"input": source, "ldgp": masks_path},
                      lambda path: [path, masks.get(path.stem, path)], overwrite=args.overwrite)

    def mask_of(path, rainy):
        """Return a photograph's mask or layer and its scale, made now if there is none."""
        if path.stem not in masks:
            return find_rain(path, rainy, **how)
        mask = read_mask(masks[path.stem])
        check_size(mask, masks[path.stem], rainy, path)
        return mask, read_scale(masks[path.stem])

    def work(path, progress):
        photograph = read_photograph(path)
        rainy, steps = photograph.image, recipe.steps or recipe.epoch * args.sdr_num  # as many as with stored references
        mask, scale = mask_of(path, rainy)
        progress.reset(steps)
        if not paper:
            learner = mistakes.learner(args.backbone, device, recipe, progress.step, how.get("strength", 1.0))
            derained, _ = fast.derain(rainy, learner, layer=mask, scale=scale)
        else:
            sampler = sampler_for(rainy, mask, masks.get(path.stem, path), args)
            model = fresh_model(args.backbone, device, recipe)
            references = fresh_references(sampler, torch.Generator(device).manual_seed(recipe.seed))
            derained = learn_references(model, rainy, islice(references, steps), recipe, progress.step)
        results.write(path, photograph_bytes(derained, photograph))
        return photograph.notice(notice(mask))

    return each_image(images, work, [results])


if __name__ == "__main__":
    parser = add_flags(cli.Parser(__doc__))
    parser.add_argument("--ldgp_path", help="masks or layers; missing ones are made here (default: ldgp/ of the data set)")
    add_nss_flags(parser)
    cli.start(main, parser)
