"""What the command lines share: a parser, flags, errors as one line, the exit code, the device to compute on."""
import argparse
import ctypes
import os
import signal
import sys
import textwrap
import threading

from utils.distributed import leave_ranks
from utils.image import ImageError, expand_home, one_line

OUT_OF_MEMORY = "out of memory", "not enough memory", "can't allocate memory", "insufficient memory", "bad_alloc"  # as is said


class Parser(argparse.ArgumentParser):
    """A parser made from a script's docstring: it shows every default and answers a mistake with one line."""

    def __init__(self, description):
        super().__init__(description=description, formatter_class=HelpFormatter, allow_abbrev=False)

    def parse_args(self, *arguments):
        given = vars(super().parse_args(*arguments))
        for action in self._actions:
            if action.nargs is None and given.get(action.dest) == []:  # argparse before Python 3.13: --name=--
                self.error(f"argument --{action.dest}: expected one argument")
        return argparse.Namespace(**{name: expand_home(value) for name, value in given.items()})

    def error(self, message):
        self.exit(2, f"{self.prog}: {one_line(message)} (see --help)\n")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Prose filled to the terminal's width, indented commands left whole for pasting, the default behind each flag."""

    def _fill_text(self, text, width, indent):
        return "\n\n".join(part if part.startswith(" ") else textwrap.fill(part, width) for part in text.strip().split("\n\n"))

    def _get_help_string(self, action):
        return action.help if action.default is None else super()._get_help_string(action)


def number(kind, low, high=float("inf"), odd=False):
    """Return an argparse type: an int or a float from `low` to `high`, odd if asked."""

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
    """Add the flag of all scripts that write results."""
    parser.add_argument("--overwrite", action="store_true",
                        help="redo what is done, and replace other runs' results instead of moving them to earlier-1/")


def add_inference_flags(parser):
    """Add the flags of all scripts that run a network."""
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...; auto: a GPU if there is one")
    parser.add_argument("--amp", action="store_true", help="mixed precision: faster on a GPU, not the same digits")
    parser.add_argument("--tile_size", type=number(int, 256), default=1024,
                        help="pixels a side from which on a photograph is derained in tiles that overlap")


def keep_memory():
    """Keep the memory of deleted arrays for new ones, which glibc would return: it saves a third of a rain layer's time."""
    mallopt = getattr(ctypes.CDLL(None) if os.name == "posix" else None, "mallopt", None)
    if mallopt:
        mallopt(-1, 256 << 20)  # M_TRIM_THRESHOLD: how much is kept
        mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD: for arrays up to this size


def start(main, parser):
    """Parse, run `main(args)` and leave with its exit code; an error of files or folders becomes one line and exit code 1."""
    for name in ("stdout", "stderr"):  # closed ones, and those that have no letters for the name of a file
        setattr(sys, name, getattr(sys, name) or open(os.devnull, "w"))
        getattr(getattr(sys, name), "reconfigure", dict)(errors="backslashreplace")
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
        silence()
        if os.environ.get("RANK", "0") == "0":
            print(f"{parser.prog}: stopped{again}", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        said = reason(error)
        if not said:
            raise
        sys.exit(f"{parser.prog}: {said}{again if isinstance(error, OSError) else ''}")


def silence():
    """Hide tracebacks of library threads and of deleted objects, which tell the user nothing at the end of a process."""
    sys.excepthook = threading.excepthook = sys.unraisablehook = lambda *_: None


def quiet_worker(_):
    """Leave Ctrl-C and all messages to the process that started this one: the worker_init_fn of a DataLoader."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    silence()


def reason(error):
    """Return one line on what went wrong, for the user; None for a fault of the program."""
    said = str(error).lower()
    if isinstance(error, MemoryError) or any(words in said for words in OUT_OF_MEMORY):
        return "out of memory; try a smaller --crop_size, a smaller image or another backbone"
    if isinstance(error, OSError):
        return one_line(f"{error.filename}: {error.strerror}" if error.filename else error)
    if isinstance(error, (ImageError, FloatingPointError)):  # the latter: a loss or an output that is not finite
        return str(error).rpartition("ImageError: ")[2].removesuffix(r"\n")  # without a DataLoader worker's traceback
    return None


def device(name):
    """Return the torch device of a --device flag; auto is a GPU if there is one. Raises ImageError where it is not there."""
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
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # the same bytes every time, where torch can do that
            torch.use_deterministic_algorithms(True, warn_only=True)
    except (RuntimeError, AssertionError, ImportError) as error:
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ImageError(f"--device {name} cannot be used here ({text}); use --device cpu") from None
    return chosen
