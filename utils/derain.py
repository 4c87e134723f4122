"""Derain photographs of your own: no data set, no folders to lay out.

    python -m utils.derain holiday.jpg photographs/

Beside holiday.jpg it writes holiday_derained.jpg, in the same format, with its EXIF, colour profile and resolution. It does the
same for every photograph in a folder, but not in folders within. GIF, AVIF, JPEG 2000, PPM and TGA files become PNG files. What
is newer than its photograph is done. What was written here before says so, and is not taken for a photograph. Nothing else is
ever replaced.
"""
import os
import sys
from pathlib import Path

from utils import cli, fast
from ldgp import add_strength_flag, notice
from utils.image import READ_ALONE, ImageError, image_files
from utils.photograph import check_made_here, layer_bytes, mark_of, photograph_bytes, read_photograph
from utils.progress import each_image, warn_unreadable
from utils.results import PhotographResults


class MarkedResults(PhotographResults):
    """Results that say by their mark that they were made here; what does not is not done. Of READ_ALONE they are PNG files."""

    def path(self, image):
        return super().path(image.with_suffix(".png") if image.suffix.lower() in READ_ALONE else image)

    def done(self, image):
        return super().done(image) and mark_of(self.path(image)) is not None


def without_results(paths):
    """Return photographs but those that were made here from another one among them."""
    stems = {(path.parent, path.stem) for path in paths}
    sources = {path: path.stem.removesuffix("_rain").removesuffix("_derained") for path in paths}
    results = {path for path, stem in sources.items() if stem != path.stem and (path.parent, stem) in stems and mark_of(path)}
    return [path for path in paths if path not in results]


def find_photographs(places, derained):
    """Return {result: photograph} of files and folders, but earlier results. Raises ImageError for two results of one name.

    A file that is named is an earlier result if its photograph is named too, as by the shell for *.jpg.
    """
    places, images, chosen = list(map(Path, places)), {}, {}
    for place in filter(Path.is_dir, places):
        warn_unreadable(place)
        images |= {os.path.abspath(path): path for path in without_results(image_files(place, "name another one"))}
    named = [place for place in places if not place.is_dir()]  # reading them will say what is missing
    photographs = without_results(named)
    if len(photographs) < len(set(named)):
        print(f"{Path(sys.argv[0]).name}: {len(set(named)) - len(photographs)} results named beside their photographs are not "
              "derained again; name them alone for that", file=sys.stderr)
    images |= {os.path.abspath(path): path for path in photographs}  # one that is named twice is done once
    for path in images.values():
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
    derained = MarkedResults(args.save_path, "{0.stem}_derained" + (".png" if png else "{0.suffix}"), args.overwrite)
    rain = MarkedResults(args.save_path, "{0.stem}_rain.png", args.overwrite)
    results = [derained, rain] if args.show_rain else [derained]

    def work(path, progress):
        for result in results:
            check_made_here(result.path(path))
        photograph = read_photograph(path)
        network = learner(args.backbone, device, recipe, progress.step, args.strength) if args.learn else None
        if args.learn:
            progress.reset(recipe.steps)
        image, layer = fast.derain(photograph.image, network, args.strength)
        if args.show_rain:
            rain.write(path, layer_bytes(layer))
        derained.write(path, photograph_bytes(image, photograph, "PNG" if png else photograph.format))
        return photograph.notice(notice(layer))

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
