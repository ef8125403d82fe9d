"""Networks of other libraries by name: timm, transformers, ultralytics and segmentation-models, where installed.

None of them is required. What a recipe or a saved network may hand them is typed and bounded; nothing here takes a
hub's name, an address, a callable or a file of weights: nothing is downloaded and no code runs but the library's.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import yaml
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from compress.errors import MissingError, ModelError
from compress.files import read_bytes
from compress.models.arguments import Arguments, Share
from compress.recipe.yaml_text import parsed, told

_LARGEST = 100_000
"""The largest number in a configuration: no file of a few bytes asks for a network of any size."""
_MOST_ENTRIES, _MOST_DEPTH, _LONGEST = 4096, 6, 200

Side = Annotated[int, Field(ge=8, le=4096)]
InChannels = Annotated[int, Field(ge=1, le=1024)]


class TimmArguments(Arguments):
    """Arguments of ``timm.create_model``; never ``pretrained`` or a checkpoint."""

    in_chans: InChannels = 3
    img_size: Side | None = None
    drop_rate: Share = 0.0
    drop_path_rate: Share = 0.0
    global_pool: Literal["", "avg", "max", "avgmax", "catavgmax", "token", "map"] | None = None
    output_stride: Literal[8, 16, 32] | None = None


class TransformersArguments(Arguments):
    """A configuration's values, and what the network is for."""

    config: dict[str, Any] = Field(default={})
    head: Literal["image_classification", "semantic_segmentation", "object_detection", "depth_estimation", "none"] = (
        "image_classification"
    )


class UltralyticsArguments(Arguments):
    """The content of a YAML file, which a saved network holds, and its hash."""

    content: dict[str, Any] = Field(default={})
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None


class SmpArguments(Arguments):
    """Arguments of a network of segmentation-models; never weights of an encoder."""

    encoder_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,80}$")] = "resnet34"
    encoder_depth: Annotated[int, Field(ge=3, le=5)] | None = None
    in_channels: InChannels = 3
    decoder_channels: Annotated[list[Annotated[int, Field(ge=1, le=4096)]], Field(max_length=8)] | None = None


class Answers(nn.Module):
    """A network of transformers as one from images to tensors: its logits, with boxes beside where it has some.

    Args:
        model: the network.
        full_size: whether logits are brought to the images' size, as masks are.
    """

    def __init__(self, model: nn.Module, *, full_size: bool = False) -> None:
        super().__init__()
        self.model, self.full_size = model, full_size

    def forward(self, images: Tensor) -> Any:
        """Images (N, C, H, W) to logits (N, classes), (N, classes, H, W) or, of a detector, logits and boxes."""
        found = self.model(pixel_values=images)
        names = ("logits", "pred_boxes", "predicted_depth", "last_hidden_state")
        tensors = [value for name in names if (value := getattr(found, name, None)) is not None]
        if self.full_size:
            size = images.shape[-2:]
            tensors = [nn.functional.interpolate(tensors[0], size=size, mode="bilinear", align_corners=False)]
        return tensors[0] if len(tensors) == 1 or "logits" not in found else tuple(tensors[:2])


@dataclass(frozen=True)
class Adapter:
    """How networks of one library are made.

    Args:
        package: what is imported.
        distribution: what is installed.
        arguments: the schema of its arguments.
        make: name, number of classes and checked arguments to a network.
        whole: name and arguments to arguments that need no file any more; what a saved network holds.
        side: the height and width of images that a network wants.
    """

    package: str
    distribution: str
    arguments: type[Arguments]
    make: Callable[[str, int, Mapping[str, Any]], nn.Module]
    whole: Callable[[str, Mapping[str, Any]], dict[str, Any]]
    side: Callable[[Any], int]


def adapter(library: str) -> Adapter:
    """Return how networks of a library are made; raise MissingError where it is not installed."""
    found = ADAPTERS[library]
    if importlib.util.find_spec(found.package) is None:
        raise MissingError(
            f"{library}:NAME needs the package {found.package}, which is not installed here; install it with: "
            f"pip install {found.distribution}."
        )
    return found


