"""Numbers that go wrong while a network learns, and checkpoints that nobody should open: one line, and no result of them."""
import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import build
from sdrl import LOOK_EVERY, FusedAdam, derain, derain_by_own_rain, fit, fresh_model
from sdrl_all import check_weights, load, load_weights, resume_state, restore
from utils.image import ImageError, uint8_to_tensor, write_png
from utils.inference import infer

from test_bad_input import DATA, NAMES, NUMBERS, SHORTEST, STAGES, complaint, complaints, leftovers
from test_stages import ALL, LDGP, ONLINE, SDR, SDRL, TEST, data_set, files, photograph, stage

RAINY = photograph(12, 14, 1)
REFERENCES = np.stack([photograph(12, 14, seed) for seed in (2, 3)])


@pytest.fixture
def two(tmp_path):
    """Two photographs, 32 and 33 pixels high, with masks and references."""
    data_set(tmp_path, eins=photograph(32, 35, 1), zwei=photograph(33, 35, 2))
    for command in (LDGP, SDR):
        stage(command, SHORTEST[command], tmp_path)
    return tmp_path


def losses_that_become(value, patch, after=0, height=None):
    """From the call number `after` on (and where outputs have that height) the error of every recipe is `value`."""
    calls = []

    def broken(honest):
        def loss(output, target, **options):
            calls.append(output.shape[2] == height or height is None)
            return honest(output, target, **options) * (value if sum(calls) > after and calls[-1] else 1)

        return loss

    for name in ("mse_loss", "l1_loss"):
        patch.setattr(F, name, broken(getattr(F, name)))


# --- learning from one photograph ----------------------------------------------------------------------------------

@pytest.mark.parametrize("command", [SDRL, ONLINE], ids=["sdrl.py", "sdrl_online.py"])
def test_a_loss_that_is_no_number_stops_that_image_alone(two, monkeypatch, command):
    (two / DATA / "result").mkdir()
    (two / DATA / "result/zwei.png").write_text("the old one")
    losses_that_become(float("nan"), monkeypatch, after=1, height=33)
    done = stage(command, "--steps=3 --backbone=DnCNN --overwrite", two, ok=False)
    complaint(done, f"failed: {DATA}/input/zwei.png: the loss became NaN or infinite within 2 steps; use a smaller --lr")
    assert "2 images, 1 failed" in done.stdout and done.returncode == 1
    assert (two / DATA / "result/zwei.png").read_text() == "the old one"
    assert set(files(two / DATA / "result")) == {"eins.png", "zwei.png"} and not leftovers(two)


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("learn, known, options", [
    (derain, REFERENCES, {}), (derain, REFERENCES, {"crop_size": 8, "average": 0.9}),
    (derain_by_own_rain, RAINY, {"average": 0.9})], ids=["paper", "crops", "fast"])
def test_every_way_to_learn_looks_at_its_loss(monkeypatch, amp, value, learn, known, options):
    seen = []
    losses_that_become(value, monkeypatch, after=2)
    advice = "--lr" + (" or leave out --amp" if amp else "$")
    with pytest.raises(FloatingPointError, match=f"NaN or infinite within 3 steps.*{advice}"):
        learn(nn.Conv2d(3, 3, 3, padding=1), RAINY, known, steps=9, amp=amp, report=seen.append, **options)
    assert len(seen) == 2


def test_a_gpu_is_not_asked_in_every_step(monkeypatch):
    """Where looking is rare, an infinite loss is still known at the next look, and the last is before the result."""
    monkeypatch.setitem(LOOK_EVERY, "cpu", 4)
    for after, within in ((0, 4), (3, 4), (4, 6)):
        with monkeypatch.context() as patch:
            losses_that_become(float("inf"), patch, after=after)
            with pytest.raises(FloatingPointError, match=f"within {within} steps"):
                x = uint8_to_tensor(RAINY)
                fit(nn.Conv2d(3, 3, 3, padding=1), [(x, x)] * 6, FusedAdam, F.l1_loss)


