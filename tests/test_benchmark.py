"""The benchmark runs and prints what it measured; how fast anything is, no test asserts."""
import shutil

from conftest import ROOT


def test_sdrl_compares_the_recipes_on_the_same_images(script, tmp_path):
    for folder in ("input", "target"):
        (tmp_path / folder).mkdir()
        shutil.copy(ROOT / "dataset" / "Demo" / folder / "chelsea.png", tmp_path / folder)
    done = script("-m", "utils.benchmark", "sdrl", "--data_path", tmp_path, "--size", "64x48", "--steps", 2, "--device", "cpu",
                  "--recipe", "paper", "fast", "online", cwd=ROOT)
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in done.stdout.splitlines() if line.startswith("|")]
    measured = [row for row in rows if row[0] == "chelsea"]
    assert [row[1] for row in measured] == ["paper", "fast", "online"]
    assert all(row[2] == "2" and float(row[4]) > 5 for row in measured)
    assert len({row[4] for row in measured}) > 1  # not the same result thrice
    assert len({(row[5], row[6]) for row in measured}) == 1  # but of the same image
    assert sum(row[0].startswith("mean of 1") for row in rows) == 3
    rates = [line for line in done.stdout.splitlines() if line.endswith("of a large matrix product's rate")]
    assert [line.split(":")[0] for line in rates] == ["paper", "fast", "online"]


def test_unknown_backbone_and_size_are_one_line(script):
    for flags in (("--backbone", "Vgg"), ("--size", "wide")):
        done = script("-m", "utils.benchmark", "sdrl", *flags, "--data_path", "dataset/Demo", ok=False)
        assert len(done.stderr.strip().splitlines()) == 1 and flags[1] in done.stderr
