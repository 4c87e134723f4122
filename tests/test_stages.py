"""The stages from end to end: the real scripts with the README's commands on tiny images, as a user runs them."""
import io
import os
import re
import shlex
import shutil
from itertools import islice

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import sdrl
from ldgp import rain_mask
from models import BACKBONES, build
from sdr import Sampler, sample_references
from sdrl import PAPER
from sdrl_online import fresh_references
from utils import fast
from utils.curves import read_steps
from utils.fast import mistakes
from utils.fast.mistakes import FAST
from utils.image import ImageError, read_image, read_mask, tensor_to_uint8
from utils.inference import infer
from utils.metrics import psnr
from utils.sampling import fuse
from utils.training import fresh_model

from conftest import (ALL, DATA, LDGP, ONE_THREAD, ONLINE, PLACES, ROOT, SDR, SDRL, SHORT, STAGES, TEST, complaint, data_set,
                      each_stage, files, from_shell, name_of, photograph, read_references, results, script, stage, write_png)


def test_the_chain_makes_the_tree_that_the_readme_shows_and_what_its_functions_return(chain):
    (folder, _, left), place = chain, chain[0] / DATA
    made = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    expected = {f"{place}/run.json" for command in STAGES for place in PLACES[command]}
    expected |= {f"{DATA}/result/earlier-{n}/run.json" for n in (1, 2)}
    expected |= {f"result_all/Rain100L/{name}" for name in ("model.pkl", "resume.pkl", "loss.csv")}
    for stem in ("rue", "lac"):
        expected |= {f"{DATA}/{part}/{stem}.png" for part in (
            "input", "ldgp", "sdr(fuse)", "result", "result/earlier-1", "result/earlier-2")}
        expected |= {f"{DATA}/sdr/{stem}/{n}.png" for n in range(3)} | {f"result_all/Rain100L/image/{stem}.png"}
    assert made == expected
    for stem in ("rue", "lac"):
        rainy, mask = read_image(place / f"input/{stem}.png"), read_mask(place / f"ldgp/{stem}.png")
        assert 0.02 < (mask > 10).mean() < 0.9  # else nothing here would be a test
        assert np.array_equal(mask, rain_mask(rainy))
        references = sample_references(rainy, mask, sdr_num=3)
        assert np.array_equal(read_references(place / "sdr" / stem), references)
        assert np.array_equal(read_image(place / f"sdr(fuse)/{stem}.png"), fuse(references))
        recipe, result = PAPER._replace(steps=2, epoch=0), f"{DATA}/result/{stem}.png"
        derained = sdrl.derain(fresh_model("DnCNN", "cpu", recipe), rainy, references, recipe)
        image = Image.open(io.BytesIO(left[SDRL][result]))
        assert np.abs(np.array(image)[..., ::-1].astype(int) - derained).max() <= 1
        assert image.format == "PNG" and image.mode == "RGB" and image.size == rainy.shape[1::-1]
        fresh = fresh_references(Sampler(rainy, mask), torch.Generator().manual_seed(3))
        online = sdrl.learn_references(fresh_model("DnCNN", "cpu", recipe), rainy, islice(fresh, 2), recipe)
        assert np.mean(np.array(Image.open(io.BytesIO(left[ONLINE][result])))[..., ::-1] != online) < 0.02
        assert len({left[command][result] for command in (SDRL, ONLINE, ALL)}) == 3
    head, *lines = (folder / "result_all/Rain100L/loss.csv").read_text().splitlines()
    assert head == "epoch,loss" and [line.split(",")[0] for line in lines] == ["1", "2", "3"]
    assert float(lines[2].split(",")[1]) < float(lines[0].split(",")[1])
    assert files(folder / "result_all/Rain100L/image") == files(place / "result")  # test_all.py's and sdrl_all.py's


