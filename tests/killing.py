"""Start a stage again and again, end it at random moments, and look at what it leaves: see test_results.py.

    PYTHONPATH=. python tests/killing.py KILL 50 OUTPUT,OUTPUT sdr.py --sdr_num=5 ...

Each run is a fork of this process, which has loaded the libraries, so that it takes no longer than its work.
"""
import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

from conftest import inside


def start(name, words):
    """Run a stage in a fork, what it says on stderr to the file `report`; returns the process id."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        done = inside(name, *words, cwd=".", ok=None)
        code = done.returncode
        Path("report").write_text(done.stderr)
    except KeyboardInterrupt:  # while it loads
        code = 130
    except BaseException:
        Path("report").write_text(traceback.format_exc())
    finally:
        os._exit(code)


def end(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def content(outputs):
    """{path: bytes} of what was made, but run.json and what carries times."""
    return {path: path.read_bytes() for folder in outputs for path in Path(folder).rglob("*")
            if path.is_file() and path.name not in ("run.json", "resume.pkl", "loss.csv")}


def hidden(path):
    return any(part.startswith(".") for part in path.parts)


def main(how, times, outputs, name, *words):
    number, outputs, chance = getattr(signal, f"SIG{how}"), outputs.split(","), random.Random(7)
    __import__(name.removesuffix(".py"))  # once, for all forks
    began = time.perf_counter()
    assert end(start(name, words)) == 0, Path("report").read_text()
    length, expected, ended = time.perf_counter() - began, content(outputs), 0
    while ended < int(times):
        for folder in outputs if ended % 5 == 0 else ():
            shutil.rmtree(folder, ignore_errors=True)
        child = start(name, words)
        time.sleep(chance.uniform(0.01, length))
        os.kill(child, number)
        code, ended = end(child), ended + 1
        assert code in (0, -number, 130) and "Traceback" not in Path("report").read_text(), Path("report").read_text()
        left = {path: data for path, data in content(outputs).items() if not hidden(path)}
        assert all(expected.get(path) == data for path, data in left.items() if path.suffix == ".png")
    assert end(start(name, words)) == 0, Path("report").read_text()
    assert content(outputs) == expected and expected


if __name__ == "__main__":
    main(*sys.argv[1:])
