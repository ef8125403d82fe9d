"""Networks by name: any of torchvision's, or a factory that can be imported."""

from __future__ import annotations

import hashlib
import importlib
import pickle
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.nn.parameter import is_lazy
from torch.utils.weak import WeakIdKeyDictionary

from compress import zoo
from compress.errors import ModelError

TRUSTED = ("torchvision", "compress.models", "compress.backbones")

# What a factory may raise on arguments that make no sense to it.
_REFUSALS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut, as in He et al., Deep Residual Learning, 2016."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class CifarResNet(nn.Module):
    """The thin ResNet for 32x32 images: three stages of (depth - 2) / 6 blocks, widths w, 2w, 4w."""

    image_size = 32

    def __init__(self, depth: int, width: int, in_channels: int, num_classes: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = self._stage(blocks, width, width, 1)
        self.layer2 = self._stage(blocks, width, 2 * width, 2)
        self.layer3 = self._stage(blocks, 2 * width, 4 * width, 2)
        self.fc = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _stage(blocks: int, channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
        first = BasicBlock(channels_in, channels_out, stride)
        return nn.Sequential(first, *(BasicBlock(channels_out, channels_out, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def cifar_resnet(depth: int = 20, width: int = 16, in_channels: int = 3, num_classes: int = 10) -> nn.Module:
    """A CIFAR-style ResNet; `depth` is 6n + 2. Raises ValueError for another depth."""
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth {depth} is not 6n + 2 (8, 14, 20, 32, 44, 56, ...)")
    return CifarResNet(depth, width, in_channels, num_classes)


def build(
    factory: str, arguments: Mapping[str, Any], num_classes: int, *, trusted: tuple[str, ...] | None = None
) -> nn.Module:
    """Builds a network with random weights.

    Args:
        factory: `torchvision:NAME` or `module:function`; the function takes `num_classes`.
        arguments: keyword arguments for the factory.
        num_classes: outputs of the classifier; detectors and segmenters count the background.
        trusted: modules that may be imported; None for any (a recipe is the user's own, an artifact is not).

    Raises:
        ModelError: no such factory, it is not trusted, or it refuses the arguments.
    """
    module, _, name = factory.partition(":")
    if not name:
        raise ModelError(f"The model factory '{factory}' is not 'torchvision:NAME' or 'module:function'.")
    if trusted is not None and module not in trusted:
        raise ModelError(
            f"The factory '{factory}' is not one of {', '.join(trusted)}; if you trust that code, "
            f"pass trusted=('{module}',) to load it."
        )
    make: Callable[..., nn.Module]
    if module == "torchvision":
        make = zoo.maker(name)
    else:
        try:
            make = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            raise ModelError(f"The model factory '{factory}' cannot be imported ({error}).") from None
        # What a module merely imports is not its factory, whoever trusts the module.
        if not callable(make) or getattr(make, "__module__", module) != module:
            raise ModelError(f"'{factory}' is not a function of that module; name the factory where it is defined.")
    try:
        model = make(num_classes=num_classes, **arguments)
    except _REFUSALS as error:
        raise ModelError(f"The factory '{factory}' refuses {dict(arguments)}: {_short(error)}.") from None
    if not isinstance(model, nn.Module):
        raise ModelError(f"The factory '{factory}' made a {type(model).__name__}, not a torch.nn.Module.")
    return model


@contextmanager
def on_meta() -> Iterator[None]:
    """Networks that this thread builds inside have no storage for what a state dict holds.

    Parameters and saved buffers are on the meta device. All else that a constructor computes (widths, anchors,
    buffers that are not saved) is real, which `torch.device("meta")` would leave without values for good.
    """
    thread = threading.get_ident()
    empties = WeakIdKeyDictionary()
    replaced: list[tuple[nn.Module, str, Tensor, Tensor]] = []

    def parameter(module: nn.Module, name: str, value: nn.Parameter | None) -> Any:
        # Lazy parameters have no shape yet.
        if threading.get_ident() != thread or value is None or value.is_meta or is_lazy(value):
            return None
        # One that is registered twice stays one.
        if value not in empties:
            empties[value] = nn.Parameter(value.detach().to("meta"), value.requires_grad)
        return empties[value]

    def buffer(module: nn.Module, name: str, value: Tensor | None) -> Any:
        if threading.get_ident() != thread or value is None or value.is_meta or is_lazy(value):
            return None
        empty = value.detach().to("meta")
        replaced.append((module, name, value, empty))
        return empty

    handles = [
        register_module_parameter_registration_hook(parameter),
        register_module_buffer_registration_hook(buffer),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        # Whether a buffer is saved is known only after its registration.
        for module, name, value, empty in replaced:
            if name in module._non_persistent_buffers_set and module._buffers.get(name) is empty:
                module._buffers[name] = value


def pretrained(factory: str, weights: str) -> dict[str, Tensor]:
    """Reads the weights that a recipe names: DEFAULT (torchvision downloads them) or a local file.

    Raises:
        ModelError: no such file, not a weight file, or no network for DEFAULT.
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
        raise ModelError(
            f"The weights of {name} cannot be downloaded ({error}); connect this machine, or name a local "
            ".safetensors or .pth file under model.weights."
        ) from None


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads a state dict from `.safetensors`, or from `.pth`/`.pt` with `weights_only`: nothing is unpickled.

    Raises:
        ModelError: the file is missing, damaged, or holds anything but tensors by name.
    """
    if not path.is_file():
        raise ModelError(f"There is no weight file {path}; check model.weights.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        raise ModelError(f"{path} is not a readable weight file ({_short(error)}); fetch it again.") from None
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ModelError(f"{path} does not hold a state dict of tensors; save model.state_dict() to it.")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def load_backbone(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Loads pretrained weights into everything but the classifier, which keeps its fresh one if shapes differ.

    So do auxiliary classifiers, layer by layer.

    A detector or segmenter takes its own weights, or a classifier's into its backbone.

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


# Heads of GoogLeNet and Inception that answer in training only.
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")

# How a classifier's names become those of a backbone: (their beginning, what takes its place).
_BACKBONES = (
    ("", ""),
    ("", "backbone."),
    ("", "backbone.body."),
    ("features.", "backbone."),
    ("features.", "backbone.body."),
)


def _load_under_heads(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Loads what `state` and a detector's or segmenter's body share; what the file lacks of its heads stays fresh.

    A block of the file is used whole or not at all (a classifier's head has no place here), and a part of the
    network that takes anything takes all, but that heads for another number of classes differ in shape.
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
    # In a backbone, what is beside the classifier's layers (a pyramid, extra maps) is ours.
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
    """The part of a network that a name is in: `backbone.features`, `backbone.body.layer1`, `classifier`."""
    parts = name.split(".")
    return parts[0] if whole else ".".join(parts[: 3 if parts[1:2] == ["body"] else 2])


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of the state dict."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def classifier_name(model: nn.Module) -> str:
    """Path of the last linear layer, the classifier. Raises ModelError where there is none."""
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linears:
        raise ModelError(f"{type(model).__name__} has no linear classifier, which transfer and distilling need.")
    return linears[-1]


def _short(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
