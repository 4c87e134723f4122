"""The page of utils.figures: what it links or holds, its scores, what it leaves out; in Chromium, its divider and its order."""
import base64
import csv
import json
import os
import re
import shutil
from urllib.parse import unquote

import cv2
import numpy as np
import pytest
from PIL import Image

from utils.image import read_image

from chromium import chromium
from conftest import complaint, complaints, inside, near, noise, write_png

NAMES = ["a", "b_2", "c<!--<script>\"'&amp; #1%41?\u00e9\\\n"]  # the last with what HTML, JSON and addresses take for their own
FOLDERS = "input", "sdr(fuse)", "result", "ldgp", "target"
EVIL = "</script><script>throw 1</script>"


@pytest.fixture
def dataset(tmp_path):
    """A data set of three photographs, the second one with results of the same gain as the others, and a target named b."""
    folder = tmp_path / "100% #1"
    for number, name in enumerate(NAMES):
        clean = noise(number)
        for part, most in zip(FOLDERS, (80, 60 - 20 * number, 10 + 10 * number, 99, 0)):
            write_png(folder / part / f"{'b' if (part, name) == ('target', 'b_2') else name}.png", near(clean, number, most))
    return folder


def page(dataset, *more, ok=True):
    """Make a page: (what the command said, the data in the page, the folder of the page)."""
    done = inside("utils.figures", "--figure=page", "--dataset_path", dataset, *more, ok=ok)
    path = done.stdout.removeprefix("figures.py: ").rpartition(", ")[0]
    with open(path, encoding="utf-8") as file:
        text = file.read()
    assert text.count("<script>") == text.count("</script>") == 1 and "http" not in text
    return done, json.loads(re.search("^const data = (.*);$", text, re.MULTILINE)[1]), os.path.dirname(path)


def test_the_page_links_every_version_and_names_it_whatever_its_letters(dataset, tmp_path):
    done, data, folder = page(dataset)
    assert done.stdout == f"figures.py: {dataset / 'page.html'}, 3 photographs\n" and not complaints(done)
    assert data["title"] == "100% #1" and data["versions"] == ["rainy", "fused reference", "derained", "likely rain", "target"]
    assert [card["name"] for card in data["cards"]] == NAMES and data["best"] == 2
    for place, more in ((folder, ()), (tmp_path / "x y/z", ["--save_path", tmp_path / "x y/z"])):
        for card in page(dataset, *more)[1]["cards"]:
            assert card["size"] == [64, 48]
            for address, part in zip(card["images"], FOLDERS, strict=True):
                assert not set(address) & set("#?\\\"'<>& \n") and address.isascii()
                file = os.path.normpath(os.path.join(place, unquote(address)))
                name = "b" if (part, card["name"]) == ("target", "b_2") else card["name"]
                assert file == str(dataset / part / f"{name}.png") and os.path.exists(file)


def test_its_scores_are_those_of_evaluate(dataset, tmp_path):
    _, data, _ = page(dataset, "--result_path", f"A={dataset / 'result'}", "--result_path", f"{EVIL}={dataset / 'sdr(fuse)'}")
    assert data["versions"] == ["rainy", "A", EVIL, "likely rain", "target"]
    inside("utils.evaluate", f"A={dataset / 'result'}", f"{EVIL}={dataset / 'sdr(fuse)'}", dataset / "target",
           "--input_path", dataset / "input", "--protocol=rgb", "--save", tmp_path / "scores.csv")
    with open(tmp_path / "scores.csv", newline="", encoding="utf-8") as file:
        rows = {(row["method"], row["image"]): [float(row["psnr_rgb"]), float(row["ssim_rgb"])] for row in csv.DictReader(file)}
    labels = ["rainy input", "A", EVIL]
    shown = {(labels[mean["version"]], f"mean of {mean['images']}"): mean for mean in data["means"]}
    shown |= {(label, card["name"]): row for card in data["cards"] for label, row in zip(labels, card["scores"], strict=True)}
    assert shown.keys() == rows.keys() and len(shown) == 12
    for (label, image), row in shown.items():
        goal = [*rows[label, image], *np.subtract(rows[label, image], rows["rainy input", image])]
        assert [row[key] for key in ("psnr_rgb", "ssim_rgb", "gain_psnr_rgb", "gain_ssim_rgb")] == pytest.approx(goal, abs=2e-6)


def test_embedded_the_page_needs_no_file_and_a_tiff_is_a_png_in_every_page(dataset):
    Image.fromarray(read_image(dataset / "input/a.png")[..., ::-1]).save(dataset / "input/a.tif")
    (dataset / "input/a.png").rename(dataset / "a.png")
    first = page(dataset)[1]["cards"][0]["images"]
    assert [address.startswith("data:image/png;base64,") for address in first] == [1, 0, 0, 0, 0]
    cards = page(dataset, "--embed", "--images", "a")[1]["cards"]
    assert len(cards) == 1 and cards[0]["images"][0] == first[0]
    for address, part in zip(cards[0]["images"], ("", *FOLDERS[1:]), strict=True):
        kind, _, text = address.partition(",")
        data, path = base64.b64decode(text, validate=True), dataset / part / "a.png"
        assert kind == "data:image/png;base64" and (data == path.read_bytes() or not part)
        assert np.array_equal(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), read_image(path))


