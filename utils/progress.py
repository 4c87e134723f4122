"""The work on many photographs, one after the other: what is done, bars or lines meanwhile, failures, the last line."""
import errno
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from utils.cli import reason
from utils.distributed import gather, ranks, wait_for_ranks
from utils.image import ImageError, one_line, unread_images


def each_image(images, work, results, failed=0, unread=True):
    """Call work(path, progress) for every photograph whose results are not done, go on after a failure, end with one line.

    images: {name: path}. results: a list of `PhotographResults`. failed: how many photographs failed before. unread: whether to
    name files beside the photographs that cannot be read. What work returns, a short notice or None, is counted in the last
    line. Under torchrun the photographs are dealt out to the processes. Returns the exit code: 0, or 1 where a photograph
    failed. Raises ImageError for a folder that cannot take results, and OSError where one no longer can.
    """
    name, (rank, world) = Path(sys.argv[0]).name, ranks()
    if rank == 0:
        for folder in sorted({path.parent for path in images.values()}) if unread else ():
            warn_unreadable(folder)
        for result in results:
            result.prepare(images.values())
    wait_for_ranks()
    mine = list(images.values())[rank::world]
    bar = progress_bar(mine, unit="image")
    outcomes = [outcome(path, work, results, Progress(f"{name}: {one_line(path.name)} ({number} of {len(mine)})"))
                for number, path in enumerate(bar, 1)]
    outcomes = [*sum(gather(outcomes), []), *[("failed", 0.0, None)] * failed]
    if rank == 0:
        print(f"{name}: {last_line(outcomes, results)}")
    return 1 if any(word == "failed" for word, _, _ in outcomes) else 0


def warn_unreadable(folder):
    """Print a line on stderr that names the image files of a folder that cannot be read, if there are any."""
    unread = unread_images(folder)
    if unread:
        shown = ", ".join(unread[:5]) + (", ..." if len(unread) > 5 else "")
        text = f"{Path(sys.argv[0]).name}: {folder}: {len(unread)} not read, save as .png or .jpg: {shown}"
        print(one_line(text), file=sys.stderr)


def outcome(path, work, results, progress):
    """Do the work on a photograph if it is not done. Returns (what became of it, seconds, the notice that `work` returned)."""
    if not results[0].claim(path):
        return "left to another process", 0.0, None
    if all(result.done(path) for result in results):
        return "done before", 0.0, None
    began = time.perf_counter()
    try:
        notice = work(path, progress)
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
        print(f"{progress.label}: {seconds:.2f} s{f', {notice}' if notice else ''}", file=sys.stderr, flush=True)
    return "done", seconds, notice


def last_line(outcomes, results):
    """Return in words what became of all photographs. outcomes: a list of what `outcome` returns."""
    counts, notices = (Counter(part) for part in ([word for word, _, _ in outcomes], [text for _, _, text in outcomes if text]))
    words = [f"{len(outcomes)} images", f"{counts['failed']} failed"]
    words += [f"{counts[word]} {word}" for word in ("done before", "left to another process") if counts[word]]
    seconds = sum(seconds for _, seconds, _ in outcomes)
    words.append(f"{seconds / counts['done']:.2f} s an image" if counts["done"] else "nothing done")
    if counts["done before"] and not counts["done"]:
        words[-1] += " (--overwrite does it again)"
    folders = " and ".join(dict.fromkeys(str(result.folder) for result in results if result.folder))
    said = "".join(f"; {number} of {counts['done']} photographs: {notice}" for notice, number in notices.items())
    return f"{', '.join(words)}, results {f'in {one_line(folders)}' if folders else 'beside them'}{said}"


def progress_bar(*arguments, **options):
    """Return a bar of tqdm, shown where stderr is a terminal, by the first process of torchrun alone."""
    return tqdm(*arguments, dynamic_ncols=True, disable=ranks()[0] > 0 or None, **options)


class Progress:
    """The steps of a long piece of work: on a terminal a bar, elsewhere a line every half minute."""

    def __init__(self, label, unit="step"):
        self.label, self.unit, self.lines, self.bar = label, unit, not sys.stderr.isatty(), tqdm(disable=True)

    def reset(self, total, done=0):
        """Begin to count up to a total number of steps, of which some are done."""
        self.total, self.steps, self.said = total, done, time.monotonic()
        self.bar = progress_bar(total=total, initial=done, desc=self.label, unit=self.unit, leave=False)

    def step(self, loss):
        """Count a step. loss: a tensor or number, looked at now and then, since a GPU has to wait for that."""
        self.steps += 1
        self.bar.update()
        if time.monotonic() - self.said > (30 if self.lines else 0.25):
            self.said, text = time.monotonic(), f"loss {float(loss):.2e}"
            self.bar.set_postfix_str(text, refresh=False)
            if self.lines:
                print(f"{self.label}: {self.unit} {self.steps} of {self.total}, {text}", file=sys.stderr, flush=True)

    def close(self):
        """Take the bar away."""
        self.bar.close()
