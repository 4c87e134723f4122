"""The stages from end to end: the real scripts with the README's commands on tiny images, as a user runs them.

`script` starts a process of its own; `stage` runs the same file with the same words inside this one, which spares the
seconds that torch takes to start. Both use one thread of the CPU, so that their digits can be compared.
"""
import io
import os
import pickle
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from ldgp import rain_layer, rain_mask
from models import BACKBONES, build
from sdr import GuidedSampler, fuse, sample_references
from sdrl import RECIPES, derain_by_own_rain, fast_options, fresh_model, read_references, recipe_settings
from sdrl_all import Crops
from utils.image import (list_images, natural_order, png_bytes, read_image, read_mask, read_note, tensor_to_uint8,
                         write_png)
from utils.inference import infer
from utils.rain import add_rain

from conftest import ROOT

LDGP = 'python ldgp.py --dataset="Rain100L" --patch_size=80 --kernel_size=10'
SDR = ('python sdr.py --input_path="./dataset/Rain100L/input/" --ldgp_path="./dataset/Rain100L/ldgp/" '
       '--save_path "./dataset/Rain100L/sdr/" --fuse_save_path "./dataset/Rain100L/sdr(fuse)/"')
SDRL = ('python sdrl.py --rainy_data_path="./dataset/Rain100L/" --sdr_data_path="./dataset/Rain100L/sdr/" '
        '--result_path="./dataset/Rain100L/result/" --backbone="Unet"')
ONLINE = SDRL.replace("sdrl.py", "sdrl_online.py")
ALL = ('python sdrl_all.py --rainy_data_path="./dataset/Rain100L/" --sdr_data_path="./dataset/Rain100L/sdr/" '
       '--result_path="./dataset/Rain100L/result/"')
TEST = ('python test_all.py --data_path="./dataset/Rain100L/" --model_path="./result_all/Rain100L/model.pkl" '
        '--result_path="./result_all/Rain100L/image/"')
# What makes each of them short.
SHORT = {LDGP: "", SDR: "--sdr_num=3", SDRL: "--steps=2", ONLINE: "--steps=2", TEST: "",
         ALL: "--epoch=3 --batch_size=2 --crop_size=32 --lr_steps=1"}
ONE_THREAD = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "-1"}


def photograph(height, width, seed):
    """A blurred scene with rain streaks, (height, width, 3) uint8 BGR."""
    scene = np.random.default_rng(seed).integers(40, 180, (4, 5, 3), dtype=np.uint8)
    return add_rain(cv2.resize(scene, (width, height), interpolation=cv2.INTER_CUBIC), seed, density=8)


def data_set(folder, **photographs):
    """Make folder/dataset/Rain100L/input/<name>.png of each keyword; returns folder/dataset/Rain100L."""
    for name, image in photographs.items():
        write_png(folder / "dataset/Rain100L/input" / f"{name}.png", image)
    return folder / "dataset/Rain100L"


def stage(command, flags="", cwd=None, ok=True):
    """Run a command line of the README, with more flags, within this process; returns what `script` returns."""
    _, name, *words = shlex.split(f"{command} {flags}")
    out, err, threads = io.StringIO(), io.StringIO(), torch.get_num_threads()
    with (pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err),
          warnings.catch_warnings(record=True) as shown):
        warnings.simplefilter("default")  # what a process of its own would show
        for hidden in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", hidden)
        patch.chdir(cwd)
        patch.setattr(sys, "argv", [name, *words])
        patch.setattr(torch.cuda, "is_available", lambda: False)
        torch.set_num_threads(1)
        try:
            runpy.run_path(str(ROOT / name), run_name="__main__")
        except SystemExit as left:
            code = left.code
        finally:
            torch.set_num_threads(threads)
    text = err.getvalue() + "".join(f"{warning.category.__name__}: {warning.message}\n" for warning in shown)
    if isinstance(code, str):  # the interpreter prints what sys.exit is called with
        code, text = 1, f"{text}{code}\n"
    if ok is not None:
        assert (not code) == ok, f"{name} exit {code}\n{out.getvalue()}\n{text}"
    return subprocess.CompletedProcess([name, *words], code or 0, out.getvalue(), text)


def from_shell(script, command, flags="", cwd=None, **options):
    """Run the same command line in a process of its own."""
    _, name, *words = shlex.split(f"{command} {flags}")
    return script(name, *words, cwd=cwd, env=ONE_THREAD, **options)


def files(folder):
    """All files below a folder as {relative path: bytes}, hidden ones too, but not the records and what was set aside."""
    found = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {str(name): path.read_bytes() for name, path in found.items()
            if not any(part == ".rain2avoid" or part.startswith("earlier-") for part in name.parts)}


def weights(path):
    return torch.load(path, weights_only=True)["model"]