@each_stage
def test_every_stage_ends_with_one_line_that_sums_up(chain, command):
    """And, away from a terminal, says a line for each photograph, without a bar."""
    where = {LDGP: f"{DATA}/ldgp", SDR: f"./{DATA}/sdr/ and ./{DATA}/sdr(fuse)/", TEST: "result_all/Rain100L/image"}
    where = " and ".join(map(os.path.normpath, where.get(command, f"{DATA}/result").split(" and ")))
    name, done = name_of(command), chain[1][command]
    *before, line = done.stdout.splitlines()
    assert re.fullmatch(rf"{name}: 2 images, 0 failed, \d+\.\d\d s an image, results in {re.escape(where)}", line)
    network = r"sdrl_all\.py: 2 images, 0 failed, 3 epochs in \d+ s, network in result_all/Rain100L/model\.pkl"
    assert re.fullmatch(network if command == ALL else "", "\n".join(before))
    said = [line for line in done.stderr.splitlines() if "moved to" not in line]
    assert len(said) == 2 and "Warning" not in done.stderr
    for line, part in zip(said, (r"lac\.png \(1 of 2\)", r"rue\.png \(2 of 2\)")):
        assert re.fullmatch(rf"{name}: {part}: \d+\.\d\d s", line)


def test_every_epoch_draws_other_crops_and_has_its_rate(copy):
    def losses(flags):
        stage(ALL, f"{SHORT[ALL]} {flags} --overwrite", copy)
        return [line.split(",")[1] for line in (copy / "result_all/Rain100L/loss.csv").read_text().splitlines()[1:]]

    assert len(set(losses("--lr=0"))) == 3
    never, every, second = (losses(f"--lr_steps={number}") for number in (0, 1, 2))  # a loss is from before its own step
    assert never == second and never[:2] == every[:2] and never[2] != every[2]


def test_from_the_shell_with_targets_gives_the_same_bytes(chain, tmp_path):
    """Same seed, same bytes in another process; and no stage looks into target/, be it clean images or rubbish."""
    shutil.copytree(chain[0] / DATA / "input", tmp_path / DATA / "input")
    write_png(tmp_path / DATA / "target/rue.png", photograph(40, 56, 9))
    (tmp_path / DATA / "target/lac.png").write_text("rubbish")
    before = files(tmp_path / DATA / "target")
    for command in (LDGP, SDR, ONLINE, ALL):
        assert "Traceback" not in from_shell(command, SHORT[command], tmp_path).stderr
        now, expected = results(tmp_path, command), chain[2][command]
        assert {name: data for name, data in now.items() if not name.endswith("pkl")} == {
            name: data for name, data in expected.items() if not name.endswith("pkl")}, command
    networks = [torch.load(place / "result_all/Rain100L/model.pkl", weights_only=True)["model"]
                for place in (chain[0], tmp_path)]
    assert all(torch.equal(*both) for both in zip(*(network.values() for network in networks)))
    assert files(tmp_path / DATA / "target") == before


@pytest.mark.parametrize("source", ["A/input", "photos"])
def test_defaults_follow_the_data_set_that_is_named(tmp_path, source):
    write_png(tmp_path / source / "x.png", photograph(32, 36, 1))
    data = (tmp_path / source).parent.relative_to(tmp_path)
    for command in (f"python ldgp.py --input_path={source}", f"python sdr.py --sdr_num=1 --input_path={source}"):
        stage(command, "", tmp_path)
    made = {str(data / name) for name in ("ldgp/x.png", "sdr/x/0.png", "sdr(fuse)/x.png", source.rsplit("/")[-1] + "/x.png")}
    if data.name == "A":
        for name in ("sdrl", "sdrl_online"):
            stage(f"python {name}.py --rainy_data_path=A --backbone=DnCNN --steps=1", "--overwrite", tmp_path)
        stage("python sdrl_all.py --rainy_data_path=A --backbone=DnCNN --epoch=1 --overwrite", "", tmp_path)
        stage("python test_all.py --data_path=A/", "", tmp_path)
        made |= {"A/result/x.png", *(f"result_all/A/{name}" for name in ("model.pkl", "resume.pkl", "loss.csv", "image/x.png"))}
    assert set(files(tmp_path)) == made