def _timm(name: str, classes: int, given: Mapping[str, Any]) -> nn.Module:
    timm: Any = importlib.import_module("timm")
    # A name with a colon, a slash or a tag would be looked for on a hub.
    if name not in timm.list_models():
        close = timm.list_models(f"{name[:6]}*")[:5] or ["resnet18"]
        raise ModelError(f"timm has no model '{name}'; it has for example {', '.join(close)}.")
    made: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes, **given)
    return made


def _timm_side(model: Any) -> int:
    wanted = (getattr(model, "pretrained_cfg", None) or {}).get("input_size") or (3, 224, 224)
    return int(wanted[-1])


_HEADS = MappingProxyType(
    {
        "image_classification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING",
        "semantic_segmentation": "MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING",
        "object_detection": "MODEL_FOR_OBJECT_DETECTION_MAPPING",
        "depth_estimation": "MODEL_FOR_DEPTH_ESTIMATION_MAPPING",
        "none": "MODEL_MAPPING",
    }
)
_ELSEWHERE = frozenset({"auto_map", "backbone", "use_pretrained_backbone", "use_timm_backbone", "trust_remote_code"})
"""Keys of a configuration that may fetch something from a hub or run its code."""


def _transformers(name: str, classes: int, given: Mapping[str, Any]) -> nn.Module:
    library: Any = importlib.import_module("transformers")
    kind = getattr(library, name, None) if name.isidentifier() else None
    base = getattr(library, "PreTrainedConfig", None) or library.PretrainedConfig
    if not isinstance(kind, type) or not issubclass(kind, base):
        raise ModelError(f"transformers has no configuration '{name}'; name a class such as ViTConfig.")
    config = dict(given.get("config", {}))
    _check_plain(config, f"transformers:{name}, config")
    for key in _keys(config):
        if key in _ELSEWHERE or key.startswith("_"):
            raise ModelError(f"transformers:{name} refuses config.{key}, which may fetch something; leave it out.")
    backbones = {key: False for key in ("use_timm_backbone", "use_pretrained_backbone") if key in dir(kind())}
    head = given.get("head", "image_classification")
    table = getattr(library, _HEADS[head])
    if kind not in table:
        others = [one for one in _HEADS if kind in getattr(library, _HEADS[one])]
        raise ModelError(f"{name} has no network for {head}; give head: {' or '.join(others) or 'another network'}.")
    own = {} if head == "none" else {"num_labels": classes}
    chosen = table[kind]
    chosen = chosen[0] if isinstance(chosen, tuple) else chosen
    return Answers(chosen(kind(**{**config, **backbones, **own})), full_size=head == "semantic_segmentation")


def _transformers_side(model: Any) -> int:
    size = getattr(getattr(model.model, "config", None), "image_size", 224)
    return int(size[-1] if isinstance(size, list | tuple) else size)


_LAYER_NAMES = """
AIFI C1 C2 C2PSA C3 C3TR ELAN1 OBB PSA SPP SPPELAN SPPF A2C2f AConv ADown Bottleneck BottleneckCSP C2f C2fCIB C2fPSA
C3Ghost C3k2 C3x CBFuse CBLinear Classify Concat Conv Conv2 ConvTranspose Detect DWConv DWConvTranspose2d Focus
GhostBottleneck GhostConv HGBlock HGStem Index Pose RepC3 RepConv RepNCSPELAN4 RepVGGDW ResNetLayer RTDETRDecoder SCDown
Segment v10Detect nn.Upsample nn.ConvTranspose2d nn.Conv2d nn.Identity nn.BatchNorm2d nn.MaxPool2d nn.ZeroPad2d
"""
_LAYERS = frozenset(_LAYER_NAMES.split())
"""What a YAML file may name; TorchVision, which would fetch weights, and modules with texts are not among them."""
_ACTIVATIONS = frozenset(
    f"{prefix}{name}"
    for prefix in ("nn.", "torch.nn.")
    for name in ("ReLU()", "SiLU()", "GELU()", "Hardswish()", "LeakyReLU(0.1)", "Mish()")
)
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,31}")
_TASKS = MappingProxyType(
    {
        "Classify": "ClassificationModel",
        "Segment": "SegmentationModel",
        "Pose": "PoseModel",
        "OBB": "OBBModel",
        "RTDETRDecoder": "RTDETRDetectionModel",
    }
)
_KEY_NAMES = """
nc scales scale depth_multiple width_multiple max_channels backbone head activation kpt_shape channels ch reg_max
end2end yaml_file
"""
_KEYS = frozenset(_KEY_NAMES.split())


