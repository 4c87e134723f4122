"""Start a stage again and again, end it at random moments, and look at what it leaves: see test_results.py.

    python tests/killing.py KILL 50 OUTPUT,OUTPUT sdr.py --sdr_num=5 ...

Each run is a fork of this process, which has loaded the libraries, so that it takes no longer than its work.
"""
import os
import random
import runpy
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def start(name, words):
    """Run a stage in a fork, its output to the file `report`; returns the process id."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        sys.argv, sys.stdout = [name, *words], open("report", "w")
        sys.stderr = sys.stdout
        runpy.run_path(str(ROOT / name), run_name="__main__")
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
        print(left.code)
    except KeyboardInterrupt:  # while it loads
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
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
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
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
