"""What the tests share: reference material beside the project, small photographs, and running a script as a user does.

`stage` and `inside` run a script within this process, which spares the seconds that torch takes to start; `script` starts a
process. Both use one thread of the CPU, so that their digits can be compared.
"""
import io
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import utils  # noqa: F401  before torch: how its threads wait
import cv2
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from utils.image import png_bytes, read_image

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = Path(os.environ.get("R2A_REFERENCE", ROOT.parent / "shared"))
PATIENCE = 1200  # seconds after which a process counts as hanging: far more than any takes on a slow, busy machine
ONE_THREAD = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "-1"}

signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background, processes may be told to ignore the tests' Ctrl-C

settings.register_profile("every machine", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.load_profile("every machine")

# The commands of the README, what makes each of them short, and where each writes.
STAGES = LDGP, SDR, SDRL, ONLINE, ALL, TEST = re.findall(r"^python \w+\.py .*", (ROOT / "README.md").read_text(), re.MULTILINE)
SHORT = {LDGP: "", SDR: "--sdr_num=3", SDRL: "--steps=2 --backbone=DnCNN", ONLINE: "--steps=2 --backbone=DnCNN",
         ALL: "--epoch=3 --batch_size=2 --crop_size=32 --lr_steps=1 --backbone=DnCNN", TEST: ""}
DATA = "dataset/Rain100L"
PLACES = {LDGP: [f"{DATA}/ldgp"], SDR: [f"{DATA}/sdr", f"{DATA}/sdr(fuse)"], SDRL: [f"{DATA}/result"],
          ONLINE: [f"{DATA}/result"], ALL: ["result_all/Rain100L", f"{DATA}/result"], TEST: ["result_all/Rain100L/image"]}


def name_of(command):
    return command.split()[1]


each_stage = pytest.mark.parametrize("command", STAGES, ids=name_of)


@pytest.fixture(scope="session")
def reference():
    """The folder of goldens and data-set images; tests that need it are skipped where it is absent."""
    if not (REFERENCE / "golden").is_dir():
        pytest.skip(f"no reference material in {REFERENCE} (set R2A_REFERENCE)")
    return REFERENCE


def script(name, *arguments, ok=True, cwd=ROOT, before=(), env=None):
    """Run a script of the project in a process of its own: script("ldgp.py", "--flag", value, ok=True) -> finished process."""
    command = [sys.executable, *before, str(ROOT / name) if name.endswith(".py") else name, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=PATIENCE,
                          env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})})
    if ok is not None:
        assert (done.returncode == 0) == ok, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def from_shell(command, flags="", cwd=None, **options):
    """Run a command line, with more flags, in a process of its own."""
    return script(*shlex.split(f"{command} {flags}")[1:], cwd=cwd, env=ONE_THREAD, **options)


def inside(name, *words, cwd=ROOT, ok=True):
    """Run python <name>, or python -m <name>, within this process; returns what `script` returns. ok: None is either way."""
    out, err, threads = io.StringIO(), io.StringIO(), torch.get_num_threads()
    with (pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err),
          warnings.catch_warnings(record=True) as shown):
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)  # what a process of its own would show
        warnings.simplefilter("always", RuntimeWarning)
        patch.chdir(cwd)
        patch.setattr(sys, "argv", [name, *map(str, words)])
        patch.delitem(sys.modules, name, raising=False)
        patch.setattr(torch.cuda, "is_available", lambda: False)
        for module, hook in ((sys, "excepthook"), (sys, "unraisablehook"), (threading, "excepthook")):
            patch.setattr(module, hook, getattr(module, hook))  # put back afterwards
        torch.set_num_threads(1)
        try:
            if name.endswith(".py"):
                runpy.run_path(str(ROOT / name), run_name="__main__")
            else:
                runpy.run_module(name, run_name="__main__", alter_sys=True)
        except SystemExit as left:
            code = left.code
        finally:
            torch.set_num_threads(threads)
    text = err.getvalue() + "".join(f"Warning: {warning.message}\n" for warning in shown)
    if isinstance(code, str):  # the interpreter prints what sys.exit is called with
        code, text = 1, f"{text}{code}\n"
    if ok is not None:
        assert (not code) == ok, f"{name} exit {code}\n{out.getvalue()}\n{text}"
    return subprocess.CompletedProcess([name, *words], code or 0, out.getvalue(), text)