def test_a_data_set_by_another_name(copy):
    """A symbolic link keeps its own name, and photographs may be named from within their folder."""
    (copy / DATA).rename(copy / "real")
    (copy / DATA).symlink_to(copy / "real")
    stage(ALL, f"{SHORT[ALL]} --overwrite", copy)
    stage(TEST, "--overwrite", copy)
    assert {path.name for path in (copy / "result_all").iterdir()} == {"Rain100L"}
    shutil.rmtree(copy / "real/ldgp")
    stage("python ldgp.py --input_path=.", "", copy / "real/input")
    assert {path.name for path in (copy / "real/ldgp").iterdir()} == {"lac.png", "rue.png", "run.json"}


def test_online_needs_no_references_and_makes_missing_masks(chain, copy):
    for part in ("sdr", "sdr(fuse)", "ldgp", "result"):
        shutil.rmtree(copy / DATA / part)
    stage(ONLINE, f"{SHORT[ONLINE]} --result_path=dataset/mine", copy)  # the data set is only read
    assert {f"{DATA}/result/{name}": data for name, data in files(copy / "dataset/mine").items()} == chain[2][ONLINE]
    assert os.listdir(copy / DATA) == ["input"]
    stage(LDGP, "--kernel_size=7", copy)
    stage(ONLINE, SHORT[ONLINE], copy)
    by_other_masks = results(copy, ONLINE)
    (copy / DATA / "ldgp/lac.png").unlink()  # is made as the other one was
    stage(ONLINE, f"{SHORT[ONLINE]} --overwrite", copy)
    assert results(copy, ONLINE) == by_other_masks != chain[2][ONLINE]


def test_the_fast_recipe_writes_what_its_functions_return(copy):
    """From references on file and without, learning and not; the paper's results are moved, not mixed in."""
    place = copy / DATA
    for command, flags in ((LDGP, ""), (SDR, "--sdr_num=3"), (SDRL, "--steps=2"), (ONLINE, "--steps=0 --result_path=plain")):
        done = stage(command, f"--recipe=fast {flags}", copy)
        assert command == ONLINE or re.search(r"of another run \(differs in .*\brecipe, ", done.stderr)
        assert "2 done before" in stage(command, f"--recipe=fast {flags}", copy).stdout
    assert "2 done before" in stage(LDGP, "--recipe=fast --kernel_size=7", copy).stdout  # a flag of the paper's recipe alone
    for stem in ("rue", "lac"):
        rainy, layer = read_image(place / f"input/{stem}.png"), read_mask(place / f"ldgp/{stem}.png")
        assert layer.any() and np.array_equal(layer, fast.rain_layer(rainy))
        references, fused = fast.guided_references(rainy, layer, 1, sdr_num=3)
        references = np.stack(list(references))
        assert np.array_equal(read_references(place / "sdr" / stem), references)
        for folder in (place / "sdr(fuse)", copy / "plain"):
            assert np.array_equal(read_image(folder / f"{stem}.png"), fused)
        recipe, mean = FAST._replace(steps=2), np.mean(references, axis=0, dtype=np.float32)
        expected = fast.derain_by_learning(rainy, mean, mistakes.learner(recipe=recipe), 1)
        assert np.abs(read_image(place / f"result/{stem}.png").astype(int) - expected).max() <= 1


def test_photographs_without_rain_are_counted_in_the_last_line(tmp_path):
    data_set(tmp_path, dry=np.full((40, 40, 3), 90, np.uint8), wet=photograph(40, 56, 1))
    for command, flags in ((LDGP, ""), (LDGP, "--recipe=fast"), (ONLINE, "--recipe=fast --steps=0")):
        done = stage(command, flags, tmp_path)
        assert done.stdout.endswith("; 1 of 2 photographs: no rain found\n")
        assert re.search(r"dry\.png \(1 of 2\): \d+\.\d\d s, no rain found\n", done.stderr)


