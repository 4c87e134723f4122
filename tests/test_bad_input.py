"""Bad input gets one line that names the file, says what is wrong and what to do, and a non-zero exit code.

No traceback, nothing lost, nothing half-written, and one bad image does not stop the others.
"""
import io
import os
import pickle
import re
import shlex
import shutil
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from models import build
from sdr import write_references
from sdrl import RECIPES
from sdrl_all import load
from utils.image import ImageError, read_image, write_png

from test_stages import ALL, LDGP, ONLINE, SDR, SDRL, SHORT, TEST, data_set, files, from_shell, last_line, photograph, stage

STAGES = (LDGP, SDR, SDRL, ONLINE, ALL, TEST)
NAMES = [command.split()[1] for command in STAGES]
each_stage = pytest.mark.parametrize("command", STAGES, ids=NAMES)
DATA = "dataset/Rain100L"
SHORTEST = {**SHORT, SDR: "--sdr_num=2", SDRL: "--steps=1", ONLINE: "--steps=1",
            ALL: "--epoch=1 --batch_size=2 --crop_size=32 --model_save_dir=trained"}


def complaints(done):
    """The lines on stderr that are meant for the user, without progress; no traceback is among what was shown."""
    assert done.returncode != 0
    assert "Traceback" not in done.stdout + done.stderr and "Error:" not in done.stderr, done.stderr[-3000:]
    lines = [line.strip() for line in re.split(r"[\r\n]+", done.stderr) if line.strip()]
    return [line for line in lines if not re.search(r"\d+%\||\?(image|step|epoch)/s", line)]


def complaint(done, *words):
    """The one line on stderr, which must hold the words."""
    lines = complaints(done)
    assert len(lines) == 1, lines
    for word in words:
        assert word in lines[0], (word, lines[0])
    return lines[0]


def leftovers(folder):
    return [path for path in folder.rglob("*") if path.name.endswith(".part")]


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """A photograph with its mask, references and a network: all that every stage needs."""
    folder = tmp_path_factory.mktemp("ready")
    data_set(folder, gut=photograph(36, 44, 1))
    for command in (LDGP, SDR):
        stage(command, SHORTEST[command], folder)
    (folder / "result_all/Rain100L").mkdir(parents=True)
    torch.save({"model": build("DnCNN").state_dict(), "backbone": "DnCNN"}, folder / "result_all/Rain100L/model.pkl")
    return folder


@pytest.fixture
def copy(ready, tmp_path):
    """A copy of it, to be spoilt: the folder that the commands are run in."""
    shutil.copytree(ready, tmp_path, dirs_exist_ok=True)
    return tmp_path


# --- folders -------------------------------------------------------------------------------------------------------

@each_stage
def test_no_photographs(copy, command):
    """A missing folder, and one in which nothing is a photograph."""
    shutil.rmtree(copy / DATA / "input")
    before = files(copy)
    complaint(stage(command, SHORTEST[command], copy, ok=False), f"{DATA}/input: no such folder")
    (copy / DATA / "input/sub.png").mkdir(parents=True)
    (copy / DATA / "input/Thumbs.db").write_text("x")
    complaint(stage(command, SHORTEST[command], copy, ok=False), f"{DATA}/input: no image in this folder")
    assert files(copy) == {**before, f"{DATA}/input/Thumbs.db": b"x"} and not leftovers(copy)


RESULTS = {LDGP: ["--save_path"], SDR: ["--save_path", "--fuse_save_path"], SDRL: ["--result_path"], ONLINE: ["--result_path"],
           ALL: ["--result_path", "--model_save_dir"], TEST: ["--result_path"]}


@pytest.mark.parametrize("command, flag", [(command, flag) for command in STAGES for flag in RESULTS[command]],
                         ids=[f"{command.split()[1]}{flag}" for command in STAGES for flag in RESULTS[command]])
def test_results_where_a_file_is_or_the_photographs_are(copy, command, flag):
    """Found out at the start, and the same for a folder below a file."""
    (copy / "file").write_text("mine")
    before = files(copy)
    for place in ("file", "file/below/it"):
        complaint(stage(command, f"{SHORTEST[command]} {flag}={place}", copy, ok=False), " file: a file, but a folder")
    done = stage(command, f"{SHORTEST[command]} {flag}={DATA}/../Rain100L/input", copy, ok=False)
    complaint(done, "input: results would replace the photographs")
    assert files(copy) == before


# --- one bad image among others ------------------------------------------------------------------------------------

