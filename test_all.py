"""Derain a folder of photographs with a network that sdrl_all.py trained.

    python test_all.py --data_path="./dataset/Rain100L/" --model_path="./result_all/Rain100L/model.pkl" \\
        --result_path="./result_all/Rain100L/image/"
"""
from pathlib import Path

from models import BACKBONES, build
from sdrl_all import load, load_weights
from utils import run
from utils.inference import infer
from utils.image import ImageError, list_images, read_image, tensor_to_uint8, write_like


def load_model(path, device):
    """The network of a checkpoint, rebuilt as the checkpoint says; one that says nothing holds a Unet (the authors' format).

    Raises ImageError for a file that is no checkpoint or holds something else.
    """
    content = load(path, device)
    backbone = content.get("backbone", "Unet")
    if not isinstance(backbone, str) or backbone not in BACKBONES:
        name = repr(backbone[:50]) if isinstance(backbone, str) else f"of type {type(backbone).__name__}"
        raise ImageError(f"{path}: holds an unknown backbone {name} (known: {', '.join(BACKBONES)})")
    model = build(backbone, residual=content.get("identity", False) is True)
    load_weights(model, content["model"], path, backbone)
    return model.to(device)


def main(args):
    device = run.device(args.device)
    images, result = list_images(Path(args.data_path) / "input"), Path(args.result_path)
    model = load_model(args.model_path, device)

    def work(path, bar):
        derained = tensor_to_uint8(infer(model, read_image(path), args.tile_size, args.amp))
        write_like(result / f"{path.stem}.png", derained, path)

    return run.each_image(images, work, result)


if __name__ == "__main__":
    parser = run.Parser(__doc__)
    parser.add_argument("--data_path", default="./dataset/Rain100L/", help="a data set; its photographs are in input/")
    parser.add_argument("--model_path", default="./result_all/Rain100L/model.pkl", help="a checkpoint of sdrl_all.py")
    parser.add_argument("--result_path", default="./result_all/Rain100L/image/", help="where the derained photographs go")
    run.add_inference_flags(parser)
    run.start(main, parser)