def _whole_yaml(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The content of the named YAML file and its hash; what a saved network brought is held against its hash."""
    if "content" not in given:
        content = _yaml_of(name)
        return {"content": content, "sha256": _hash(content)}
    if given.get("sha256") not in (None, _hash(given["content"])):
        raise ModelError(f"ultralytics:{name} is saved with a YAML whose hash is another; save the network again.")
    return {"content": dict(given["content"]), "sha256": _hash(given["content"])}


def _yaml_of(name: str) -> dict[str, Any]:
    """Read a YAML file: one of the user's own, or the library's, where ``yolo11n`` is ``yolo11`` at scale n."""
    # Not the library's own search, which would look on the web too.
    stem = re.sub(r"(\d+)[nsmlx](?=\D|$)", r"\1", Path(name).stem, count=1)
    scale = re.search(r"yolo(?:e-)?v?\d+([nslmx])", Path(name).stem)
    place = importlib.util.find_spec("ultralytics")
    own = Path(place.origin).parent / "cfg/models" if place and place.origin else Path()
    wanted = [Path(name)] + [path for file in (Path(name).name, f"{stem}.yaml") for path in sorted(own.rglob(file))]
    file = next((path for path in wanted if path.suffix in (".yaml", ".yml") and path.is_file()), None)
    if file is None:
        raise ModelError(f"There is no {name}, and ultralytics has none; name one such as ultralytics:yolo11n.yaml.")
    try:
        content = parsed(read_bytes(file, 1 << 20).decode())
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:
        raise ModelError(f"{file} is not YAML ({told(error)}); correct it.") from None
    if not isinstance(content, dict):
        raise ModelError(f"{file} holds {type(content).__name__}, not a network; name another file.")
    return {**content, "scale": scale.group(1) if scale else content.get("scale", "")}


def _hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _ultralytics(name: str, classes: int, given: Mapping[str, Any]) -> nn.Module:
    content = json.loads(json.dumps(given["content"]))  # a copy: the library writes into it
    _check_yaml(content, f"ultralytics:{name}")
    opens = Image.open
    tasks: Any = importlib.import_module("ultralytics.nn.tasks")
    Image.open = opens  # the library puts one of its own there, which looks for another package
    kind = getattr(tasks, _TASKS.get(content["head"][-1][2], "DetectionModel"))
    made: nn.Module = kind({**content, "yaml_file": Path(name).name}, nc=classes, verbose=False)
    heads: list[Any] = [one for one in made.modules() if hasattr(one, "dynamic") and hasattr(one, "shape")]
    for head in heads:
        head.dynamic = True  # a grid that is kept for one batch fixes the batch of an exported file
    return made


def _check_yaml(content: Mapping[str, Any], where: str) -> None:
    """Refuse a YAML that is no network, or that names what is not on the lists."""
    _check_plain(content, where)
    if unknown := sorted(set(content) - _KEYS):
        raise ModelError(f"{where} refuses the key '{unknown[0][:60]}', which no network here has; leave it out.")
    if (chosen := content.get("activation")) is not None and chosen not in _ACTIVATIONS:
        raise ModelError(f"{where} refuses the activation {str(chosen)[:60]!r}; take one such as nn.ReLU().")
    rows = [*(content.get("backbone") or ()), *(content.get("head") or ())]
    if not content.get("head") or not all(isinstance(row, list) and len(row) == 4 for row in rows):
        raise ModelError(f"{where} has no backbone and head of rows [from, number, module, arguments]; correct it.")
    for _, number, module, arguments in rows:
        if module not in _LAYERS:
            raise ModelError(f"{where} refuses the module '{str(module)[:60]}', which is not on the list of layers.")
        words = [one for one in arguments if isinstance(one, str)] if isinstance(arguments, list) else ["?"]
        if not isinstance(number, int) or number > 100 or not all(_WORD.fullmatch(word) for word in words):
            raise ModelError(f"{where} refuses {number} x {module} of {str(arguments)[:60]}; give plain numbers.")


def _check_plain(value: Any, where: str, depth: int = 0) -> int:
    """Count the values in a nest; refuse one that is large, deep, or holds more than numbers, short texts and lists."""
    count = 1
    if isinstance(value, Mapping) and depth < _MOST_DEPTH:
        if not all(isinstance(key, str) and len(key) <= _LONGEST for key in value):
            raise ModelError(f"{where} has a key that is not a short text; correct it.")
        count += sum(_check_plain(inner, where, depth + 1) for inner in value.values())
    elif isinstance(value, list | tuple) and depth < _MOST_DEPTH:
        count += sum(_check_plain(inner, where, depth + 1) for inner in value)
    elif not _is_plain(value):
        raise ModelError(f"{where} holds {str(value)[:60]!r}, which is not a plain value within bounds; correct it.")
    if count > _MOST_ENTRIES:
        raise ModelError(f"{where} holds more than {_MOST_ENTRIES} values; name a smaller network.")
    return count


def _is_plain(value: Any) -> bool:
    """A number within bounds, a truth value, nothing, or a short text that is no path and no address."""
    if isinstance(value, str):
        return len(value) <= _LONGEST and not re.search(r"[/\\:]", value)
    return value is None or (isinstance(value, int | float) and abs(value) <= _LARGEST)


def _keys(value: Any) -> Iterator[str]:
    """All keys of a nest."""
    for key, inner in value.items() if isinstance(value, Mapping) else ():
        yield key
        yield from _keys(inner)


def _smp(name: str, classes: int, given: Mapping[str, Any]) -> nn.Module:
    smp: Any = importlib.import_module("segmentation_models_pytorch")
    known = {one.lower(): one for one in smp.__all__ if isinstance(getattr(smp, one), type)}
    if name.lower() not in known:
        raise ModelError(f"segmentation-models has no network '{name}'; it has {', '.join(known.values())}.")
    encoders = smp.encoders.get_encoder_names()
    encoder = given.get("encoder_name", "resnet34")
    if encoder not in encoders:
        raise ModelError(
            f"segmentation-models has no encoder '{encoder}'; it has for example {', '.join(encoders[:5])}."
        )
    options = {key: value for key, value in given.items() if value is not None}
    made: nn.Module = getattr(smp, known[name.lower()])(encoder_weights=None, classes=classes, **options)
    return made


def _as_given(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    return dict(given)


ADAPTERS: Mapping[str, Adapter] = MappingProxyType(
    {
        "timm": Adapter("timm", "timm", TimmArguments, _timm, _as_given, _timm_side),
        "transformers": Adapter(
            "transformers", "transformers", TransformersArguments, _transformers, _as_given, _transformers_side
        ),
        "ultralytics": Adapter(
            "ultralytics", "ultralytics", UltralyticsArguments, _ultralytics, _whole_yaml, lambda model: 128
        ),
        "smp": Adapter(
            "segmentation_models_pytorch",
            "segmentation-models-pytorch",
            SmpArguments,
            _smp,
            _as_given,
            lambda model: 128,
        ),
    }
)
"""Library -> how its networks are made; ``niwaki``'s name of it, before the colon."""
