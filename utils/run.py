"""What the stages' command lines share: flags that explain themselves, progress, failures, the last line."""
import argparse
import errno
import os
import signal
import sys
import textwrap
import time
import traceback
from pathlib import Path

from tqdm import tqdm

from utils.image import ImageError, check_results_folder, one_line, only


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


# Errors of writing that the next image would meet as well: going on is pointless.
POINTLESS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOENT,
             errno.ENODEV, errno.ESTALE, errno.ENOTCONN, errno.EMFILE}


class Terminated(KeyboardInterrupt):
    """The signal with which systems end a program: it is treated like Ctrl-C."""


def terminate(*_):
    raise Terminated


def let_the_main_process_stop(*_):
    """In a process that works for another: Ctrl-C, which reaches both, is the other's to answer; its end ends this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def start(main, parser):
    """Parse, run `main(args)` and leave with its exit code; an error of files or folders becomes one line and exit code 1."""
    args = parser.parse_args()
    again = f"; the same command {'without --overwrite ' * getattr(args, 'overwrite', False)}goes on from there"
    again *= hasattr(args, "overwrite")
    before = signal.signal(signal.SIGINT, signal.default_int_handler), signal.signal(signal.SIGTERM, terminate)
    try:
        code = main(args)
        leave_ranks()  # not earlier: some versions of torch hang where a DistributedDataParallel outlives its group
        sys.exit(code)
    except ImageError as error:
        sys.exit(f"{parser.prog}: {one_line(error)}")
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else error
        sys.exit(f"{parser.prog}: {one_line(what)}" + f"; what was done before is whole{again}" * (error.errno in POINTLESS))
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        sys.exit(f"{parser.prog}: out of memory ({type(error).__name__}); try a smaller --crop_size or another backbone")
    except KeyboardInterrupt as stopped:
        if os.environ.get("RANK", "0") == "0":
            print(f"{parser.prog}: stopped; what is written so far is whole{again}", file=sys.stderr)
        sys.exit(143 if isinstance(stopped, Terminated) else 130)
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), before):
            signal.signal(number, handler)


def add_overwrite_flag(parser):
    """The flag of all stages."""
    parser.add_argument("--overwrite", action="store_true",
                        help="redo what is done, and replace other runs' results instead of moving them to earlier-1/")


def each_image(images, work, *results, record=None, unit="image", failed=0):
    """Call work(path, bar) for every image that is not done yet, go on after a failure, and end with one line.

    images: {stem: [path, ...]} of `list_images`. bar: the tqdm bar, over the images or, with unit="step", over the steps
    of one image after the other (work says how many by bar.reset(steps)). results: the folders that are written to, named
    in the last line; none: results go beside the images. record: the `utils.record.Record` by which work writes, or what
    has its prepare, look and holds; None: every image is to be done. failed: how many images failed before. Under torchrun
    the images are dealt out to the processes, and process 0 sums up.
    Returns the exit code: 0, or 1 where an image failed. Raises ImageError for a folder that cannot take the results, and
    OSError where one can no longer.
    """
    name = Path(sys.argv[0]).name
    check_results(images, *results)
    rank, world = ranks()
    if record and rank == 0:
        record.prepare(paths[0] for paths in images.values())
    wait_for_ranks()
    mine = list(images.values())[rank::world]
    done, before, changed, failed, seconds = [], 0, 0, failed if rank == 0 else 0, 0.0
    with tqdm(total=len(mine) if unit == "image" else None, unit=unit, dynamic_ncols=True, disable=rank > 0) as bar:
        for count, paths in enumerate(mine, 1):
            bar.set_description(f"{name} {one_line(paths[0].name)}" + (f" ({count} of {len(mine)})" if unit == "step" else ""))
            began = time.perf_counter()
            try:
                found = record.look(only(paths)) if record else "new"
                if found != "done":
                    work(only(paths), bar)
            except Exception as error:  # one bad image must not stop the others: it is reported, counted, and exits non-zero
                if isinstance(error, OSError) and error.errno in POINTLESS:
                    raise
                failed += 1
                tqdm.write(f"{name}: failed: {one_line(reason(paths[0], error))}", file=sys.stderr)
            else:
                before, changed = before + (found == "done"), changed + (found == "changed")
                if found != "done":
                    done.append(paths[0])
                    seconds += time.perf_counter() - began
            if unit == "image":
                bar.update()
    lost = [path for path in done if record and not record.holds(path)]
    for path in lost:
        text = f"{name}: failed: {one_line(path)}: its result was removed or replaced since; run this again"
        tqdm.write(text, file=sys.stderr)
    number, failed = len(done) - len(lost), failed + len(lost)
    if world > 1:
        number, before, changed, failed, seconds = _sum_over_ranks(number, before, changed, failed, seconds)
    if rank == 0:
        average = f"{seconds / number:.2f} s an image" if number else "nothing done"
        notes = f"{before} done before, " * (before > 0) + f"{changed} of changed input, " * (changed > 0)
        where = f"in {one_line(' and '.join(map(str, results)))}" if results else "beside them"
        print(f"{name}: {number + before + failed} images, {failed} failed, {notes}{average}, results {where}")
    return 1 if failed else 0


def check_results(images, *folders):
    """Raise ImageError for a folder that cannot take results, or in which they could replace the images themselves."""
    sources = {os.path.realpath(paths[0].parent) for paths in images.values()}
    for folder in folders:
        check_results_folder(folder)
        if os.path.realpath(folder) in sources:  # not Path.resolve, which fails at a link to itself
            raise ImageError(f"{folder}: results would replace the photographs in it; name another folder for them")


def reason(path, error):
    """One line on why an image failed; a fault that is not the image's shows its traceback first."""
    if isinstance(error, ImageError):
        return str(error)
    if isinstance(error, FloatingPointError):  # a loss or an output that is not finite
        return f"{path}: {error}"
    if out_of_memory(error):
        return f"{path}: out of memory ({type(error).__name__}); try --crop_size, a smaller image or another backbone"
    if isinstance(error, OSError) and error.filename:
        return f"{path}: {error.strerror} ({error.filename})"
    if not isinstance(error, OSError):
        traceback.print_exception(error)
    return f"{path}: {type(error).__name__}: {error}".replace("\n", " ")


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


