"""Derain photographs of your own: no data set, no folders to lay out.

    python -m utils.derain holiday.jpg photographs/

Beside holiday.jpg it writes holiday_derained.jpg, in the same format, with its EXIF, colour profile and resolution. It does the
same for every photograph in a folder, but not in folders within. What is newer than its photograph is done. What was written
here before is not taken for a photograph.
"""
import os
from pathlib import Path

from ldgp import add_strength_flag, notice
from utils import cli, fast
from utils.image import ImageError, image_files, photograph_bytes, png_bytes, read_photograph
from utils.progress import each_image, warn_unreadable
from utils.results import PhotographResults


def find_photographs(places, derained):
    """Return {result: photograph} of files and folders, but earlier results. Raises ImageError for two results of one name."""
    images, chosen = {}, {}
    for place in map(Path, places):
        if place.is_dir():
            warn_unreadable(place)
        paths = image_files(place, "name another one") if place.is_dir() else [place]  # reading it will say what is missing
        images |= {os.path.abspath(path): path for path in paths}  # so that one that is named twice is done once
    stems = {(path.parent, path.stem) for path in images.values()}
    for path in images.values():
        stem, _, ending = path.stem.rpartition("_")
        ours = ending == "derained" or ending == "rain" and path.suffix == ".png"
        if ours and (path.parent, stem) in stems:  # an earlier result
            continue
        result = derained.path(path)
        if result in chosen:
            raise ImageError(f"{path}: its result would replace that of {chosen[result]}; rename one of them, or do them apart")
        chosen[result] = path
    return chosen


def main(args):
    if args.learn:
        from utils.fast.mistakes import learner, recipe_for  # and torch with it, which takes seconds to load

        device, recipe = cli.device(args.device), recipe_for(args.backbone)
    png = args.format == "png"
    derained = PhotographResults(args.save_path, "{0.stem}_derained" + (".png" if png else "{0.suffix}"), args.overwrite)
    rain = PhotographResults(args.save_path, "{0.stem}_rain.png", args.overwrite)

    def work(path, progress):
        photograph = read_photograph(path)
        network = learner(args.backbone, device, recipe, progress.step, args.strength) if args.learn else None
        if args.learn:
            progress.reset(recipe.steps)
        image, layer = fast.derain(photograph.image, network, args.strength)
        if args.show_rain:
            rain.write(path, png_bytes(layer))
        derained.write(path, photograph_bytes(image, photograph, "PNG" if png else photograph.format))
        return notice(layer)

    results = [derained, rain] if args.show_rain else [derained]
    return each_image(find_photographs(args.photographs, derained), work, results, unread=False)


if __name__ == "__main__":
    parser = cli.Parser(__doc__)
    parser.add_argument("photographs", nargs="+", metavar="PHOTO_OR_FOLDER", help="what to derain")
    parser.add_argument("--save_path", help="a folder for the results (default: beside each photograph)")
    parser.add_argument("--format", default="same", choices=["same", "png"],
                        help="same: as the photograph, JPEG with quality 95; png: without loss")
    parser.add_argument("--show_rain", action="store_true", help="write the rain that was found too, as <photograph>_rain.png")
    parser.add_argument("--learn", action="store_true", help="let a network learn from each photograph as well, which takes "
                        "far longer; what is done already needs --overwrite")
    parser.add_argument("--backbone", default="Unet", choices=["Unet", "ResNet", "DnCNN", "Restormer", "DRSFormer"],
                        help="the network of --learn")
    parser.add_argument("--device", default="auto", help="of --learn: cpu, cuda, cuda:1, ...; auto: a GPU if there is one")
    add_strength_flag(parser)
    parser.add_argument("--overwrite", action="store_true", help="do again what is done")
    cli.start(main, parser)
