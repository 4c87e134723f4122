"""Derain a folder of photographs with a network that sdrl_all.py trained.

    python test_all.py --data_path="./dataset/Rain100L/" --model_path="./result_all/Rain100L/model.pkl" \\
        --result_path="./result_all/Rain100L/image/"
"""
import os
from pathlib import Path

from sdrl import PAPER
from utils import cli, fast
from utils.checkpoint import load_model
from utils.fast.mistakes import corrector
from utils.image import list_images, tensor_to_uint8
from utils.inference import infer
from utils.photograph import photograph_bytes, read_photograph
from utils.progress import each_image
from utils.results import Results


def derain_with(model, rainy, name="paper", recipe=PAPER):
    """Derain a photograph, (H, W, 3) uint8 BGR, with a network that a whole data set trained; returns the same.

    name: of the recipe. In the fast one the network corrects what the rain layer and the guided samples find.
    """
    if name == "paper":
        return tensor_to_uint8(infer(model, rainy, recipe.tile_size, recipe.amp))
    return fast.derain(rainy, corrector(model, recipe))[0]


def derain_images(images, model, name, recipe, results, failed=0):
    """Derain photographs, {stem: path}, by `derain_with`, here and in sdrl_all.py; return the exit code of `each_image`."""
    def work(path, progress):
        photograph = read_photograph(path)
        results.write(path, photograph_bytes(derain_with(model, photograph.image, name, recipe), photograph))
        return photograph.notice()

    return each_image(images, work, [results], failed)


def main(args):
    device, source = cli.device(args.device), Path(args.data_path) / "input"
    trained = Path("./result_all") / Path(os.path.abspath(args.data_path)).name
    model_path = Path(args.model_path or trained / "model.pkl")
    images = list_images(source, "put the photographs there, or name their data set with --data_path")
    model, name = load_model(model_path, device)
    recipe = PAPER._replace(tile_size=args.tile_size, amp=args.amp)
    settings = {"device": device.type, "tile_size": args.tile_size, "amp": args.amp}
    results = Results("test_all.py", args.result_path or trained / "image", settings, {"input": source, "network": model_path},
                      lambda path: (path, model_path), overwrite=args.overwrite)
    return derain_images(images, model, name, recipe, results)


if __name__ == "__main__":
    parser = cli.Parser(__doc__)
    parser.add_argument("--data_path", default="./dataset/Rain100L/", help="a data set; its photographs are in input/")
    parser.add_argument("--model_path", help="a checkpoint of sdrl_all.py (default: ./result_all/<data set>/model.pkl)")
    parser.add_argument("--result_path", help="where the derained photographs go (default: ./result_all/<data set>/image/)")
    cli.add_inference_flags(parser)
    cli.add_overwrite_flag(parser)
    cli.start(main, parser)
