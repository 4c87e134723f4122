"""Checkpoints of a trained network, which sdrl_all.py writes and test_all.py reads."""
import io
import warnings
import zipfile
from pathlib import Path

import torch

from models import BACKBONES, INPUTS, build
from utils.image import ImageError, write_bytes


def save(path, model, **content):
    """Write a network's weights, and other tensors and plain values, atomically to a file.

    Raises ImageError where a weight is not finite; the file is left as it was.
    """
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise ImageError(f"{path}: left as it was, as weights became NaN or infinite ({name}); use a smaller --lr")
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict(), **content}, buffer)
    write_bytes(path, buffer.getvalue())


def load(path, device="cpu"):
    """Read a checkpoint of tensors and plain values, without executing anything. Raises ImageError for another file."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise ImageError(f"{path}: no such checkpoint; train one first with sdrl_all.py") from None
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that it refuses next
            # torch does not compress; others could, a thousand times what memory holds. Its older formats, no zip files, could
            # execute code up to torch 2.5.
            if unpacked_size(data) > len(data):
                raise ValueError("compressed")
            content = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
        content = content if not isinstance(content, dict) or "model" in content else {"model": content}  # weights alone
        if not isinstance(content, dict) or not isinstance(content["model"], dict):
            raise ValueError("without an entry 'model'")
    except Exception as error:  # torch raises many kinds for what is no checkpoint; all mean the same to the user
        raise ImageError(f"{path}: damaged, or not a checkpoint of tensors and plain values, the only kind that is opened "
                         f"({error if type(error) is ValueError else type(error).__name__}); "
                         "train it anew with sdrl_all.py --overwrite") from None
    return content


def unpacked_size(data):
    """Return how many bytes a zip file says it holds. The ZipFile ends here, as Python ignores a Ctrl-C while one ends."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return sum(entry.file_size for entry in file.infolist())


def load_weights(model, weights, path):
    """Load the weights of a checkpoint into a network. Raises ImageError where they are another network's or not finite.

    The names may begin with "module.", as those of a DataParallel do.
    """
    state, kind = model.state_dict(), type(model).__name__
    weights = {str(name).removeprefix("module."): tensor for name, tensor in weights.items()}
    other = [*(weights.keys() - state.keys()), *(state.keys() - weights.keys())]
    if other:
        raise ImageError(f"{path}: its weights cannot be used in a {kind}: they are not of this backbone ({len(other)} names "
                         f"differ, as {min(other)[:50]}); name a checkpoint that today's sdrl_all.py wrote")
    try:
        for name, tensor in weights.items():
            if name in state and tensor.is_floating_point() != state[name].is_floating_point():
                raise TypeError("whole numbers in place of fractions, or the reverse")
            if not tensor.isfinite().all():
                raise ValueError(f"{name} has values that are NaN or infinite")
        model.load_state_dict(weights)
    except Exception as error:  # as many kinds as there are ways to be something else
        detail = " ".join(str(error).split())[:200]
        raise ImageError(f"{path}: its weights cannot be used in a {kind} ({detail})") from None


def load_model(path, device):
    """Rebuild the network of a checkpoint; one that names none holds a Unet of the paper's recipe, as the authors' do.

    Returns (the network on the device, its recipe: "paper" or "fast"). Raises ImageError for a file that is missing, no
    checkpoint, or of an unknown network.
    """
    content = load(path, device)
    backbone = content.get("backbone", "Unet")
    if not isinstance(backbone, str) or backbone not in BACKBONES:
        raise ImageError(f"{path}: holds an unknown backbone {str(backbone)[:50]!r} (known: {', '.join(BACKBONES)})")
    recipe = "fast" if content.get("recipe") == "fast" else "paper"
    model = build(backbone, content.get("identity", False) is True, INPUTS[recipe])
    load_weights(model, content["model"], path)
    return model.to(device), recipe