def same_weights(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def last_line(done, name, images, where, failed=0):
    """Check the last line that a stage prints: images, failures, seconds, places."""
    line = done.stdout.splitlines()[-1]
    assert re.fullmatch(rf"{name}: {images} images, {failed} failed, \d+\.\d\d s an image, results in {re.escape(where)}", line)
    return line


# --- the chain of the README ---------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """The README's commands, one after the other, on two photographs: (folder, {command: process}, {command: result files}).

    sdrl.py, sdrl_online.py and sdrl_all.py write to the same folder: what each left there is kept.
    """
    folder = tmp_path_factory.mktemp("chain")
    place = data_set(folder, rue=photograph(40, 56, 1), lac=photograph(33, 47, 2))
    done, results = {}, {}
    for command in (LDGP, SDR, SDRL, ONLINE, ALL, TEST):
        done[command] = stage(command, SHORT[command], folder)
        results[command] = files(place / "result")
    return folder, done, results


@pytest.fixture
def copy(chain, tmp_path):
    """A copy of what the chain made, to be changed: the folder that the commands are run in."""
    shutil.copytree(chain[0], tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_the_chain_makes_the_tree_that_the_readme_shows(chain):
    made = {str(path.relative_to(chain[0])) for path in chain[0].rglob("*")
            if path.is_file() and ".rain2avoid" not in path.parts}
    expected = {f"result_all/Rain100L/{name}" for name in ("model.pkl", "resume.pkl", "loss.csv")}
    for stem in ("rue", "lac"):
        expected |= {f"dataset/Rain100L/{part}/{stem}.png" for part in (
            "input", "ldgp", "sdr(fuse)", "result", "result/earlier-1", "result/earlier-2")}
        expected |= {f"dataset/Rain100L/sdr/{stem}/{n}.png" for n in range(3)} | {f"result_all/Rain100L/image/{stem}.png"}
    assert made == expected


def test_what_the_chain_wrote_is_what_its_functions_return(chain):
    place = chain[0] / "dataset/Rain100L"
    for stem, size in (("rue", (40, 56)), ("lac", (33, 47))):
        rainy = read_image(place / f"input/{stem}.png")
        mask = read_mask(place / f"ldgp/{stem}.png")
        assert 0.02 < (mask > 10).mean() < 0.9  # else nothing here would be a test
        assert np.array_equal(mask, rain_mask(rainy))
        references = sample_references(rainy, mask, sdr_num=3)
        for n in range(3):
            assert np.array_equal(read_image(place / f"sdr/{stem}/{n}.png"), references[n])
        assert np.array_equal(read_image(place / f"sdr(fuse)/{stem}.png"), fuse(references))
        for written in (place / f"result/{stem}.png", chain[0] / f"result_all/Rain100L/image/{stem}.png"):
            image = Image.open(written)
            assert image.format == "PNG" and image.mode == "RGB" and image.size == size[::-1]


def test_every_stage_ends_with_one_line_that_sums_up(chain):
    _, done, _ = chain
    data = "./dataset/Rain100L"
    assert done[LDGP].stdout == last_line(done[LDGP], "ldgp.py", 2, "dataset/Rain100L/ldgp") + "\n"
    assert done[SDR].stdout == last_line(done[SDR], "sdr.py", 2, f"{data}/sdr/ and {data}/sdr(fuse)/") + "\n"
    assert done[SDRL].stdout == last_line(done[SDRL], "sdrl.py", 2, "dataset/Rain100L/result") + "\n"
    assert done[ONLINE].stdout == last_line(done[ONLINE], "sdrl_online.py", 2, "dataset/Rain100L/result") + "\n"
    assert done[TEST].stdout == last_line(done[TEST], "test_all.py", 2, "result_all/Rain100L/image") + "\n"
    last_line(done[ALL], "sdrl_all.py", 2, f"{data}/result/")
    trained = done[ALL].stdout.splitlines()[0]
    model = r"result_all/Rain100L/model\.pkl"
    assert re.fullmatch(rf"sdrl_all\.py: 2 images, 0 failed, 3 epochs in \d+ s, network in {model}", trained)
    for process in done.values():
        assert not re.search("Traceback|Warning|failed:", process.stderr)


def test_the_learning_stages_differ_and_learn(chain):
    folder, _, results = chain
    assert len({results[command]["rue.png"] for command in (SDRL, ONLINE, ALL)}) == 3
    lines = (folder / "result_all/Rain100L/loss.csv").read_text().splitlines()
    assert lines[0] == "epoch,loss,seconds" and [line.split(",")[0] for line in lines[1:]] == ["1", "2", "3"]
    losses = [float(line.split(",")[1]) for line in lines[1:]]
    assert losses[2] < losses[0]


def test_test_all_gives_what_sdrl_all_gave(chain):
    assert files(chain[0] / "result_all/Rain100L/image") == chain[2][ALL]


def test_from_the_shell_with_targets_gives_the_same_bytes(chain, script, tmp_path):
    """Same seed, same bytes in another process; and no stage looks into target/, be it clean images or rubbish."""
    place = tmp_path / "dataset/Rain100L"
    shutil.copytree(chain[0] / "dataset/Rain100L/input", place / "input")
    write_png(place / "target/rue.png", photograph(40, 56, 9))
    (place / "target/lac.png").write_text("rubbish")
    before = files(place / "target")
    for command in (LDGP, SDR, SDRL, ONLINE, ALL, TEST):
        done = from_shell(script, command, SHORT[command], tmp_path)
        assert "Traceback" not in done.stderr and not done.stdout.startswith("\n")
        assert files(place / "result") == chain[2].get(command, {}), command
    for part in ("ldgp", "sdr", "sdr(fuse)"):
        assert files(place / part) == files(chain[0] / "dataset/Rain100L" / part)
    mine, first = tmp_path / "result_all/Rain100L", chain[0] / "result_all/Rain100L"
    assert files(mine / "image") == files(first / "image")
    assert same_weights(weights(mine / "model.pkl"), weights(first / "model.pkl"))
    assert files(place / "target") == before


@pytest.mark.parametrize("command", [SDRL, ONLINE], ids=["sdrl", "online"])
def test_an_image_alone_and_another_seed(chain, copy, command):
    """The result of an image does not depend on the others in the folder; it does depend on the seed."""
    place = copy / "dataset/Rain100L"
    (place / "input/lac.png").unlink()  # it comes first, and is not the image looked at
    shutil.rmtree(place / "result")
    stage(command, SHORT[command], copy)
    assert files(place / "result") == {"rue.png": chain[2][command]["rue.png"]}
    stage(command, f"{SHORT[command]} --seed=4", copy)
    assert files(place / "result")["rue.png"] != chain[2][command]["rue.png"]


# --- sdr.py and sdrl_online.py -------------------------------------------------------------------------------------

def test_fewer_references_leave_exactly_that_many(copy):
    folder = copy / "dataset/Rain100L/sdr/rue"
    first = files(folder)
    stage(SDR, "--sdr_num=12", copy)
    assert sorted(files(folder), key=natural_order) == [f"{n}.png" for n in range(12)]
    stage(SDR, "--sdr_num=2", copy)
    assert set(files(folder)) == {"0.png", "1.png"}
    stage(SDR, "--sdr_num=3", copy)
    assert files(folder) == first


def test_references_are_used_in_the_published_order(tmp_path):
    rainy = np.zeros((4, 5, 3), np.uint8)
    for n in range(12):
        write_png(tmp_path / f"{n}.png", np.full_like(rainy, n))
    order = read_references(tmp_path, rainy, "x.png", "")[:, 0, 0, 0]
    assert order.tolist() == [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]


def test_online_needs_no_references_and_makes_missing_masks(chain, copy):
    place = copy / "dataset/Rain100L"
    masks = files(place / "ldgp")
    for part in ("sdr", "sdr(fuse)", "ldgp", "result"):
        shutil.rmtree(place / part)
    stage(ONLINE, SHORT[ONLINE], copy)
    assert files(place / "ldgp") == masks
    assert files(place / "result") == chain[2][ONLINE]
    assert {path.name for path in place.iterdir()} == {"input", "ldgp", "result"}

    (place / "ldgp/lac.png").unlink()  # one of two is there, and is not LDGP's
    write_png(place / "ldgp/rue.png", np.where(np.arange(56) % 8 == 3, 255, 0).astype(np.uint8) * np.ones((40, 1), np.uint8))
    mine = (place / "ldgp/rue.png").read_bytes()
    stage(ONLINE, SHORT[ONLINE], copy)
    assert files(place / "ldgp") == {"lac.png": masks["lac.png"], "rue.png": mine}
    assert files(place / "result")["lac.png"] == chain[2][ONLINE]["lac.png"]
    assert files(place / "result")["rue.png"] != chain[2][ONLINE]["rue.png"]


def test_the_fast_recipe_writes_what_its_functions_return(chain, copy):
    """And says in every file what it is; the paper's results of the same folders are set aside, not mixed in."""
    place = copy / "dataset/Rain100L"
    said = stage(LDGP, "--recipe=fast", copy), stage(SDR, "--recipe=fast --sdr_num=3", copy)
    assert all("of another run (--recipe paper, now fast" in done.stderr for done in said)
    for stem in ("rue", "lac"):
        rainy, layer = read_image(place / f"input/{stem}.png"), read_mask(place / f"ldgp/{stem}.png")
        assert layer.any() and np.array_equal(layer, rain_layer(rainy))
        sampler = GuidedSampler(rainy, layer)
        for n, reference in enumerate(sampler.references(3)):
            assert np.array_equal(read_image(place / f"sdr/{stem}/{n}.png"), reference)
            assert read_note(place / f"sdr/{stem}/{n}.png") == "guided, scale 1"
        assert np.array_equal(read_image(place / f"sdr(fuse)/{stem}.png"), np.rint(sampler.expectation()))
        assert read_note(place / f"sdr(fuse)/{stem}.png") == "guided, scale 1"
        assert read_note(place / f"ldgp/{stem}.png") == "rain layer, scale 1"
    again = stage(LDGP, "--recipe=fast --kernel_size=7", copy), stage(SDR, "--recipe=fast --sdr_num=3 --K=5", copy)
    assert all("2 done before" in done.stdout for done in again)  # flags of the paper's recipe alone


def test_what_is_taken_off_a_large_photograph_is_enlarged(copy):
    place = copy / "dataset/Rain100L"
    small = np.minimum(photograph(40, 56, 1), 240)  # no channel is cut off
    rainy = cv2.resize(small, (224, 160), interpolation=cv2.INTER_CUBIC)
    layer = rain_layer(rainy, 10, 4)
    for folder, image in (("input", png_bytes(rainy)), ("ldgp", png_bytes(layer, note="rain layer, scale 4"))):
        shutil.rmtree(place / folder)
        (place / folder).mkdir()
        (place / folder / "rue.png").write_bytes(image)
    stage(SDR, "--recipe=fast --sdr_num=2", copy)
    fused = read_image(place / "sdr(fuse)/rue.png")
    assert read_note(place / "sdr(fuse)/rue.png") == read_note(place / "sdr/rue/1.png") == "guided, scale 4"
    assert fused.shape == rainy.shape and (fused <= rainy).all() and (rainy - fused).mean() > 1
    small = [cv2.resize(image, (56, 40), interpolation=cv2.INTER_AREA) for image in (rainy, fused, layer)]
    expected = GuidedSampler(small[0], small[2]).expectation()
    assert abs(small[1] - expected).mean() < 1 < abs(small[0] - expected).mean()
    details = abs((rainy.astype(int) - fused) - (rainy.astype(int) - fused)[..., :1]).max(axis=2)
    assert details[fused.min(axis=2) > 0].max() == 0  # the same light off each channel


def test_layers_and_masks_are_not_taken_for_each_other(copy, script):
    """One line for the run where the first is of the wrong kind, and one an image where another is; nothing is written."""
    place = copy / "dataset/Rain100L"
    before = files(place)
    run = ('run ldgp.py first: python ldgp.py --input_path="./dataset/Rain100L/input/" '
           '--save_path="./dataset/Rain100L/ldgp/"')
    done = from_shell(script, SDR, "--recipe=fast", copy, ok=False)
    assert done.stdout == "" and done.stderr == ("sdr.py: dataset/Rain100L/ldgp/lac.png: no note, where --recipe=fast needs "
                                                 f"one of its own (rain layer); {run} --recipe=fast\n")
    assert files(place) == before
    stage(LDGP, "--recipe=fast", copy)
    before = files(place)
    done = from_shell(script, SDR, "", copy, ok=False)
    assert done.stdout == "" and done.stderr == ("sdr.py: dataset/Rain100L/ldgp/lac.png: made with --recipe=fast (rain layer, "
                                                 f"scale 1), where --recipe=paper needs one of its own; {run}\n")
    shutil.copy(place / "ldgp/earlier-1/rue.png", place / "ldgp/rue.png")
    done = stage(SDR, "--recipe=fast --sdr_num=1", copy, ok=False)
    assert "2 images, 1 failed" in done.stdout and "failed: dataset/Rain100L/ldgp/rue.png: no note" in done.stderr


def test_the_fast_recipe_from_the_shell(chain, script, tmp_path):
    """From references on file and without, learning and not; the same command again does nothing again."""
    place = tmp_path / "dataset/Rain100L"
    shutil.copytree(chain[0] / "dataset/Rain100L/input", place / "input")
    unlearnt = f"--recipe=fast --steps=0 --result_path={place}/unlearnt"
    for command, flags in ((ONLINE, unlearnt), (LDGP, "--recipe=fast"), (SDR, "--recipe=fast --sdr_num=3"),
                           (SDRL, "--recipe=fast --steps=2"), (ONLINE, unlearnt)):
        done = from_shell(script, command, flags, tmp_path)
        assert "2 images, 0 failed" in done.stdout and "moved to" not in done.stderr and "Warning" not in done.stderr
        # sdrl_online.py has made the layers, as ldgp.py would
        assert ("2 done before" in done.stdout) == (command == LDGP or len(files(place / "unlearnt")) == 2 and command == ONLINE
                                                    and (place / "result").exists())
    options = {**recipe_settings("fast", "Unet"), "seed": 3, "steps": 2}
    torch.set_num_threads(1)
    for stem in ("rue", "lac"):
        rainy, fused = read_image(place / f"input/{stem}.png"), read_image(place / f"sdr(fuse)/{stem}.png")
        assert np.array_equal(read_image(place / f"unlearnt/{stem}.png"), fused) and (fused <= rainy).all()
        model = fresh_model("Unet", 3, "cpu", options["identity"])
        mean = np.mean(read_references(place / "sdr" / stem, rainy, "", ""), axis=0, dtype=np.float32)
        expected = derain_by_own_rain(model, rainy, mean, **fast_options(
            {name: value for name, value in options.items() if name != "identity"}))
        assert np.array_equal(read_image(place / f"result/{stem}.png"), expected)


def test_the_recipes_do_not_learn_from_what_the_other_has_made(copy):
    """One line for the run where the first is of the other recipe, one an image where another is; no result of it."""
    place = copy / "dataset/Rain100L"
    shutil.rmtree(place / "result")

    def refused(command, flags, folder, words):
        before = files(copy)
        done = stage(command, f"--steps=1 {flags}", copy, ok=False)
        assert done.returncode == 1 and done.stdout == "" and len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith(f"{command.split()[1]}: dataset/Rain100L/{folder}: ") and words in done.stderr
        assert files(copy) == before and not (place / "result").exists()

    needs = "where --recipe={} needs one of its own".format
    refused(SDRL, "--recipe=fast", "sdr/lac/0.png", f"no note, {needs('fast')} (guided); run sdr.py first")
    refused(ONLINE, "--recipe=fast", "ldgp/lac.png", f"no note, {needs('fast')} (rain layer); run ldgp.py first")
    paper = place / "sdr/lac"
    paper.rename(copy / "kept")
    stage(LDGP, "--recipe=fast", copy)
    stage(SDR, "--recipe=fast --sdr_num=2", copy)
    refused(SDRL, "", "sdr/lac/0.png", f"made with --recipe=fast (guided, scale 1), {needs('paper')}")
    refused(ONLINE, "", "ldgp/lac.png", f"made with --recipe=fast (rain layer, scale 1), {needs('paper')}")
    shutil.rmtree(place / "sdr/rue")
    shutil.copytree(copy / "kept", place / "sdr/rue")
    done = stage(SDRL, "--recipe=fast --steps=1", copy, ok=False)
    assert "2 images, 1 failed" in done.stdout and "rue/0.png: no note" in done.stderr
    assert set(files(place / "result")) == {"lac.png"}


# --- backbones and flags -------------------------------------------------------------------------------------------

@pytest.fixture
def small(tmp_path):
    """One photograph of 24x20 with two references, ready for a learning stage."""
    rainy = photograph(24, 20, 3)
    place = data_set(tmp_path, bois=rainy)
    for n in range(2):
        write_png(place / f"sdr/bois/{n}.png", cv2.blur(rainy, (3 + n, 3 + n)))
    return tmp_path


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_learns_from_one_photograph(small, backbone):
    stage(SDRL, f"--backbone={backbone} --steps=1", small)
    assert read_image(small / "dataset/Rain100L/result/bois.png").shape == (24, 20, 3)


def test_a_backbone_is_rebuilt_from_its_checkpoint(small):
    flags = "--backbone=DnCNN --epoch=2 --batch_size=1 --crop_size=16 --identity"
    stage(ALL, flags, small)
    stage(TEST, "", small)
    image = files(small / "result_all/Rain100L/image")
    assert image == files(small / "dataset/Rain100L/result")
    stage(ALL, flags.replace(" --identity", ""), small)  # the checkpoint says this as well
    stage(TEST, "", small)
    assert files(small / "result_all/Rain100L/image") == files(small / "dataset/Rain100L/result") != image


def test_a_checkpoint_of_the_authors_is_a_unet(small):
    model = build("Unet")
    (small / "result_all/Rain100L").mkdir(parents=True)
    torch.save({"model": model.state_dict()}, small / "result_all/Rain100L/model.pkl")
    stage(TEST, "", small)
    expected = tensor_to_uint8(infer(model, read_image(small / "dataset/Rain100L/input/bois.png")))
    assert abs(read_image(small / "result_all/Rain100L/image/bois.png").astype(int) - expected).max() <= 1


@pytest.mark.parametrize("flags, width", [
    ("--identity", 50), ("--identity --tile_size=256", 300), ("--identity --amp", 20), ("--identity --crop_size=16", 50),
    ("--identity --average=0.9", 50), ("--identity --average=0.9 --crop_size=16 --batch_size=3", 50), ("--recipe=fast", 120),
    ("--recipe=fast --crop_size=0 --tile_size=256 --amp", 300)])
def test_the_identity_that_learns_nothing_is_the_input(tmp_path, flags, width):
    """Through every way of learning and of running the network: at a rate of 0 each gives the photograph back."""
    rainy = photograph(24, width, 4)
    place = data_set(tmp_path, fil=rainy)
    # The fast recipe lets the references take part in the result.
    note, reference = ("guided, scale 1", rainy) if "fast" in flags else ("", cv2.blur(rainy, (3, 3)))
    (place / "sdr/fil").mkdir(parents=True)
    (place / "sdr/fil/0.png").write_bytes(png_bytes(reference, note=note))
    stage(SDRL, f"{flags} --steps=2 --lr=0", tmp_path)
    assert np.array_equal(read_image(place / "result/fil.png"), rainy)


def test_flags_change_what_they_say(small):
    result = small / "dataset/Rain100L/result/bois.png"
    seen = set()
    for flags in ("--steps=3", "--epoch=1", "--epoch=2", "--steps=3 --average=0.9", "--steps=3 --crop_size=16",
                  "--steps=3 --crop_size=16 --batch_size=2", "--steps=3 --lr=0.01"):
        stage(SDRL, flags, small)
        assert result.read_bytes() not in seen, flags
        seen.add(result.read_bytes())
    stage(SDRL, "--steps=2", small)
    assert result.read_bytes() in seen  # as --epoch=1 with two references
    stage(SDRL, "--steps=2 --tile_size=256 --device=cpu --recipe=paper", small)
    assert result.read_bytes() in seen


def test_flags_change_what_they_say_of_the_fast_recipe(tmp_path):
    result, seen = data_set(tmp_path, rue=photograph(40, 56, 1)) / "result/rue.png", set()
    for flags in ("", "--no-identity", "--batch_size=1", "--crop_size=8", "--average=0", "--lr=0.01", "--steps=4", "--seed=4"):
        stage(ONLINE, f"--recipe=fast --steps=3 --lr=0.003 --average=0.5 {flags}", tmp_path)
        assert result.read_bytes() not in seen, flags
        seen.add(result.read_bytes())


# --- what lies in folders of photographs ---------------------------------------------------------------------------

@pytest.fixture(scope="module")
def awkward(tmp_path_factory):
    """A folder with every format, odd names and things that are no photographs, and what four stages made of it.

    Returns (data set, {stem: upright pixels (H, W, 3) uint8 BGR}).
    """
    folder = tmp_path_factory.mktemp("awkward")
    source = folder / "dataset/Rain100L/input"
    source.mkdir(parents=True)
    pixels = {}

    def put(name, image, shown=None, **options):
        image.save(source / name, **options)
        stem = name.rsplit(".", 1)[0]
        pixels[stem] = np.array((shown or Image.open(source / name)).convert("RGB"))[..., ::-1]

    def picture(seed, mode="RGB"):
        return Image.fromarray(np.ascontiguousarray(photograph(36, 44, seed)[..., ::-1])).convert(mode)

    alpha = Image.fromarray(np.random.default_rng(0).integers(0, 256, (36, 44), dtype=np.uint8))
    put("upper.PNG", picture(1))
    put("photo.JPG", picture(2))
    put("photo2.jpeg", picture(3))
    put("old.bmp", picture(4))
    put("scan.TIFF", picture(5), compression="tiff_lzw")
    put("grey.tif", picture(6, "L"))
    with_alpha, grey_alpha = picture(7, "RGBA"), picture(8, "LA")
    with_alpha.putalpha(alpha)
    grey_alpha.putalpha(alpha)
    put("alpha.png", with_alpha)
    put("greyalpha.png", grey_alpha)
    put("palette.png", picture(9).quantize(32))
    put("a.b c [1] (2).png", picture(10))
    put("größe 雨 5².png", picture(11))
    put("5².png", picture(12))  # ² is a digit to Python, but no number
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90 degrees clockwise
    put("turned.jpg", picture(13), exif=turned)
    lying = Image.open(source / "turned.jpg")
    upright = Image.fromarray(np.rot90(np.array(lying.convert("RGB")), -1))
    pixels["turned"] = np.array(upright)[..., ::-1]
    put("upright.png", upright)

    for name in ("Thumbs.db", ".DS_Store", "notes.txt", "._photo.JPG", ".hidden.png"):
        (source / name).write_bytes(b"\0\1\2 no photograph")
    for name in ("more", "folder.png", ".cache"):
        data_set(source / name, inner=photograph(36, 44, 14))
    for command, flags in ((LDGP, ""), (SDR, "--sdr_num=1"), (SDRL, "--steps=1")):
        stage(command, flags, folder)
    model = build("DnCNN", residual=True)
    (folder / "result_all/Rain100L").mkdir(parents=True)
    torch.save({"model": model.state_dict(), "backbone": "DnCNN", "identity": True}, folder / "result_all/Rain100L/model.pkl")
    stage(TEST, "", folder)
    shutil.copytree(folder / "result_all/Rain100L/image", folder / "dataset/Rain100L/identity")
    return folder / "dataset/Rain100L", pixels


def test_images_are_found_by_extension_and_joined_by_stem(awkward):
    place, pixels = awkward
    for part in ("ldgp", "sdr(fuse)", "result", "identity"):
        assert set(files(place / part)) == {f"{stem}.png" for stem in pixels}, part
    assert set(files(place / "sdr")) == {f"{stem}/0.png" for stem in pixels}
    for stem, image in pixels.items():
        mask = read_mask(place / f"ldgp/{stem}.png")
        assert np.array_equal(mask, rain_mask(np.ascontiguousarray(image))), stem
        assert np.array_equal(read_image(place / f"sdr/{stem}/0.png"), sample_references(image, mask, 1)[0]), stem
        assert read_image(place / f"result/{stem}.png").shape == image.shape, stem
        if stem not in ("grey", "greyalpha"):
            assert np.array_equal(read_image(place / f"identity/{stem}.png"), image), stem


def test_grey_stays_grey_and_alpha_is_carried_over(awkward):
    place, pixels = awkward
    for part in ("result", "identity"):
        assert Image.open(place / part / "grey.png").mode == "L"
        shown = read_image(place / part / "greyalpha.png")
        assert np.ptp(shown, axis=2).max() == 0
        for stem in ("alpha", "greyalpha"):
            source, result = Image.open(place / f"input/{stem}.png"), Image.open(place / part / f"{stem}.png")
            assert np.array_equal(np.array(result.convert("RGBA"))[..., 3], np.array(source.convert("RGBA"))[..., 3])
        assert Image.open(place / part / "palette.png").mode == "RGB"
    for stem in ("grey", "greyalpha"):
        assert abs(read_image(place / f"identity/{stem}.png").astype(int) - pixels[stem]).max() <= 1


def test_a_photograph_lying_on_its_side_is_taken_upright(awkward):
    place, pixels = awkward
    assert pixels["turned"].shape == (44, 36, 3)
    for part in ("ldgp", "sdr(fuse)", "result", "identity"):
        assert files(place / part)["turned.png"] == files(place / part)["upright.png"]


@pytest.mark.parametrize("extension", ["jpg", "png", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_read_as_it_is_shown(tmp_path, orientation, extension):
    stored = photograph(8, 12, 1)
    shown = [stored, stored[:, ::-1], stored[::-1, ::-1], stored[::-1], stored.transpose(1, 0, 2), np.rot90(stored, -1),
             stored[::-1, ::-1].transpose(1, 0, 2), np.rot90(stored)][orientation - 1]
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(np.ascontiguousarray(stored[..., ::-1]))
    picture.save(tmp_path / f"x.{extension}", exif=exif, quality=100, subsampling=0)
    image = read_image(tmp_path / f"x.{extension}")
    assert image.shape == shown.shape and abs(image.astype(int) - shown).mean() < 2


def test_a_damaged_exif_block_is_no_damage_to_the_picture(tmp_path):
    whole = Image.fromarray(photograph(8, 12, 1))
    for exif in (b"Exif\0\0rubbish", b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x05\0\x01\0\0\0\xff\xff\xff\xff"):
        whole.save(tmp_path / "x.jpg", exif=exif)
        assert read_image(tmp_path / "x.jpg").shape == (8, 12, 3)


def test_names_are_in_natural_order(tmp_path):
    for name in ("10", "9", "5²", "b10", "b9", "²", "B1", "٣"):
        write_png(tmp_path / f"{name}.png", np.zeros((2, 2), np.uint8))
    assert list(list_images(tmp_path)) == ["٣", "5²", "9", "10", "B1", "b9", "b10", "²"]


# --- sdrl_all.py ---------------------------------------------------------------------------------------------------

def test_resuming_gives_the_bytes_of_an_unbroken_run(chain, copy):
    """Also with workers, and without the cache, which the chain's run had."""
    place, saved = copy / "dataset/Rain100L/result", copy / "result_all/Rain100L"
    unbroken = weights(saved / "model.pkl")
    losses = [line.rsplit(",", 1)[0] for line in (saved / "loss.csv").read_text().splitlines()]

    def check():
        assert files(place) == chain[2][ALL]
        assert same_weights(weights(saved / "model.pkl"), unbroken)
        assert [line.rsplit(",", 1)[0] for line in (saved / "loss.csv").read_text().splitlines()] == losses
        shutil.rmtree(place)
        shutil.rmtree(saved)

    shutil.rmtree(place)
    shutil.rmtree(saved)
    short = SHORT[ALL]
    stage(ALL, short.replace("--epoch=3", "--epoch=2"), copy)
    assert not same_weights(weights(saved / "model.pkl"), unbroken)
    stage(ALL, f"{short} --resume", copy)
    check()
    stage(ALL, short.replace("--epoch=3", "--epoch=1"), copy)
    done = stage(ALL, f"{short} --resume --workers=2 --save_every=1", copy)
    assert "2 epochs in" in done.stdout
    stage(ALL, f"{short} --resume", copy)  # nothing left to do
    check()
    stage(ALL, f"{short} --workers=2 --cache_gb=0 --model_save_dir=elsewhere", copy)
    shutil.move(copy / "elsewhere", saved)
    check()


def test_a_worker_without_the_cache_prepares_the_same_crops(copy):
    place = copy / "dataset/Rain100L"
    images = [(place / f"input/{stem}.png", [place / f"sdr/{stem}/{n}.png" for n in range(3)]) for stem in ("rue", "lac")]
    cached = Crops(images, 36, 3, cache=True)
    sent = pickle.loads(pickle.dumps(cached))
    for name in [(0, 0), (0, 1), (5, 1), (6, 1)]:
        assert cached[name].shape == (2, 36, 36, 3)
        assert np.array_equal(cached[name], sent[name])


# --- several processes ---------------------------------------------------------------------------------------------

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


def test_sdrl_on_two_processes(chain, copy, script):
    """The same bytes as of one process, every result once, one line at the end that counts both processes' images."""
    place = copy / "dataset/Rain100L"
    (place / "input/nuit.png").write_text("no image")  # the second of three: not process 0's
    done = from_shell(script, SDRL, SHORT[SDRL], copy, before=TORCHRUN, ok=False)
    assert files(place / "result") == chain[2][SDRL]
    assert done.stdout.splitlines() == [last_line(done, "sdrl.py", 3, "dataset/Rain100L/result", failed=1)]
    assert len(re.findall(r"sdrl\.py: failed: .*nuit\.png", done.stderr)) == 1
    assert len(re.findall("2 results of sdrl_all.py moved to dataset/Rain100L/result/earlier-3", done.stderr)) == 1


def test_sdrl_all_on_two_processes(copy, script):
    """Trains one network, which all processes agree on, and test_all.py reads its checkpoint."""
    place, saved = copy / "dataset/Rain100L", copy / "result_all/Rain100L"
    for stem in ("mer", "mont"):
        shutil.copy(place / "input/rue.png", place / f"input/{stem}.png")
        shutil.copytree(place / "sdr/rue", place / f"sdr/{stem}")
    shutil.rmtree(saved)
    shutil.rmtree(place / "result")
    done = from_shell(script, ALL, "--epoch=2 --batch_size=3 --crop_size=32", copy, before=TORCHRUN)
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and lines[0].startswith("sdrl_all.py: 4 images, 0 failed, 2 epochs in ")
    last_line(done, "sdrl_all.py", 4, "./dataset/Rain100L/result/")
    assert "Traceback" not in done.stderr and "destroy_process_group" not in done.stderr
    results = files(place / "result")
    assert set(results) == {"rue.png", "lac.png", "mer.png", "mont.png"}
    assert results["rue.png"] == results["mer.png"] == results["mont.png"]  # dealt to both processes
    stage(TEST, "", copy)
    assert files(saved / "image") == results


# --- help ----------------------------------------------------------------------------------------------------------

NSS = {"sdr_num": 50, "K": 7, "k": 3, "pow": 0.5, "threshold": 10}
RUNNING = {"device": "auto", "amp": False, "tile_size": 1024}
LEARNING = {"backbone": "Unet", "seed": 3, **RUNNING, "overwrite": False}
DATA = "./dataset/Rain100L/"
ALONE = {"rainy_data_path": DATA, "sdr_data_path": DATA + "sdr/", "result_path": DATA + "result/", **LEARNING,
         "recipe": "paper",
         **{name: tuple(recipe[name] for recipe in RECIPES.values()) for name in RECIPES["paper"]}}
# Every flag with its default: one value, one for each recipe, or words for what follows from other flags.
FLAGS = {
    LDGP: {"dataset": "Rain100L", "input_path": "./dataset/<dataset>/input/", "save_path": "./dataset/<dataset>/ldgp/",
           "recipe": "paper", "patch_size": 80, "kernel_size": 10, "true_cells": False, "overwrite": False},
    SDR: {"input_path": DATA + "input/", "ldgp_path": DATA + "ldgp/", "recipe": "paper", "save_path": DATA + "sdr/",
          "fuse_save_path": DATA + "sdr(fuse)/", **NSS, "seed": 0, "independent": False, "overwrite": False},
    SDRL: ALONE,
    ONLINE: {**ALONE, "ldgp_path": "(default: ldgp/ of the data set)", **NSS},
    ALL: {"rainy_data_path": DATA, "sdr_data_path": DATA + "sdr/", "result_path": DATA + "result/",
          "model_save_dir": "(default: ./result_all/<last folder of --rainy_data_path>/)", **LEARNING, "epoch": 2000,
          "lr": 0.001, "lr_steps": 0, "batch_size": 64, "crop_size": 64, "identity": False, "resume": False, "save_every": 50,
          "workers": 0, "cache_gb": 8},
    TEST: {"data_path": DATA, "model_path": "./result_all/Rain100L/model.pkl", "result_path": "./result_all/Rain100L/image/",
           **RUNNING, "overwrite": False},
}


def test_the_paper_s_protocol_is_the_default():
    paper = RECIPES["paper"]
    assert (paper["epoch"], paper["steps"], paper["lr"]) == (100, 0, 1e-3)
    assert not paper["identity"] and not paper["average"] and not paper["crop_size"]


def described(command, monkeypatch):
    """{flag: its text in --help, on one line}, the text before the flags, and all lines."""
    monkeypatch.setenv("COLUMNS", "80")
    name = command.split()[1]
    text = stage(f"python {name}", "--help", ROOT).stdout
    head, options = text.split("\noptions:\n")
    entries = re.split(r"\n(?=  -)", "\n" + options)[1:]
    found = {}
    for entry in entries:
        flag, meaning = re.match(r"  (?:-h, )?--(\w+).*?(?:\n {10,}|  +)(.*)", entry.replace("\n\n", "\n"), re.DOTALL).groups()
        found[flag] = " ".join(meaning.split())
    return found, head, text.splitlines()


@pytest.mark.parametrize("command", FLAGS, ids=[command.split()[1] for command in FLAGS])
def test_help_says_what_every_flag_means_and_its_default(command, monkeypatch):
    found, head, lines = described(command, monkeypatch)
    assert found.pop("help")
    assert found.keys() == FLAGS[command].keys()
    for flag, default in FLAGS[command].items():
        text = found[flag].replace("- ", "-")  # a path that is broken at a hyphen
        if isinstance(default, tuple):
            assert text.endswith("(" + ", ".join(f"{recipe}: {value}" for recipe, value in zip(RECIPES, default)) + ")"), flag
        elif isinstance(default, str) and (default.startswith("(") or "<" in default):
            assert text.endswith(default), flag
        else:
            assert text.endswith(f"(default: {default})"), flag
        assert re.match(r"\w+", text), f"{flag} says nothing of what it means"
    if "backbone" in found:
        assert f"--backbone {{{','.join(BACKBONES)}}}" in "\n".join(lines)

    shown = re.search(r"^(    python .*?[^\\])$", head, re.DOTALL | re.MULTILINE).group(1)
    assert shlex.split(shown.replace("\\\n", " ")) == shlex.split(command)  # the command that the tests above have run
    assert [line for line in lines if len(line) > 80 and line not in shown.splitlines()] == []


def test_help_costs_no_more_than_it_must(script):
    """The stages that learn nothing do not load torch."""
    for name in ("ldgp", "sdr"):
        done = script("-c", f"import sys, {name}; print('torch' in sys.modules)")
        assert done.stdout == "False\n", name


def test_importing_a_stage_runs_nothing(script, tmp_path):
    names = "ldgp, sdr, sdrl, sdrl_online, sdrl_all, test_all"
    done = script("-c", f"import {names}", cwd=tmp_path)
    assert (done.stdout, done.stderr, os.listdir(tmp_path)) == ("", "", [])
