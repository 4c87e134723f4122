"""python -m utils.derain, as someone uses it who has photographs and no data set."""
import os

import numpy as np
import pytest
from PIL import Image

from utils.image import read_image, read_mask, write_png

from test_evaluate import inside
from test_stages import ONE_THREAD, photograph


@pytest.fixture
def folder(tmp_path):
    """Two photographs, one of them grey with an alpha channel, and files that are not read."""
    write_png(tmp_path / "photos/rue.png", photograph(48, 64, 1))
    rgba = np.dstack([photograph(40, 36, 2)[..., 0], np.arange(40 * 36).reshape(40, 36) % 256]).astype(np.uint8)
    Image.fromarray(rgba, "LA").save(tmp_path / "photos/lac.png")
    for name in ("sea.HEIC", "hill.nef", "notes.txt"):
        (tmp_path / "photos" / name).write_bytes(b"x")
    return tmp_path


def derain(folder, *words, ok=True):
    done = inside("utils.derain", *words, cwd=folder, ok=ok)
    return done, done.stdout.splitlines()[-1].partition(": ")[2] if done.stdout else ""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_is_derained_beside_its_photographs_and_once(folder):
    before = names(folder / "photos")
    done, last = derain(folder, "photos")
    assert last.startswith("2 images, 0 failed, ") and last.endswith("results beside them")
    assert "photos: not read, make JPEG or PNG of them: hill.nef, sea.HEIC\n" in done.stderr and "notes" not in done.stderr
    assert names(folder / "photos") == sorted([*before, "lac_derained.png", "rue_derained.png"])
    rainy, derained = (read_image(folder / f"photos/{name}.png").astype(int) for name in ("rue", "rue_derained"))
    assert derained.shape == rainy.shape and (derained <= rainy).all() and (derained < rainy).any()
    with Image.open(folder / "photos/lac.png") as source, Image.open(folder / "photos/lac_derained.png") as result:
        assert result.mode == "RGBA" and np.array_equal(np.asarray(result)[..., 3], np.asarray(source)[..., 1])
        assert (np.ptp(np.asarray(result)[..., :3], axis=2) == 0).all()

    assert derain(folder, "photos")[1].startswith("2 images, 0 failed, 2 done before, nothing done")
    assert derain(folder, "photos", *(folder / "photos").glob("*.png"))[1].startswith("2 images, 0 failed, 2 done before")
    later = (folder / "photos/rue_derained.png").stat().st_mtime + 1
    os.utime(folder / "photos/rue.png", (later, later))
    assert derain(folder, "photos")[1].startswith("2 images, 0 failed, 1 done before, ")
    os.utime(folder / "photos/rue.png", (1, 1))
    assert "done before" not in derain(folder, "photos", "--overwrite")[1]


def test_the_rain_is_shown_where_asked_for(folder):
    _, last = derain(folder, "photos/rue.png", "--save_path=out", "--show_rain")
    assert last.startswith("1 images, 0 failed, ") and last.endswith("results in out")
    assert names(folder / "out") == ["rue_derained.png", "rue_rain.png"]
    layer = read_mask(folder / "out/rue_rain.png")
    assert layer.shape == (48, 64) and layer.any()


@pytest.mark.long
def test_learning_changes_the_result(folder):
    derain(folder, "photos/rue.png")
    derain(folder, "photos/rue.png", "--learn", "--save_path=out", "--device=cpu")
    plain, learnt = (read_image(folder / place / "rue_derained.png") for place in ("photos", "out"))
    assert learnt.shape == plain.shape and not np.array_equal(learnt, plain)


def test_what_cannot_be_derained_is_a_line_and_the_others_go_on(folder):
    write_png(folder / "rue.jpg", photograph(40, 40, 4))
    (folder / "torn.jpg").write_bytes((folder / "rue.jpg").read_bytes()[:400])
    done, last = derain(folder, "photos", "rue.jpg", "nowhere.jpg", "torn.jpg", "--save_path=out", ok=False)
    said = [line for line in done.stderr.splitlines() if line.startswith("derain.py: failed: ")]
    assert len(said) == 3 and last.startswith("4 images, 3 failed, ") and names(folder / "out") == ["lac_derained.png"]
    for words in ("photos: rue.png and rue.jpg share the name 'rue'", "nowhere.jpg: no such file", "torn.jpg: "):
        assert any(words in line for line in said), (words, said)
    (folder / "empty").mkdir()
    done, last = derain(folder, "empty", ok=False)
    assert not last and len(done.stderr.splitlines()) == 1 and "empty: no image in this folder" in done.stderr


def test_it_runs_from_the_shell(script, folder):
    done = script("-m", "utils.derain", "photos/rue.png", cwd=folder, env=ONE_THREAD)
    assert done.stdout.startswith("derain.py: 1 images, 0 failed, ")
    assert len(script("-m", "utils.derain", cwd=folder, ok=False).stderr.splitlines()) == 1
