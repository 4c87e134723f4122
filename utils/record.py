"""What a run leaves beside its results, so that a later one knows what is done, whole and its own.

A result <folder>/x.png has its record in <folder>/.rain2avoid/x.png, one small JSON file: the stage, the parameters and
versions that decide on its bytes, and the digests of the files that it was made from and of its own. There is one for each
result and none for the run: so processes that share a folder never write the same record with different words, and each
result tells its own story whatever came later. A record is written before its result: a result without one, or of another
digest, was not left there by a run that was killed, and is nobody's to overwrite.
"""
import errno
import hashlib
import importlib
import itertools
import json
import os
import sys
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from utils.image import ImageError, clear_unfinished, one_line, write_bytes

FOLDER = ".rain2avoid"
IMAGES = ("numpy", "cv2", "PIL")  # what reads, computes and writes images
LEARNING = (*IMAGES, "torch")


def digest(data):
    """The digest of bytes; SHA-256 is the fastest of the safe ones where the processor helps, as most do."""
    return hashlib.sha256(data).hexdigest()


def file_digest(path):
    """The digest of a file; None where there is none, and no digest where it cannot be read."""
    try:
        return digest(Path(path).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return str(error.strerror)


def input_digest(path):
    """The digest of a file that has to be there. Raises ImageError where it cannot be read."""
    try:
        return digest(Path(path).read_bytes())
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror})") from None


