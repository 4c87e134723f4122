"""Take the rain off photographs of your own: no data set, no folders to lay out.

    python -m utils.derain holiday.jpg photographs/

Beside holiday.jpg it writes holiday_derained.png, and the same for every photograph in a folder, those in folders within left
out. A result that is newer than its photograph counts as done, whatever flags it was made with. What an earlier run wrote
is not taken for a photograph.
"""
import os
import signal
import sys
from pathlib import Path

if __name__ == "__main__":  # while libraries load, Ctrl-C ends without a word; `run.start` answers it from then on
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from models import BACKBONES
from sdrl import recipe_settings
from sdrl_online import derain_photograph
from utils import run
from utils.image import (ImageError, check_results_folder, clear_unfinished, list_images, one_line, png_like, read_image,
                         write_bytes, write_png)

ENDINGS = "_derained.png", "_rain.png"
UNREAD = {".heic", ".heif", ".avif", ".webp", ".gif", ".jp2", ".jxl", ".psd", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf",
          ".rw2", ".raf", ".pef", ".srw"}  # pictures that people have and that `utils.image` does not read


class Results:
    """Where the results of photographs go and which are done, by the times of the files: what `run.each_image` asks for."""

    def __init__(self, folder, show_rain, overwrite):
        self.folder, self.number, self.overwrite = folder, 1 + show_rain, overwrite

    def of(self, path):
        """The files of a photograph's derained version and of its rain, written or not."""
        return [Path(self.folder or path.parent) / (path.stem + ending) for ending in ENDINGS]

    def prepare(self, paths):
        for folder in {self.of(path)[0].parent for path in paths}:
            check_results_folder(folder)
            if self.folder:
                folder.mkdir(parents=True, exist_ok=True)
            clear_unfinished(folder)

    def look(self, path):
        try:
            newer = all(place.stat().st_mtime_ns >= path.stat().st_mtime_ns for place in self.of(path)[: self.number])
        except OSError:  # no result yet; or no photograph, which reading it will say
            return "new"
        return "done" if newer and not self.overwrite else "new"

    def holds(self, path):
        return all(map(os.path.lexists, self.of(path)[: self.number]))


def photographs(places, results):
    """The photographs that files and folders name, {result: [path, ...]}; several for a result are a clash.

    A line names what a folder holds of kinds that are not read. Raises ImageError for a folder without an image.
    """
    found = []
    for place in map(Path, places):
        if not place.is_dir():  # a missing one too: reading it will say so
            found.append(place)
            continue
        unread = [path.name for path in sorted(place.iterdir()) if path.suffix.lower() in UNREAD]
        if unread:
            print(one_line(f"{place}: not read, make JPEG or PNG of them: {', '.join(unread)}"), file=sys.stderr)
        inside = [path for paths in list_images(place, "name another one").values() for path in paths]
        found += [path for path in inside if not path.name.endswith(ENDINGS)]
    found = {os.path.abspath(path): path for path in found}  # one that is named twice is done once
    ours = {os.path.abspath(place) for path in found.values() for place in results.of(path)}
    by_result = {}
    for path in (path for place, path in found.items() if place not in ours):
        by_result.setdefault(os.path.abspath(results.of(path)[0]), []).append(path)
    return by_result


def main(args):
    device, results = run.device(args.device), Results(args.save_path, args.show_rain, args.overwrite)
    steps = recipe_settings("fast", args.backbone)["steps"] if args.learn else 0

    def work(path, bar):
        rainy = read_image(path)
        if steps:
            bar.reset(steps)
        try:
            derained, layer = derain_photograph(rainy, steps, args.backbone, device, report=run.LossLine(bar))
        except ImageError as error:
            raise ImageError(f"{path}: {error}") from None
        if args.show_rain:
            write_png(results.of(path)[1], layer)
        write_bytes(results.of(path)[0], png_like(derained, path))

    found, folder = photographs(args.photographs, results), [args.save_path] if args.save_path else []
    return run.each_image(found, work, *folder, record=results, unit="step" if steps else "image")


if __name__ == "__main__":
    parser = run.Parser(__doc__)
    parser.add_argument("photographs", nargs="+", metavar="PHOTO_OR_FOLDER", help="what to derain")
    parser.add_argument("--save_path", help="a folder for the results (default: beside each photograph)")
    parser.add_argument("--learn", action="store_true",
                        help="let a network learn from each photograph as well, which takes far longer")
    parser.add_argument("--show_rain", action="store_true", help="write the rain that was found too, as <photograph>_rain.png")
    parser.add_argument("--backbone", default="Unet", choices=list(BACKBONES), help="the network of --learn")
    parser.add_argument("--device", default="auto", help="of --learn: cpu, cuda, cuda:1, ...; auto: a GPU if there is one")
    parser.add_argument("--overwrite", action="store_true", help="do again what is done")
    run.start(main, parser)
