"""The benchmark runs and prints what it measured; how fast anything is, no test asserts."""
import shutil

from conftest import ROOT


def test_sdrl_compares_the_recipes_on_the_same_images(script, tmp_path):
    for folder in ("input", "target"):
        (tmp_path / folder).mkdir()
        shutil.copy(ROOT / "dataset" / "Demo" / folder / "chelsea.png", tmp_path / folder)
    done = script("-m", "utils.benchmark", "sdrl", "--data_path", tmp_path, "--size", "64x48", "--steps", 0, 2,
                  "--device", "cpu", cwd=ROOT)
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in done.stdout.splitlines() if line.startswith("|")]
    measured = [row[1:] for row in rows if row[0] == "chelsea"]
    assert [row[1:] for row in rows if row[0] == "mean of 1"] == measured
    assert [tuple(row[:2]) for row in measured] == [("paper", "0"), ("paper", "2"), ("fast", "0"), ("fast", "2")]
    for recipe in (measured[:2], measured[2:]):  # PSNR of the rainy image, without learning, and learnt
        assert recipe[0][3:5] == recipe[1][3:5] and recipe[0][5] == recipe[0][4]
        assert all(float(value) > 5 for value in recipe[1][3:])
    assert measured[1][5] != measured[1][4]  # two steps teach the fast recipe nothing, which it notices
    assert measured[0][4] != measured[2][4] and len({row[3] for row in measured}) == 1
    rates = [line for line in done.stdout.splitlines() if line.endswith("GFLOP/s")]
    assert [line.split(":")[0] for line in rates] == ["paper", "fast"]


def test_unknown_backbone_and_size_are_one_line(script):
    for flags in (("--backbone", "Vgg"), ("--size", "wide")):
        done = script("-m", "utils.benchmark", "sdrl", *flags, "--data_path", "dataset/Demo", ok=False)
        assert len(done.stderr.strip().splitlines()) == 1 and flags[1] in done.stderr
