"""Bad input gets one line that names the file and says what is wrong and what to do. One bad image does not stop the others."""
import io
import re
import shutil
from unittest import mock

import cv2
import numpy as np
import pytest
import tifffile
import torch

from ldgp import rain_mask
from sdr import Sampler
from sdrl import PAPER, derain
from utils import fast
from utils.image import png_bytes

from conftest import (ALL, DATA, LDGP, ONLINE, PLACES, SDR, SDRL, SHORT, TEST, complaint, complaints, each_stage,
                      files, name_of, photograph, stage, write_png)

RESULTS = {LDGP: ["save_path"], SDR: ["save_path", "fuse_save_path"], SDRL: ["result_path"], ONLINE: ["result_path"],
           ALL: ["result_path", "model_save_dir"], TEST: ["result_path"]}


@each_stage
def test_folders_that_cannot_be_used(copy, command):
    (copy / "file").write_text("mine")
    (copy / DATA / "target").mkdir()
    before = files(copy)
    parts = {"input", "target", "ldgp", "sdr"} - {{LDGP: "ldgp", SDR: "sdr"}.get(command)}

    def refused(flags, *words):
        complaint(stage(command, f"{SHORT[command]} {flags}", copy, ok=False), *words)

    for flag in RESULTS[command]:
        for place in ("file", "file/below/it"):
            refused(f"--{flag}={place}", f" {place}: cannot hold results", f"name another folder with --{flag}")
        for part in parts:
            refused(f"--{flag}={DATA}/../Rain100L/{part}",
                    f"{part}: results would get among the files of {part}/; name another folder with --{flag}")
    assert files(copy) == before
    shutil.rmtree(copy / DATA / "input")
    before = files(copy)
    refused("", f"{DATA}/input: no such folder; put the photographs there")
    (copy / DATA / "input/sub.png").mkdir(parents=True)
    (copy / DATA / "input/Thumbs.db").write_text("x")
    refused("", f"{DATA}/input: no image in this folder")
    assert files(copy) == {**before, f"{DATA}/input/Thumbs.db": b"x"}


