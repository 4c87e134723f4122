"""The benchmark runs and prints what it measured; how fast anything is, no test asserts."""
import subprocess

import pytest

from utils.benchmark import BUSY

from conftest import DATA, complaint, inside, script


@pytest.mark.parametrize("stage, shown", [("ldgp", "rain layer, with its scale and direction"), ("sdr", "NSS, 50 references"),
                                          ("sdrl", "fast, 50 steps of 750")])
def test_a_stage_is_measured_and_so_is_its_growth(copy, stage, shown):  # in a process of its own: it keeps to a core
    done = script("-m", "utils.benchmark", stage, "--data_path", copy / DATA, "--repeats=1", "--limit=1",
                  "--megapixels", 0.01, 0.02)
    lines = [line.strip("| ").split("|") for line in done.stdout.splitlines() if line.startswith("|")]
    rows = {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}
    assert all("s" in cell for cell in rows[shown][:2])
    if stage != "sdrl":  # the second table's row comes last
        assert len(rows[shown]) == 3 and rows[shown][2].startswith("pixels to the power ")
        assert rows["megapixels (lac.png)"][:2] == ["0.01", "0.02"]
    assert done.stdout.count("| beside another busy process |") == (stage == "sdrl")
    assert "1 photographs of " in done.stdout and ("NSS, a filled pixel" in rows) == (stage == "sdr")


def test_a_missing_data_set_is_one_line(tmp_path):
    complaint(inside("utils.benchmark", "ldgp", "--data_path", tmp_path / "nowhere", ok=False), "data set with --data_path")


def test_the_busy_process_ends_with_its_block_and_with_the_one_that_started_it():
    with subprocess.Popen(BUSY, stdin=subprocess.PIPE) as process:
        assert process.poll() is None
    assert process.returncode == 0
    script("-c", "import os, subprocess; from utils.benchmark import BUSY\n"
                 "process = subprocess.Popen(BUSY, stdin=subprocess.PIPE); os.kill(os.getpid(), 9)",
           ok=False)  # comes back when all who hold its stdout have ended