def test_what_there_is_not_is_left_out_and_what_cannot_be_shown_gets_a_line(dataset):
    shutil.rmtree(dataset / "ldgp")
    (dataset / "result/a.png").unlink()
    (dataset / "target/b.png").unlink()
    write_png(dataset / "sdr(fuse)/b_2.png", noise(0, 20, 30))
    (dataset / f"input/{NAMES[2]}.png").write_bytes(b"x")
    done, data, _ = page(dataset, ok=False)
    lines = complaints(done)
    assert len(lines) == 2 and all(line.startswith(f"figures.py: failed: {dataset}/") for line in lines)
    assert "sdr(fuse)/b_2.png: 30x20, but" in lines[0] and "not an image that can be read" in lines[1]
    assert data["versions"] == ["rainy", "fused reference", "derained", "target"] and data["best"] == 1
    assert [[bool(address) for address in card["images"]] for card in data["cards"]] == [[1, 1, 0, 1], [1, 0, 1, 0]]
    assert [[bool(row) for row in card["scores"][:3]] for card in data["cards"]] == [[1, 1, 0], [0, 0, 0]]
    for part in FOLDERS[1:]:
        shutil.rmtree(dataset / part, ignore_errors=True)
    _, data, _ = page(dataset, "--images", "a")
    assert data["versions"] == ["rainy"] and data["means"] == [] and len(data["cards"]) == 1
    for flag, value, words in (("--images", "x", "x.png: nothing for it"), ("--result_path", dataset / "no", "no such folder")):
        complaint(inside("utils.figures", "--figure=page", "--dataset_path", dataset, flag, value, ok=False), words)


def test_in_a_browser_the_divider_moves_and_the_cards_are_sorted(dataset, tmp_path):
    page(dataset, "--result_path", f"{EVIL}={dataset / 'result'}", "--result_path", f"B={dataset / 'sdr(fuse)'}")
    with chromium(tmp_path / "profile") as shown:
        shown.open(dataset / "page.html", 360, 700)
        assert shown.run("document.title") == "100% #1" and shown.run("document.documentElement.scrollWidth") <= 360
        assert shown.run("Promise.all([...document.querySelectorAll('main img')].map(image => image.decode()))"
                         ".then(images => images.length)") == 6

        def order():
            return shown.run("[...document.querySelectorAll('h2')].map(head => head.textContent)")[:3]

        def choose(select, text):
            shown.run(f"""(list => {{ list.value = [...list.options].find(option => option.text === {json.dumps(text)}).value;
                                      list.dispatchEvent(new Event("change", {{ bubbles: true }})) }})(find("{select}"))""")

        def divider(inside="main"):
            return shown.run(f"""{{ const pair = find("{inside} .pair"), box = pair.getBoundingClientRect(),
                bar = find("i", pair).getBoundingClientRect(); [box.left, box.top + 9, box.width, +pair.ariaValueNow,
                (bar.left + bar.width / 2 - box.left) / box.width * 100] }}""")

        left, top, width, *at = divider()
        assert at == pytest.approx([50, 50], abs=0.5)
        for kind, place, goal in (("Pressed", 50, 50), ("Moved", 60, 60), ("Released", 75, 75), ("Moved", 10, 75)):
            shown.call("Input.dispatchMouseEvent", type=f"mouse{kind}", x=left + place * width / 100, y=top, clickCount=1,
                       button="left", buttons=int(place in (50, 60)))
            assert divider()[3:] == pytest.approx([goal, goal], abs=0.5)
        for key, goal in (("ArrowLeft", 70), ("ArrowUp", 75), ("Home", 0), ("ArrowRight", 5), ("Enter", 5), ("End", 100)):
            shown.call("Input.dispatchKeyEvent", type="keyDown", key=key)
            assert divider("dialog" if key == "End" else "main")[3:] == pytest.approx([goal, goal], abs=0.5), key
        assert divider("dialog")[2] == 64 and shown.run("dialog.open")  # the full size
        shown.call("Input.dispatchKeyEvent", type="keyDown", key=" ")
        assert not shown.run("dialog.open") and divider()[3] == pytest.approx(5, abs=0.5)
        for kind, places in (("Start", [10]), ("Move", [20]), ("Move", [30]), ("End", [])):
            shown.call("Input.dispatchTouchEvent", type=f"touch{kind}",
                       touchPoints=[{"x": left + place * width / 100, "y": top} for place in places])
        assert divider()[3] == pytest.approx(30, abs=0.5)
        assert order() == NAMES
        for text in ("gain, worst first", "PSNR, worst first"):
            choose("#sort", text)
            assert order() == NAMES[::-1]
        choose("#right", "B")
        assert order() == NAMES
        choose("#right", "target")  # it has no scores
        choose("#right", EVIL)
        assert order() == NAMES[::-1] and shown.run("find('select.right').selectedOptions[0].text") == EVIL
        choose("#sort", "gain, best first")
        assert order() == NAMES and not shown.complaints