@pytest.fixture
def small(tmp_path):
    """One photograph of 24x20 with two references, ready for a learning stage."""
    rainy = photograph(24, 20, 3)
    place = data_set(tmp_path, bois=rainy)
    for n in range(2):
        write_png(place / f"sdr/bois/{n}.png", cv2.blur(rainy, (3 + n, 3 + n)))
    return tmp_path


def test_a_network_is_rebuilt_from_its_checkpoint(small):
    """One of the authors, who store its weights alone, is a Unet."""
    saved = small / "result_all/Rain100L"
    for flags in ("--identity", "--recipe=fast", ""):
        stage(ALL, f"--backbone=DnCNN --epoch=2 --batch_size=1 --crop_size=32 {flags}", small)  # mirrored beyond the border
        stage(TEST, "", small)
        assert files(saved / "image") == files(small / DATA / "result")
    model = build("Unet")
    torch.save({"model": model.state_dict()}, saved / "model.pkl")
    stage(TEST, "", small)
    expected = tensor_to_uint8(infer(model, read_image(small / DATA / "input/bois.png")))
    assert abs(read_image(saved / "image/bois.png").astype(int) - expected).max() <= 1


def test_a_data_sets_network_starts_at_what_was_found(small):
    """With --recipe=fast: what it sees of a version, and its loss, are of what was found, its background what it shall give."""
    stage(ALL, "--recipe=fast --lr=0 --epoch=2 --crop_size=16", small)
    path = small / DATA / "input/bois.png"
    assert np.array_equal(read_image(small / DATA / "result/bois.png"), fast.derain(read_image(path))[0])
    items = mistakes.Versions([(path, [small / DATA / f"sdr/bois/{n}.png" for n in range(2)])], 16, 3, 2)
    for line in (small / "result_all/Rain100L/loss.csv").read_text().splitlines()[1:]:
        clean, rain, version, derained = np.split(items[int(line[0]) - 1, 0] / 255, [3, 4, 7], axis=2)
        assert float(line[2:]) == pytest.approx(np.mean((derained - clean) ** 2), rel=1e-3)
        assert np.allclose(rain / 4, (version - derained).max(axis=2, keepdims=True)) and (version >= clean - 1e-9).all()


@pytest.mark.parametrize("flags, width", [
    *((f"--identity --backbone={name}", 50) for name in BACKBONES), ("--identity --tile_size=256", 300),
    ("--identity --amp", 20), ("--identity --average=0.9 --crop_size=16 --batch_size=3", 50), ("--recipe=fast", 120),
    ("--recipe=fast --crop_size=0 --tile_size=256 --amp", 300)])
def test_the_identity_that_learns_nothing_is_the_input(tmp_path, flags, width):
    """Through every way of learning and of running the network: at a rate of 0 each gives the photograph back."""
    rainy = photograph(24, width, 4)
    reference = rainy if "fast" in flags else cv2.blur(rainy, (3, 3))  # the fast recipe lets the references take part
    write_png(data_set(tmp_path, fil=rainy) / "sdr/fil/0.png", reference)
    stage(SDRL, f"{flags} --steps=2 --lr=0", tmp_path)
    assert np.array_equal(read_image(tmp_path / DATA / "result/fil.png"), rainy)


