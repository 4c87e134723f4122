"""SDRL with references drawn while the network trains: nothing is written to or read from an SDR folder.

    python sdrl_online.py --rainy_data_path="./dataset/Rain100L/" --sdr_data_path="./dataset/Rain100L/sdr/" \\
        --result_path="./dataset/Rain100L/result/" --backbone="Unet"
"""
import signal
from pathlib import Path

if __name__ == "__main__":  # while libraries load, Ctrl-C ends without a word; `run.start` answers it from then on
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import torch

from ldgp import find_rain, layer_png, mask_record, rain_layer, rain_mask
from sdr import Sampler, ScaledSampler, add_nss_flags, nss_options
from sdrl import (add_flags, derain_by_own_rain, fast_options, fresh_model, learn_references, recipe_options, recipe_settings,
                  result_record)
from utils import run
from utils.inference import model_device
from utils.image import (LAYER, ImageError, check_note, check_size, list_images, only, png_bytes, png_like, read_image,
                         read_mask)


def derain_online(model, rainy, mask, epoch=100, steps=0, sdr_num=50, nss=None, seed=3, **options):
    """Train a fresh network on one rainy image against references that it draws itself, a new one in every step.

    model: a network (N, 3, H, W) -> the same in [0, 1], RGB, trained in place. rainy: (H, W, 3) uint8 BGR; mask: (H, W)
    uint8. steps: how many; 0 for epoch * sdr_num, as many as with stored references. nss: parameters of `sdr.Sampler`.
    options: as `sdrl.learn_references`'. Returns (H, W, 3) uint8 BGR. Raises ValueError as `sdr.Sampler`.
    """
    device = model_device(model)
    references = fresh_references(Sampler(rainy, mask, **(nss or {})), torch.Generator(device).manual_seed(seed))
    return learn_references(model, rainy, lambda step: next(references), steps or epoch * sdr_num, seed=seed, **options)


def fresh_references(sampler, random):
    """Yield SDRs without end, tensors (H, W, 3) uint8, in which every pixel draws for itself by the weights of NSS.

    sampler: an `sdr.Sampler`. random: a torch.Generator, on whose device all is held and drawn.
    """
    def there(array):
        return torch.from_numpy(array).to(random.device)

    flat, shift = there(sampler.flat), there(sampler.shift)
    chunks = [(there(pixels), there(cumulative)) for pixels, cumulative in sampler.chunks()]
    while True:
        reference = flat.clone()
        for pixels, cumulative in chunks:
            uniforms = torch.rand(len(pixels), dtype=torch.float64, device=random.device, generator=random)
            place = (cumulative <= uniforms).sum(dim=0)
            reference[pixels] = flat[pixels + shift[place]]
        yield reference.reshape(sampler.image.shape)


def derain_photograph(rainy, steps=0, backbone="Unet", device="cpu", seed=3, report=None):
    """The fast recipe on an array: rain layer, exact mean of the guided samples, and learning from self-made rain.

    rainy: (H, W, 3) uint8 BGR. steps: of learning; 0: none, which takes about a second; None: as many as the recipe says.
    report: called with each step's loss. Returns (derained (H, W, 3) uint8 BGR, rain layer (H, W) uint8).
    """
    scale, direction = find_rain(rainy)
    layer = rain_layer(rainy, direction, scale)
    fused, chosen = ScaledSampler(rainy, layer, scale).fused(), recipe_settings("fast", backbone)
    steps = chosen["steps"] if steps is None else steps
    if not steps:
        return fused, layer
    model = fresh_model(backbone, seed, device, chosen.pop("identity"))
    options = fast_options({**chosen, "steps": steps, "seed": seed})
    return derain_by_own_rain(model, rainy, fused, scale=scale, report=report, **options), layer


def main(args):
    device, (identity, options) = run.device(args.device), recipe_options(args)
    folder, result, fast = Path(args.rainy_data_path), Path(args.result_path), args.recipe == "fast"
    masks_path = Path(args.ldgp_path) if args.ldgp_path else folder / "ldgp"
    images = list_images(folder / "input")
    run.check_results(images, masks_path)
    masks = mask_record(masks_path, recipe=args.recipe)
    hint = (f'run ldgp.py first: python ldgp.py{" --recipe=fast" if fast else ""} --input_path="{folder / "input"}" '
            f'--save_path="{masks_path}"')

    def scale_of(mask_path):
        """The scale of a rain layer. Raises ImageError for a mask where a layer is needed, and the reverse."""
        return check_note(mask_path, LAYER if fast else "", hint)

    def mask_of(path):
        """The file of a photograph's mask or layer, made now if there is none."""
        found = list_images(masks_path, optional=True).get(path.stem)
        if found:
            return only(found)
        masks.look(path)
        try:
            image = read_image(path)
            data = layer_png(image)[1] if fast else png_bytes(rain_mask(image))
        except ImageError as error:
            raise ImageError(f"{path}: {error}") from None
        masks_path.mkdir(parents=True, exist_ok=True)
        masks.write(path, data)
        return masks.results(path)["mask"]

    present = list_images(masks_path, optional=True)
    first = next((present[stem][0] for stem in images if stem in present), None)
    if first:
        scale_of(first)  # masks of the other recipe are most likely all so: a line for the run
    more = {} if fast else {"sdr_num": args.sdr_num, **nss_options(args)}
    record = result_record("sdrl_online.py", args, device, lambda path: (path, mask_of(path)), **more)

    def work(path, bar):
        rainy, mask_path = read_image(path), mask_of(path)
        mask, scale = read_mask(mask_path), scale_of(mask_path)
        check_size(mask, mask_path, rainy, path)
        model, report = fresh_model(args.backbone, args.seed, device, identity), run.LossLine(bar)
        if fast:
            bar.reset(options["steps"])
            fused = ScaledSampler(rainy, mask, scale).fused()
            derained = derain_by_own_rain(model, rainy, fused, scale=scale, report=report, **fast_options(options))
        else:
            bar.reset(options["steps"] or options["epoch"] * args.sdr_num)
            derained = derain_online(model, rainy, mask, sdr_num=args.sdr_num, nss=nss_options(args), report=report, **options)
        record.write(path, png_like(derained, path))

    return run.each_image(images, work, result, record=record, unit="step")


if __name__ == "__main__":
    parser = add_flags(run.Parser(__doc__))
    parser.add_argument("--ldgp_path", help="rain masks, or layers with --recipe=fast; missing ones are made here "
                                            "(default: ldgp/ of the data set)")
    add_nss_flags(parser)
    run.start(main, parser)
