"""Files of every kind, spoilt ones and checkpoints, which run nothing, and names that nobody expects: a result or one line."""
import io
import os
import pickle
import random
import re
import struct
import zipfile
import zlib

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ldgp import rain_mask
from models import build
from sdr import sample_references
from utils import checkpoint
from utils.image import ImageError, list_images, one_line, read_image, read_mask
from utils.photograph import photograph_bytes, read_photograph

from conftest import (DATA, LDGP, SDR, SDRL, TEST, complaint, complaints, data_set, files, from_shell, noise, photograph, stage,
                      write_png)

MODES = {"PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), "BMP": ("1", "L", "P", "RGB", "RGBA"),
         "JPEG": ("L", "RGB", "CMYK"), "TIFF": ("1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "F"), "WEBP": ("RGB", "RGBA"),
         "GIF": ("L", "P"), "JPEG2000": ("L", "RGBA", "I;16"), "PPM": ("1", "L", "RGB", "I;16"), "TGA": ("L", "P", "RGBA"),
         **({"AVIF": ("L", "RGBA")} if "AVIF" in Image.SAVE else {})}
UPRIGHT = "BMP", "GIF", "JPEG2000", "PPM", "TGA"  # have no EXIF
OPTIONS = {"PNG": ({}, {"save_all": True}), "JPEG": ({}, {"progressive": True}),
           "TIFF": ({"big_tiff": True}, *({"compression": f"tiff_{name}"} for name in ("lzw", "adobe_deflate")),
                    *({"compression": name} for name in ("raw", "packbits", "jpeg")))}


def picture(mode, width=17, height=13):
    values = np.random.default_rng(0).integers(0, 256, (height, width, 4), dtype=np.uint8)
    if mode in ("I;16", "F"):
        return Image.fromarray(values[..., 0].astype(np.uint16 if mode == "I;16" else np.float32))
    colour = Image.fromarray(values, "RGBA")
    return colour.convert("RGB").quantize(16) if mode == "P" else colour.convert(mode)


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def encoded(image, extension, **options):
    data = io.BytesIO()
    image.save(data, extension, **options)
    return data.getvalue()


def whole_files():
    """A small file of every format, mode and compression, with EXIF where it has any: {name: bytes}."""
    made = {"MPO": encoded(picture("RGB"), "MPO", save_all=True, append_images=[picture("RGB")], exif=turned(6))}
    for extension, modes in MODES.items():
        for mode in modes:
            for options in OPTIONS.get(extension, ({},)):
                if options.get("compression") == "jpeg" and mode not in ("L", "RGB", "CMYK"):
                    continue
                extra = {} if extension in UPRIGHT else {"exif": turned(6)}
                made[f"{extension} {mode} {options}"] = encoded(picture(mode), extension, **options, **extra)
    return made


def test_whole_files_of_every_kind(tmp_path):
    """All are read upright, or refused for more than 8 bits a channel."""
    for name, data in whole_files().items():
        (tmp_path / "x.png").write_bytes(data)
        if "I;16" in name or " F " in name:
            with pytest.raises(ImageError, match="more than 8 bits a channel"):
                read_image(tmp_path / "x.png")
        else:
            shape = (13, 17, 3) if name.startswith(UPRIGHT) else (17, 13, 3)
            assert read_image(tmp_path / "x.png").shape == shape, name
    for extension in ("jp2", "avif") if cv2.haveImageWriter("x.avif") and "AVIF" in Image.SAVE else ():
        depth = [cv2.IMWRITE_AVIF_DEPTH, 10] if extension == "avif" else []
        (tmp_path / "x.png").write_bytes(cv2.imencode(f".{extension}", noise(0).astype(np.uint16) * 4, depth)[1].tobytes())
        with pytest.raises(ImageError, match="more than 8 bits a channel"):
            read_image(tmp_path / "x.png")
    for width, height in ((1, 1), (1, 5000), (5000, 1), (2, 3)):
        for extension in ("PNG", "JPEG", "BMP", "TIFF"):
            (tmp_path / "x.png").write_bytes(encoded(picture("RGB", width, height), extension))
            assert read_image(tmp_path / "x.png").shape == (height, width, 3)


@pytest.mark.parametrize("extension", ["jpg", "png", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_read_as_it_is_shown(tmp_path, orientation, extension):
    stored = photograph(8, 12, 1)
    shown = [stored, stored[:, ::-1], stored[::-1, ::-1], stored[::-1], stored.transpose(1, 0, 2), np.rot90(stored, -1),
             stored[::-1, ::-1].transpose(1, 0, 2), np.rot90(stored)][orientation - 1]
    Image.fromarray(stored[..., ::-1]).save(tmp_path / f"x.{extension}", exif=turned(orientation), quality=100, subsampling=0)
    image = read_image(tmp_path / f"x.{extension}")
    assert image.shape == shown.shape and abs(image.astype(int) - shown).mean() < 2


def test_formats_and_names_through_the_stages(tmp_path):
    """Found by extension, joined by name, upright; grey stays grey, and transparency is kept."""
    source = data_set(tmp_path) / "input"
    source.mkdir(parents=True)
    modes = {"upper.PNG": "RGB", "photo.JPG": "RGB", "a.b c [1].bmp": "RGB", "5² 雨.tif": "L", "alpha.webp": "RGBA",
             "greyalpha.png": "LA", "palette.png": "P"}
    for name, mode in modes.items():
        about = {"exif": turned(6)} if name == "photo.JPG" else {"lossless": True}
        picture(mode, 44, 36).save(source / name, **about)
    for name in ("Thumbs.db", ".DS_Store", "notes.txt", "._photo.JPG", ".hidden.png"):
        (source / name).write_bytes(b"\0\1\2 no photograph")
    (source / "folder.png").mkdir()
    photographs = list_images(source)
    assert list(photographs) == ["5² 雨", "a.b c [1]", "alpha", "greyalpha", "palette", "photo", "upper"]
    (tmp_path / "result_all/Rain100L").mkdir(parents=True)
    network = {"model": build("DnCNN", residual=True).state_dict(), "backbone": "DnCNN", "identity": True}
    torch.save(network, tmp_path / "result_all/Rain100L/model.pkl")
    for command, flags in ((LDGP, ""), (SDR, "--sdr_num=1"), (SDRL, "--steps=1 --backbone=DnCNN"), (TEST, "")):
        stage(command, flags, tmp_path)
    place, same = tmp_path / DATA, tmp_path / "result_all/Rain100L/image"
    for folder in (place / "ldgp", place / "sdr(fuse)", place / "result", same):
        assert set(files(folder)) == {f"{stem}.png" for stem in photographs}
    for stem, path in photographs.items():
        rainy, mask, mode = read_image(path), read_mask(place / f"ldgp/{stem}.png"), modes[path.name]
        assert np.array_equal(mask, rain_mask(rainy)), stem
        assert np.array_equal(read_image(place / f"sdr/{stem}/0.png"), sample_references(rainy, mask, 1)[0]), stem
        assert abs(read_image(same / f"{stem}.png").astype(int) - rainy).max() <= (mode[0] == "L"), stem
        for folder in (place / "result", same):
            assert Image.open(folder / f"{stem}.png").mode == mode.replace("P", "RGB")
    assert rainy.shape == (36, 44, 3) and read_image(photographs["photo"]).shape == (44, 36, 3)


NAMES = ["two words", " lead", "trail ", "-rf", "--help", "[x] (y) {z} *?", "sdr(fuse)", "a'b\"c`d$e", "new\nline", "tab\there",
         "bell\x07\x1b[31m", "e\u0301", "\u00e9", "\U0001f327\ufe0f", "\u202egnp", "a..", "%s", "\\", "0" * 200, "n" * 245,
         "\udcff\udcfe"]


def test_names_that_nobody_expects(tmp_path):
    """All of them go through the stages, each under its own name, and what is printed is one line a message."""
    place = data_set(tmp_path, **{name: photograph(33, 35, seed) for seed, name in enumerate(NAMES)})
    for command in (LDGP, f"{SDR} --sdr_num=1"):
        done = stage(command, "", tmp_path)
        assert f"{len(NAMES)} images, 0 failed" in done.stdout and len(done.stderr.splitlines()) == len(NAMES)
        assert not {"\x07", "\x1b"} & set(done.stderr) and not complaints(done)
    for folder in ("ldgp", "sdr(fuse)"):
        assert set(os.listdir(place / folder)) == {"run.json", *(f"{name}.png" for name in NAMES)}
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/new\nline\x1b[31m\udcff.png").write_text("x")
    done = from_shell(LDGP, "--input_path=bad", tmp_path, ok=False)
    complaint(done, "ldgp.py: failed: bad/new\\nline\\x1b[31m\\udcff.png: not an image that can be read")
    line = complaint(stage(LDGP, "--input_path='no\nwhere'", tmp_path, ok=False), "ldgp.py: no\\nwhere: no such folder")
    assert one_line(line) == line
    complaint(stage(LDGP, "'a\nb'", tmp_path, ok=False), "unrecognized arguments: a\\nb")


def test_links_are_followed_when_read_and_replaced_when_written(tmp_path):
    """Nothing is written through a link that lies in a folder for results; broken ones and what is no file are reported."""
    place, outside = data_set(tmp_path, own=photograph(33, 35, 4)), tmp_path / "outside"
    write_png(outside / "real.png", photograph(33, 35, 1))
    write_png(outside / "mine.png", photograph(33, 35, 2))
    for name, target in (("link", outside / "real.png"), ("nothing", outside / "gone.png"), ("loop", place / "input/loop.png")):
        (place / f"input/{name}.png").symlink_to(target)
    (place / "ldgp").mkdir()
    (place / "ldgp/link.png").symlink_to(outside / "mine.png")
    before = files(outside)
    lines = complaints(stage(LDGP, "--overwrite", tmp_path, ok=False))
    assert len(lines) == 2 and all(f"{name}.png: cannot be read" in line for name, line in zip(("loop", "nothing"), lines))
    assert files(outside) == before and not (place / "ldgp/link.png").is_symlink()


def spoilt(data, chance):
    """The bytes of a file changed in 1 to 16 places: bytes, numbers, repetitions, gaps, cuts.

    In half of the PNG files the checksums are put right, so that what is behind them is reached.
    """
    for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
        place, length = chance.randrange(len(data) + 1), chance.randrange(1, 40)
        number = chance.choice((0, 1, 8, 127, 255, 256, 65535, 2**31 - 1, 2**32 - 1, 1 << chance.randrange(32)))
        packed = struct.pack(chance.choice("<>") + "I", number)
        new = chance.choice((packed[:1], packed[:2], packed[2:], packed, data[max(place - length, 0) : place], b""))
        rest = data[place + chance.choice((len(new), length, 0)) :]
        data = data[:place] + new + (b"" if chance.random() < 0.1 else rest)
    return with_checksums(data) if data[:4] == b"\x89PNG" and chance.random() < 0.5 else data


def with_checksums(data):
    """A PNG file with the checksums that its chunks should have."""
    place, made = 8, data[:8]
    while place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        made += data[place:end] + struct.pack(">I", zlib.crc32(data[place + 4 : end]))
        place = end + 4
    return made + data[place:]


@pytest.mark.parametrize("seed, number", [
    (0, 1500), *(pytest.param(seed, 2500, marks=pytest.mark.long) for seed in range(1, 5))])
def test_spoilt_files(tmp_path, seed, number):
    """Anything but a picture or an ImageError of one line goes through; a crash of a decoder would end the tests."""
    chance, originals, path = random.Random(seed), list(whole_files().values()), tmp_path / "x.png"
    counts = {"read": 0, "refused": 0}
    for turn in range(number):
        path.write_bytes(spoilt(chance.choice(originals), chance))
        try:
            image = (read_image, read_mask)[turn % 2](path)
            photograph = read_photograph(path)
            assert photograph_bytes(photograph.image, photograph, photograph.format)
            assert image.dtype == np.uint8 and image.ndim == 3 - turn % 2
            counts["read"] += 1
        except ImageError as error:
            assert str(error).startswith(f"{path}: ") and len(str(error).splitlines()) == 1
            counts["refused"] += 1
    assert counts["read"] > 100 and counts["refused"] > 500, counts


def test_small_files_that_claim_much(tmp_path):
    """Refused for their size, before any memory is taken; and nothing but images is opened."""
    bitmap, png = encoded(picture("RGB"), "BMP"), encoded(picture("RGB"), "PNG")
    large = [with_checksums(png[:16] + struct.pack(">II", side, side) + png[24:]) for side in (20000, 2**31 - 1)]
    large.append(bitmap[:18] + struct.pack("<ii", 50000, -50000) + bitmap[26:])
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    for data, words in (*((data, "megapixels; make it smaller") for data in large), (script, "not an image that can be")):
        (tmp_path / "x.png").write_bytes(data)
        with pytest.raises(ImageError, match=words):
            read_image(tmp_path / "x.png")


class Runs:
    """A pickle of it calls a function when it is opened by pickle.load."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    path, trace = tmp_path / "model.pkl", tmp_path / "executed"
    hidden = pickle.dumps(Runs(os.mkdir, str(trace)))
    attacks = [Runs(os.system, f"touch {trace}"), Runs(exec, f"open({str(trace)!r}, 'w')"), Runs(pickle.loads, hidden)]
    weights = nn.Conv2d(3, 3, 3).state_dict()
    for attack in attacks:
        for content in (attack, {"model": attack}, {"model": weights, "more": [{1: (attack,)}]}, {"model": weights, attack: 1}):
            for how in (torch.save, lambda *what: torch.save(*what, _use_new_zipfile_serialization=False),
                        lambda what, where: where.write_bytes(pickle.dumps(what))):
                how(content, path)
                with pytest.raises(ImageError, match="model.pkl: damaged, or not a checkpoint of tensors and plain values"):
                    checkpoint.load(path)
                assert not trace.exists()
    pickle.loads(pickle.dumps(attacks[2]))
    assert trace.exists()  # they are real


def test_files_that_are_no_checkpoints(tmp_path):
    """Cut anywhere, compressed, of the formats before zip, of other content: one line."""
    path, data, packed = tmp_path / "x.pkl", io.BytesIO(), io.BytesIO()
    model = {"model": {"weight": torch.zeros(1 << 10)}}
    torch.save(model, data)
    with zipfile.ZipFile(data) as whole, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as made:
        for name in whole.namelist():
            made.writestr(name, whole.read(name))
    torch.save(model, path, _use_new_zipfile_serialization=False)
    bad, whole = [path.read_bytes(), packed.getvalue(), b"text", pickle.dumps({"model": 1})], data.getvalue()
    bad += [whole[:length] for length in range(0, len(whole) - 1, 1 + len(whole) // 40)]
    for content in ([1, 2], {"model": None}, {"model": [1]}, {"model": torch.zeros(3)}):
        torch.save(content, path)
        bad.append(path.read_bytes())
    for content in bad:
        path.write_bytes(content)
        with pytest.raises(ImageError, match=r"x\.pkl: damaged, or not a checkpoint") as raised:
            checkpoint.load(path)
        assert len(str(raised.value).splitlines()) == 1
    path.write_bytes(whole)
    assert checkpoint.load(path)["model"]["weight"].shape == (1 << 10,)


def test_weights_that_do_not_fit():
    """NaN, infinite, of other types or sizes, of another network, sparse, without memory, and no weights at all."""
    good = build("DnCNN").state_dict()
    first = next(iter(good))
    spoilt = [good[first] * value for value in (float("nan"), float("inf"))]
    spoilt += [good[first].long(), good[first].bool(), good[first][:1], good[first][None], good[first].to_sparse(),
               good[first].to("meta"), None, "new\nline"]
    bad = [{**good, first: value} for value in spoilt]
    for weights in (*bad, {**good, "new\nline": good[first]}, build("Unet").state_dict(), {}, {1: good[first]}):
        with pytest.raises(ImageError, match=r"x\.pkl: its weights cannot be used in a DnCNN") as raised:
            checkpoint.load_weights(build("DnCNN"), weights, "x.pkl")
        assert len(str(raised.value).splitlines()) == 1
    checkpoint.load_weights(build("DnCNN"), good, "x.pkl")


def test_checkpoints_of_a_dataparallel_without_an_entry_model_and_of_another_project(tmp_path):
    path, weights = tmp_path / "x.pkl", build("Unet").state_dict()
    parallel = {f"module.{name}": tensor for name, tensor in weights.items()}
    for content in ({"model": parallel}, parallel, weights):
        torch.save(content, path)
        loaded = checkpoint.load_model(path, "cpu")[0].state_dict()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())
    for content in ({"params": weights}, {"model": build("DnCNN").state_dict()}, {"weights": {}}):
        torch.save(content, path)
        with pytest.raises(ImageError, match="not of this backbone .* name a checkpoint that today's sdrl_all.py wrote$"):
            checkpoint.load_model(path, "cpu")


def test_test_all_on_checkpoints_of_others(copy):
    """Missing, a folder, of an unknown network; and a finite network whose output is not: one line, and no picture of it."""
    path = copy / "result_all/Rain100L/model.pkl"
    before, weights = files(copy / "result_all/Rain100L/image"), torch.load(path, weights_only=True)["model"]

    def refused(*words):
        complaint(stage(TEST, "", copy, ok=False), "test_all.py: result_all/Rain100L/model.pkl: ", *words)

    path.unlink()
    refused("no such checkpoint; train one first with sdrl_all.py")
    path.mkdir()
    refused("cannot be read")
    path.rmdir()
    for backbone in ("VGG", ["Unet"], None, "new\nline" * 99, [[[["x"]]]]):
        torch.save({"model": weights, "backbone": backbone}, path)
        refused("holds an unknown backbone", "known: Unet, ResNet, DnCNN")
    assert files(copy / "result_all/Rain100L/image") == before
    name = next(name for name in weights if re.search("running_var", name))
    torch.save({"model": {**weights, name: -torch.ones_like(weights[name])}, "backbone": "DnCNN"}, path)
    lines = complaints(stage(TEST, "--overwrite", copy, ok=False))
    assert len(lines) == 2 and all("the network's output is not finite" in line for line in lines)