def test_flags_change_what_they_say(small, monkeypatch):
    def result(command, flags):
        stage(command, flags, small)
        return (small / DATA / "result/bois.png").read_bytes()

    rates = ["--steps=3", "--epoch=1", "--epoch=2", "--steps=3 --average=0.9", "--steps=3 --crop_size=16",
             "--steps=3 --crop_size=16 --batch_size=2", "--steps=3 --lr=0.01", "--steps=3 --seed=4"]
    seen = {result(f"{SDRL} --backbone=DnCNN", flags) for flags in rates}
    assert len(seen) == len(rates)
    for same in ("--steps=2", "--steps=2 --tile_size=256 --device=cpu --recipe=paper", "--steps=3 --crop_size=16"):
        assert result(f"{SDRL} --backbone=DnCNN --overwrite", same) in seen  # the first as --epoch=1 with two references
    data_set(small, bois=photograph(40, 56, 3))
    flags = ["", "--no-identity", "--batch_size=1", "--crop_size=8", "--average=0", "--lr=0.05", "--steps=9", "--seed=4"]
    assert len({result(ONLINE, f"--recipe=fast --steps=8 --lr=0.01 --average=0.5 {flag}") for flag in flags}) == len(flags)


def test_what_a_network_gives_on_its_way_is_kept_and_its_scores_are_drawn(small):
    place = small / DATA
    result = place / "result"
    stage(SDRL, "--steps=4", small)
    usual = (result / "bois.png").read_bytes()
    stage(SDRL, "--steps=4 --save_every=2 --overwrite", small)
    assert (result / "bois.png").read_bytes() == (result / "4/bois.png").read_bytes() == usual  # looking changes nothing
    assert (result / "2/bois.png").read_bytes() != usual
    complaint(stage(SDRL, "--recipe=fast --save_every=2", small, ok=False), "--save_every is of --recipe=paper")
    for folder in ("target", "sdr(fuse)"):
        shutil.copytree(place / "input", place / folder)
    curves = read_steps(place, result)
    assert [steps for steps, _ in curves["SDRL"]] == [2, 4] and len(curves) == 3
    clean, given = (read_image(place / f"{part}/bois.png") for part in ("target", "result/2"))
    assert curves["SDRL"][0][1] == pytest.approx(psnr(given, clean))
    with pytest.raises(ImageError, match="no results after so many steps; run: python sdrl.py --save_every=500"):
        read_steps(place, place / "target")
    pytest.importorskip("matplotlib")
    script("-m", "utils.figures", "--figure=steps", "--dataset_path", place, "--save_path", small)
    assert read_image(small / "steps.png").shape == (400, 720, 3)


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


def test_sdrl_on_two_processes(chain, copy):
    """The same bytes as of one process, every result once, one line at the end that counts both processes' images."""
    (copy / DATA / "input/nuit.png").write_text("no image")  # the second of three: not process 0's
    done = from_shell(SDRL, SHORT[SDRL], copy, before=TORCHRUN, ok=False)
    assert results(copy, SDRL) == chain[2][SDRL]
    line, = done.stdout.splitlines()
    assert re.fullmatch(rf"sdrl\.py: 3 images, 1 failed, \d+\.\d\d s an image, results in {DATA}/result", line)
    assert len(re.findall(r"sdrl\.py: failed: .*nuit\.png", done.stderr)) == 1
    assert len(re.findall(rf"2 results of another run .* moved to {DATA}/result/earlier-3", done.stderr)) == 1


def test_sdrl_all_on_two_processes(copy):
    """Trains one network, which all processes agree on, and test_all.py reads its checkpoint."""
    for stem in ("mer", "mont"):
        shutil.copy(copy / DATA / "input/rue.png", copy / DATA / f"input/{stem}.png")
        shutil.copytree(copy / DATA / "sdr/rue", copy / DATA / f"sdr/{stem}")
    done = from_shell(ALL, f"{SHORT[ALL]} --epoch=2 --overwrite", copy, before=TORCHRUN)
    first, last = done.stdout.splitlines()
    assert first.startswith("sdrl_all.py: 4 images, 0 failed, 2 epochs in ") and last.startswith("sdrl_all.py: 4 images, 0 f")
    assert "Traceback" not in done.stderr and "destroy_process_group" not in done.stderr
    made = files(copy / DATA / "result")
    assert set(made) == {"rue.png", "lac.png", "mer.png", "mont.png"}
    assert made["rue.png"] == made["mer.png"] == made["mont.png"]  # dealt to both processes
    stage(TEST, "", copy)
    assert files(copy / "result_all/Rain100L/image") == made


