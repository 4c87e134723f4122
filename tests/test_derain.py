"""python -m utils.derain, as someone uses it who has photographs and no data set."""
import fcntl
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, ImageOps, TiffImagePlugin

from utils.image import read_image, read_mask

from conftest import ROOT, complaint, complaints, files, inside, photograph, script, write_png

EXIF = Image.Exif()
EXIF.update({0x0112: 6, 0x010F: "Maker", 0x8298: "me", 0x0131: "camera 1.0", 0x8769: {0x829A: 0.5}})  # to be turned upright
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
KEPT = {"exif": EXIF.tobytes(), "icc_profile": PROFILE, "dpi": (300, 300)}


def picture(height, width, seed, mode="RGB"):
    image = Image.fromarray(photograph(height, width, seed)[..., ::-1])
    if mode.endswith("A"):
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image.convert(mode)


@pytest.fixture
def folder(tmp_path):
    """Two photographs, one of them grey with an alpha channel, and files that are not read."""
    (tmp_path / "photos").mkdir()
    picture(48, 64, 1).save(tmp_path / "photos/rue.png")
    picture(40, 36, 2, "LA").save(tmp_path / "photos/lac.png")
    for name in ("sea.HEIC", "hill.nef", "notes.txt"):
        (tmp_path / "photos" / name).write_bytes(b"x")
    return tmp_path


def derain(folder, *words, ok=True):
    done = inside("utils.derain", *words, cwd=folder, ok=ok)
    return done, done.stdout.splitlines()[-1].partition(": ")[2] if done.stdout else ""


def test_a_folder_is_derained_beside_its_photographs_and_once(folder):
    before = sorted(os.listdir(folder / "photos"))
    done, last = derain(folder, "photos")
    assert last.startswith("2 images, 0 failed, ") and last.endswith("results beside them")
    assert "photos: 2 not read, save as .png or .jpg: hill.nef, sea.HEIC\n" in done.stderr and "notes" not in done.stderr
    assert sorted(os.listdir(folder / "photos")) == sorted([*before, "lac_derained.png", "rue_derained.png"])
    rainy, derained = (read_image(folder / f"photos/{name}.png").astype(int) for name in ("rue", "rue_derained"))
    assert derained.shape == rainy.shape and (derained <= rainy).all() and (derained < rainy).any()
    assert derain(folder, "photos")[1].startswith("2 images, 0 failed, 2 done before, nothing done")
    (folder / "photos/rue_derained.png").unlink()
    with open(folder / "photos/rue.png", "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "1 left to another process" in derain(folder, "photos")[1]
    assert not (folder / "photos/rue_derained.png").exists()
    assert derain(folder, "photos")[1].startswith("2 images, 0 failed, 1 done before, ")
    assert derain(folder, "photos", *(folder / "photos").glob("*.png"))[1].startswith("2 images, 0 failed, 2 done before")
    os.utime(folder / "photos/rue_derained.png", (1, 1))
    assert derain(folder, "photos")[1].startswith("2 images, 0 failed, 1 done before, ")
    os.utime(folder / "photos/rue.png", (1, 1))
    assert "done before" not in derain(folder, "photos", "--overwrite")[1]


@pytest.mark.parametrize("name, mode", [("a.JPG", "RGB"), ("b.png", "RGBA"), ("c.webp", "RGB"), ("d.tif", "LA"),
                                        ("e.bmp", "RGB"), ("f.jpg", "L"), ("g.jpeg", "CMYK"), ("h.tiff", "RGB")])
def test_format_and_all_about_a_photograph_are_kept(tmp_path, name, mode):
    picture(40, 60, 3, mode).save(tmp_path / name, quality=95, **KEPT)
    derain(tmp_path, name)
    with Image.open(tmp_path / name) as source, Image.open(tmp_path / name.replace(".", "_derained.")) as result:
        assert result.format == source.format and result.mode == {"CMYK": "RGB"}.get(mode, mode)
        profile = None if mode == "CMYK" else source.info.get("icc_profile")  # CMYK's is of no use to red, green and blue
        assert result.info.get("icc_profile") == profile
        assert result.info.get("dpi") == source.info.get("dpi")
        turned = source.getexif().get(0x0112) == 6
        assert turned == (name != "e.bmp") and result.size == ((40, 60) if turned else (60, 40))
        exif = result.getexif()
        assert 0x0112 not in exif and (exif.get(0x010F), exif.get(0x8298)) == (("Maker", "me") if turned else (None, None))
        assert exif.get_ifd(0x8769).get(0x829A) == (0.5 if turned else None)
        if mode.endswith("A"):
            assert np.array_equal(result.getchannel("A"), ImageOps.exif_transpose(source).getchannel("A"))


def test_a_thumbnail_with_rain_goes_and_lossless_stays_lossless_and_frames_that_are_lost_are_told(tmp_path, monkeypatch):
    thumbnail = b"\xff\xd8 a thumbnail \xff\xd9"
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, 0x0112, 3, 1, 1, 26)
    exif += struct.pack("<HHHIIHHIII", 2, 0x0201, 4, 1, 56, 0x0202, 4, 1, len(thumbnail), 0) + thumbnail
    picture(40, 60, 3).save(tmp_path / "a.jpg", exif=exif)
    for name, options in (("b.webp", {"lossless": True}), ("c.webp", {}), ("d.webp", {"lossless": True, "exif": EXIF}),
                          *((f"e{n}.{suffix}", {"save_all": True, "append_images": [picture(40, 60, 4)], "lossless": True})
                            for n, suffix in enumerate(("webp", "png", "tif")))):
        picture(40, 60, 3).save(tmp_path / name, **options)
    assert Image.open(tmp_path / "a.jpg").getexif().get_ifd(ExifTags.IFD.IFD1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)  # of larger ones Pillow warns
    for _ in range(2):
        done, last = derain(tmp_path, ".", "--overwrite")
        assert last.endswith("; 3 of 7 photographs: only the first of several frames read") and not complaints(done)
    assert thumbnail not in (tmp_path / "a_derained.jpg").read_bytes()
    assert ["VP8L" in str((tmp_path / f"{name}_derained.webp").read_bytes()) for name in ("b", "c", "d", "e0")] == [
        True, False, True, True]