def test_learning_rates_beyond_all_reason(two):
    """The loss or the output overflows, and what no float32 holds is no learning rate."""
    for flags, words in (("--lr=1e30 --steps=3", "the loss became NaN or infinite within 2 steps"),
                         ("--lr=1e30 --steps=1", "the network's output is not finite")):
        lines = complaints(stage(SDRL, f"{flags} --backbone=DnCNN", two, ok=False))
        assert len(lines) == 2 and all(words in line and "smaller --lr" in line for line in lines), lines
    assert not files(two / DATA / "result")
    with pytest.raises(FloatingPointError, match="within 3 steps; use a smaller --lr"):
        derain_by_own_rain(fresh_model("DnCNN", 3, "cpu", identity=True), RAINY, RAINY // 2, 5, lr=1e30)
    for command in (SDRL, ONLINE, ALL):
        complaint(stage(command, "--lr=1e38", two, ok=False), "argument --lr: '1e38' is not a number from 0 to 1e+30")


def test_an_output_that_is_not_finite_is_none():
    model = nn.Conv2d(3, 3, 1)
    for value in (float("nan"), float("inf"), -float("inf")):
        with torch.no_grad():
            model.weight[0] = value
        for tile_size in (1024, 256):
            with pytest.raises(FloatingPointError, match="output is not finite"):
                infer(model, photograph(300, 290, 1), tile_size)


# --- learning from a whole data set --------------------------------------------------------------------------------

def test_the_last_good_checkpoint_stays(two, monkeypatch):
    short = "--backbone=DnCNN --batch_size=2 --crop_size=8 --save_every=1"
    stage(ALL, f"{short} --epoch=1", two)
    before = files(two)
    for value in (float("nan"), float("inf")):
        with monkeypatch.context() as patch:
            losses_that_become(value, patch)
            done = stage(ALL, f"{short} --epoch=3 --resume", two, ok=False)
        goes_on, line = complaints(done)
        assert "goes on after epoch 1" in goes_on and done.returncode == 1
        assert line.startswith("sdrl_all.py: result_all/Rain100L/model.pkl: left as it was")
        assert line.endswith("NaN or infinite in epoch 2; use a smaller --lr")
        assert files(two) == before
    stage(ALL, f"{short} --epoch=2 --resume", two)  # it is good indeed


def test_a_network_that_is_not_finite_is_not_written(two, monkeypatch):
    """Also where no loss has told: the last step spoilt it."""
    honest = torch.optim.Adam.step

    def step(self, *arguments):
        honest(self, *arguments)
        self.param_groups[0]["params"][0].data[0] = float("inf")

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    done = stage(ALL, "--backbone=DnCNN --batch_size=2 --crop_size=8 --epoch=1", two, ok=False)
    complaint(done, "model.pkl, which is left as it was: NaN or infinite weights", "smaller --lr")
    assert not list(two.rglob("*.pkl")) and not leftovers(two)


# --- checkpoints ---------------------------------------------------------------------------------------------------

class Runs:
    """A pickle of it runs a command when it is opened by pickle.load."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    path, trace = tmp_path / "model.pkl", tmp_path / "executed"
    hidden = pickle.dumps(Runs(os.mkdir, str(trace)))
    attacks = [Runs(os.system, f"touch {trace}"), Runs(exec, f"open({str(trace)!r}, 'w')"), Runs(open, str(trace), "w"),
               Runs(eval, f"__import__('os').mkdir({str(trace)!r})"), Runs(pickle.loads, hidden)]
    weights = nn.Conv2d(3, 3, 3).state_dict()
    for attack in attacks:
        for content in (attack, {"model": attack}, {"model": weights, "backbone": attack},
                        {"model": weights, "more": [{1: (attack,)}]}, {"model": weights, attack: 1}):
            for zipped in (True, False):
                torch.save(content, path, _use_new_zipfile_serialization=zipped)
                with pytest.raises(ImageError, match="model.pkl: damaged, or not a checkpoint of tensors and plain values"):
                    load(path)
            path.write_bytes(pickle.dumps(content))
            with pytest.raises(ImageError, match="model.pkl: damaged, or not a checkpoint"):
                load(path)
            assert not trace.exists()
    pickle.loads(pickle.dumps(attacks[2])).close()
    assert trace.exists()  # they are real


class Claims:
    """A tensor of that size and those steps over a storage that claims so many numbers and has four."""

    def __init__(self, numbers, size, steps):
        self.numbers, self.size, self.steps = numbers, size, steps

    def checkpoint(self):
        class Storage:
            pass

        class Pickler(pickle.Pickler):
            def persistent_id(_, obj):
                return ("storage", torch.FloatStorage, "0", "cpu", self.numbers) if isinstance(obj, Storage) else None

        tensor = Runs(torch._utils._rebuild_tensor_v2, Storage(), 0, self.size, self.steps, False, {})
        pickled, data, changed = io.BytesIO(), io.BytesIO(), io.BytesIO()
        Pickler(pickled, 2).dump({"model": {"weight": tensor}, "backbone": "DnCNN"})
        torch.save({"model": torch.arange(4.0)}, data)
        with zipfile.ZipFile(data) as whole, zipfile.ZipFile(changed, "w") as made:
            for name in whole.namelist():
                made.writestr(name, pickled.getvalue() if name.endswith("data.pkl") else whole.read(name))
        return changed.getvalue()


def test_a_small_checkpoint_that_claims_terabytes(tmp_path):
    path = tmp_path / "model.pkl"
    for claim in (Claims(4, (10**12,), (1,)), Claims(4, (10**12,), (0,)), Claims(10**12, (10**12,), (1,)),
                  Claims(4, (-3,), (1,)), Claims(-4, (4,), (1,)), Claims(4, (4,), (-1,))):
        path.write_bytes(claim.checkpoint())
        with pytest.raises(ImageError, match="damaged, or not a checkpoint|not those of a DnCNN") as raised:
            load_weights(build("DnCNN"), load(path)["model"], path, "DnCNN")
        assert len(str(raised.value).splitlines()) == 1
    data = io.BytesIO()
    torch.save({"model": torch.zeros(1 << 20)}, data)
    with zipfile.ZipFile(data) as whole, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name in whole.namelist():
            made.writestr(name, whole.read(name))
    assert path.stat().st_size < 10_000
    with pytest.raises(ImageError, match=r"model.pkl: damaged, or not a checkpoint .*\(compressed\)"):
        load(path)


def test_the_formats_before_zip_are_not_opened(tmp_path):
    torch.save({"model": build("DnCNN").state_dict()}, tmp_path / "old.pkl", _use_new_zipfile_serialization=False)
    with pytest.raises(ImageError, match="old.pkl: damaged.*not in the zip format that torch writes since version 1.6"):
        load(tmp_path / "old.pkl")


def test_weights_that_do_not_fit(tmp_path):
    """NaN, infinite in float32, of other types or sizes, of another network, sparse, without memory, and no weights at all."""
    good = build("DnCNN").state_dict()
    first = next(iter(good))

    def refused(words, weights):
        with pytest.raises(ImageError, match=words) as raised:
            load_weights(build("DnCNN"), weights, "x.pkl", "DnCNN")
        assert str(raised.value).startswith("x.pkl: ") and len(str(raised.value).splitlines()) == 1

    def changed(value):
        return {**good, first: value}

    for value in (float("nan"), float("inf"), -float("inf"), 1e300):
        spoilt = good[first].double().clone()
        spoilt.view(-1)[5] = value
        refused("NaN or infinite weights", changed(spoilt))
    alien = "its weights are not those of a DnCNN"
    refused(alien, changed(good[first].long()))
    refused(alien, changed(good[first].to(torch.complex64)))
    refused(alien, changed(good[first].bool()))
    refused(alien, changed(good[first][:1]))
    refused(alien, changed(good[first][None]))
    refused(alien, changed(good[first].to_sparse()))
    refused(alien, changed(good[first].to("meta")))
    refused(alien, changed(None))
    refused(alien, changed("new\nline"))
    refused(alien, {**good, "new\nline": good[first]})
    refused(alien, build("Unet").state_dict())
    for nothing in (None, [], {}, "model", 3, {1: good[first]}, torch.zeros(3)):
        refused(alien, nothing)
    load_weights(build("DnCNN"), {name: tensor.double() for name, tensor in good.items() if tensor.is_floating_point()} | {
        name: tensor for name, tensor in good.items() if not tensor.is_floating_point()}, "x.pkl", "DnCNN")
    check_weights(build("DnCNN"), "x.pkl")


def test_a_finite_network_whose_output_is_not(two):
    """Its pictures are not written, and neither is a checkpoint of unusual entries a traceback."""
    path = two / "result_all/Rain100L/model.pkl"
    path.parent.mkdir(parents=True)
    weights = build("DnCNN").state_dict()
    for entries, words in (({"identity": torch.zeros(2)}, None), ({"backbone": [[[["x"]]]]}, "unknown backbone of type list"),
                           ({"backbone": "new\nline" * 99}, "unknown backbone 'new\\n")):
        torch.save({"model": weights, "backbone": "DnCNN", **entries}, path)
        done = stage(TEST, "", two, ok=words is None)
        if words:
            assert len(complaint(done, words)) < 300
    name = next(name for name in weights if name.endswith("running_var"))
    torch.save({"model": {**weights, name: -torch.ones_like(weights[name])}, "backbone": "DnCNN"}, path)
    before = files(two)
    lines = complaints(stage(TEST, "--overwrite", two, ok=False))
    assert len(lines) == 2 and all("the network's output is not finite" in line for line in lines)
    assert files(two) == before


def test_progress_that_somebody_changed(tmp_path):
    """Each entry of a progress file, replaced by what it should not be; the good one is taken."""
    model = nn.Conv2d(3, 3, 3, padding=1)
    optimizer = torch.optim.Adam(model.parameters())
    F.mse_loss(model(torch.rand(1, 3, 8, 8)), torch.rand(1, 3, 8, 8)).backward()
    optimizer.step()
    options = {"seed": 3, "lr": 1e-3}
    good = {"backbone": "DnCNN", "epoch": 1, "losses": [(0.5, 1.0)], "options": options, "model": model.state_dict(),
            "optimizer": optimizer.state_dict()}
    path = tmp_path / "resume.pkl"

    def opened(**changes):
        torch.save({**good, **changes}, path)
        fresh = nn.Conv2d(3, 3, 3, padding=1)
        return restore(resume_state(path, options), path, fresh, torch.optim.Adam(fresh.parameters()))

    def moments(**changes):
        state = good["optimizer"]["state"]
        return {**good["optimizer"], "state": {**state, 0: {**state[0], **changes}}}

    assert opened() == (1, [(0.5, 1.0)])
    assert opened(optimizer={**good["optimizer"], "param_groups": [{"lr": "x", "betas": None}]}) == (1, [(0.5, 1.0)])
    size = good["optimizer"]["state"][0]["exp_avg"].shape
    for changes in ({"epoch": 2}, {"epoch": "1"}, {"epoch": True}, {"losses": []}, {"losses": 5}, {"losses": [("x", 1)]},
                    {"options": 7}, {"options": {"seed": torch.zeros(2), "lr": 1e-3}}, {"options": {"seed": 3.0, "lr": 1e-3}},
                    {"model": {}}, {"optimizer": {}}, {"optimizer": None}, {"optimizer": {"state": {}}},
                    {"optimizer": moments(step="x")}, {"optimizer": moments(step=torch.zeros(3))},
                    {"optimizer": moments(exp_avg=torch.zeros(3))},
                    {"optimizer": moments(exp_avg=torch.full(size, float("nan")))},
                    {"optimizer": moments(exp_avg_sq=torch.zeros(1).double().expand(10**12))}):
        with pytest.raises(ImageError) as raised:
            opened(**changes)
        assert str(raised.value).startswith(f"{path}: ") and len(str(raised.value).splitlines()) == 1, raised.value


# --- flags ---------------------------------------------------------------------------------------------------------

NASTY = ["9" * 30, "-" + "9" * 5000, "1e308", "0x10", "1_0", " 7 ", "\uff17", "new\nline", "\x1b[31m", "%s{}", "--", "\udcff"]
PATHS = ["", "-", "new\nline", "n" * 300, "/dev/null", "/dev/full/x", "\udcff", "loop", "~", "$HOME", "a/../b"]
LASTING = {"epoch", "steps", "workers"}  # large ones are honest requests for work


@pytest.mark.long
@pytest.mark.parametrize("command", STAGES, ids=NAMES)
def test_every_flag_with_every_nasty_value(two, command, capsys):
    (two / "loop").symlink_to("loop")
    (two / "result_all/Rain100L").mkdir(parents=True)
    torch.save({"model": build("DnCNN").state_dict(), "backbone": "DnCNN"}, two / "result_all/Rain100L/model.pkl")
    runs = {0: 0, 1: 0, 2: 0}
    paths = {LDGP: ["input_path", "save_path", "dataset"], SDR: ["input_path", "ldgp_path", "save_path", "fuse_save_path"],
             TEST: ["data_path", "model_path", "result_path"]}.get(command, ["rainy_data_path", "sdr_data_path", "result_path"])
    others = {"device": NASTY, "backbone": NASTY, "recipe": NASTY}
    for flag, values in {**{flag: NASTY for flag in NUMBERS[command]}, **{flag: PATHS for flag in paths}, **others}.items():
        for value in values:
            if flag == "device" and command in (LDGP, SDR) or flag in LASTING and value in ("9" * 30, "1_0", " 7 "):
                continue
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("HOME", str(two))
                short = SHORTEST[command] + ("" if command in (LDGP, SDR, TEST) else " --backbone=DnCNN")
                done = stage(command, f"{short} '--{flag}={value}'", two, ok=None)
            assert "Traceback" not in done.stderr and done.returncode in runs, (flag, value, done.stderr)
            assert done.returncode == 0 or done.stderr.strip()
            runs[done.returncode] += 1
    write_png(two / DATA / "input/eins.png", photograph(32, 35, 1))
    with capsys.disabled():
        print(f" {command.split()[1]}: {sum(runs.values())} runs, exit codes {runs}")
