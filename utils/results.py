"""Results in folders: which are done, and of which run. Each folder holds a run.json that says how they were made.

As `make` has it, a result is done if it is there and not older than what it was made from. Results of another run are archived:
moved to a sub-folder earlier-1/, earlier-2/, ..., with one line that says so. A folder holds the results of one run.
"""
import contextlib
import itertools
import json
import os
import shutil
import sys
import time
import zlib
from pathlib import Path

from tqdm import tqdm

from utils.image import ImageError, one_line, write_bytes

try:
    import fcntl
except ImportError:  # Windows has no such locks: there, processes on one folder do not share the work
    fcntl = None

RUN = "run.json"


def read_run(folder):
    """Return what the run.json of a folder says; {} where there is none, or a damaged one."""
    try:
        run = json.loads((Path(folder) / RUN).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    whole = isinstance(run, dict) and all(isinstance(run.get(key), dict) for key in ("settings", "made_from", "versions"))
    return run if whole else {}


def check_made_for(folder, images, recipe, stage):
    """Return a hint on how to make what is missing in a folder of masks, layers or references: the command of their stage.

    images: the folder of the photographs. Raises ImageError where what is there is of others, or of the other recipe.
    """
    flags = {"ldgp.py": f'--input_path="{images}" --save_path="{folder}" --recipe={recipe}',
             "sdr.py": f'--recipe={recipe} --input_path="{images}" --ldgp_path="{images.parent / "ldgp"}" '
                       f'--save_path="{folder}" --fuse_save_path="{images.parent / "sdr(fuse)"}"'}
    run, hint = read_run(folder), f"run {stage} first: python {stage} {flags[stage]}"
    made_by = run.get("settings", {}).get("recipe", recipe)  # without run.json it is the user's own, and is believed
    if made_by != recipe:
        raise ImageError(f"{folder}: made with --recipe={made_by}, where --recipe={recipe} needs its own; {hint}")
    source = run.get("made_from", {}).get("input")
    if isinstance(source, str) and os.path.realpath(Path(folder, source)) != os.path.realpath(images):
        raise ImageError(f"{folder}: made from the photographs in {Path(os.path.normpath(Path(folder, source)))}, "
                         f"not from those in {images}; name the folder of these, or {hint}")
    return hint


class PhotographResults:
    """Results of photographs, beside them or in a folder: done if not older than the photograph.

    folder: None for that of each photograph. name: of a result, a format of the photograph's path: "{0.stem}_rain.png".
    """

    def __init__(self, folder, name, overwrite=False, flag="--save_path"):
        self.folder, self.name, self.overwrite, self.flag, self.file = folder and Path(folder), name, overwrite, flag, None
        self.sources = lambda image: [image]

    def path(self, image):
        """Return where the result of a photograph goes."""
        return Path(self.folder or image.parent, self.name.format(image))

    def done(self, image):
        """Return whether the result of a photograph is there and not older than its sources, which are there too."""
        with contextlib.suppress(OSError, ImageError):  # of a source that is missing: doing it will say so
            made, now = os.stat(self.path(image)).st_mtime_ns, time.time_ns()
            changed = [os.stat(source).st_mtime_ns for source in self.sources(image)]
            return not self.overwrite and not any(made < date <= now for date in changed)  # a date in the future tells nothing
        return False

    def prepare(self, images):
        """Make the folder. Raises ImageError for what cannot be one."""
        try:
            Path(self.folder or ".").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ImageError(f"{self.folder}: cannot hold results ({error.strerror}); "
                             f"name another folder with {self.flag}") from None

    def claim(self, image):
        """Lock the photograph until the next one is claimed; returns False where another process is making its result."""
        with contextlib.suppress(OSError):  # of a photograph that is missing; doing it will say so
            self.file = open(image, "rb")
            return lock("flock", self.file)
        return True

    def write(self, image, data):
        """Write the result of a photograph atomically."""
        write_bytes(self.path(image), data)


class Results(PhotographResults):
    """The results of one run in a folder: <stem>.png for each photograph, or with suffix="" a sub-folder <stem>.

    stage: the script's name. settings: {flag: value} of all that decides on the results. made_from: {name: folder or file}
    that they are made from; "input" are the photographs. sources: a function from a photograph's path to the files or
    folders that its result is made from. overwrite: `prepare` deletes what is there. flag: that of the folder.
    Raises ImageError for a folder that holds another part of the data set.
    """

    def __init__(self, stage, folder, settings, made_from, sources=lambda path: [path], suffix=".png", overwrite=False,
                 flag="--result_path"):
        super().__init__(Path(folder), "{0.stem}" + suffix, flag=flag)
        self.sources, self.suffix, self.replace = sources, suffix, overwrite
        place, images = os.path.realpath(folder), Path(os.path.abspath(made_from["input"]))
        for part in [images, *(images.parent / name for name in ("target", "ldgp", "sdr") if f"{name}.py" != stage)]:
            if os.path.realpath(part) == place:
                raise ImageError(f"{self.folder}: results would get among the files of {part.name}/; "
                                 f"name another folder with {flag}")
        libraries = ["numpy", "cv2", "PIL"] + ([] if stage in ("ldgp.py", "sdr.py") else ["torch"])  # that decide on the bytes
        run = {"stage": stage, "settings": settings,
               "versions": {name: sys.modules[name].__version__ for name in libraries},
               # as seen from there, so that a data set can be moved as a whole
               "made_from": {name: os.path.relpath(os.path.realpath(path), place) for name, path in made_from.items()}}
        self.run = json.loads(json.dumps(run))  # as it will be read back

    def prepare(self, images):
        """Make the folder; archive what is another run's or older than its sources, or delete it to overwrite it.

        Raises ImageError for what cannot be such a folder, and where files would be replaced that no run has made.
        """
        super().prepare(images)
        with alone_in(self.folder):
            made = {self.path(image): image for image in images if self.path(image).exists()}
            run = read_run(self.folder)
            if self.replace:
                for path in made:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            elif made and not run:
                raise ImageError(f"{self.folder}: no {RUN} says what made {next(iter(made)).name} and what else is there; "
                                 "name another folder for the results, or replace it with --overwrite")
            elif run and run != self.run:
                others = [path for path in self.folder.iterdir() if not path.name.startswith(".")
                          and (path.suffix == self.suffix if self.suffix else path.is_dir() and not (path / RUN).exists())]
                self.archive(others, f"of another run (differs in {difference(run, self.run)})")
            else:
                older = [path for path, image in made.items() if not self.done(image)]
                self.archive(older, "older than what they were made from")
            if run != self.run:
                write_bytes(self.folder / RUN, json.dumps(self.run, indent=1).encode())

    def archive(self, paths, why):
        """Move results, with a copy of their run.json, to a new sub-folder of theirs, and print a line that says so."""
        if not paths:
            return
        new = next(path for path in (self.folder / f"earlier-{n}" for n in itertools.count(1)) if not path.exists())
        new.mkdir()
        shutil.copyfile(self.folder / RUN, new / RUN)
        for path in paths:
            path.rename(new / path.name)
        tqdm.write(one_line(f"{self.run['stage']}: {self.folder}: {len(paths)} results {why} moved to {new}"), file=sys.stderr)

    def claim(self, image):
        self.file = self.file or open(self.folder / RUN, "r+b")
        return lock("lockf", self.file, 1, zlib.crc32(image.stem.encode(errors="surrogateescape")))  # a byte a photograph


def lock(kind, file, *where):
    """Lock a file, or bytes of it, until it is closed or this process ends; return False where another process has them."""
    if fcntl is None:
        return True
    try:
        getattr(fcntl, kind)(file, fcntl.LOCK_EX | fcntl.LOCK_NB, *where)
    except (BlockingIOError, PermissionError):  # what POSIX lets a lock that is taken answer
        return False
    except OSError:  # a file system without locks: there, processes on one folder do not share the work
        pass
    return True


@contextlib.contextmanager
def alone_in(folder):
    """Hold a folder for this process alone during a block, where the file system has locks."""
    with contextlib.ExitStack() as at_end:
        if fcntl:
            handle = os.open(folder, os.O_RDONLY)
            at_end.callback(os.close, handle)
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def difference(then, now):
    """Return the names of the flags, folders and versions in which two runs differ."""
    old, new = ({"stage": run.get("stage"), **run["settings"], **run["made_from"], **run["versions"]} for run in (then, now))
    return ", ".join(name for name in {**new, **old} if old.get(name) != new.get(name))


def beside(folder, name):
    """Return the path of a folder beside another one, which may be given as . or .."""
    return Path(os.path.normpath(Path(folder, ".."))) / name