@each_stage
def test_one_bad_image_does_not_stop_the_others(copy, command):
    """Text, nothing, half a file, 16 bits, and a side that is too short for a mask: one line each."""
    place = copy / PLACES[command][-1]
    shutil.rmtree(place)
    deep = np.random.default_rng(0).integers(0, 65536, (36, 44, 3), dtype=np.uint16)
    tifffile.imwrite(planar := io.BytesIO(), deep.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    tifffile.imwrite(floats := io.BytesIO(), deep.astype(np.float32), photometric="rgb")
    whole = {extension: cv2.imencode(f".{extension}", photograph(36, 44, 2))[1].tobytes() for extension in ("png", "jpg")}
    bad = {"text.png": (b"no photograph", "not an image that can be read"), "empty.jpg": (b"", "not an image that can be read"),
           "cut.png": (whole["png"][:-400], "damaged or cut short"), "half.jpg": (whole["jpg"][:600], "damaged or cut short"),
           "deep.png": (cv2.imencode(".png", deep)[1].tobytes(), "more than 8 bits a channel; convert it to 8 bits first"),
           "planar.tif": (planar.getvalue(), "more than 8 bits a channel"), "f.tif": (floats.getvalue(), "not a kind of TIFF")}
    if command in (LDGP, ONLINE):
        bad["klein.png"] = png_bytes(photograph(31, 60, 1)), "60x31 pixels is too small: LDGP needs at least 32"
    for name, (data, _) in bad.items():
        (copy / DATA / "input" / name).write_bytes(data)
        stem = name.partition(".")[0]  # what earlier stages had made of it before it was spoilt
        if command != LDGP and stem != "klein":
            shutil.copy(copy / DATA / "ldgp/rue.png", copy / DATA / f"ldgp/{stem}.png")
        if command != SDR:
            shutil.copytree(copy / DATA / "sdr/rue", copy / DATA / f"sdr/{stem}")
    name = name_of(command)
    done = stage(command, f"{SHORT[command]} --overwrite", copy, ok=False)
    lines = complaints(done)
    assert len(lines) == len(bad), lines
    for file, (_, words) in bad.items():
        assert sum(line.startswith(f"{name}: failed: {DATA}/input/{file}: {words}") for line in lines) == 1, (file, lines)
    assert done.stdout.splitlines()[-1].startswith(f"{name}: {2 + len(bad)} images, {len(bad)} failed, ")
    assert set(files(place)) == {"rue.png", "lac.png"}


def test_two_photographs_of_one_name_and_kinds_that_are_not_read(copy):
    (copy / DATA / "input/sea.HEIC").write_bytes(b"x")
    assert complaints(stage(LDGP, "--overwrite", copy)) == [
        f"ldgp.py: {DATA}/input: 1 not read, save as .png or .jpg: sea.HEIC"]
    shutil.copy(copy / DATA / "input/rue.png", copy / DATA / "input/rue.jpg")
    complaint(stage(LDGP, "", copy, ok=False), f"{DATA}/input: rue.jpg and rue.png share a name; rename or remove one")


def pasted(line, copy):
    """Run the command that a message shows."""
    command, = re.findall(r"python \w+\.py .*", line)
    stage(command, "--sdr_num=3" if "sdr.py" in command else "", copy)


@pytest.mark.parametrize("command", [SDR, SDRL, ALL], ids=name_of)
def test_masks_or_references_are_missing(copy, command):
    """Of one photograph, and all of them; the command shown makes them."""
    name, folder = name_of(command), "ldgp" if command == SDR else "sdr"
    write_png(copy / DATA / "input/zwei.png", photograph(36, 44, 2))
    if command != SDR:
        write_png(copy / DATA / "ldgp/zwei.png", np.eye(36, 44, dtype=np.uint8) * 255)
    done = stage(command, f"{SHORT[command]} --overwrite", copy, ok=False)
    complaint(done, f"{name}: failed: ", f"{DATA}/{folder}", "zwei", f"; run {'ldgp' if command == SDR else 'sdr'}.py first")
    assert done.stdout.splitlines()[-1].startswith(f"{name}: 3 images, 1 failed, ")
    pasted(done.stderr, copy)
    stage(command, SHORT[command], copy)
    shutil.rmtree(copy / DATA / folder)
    lines = complaints(stage(command, f"{SHORT[command]} --overwrite", copy, ok=False))
    assert len(lines) == {SDR: 1, SDRL: 3, ALL: 4}[command] and all(f"{DATA}/{folder}" in line for line in lines)
    pasted(lines[-1], copy)
    stage(command, SHORT[command], copy)


@pytest.mark.parametrize("command, folder", [(SDR, "ldgp"), (ONLINE, "ldgp"), (SDRL, "sdr/rue"), (ALL, "sdr/rue")])
def test_a_mask_or_a_reference_that_cannot_be_used(copy, command, folder):
    path = copy / DATA / folder / ("rue.png" if folder == "ldgp" else "0.png")
    size = f"40x56, but {DATA}/input/rue.png is 56x40; make it again"
    binary = [(png_bytes(np.ones((40, 56), np.uint8)), "the mask is 0 and 1; multiply it by 255")] * (folder == "ldgp")
    for data, words in ((png_bytes(photograph(56, 40, 2)), size), (b"text", "not an image"), *binary):
        path.write_bytes(data)
        done = stage(command, f"{SHORT[command]} --overwrite", copy, ok=False)
        complaint(done, f"failed: {path.relative_to(copy)}: {words}")
        assert done.stdout.splitlines()[-1].startswith(f"{name_of(command)}: 2 images, 1 failed, ")
        assert set(files(copy / PLACES[command][-1])) == {"lac.png"}


@pytest.mark.parametrize("flags", ["", "--workers=1", "--recipe=fast"])
def test_any_reference_of_another_size_ends_a_training_in_one_line(copy, flags):
    if "fast" in flags:
        stage(LDGP, f"--overwrite {flags}", copy)
        stage(SDR, f"{SHORT[SDR]} --overwrite {flags}", copy)
    write_png(copy / DATA / "sdr/rue/2.png", photograph(56, 40, 2))
    done = stage(ALL, f"{SHORT[ALL]} --overwrite --epoch=50 {flags}", copy, ok=False)
    assert complaint(done) == (
        f"sdrl_all.py: {DATA}/sdr/rue/2.png: 40x56, but {DATA}/input/rue.png is 56x40; make it again for this image")


@pytest.mark.parametrize("command, folder", [(SDR, "ldgp"), (ONLINE, "ldgp"), (SDRL, "sdr"), (ALL, "sdr")])
def test_what_was_made_for_something_else_is_not_used(copy, command, folder):
    """By the other recipe, or from another data set's photographs of the same names; the command shown makes what is right."""
    before, maker = files(copy), {"ldgp": "ldgp.py", "sdr": "sdr.py"}[folder]
    short = SHORT[command].replace("--steps=2", "--steps=1")
    done = stage(command, f"{short} --recipe=fast", copy, ok=False)
    complaint(done, f"{DATA}/{folder}: made with --recipe=paper, where --recipe=fast needs its own; run {maker} first: ")
    assert files(copy) == before
    shutil.copytree(copy / DATA, copy / "dataset/Other")
    other = {"ldgp": "--ldgp_path", "sdr": "--sdr_data_path"}[folder]
    where = "--input_path" if command == SDR else "--rainy_data_path"
    place = f"{where}=dataset/Other{'/input' * (command == SDR)} {other}={DATA}/{folder}"
    done = stage(command, f"{SHORT[command]} {place}", copy, ok=False)
    complaint(done, f"{DATA}/{folder}: made from the photographs in {DATA}/input, not from those in dataset/Other/input; ",
              "; name the folder of these, or run ")
    (copy / DATA / folder / "run.json").unlink()  # the user's own, now
    stage(command, f"{SHORT[command]} {place} --overwrite", copy)


@pytest.mark.parametrize("command", [LDGP, ONLINE], ids=name_of)
def test_control_c_and_running_out_of_memory(copy, monkeypatch, command):
    """The first stops the run, the second fails the image with some advice; both within a line."""
    for error, words, code in ((KeyboardInterrupt, "stopped; what is written is whole, and the same command goes on from", 130),
                               (MemoryError, "out of memory", 1)):
        with monkeypatch.context() as patch:
            patch.setattr("cv2.adaptiveThreshold" if command == LDGP else "torch.nn.functional.mse_loss",
                          mock.Mock(side_effect=error))
            done = stage(command, f"{SHORT[command]} --overwrite", copy, ok=False)
        lines = complaints(done)
        assert done.returncode == code and lines and all(words in line for line in lines), lines
        assert not files(copy / PLACES[command][0])


ANY = {"seed": ["-1", "x", "1.5", "9" * 20], "tile_size": ["0", "-1", "255"], "lr": ["-1", "nan", "inf", "1e31"]}
NSS = {"sdr_num": ["0", "-1", "x", "100001"], "K": ["0", "1.5", "256"], "k": ["0", "-1", "2", "257"],
       "pow": ["-0.5", "nan", "inf", "5"], "threshold": ["-1", "256"]}
ALONE = {**ANY, "epoch": ["0", "-1"], "steps": ["-1"], "average": ["-0.1", "1", "nan"], "crop_size": ["-1", "x"],
         "batch_size": ["0", "-1", "4097"]}
NUMBERS = {
    LDGP: {"patch_size": ["0", "31", "8.5"], "kernel_size": ["0", "-1", "", "10001"], "strength": ["0", "-1", "nan", "101"]},
    SDR: {**NSS, "seed": ["-1", "x", "4294967296"]}, SDRL: {**ALONE, "save_every": ["-1"]}, ONLINE: {**ALONE, **NSS},
    ALL: {**ANY, "epoch": ["0"], "lr_steps": ["-1"], "batch_size": ["0", "1000001"], "crop_size": ["0", "16385"],
          "save_every": ["0"], "workers": ["-1", "257"], "cache_gb": ["-1", "nan", "1e30"]},
    TEST: {"tile_size": ANY["tile_size"]}}
OTHERS = {"dataset", "device", "backbone", "recipe", "amp", "overwrite", "independent", "true_cells", "identity"}


@each_stage
def test_flags_without_meaning(copy, command):
    """One line that names the flag, and exit code 2."""
    before, name = files(copy), name_of(command)

    def refused(flags, *words):
        done = stage(command, flags, copy, ok=False)
        complaint(done, f"{name}: ", *words, "(see --help)")
        assert done.returncode == 2 and not done.stdout

    for flag, values in NUMBERS[command].items():
        for value in values:
            refused(f"--{flag}={value}", f"argument --{flag}: '{value}' is not a")
        refused(f"--{flag}=--", f"argument --{flag}: expected one argument")
    for flag in ("--colour=red", "red", "--overwrit"):
        refused(flag, f"unrecognized arguments: {flag}")
    shown = stage(command, "--help", copy).stdout
    for flag, values in (("backbone", "VGG"), ("recipe", "slow")):
        if f"--{flag}" in shown:
            refused(f"--{flag}={values}", f"argument --{flag}: invalid choice: '{values}'")
    flags = {flag for flag in re.findall(r"^  --(\w+)", shown, re.MULTILINE) if not flag.endswith(("_path", "_dir"))}
    assert flags - OTHERS == NUMBERS[command].keys()  # none is forgotten above
    assert files(copy) == before


def test_what_argparse_cannot_know(copy):
    before = files(copy)
    for command in (SDRL, ONLINE):
        done = stage(command, "--recipe=fast --epoch=3", copy, ok=False)
        complaint(done, f"{name_of(command)}: --epoch is of --recipe=paper; --recipe=fast is told how long to learn by --steps")
    for command in (SDRL, ONLINE, ALL, TEST):
        for device in ["warp", "cpu:x", "meta", "cuda:77"]:
            done = stage(command, f"{SHORT[command]} --device={device}", copy, ok=False)
            complaint(done, f"{name_of(command)}: --device {device} cannot be used here", "use --device cpu")
    assert files(copy) == before


NASTY = ["9" * 30, "-" + "9" * 5000, "1e308", "0x10", "1_0", " 7 ", "\uff17", "new\nline", "\x1b[31m", "%s{}", "--", "\udcff"]
PATHS = ["", "-", "new\nline", "n" * 300, "/dev/null", "/dev/full/x", "\udcff", "loop", "~", "$HOME", "a/../b"]


@pytest.mark.long
@each_stage
def test_every_flag_with_every_nasty_value(copy, monkeypatch, command):
    (copy / "loop").symlink_to("loop")
    monkeypatch.setenv("HOME", str(copy / "home"))
    paths = re.findall(r"^  --(\w+(?:_path|_dir))", stage(command, "--help", copy).stdout, re.MULTILINE)
    lasting = {"epoch", "steps", "workers"}  # large ones are honest requests for work
    cases = [(flag, value) for flag in NUMBERS[command].keys() - lasting for value in NASTY]
    for flag, value in [*cases, *((path, value) for path in paths for value in PATHS)]:
        done = stage(command, f"{SHORT[command]} '--{flag}={value}'", copy, ok=None)
        assert "Traceback" not in done.stderr and done.returncode in (0, 1, 2), (flag, value, done.stderr)
        assert done.returncode == 0 or done.stderr.strip()


MODEL, GOOD = torch.nn.Conv2d(3, 3, 1), np.zeros((40, 40, 3), np.uint8)


@pytest.mark.parametrize("image", [GOOD / 255, GOOD[..., 0], [[1]], None, GOOD[..., [0, 1, 2, 2]], GOOD[:0]], ids=str)
@pytest.mark.parametrize("call", [rain_mask, lambda image: Sampler(image, GOOD[:, :, 0]), fast.derain, fast.rain_layer,
                                  lambda image: derain(MODEL, image, GOOD[None], PAPER),
                                  lambda image: fast.derain_by_learning(image, GOOD, None, 1)])
def test_arrays_that_are_no_photographs(call, image):
    """Float, grey, RGBA, lists: a ValueError that says what is expected."""
    with pytest.raises(ValueError, match=r"must be an array of uint8 \(height, width, 3\), .* (list|NoneType|\w+ \(.*)$"):
        call(image)
    for shape in ((0, 40, 40, 3), (2, 40, 41, 3), (40, 40, 3)):  # references of another one
        with pytest.raises(ValueError, match="do not belong"):
            derain(MODEL, GOOD, np.zeros(shape, np.uint8))
