"""What the command lines share: flags that explain themselves, progress, failures, torchrun, the last line."""
import argparse
import errno
import os
import signal
import sys
import textwrap
import time
import traceback
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from utils.image import ImageError, one_line, unread_images


class Parser(argparse.ArgumentParser):
    """A parser made from a script's docstring: it shows every default and answers a mistake with one line."""

    def __init__(self, description):
        super().__init__(description=description, formatter_class=HelpFormatter, allow_abbrev=False)

    def parse_args(self, *arguments):
        args = super().parse_args(*arguments)
        for action in self._actions:
            if action.nargs is None and getattr(args, action.dest, None) == []:  # argparse before Python 3.13: --name=--
                self.error(f"argument --{action.dest}: expected one argument")
        return args

    def error(self, message):
        self.exit(2, f"{self.prog}: {one_line(message)} (see --help)\n")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Prose filled to the terminal's width, indented commands left whole for pasting, the default behind each flag."""

    def _fill_text(self, text, width, indent):
        paragraphs = text.strip().split("\n\n")
        return "\n\n".join(part if part.startswith(" ") else textwrap.fill(part, width) for part in paragraphs)

    def _get_help_string(self, action):
        return action.help if action.default is None else super()._get_help_string(action)


def number(kind, low, high=float("inf"), odd=False):
    """An argparse type: an int or a float from `low` to `high`, odd if asked."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high or value == float("inf") or odd and value % 2 == 0:
            bounds = f"at least {low}" if high == float("inf") else f"from {low} to {high}"
            name = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {name} {bounds}{' and odd' if odd else ''}")
        return value

    return parse


def add_overwrite_flag(parser):
    parser.add_argument("--overwrite", action="store_true",
                        help="redo what is done, and replace other runs' results instead of moving them to earlier-1/")


def add_learning_flags(parser):
    from models import BACKBONES

    parser.add_argument("--backbone", default="Unet", choices=list(BACKBONES), help="network to train")
    parser.add_argument("--seed", type=number(int, 0, 2**32 - 1), default=3,
                        help="of weights and draws; set anew for every image")
    add_inference_flags(parser)


def add_inference_flags(parser):
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...; auto: a GPU if there is one")
    parser.add_argument("--amp", action="store_true", help="mixed precision: faster on a GPU, not the same digits")
    parser.add_argument("--tile_size", type=number(int, 256), default=1024,
                        help="pixels a side from which on a photograph is derained in tiles that overlap")


def start(main, parser):
    """Parse, run `main(args)` and leave with its exit code; an error of files or folders becomes one line and exit code 1."""
    args = parser.parse_args()
    again = "; what is written is whole, and the same command goes on from there" if hasattr(args, "overwrite") else ""
    signal.signal(signal.SIGTERM, stop)
    try:
        code = main(args)
        leave_ranks()
        sys.exit(code)
    except ImageError as error:
        sys.exit(f"{parser.prog}: {error}")
    except OSError as error:
        sys.exit(f"{parser.prog}: {one_line(f'{error.filename}: {error.strerror}' if error.filename else error)}{again}")
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        sys.exit(f"{parser.prog}: out of memory; try a smaller --crop_size or another backbone")
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            print(f"{parser.prog}: stopped{again}", file=sys.stderr)
        sys.exit(130)


def stop(*_):
    """What systems ask a process to end by is a Ctrl-C, also for those in the background, whose shell has them ignore that."""
    raise KeyboardInterrupt


def each_image(images, work, results=(), unit="image", failed=0, unread=True):
    """Call work(path, progress) for every photograph whose results are not done, go on after a failure, end with one line.

    images: {stem: path} of `list_images`. results: `utils.results.Results`, or what has their folder, prepare, done and
    claim. unit: of the progress that is shown, "image" or "step". failed: how many failed before. unread: whether to name
    what lies beside the photographs and is not read. What work returns, if anything, is counted in the last line.
    Under torchrun the photographs are dealt out to the processes.
    Returns the exit code: 0, or 1 where a photograph failed. Raises ImageError for a folder that cannot take results, and
    OSError where one no longer can.
    """
    name, (rank, world) = Path(sys.argv[0]).name, ranks()
    folders = [result.folder for result in results if result.folder]
    if rank == 0:
        tell_unread(name, {path.parent for path in images.values()} if unread else ())
        for result in results:
            result.prepare(images.values())
    wait_for_ranks()
    mine = list(images.values())[rank::world]
    todo = [path for path in mine if not (results and all(result.done(path) for result in results))]
    counts, remarks, seconds = Counter(before=len(mine) - len(todo), failed=failed * (rank == 0)), Counter(), 0.0
    progress = Progress(name, len(todo), unit, shown=rank == 0)
    for path in todo:
        if results and not (results[0].claim(path) and not all(result.done(path) for result in results)):
            counts["elsewhere"] += 1
            continue
        began = time.perf_counter()
        progress.begin(path)
        try:
            remark = work(path, progress)
        except Exception as error:  # one bad image must not stop the others: it is reported, counted, and exits non-zero
            if isinstance(error, OSError) and error.errno not in (None, errno.ENAMETOOLONG):
                raise  # the next image would meet the same
            counts["failed"] += 1
            tqdm.write(f"{name}: failed: {one_line(reason(path, error))}", file=sys.stderr)
        else:
            counts["done"] += 1
            remarks.update([remark] if remark else [])
            seconds += time.perf_counter() - began
            progress.end(remark)
    progress.close()
    counts, remarks, seconds = (sum(parts, type(parts[0])()) for parts in zip(*gather((counts, remarks, seconds))))
    if rank == 0:
        average = f"{seconds / counts['done']:.2f} s an image" if counts["done"] else "nothing done"
        average += " (--overwrite does it again)" if counts["before"] and not counts["done"] and not counts["failed"] else ""
        notes = "".join(f"{counts[key]} {text}, " for key, text in
                        (("before", "done before"), ("elsewhere", "left to another process")) if counts[key])
        where = f"in {one_line(' and '.join(map(str, folders)))}" if folders else "beside them"
        said = "".join(f"; {number} of {counts['done']} photographs: {remark}" for remark, number in remarks.items())
        print(f"{name}: {counts.total()} images, {counts['failed']} failed, {notes}{average}, results {where}{said}")
    return 1 if counts["failed"] else 0


class Progress:
    """On a terminal a bar, over the photographs or over the steps of each; elsewhere lines.

    The lines are one for each photograph that is done, and within long ones one every half minute.
    """

    def __init__(self, name, number, unit, shown=True):
        self.name, self.number, self.unit, self.shown, self.count = name, number, unit, shown, 0
        self.lines, total = shown and not sys.stderr.isatty(), number if unit == "image" else None
        self.bar = tqdm(total=total, unit=unit, dynamic_ncols=True, disable=self.lines or not shown)

    def begin(self, path):
        self.path, self.count, self.began, self.steps, self.total = path, self.count + 1, time.perf_counter(), 0, 0
        self.said = self.looked = self.began
        count = f" ({self.count} of {self.number})" if self.unit != "image" else ""
        self.bar.set_description(f"{self.name} {one_line(path.name)}{count}")

    def reset(self, total, faster="", done=0):
        """How many steps this photograph takes, and how many of them are done.

        faster: what to do instead, which is said where all photographs would take more than an hour.
        """
        self.total, self.faster, self.steps = total, faster if self.count == 1 else "", done
        self.bar.reset(total)
        self.bar.update(done)

    def step(self, loss):
        """A step is done. loss: a tensor or number, looked at four times a second, since a GPU has to wait for that."""
        self.steps += 1
        self.bar.update()
        now = time.perf_counter()
        if self.steps == 1:
            self.first = now
        if self.steps == 4 and self.faster and self.shown:
            hours = (now - self.first) / 3 * self.total * self.number / 3600
            if hours > 1:
                text = f"{self.name}: about {hours:.0f} hours for {self.number} photographs; {self.faster}"
                tqdm.write(text, file=sys.stderr)
        if self.shown and now - self.looked > 0.25:
            self.looked = now
            self.bar.set_postfix_str(f"loss {float(loss):.2e}", refresh=False)
            if self.lines and now - self.said > 30:
                self.said = now
                self.say(f"{self.unit} {self.steps} of {self.total}, loss {float(loss):.2e}")

    def end(self, remark):
        if self.unit == "image":
            self.bar.update()
        if self.lines:
            self.say(f"{time.perf_counter() - self.began:.2f} s{f', {remark}' if remark else ''}")

    def say(self, text):
        print(f"{self.name}: {one_line(self.path.name)} ({self.count} of {self.number}): {text}", file=sys.stderr, flush=True)

    def close(self):
        self.bar.close()


def tell_unread(name, folders):
    for folder in folders:
        unread = unread_images(folder)
        if unread:
            shown = ", ".join(unread[:5]) + (", ..." if len(unread) > 5 else "")
            print(one_line(f"{name}: {folder}: {len(unread)} not read, make PNG or JPEG of them: {shown}"), file=sys.stderr)


def reason(path, error):
    """One line on why an image failed; a fault that is not the image's shows its traceback first."""
    if isinstance(error, ImageError):
        return str(error)
    if isinstance(error, FloatingPointError):  # a loss or an output that is not finite
        return f"{path}: {error}"
    if out_of_memory(error):
        return f"{path}: out of memory; try --crop_size, a smaller image or another backbone"
    if isinstance(error, OSError):
        return f"{path}: {error.strerror or error}"
    traceback.print_exception(error)
    return f"{path}: {type(error).__name__}: {error}"


