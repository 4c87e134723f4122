"""The same command again: what is done, whole and of this run is not done again; another run's is set aside, never mixed in."""
import json
import os
import shutil

import numpy as np
import pytest
import torch

import utils.record
from utils.image import HOST, list_images, read_image, write_png
from utils.record import Record

from test_bad_input import complaint
from test_stages import SHORT as USUAL
from test_stages import ALL, LDGP, ONLINE, SDR, SDRL, TEST, data_set, files, photograph, same_weights, stage, weights

DATA = "dataset/Rain100L"
NAMES = ("lac", "mer", "rue")
SHORT = {**USUAL, **{command: f"{USUAL[command]} --backbone=DnCNN" for command in (SDRL, ONLINE, ALL)}}  # small checkpoints
# Where each stage's results are, and a flag that makes others.
PLACES = {LDGP: [f"{DATA}/ldgp"], SDR: [f"{DATA}/sdr", f"{DATA}/sdr(fuse)"],
          SDRL: [f"{DATA}/result"], ONLINE: [f"{DATA}/result"], ALL: [f"{DATA}/result", "result_all/Rain100L"],
          TEST: ["result_all/Rain100L/image"]}
OTHER = {LDGP: "--kernel_size=7", SDR: "--seed=1", SDRL: "--seed=4", ONLINE: "--K=5", ALL: "--lr=0.01", TEST: "--amp"}
each_stage = pytest.mark.parametrize("command", PLACES, ids=[command.split()[1] for command in PLACES])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Three photographs with masks, references and a network: (folder, {command: files of an unbroken run})."""
    folder = tmp_path_factory.mktemp("made")
    data_set(folder, **{name: photograph(36, 44, n) for n, name in enumerate(NAMES)})
    unbroken = {}
    for command in PLACES:
        stage(command, SHORT[command], folder)
        unbroken[command] = everything(folder, command)
        if command in (SDRL, ONLINE):
            shutil.rmtree(folder / DATA / "result")
    return folder, unbroken


@pytest.fixture
def copy(made, tmp_path):
    shutil.copytree(made[0], tmp_path, dirs_exist_ok=True)
    return tmp_path


def everything(folder, command):
    """The result files of a stage, but those that hold times; and nothing set aside."""
    return {f"{place}/{name}": data for place in PLACES[command] for name, data in files(folder / place).items()
            if name not in ("resume.pkl", "loss.csv") and not (command == ALL and name.startswith("image/"))}


def stamps(folder):
    """When each file was last written, and which it is, hidden ones too."""
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.rglob("*")
            if path.is_file()}


def earlier(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("earlier-*"))


def again(command, copy, flags="", **options):
    return stage(command, f"{SHORT[command]} {flags}", copy, **options)


@pytest.fixture
def done(made, copy):
    """The copy in which a stage's results are there: a function of the command."""

    def of(command):
        if command in (SDRL, ONLINE):
            shutil.rmtree(copy / DATA / "result")
            again(command, copy)
        return copy

    return of


@each_stage
def test_the_same_command_again_does_nothing_again(done, made, command):
    copy = done(command)
    before = stamps(copy)
    said = again(command, copy)
    assert stamps(copy) == before
    name = command.split()[1]
    assert f"{name}: 3 images, 0 failed, 3 done before, nothing done, results in " in said.stdout
    assert "moved to" not in said.stderr and everything(copy, command) == made[1][command]
    assert command != ALL or "0 epochs in" in said.stdout and "goes on after epoch 3 of " in said.stderr


@each_stage
def test_overwrite_does_everything_again(done, made, command):
    copy = done(command)
    before = stamps(copy)
    said = again(command, copy, "--overwrite")
    now = stamps(copy)
    results = [name for name in everything(copy, command) if not name.endswith(".pkl")]
    assert results and all(now[name] != before[name] for name in results)
    assert everything(copy, command) == made[1][command] and now.keys() == before.keys()
    assert "done before" not in said.stdout and "moved to" not in said.stderr
    again(command, copy, f"--overwrite {OTHER[command]}")
    assert everything(copy, command).keys() == made[1][command].keys() and stamps(copy).keys() == before.keys()


