"""Small commands: the benchmark prints what it measured, the demo set comes out as committed, rain is its seed's."""
import subprocess

import numpy as np
import pytest

from utils.benchmark import BUSY
from utils.image import list_images, read_image
from utils.rain import DEMO, add_rain, draw_streaks

from conftest import DATA, ROOT, inside, noise, script


@pytest.mark.parametrize("stage, shown", [("ldgp", "rain layer, with its scale and direction"), ("sdr", "NSS, 50 references"),
                                          ("sdrl", "fast, 50 steps of 600")])
def test_a_stage_is_measured_and_so_is_its_growth(copy, stage, shown):  # in a process of its own: it keeps to a core
    done = script("-m", "utils.benchmark", stage, "--data_path", copy / DATA, "--repeats=1", "--limit=1",
                  "--megapixels", 0.01, 0.02, "--backbones", "Restormer", "--sizes", "48x32")
    lines = [line.strip("| ").split("|") for line in done.stdout.splitlines() if line.startswith("|")]
    rows = {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}
    assert all("s" in cell for cell in rows[shown][:2])
    if stage != "sdrl":  # the second table's row comes last
        assert len(rows[shown]) == 3 and rows[shown][2].startswith("pixels to the power ")
        assert rows["megapixels (lac.png)"][:2] == ["0.01", "0.02"]
    assert done.stdout.count("| beside another busy process |") == (stage == "sdrl")
    assert done.stdout.count("Restormer, a step of the paper's recipe") == ("48x32" in rows) == (stage == "sdrl")
    if stage == "sdrl":  # running it takes 141 billion products and sums of 256x256 pixels (Zamir et al., CVPR 2022)
        assert 15 < float(rows["48x32"][3].removesuffix(" billion")) < 25
    assert "1 photographs of " in done.stdout and ("NSS, a filled pixel" in rows) == (stage == "sdr")


def test_the_busy_process_ends_with_its_block_and_with_the_one_that_started_it():
    with subprocess.Popen(BUSY, stdin=subprocess.PIPE) as process:
        assert process.poll() is None
    assert process.returncode == 0
    script("-c", "import os, subprocess; from utils.benchmark import BUSY\n"
                 "process = subprocess.Popen(BUSY, stdin=subprocess.PIPE); os.kill(os.getpid(), 9)",
           ok=False)  # comes back when all who hold its stdout have ended


@pytest.mark.parametrize("name", ["derain", "demo", "evaluate", "figures", "reproduce", "benchmark", "rain"])
def test_a_command_started_as_a_file_says_how_to_call_it(name):
    done = script(f"utils/{name}.py", "--help", ok=False)
    assert done.stderr == f"{name}.py: it is a part of a package; in the folder above, run: python -m utils.{name}\n"


def test_the_demo_set_made_again_is_the_one_committed(tmp_path):
    inside("utils.rain", "--save_path", tmp_path)
    for folder in ("input", "target"):
        kept, made = list_images(ROOT / "dataset/Demo" / folder), list_images(tmp_path / folder)
        assert list(kept) == list(made) == sorted(DEMO)
        for stem in DEMO:
            assert np.array_equal(read_image(kept[stem]), read_image(made[stem])), f"{folder}/{stem}"


def test_rain_is_added_follows_from_its_seed_and_is_cut_off_at_255():
    image, state = noise(0), np.random.get_state()[1].copy()
    before, rainy, layer = image.copy(), add_rain(image, 5), draw_streaks((48, 64), 5)
    assert rainy.dtype == np.uint8 and np.array_equal(rainy, np.minimum(255, image.astype(int) + layer[..., None]))
    assert np.array_equal(image, before) and (rainy > image).mean() > 0.1
    assert np.array_equal(layer, draw_streaks((48, 64), 5)) and not np.array_equal(layer, draw_streaks((48, 64), 6))
    assert not draw_streaks((48, 64), 5, density=0).any()
    assert np.array_equal(np.random.get_state()[1], state)  # the caller's random numbers are left alone
    for wrong in (image[..., 0], image / 255):
        with pytest.raises(ValueError):
            add_rain(wrong, 1)
