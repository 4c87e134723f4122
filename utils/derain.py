"""Take the rain off photographs of your own: no data set, no folders to lay out.

    python -m utils.derain holiday.jpg photographs/

Beside holiday.jpg it writes holiday_derained.jpg, in the same format, with its EXIF, colour profile and resolution. It does the
same for every photograph in a folder, but not in folders within. What is newer than its photograph is done. What was written
here before is not taken for a photograph.
"""
import os
from pathlib import Path

from ldgp import add_strength_flag, notice
from utils import cli, fast
from utils.fast.own_rain import learner, recipe_for
from utils.image import ImageError, image_files, photograph_bytes, png_bytes, read_photograph, write_bytes
from utils.progress import each_image, warn_unreadable
from utils.results import fcntl, make_folder, up_to_date


class Results:
    """Where the results of photographs go and which are done, by the age of the files: what `each_image` asks for."""

    def __init__(self, folder, show_rain, png, overwrite):
        self.folder, self.show_rain, self.png, self.overwrite = folder, show_rain, png, overwrite

    def derained(self, photograph):
        extension = ".png" if self.png else photograph.suffix
        return Path(self.folder or photograph.parent, f"{photograph.stem}_derained{extension}")

    def rain(self, photograph):
        return Path(self.folder or photograph.parent, f"{photograph.stem}_rain.png")

    def prepare(self, photographs):
        if self.folder:
            make_folder(self.folder, "--save_path")

    def done(self, photograph):
        files = [self.derained(photograph)] + [self.rain(photograph)] * self.show_rain
        return not self.overwrite and all(up_to_date(file, [photograph]) for file in files)

    def claim(self, photograph):
        """Whether no other process is at a photograph: this one locks it until it turns to the next, or ends."""
        try:
            self.lock = open(photograph, "rb")
            if fcntl:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # there is none, which reading it will say; or there are no locks
            pass
        return True


def photographs_in(place):
    """The photographs of a folder; files of kinds that are not read are said in a line."""
    warn_unreadable(place)
    return image_files(place, "name another one")


def find_photographs(places, results):
    """The photographs that files and folders name, {result: photograph}.

    Raises ImageError for a folder without an image, and where two results would get one name.
    """
    # By absolute path, so that one that is named twice is done once. A missing file: reading it will say so.
    found = {os.path.abspath(path): path for place in map(Path, places)
             for path in (photographs_in(place) if place.is_dir() else [place])}
    stems, chosen = {(path.parent, path.stem) for path in found.values()}, {}
    for path in found.values():
        stem, _, ending = path.stem.rpartition("_")
        ours = ending == "derained" or ending == "rain" and path.suffix == ".png"
        if ours and (path.parent, stem) in stems:  # an earlier result
            continue
        result = results.derained(path)
        if result in chosen:
            raise ImageError(f"{path}: its result would replace that of {chosen[result]}; rename one of them, or do them apart")
        chosen[result] = path
    return chosen


def main(args):
    device, recipe = cli.device(args.device), recipe_for(args.backbone)
    results = Results(args.save_path, args.show_rain, args.format == "png", args.overwrite)

    def work(path, progress):
        photograph = read_photograph(path)
        network = None
        if args.learn:
            progress.reset(recipe.steps)
            network = learner(args.backbone, device, recipe, progress.step)
        derained, layer = fast.derain(photograph.image, network, args.strength)
        if args.show_rain:
            write_bytes(results.rain(path), png_bytes(layer))
        kind = "PNG" if args.format == "png" else photograph.format
        write_bytes(results.derained(path), photograph_bytes(derained, photograph, kind))
        return notice(layer)

    return each_image(find_photographs(args.photographs, results), work, [results], unread=False)


if __name__ == "__main__":
    from models import BACKBONES

    parser = cli.Parser(__doc__)
    parser.add_argument("photographs", nargs="+", metavar="PHOTO_OR_FOLDER", help="what to derain")
    parser.add_argument("--save_path", help="a folder for the results (default: beside each photograph)")
    parser.add_argument("--format", default="same", choices=["same", "png"],
                        help="same: as the photograph, JPEG with quality 95; png: without loss")
    parser.add_argument("--show_rain", action="store_true", help="write the rain that was found too, as <photograph>_rain.png")
    parser.add_argument("--learn", action="store_true",
                        help="let a network learn from each photograph as well, which takes far longer; "
                             "what is done already needs --overwrite")
    parser.add_argument("--backbone", default="Unet", choices=list(BACKBONES), help="the network of --learn")
    parser.add_argument("--device", default="auto", help="of --learn: cpu, cuda, cuda:1, ...; auto: a GPU if there is one")
    add_strength_flag(parser)
    parser.add_argument("--overwrite", action="store_true", help="do again what is done")
    cli.start(main, parser)
