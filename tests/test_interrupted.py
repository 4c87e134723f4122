"""Runs that are killed, disks that are full, folders that go away, two runs at once: nothing lost, nothing half-written.

What a run left is whole, and the same command then ends with the bytes of an unbroken run.
"""
import errno
import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

import utils.image
from utils.image import read_image

from conftest import PATIENCE, ROOT
from test_bad_input import complaint, leftovers
from test_records import DATA, PLACES, SHORT, again, copy, earlier, everything, made  # noqa: F401 (fixtures)
from test_stages import ALL, LDGP, ONE_THREAD, ONLINE, SDR, SDRL, TEST, data_set, files, photograph, stage

KILLING = ROOT / "tests/killing.py"


def words(command, flags=""):
    return shlex.split(f"{command} {flags}")[1:]


def repeat(copy, how, times, command, flags="", places=None):
    """Run tests/killing.py; returns its counts. places: folders that the command writes, if more than its results."""
    places = places or PLACES[command]
    done = subprocess.run([sys.executable, KILLING, how, str(times), "7", str(copy), ",".join(places),
                           *words(command, f"{SHORT[command]} {flags}")], env={**os.environ, **ONE_THREAD}, capture_output=True,
                          text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr[-3000:]
    counts = json.loads(done.stdout)
    print(command.split()[1], how, counts, done.stderr)
    assert counts["ended"] == times and counts["tracebacks"] == counts["spoilt"] == 0, (counts, done.stderr)
    assert counts["silent"] + counts["said so"] == times, counts
    assert counts["last"] == 0 and counts["same"] and not leftovers(copy)
    assert counts["slowest"] < 60  # seconds to its end: it does not finish the work first, however busy the machine
    return counts


# --- killed, stopped -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("how, times, command", [("KILL", 25, LDGP), ("KILL", 25, SDR), ("INT", 5, SDR), ("TERM", 5, LDGP)],
                         ids=["ldgp.py-KILL", "sdr.py-KILL", "sdr.py-INT", "ldgp.py-TERM"])
def test_ended_at_random_moments(copy, how, times, command):  # noqa: F811
    repeat(copy, how, times, command)


def test_the_fast_recipe_ended_at_random_moments(copy):  # noqa: F811
    shutil.rmtree(copy / DATA / "ldgp")
    repeat(copy, "KILL", 8, ONLINE, "--recipe=fast --steps=0", [f"{DATA}/ldgp", f"{DATA}/result"])


@pytest.mark.long
@pytest.mark.parametrize("how", ["KILL", "INT", "TERM"])
@pytest.mark.parametrize("command", PLACES, ids=[command.split()[1] for command in PLACES])
def test_ended_at_random_moments_fifty_times(copy, how, command):  # noqa: F811
    counts = repeat(copy, how, 50, command, "--save_every=1" if command == ALL else "")
    assert how == "KILL" or counts["said so"] > 5


def interrupted(copy, command, flags, after, before=()):  # noqa: F811
    """Start a process group, send it Ctrl-C once `after` is on its stderr; returns (exit code, stderr)."""
    name, *rest = words(command, f"{SHORT[command]} {flags}")
    report = copy / "report"
    with open(report, "w") as file:
        process = subprocess.Popen([sys.executable, *before, str(ROOT / name), *rest], cwd=copy, stderr=file,
                                   stdout=subprocess.DEVNULL, env={**os.environ, **ONE_THREAD}, start_new_session=True)
    until = time.monotonic() + PATIENCE
    while after not in report.read_text() and time.monotonic() < until and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    return process.wait(PATIENCE), report.read_text()


def test_control_c_while_workers_prepare_crops(copy):  # noqa: F811
    """The terminal sends it to the workers as well; none of them shows a traceback, and none stays."""
    code, text = interrupted(copy, ALL, "--workers=2 --epoch=100000 --model_save_dir=elsewhere", "loss")
    assert code == 130 and "Traceback" not in text, text
    assert text.splitlines()[-1] == "sdrl_all.py: stopped; what is written so far is whole; the same command goes on from there"


def test_control_c_while_torch_is_loaded(copy):  # noqa: F811
    code, text = interrupted(copy, TEST, "", " torch.", before=("-X", "importtime"))  # it names each module that is loaded
    assert code in (-signal.SIGINT, 130) and "Traceback" not in text, text