@each_stage
def test_another_run_s_results_are_set_aside_and_said(done, made, command):
    """With their records, so that moving them back is going back; the user's own files stay where they are."""
    copy = done(command)
    for place in PLACES[command]:
        (copy / place / "notes.txt").write_text("mine")
        write_png(copy / place / "zoo.png", photograph(8, 8, 1))
    said = again(command, copy, OTHER[command])
    flag, _, value = OTHER[command].lstrip("-").partition("=")
    line, = [line for line in said.stderr.splitlines() if "moved to" in line and DATA + "/result" not in line or
             "moved to" in line and command != ALL]
    assert f"--{flag} " in line and f", now {value or True}" in line and "earlier-1" in line
    now, first = everything(copy, command), made[1][command]
    own = {f"{place}/{name}" for place in PLACES[command] for name in ("notes.txt", "zoo.png")}
    assert now.keys() - own == first.keys() and own <= now.keys()
    for place in PLACES[command]:
        aside = {f"{place}/{name}": data for name, data in files(copy / place / "earlier-1").items()}
        assert {name: data for name, data in aside.items() if name in first} == {
            name: data for name, data in first.items() if name.startswith(f"{place}/")}
    assert len(earlier(copy)) == len(PLACES[command])
    if command != ALL:
        again(command, copy)
        assert {name: data for name, data in everything(copy, command).items() if name not in own} == first
        assert len(earlier(copy)) == 2 * len(PLACES[command])
        assert list_images(copy / PLACES[command][-1]).keys() == {*NAMES, "zoo"}  # what was set aside is nobody's input


@pytest.mark.parametrize("command", [LDGP, SDR, SDRL, TEST], ids=["ldgp.py", "sdr.py", "sdrl.py", "test_all.py"])
def test_what_is_not_whole_or_not_of_this_input_is_done_again(done, made, command):
    """One image at a time: its result removed, edited, cut; its record removed, damaged; its photograph changed."""
    copy = done(command)
    place = copy / PLACES[command][0]
    result = place / ("mer/1.png" if command == SDR else "mer.png")
    record = place / ".rain2avoid" / ("mer" if command == SDR else "mer.png")
    assert json.loads(record.read_text())["stage"] == command.split()[1]

    def spoil(action, moved, words=""):
        action()
        before = stamps(copy)
        said = again(command, copy)
        assert everything(copy, command) == made[1][command]
        assert ("moved to" in said.stderr) == moved and words in said.stderr
        assert "3 images, 0 failed, 2 done before, " in said.stdout
        now = stamps(copy)
        assert all(now[name] == stamp for name, stamp in before.items() if "/mer" not in name)

    spoil(result.unlink, False)
    spoil(lambda: result.write_bytes(result.read_bytes()[:50]), True, "1 result edited or damaged since moved to")
    spoil(record.unlink, True, "1 result without a record moved to")
    damaged = ["{", "", "[]", '{"stage": 1}', record.read_text().replace('"results"', '"x"'), '"' * 9, "[" * 100000]
    for text in damaged if command == LDGP else damaged[:1]:
        spoil(lambda: record.write_text(text), True, "1 result without a record moved to")
    spoil(lambda: record.write_text(record.read_text().replace(f'"numpy": "{np.__version__}"', '"numpy": "1.0"')), True,
          f"1 result of another run (numpy 1.0, now {np.__version__}) moved to")
    if command == SDR:
        spoil((copy / PLACES[SDR][1] / "mer.png").unlink, False)
    asides = earlier(copy)
    photo = copy / DATA / "input/mer.png"
    whole = photo.read_bytes()
    for image in (photograph(36, 44, 9), None):
        photo.write_bytes(whole) if image is None else write_png(photo, image)
        said = again(command, copy)
        assert "2 done before, 1 of changed input, " in said.stdout and "moved" not in said.stderr
    assert everything(copy, command) == made[1][command] and earlier(copy) == asides


def test_changed_masks_and_references_count_as_input(done, made):
    for command, source in ((SDR, "ldgp/mer.png"), (SDRL, "sdr/mer/1.png")):
        copy = done(command)
        path = copy / DATA / source
        write_png(path, 255 - read_image(path)[..., 0] if command == SDR else 255 - read_image(path))
        assert "2 done before, 1 of changed input, " in again(command, copy).stdout
        assert everything(copy, command) != made[1][command]


