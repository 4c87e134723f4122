"""Derain a folder of photographs with a network that sdrl_all.py trained.

    python test_all.py --data_path="./dataset/Rain100L/" --model_path="./result_all/Rain100L/model.pkl" \\
        --result_path="./result_all/Rain100L/image/"
"""
import signal
from pathlib import Path

if __name__ == "__main__":  # while libraries load, Ctrl-C ends without a word; `run.start` answers it from then on
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from models import BACKBONES, build
from sdrl_all import load, load_weights
from utils import run
from utils.inference import infer
from utils.image import ImageError, list_images, png_like, read_image, tensor_to_uint8
from utils.record import LEARNING, Record, file_digest


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
    checkpoint = file_digest(args.model_path)  # before it is read: should it change in between, that is noticed next time
    model = load_model(args.model_path, device)
    record = Record("test_all.py", {"tile_size": args.tile_size, "amp": args.amp},
                    lambda path: {"result": result / f"{path.stem}.png"}, lambda path: [path], LEARNING,
                    {"device": device.type, "checkpoint": checkpoint}, args.overwrite)

    def work(path, bar):
        derained = tensor_to_uint8(infer(model, read_image(path), args.tile_size, args.amp))
        record.write(path, png_like(derained, path))

    return run.each_image(images, work, result, record=record)


if __name__ == "__main__":
    parser = run.Parser(__doc__)
    parser.add_argument("--data_path", default="./dataset/Rain100L/", help="a data set; its photographs are in input/")
    parser.add_argument("--model_path", default="./result_all/Rain100L/model.pkl", help="a checkpoint of sdrl_all.py")
    parser.add_argument("--result_path", default="./result_all/Rain100L/image/", help="where the derained photographs go")
    run.add_inference_flags(parser)
    run.add_overwrite_flag(parser)
    run.start(main, parser)
