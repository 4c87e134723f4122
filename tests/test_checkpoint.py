"""Checkpoints: nothing in them is executed, and what is none, or of another network, is said in a line."""
import io
import os
import pickle
import re
import zipfile

import pytest
import torch
from torch import nn

from models import build
from utils import checkpoint
from utils.image import ImageError

from conftest import TEST, complaint, complaints, files, stage



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
    for content in ([1, 2], {"weights": {}}, {"model": None}, {"model": [1]}, {"model": torch.zeros(3)}):
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


def test_test_all_on_checkpoints_of_others(copy):
    """Missing, a folder, of an unknown network; and a finite network whose output is not: one line, and no picture of it."""
    path = copy / "result_all/Rain100L/model.pkl"
    before, weights = files(copy / "result_all/Rain100L/image"), torch.load(path, weights_only=True)["model"]

    def refused(*words):
        complaint(stage(TEST, "", copy, ok=False), "test_all.py: ./result_all/Rain100L/model.pkl: ".replace("./", ""), *words)

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
