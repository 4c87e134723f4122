"""Start a stage again and again, end it at random moments, and look at what it leaves: see test_results.py.

    PYTHONPATH=. python tests/killing.py KILL 50 OUTPUT,OUTPUT sdr.py --sdr_num=5 ...

Each run is a fork of this process, which has loaded the libraries, so that it takes no longer than its work.
"""
import os
import random
import re
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

from conftest import inside


def run(name, words, number=None, after=0):
    """Run a stage in a fork, which gets a signal of this number after so many seconds; returns its exit code."""
    child = os.fork()
    if not child:
        code = 130  # a Ctrl-C while it loads
        try:
            done = inside(name, *words, cwd=".", ok=None)
            code = done.returncode
            Path("report").write_text(done.stderr)
        except Exception:  # a fault: the parent looks for tracebacks in the report
            Path("report").write_text(traceback.format_exc())
        finally:
            os._exit(code)
    if number:
        time.sleep(after)
        os.kill(child, number)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def content(outputs):
    """{path: bytes} of what was made, but run.json."""
    return {path: path.read_bytes() for folder in outputs for path in Path(folder).rglob("*")
            if path.is_file() and path.name != "run.json"}


def main(how, times, outputs, name, *words):
    number, outputs, chance = getattr(signal, f"SIG{how}"), outputs.split(","), random.Random(7)
    __import__(name.removesuffix(".py"))  # once, for all forks
    began = time.perf_counter()
    assert run(name, words) == 0, Path("report").read_text()
    length, expected = time.perf_counter() - began, content(outputs)
    for ended in range(int(times)):
        for folder in outputs if ended % 5 == 0 else ():
            shutil.rmtree(folder, ignore_errors=True)
        code, report = run(name, words, number, chance.uniform(0.01, length)), Path("report").read_text()
        report = re.sub(r"Exception ignored in:.*?KeyboardInterrupt", "", report, flags=re.DOTALL)  # Python's, in a __del__
        assert code in (0, -number, 130) and "Traceback" not in report, report
        left = {path: data for path, data in content(outputs).items() if not any(part.startswith(".") for part in path.parts)}
        assert all(expected.get(path) == data for path, data in left.items() if path.suffix == ".png")
    assert run(name, words) == 0, Path("report").read_text()
    assert content(outputs) == expected and expected


if __name__ == "__main__":
    main(*sys.argv[1:])