def test_photographs_of_other_kinds_become_png_and_what_is_not_read_is_named_once(tmp_path):
    kinds = {"a.gif": "P", "b.jp2": "RGBA", "c.PPM": "RGB", "d.tga": "L", "e.pgm": "L", "g.mpo": "RGB", "h.JFIF": "RGB"}
    kinds |= {"f.avif": "RGB"} if "AVIF" in Image.SAVE else {}
    for name, mode in kinds.items():
        picture(40, 60, 3, mode).save(tmp_path / name, "JPEG" if name > "g" else None)
    unread = {"IMG_1": "a.gif", "old.jpg~": "h.JFIF", "x.nef": "a.gif", "y.bin": "b.jp2"}
    for name, of in unread.items():
        (tmp_path / name).write_bytes((tmp_path / of).read_bytes())
    (tmp_path / "notes.txt").write_text("text")
    done, last = derain(tmp_path, ".")
    assert last.startswith(f"{len(kinds)} images, 0 failed") and done.stderr.count("not read") == 1
    assert "derain.py: .: 4 not read, save as .png or .jpg: IMG_1, old.jpg~, x.nef, y.bin\n" in done.stderr
    for name, mode in kinds.items():
        stem, suffix = name.split(".")
        with Image.open(tmp_path / f"{stem}_derained.{suffix if name > 'g' else 'png'}") as result:
            assert (result.format, result.mode) == ("JPEG" if name > "g" else "PNG", mode.replace("P", "RGB"))
    assert derain(tmp_path, "IMG_1")[1].startswith("1 images, 0 failed")


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "webp"])
def test_a_file_of_the_user_s_is_a_photograph_whatever_its_name_and_is_never_replaced(tmp_path, suffix):
    names = [f"rue.{suffix}", "rue_rain.png", f"lac.{suffix}", f"lac_derained.{suffix}"]
    for seed, name in enumerate(names):
        picture(40, 36, seed).save(tmp_path / name)
    mine = files(tmp_path)
    for flags in ([], ["--overwrite"]):
        done, last = derain(tmp_path, ".", "--show_rain", *flags, ok=False)
        lines = [line for line in done.stderr.splitlines() if "failed" in line]
        assert last.startswith("4 images, 2 failed, ") and len(lines) == 2 and mine.items() <= files(tmp_path).items()
        assert all(f"{name}: does not say that it was made by this program" in "".join(lines) for name in names[1::2])
    assert files(tmp_path).keys() - mine.keys() == {
        "rue_rain_derained.png", "rue_rain_rain.png", f"lac_derained_derained.{suffix}", "lac_derained_rain.png"}
    assert derain(tmp_path, names[0])[1].startswith("1 images, 0 failed, ")
    once = (tmp_path / f"rue_derained.{suffix}").read_bytes()
    assert derain(tmp_path, f"rue_derained.{suffix}", "--save_path=twice")[1].startswith("1 images, 0 failed, ")  # it is named
    said, last = derain(tmp_path, names[0], f"rue_derained.{suffix}", "--overwrite")  # as by the shell for *.png
    assert last.startswith("1 images, 0 failed, ") and "1 results named beside their photographs are not" in said.stderr
    assert (tmp_path / f"rue_derained.{suffix}").read_bytes() == once


