"""Results are whole or absent, done once, and of one run: the same command again, other commands, kills, full disks."""
import errno
import fcntl
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from utils.image import expand_home, read_image, write_bytes
from utils.results import Results, alone_in

from conftest import (ALL, DATA, LDGP, ONE_THREAD, ONLINE, PATIENCE, PLACES, ROOT, SDR, SDRL, SHORT, STAGES, TEST, complaint,
                      complaints, data_set, each_stage, files, name_of, photograph, results, script, stage, write_png)

OTHER = {LDGP: "--kernel_size=7", SDR: "--seed=1", SDRL: "--seed=4", ONLINE: "--K=5", ALL: "--lr=0.01", TEST: "--amp"}


def stamps(folder):
    """When each file was last written, and which it is."""
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.rglob("*")
            if path.is_file()}


def earlier(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("earlier-*"))


def again(command, folder, flags="", **options):
    return stage(command, f"{SHORT[command]} {flags}", folder, **options)


def begun(command, flags, folder, **options):
    """A process that has begun to run a command line."""
    words = shlex.split(f"{command} {SHORT[command]} {flags}")[2:]
    return subprocess.Popen([sys.executable, ROOT / name_of(command), *words], cwd=folder, env={**os.environ, **ONE_THREAD},
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


@pytest.fixture
def folder(chain, copy, command):
    """The copy in which nothing but the command's own results is in its folders."""
    for place in (f"{DATA}/result", *PLACES[command]):
        shutil.rmtree(copy / place, ignore_errors=True)
    again(command, copy)
    assert results(copy, command) == chain[2][command]
    time.sleep(0.02)  # what changes now is newer, on every file system
    return copy


@each_stage
def test_the_same_command_again_does_nothing_again_but_with_overwrite(folder, command):
    """Also where the data set was moved as a whole; a result that is missing is made again, alone."""
    before, expected = stamps(folder), results(folder, command)
    said = again(command, folder)
    assert stamps(folder) == before
    assert "2 images, 0 failed, 2 done before, nothing done (--overwrite does it again), results in " in said.stdout
    assert complaints(said) == ["sdrl_all.py: goes on after epoch 3 of result_all/Rain100L/resume.pkl"] * (command == ALL)
    said = again(command, folder, "--overwrite")
    now = stamps(folder)
    assert all(now[name] != before[name] for name in expected) and now.keys() == before.keys()
    assert results(folder, command) == expected and "done before" not in said.stdout and not complaints(said)
    (folder / PLACES[command][-1] / "rue.png").unlink()
    (folder / "moved").mkdir()
    for part in ("dataset", "result_all"):
        (folder / part).rename(folder / "moved" / part)
    said = again(command, folder / "moved")
    assert "2 images, 0 failed, 1 done before, " in said.stdout and not earlier(folder)
    assert results(folder / "moved", command) == expected
    again(command, folder / "moved", f"--overwrite {OTHER[command]}")
    assert results(folder / "moved", command).keys() == expected.keys() and stamps(folder / "moved").keys() == before.keys()


@each_stage
def test_another_run_s_results_are_moved_and_said(folder, command):
    """With their run.json; other files stay where they are."""
    for place in PLACES[command]:
        (folder / place / "notes.txt").write_text("mine")
    expected = results(folder, command)
    lines = complaints(again(command, folder, OTHER[command]))
    flag = OTHER[command].partition("=")[0].removeprefix("--")
    assert len(lines) == len(PLACES[command])
    for line, place in zip(lines, PLACES[command]):
        number = len(files(folder / place / "earlier-1")) if command != SDR or "fuse" in place else 2
        assert re.fullmatch(rf"{name_of(command)}: \S*{re.escape(place)}/?: {number} results of another run "
                            rf"\(differs in {flag}\) moved to \S*{re.escape(place)}/earlier-1", line), line
        moved = {f"{place}/{name}": data for name, data in files(folder / place / "earlier-1").items()}
        assert all(moved[name] == data for name, data in expected.items()
                   if name.startswith(f"{place}/") and not name.endswith(("notes.txt", "loss.csv")))
        assert moved and (folder / place / "earlier-1/run.json").exists()
    now = results(folder, command)
    assert now.keys() == expected.keys() and now != expected
    again(command, folder)
    assert results(folder, command) == expected and len(earlier(folder)) == 2 * len(PLACES[command])


@pytest.mark.parametrize("command, source", [
    (LDGP, "input/rue.png"), (SDR, "input/rue.png"), (SDR, "ldgp/rue.png"), (SDRL, "input/rue.png"), (SDRL, "sdr/rue/1.png"),
    (ONLINE, "ldgp/rue.png"), (ALL, "sdr/rue/1.png"), (TEST, "../../result_all/Rain100L/model.pkl")])
def test_what_is_older_than_its_sources_is_moved(folder, command, source):
    """A result alone where its photograph, mask or references have changed; all where the network has."""
    path, expected = folder / DATA / source, results(folder, command)
    if path.suffix == ".png":
        write_png(path, 255 - read_image(path))
    else:
        path.touch()
    if "sdr" in source:
        os.utime(path.parent)  # as sdr.py leaves it, which makes the folder anew
    said, everything = again(command, folder), command in (ALL, TEST)
    assert ("1 done before" in said.stdout) != everything
    lines = [line for line in complaints(said) if "older than what they were made from moved to" in line]
    assert len(lines) == len(PLACES[command]) and len(complaints(said)) == len(lines)
    now = results(folder, command)
    assert now.keys() == expected.keys()
    other = {name for name in now if "lac" in name and now[name] != expected[name]}
    assert other == ({f"{DATA}/result/lac.png"} if command == ALL else set())
    assert (folder / PLACES[command][-1] / "earlier-1/rue.png").read_bytes() == expected[f"{PLACES[command][-1]}/rue.png"]


def test_photographs_from_the_future_are_done_once_and_a_path_names_a_data_set_and_home(copy, monkeypatch):
    later, q = time.time() + 9e6, copy / "home/q"
    os.utime(copy / DATA / "input/rue.png", (later, later))
    monkeypatch.setenv("HOME", str(copy / "home"))
    for name in (f"./{DATA}", "Rain100L", copy / DATA, f"../{copy.name}/{DATA}/"):
        for flags in ("", "'--save_path=~/q'"):
            assert complaints(stage(f"python ldgp.py --dataset={name}", flags, copy)) == []
    assert not earlier(copy / DATA / "ldgp") and set(files(q)) == {"rue.png", "lac.png"} and not (copy / "~").exists()
    assert "2 done before" in stage("python ldgp.py", "'--save_path=~/q'", copy).stdout
    assert expand_home(["a=~/b", "~", "a~", "./~", "a/b=~", 1, None]) == [
        f"a={copy}/home/b", f"{copy}/home", "a~", "./~", "a/b=~", 1, None]


def test_masks_of_the_user_s_own(copy):
    """Without a run.json they are used as they are, and are not replaced."""
    masks = copy / DATA / "ldgp"
    mine = np.where(np.arange(56) % 8 == 3, 255, 0).astype(np.uint8) * np.ones((40, 1), np.uint8)
    write_png(masks / "rue.png", mine)
    before = files(masks)
    for text in ("", "{", "[]", '{"stage": 1}', "[" * 100000, None):
        (masks / "run.json").write_text(text) if text is not None else (masks / "run.json").unlink()
        line = complaint(stage(LDGP, "", copy, ok=False), f"{DATA}/ldgp: no run.json says what made lac.png")
        assert line.endswith("name another folder for the results, or replace it with --overwrite")
    stage(SDR, "--sdr_num=1", copy)
    changed = (read_image(copy / DATA / "sdr/rue/0.png") != read_image(copy / DATA / "input/rue.png")).any(axis=2)
    assert changed.any() and not changed[mine == 0].any()
    again(ONLINE, copy)
    assert files(masks) == before
    stage(LDGP, "--overwrite", copy)
    assert "2 done before" in stage(LDGP, "", copy).stdout


def test_a_photograph_called_like_a_folder_of_what_was_moved(tmp_path):
    place = data_set(tmp_path, **{"earlier-1": photograph(36, 44, 1), "x": photograph(36, 44, 2)})
    for command in (LDGP, SDR):
        again(command, tmp_path)
    first = files(place / "sdr/x")
    again(SDR, tmp_path, "--seed=1")
    assert {path.name for path in (place / "sdr").iterdir()} == {"run.json", "earlier-1", "earlier-2", "x"}
    assert files(place / "sdr/earlier-2/x") == first and (place / "sdr/earlier-2/earlier-1/0.png").exists()
    assert set(os.listdir(place / "sdr(fuse)/earlier-1")) == {"run.json", "earlier-1.png", "x.png"}


def test_a_training_goes_on_as_if_it_had_not_been_interrupted(copy):
    """Bit for bit, with workers or without, whichever of its files a kill has left."""
    saved, result = copy / "result_all/Rain100L", copy / DATA / "result"

    def what_is_there():
        weights = torch.load(saved / "model.pkl", weights_only=True)["model"]
        losses = (saved / "loss.csv").read_text()
        return {name: tensor.numpy().tobytes() for name, tensor in weights.items()}, losses, files(result)

    for recipe in ("", "--recipe=fast"):
        for command in (LDGP, SDR) if recipe else ():
            again(command, copy, "--recipe=fast")
        again(ALL, copy, f"--overwrite {recipe}")
        unbroken = what_is_there()
        if recipe:  # the network is the mean of recent weights
            mean = torch.load(saved / "resume.pkl", weights_only=True)["mean"]
            assert all(mean[f"module.{name}"].numpy().tobytes() == data for name, data in unbroken[0].items())
        other = "--save_every=1" if recipe else "--save_every=1 --cache_gb=0"  # which in the fast recipe holds the versions
        for first, lost, then in ((1, ["loss.csv", "model.pkl"], "--workers=2"), (2, [], other),
                                  (3, ["model.pkl", "resume.pkl"], "")):
            shutil.rmtree(saved)
            shutil.rmtree(result)
            again(ALL, copy, f"--epoch={first} {recipe} --workers={2 if first == 2 else 0}")
            assert first == 3 or what_is_there()[0] != unbroken[0]
            for name in lost:
                (saved / name).unlink()
            said = again(ALL, copy, f"{then} {recipe}")
            assert first == 3 or f"goes on after epoch {first} of result_all/Rain100L/resume.pkl" in said.stderr
            assert f"{3 if first == 3 else 3 - first} epochs in" in said.stdout and what_is_there() == unbroken
    assert "(differs in cache_gb)" in again(ALL, copy, "--recipe=fast --cache_gb=0").stderr and what_is_there() != unbroken


def test_progress_that_is_none(copy):
    path = copy / "result_all/Rain100L/resume.pkl"
    good = torch.load(path, weights_only=True)
    for content, words in ((None, "damaged, or not a checkpoint"), (good | {"optimizer": {}}, "not the progress of such a"),
                           (good | {"losses": ["x"]}, "not the progress of such a training"),
                           (good | {"model": {}}, "its weights cannot be used in a DnCNN"),
                           (good | {"losses": [0.5] * 9}, "has 9 epochs, more than --epoch=3")):
        if content:
            torch.save(content, path)
        else:
            path.write_bytes(path.read_bytes()[:5000])
        before = files(copy)
        line = complaint(again(ALL, copy, ok=False), "sdrl_all.py: result_all/Rain100L/resume.pkl: ", words)
        assert files(copy) == before and ("--overwrite" in line or "weights" in words)


@pytest.mark.parametrize("command, how, flags, times", [
    (LDGP, "KILL", "", 6), (SDR, "KILL", "", 6), (SDR, "INT", "", 6), (LDGP, "TERM", "", 6),
    (ONLINE, "KILL", "--recipe=fast --steps=0", 6),
    *[pytest.param(command, how, {ALL: "--save_every=1", TEST: "--model_path=model.pkl"}.get(command, ""), 50,
                   marks=pytest.mark.long) for command in STAGES for how in ("KILL", "INT", "TERM")]])
def test_ended_at_random_moments(copy, command, how, flags, times):
    """Runs tests/killing.py, which checks what each of so many runs that are ended leaves."""
    if command == ONLINE:
        shutil.rmtree(copy / DATA / "ldgp")
    if command == TEST:
        shutil.move(copy / "result_all/Rain100L/model.pkl", copy / "model.pkl")
    for place in PLACES[command]:
        shutil.rmtree(copy / place, ignore_errors=True)
    words = shlex.split(f"{command} {SHORT[command]} {flags}")[1:]
    script("tests/killing.py", how, times, ",".join(PLACES[command]), *words, cwd=copy, env=ONE_THREAD)


@pytest.mark.parametrize("end, number", [(os.killpg, signal.SIGINT), (os.kill, signal.SIGTERM)], ids=["Ctrl-C", "kill"])
def test_a_run_that_is_ended_says_one_line(copy, end, number):
    """The terminal sends Ctrl-C to the workers as well; none shows a traceback, none stays. No other run trained there."""
    flags = "--epoch=100000 --save_every=1 --model_save_dir=elsewhere"
    process = begun(ALL, f"{flags} --workers=2", copy, start_new_session=True)
    until = time.monotonic() + PATIENCE
    while not (copy / "elsewhere/resume.pkl").exists() and time.monotonic() < until and process.poll() is None:
        time.sleep(0.02)
    other = again(ALL, copy, flags, ok=None)
    end(process.pid, number)
    said = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 130 and "Traceback" not in said, said
    assert said.endswith("sdrl_all.py: stopped; what is written is whole, and the same command goes on from there\n"), said
    complaint(other, "elsewhere: another process trains there; name another folder with --model_save_dir")


# Ends a training as plain `kill` does while it asks a worker for its crops: a thread of the worker meets the end of a file.
KILLED_WHILE_IT_ASKS = """
import os, runpy, signal, sys
from multiprocessing import connection, process, resource_sharer

def get_connection(place):
    with connection.Client(place[0], authkey=process.current_process().authkey):
        os.kill(os.getpid(), signal.SIGTERM)

resource_sharer._resource_sharer.get_connection = get_connection
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_what_a_library_s_thread_says_at_the_end_does_not_reach_the_user(copy):
    words = shlex.split(f"{ALL} {SHORT[ALL]} --workers=1 --overwrite")[2:]
    process = script("-c", KILLED_WHILE_IT_ASKS, ROOT / "sdrl_all.py", *words, cwd=copy, env=ONE_THREAD, ok=False)
    assert process.returncode == 130 and len(process.stderr.splitlines()) == 1, process.stderr


def failing(patch, number, code=errno.ENOSPC):
    """Let the number-th write or rename, and all after it, fail as on a full disk; a write leaves half its bytes."""
    calls = []
    for name in ("write_bytes", "replace", "rename"):
        def fail(path, what, honest=getattr(Path, name)):
            calls.append(path)
            if len(calls) < number:
                return honest(path, what)
            if isinstance(what, bytes):
                honest(path, what[: len(what) // 2])
            raise OSError(code, os.strerror(code), str(path))

        patch.setattr(Path, name, fail)
    return calls


@each_stage
def test_a_disk_that_fills_at_every_write(folder, command):
    """One line whichever write it is; what was done before is whole, and the same command ends the work."""
    def pictures():
        return {name: data for name, data in results(folder, command).items() if name.endswith("png")}

    expected, network, number, failed = pictures(), (folder / "result_all/Rain100L/model.pkl").read_bytes(), 0, True
    while failed:
        for place in PLACES[command]:
            shutil.rmtree(folder / place, ignore_errors=True)
        if command == TEST:
            (folder / "result_all/Rain100L/model.pkl").write_bytes(network)
        number += 1 if command in (LDGP, SDR, TEST) else 3
        with pytest.MonkeyPatch.context() as patch:
            calls = failing(patch, number)
            said = again(command, folder, ok=None)
        failed = len(calls) >= number
        if failed:
            complaint(said, "No space left on device; what is written is whole, and the same command goes on from there")
        assert pictures().items() <= expected.items()
        again(command, folder)
        assert pictures() == expected
    assert number > 3 and not earlier(folder)


def test_a_write_that_fails_leaves_the_old_file(copy, monkeypatch):
    """And one whose name the disk refuses fails alone."""
    write_bytes(copy / "x.png", b"old")
    before = files(copy)
    for number in (1, 2):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="x.png"):
            failing(patch, number)
            write_bytes(copy / "x.png", b"new")
        assert files(copy) == before

    def refuse(path, data, write=Path.write_bytes):
        if "rue" in path.name:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        write(path, data)

    monkeypatch.setattr(Path, "write_bytes", refuse)
    said = stage(LDGP, "--overwrite", copy, ok=False)
    complaint(said, f"failed: {DATA}/input/rue.png: {DATA}/ldgp/rue.png: File name too long")
    assert "2 images, 1 failed" in said.stdout and set(files(copy / DATA / "ldgp")) == {"lac.png"}


def test_locks_and_file_systems_without_them(copy, monkeypatch):
    """One process at a time prepares a folder. Without locks, every process does the work: none seems to be at it."""
    prepared = Results("ldgp.py", copy / "masks", {}, {"input": copy / DATA / "input"})
    (copy / "masks").mkdir()
    other = threading.Thread(target=prepared.prepare, args=([copy / DATA / "input/rue.png"],))
    with alone_in(copy / "masks"):
        other.start()
        other.join(0.2)
        assert other.is_alive() and not (copy / "masks/run.json").exists()
    other.join(PATIENCE)
    assert (copy / "masks/run.json").exists()
    for name in ("lockf", "flock"):
        monkeypatch.setattr(fcntl, name, mock.Mock(side_effect=OSError(errno.ENOLCK, "No locks available")))
    assert "2 images, 0 failed, 0." in stage(LDGP, "--overwrite", copy).stdout


def test_two_processes_on_one_folder_share_the_work(tmp_path):
    """Each photograph is made once, and the bytes are those of one process."""
    place = data_set(tmp_path, **{f"p{n}": photograph(36, 44, n) for n in range(12)})
    stage(LDGP, "", tmp_path)
    stage(SDR, "--sdr_num=20", tmp_path)
    expected = {part: files(place / part) for part in ("sdr", "sdr(fuse)")}
    for part in expected:
        shutil.rmtree(place / part)
    made = []
    for process in [begun(SDR, "--sdr_num=20", tmp_path) for _ in range(2)]:
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0 and out.startswith("sdr.py: 12 images, 0 failed, ") and "moved to" not in err, err
        made += re.findall(r"sdr\.py: (p\d+)\.png", err)
    assert sorted(made) == sorted(f"p{n}" for n in range(12))
    assert {part: files(place / part) for part in expected} == expected