def stage(command, flags="", cwd=ROOT, ok=True):
    """Run a command line, with more flags, within this process; returns what `script` returns."""
    return inside(*shlex.split(f"{command} {flags}")[1:], cwd=cwd, ok=ok)


def complaints(done):
    """The lines on stderr, which has no traceback, but for those that tell what is done or takes long."""
    assert "Traceback" not in done.stdout + done.stderr and "Warning" not in done.stderr, done.stderr[-3000:]
    return [line for line in done.stderr.splitlines() if not re.search(r"\(\d+ of \d+\): \d+\.\d\d s|takes longer", line)]


def complaint(done, *words):
    """The one such line of a command that failed. It must hold the words."""
    assert done.returncode != 0
    line, = complaints(done)
    for word in words:
        assert word in line, (word, line)
    return line


def noise(seed, height=48, width=64, levels=256):
    return np.random.default_rng(seed).integers(0, levels, (height, width, 3), dtype=np.uint8)


def near(image, seed, most=20):
    """An image with other noise of at most so many levels."""
    change = np.random.default_rng(seed).integers(-most, most + 1, image.shape)
    return np.clip(image + change, 0, 255).astype(np.uint8)


def demo(name, part="input"):
    return read_image(ROOT / f"dataset/Demo/{part}/{name}.png")


def enlarge(image, scale):
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)


def speckled(seed, height, width, clear=0.6):
    """A mask that is 0 at about this share of the pixels and anything from 2 to 255 at the others."""
    random = np.random.default_rng(seed)
    return np.where(random.random((height, width)) < clear, 0, random.integers(2, 256, (height, width))).astype(np.uint8)


def read_references(folder):
    """The images 0.png, 1.png, ... of a folder in which there is nothing else, (N, H, W, 3) uint8."""
    return np.stack([read_image(folder / f"{number}.png") for number in range(len(os.listdir(folder)))])


def photograph(height, width, seed):
    """A blurred scene with rain streaks, (height, width, 3) uint8 BGR."""
    random = np.random.default_rng(seed)
    scene = cv2.resize(random.integers(40, 160, (4, 5, 3), dtype=np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(height * width // 60):
        x, y, length = int(random.integers(width)), int(random.integers(-40, height)), int(random.integers(12, 40))
        streak = np.zeros((height, width), np.uint8)
        cv2.line(streak, (x, y), (x - length // 6, y + length), int(random.integers(30, 110)), 1, cv2.LINE_AA)
        scene = cv2.add(scene, cv2.merge([streak] * 3))
    return scene


def write_png(path, image):
    """Write an image, and the folders that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png_bytes(image))


def data_set(folder, **photographs):
    """Make folder/dataset/Rain100L/input/<name>.png of each keyword; returns folder/dataset/Rain100L."""
    for name, image in photographs.items():
        write_png(folder / DATA / "input" / f"{name}.png", image)
    return folder / DATA


def files(folder):
    """All files below a folder as {relative path: bytes}, but run.json and what was moved to earlier-<n>."""
    found = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {str(name): path.read_bytes() for name, path in found.items()
            if name.name != "run.json" and not any(part.startswith("earlier-") for part in name.parts)}


def results(folder, command):
    """What a stage wrote, as `files`."""
    return {f"{place}/{name}": data for place in PLACES[command] for name, data in files(folder / place).items()
            if not (command == ALL and name.startswith("image/"))}


@pytest.fixture(scope="session")
def chain(tmp_path_factory):
    """The README commands in a row on two photographs: (folder, {command: process}, {command: results before later ones})."""
    folder = tmp_path_factory.mktemp("chain")
    data_set(folder, rue=photograph(40, 56, 1), lac=photograph(33, 47, 2))
    done, made = {}, {}
    for command in STAGES:
        done[command] = stage(command, SHORT[command], folder)
        made[command] = results(folder, command)
    return folder, done, made


@pytest.fixture
def copy(chain, tmp_path):
    """A copy of what the chain made, to be changed: the folder that commands are run in."""
    shutil.copytree(chain[0], tmp_path, dirs_exist_ok=True)
    return tmp_path