def damaged(image, extension, **options):
    data = io.BytesIO()
    Image.fromarray(image).save(data, extension, **options)
    return data.getvalue()[: len(data.getvalue()) * 2 // 3]


@pytest.fixture(scope="module")
def spoilt(ready, tmp_path_factory):
    """Eleven bad photographs around a good one; returns (folder, {stem: (file named, what is said of it)})."""
    folder = tmp_path_factory.mktemp("spoilt")
    shutil.copytree(ready, folder, dirs_exist_ok=True)
    source = folder / DATA / "input"
    deep = np.random.default_rng(0).integers(0, 65536, (36, 44, 3), dtype=np.uint16)
    said = {}

    def put(name, data, words):
        (source / name).write_bytes(data)
        said[name.rsplit(".", 1)[0]] = (f"{DATA}/input/{name}", words)

    def encoded(extension, array):
        return cv2.imencode(extension, array)[1].tobytes()

    put("text.png", b"not a photograph\n", "not an image that can be read; remove it or replace it")
    put("empty.jpg", b"", "not an image that can be read")
    put("cut.png", damaged(photograph(36, 44, 2), "PNG"), "damaged or cut short")
    put("cutjpeg.jpg", damaged(photograph(36, 44, 3), "JPEG"), "damaged or cut short")
    put("cuttiff.tif", damaged(photograph(36, 44, 3), "TIFF", compression="tiff_lzw"), "")
    put("grey16.png", encoded(".png", deep[..., 0]), "more than 8 bits a channel; convert it to 8 bits")
    put("colour16.png", encoded(".png", deep), "more than 8 bits a channel")
    put("colour16tiff.tif", encoded(".tif", deep), "more than 8 bits a channel")
    put("grey16tiff.tiff", encoded(".tiff", deep[..., 0]), "more than 8 bits a channel")
    put("float.tif", encoded(".tif", deep[..., 0].astype(np.float32)), "")
    put("twin.png", encoded(".png", photograph(36, 44, 4)), "share the name 'twin'; rename or remove all but one")
    put("twin.jpg", encoded(".jpg", photograph(36, 44, 5)), "share the name 'twin'")
    said["twin"] = (f"{DATA}/input: twin.jpg and twin.png", "share the name 'twin'; rename or remove all but one")
    for stem in said:  # what earlier stages had made of it before it was spoilt
        shutil.copy(folder / DATA / "ldgp/gut.png", folder / DATA / f"ldgp/{stem}.png")
        shutil.copytree(folder / DATA / "sdr/gut", folder / DATA / f"sdr/{stem}")
    return folder, said


@each_stage
def test_one_bad_image_does_not_stop_the_others(spoilt, tmp_path, command):
    source, said = spoilt
    shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    name = command.split()[1]
    place = tmp_path / ("result_all/Rain100L/image" if command == TEST else f"{DATA}/" + {LDGP: "ldgp", SDR: "sdr(fuse)"}.get(
        command, "result"))
    place.mkdir(exist_ok=True)
    for stem in said:  # results of an earlier run
        (place / f"{stem}.png").write_text(f"the old {stem}")
    (place / "gut.png").unlink(missing_ok=True)
    before = files(tmp_path)

    done = stage(command, SHORTEST[command], tmp_path, ok=False)
    lines = complaints(done)
    moved = [line for line in lines if f"{len(said)} results without a record moved to" in line]
    assert len(moved) == (command != ALL) and len(lines) == len(said) + len(moved), lines
    for file, words in said.values():
        assert sum(line.startswith(f"{name}: failed: {file}") and words in line for line in lines) == 1, (file, words, lines)
    line = done.stdout.splitlines()[-1]
    assert line.startswith(f"{name}: {len(said) + 1} images, {len(said)} failed, ")
    assert read_image(place / "gut.png").shape == (36, 44, 3)
    after = files(tmp_path)
    after |= {f"{path.parent.relative_to(tmp_path)}/{name}": data for path in tmp_path.rglob("earlier-1")
              for name, data in files(path).items()}
    assert all(after[path] == data for path, data in before.items() if "/sdr/gut/" not in path)
    made = {f"{place.relative_to(tmp_path)}/gut.png"}
    made |= {f"trained/{file}" for file in ("model.pkl", "resume.pkl", "loss.csv")} if command == ALL else set()
    assert after.keys() - before.keys() == made


def test_no_damage_goes_through_as_anything_but_an_image_error(tmp_path):
    """Files cut anywhere, and with any byte changed, in steps that reach headers and data."""
    exif = Image.Exif()
    exif[0x0112] = 6
    refused = 0
    for extension, options in (("png", {}), ("jpeg", {}), ("tiff", {}), ("bmp", {})):
        data = io.BytesIO()
        Image.fromarray(photograph(6, 5, 1)).save(data, extension, exif=exif, **options)
        whole = data.getvalue()
        spoilt = [whole[:length] for length in range(0, len(whole), 1 + len(whole) // 60)]
        spoilt += [whole[:n] + bytes([whole[n] ^ flip]) + whole[n + 1 :] for n in range(0, len(whole), 1 + len(whole) // 60)
                   for flip in (1, 255)]
        for contents in spoilt:
            (tmp_path / "x.png").write_bytes(contents)
            try:
                assert read_image(tmp_path / "x.png").dtype == np.uint8
            except ImageError as error:
                refused += 1
                assert str(error).startswith(f"{tmp_path}/x.png: ") and "\n" not in str(error)
    assert refused > 200


@pytest.mark.parametrize("command", [LDGP, ONLINE], ids=["ldgp.py", "sdrl_online.py"])
def test_a_side_below_32_pixels_has_no_mask(copy, command):
    write_png(copy / DATA / "input/klein.png", photograph(31, 60, 1))
    done = stage(command, f"{SHORTEST[command]} --overwrite", copy, ok=False)
    complaint(done, f"failed: {DATA}/input/klein.png: ", "60x31", "at least 32")
    assert not (copy / DATA / "ldgp/klein.png").exists()
    last_line(done, command.split()[1], 2, f"{DATA}/" + ("ldgp" if command == LDGP else "result"), failed=1)


# --- what an earlier stage should have made ------------------------------------------------------------------------

def pasted(line, script, folder):
    """Run the command that a message shows."""
    command = re.search(r"python \w+\.py .*", line).group(0)
    assert shlex.split(command)[0] == "python"
    from_shell(script, command, "", folder)
    return command


def test_masks_are_missing(copy, script):
    """One of them, all of them, and their folder; the command shown makes them."""
    write_png(copy / DATA / "input/zwei.png", photograph(36, 44, 2))
    references = files(copy / DATA / "sdr/gut")
    done = stage(SDR, "--sdr_num=2", copy, ok=False)
    line = complaint(done, f"failed: {DATA}/input/zwei.png: ", f"{DATA}/ldgp", "run ldgp.py first")
    assert done.stdout.startswith("sdr.py: 2 images, 1 failed, ")
    assert files(copy / DATA / "sdr") == {f"gut/{name}": data for name, data in references.items()}
    command = pasted(line, script, copy)
    stage(SDR, "--sdr_num=2", copy)

    for missing in ("all masks", "their folder"):
        shutil.rmtree(copy / DATA / "ldgp")
        if missing == "all masks":
            (copy / DATA / "ldgp").mkdir()
        lines = complaints(stage(SDR, "--sdr_num=2", copy, ok=False))
        assert len(lines) in (1, 2) and all(f"{DATA}/ldgp" in line and "run ldgp.py first" in line for line in lines), lines
        assert all(command in line for line in lines)


@pytest.mark.parametrize("command", [SDRL, ALL], ids=["sdrl.py", "sdrl_all.py"])
def test_references_are_missing(copy, script, command):
    """Of one image, in an empty folder, and of all; the command shown makes them."""
    write_png(copy / DATA / "input/zwei.png", photograph(36, 44, 2))
    write_png(copy / DATA / "ldgp/zwei.png", np.eye(36, 44, dtype=np.uint8) * 255)
    name = command.split()[1]
    done = stage(command, SHORTEST[command], copy, ok=False)
    line = complaint(done, f"{name}: failed: ", f"{DATA}/sdr/zwei", "; run sdr.py first: ")
    last_line(done, name, 2, f"./{DATA}/result/" if command == ALL else f"{DATA}/result", failed=1)
    assert set(files(copy / DATA / "result")) == {"gut.png"}
    (copy / DATA / "sdr/zwei").mkdir()
    done = stage(command, f"{SHORTEST[command]} --overwrite", copy, ok=False)
    empty = complaint(done, f"{name}: failed: ", f"{DATA}/sdr/zwei")
    assert empty.partition("; run ")[2] == line.partition("; run ")[2]

    shutil.rmtree(copy / DATA / "sdr")
    lines = complaints(stage(command, SHORTEST[command], copy, ok=False))
    assert sum(f"{DATA}/sdr/" in line and "; run sdr.py first: " in line for line in lines) == 2
    if command == SDRL:
        pasted(line, script, copy)
        stage(command, SHORTEST[command], copy)


def test_a_mask_or_a_reference_of_another_size(copy):
    place = copy / DATA
    data_set(copy, zwei=photograph(36, 44, 2))
    shutil.copytree(place / "sdr/gut", place / "sdr/zwei")
    write_png(place / "ldgp/zwei.png", np.zeros((44, 36), np.uint8))
    before = files(place / "sdr/zwei")
    for command in (SDR, ONLINE):
        done = stage(command, f"{SHORTEST[command]} --overwrite", copy, ok=False)
        complaint(done, f"failed: {DATA}/ldgp/zwei.png: 36x44, but {DATA}/input/zwei.png is 44x36; make it again")
        assert f"{command.split()[1]}: 2 images, 1 failed" in done.stdout
    assert files(place / "sdr/zwei") == before and not (place / "sdr(fuse)/zwei.png").exists()

    write_png(place / "sdr/zwei/1.png", np.zeros((36, 43, 3), np.uint8))
    for command in (SDRL, ALL):
        done = stage(command, f"{SHORTEST[command]} --overwrite", copy, ok=False)
        complaint(done, f"failed: {DATA}/sdr/zwei/1.png: 43x36, but {DATA}/input/zwei.png is 44x36; make it again")
    (place / "sdr/zwei/1.png").write_text("text")
    for command in (SDRL, ALL):
        done = stage(command, f"{SHORTEST[command]} --overwrite", copy, ok=False)
        complaint(done, f"failed: {DATA}/sdr/zwei/1.png: not an image")
    assert set(files(place / "result")) == {"gut.png"}


def test_a_folder_of_masks_without_masks_is_none_to_sdrl_online(copy):
    (copy / DATA / "ldgp/gut.png").rename(copy / DATA / "ldgp/Thumbs.db")
    stage(ONLINE, "--steps=1", copy)
    assert set(files(copy / DATA / "ldgp")) == {"Thumbs.db", "gut.png"}


# --- interruptions -------------------------------------------------------------------------------------------------

def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    write_png(tmp_path / "x.png", photograph(8, 8, 1))
    before = files(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    for function in ("replace", "chmod"):
        with monkeypatch.context() as patch:
            patch.setattr(os, function, full)
            with pytest.raises(OSError, match="No space"):
                write_png(tmp_path / "x.png", photograph(8, 8, 2))
        assert files(tmp_path) == before


def test_references_that_fail_half_way_leave_the_old_ones(tmp_path):
    with ThreadPoolExecutor(2) as pool:
        write_references([photograph(8, 8, n) for n in range(3)], tmp_path / "sdr/x", pool)
        before = files(tmp_path)

        def broken():
            yield photograph(8, 8, 9)
            raise MemoryError

        with pytest.raises(MemoryError):
            write_references(broken(), tmp_path / "sdr/x", pool)
    assert files(tmp_path) == before and len(before) == 3 and not leftovers(tmp_path)


@pytest.mark.parametrize("command", [LDGP, ONLINE], ids=["ldgp.py", "sdrl_online.py"])
def test_control_c_and_running_out_of_memory(copy, monkeypatch, command):
    """The first stops the run, the second fails the image with some advice; both within a line."""
    write_png(copy / DATA / "input/zwei.png", photograph(36, 44, 2))
    before = files(copy)
    for error, words in ((KeyboardInterrupt, "stopped; what is written so far is whole"), (MemoryError, "out of memory")):
        def fail(*_, **__):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr("cv2.adaptiveThreshold" if command == LDGP else "torch.nn.functional.mse_loss", fail)
            done = stage(command, f"{SHORTEST[command]} --overwrite", copy, ok=False)
        lines = complaints(done)
        assert len(lines) == (1 if error is KeyboardInterrupt else 2) and all(words in line for line in lines), lines
        assert done.returncode == (130 if error is KeyboardInterrupt else 1)
        made = {path: data for path, data in files(copy).items() if path != f"{DATA}/ldgp/zwei.png"}
        assert made == before and not leftovers(copy)


# --- flags ---------------------------------------------------------------------------------------------------------

ANY = {"seed": ["-1", "x", "1.5", "99999999999999999999"], "tile_size": ["0", "-1", "255"]}
NSS = {"sdr_num": ["0", "-1", "x", "100001"], "K": ["0", "-1", "1.5", "256"], "k": ["0", "-1", "2", "4", "257"],
       "pow": ["-0.5", "nan", "inf", "x"], "threshold": ["-1", "256"]}
ALONE = {**ANY, "epoch": ["0", "-1"], "steps": ["-1"], "lr": ["-1", "nan", "inf", "1e31"], "average": ["-0.1", "1", "nan"],
         "crop_size": ["-1", "x"], "batch_size": ["0", "-1", "4097"]}
NUMBERS = {
    LDGP: {"patch_size": ["0", "-1", "31", "8.5"], "kernel_size": ["0", "-1", "", "10001"]},
    SDR: {**NSS, "seed": ["-1", "x", "4294967296"]},
    SDRL: ALONE,
    ONLINE: {**ALONE, **NSS},
    ALL: {**ANY, "epoch": ["0", "-1"], "lr": ["-1", "nan", "inf", "1e31"], "lr_steps": ["-1"], "batch_size": ["0", "-1"],
          "crop_size": ["0", "-1", "16385"], "save_every": ["0", "-1"], "workers": ["-1", "257"], "cache_gb": ["-1", "nan"]},
    TEST: {"tile_size": ANY["tile_size"]},
}
OTHERS = {"help", "dataset", "device", "backbone", "recipe", "amp", "resume", "overwrite", "independent", "true_cells",
          "model_save_dir"} | {name for name, value in RECIPES["paper"].items() if isinstance(value, (bool, str))}


@each_stage
def test_numbers_that_make_no_sense(copy, command):
    before = files(copy)
    for flag, values in NUMBERS[command].items():
        for value in values:
            done = stage(command, f"--{flag}={value}", copy, ok=False)
            complaint(done, f"{command.split()[1]}: argument --{flag}: '{value}' is not a", "(see --help)")
            assert done.returncode == 2 and not done.stdout
    assert files(copy) == before
    numeric = set(re.findall(r"^  (?:-h, )?--(\w+)", stage(command, "--help", copy).stdout, re.MULTILINE)) - OTHERS
    assert {flag for flag in numeric if not flag.endswith("_path")} == NUMBERS[command].keys()  # none is forgotten above


def test_an_exponent_that_leaves_no_weights(copy):
    for command in (SDR, ONLINE):
        complaint(stage(command, f"{SHORTEST[command]} --pow=1000", copy, ok=False), "pow", "1000")


@each_stage
def test_flags_that_do_not_exist(copy, command):
    name = command.split()[1]
    complaint(stage(command, "--colour=red", copy, ok=False), f"{name}: unrecognized arguments: --colour=red (see --help)")
    complaint(stage(command, "red", copy, ok=False), f"{name}: unrecognized arguments: red")


@pytest.mark.parametrize("command", [SDRL, ONLINE, ALL], ids=["sdrl.py", "sdrl_online.py", "sdrl_all.py"])
def test_an_unknown_backbone(copy, command):
    done = stage(command, "--backbone=VGG", copy, ok=False)
    complaint(done, "argument --backbone: invalid choice: 'VGG'", "Unet", "ResNet", "DnCNN", "Restormer", "DRSFormer")


def test_an_unknown_recipe(copy):
    complaint(stage(SDRL, "--recipe=slow", copy, ok=False), "argument --recipe: invalid choice: 'slow'", "paper", "fast")


def test_epochs_of_the_recipe_that_has_none(copy):
    before = files(copy)
    for command in (SDRL, ONLINE):
        done = stage(command, "--recipe=fast --epoch=3", copy, ok=False)
        complaint(done, f"{command.split()[1]}: --epoch is of --recipe=paper; --recipe=fast is told", "--steps")
        assert done.returncode == 1 and not done.stdout and files(copy) == before


@pytest.mark.parametrize("command", [SDRL, ONLINE, ALL, TEST], ids=["sdrl.py", "sdrl_online.py", "sdrl_all.py", "test_all.py"])
def test_a_device_that_is_none(copy, command):
    before = files(copy)
    for device in ["warp", "cpu:x", "meta", "cuda:77"] + ([] if torch.cuda.is_available() else ["cuda", "cuda:0"]):
        done = stage(command, f"{SHORTEST[command]} --device={device}", copy, ok=False)
        complaint(done, f"{command.split()[1]}: --device {device} cannot be used here", "use --device cpu")
    assert files(copy) == before


# --- checkpoints ---------------------------------------------------------------------------------------------------

class Mischief:
    """A pickle of it makes a file when it is opened by pickle.load."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_checkpoints_that_are_none(copy):
    path = copy / "result_all/Rain100L/model.pkl"
    good = path.read_bytes()

    def refused(*words):
        complaint(stage(TEST, "", copy, ok=False), "test_all.py: ./result_all/Rain100L/model.pkl: ", *words)

    def holds(**content):
        torch.save(content, path)

    path.unlink()
    refused("no such checkpoint", "sdrl_all.py")
    path.mkdir()
    refused("cannot be read")
    path.rmdir()
    for contents in (good[:100], good[: len(good) // 2], good[:-30], b"", b"text", pickle.dumps({"model": 1})[:-3]):
        path.write_bytes(contents)
        refused("damaged, or not a checkpoint", "sdrl_all.py")
    for write in (lambda value: path.write_bytes(pickle.dumps(value)), lambda value: torch.save(value, path)):
        write({"model": Mischief(copy / "executed")})
        refused("damaged, or not a checkpoint of tensors and plain values", "sdrl_all.py")
        assert not (copy / "executed").exists()
    torch.save([1, 2], path)
    refused("without an entry 'model'")
    holds(weights={})
    refused("without an entry 'model'")
    holds(model=build("DnCNN").state_dict())
    refused("its weights are not those of a Unet")
    holds(model=build("Unet").state_dict(), backbone="DnCNN")
    refused("its weights are not those of a DnCNN")
    for model in (None, [1], {"a": 1}, {1: 2}, torch.zeros(3)):
        holds(model=model)
        refused("its weights are not those of a Unet")
    for backbone in ("VGG", ["Unet"], None):
        holds(model={}, backbone=backbone)
        refused("unknown backbone", "Unet, ResNet, DnCNN")
    assert not (copy / "result_all/Rain100L/image").exists()
    path.write_bytes(good)
    stage(TEST, "", copy)


def test_a_checkpoint_cut_anywhere_is_refused(tmp_path):
    data = io.BytesIO()
    torch.save({"model": {"weight": torch.arange(4.0)}}, data)
    whole = data.getvalue()
    for length in range(0, len(whole) - 1, 1 + len(whole) // 40):
        (tmp_path / "cut.pkl").write_bytes(whole[:length])
        with pytest.raises(ImageError, match=r"cut\.pkl: damaged"):
            load(tmp_path / "cut.pkl")


def test_resuming_what_does_not_fit(copy):
    short = "--epoch=1 --batch_size=1 --crop_size=32"
    complaint(stage(ALL, f"{short} --resume", copy, ok=False), "result_all/Rain100L/resume.pkl: no such checkpoint")
    stage(ALL, short, copy)
    before = files(copy)
    for flags, words in (("--lr=0.01", "--lr"), ("--seed=4 --batch_size=2", "--seed, --batch_size"),
                         ("--identity", "--identity"), ("--backbone=DnCNN", "--backbone"), ("--lr_steps=3", "--lr_steps"),
                         ("--crop_size=16", "--crop_size")):
        line = complaint(stage(ALL, f"{short} {flags} --resume", copy, ok=False), "resume.pkl: was made with another " + words)
        assert "start anew without --resume" in line
    assert files(copy) == before
    progress = copy / "result_all/Rain100L/resume.pkl"
    shutil.copy(copy / "result_all/Rain100L/model.pkl", progress)
    complaint(stage(ALL, f"{short} --resume", copy, ok=False), "resume.pkl: nothing to go on from", "without --resume")
    progress.write_bytes(before["result_all/Rain100L/resume.pkl"][:5000])
    complaint(stage(ALL, f"{short} --resume", copy, ok=False), "resume.pkl: damaged")


def test_the_shell_sees_the_same(spoilt, script, tmp_path):
    """As processes of their own: lines on stderr, and the exit codes."""
    done = from_shell(script, "python sdr.py --k=4", "", tmp_path, ok=False)
    assert done.stderr == "sdr.py: argument --k: '4' is not a whole number from 1 to 255 and odd (see --help)\n"
    assert (done.returncode, done.stdout) == (2, "")
    done = from_shell(script, f"python ldgp.py --input_path={tmp_path}/nowhere", "", tmp_path, ok=False)
    assert done.stderr == f"ldgp.py: {tmp_path}/nowhere: no such folder; put the images there or name another one\n"
    assert (done.returncode, done.stdout) == (1, "")
    done = from_shell(script, LDGP, f"--save_path={tmp_path}", spoilt[0], ok=False)
    assert len(complaints(done)) == len(spoilt[1]) and done.returncode == 1
    assert set(files(tmp_path)) == {"gut.png"}
