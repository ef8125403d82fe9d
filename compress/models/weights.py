"""Read pretrained weights from files, and load them into the networks that they fit."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from urllib.error import URLError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from compress.errors import MissingError, ModelError, said_by


def pretrained(factory: str, weights: str) -> dict[str, Tensor]:
    """Read the weights that a recipe names: DEFAULT (torchvision downloads them) or a local file.

    Raises:
        MissingError: DEFAULT cannot be downloaded.
        ModelError: there is no such file, or it is not a weight file.
    """
    return _default_weights(factory) if weights == "DEFAULT" else read_weights(Path(weights))


def _default_weights(factory: str) -> dict[str, Tensor]:
    from torchvision import models

    module, _, name = factory.partition(":")
    if module != "torchvision":
        raise ModelError(f"weights: DEFAULT is for torchvision models, not for '{factory}'; name a local file.")
    try:
        return models.get_model_weights(name).DEFAULT.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        raise MissingError(
            f"The weights of {name} cannot be downloaded ({error}); connect this machine, or name a local "
            ".safetensors or .pth file: --weights FILE, in a run --set model.weights=FILE."
        ) from None


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict from ``.safetensors``, or from ``.pth``/``.pt`` with ``weights_only``: nothing is unpickled.

    Raises:
        ModelError: the file is missing, damaged, or holds anything but tensors by name.
    """
    if not path.is_file():
        raise ModelError(f"There is no weight file {path}; check --weights, or model.weights of the recipe.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        raise ModelError(f"{path} is not a readable weight file ({said_by(error)}); fetch it again.") from None
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ModelError(f"{path} does not hold a state dict of tensors; save model.state_dict() to it.")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def load_backbone(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load pretrained weights; classifiers, auxiliary ones too, keep their initial values where shapes differ.

    A detector or segmenter takes its own weights, or those of a classifier into its backbone.

    Raises:
        ModelError: the weights are of another architecture.
    """
    if isinstance(getattr(model, "backbone", None), nn.Module):
        _load_under_heads(model, state, source)
        return
    own = model.state_dict()
    heads = (f"{classifier_name(model)}.", *_AUXILIARY)
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    missing = [n for n in own if n not in state and n not in counters and not n.startswith(heads)]
    extra = [n for n in state if n not in own and not n.startswith(heads)]
    shapes = [n for n in own if n in state and own[n].shape != state[n].shape and not n.startswith(heads)]
    if missing or extra or shapes:
        example = (missing or extra or shapes)[0]
        what = "lacks" if missing else "also has" if extra else "has another shape for"
        raise ModelError(
            f"The weights {source} are of another architecture than {type(model).__name__}: "
            f"the file {what} '{example}' ({len(missing) + len(extra) + len(shapes)} differences); "
            "name the model that they were saved from, or other weights."
        )
    fitting = {n: t for n, t in state.items() if n in own and own[n].shape == t.shape}
    model.load_state_dict({**own, **fitting})


# Heads of GoogLeNet and Inception that are used in training only.
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")


# How a classifier's names become a backbone's: (old prefix, new prefix).
_BACKBONES = (
    ("", ""),
    ("", "backbone."),
    ("", "backbone.body."),
    ("features.", "backbone."),
    ("features.", "backbone.body."),
)


def _load_under_heads(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load what ``state`` and a detector's or segmenter's body share; heads that the file lacks stay as they are.

    A block of the file is used whole or not at all (a classifier's head has no place here), and a part of the network
    is filled whole or not at all, except that heads for another number of classes differ in shape.
    """
    own = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    given = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}

    def renamed(old: str, new: str) -> dict[str, str]:
        """File name -> our name."""
        return {n: new + n[len(old) :] for n in given if n.startswith(old) and new + n[len(old) :] in own}

    names = max((renamed(*rule) for rule in _BACKBONES), key=len)
    whole = all(theirs == ours for theirs, ours in names.items())
    shapes = [n for n, ours in names.items() if given[n].shape != own[ours].shape]
    shapes = [n for n in shapes if not whole or n.startswith("backbone.")]
    used = {tuple(n.split(".")[:2]) for n in names}
    extra = [n for n in given if n not in names and tuple(n.split(".")[:2]) in used]
    filled = set(names.values())
    # In a backbone, layers beside the classifier's (a pyramid, extra maps) keep their initial values.
    places = {_place(ours, whole) for ours in filled}
    missing = [n for n in own if n not in filled and _place(n, whole) in places]
    if not names or shapes or extra or missing:
        example = (shapes or extra or missing or list(given) or ["nothing"])[0]
        raise ModelError(
            f"The weights {source} fit neither {type(model).__name__} nor its backbone (for example '{example}', "
            f"{len(shapes) + len(extra) + len(missing)} differences); name the model that they were saved from, "
            "or other weights."
        )
    fitting = {ours: given[n] for n, ours in names.items() if given[n].shape == own[ours].shape}
    model.load_state_dict({**model.state_dict(), **fitting})


def _place(name: str, whole: bool) -> str:
    """The part of a network that a name belongs to: ``backbone.features``, ``backbone.body.layer1``, ``classifier``."""
    parts = name.split(".")
    return parts[0] if whole else ".".join(parts[: 3 if parts[1:2] == ["body"] else 2])


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over the names, shapes and bytes of the state dict."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def classifier_name(model: nn.Module) -> str:
    """Path of the last linear layer, the classifier. Raise ModelError where there is none."""
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linears:
        raise ModelError(f"{type(model).__name__} has no linear classifier, which transfer and distilling need.")
    return linears[-1]
