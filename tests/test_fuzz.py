"""Files that somebody spoilt, by chance or on purpose, and names that nobody expects: a result or one line, never more.

No traceback, no hang, no memory beyond what a small file may take, and nothing written outside the folders given.
`python -m pytest -m long` runs the many cases, and says how many of what there were.
"""
import io
import json
import os
import random
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from utils.image import FREE, ImageError, list_images, one_line, read_image, read_mask, write_png

from conftest import ROOT
from test_bad_input import complaint, complaints, leftovers
from test_stages import LDGP, ONE_THREAD, SDR, SDRL, data_set, files, from_shell, photograph, stage

MEGABYTE = 1 << 20
MODES = {"PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), "BMP": ("1", "L", "P", "RGB", "RGBA"),
         "JPEG": ("L", "RGB", "CMYK"), "MPO": ("RGB",), "TIFF": ("1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "F")}
COMPRESSIONS = "raw", "tiff_lzw", "packbits", "tiff_adobe_deflate", "jpeg", "group4"
OPTIONS = {"PNG": ({}, {"save_all": True}), "BMP": ({},), "JPEG": ({}, {"progressive": True}), "MPO": ({"save_all": True},),
           "TIFF": tuple({"compression": name} for name in COMPRESSIONS)}


def picture(mode, width=17, height=13):
    values = np.random.default_rng(0).integers(0, 256, (height, width, 4), dtype=np.uint8)
    if mode in ("I;16", "F"):
        return Image.fromarray(values[..., 0].astype(np.uint16 if mode == "I;16" else np.float32))
    colour = Image.fromarray(values, "RGBA")
    return colour.convert("RGB").quantize(16) if mode == "P" else colour.convert(mode)


def encoded(image, extension, **options):
    data = io.BytesIO()
    image.save(data, extension, **options)
    return data.getvalue()


def whole_files():
    """A small file of every format, mode and compression, with EXIF where it has any: [bytes]."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    made = [run_lengths()]
    for extension, modes in MODES.items():
        for mode in modes:
            for options in OPTIONS[extension]:
                frames = {"append_images": [picture(mode).rotate(180)] * 2} if "save_all" in options else {}
                extra = {} if extension == "BMP" else {"exif": exif}
                try:
                    data = encoded(picture(mode), extension, **options, **frames, **extra)
                except (OSError, ValueError, RuntimeError, KeyError):  # not every compression takes every mode
                    assert extension == "TIFF" or "save_all" in options
                    continue
                try:
                    Image.open(io.BytesIO(data)).load()
                except OSError:  # Pillow 10.1 writes an MPO that it cannot read itself
                    assert extension == "MPO"
                else:
                    made.append(data)
    return made


def run_lengths():
    """A BMP file of 17x13 pixels in run lengths."""
    header = b"BM" + struct.pack("<IHHI", 0, 0, 0, 14 + 40 + 1024) + struct.pack("<IiiHHIIiiII", 40, 17, 13, 1, 8, 1, *[0] * 5)
    return header + bytes(1024) + b"\x05\x01\x00\x00\x00\x02\x03\x04\x05\x06\x00\x03abc\x00" * 8 + b"\x00\x01"


def with_checksums(data):
    """A PNG file with the checksums of its chunks put right, so that what is behind them is reached."""
    place, made = 8, bytearray(data[:8])
    while place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        if end + 4 > len(data):
            break
        made += data[place:end] + struct.pack(">I", zlib.crc32(data[place + 4 : end]))
        place = end + 4
    return bytes(made + data[place:])


def spoilt(data, chance):
    """The bytes of a file changed in 1 to 16 places: bytes, numbers, cuts, repetitions, gaps."""
    data = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
        place, order = chance.randrange(len(data) + 1), chance.choice("<>")
        data = {
            "byte": lambda: data[:place] + bytes([chance.choice((0, 1, 127, 255, chance.randrange(256)))]) + data[place + 1 :],
            "word": lambda: data[:place] + struct.pack(order + "H", chance.choice((0, 1, 8, 256, 65535))) + data[place + 2 :],
            "long": lambda: data[:place] + struct.pack(order + "I", chance.choice(
                (0, 2**32 - 1, 2**31 - 1, 65535, 1 << chance.randrange(32)))) + data[place + 4 :],
            "cut": lambda: data[:place],
            "twice": lambda: data[:place] + data[max(0, place - chance.randrange(1, 40)) :],
            "gap": lambda: data[:place] + data[place + chance.randrange(1, 40) :],
        }[chance.choices(("byte", "word", "long", "cut", "twice", "gap"), (9, 2, 3, 2, 2, 2))[0]]()
    data = bytes(data)
    return with_checksums(data) if data[:4] == b"\x89PNG" and chance.random() < 0.5 else data


def fuzz(folder, number, seed):
    """Read so many spoilt files; returns counts. Anything but a result or an ImageError of one line goes through."""
    chance, originals, path = random.Random(seed), whole_files(), folder / "x.png"
    counts = {"read": 0, "refused": 0, "slowest": 0.0}
    for turn in range(number):
        path.write_bytes(spoilt(chance.choice(originals), chance))
        began = time.process_time()
        try:
            image = (read_image, read_mask)[turn % 2](path)
            assert image.dtype == np.uint8 and image.ndim == 3 - turn % 2
            counts["read"] += 1
        except ImageError as error:
            assert str(error).startswith(f"{path}: ") and len(str(error).splitlines()) == 1
            counts["refused"] += 1
        counts["slowest"] = max(counts["slowest"], time.process_time() - began)
    return counts


def test_whole_files_of_every_kind(tmp_path):
    """What the fuzzing starts from is read, or refused for its depth."""
    originals = whole_files()
    deep = 0
    for data in originals:
        (tmp_path / "x.png").write_bytes(data)
        try:
            assert sorted(read_image(tmp_path / "x.png").shape) == [3, 13, 17]
        except ImageError as error:
            deep += 1
            assert "more than 8 bits a channel" in str(error)
    assert len(originals) > 45 and 2 <= deep < 15


def test_spoilt_files(tmp_path):
    counts = fuzz(tmp_path, 1500, 0)
    assert counts["read"] > 100 and counts["refused"] > 500 and counts["slowest"] < 10, counts


def in_little_memory(words, folder, limit=None):
    """Run Python words in a process of their own with little address space; returns (process, its peak in MB of memory)."""
    code = (f"import resource, sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n"
            + (f"resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))\n" if limit else "") + words +
            "\nstatus = open('/proc/self/status').read() if sys.platform == 'linux' else ''"
            # ru_maxrss would be that of this process, whose tests before this one may have taken more
            "\nprint(int(status.split('VmHWM:')[1].split()[0]) // 1024 if status else 0)")
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=3600,
                          env={**os.environ, **ONE_THREAD})
    assert done.returncode == 0, done.stderr[-3000:]
    return done, int(done.stdout.split()[-1])


@pytest.mark.long
def test_thousands_of_spoilt_files(tmp_path, capsys):
    """In processes of their own, which a crash of a decoder would end."""
    total = {}
    for seed in range(1, 5):
        words = ("import json, pathlib\nfrom test_fuzz import fuzz\n"
                 f"print(json.dumps(fuzz(pathlib.Path({str(tmp_path)!r}), 15000, {seed})))")
        done, peak = in_little_memory(words, tmp_path)
        counts = json.loads(done.stdout.splitlines()[0])
        assert "TIFF" not in done.stderr and counts["slowest"] < 20 and peak < 1000
        total = {**{name: total.get(name, 0) + counts[name] for name in ("read", "refused")}, "peak MB": max(
            peak, total.get("peak MB", 0)), "slowest": max(counts["slowest"], total.get("slowest", 0))}
    with capsys.disabled():
        print("", total)


# --- small files that claim much -----------------------------------------------------------------------------------

def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, *chunks, data=b"", colour=2):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def tiff(*entries):
    """A TIFF file of one directory with entries (tag, type, count, value)."""
    made = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + made + bytes(4 + 64)


def claims():
    """{name: a file of a few kB that claims gigabytes}"""
    small, bitmap = encoded(picture("RGB"), "PNG"), encoded(picture("RGB"), "BMP")
    nothing = zlib.compress(bytes(64 * MEGABYTE), 9)
    jpeg = bytearray(encoded(picture("RGB"), "JPEG"))
    size = jpeg.index(b"\xff\xc0") + 5
    jpeg[size : size + 4] = b"\xff\xdc\xff\xdc"
    scan = encoded(picture("L"), "JPEG", progressive=True)
    last = scan.rindex(b"\xff\xda")
    body = {256: (256, 3, 1, 17), 257: (257, 3, 1, 13), 258: (258, 3, 1, 8), 259: (259, 3, 1, 1), 262: (262, 3, 1, 1),
            273: (273, 4, 1, 100), 278: (278, 3, 1, 13), 279: (279, 4, 1, 221)}

    def directory(**changes):
        return tiff(*{**body, **{int(tag[1:]): entry for tag, entry in changes.items()}}.values())

    return {
        "wide.png": png(2**31 - 1, 2**31 - 1), "bomb.png": png(20000, 20000, data=nothing),
        "flat.png": png(9000, 9000, data=nothing), "line.png": png(500_000_000, 1),
        "ztxt.png": small[:33] + b"".join(chunk(b"zTXt", b"k\0\0" + nothing) for _ in range(20)) + small[33:],
        "itxt.png": small[:33] + chunk(b"iTXt", b"k\0\1\0\0\0" + nothing) + small[33:],
        "iccp.png": small[:33] + chunk(b"iCCP", b"k\0\0" + nothing) + small[33:],
        "frames.png": small[:33] + chunk(b"acTL", struct.pack(">II", 2**31, 0)) + small[33:],
        "wide.jpg": bytes(jpeg), "scans.jpg": scan[:last] + scan[last:-2] * 5000 + scan[-2:],
        "mpo.jpg": encoded(picture("RGB"), "MPO", save_all=True, append_images=[picture("RGB")]).replace(
            struct.pack("<HHII", 0xB001, 4, 1, 2), struct.pack("<HHII", 0xB001, 4, 1, 2**31)),
        "wide.bmp": bitmap[:18] + struct.pack("<ii", 50000, -50000) + bitmap[26:],
        "runs.bmp": b"BM" + struct.pack("<IHHI", 0, 0, 0, 1078) + struct.pack(
            "<IiiHHIIiiII", 40, 40_000_000, 1, 1, 8, 1, *[0] * 5) + bytes(1024) + b"\0\2\xff\xff" * 100,
        "wide.tif": directory(t256=(256, 4, 1, 2**30), t257=(257, 4, 1, 2**30)),
        "strip.tif": directory(t278=(278, 4, 1, 2**32 - 1), t279=(279, 4, 1, 2**32 - 1)),
        "many.tif": directory(t273=(273, 4, 2**30, 100), t279=(279, 4, 2**30, 8)),
        "tag.tif": directory(t700=(700, 1, 2**32 - 1, 8), t305=(305, 2, 2**31, 8)),
        "deep.tif": directory(t277=(277, 3, 1, 65535), t258=(258, 3, 65535, 8)),
        "page.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99999 99999\n%%EndComments\n(x) print\n",
    }


def test_small_files_that_claim_much_take_little(tmp_path):
    """Each is read or refused, all within the address space that importing takes and less than a gigabyte."""
    files_made = claims()
    assert max(map(len, files_made.values())) < 3 * MEGABYTE
    for name, data in files_made.items():
        (tmp_path / name).write_bytes(data)
    words = """
import pathlib, time
from utils.image import ImageError, list_images, read_image, read_mask
for path in sorted(pathlib.Path().iterdir()):
    for read in (read_image, read_mask):
        began = time.process_time()
        try:
            read(path); said = "read"
        except ImageError as error:
            said = str(error)
        assert time.process_time() - began < 20, path
        print(said if said != "read" else f"{path}: read")"""
    done, peak = in_little_memory(words, tmp_path)
    lines = done.stdout.splitlines()[:-1]
    said = dict(line.split(": ", 1) for line in lines)
    assert said.keys() == files_made.keys() and len(lines) == 2 * len(said)
    assert not done.stderr  # nothing of libtiff's own
    for name in ("bomb.png", "flat.png"):
        assert "too many for a file of" in said[name]
    for name in ("wide.png", "wide.jpg", "wide.bmp", "wide.tif"):
        assert "more than 512 megapixels; make it smaller" in said[name]
    assert "a JPEG file of too many scans" in said["scans.jpg"] and "not an image that can be read" in said["page.jpg"]
    assert said["frames.png"] == "read" and peak < 1000, (said, peak)


def test_a_large_photograph_of_honest_size_is_not_refused(tmp_path):
    """Above what is always read as a photograph, 8 pixels a byte; a mask may be flat, a photograph may not."""
    side = int(FREE**0.5) + 1
    large = Image.new("1", (side, side))
    large.save(tmp_path / "flat.png")
    large.save(tmp_path / "honest.tif", compression="raw")
    assert read_image(tmp_path / "honest.tif").shape == (side, side, 3)
    assert read_mask(tmp_path / "honest.tif").shape == read_mask(tmp_path / "flat.png").shape == (side, side)
    with pytest.raises(ImageError, match=f"claims {side}x{side} pixels, too many for a file"):
        read_image(tmp_path / "flat.png")


@pytest.mark.parametrize("width, height", [(1, 1), (1, 5000), (5000, 1), (2, 3)])
def test_odd_sizes_are_read(tmp_path, width, height):
    for extension in ("PNG", "JPEG", "BMP", "TIFF"):
        (tmp_path / "x.png").write_bytes(encoded(picture("RGB", width, height), extension))
        assert read_image(tmp_path / "x.png").shape == (height, width, 3)


def test_text_beside_the_picture_is_no_damage(tmp_path):
    """Honest metadata, more than a little of it."""
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "rain " * 50_000, zip=True)
    (tmp_path / "x.png").write_bytes(encoded(picture("RGB"), "PNG", pnginfo=info))
    assert read_image(tmp_path / "x.png").shape == (13, 17, 3)
    honest = encoded(picture("RGB", 640, 480), "JPEG", progressive=True) + random.Random(0).randbytes(3 * MEGABYTE)
    (tmp_path / "motion.jpg").write_bytes(honest)  # cameras hang films on
    assert read_image(tmp_path / "motion.jpg").shape == (480, 640, 3)


# --- names ---------------------------------------------------------------------------------------------------------

NAMES = ["two words", " lead", "trail ", "-rf", "--help", "[x] (y) {z} *?", "sdr(fuse)", "a'b\"c`d$e", "new\nline", "tab\there",
         "bell\x07\x1b[31m", "e\u0301", "\u00e9", "\U0001f327\ufe0f", "\u202egnp", "a..", "b..c", "%s", "\\",
         "0" * 200, "n" * 251, "\udcff\udcfe"]


def test_names_that_nobody_expects(tmp_path):
    """All of them go through the stages, each under its own name, and what is printed is one line a message."""
    place = data_set(tmp_path)
    for seed, name in enumerate(NAMES):
        write_png(place / f"input/{name}.png", photograph(33, 35, seed))
    write_png(place / f"input/{'x' * 250}.png", photograph(33, 35, 99))
    (place / f"input/{'x' * 250}.png").rename(place / f"input/{'x' * 250}.jpeg")  # 255 bytes
    for number, command in enumerate((LDGP, SDR)):
        done = stage(command, "--sdr_num=1" if number else "", tmp_path)
        assert f"{len(NAMES) + 1} images, 0 failed" in done.stdout and len(done.stdout.splitlines()) == 1
        assert not {"\x07", "\x1b[31m", "new\nline"} & set(done.stderr)
    expected = {f"{name}.png" for name in [*NAMES, "x" * 250]}
    made = {name: set(os.listdir(place / name)) - {".rain2avoid"} for name in ("ldgp", "sdr", "sdr(fuse)")}
    assert made["ldgp"] == made["sdr(fuse)"] == {f"{name}.png" for name in made["sdr"]} == expected and not leftovers(tmp_path)


def test_messages_stay_one_line(tmp_path, script):
    place = data_set(tmp_path)
    (place / "input").mkdir(parents=True)
    (place / "input/new\nline\x1b[31m\udcff.png").write_text("x")
    done = from_shell(script, LDGP, "", tmp_path, ok=False)
    complaint(done, "ldgp.py: failed: dataset/Rain100L/input/new\\nline\\x1b[31m\\udcff.png: not an image that can be read")
    line = complaint(stage(LDGP, "--input_path='no\nwhere'", tmp_path, ok=False), "ldgp.py: no\\nwhere: no such folder")
    assert one_line(line) == line
    complaint(stage(LDGP, "'a\nb'", tmp_path, ok=False), "unrecognized arguments: a\\nb")


def test_values_and_folders_with_leading_dashes(tmp_path):
    write_png(tmp_path / "-in/-x.png", photograph(33, 35, 1))
    stage(LDGP, "--input_path=-in --save_path=--out", tmp_path)
    assert set(files(tmp_path / "--out")) == {"-x.png"}
    complaint(stage(LDGP, "--input_path -in", tmp_path, ok=False), "argument --input_path: expected one argument")
    complaint(stage(LDGP, "--kernel_size=--", tmp_path, ok=False), "argument --kernel_size: ")


def test_links_are_followed_when_read_and_replaced_when_written(tmp_path):
    """Nothing is written through a link that lies in a folder for results; links to nothing are reported."""
    place = data_set(tmp_path)
    outside = tmp_path / "outside"
    write_png(outside / "real.png", photograph(33, 35, 1))
    write_png(outside / "mine.png", photograph(33, 35, 2))
    write_png(outside / "refs/7.png", photograph(33, 35, 3))
    (place / "input").mkdir(parents=True)
    (place / "input/link.png").symlink_to(outside / "real.png")
    (place / "input/folder.png").symlink_to(outside)
    (place / "input/nothing.png").symlink_to(outside / "gone.png")
    (place / "input/loop.png").symlink_to(place / "input/loop.png")
    os.mkfifo(place / "input/pipe.png")
    (place / "input/zero.png").symlink_to("/dev/zero")
    (place / "ldgp").mkdir()
    (place / "ldgp/link.png").symlink_to(outside / "mine.png")
    before = files(outside)
    assert set(list_images(place / "input")) == {"link", "loop", "nothing"}
    lines = complaints(stage(LDGP, "--overwrite", tmp_path, ok=False))
    assert len(lines) == 2 and "loop.png: cannot be read" in lines[0]
    assert "nothing.png: no such file (a link to nothing)" in lines[1]
    assert files(outside) == before and not (place / "ldgp/link.png").is_symlink()

    for stem in ("loop", "nothing"):
        (place / f"input/{stem}.png").unlink()
    (place / "sdr").mkdir()
    (place / "sdr/link").symlink_to(outside / "refs")
    (place / "sdr(fuse)").mkdir()
    (place / "sdr(fuse)/link.png").symlink_to(outside / "mine.png")
    complaint(stage(SDR, "--sdr_num=2 --overwrite", tmp_path, ok=False), "dataset/Rain100L/sdr/link: a link", "remove it")
    assert files(outside) == before
    (place / "sdr/link").unlink()
    stage(SDR, "--sdr_num=2", tmp_path)
    assert files(outside) == before and not (place / "sdr(fuse)/link.png").is_symlink()
    (place / "result").symlink_to(outside)  # a folder that is given is the user's to choose
    stage(SDRL, "--steps=1 --backbone=DnCNN", tmp_path)
    assert files(outside).keys() - before.keys() == {"link.png"}
