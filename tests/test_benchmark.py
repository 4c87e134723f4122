"""The benchmark runs and prints what it measured; how fast anything is, no test asserts."""
import pytest

from conftest import DATA, complaint, inside, script


def rows_of(done):
    """{first cell: the other cells} of the tables that were printed."""
    lines = [line.strip("| ").split("|") for line in done.stdout.splitlines() if line.startswith("|")]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}


@pytest.mark.parametrize("stage, shown", [("ldgp", "rain layer, with its scale and direction"), ("sdr", "NSS, 50 references")])
def test_a_stage_is_measured_and_so_is_its_growth(copy, stage, shown):  # in a process of its own: it keeps to a core
    done = script("-m", "utils.benchmark", stage, "--data_path", copy / DATA, "--repeats=1", "--limit=1",
                  "--megapixels", 0.01, 0.02)
    rows = rows_of(done)
    assert len(rows[shown]) == 3 and rows[shown][2].startswith("pixels to the power ")  # the second table's row comes last
    assert rows["megapixels (lac.png)"][:2] == ["0.01", "0.02"] and all("s" in cell for cell in rows[shown][:2])
    assert "1 photographs of " in done.stdout and ("NSS, a filled pixel" in rows) == (stage == "sdr")


def test_a_step_of_learning_is_measured_by_recipe(copy):
    place = "--data_path", copy / DATA
    rows = rows_of(inside("utils.benchmark", "sdrl", *place, "--steps=2", "--device=cpu"))
    assert {name: cells[1] for name, cells in rows.items() if "Unet" in name} == {"paper, Unet": "5000", "fast, Unet": "750"}
    rows = rows_of(inside("utils.benchmark", "sdrl", *place, "--steps=1", "--recipe=fast", "--backbone=Restormer"))
    assert [(name, cells[1]) for name, cells in rows.items() if "Restormer" in name] == [("fast, Restormer", "150")]


def test_a_missing_data_set_is_one_line(tmp_path):
    complaint(inside("utils.benchmark", "ldgp", "--data_path", tmp_path / "nowhere", ok=False), "data set with --data_path")