def test_control_c_says_how_to_go_on(copy, monkeypatch):  # noqa: F811
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("cv2.adaptiveThreshold", stop)
    for flags, hint in (("--kernel_size=5", "the same command goes on"),
                        ("--overwrite", "the same command without --overwrite goes on")):
        said = again(LDGP, copy, flags, ok=False)
        assert said.returncode == 130
        assert said.stderr.splitlines()[-1] == f"ldgp.py: stopped; what is written so far is whole; {hint} from there"


# --- writing fails -------------------------------------------------------------------------------------------------

def failing_at(number, code):
    """An os.replace that fails from its number-th call on, as on a full disk."""
    calls, replace = [], os.replace

    def fail(source, target):
        calls.append(target)
        if len(calls) >= number:
            raise OSError(code, os.strerror(code))
        replace(source, target)

    fail.calls = calls
    return fail


@pytest.mark.parametrize("command", PLACES, ids=[command.split()[1] for command in PLACES])
def test_a_disk_that_fills_at_every_write(copy, made, monkeypatch, command):  # noqa: F811
    """One line and exit code 1 whichever write it is; what was done before is whole, and the same command ends the work."""
    def wipe():
        for place in PLACES[command]:
            shutil.rmtree(copy / place, ignore_errors=True)

    wipe()
    count = failing_at(1000, errno.EIO)
    with monkeypatch.context() as patch:
        patch.setattr(utils.image.os, "replace", count)
        again(command, copy)
    assert len(count.calls) == {SDR: 3 * 5, ALL: 3 + 3 * 2}.get(command, 3 * 2)  # each file, and a record an image
    codes = [errno.ENOSPC, errno.EROFS, errno.EDQUOT]
    for number in range(1, len(count.calls) + 1, 1 if command in (LDGP, SDR) else 4):
        wipe()
        code = codes[number % len(codes)]
        with monkeypatch.context() as patch:
            patch.setattr(utils.image.os, "replace", failing_at(number, code))
            line = complaint(again(command, copy, ok=False))
        assert re.search(f": {re.escape(os.strerror(code))}; what was done before is whole; the same command goes on", line)
        assert not leftovers(copy)
        now = everything(copy, command)
        assert all(made[1][command][name] == data for name, data in now.items())
        again(command, copy)
        assert everything(copy, command) == made[1][command] and not earlier(copy)


def limited(copy, command, limit):  # noqa: F811
    name, *rest = words(command, SHORT[command])
    return subprocess.run([sys.executable, str(ROOT / name), *rest], cwd=copy, capture_output=True, text=True,
                          env={**os.environ, **ONE_THREAD}, timeout=PATIENCE,
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))


def test_a_limit_on_the_size_of_files(copy, made):  # noqa: F811
    """Set by the system, not by a patched function: records pass, references do not."""
    for place in PLACES[SDR]:
        shutil.rmtree(copy / place)
    said = limited(copy, SDR, 1500)
    complaint(said, f"sdr.py: {DATA}/sdr/", ".png: File too large; what was done before is whole")
    assert said.returncode == 1 and not everything(copy, SDR) and not leftovers(copy)
    again(SDR, copy)
    assert everything(copy, SDR) == made[1][SDR]