def test_formats_and_rain_where_asked_for(folder):
    picture(40, 36, 4).save(folder / "photos/pre.jpg")
    assert derain(folder, "photos")[1].startswith("3 images, 0 failed, ")
    assert derain(folder, "photos", "--format=png", "--show_rain")[1].startswith("3 images, 0 failed, ")
    with Image.open(folder / "photos/pre_derained.png") as result:
        assert result.format == "PNG"
    write_png(folder / "photos/wall.png", np.full((40, 40, 3), 120, np.uint8))
    _, last = derain(folder, "photos/rue.png", "photos/wall.png", "--save_path=new/out", "--show_rain")
    assert last.startswith("2 images, 0 failed, ") and last.endswith("results in new/out; 1 of 2 photographs: no rain found")
    assert sorted(os.listdir(folder / "new/out")) == ["rue_derained.png", "rue_rain.png", "wall_derained.png", "wall_rain.png"]
    layer = read_mask(folder / "new/out/rue_rain.png")
    assert layer.shape == (48, 64) and layer.any() and not read_mask(folder / "new/out/wall_rain.png").any()
    derain(folder, "photos/rue.png", "--save_path=new/out", "--show_rain", "--overwrite", "--strength=3")
    assert read_mask(folder / "new/out/rue_rain.png").mean() > layer.mean()


@pytest.mark.long
def test_learning_changes_the_result(folder):
    derain(folder, "photos/rue.png")
    derain(folder, "photos/rue.png", "--learn", "--backbone=DnCNN", "--save_path=out", "--device=cpu")
    plain, learnt = (read_image(folder / place / "rue_derained.png") for place in ("photos", "out"))
    assert learnt.shape == plain.shape and not np.array_equal(learnt, plain)


def test_what_cannot_be_derained_is_a_line_and_the_others_go_on(folder):
    picture(40, 40, 4).save(folder / "rue.png")
    (folder / "torn.jpg").write_bytes((folder / "rue.png").read_bytes()[:400])
    done, last = derain(folder, "photos", "nowhere/no.jpg", "torn.jpg", "--save_path=out", ok=False)
    said = [line for line in done.stderr.splitlines() if line.startswith("derain.py: failed: ")]
    assert len(said) == 2 and last.startswith("4 images, 2 failed, ")
    assert sorted(os.listdir(folder / "out")) == ["lac_derained.png", "rue_derained.png"]
    for words in ("no.jpg: cannot be read (No such file", "torn.jpg: damaged"):
        assert any(words in line for line in said), (words, said)
    (folder / "empty").mkdir()
    for words, expected in ((["empty"], "empty: no image in this folder"),
                            (["photos/rue.png", "rue.png", "--save_path=out"], "rue.png: its result would replace "),
                            (["rue.png", "--save_path=torn.jpg"], "torn.jpg: cannot hold results"), ([], "are required")):
        done, last = derain(folder, *words, ok=False)
        assert complaint(done, expected) and not last
    assert script("-m", "utils.derain", "rue.png", cwd=folder).stdout.startswith("derain.py: 1 images, 0 failed, ")


def test_without_stderr_or_letters_for_a_name_or_a_resolution_there_are_results(tmp_path):
    picture(40, 60, 1).save(tmp_path / "雨1.tif", tiffinfo={tag: TiffImagePlugin.IFDRational(0, 0) for tag in (282, 283)})
    subprocess.run(["bash", "-c", f"{sys.executable} -m utils.derain 雨1.tif 2>&-"], cwd=tmp_path, check=True,
                   env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "cp1252"})
    assert (tmp_path / "雨1_derained.tif").exists()