def add_learning_flags(parser):
    """The flags that all learning stages have."""
    from models import BACKBONES

    parser.add_argument("--backbone", default="Unet", choices=list(BACKBONES), help="network to train")
    parser.add_argument("--seed", type=number(int, 0, 2**32 - 1), default=3,
                        help="of weights and draws; set anew for every image")
    add_inference_flags(parser)


def add_inference_flags(parser):
    """The flags of running a network, which test_all.py has as well."""
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...; auto: a GPU if there is one")
    parser.add_argument("--amp", action="store_true", help="mixed precision: faster on a GPU, not the same digits")
    parser.add_argument("--tile_size", type=number(int, 256), default=1024,
                        help="pixels a side from which on a photograph is derained in tiles that overlap")


class LossLine:
    """Shows the loss on a bar and moves it on by a step, without ever making a GPU wait for it."""

    def __init__(self, bar, every=0.25):
        self.bar, self.every, self.shown, self.pending = bar, every, 0.0, None

    def __call__(self, loss):
        self.bar.update()
        if loss.device.type != "cuda":
            if time.perf_counter() - self.shown > self.every:
                self._show(loss)
            return
        import torch

        if self.pending and self.pending[1].query():
            self._show(self.pending[0])
            self.pending = None
        if not self.pending and time.perf_counter() - self.shown > self.every:
            copied = torch.empty((), dtype=loss.dtype, pin_memory=True).copy_(loss, non_blocking=True)
            self.pending = copied, torch.cuda.Event()
            self.pending[1].record()

    def _show(self, loss):
        self.bar.set_postfix_str(f"loss {float(loss):.2e}", refresh=False)
        self.shown = time.perf_counter()


def ranks():
    """(rank, number of processes): (0, 1) unless started by torchrun, where the process group is joined."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return 0, 1
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        gpu = torch.cuda.is_available() and dist.is_nccl_available()
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo")
    return dist.get_rank(), dist.get_world_size()


def leave_ranks():
    """Leave the process group of torchrun, if there is one."""
    if "RANK" in os.environ:
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()


def wait_for_ranks():
    """Under torchrun, wait until every process is here."""
    if ranks()[1] > 1:
        _sum_over_ranks(0)


def _sum_over_ranks(*values):
    import torch
    import torch.distributed as dist

    total = torch.tensor(values, dtype=torch.float64)
    try:
        dist.all_reduce(total)
    except RuntimeError:
        raise ImageError("another process of this run has ended early; see what it says") from None
    *counts, last = total.tolist()
    return *map(int, counts), last