def test_a_disk_that_is_full(made, tmp_path):  # noqa: F811
    """A file system of its own, with room for some of the results."""
    disk = tmp_path / "disk"
    disk.mkdir()
    size = 16 * resource.getpagesize()  # a file takes whole pages
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    try:
        shutil.copytree(made[0] / DATA / "input", tmp_path / DATA / "input")
        shutil.copytree(made[0] / DATA / "ldgp", tmp_path / DATA / "ldgp")
        flags = f"--sdr_num=9 --save_path={disk}/sdr --fuse_save_path={disk}/fused"
        unbroken = flags.replace(str(disk), str(tmp_path / "unbroken"))
        stage(SDR, unbroken, tmp_path)
        expected = files(tmp_path / "unbroken")
        complaint(stage(SDR, flags, tmp_path, ok=False), "No space left on device; what was done before is whole")
        left = files(disk)
        assert left and all(expected[name] == data for name, data in left.items()) and not leftovers(disk)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        line = complaint(stage(SDR, flags, tmp_path, ok=False))
        assert str(disk) in line and ("no permission to write" in line or "Read-only file system" in line)
        subprocess.run(["mount", "-o", f"remount,rw,size={64 * size}", str(disk)], check=True)
        stage(SDR, flags, tmp_path)
        assert files(disk) == expected
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_of_results_that_goes_away(copy, made, monkeypatch):  # noqa: F811
    """Gone for good, or there again and empty, as a disk that is taken off and its mount point: neither counts as done."""
    import cv2

    masks, threshold = copy / DATA / "ldgp", cv2.adaptiveThreshold
    for comes_back in (False, True):
        calls = []

        def vanish(*arguments):
            calls.append(1)
            if len(calls) == 2:
                shutil.rmtree(masks)
                if comes_back:
                    masks.mkdir()
            return threshold(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(cv2, "adaptiveThreshold", vanish)
            said = again(LDGP, copy, "--overwrite", ok=False)
        if comes_back:
            assert "lac.png: its result was removed or replaced since; run this again" in said.stderr
        else:
            complaint(said, f"{DATA}/ldgp: this folder is gone")
            assert not masks.exists()
            again(LDGP, copy)
    again(LDGP, copy)
    assert everything(copy, LDGP) == made[1][LDGP]


def test_a_photograph_that_goes_away(copy, monkeypatch):  # noqa: F811
    """Between the listing and its turn: it fails, the others go on."""
    import cv2

    threshold = cv2.adaptiveThreshold

    def vanish(*arguments):
        (copy / DATA / "input/mer.png").unlink(missing_ok=True)
        return threshold(*arguments)

    monkeypatch.setattr(cv2, "adaptiveThreshold", vanish)
    shutil.rmtree(copy / DATA / "ldgp")
    said = stage(LDGP, "", copy, ok=False)
    complaint(said, f"failed: {DATA}/input/mer.png: no such file")
    assert "3 images, 1 failed" in said.stdout and set(files(copy / DATA / "ldgp")) == {"lac.png", "rue.png"}


def test_a_name_that_the_disk_refuses_fails_alone(copy, monkeypatch):  # noqa: F811
    replace = os.replace

    def refuse(source, target):
        if "mer" in str(target):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        replace(source, target)

    shutil.rmtree(copy / DATA / "ldgp")
    monkeypatch.setattr(utils.image.os, "replace", refuse)
    said = stage(LDGP, "", copy, ok=False)
    complaint(said, f"failed: {DATA}/input/mer.png: ", "File name too long")
    assert set(files(copy / DATA / "ldgp")) == {"lac.png", "rue.png"}


# --- two at once ---------------------------------------------------------------------------------------------------

def together(copy, *commands):  # noqa: F811
    """Start processes at the same time; returns them when they have ended."""
    started = []
    for command in commands:
        name, *rest = words(command)
        started.append(subprocess.Popen([sys.executable, str(ROOT / name), *rest], cwd=copy, stderr=subprocess.PIPE, text=True,
                                        stdout=subprocess.PIPE, env={**os.environ, **ONE_THREAD}))
    return [(process.communicate(timeout=PATIENCE), process.returncode) for process in started]


def test_two_runs_on_one_folder(tmp_path):
    """Alike, they end with the bytes of one; of different parameters, no result is broken or without its record."""
    place = data_set(tmp_path, **{f"p{n}": photograph(36, 44, n) for n in range(12)})
    stage(LDGP, "", tmp_path)
    single = f"{SDR} --sdr_num=4"
    stage(SDR, "--sdr_num=4", tmp_path)
    expected = {part: files(place / part) for part in ("sdr", "sdr(fuse)")}
    for part in expected:
        shutil.rmtree(place / part)
    for (out, err), code in together(tmp_path, single, single):
        assert code == 0 and "Traceback" not in err and "moved to" not in err, err
    assert {part: files(place / part) for part in expected} == expected and not leftovers(place)

    for (out, err), code in together(tmp_path, f"{single} --seed=1", f"{single} --seed=2"):
        assert "Traceback" not in err and re.search("12 images, ", out), err
    assert not leftovers(place)
    for path in place.rglob("*.png"):
        if ".rain2avoid" not in path.parts:
            assert read_image(path).shape == (36, 44, 3)
    stage(SDR, "--sdr_num=4", tmp_path)
    assert {part: files(place / part) for part in expected} == expected
