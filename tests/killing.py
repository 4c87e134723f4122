"""Start a stage again and again, end it at random moments, and look after each at what it left: see test_interrupted.py.

    python tests/killing.py KILL 50 SEED FOLDER OUTPUTS sdr.py --sdr_num=5 ...

Each run is a fork of this process, which has loaded the libraries, so that it takes no longer than its work. Prints counts as
JSON.
"""
import json
import os
import random
import runpy
import shutil
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def run(name, words, report):
    """Run a stage in a fork of this process, its output to the file `report`; returns the process id."""
    child = os.fork()
    if child:
        return child
    handle = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.argv = [name, *words]
    try:
        runpy.run_path(str(ROOT / name), run_name="__main__")
    except SystemExit as left:
        if isinstance(left.code, str):
            print(left.code, file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(left.code if isinstance(left.code, int) else 1)
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    os._exit(99)


def content(outputs):
    """{path: bytes} of what was made, without records and what carries times."""
    found = {}
    for folder in outputs:
        for path in Path(folder).rglob("*"):
            if path.is_file() and ".rain2avoid" not in path.parts and path.name not in ("resume.pkl", "loss.csv"):
                found[str(path)] = path.read_bytes()
    return found


def wipe(outputs):
    for folder in outputs:
        shutil.rmtree(folder, ignore_errors=True)


def whole(left, expected):
    """Whether all files that were left are those of an unbroken run, or not begun; checkpoints before the last differ."""
    return all(expected.get(path) == data for path, data in left.items()
               if not path.endswith(".part") and not Path(path).parent.name.endswith(".part") and not path.endswith(".pkl"))


def main(how, times, seed, folder, outputs, name, *words):
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # as a script has it while it loads
    number, outputs, moment = getattr(signal, f"SIG{how}"), outputs.split(","), random.Random(int(seed))
    if name not in ("ldgp.py", "sdr.py"):
        import torch

        torch.set_num_threads(1)
    __import__(name.removesuffix(".py"))  # once, for all forks
    report = Path("report")
    wipe(outputs)
    began = time.perf_counter()
    _, status = os.waitpid(run(name, words, report), 0)
    assert status == 0, report.read_text()
    length = time.perf_counter() - began
    expected = content(outputs)
    counts = {"files": len(expected), "ended": 0, "finished": 0, "spoilt": 0, "tracebacks": 0, "silent": 0, "said so": 0,
              "slowest": 0.0}
    wipe(outputs)
    while counts["ended"] < int(times):
        child = run(name, words, report)
        time.sleep(moment.uniform(0, length))
        finished, status = os.waitpid(child, os.WNOHANG)
        asked = time.perf_counter()
        if not finished:
            os.kill(child, number)
            _, status = os.waitpid(child, 0)
            counts["slowest"] = max(counts["slowest"], round(time.perf_counter() - asked, 3))
        code = os.waitstatus_to_exitcode(status)
        text = report.read_text()
        counts["tracebacks"] += "Traceback" in text
        counts["spoilt"] += not whole(content(outputs), expected)
        if code == 0:  # it was faster than the signal
            counts["finished"] += 1
            counts["spoilt"] += content(outputs) != expected
            if moment.random() < 0.7:  # else it is started once more, with nothing to do
                wipe(outputs)
        else:
            counts["ended"] += 1
            counts["silent"] += code == -number  # killed, or before it had begun
            counts["said so"] += code == {"KILL": -9, "INT": 130, "TERM": 143}[how] and "goes on from there" in text
            if "Traceback" in text or code not in (-number, 128 + number):
                print(code, text, file=sys.stderr)
    _, status = os.waitpid(run(name, words, report), 0)
    counts["last"] = os.waitstatus_to_exitcode(status)
    counts["same"] = content(outputs) == expected
    print(json.dumps(counts))


if __name__ == "__main__":
    main(*sys.argv[1:])