def test_masks_of_the_user_s_own(copy, made):
    """They are input to sdrl_online.py, and set aside where ldgp.py would write over them; what one makes, the other keeps."""
    masks = copy / DATA / "ldgp"
    shutil.rmtree(masks)
    mine = np.zeros((36, 44), np.uint8)
    mine[:, ::9] = 255
    write_png(masks / "mer.png", mine)
    write_png(masks / "other.png", mine)
    own = (masks / "mer.png").read_bytes()
    again(ONLINE, copy)
    expected = {name.removeprefix(f"{DATA}/ldgp/"): data for name, data in made[1][LDGP].items()}
    assert files(masks) == {**expected, "mer.png": own, "other.png": own}
    before = stamps(masks)
    said = again(LDGP, copy)
    assert f"{DATA}/ldgp: 1 result without a record moved to {DATA}/ldgp/earlier-1" in said.stderr
    assert files(masks) == {**expected, "other.png": own} and files(masks / "earlier-1") == {"mer.png": own}
    assert "2 done before" in said.stdout and stamps(masks)["lac.png"] == before["lac.png"]


def test_a_photograph_called_like_a_folder_of_what_was_set_aside(tmp_path):
    data_set(tmp_path, **{"earlier-1": photograph(36, 44, 1), "x": photograph(36, 44, 2)})
    again(LDGP, tmp_path)
    again(SDR, tmp_path)
    first = files(tmp_path / DATA / "sdr")
    (tmp_path / DATA / "sdr/x/notes.txt").write_text("mine")
    again(SDR, tmp_path, "--seed=1")
    place = tmp_path / DATA / "sdr"
    assert {path.name for path in place.iterdir()} == {".rain2avoid", "earlier-1", "earlier-2", "x"}
    aside = {str(path.relative_to(place / "earlier-2")): path.read_bytes() for path in (place / "earlier-2").rglob("*.png")
             if ".rain2avoid" not in path.parts}
    assert len(aside) == 6 and aside["x/0.png"] == first["x/0.png"] and (place / "earlier-2/x/notes.txt").exists()


def test_another_run_at_the_same_time_is_noticed(tmp_path, monkeypatch):
    """It replaces a result after this run has made it: set aside while this run lasts, and reported at its end."""
    place = data_set(tmp_path, a=photograph(36, 44, 1), b=photograph(36, 44, 2))
    enter, calls = Record.enter, []

    def other_run(self, path, results):
        calls.append(path.stem)
        if len(calls) == 1:  # the other run writes to the place of this one's first result
            utils.record.write_bytes(place / "ldgp/a.png", b"another")
        enter(self, path, results)
        if len(calls) == 2:
            (place / "ldgp/a.png").unlink()

    monkeypatch.setattr(Record, "enter", other_run)
    said = stage(LDGP, "", tmp_path, ok=False)
    assert files(place / "ldgp/earlier-1") == {"a.png": b"another"}
    assert "a.png: its result was removed or replaced since; run this again" in said.stderr
    assert "ldgp.py: 2 images, 1 failed, " in said.stdout
    monkeypatch.undo()
    assert "1 done before" in stage(LDGP, "", tmp_path).stdout


def test_leftovers_of_killed_runs_are_removed_and_no_others(tmp_path):
    place = data_set(tmp_path, a=photograph(36, 44, 1))
    masks = place / "ldgp"
    masks.mkdir()
    dead = 2**22 + 1  # beyond what Linux gives to processes
    old = {f".{HOST}-{dead}-abc_12.part": True, f".elsewhere-{dead}-abc.part": False, f".{HOST}-{os.getpid()}-abc.part": False,
           ".x1y2z3.part": False, "mine.part": False, f".{HOST}-{dead}.part": False}
    for name in old:
        (masks / name).write_text("half")
    folder = masks / f".{HOST}-{dead}-folder.part"
    folder.mkdir()
    for name in ("0.png", "12.png", f".{HOST}-{dead}-y.part"):
        (folder / name).write_text("half")
    kept = masks / f".{HOST}-{dead}-mine.part"
    kept.mkdir()
    (kept / "notes.txt").write_text("mine")
    stage(LDGP, "", tmp_path)
    assert {name for name in old if not (masks / name).exists()} == {name for name, goes in old.items() if goes}
    assert not folder.exists() and (kept / "notes.txt").exists()
    for name in old:
        if (masks / name).exists():
            os.utime(masks / name, (1, 1))
    stage(LDGP, "", tmp_path)
    assert {path.name for path in masks.iterdir()} == {".rain2avoid", "a.png", "mine.part", kept.name}


