"""What the command lines share: flags that explain themselves, progress, failures, torchrun, the last line."""
import argparse
import ctypes
import errno
import os
import signal
import sys
import textwrap
import time
import traceback
from collections import Counter
from datetime import timedelta
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


def add_inference_flags(parser):
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...; auto: a GPU if there is one")
    parser.add_argument("--amp", action="store_true", help="mixed precision: faster on a GPU, not the same digits")
    parser.add_argument("--tile_size", type=number(int, 256), default=1024,
                        help="pixels a side from which on a photograph is derained in tiles that overlap")


def keep_memory():
    """Make new arrays in memory that earlier ones have left: it saves a third of a rain layer's time.

    Otherwise glibc hands it back to the system, which returns it page by page. Without glibc nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None) if os.name == "posix" else None, "mallopt", None)
    if mallopt:
        mallopt(-1, 256 << 20)  # M_TRIM_THRESHOLD: how much is kept
        mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD: for arrays up to this size


def start(main, parser):
    """Parse, run `main(args)` and leave with its exit code; an error of files or folders becomes one line and exit code 1."""
    args = parser.parse_args()
    keep_memory()
    again = "; what is written is whole, and the same command goes on from there" if hasattr(args, "overwrite") else ""
    # A system's plain kill ends like a Ctrl-C. It also reaches processes in the background, which may not see a Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = main(args)
        leave_ranks()
        sys.exit(code)
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            print(f"{parser.prog}: stopped{again}", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        said = reason(error)
        if not said:
            raise
        sys.exit(f"{parser.prog}: {said}{again if isinstance(error, OSError) else ''}")


def each_image(images, work, results, failed=0, unread=True):
    """Call work(path, progress) for every photograph whose results are not done, go on after a failure, end with one line.

    images: {stem: path} of `list_images`. results: `utils.results.Results`, or what has their folder, prepare, done and
    claim. failed: how many failed before. unread: whether to name what lies beside the photographs and is not read. What work
    returns, if anything, is counted in the last line.
    Under torchrun the photographs are dealt out to the processes.
    Returns the exit code: 0, or 1 where a photograph failed. Raises ImageError for a folder that cannot take results, and
    OSError where one no longer can.
    """
    name, (rank, world) = Path(sys.argv[0]).name, ranks()
    if rank == 0:
        for folder in sorted({path.parent for path in images.values()}) if unread else ():
            tell_unread(folder)
        for result in results:
            result.prepare(images.values())
    wait_for_ranks()
    mine = list(images.values())[rank::world]
    bar = progress_bar(mine, unit="image")
    outcomes = [outcome(path, work, results, Progress(f"{name}: {one_line(path.name)} ({number} of {len(mine)})"))
                for number, path in enumerate(bar, 1)]
    outcomes = [*sum(gather(outcomes), []), *[("failed", 0.0, None)] * failed]
    counts = Counter(word for word, _, _ in outcomes)
    if rank == 0:
        print(f"{name}: {last_line(outcomes, counts, results)}")
    return 1 if counts["failed"] else 0


def tell_unread(folder):
    """Say in a line which image files in a folder are not read."""
    unread = unread_images(folder)
    if unread:
        shown = ", ".join(unread[:5]) + (", ..." if len(unread) > 5 else "")
        text = f"{Path(sys.argv[0]).name}: {folder}: {len(unread)} not read, make PNG or JPEG of them: {shown}"
        print(one_line(text), file=sys.stderr)


def outcome(path, work, results, progress):
    """Do the work on a photograph if it is not done: (what became of it, seconds, what `work` returned)."""
    if not results[0].claim(path):
        return "left to another process", 0.0, None
    if all(result.done(path) for result in results):
        return "done before", 0.0, None
    began = time.perf_counter()
    try:
        remark = work(path, progress)
    except Exception as error:  # one bad image must not stop the others: it is reported, counted, and exits non-zero
        if isinstance(error, OSError) and error.errno not in (None, errno.ENAMETOOLONG):
            raise  # the next image would meet the same
        said = reason(error)
        if not said:
            traceback.print_exception(error)
            said = f"{type(error).__name__}: {error}"
        where = "" if isinstance(error, ImageError) else f"{path}: "
        tqdm.write(f"{Path(sys.argv[0]).name}: failed: {one_line(where + said)}", file=sys.stderr)
        return "failed", 0.0, None
    finally:
        progress.close()
    seconds = time.perf_counter() - began
    if progress.lines:
        print(f"{progress.label}: {seconds:.2f} s{f', {remark}' if remark else ''}", file=sys.stderr, flush=True)
    return "done", seconds, remark


def last_line(outcomes, counts, results):
    """What became of all photographs, in words."""
    words = [f"{len(outcomes)} images", f"{counts['failed']} failed"]
    words += [f"{counts[word]} {word}" for word in ("done before", "left to another process") if counts[word]]
    seconds = sum(seconds for _, seconds, _ in outcomes)
    words.append(f"{seconds / counts['done']:.2f} s an image" if counts["done"] else "nothing done")
    if counts["done before"] and not counts["done"]:
        words[-1] += " (--overwrite does it again)"
    folders = " and ".join(str(result.folder) for result in results if result.folder)
    remarks = Counter(remark for _, _, remark in outcomes if remark)
    said = "".join(f"; {number} of {counts['done']} photographs: {remark}" for remark, number in remarks.items())
    return f"{', '.join(words)}, results {f'in {one_line(folders)}' if folders else 'beside them'}{said}"


def progress_bar(*arguments, **options):
    """A bar of tqdm, where stderr is a terminal and this is not another process of torchrun."""
    return tqdm(*arguments, dynamic_ncols=True, disable=ranks()[0] > 0 or None, **options)


class Progress:
    """The steps of a long piece of work: on a terminal a bar, elsewhere a line every half minute."""

    def __init__(self, label, unit="step"):
        self.label, self.unit, self.lines, self.bar = label, unit, not sys.stderr.isatty(), tqdm(disable=True)

    def reset(self, total, done=0):
        """There are so many steps, of which some are done."""
        self.total, self.steps, self.said = total, done, time.monotonic()
        self.bar = progress_bar(total=total, initial=done, desc=self.label, unit=self.unit, leave=False)

    def step(self, loss):
        """A step is done. loss: a tensor or number, looked at now and then, since a GPU has to wait for that."""
        self.steps += 1
        self.bar.update()
        if time.monotonic() - self.said > (30 if self.lines else 0.25):
            self.said, text = time.monotonic(), f"loss {float(loss):.2e}"
            self.bar.set_postfix_str(text, refresh=False)
            if self.lines:
                print(f"{self.label}: {self.unit} {self.steps} of {self.total}, {text}", file=sys.stderr, flush=True)

    def close(self):
        self.bar.close()


def reason(error):
    """One line on what went wrong, for the user; None for a fault of the program."""
    if out_of_memory(error):
        return "out of memory; try a smaller --crop_size, a smaller image or another backbone"
    if isinstance(error, OSError):
        return one_line(f"{error.filename}: {error.strerror}" if error.filename else error)
    if isinstance(error, (ImageError, FloatingPointError)):  # the latter: a loss or an output that is not finite
        return str(error).rpartition("ImageError: ")[2].removesuffix(r"\n")  # without a DataLoader worker's traceback
    return None


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
        patience = timedelta(days=365)  # a process that has no photograph left waits for one that may learn for hours
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=patience)
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