class Record:
    """The records of a stage's results.

    stage: the script's name. settings: {flag: value} of all that decides on the bytes. results: a function from a
    photograph's path to {name: path} of its result files, or folders of files; the record lies beside the first. sources:
    a function from it to the files that its results are made from. libraries: those whose versions decide on the bytes.
    versions: {name: value} of what else does. overwrite: nothing counts as done, and other runs' results are replaced
    instead of set aside.
    """

    def __init__(self, stage, settings, results, sources, libraries=IMAGES, versions=None, overwrite=False):
        installed = {name: importlib.import_module(name).__version__ for name in libraries}
        about = {"stage": stage, "settings": settings, "versions": {**installed, **(versions or {})}}
        self.about = json.loads(json.dumps(about))  # as it will be read back
        self.results, self.sources, self.overwrite = results, sources, overwrite
        self.made_from, self.ours = {}, {}  # {path: digests}, as found when its turn came
        self.names, self.aside = set(), None

    def place(self, path):
        first = next(iter(self.results(path).values()))
        return first.parent / FOLDER / first.name

    def read(self, path):
        """The record of an image's results; None where there is none, or a damaged one."""
        try:
            found = json.loads(self.place(path).read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        kinds = {"stage": str, "settings": dict, "versions": dict, "made_from": list, "results": dict, "replaces": list}
        whole = isinstance(found, dict) and all(isinstance(found.get(key), kind) for key, kind in kinds.items())
        whole = whole and all(isinstance(value, str) for value in found["results"].values())
        return found if whole and {name.partition("/")[0] for name in found["results"]} == self.results(path).keys() else None

    def fits(self, found):
        """Whether a record is of a run like this one."""
        return found is not None and all(found[key] == value for key, value in self.about.items())

    def prepare(self, paths):
        """Before the first image: make the folders, clear what killed runs left, set aside what other runs made."""
        paths = list(paths)
        for folder in {place.parent for path in paths for place in self.results(path).values()}:
            folder.mkdir(parents=True, exist_ok=True)
            clear_unfinished(folder)
            clear_unfinished(folder / FOLDER)
        self.names = {place.name for path in paths for place in self.results(path).values()}
        if not self.overwrite:
            self.set_aside([path for path in paths if self.is_there(path) and not self.fits(self.read(path))])

    def is_there(self, path):
        return any(os.path.lexists(place) and not (place.is_dir() and not any(place.iterdir()))
                   for place in self.results(path).values())

    def look(self, path):
        """What there is to do for an image: "done", nothing; "changed", all, as its sources are others now; "new", all."""
        self.made_from[path], self.ours[path] = [], []
        try:
            self.made_from[path] = [input_digest(source) for source in self.sources(path)]
        except ImageError:
            return "new"  # doing it will fail as well, and say so; first of all where it is the photograph that is no good
        found = self.read(path)
        if self.overwrite:
            return "new"
        if not self.fits(found):
            if self.is_there(path):  # another run's, from after the start of this one
                self.set_aside([path])
            return "new"
        there = {name: file_digest(self.locate(path, name)) for name in found["results"]}
        if there == found["results"]:
            self.ours[path] = list(there.values())
            return "done" if found["made_from"] == self.made_from[path] else "changed"
        if any(value not in (None, found["results"][name], *found["replaces"]) for name, value in there.items()):
            self.set_aside([path], "edited or damaged since")
        self.ours[path] = [value for value in there.values() if value]
        return "new"

    def locate(self, path, name):
        """The file of a result's name: "fused" is a result, "references/0.png" a file in one."""
        first, _, rest = name.partition("/")
        return self.results(path).get(first, Path(os.devnull)) / rest

    def enter(self, path, results):
        """Write the record of results, {name: digest}, that are about to be moved into place."""
        place = self.place(path)
        if not self.overwrite and self.is_there(path) and not self.fits(self.read(path)):
            self.set_aside([path])
        try:
            place.parent.mkdir(exist_ok=True)
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, "this folder is gone", str(place.parent.parent)) from None
        torch = sys.modules.get("torch")
        entry = {**self.about, "threads": torch.get_num_threads() if torch else None, "made_from": self.made_from[path],
                 "results": results, "replaces": self.ours[path]}
        write_bytes(place, json.dumps(entry, indent=1).encode())

    def write(self, path, data):
        """Write an image's only result, after its record."""
        (name, place), = self.results(path).items()
        self.enter(path, {name: digest(data)})
        write_bytes(place, data)

    def holds(self, path):
        """Whether the results of an image are still there and of this run, by their names and record alone."""
        found = self.read(path)
        return self.fits(found) and all(os.path.lexists(self.locate(path, name)) for name in found["results"])

    def set_aside(self, paths, why=None):
        """Move the results of images, with their records, to a sub-folder earlier-<n> beside them, and say so in one line."""
        said, places = Counter(), []
        for path in paths:
            found, record = self.read(path), self.place(path)
            moved = [self._move(place) for place in self.results(path).values()]
            if any(moved):
                said[why or self.difference(found)] += 1
                places.append(next(filter(None, moved)))
                self._move(record, places[-1].parent / FOLDER)
        if said:
            what = " and ".join(f"{number} result{'s' * (number > 1)} {text}" for text, number in said.most_common(3))
            more = f" and {said.total() - sum(number for _, number in said.most_common(3))} others" if len(said) > 3 else ""
            aside = places[0].parent
            text = f"{self.about['stage']}: {aside.parent}: {what}{more} moved to {aside}"
            tqdm.write(one_line(text), file=sys.stderr)

    def _move(self, place, aside=None):
        """Move a file or folder aside; returns where to, or None where it is not there (any more)."""
        if not os.path.lexists(place):
            return None
        if aside is None:
            taken = self.aside is None or os.path.lexists(place.parent / self.aside / place.name)
            if taken:
                self.aside = new_folder(place.parent, self.names)
            aside = place.parent / self.aside
        aside.mkdir(exist_ok=True)
        try:
            return place.rename(aside / place.name)
        except FileNotFoundError:  # another process did it
            return None

    def difference(self, found):
        """In words, of which other run a record is."""
        if found is None:
            return "without a record"
        if found["stage"] != self.about["stage"]:
            return f"of {found['stage']}"
        words = []
        for part, dashes in (("settings", "--"), ("versions", "")):
            then, now = found[part], self.about[part]
            words += [f"{dashes}{name} {short(then.get(name))}, now {short(now.get(name))}"
                      for name in (*now, *(then.keys() - now.keys())) if then.get(name) != now.get(name)]
        return f"of another run ({'; '.join(words[:3])}{'; ...' * (len(words) > 3)})"


def short(value):
    text = str(value)
    return text if len(text) <= 20 else f"{text[:8]}..."


def new_folder(parent, names=()):
    """Make the first sub-folder earlier-1, earlier-2, ... that is not there and not among `names`; returns its name."""
    for number in itertools.count(1):
        name = f"earlier-{number}"
        if name not in names:
            try:
                (Path(parent) / name).mkdir()
            except FileExistsError:
                continue
            return name