# --- sdrl_all.py ---------------------------------------------------------------------------------------------------

def test_a_training_goes_on_by_itself(copy, made):
    saved = copy / "result_all/Rain100L"
    unbroken = weights(saved / "model.pkl")
    shutil.rmtree(saved)
    shutil.rmtree(copy / DATA / "result")
    stage(ALL, SHORT[ALL].replace("--epoch=3", "--epoch=1"), copy)
    (saved / "model.pkl").unlink()  # as a kill leaves it between two files
    (saved / "loss.csv").unlink()
    said = again(ALL, copy)
    assert "goes on after epoch 1 of result_all/Rain100L/resume.pkl" in said.stderr and "2 epochs in" in said.stdout
    assert same_weights(weights(saved / "model.pkl"), unbroken) and everything(copy, ALL) == made[1][ALL]
    (saved / "model.pkl").unlink()
    assert "0 epochs in" in again(ALL, copy).stdout
    assert everything(copy, ALL) == made[1][ALL]
    (saved / "model.pkl").unlink()
    (copy / DATA / "result/lac.png").unlink()
    assert "2 done before" in again(ALL, copy).stdout
    assert everything(copy, ALL) == made[1][ALL]


def test_a_training_of_another_kind_is_set_aside(copy, made):
    saved = copy / "result_all/Rain100L"
    progress = saved / "resume.pkl"

    def moved(flags, words, number):
        before = files(saved)
        said = again(ALL, copy, flags)
        line, = [line for line in said.stderr.splitlines() if str(line).startswith("sdrl_all.py: result_all/")]
        assert words in line and line.endswith(f"moved to result_all/Rain100L/earlier-{number}")
        aside = files(saved / f"earlier-{number}")
        assert aside and all(before[name] == data for name, data in aside.items())

    moved("--batch_size=1", "model.pkl, loss.csv (of another run: --batch_size 2, now 1)", 1)
    moved("--epoch=2 --batch_size=1", "of another run: --epoch 3, now 2", 2)
    photo = copy / DATA / "input/mer.png"
    whole = photo.read_bytes()
    write_png(photo, photograph(36, 44, 9))
    moved("--batch_size=1 --epoch=2", "of another run: photographs and references ", 3)
    photo.write_bytes(whole)
    progress.write_bytes(progress.read_bytes()[:1000])
    moved("", "(a damaged resume.pkl)", 4)
    assert everything(copy, ALL) == made[1][ALL]
    progress.unlink()
    moved("", "model.pkl, loss.csv (without a resume.pkl)", 5)
    assert everything(copy, ALL) == made[1][ALL]
    content = torch.load(progress, weights_only=True)
    del content["run"]
    torch.save(content, progress)
    assert "goes on after epoch 3 of result_all/Rain100L/resume.pkl (without a record)" in again(ALL, copy, "--resume").stderr
    torch.save(content, progress)
    moved("", "(without a record)", 6)
    assert everything(copy, ALL) == made[1][ALL]


def test_resume_and_overwrite_contradict_each_other(copy):
    before = stamps(copy)
    complaint(again(ALL, copy, "--resume --overwrite", ok=False), "--resume goes on", "--overwrite starts anew")
    assert stamps(copy) == before


def test_another_checkpoint_makes_other_results(copy):
    stage(ALL, SHORT[ALL].replace("--epoch=3", "--epoch=4"), copy)
    said = again(TEST, copy)
    assert "3 results of another run (checkpoint " in said.stderr and "image/earlier-1" in said.stderr
    assert files(copy / "result_all/Rain100L/image") == files(copy / DATA / "result")