def out_of_memory(error):
    """Whether an error of Python, torch or OpenCV says that there is not enough memory."""
    said = str(error).lower()
    signs = "out of memory", "not enough memory", "can't allocate memory", "insufficient memory", "bad_alloc"
    return isinstance(error, MemoryError) or any(words in said for words in signs)


def device(name):
    """The torch device of a --device flag: auto is a GPU if there is one. Raises ImageError for one that is not there.

    On a GPU, torch is told to choose only algorithms that give the same bytes every time, where it has them.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        name = f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
    try:
        chosen = torch.device(name)
        torch.zeros(1, device=chosen).tolist()
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=True)
    except (RuntimeError, AssertionError, ImportError) as error:
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ImageError(f"--device {name} cannot be used here ({text}); use --device cpu") from None
    return chosen


def ranks():
    """(rank, number of processes): (0, 1) unless started by torchrun, where the process group is joined."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return 0, 1
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        end_with_parent()
        gpu = torch.cuda.is_available() and dist.is_nccl_available()
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo")
    return dist.get_rank(), dist.get_world_size()


def end_with_parent():
    """On Linux, end this process when its parent ends: workers of a torchrun that was killed would wait for each other."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def leave_ranks():
    """Leave the process group of torchrun, if there is one."""
    if "RANK" in os.environ:
        import torch.distributed as dist

        if dist.is_initialized():  # not earlier: some versions of torch hang where a DistributedDataParallel outlives its group
            dist.destroy_process_group()


def gather(value):
    """The values of all processes of torchrun, in a list. Raises ImageError where one of them has ended early."""
    world = ranks()[1]
    if world == 1:
        return [value]
    import torch.distributed as dist

    values = [None] * world
    try:
        dist.all_gather_object(values, value)
    except RuntimeError:
        raise ImageError("another process of this run has ended early; see what it says") from None
    return values


def wait_for_ranks():
    """Under torchrun, wait until every process is here."""
    gather(None)