# The paper's values are the defaults; where a default follows from other flags, the words say how.
DEFAULTS = {LDGP: {"patch_size": 80, "kernel_size": 10, "true_cells": False}, SDR: {
    "sdr_num": 50, "K": 7, "k": 3, "pow": 0.5, "threshold": 10, "seed": 0, "save_path": "sdr/ beside --input_path"},
    SDRL: {"backbone": "Unet", "seed": 3, "tile_size": 1024, "recipe": "paper", "sdr_data_path": "sdr/ of the data set"},
    ONLINE: {"sdr_num": 50, "pow": 0.5, "result_path": "result/ of the data set", "ldgp_path": "ldgp/ of the data set"},
    ALL: {"epoch": 2000, "lr": 0.001, "batch_size": 64, "crop_size": 64, "model_save_dir": "./result_all/<data set>/"},
    TEST: {"data_path": "./dataset/Rain100L/", "model_path": "./result_all/<data set>/model.pkl"}}


@each_stage
def test_help_says_what_every_flag_means_and_its_default(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = stage(f"python {name_of(command)}", "--help", ROOT).stdout
    head, options = text.split("\noptions:\n")
    entries = [" ".join(entry.split()).replace("- ", "-") for entry in re.split(r"\n(?=  -)", "\n" + options)[2:]]
    found = {re.match(r"--(\w+)", entry).group(1): entry for entry in entries}
    assert all(f"(default: {value})" in found[flag] for flag, value in DEFAULTS[command].items())
    for flag, text in found.items():
        both = f"(paper: {getattr(PAPER, flag, None)}, fast: {getattr(FAST, flag, None)})"
        implied = "instead of ./dataset/<dataset>/input/", "start at f(x) = x, as --recipe=fast does"
        assert text.endswith((both, *implied)) or re.search(r"\(default: .+\)$", text), text
    shown = re.search(r"^(    python .*?[^\\])$", head, re.DOTALL | re.MULTILINE).group(1)
    printed = command + ' --backbone="Unet"' * (command == SDRL) if "--backbone" not in command else command
    assert shlex.split(shown.replace("\\\n", " ")) == shlex.split(printed)  # the command that the tests above have run


def test_importing_a_stage_runs_nothing(tmp_path):
    """And the stages that learn nothing do not load torch."""
    done = script("-c", "import sys, ldgp, sdr; assert 'torch' not in sys.modules; "
                        "import sdrl, sdrl_online, sdrl_all, test_all", cwd=tmp_path, env=ONE_THREAD)
    assert (done.stdout, done.stderr, os.listdir(tmp_path)) == ("", "", [])


MAINS = [f"{'utils.' * (path.parent.name == 'utils')}{path.stem}" for path in (*ROOT.glob("*.py"), *ROOT.glob("utils/*.py"))
         if "__main__" in path.read_text()]


@pytest.mark.parametrize("name", MAINS)
def test_threads_sleep_while_they_wait_unless_the_user_says_otherwise(tmp_path, monkeypatch, name):
    """Each script that loads torch says so before, as torch looks once."""
    (tmp_path / "torch.py").write_text("import os; print(os.environ.get('OMP_WAIT_POLICY'), flush=True); os._exit(0)")
    monkeypatch.delenv("OMP_WAIT_POLICY")
    said = script("-c", f"import {name}", cwd=tmp_path).stdout.strip()
    assert said in (["PASSIVE"] if "sdrl" in name else ["PASSIVE", ""])
    if name == "sdrl":
        monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
        assert script("-c", f"import {name}", cwd=tmp_path).stdout == "ACTIVE\n"
