"""Recipes: what the user asks for. YAML outside, frozen and validated inside."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from compress.errors import RecipeError
from compress.models.names import is_own_code
from compress.prune.budget import Budget
from compress.recipe.data import KINDS, DataRecipe, FunctionData, Part
from compress.recipe.data import FolderData as FolderData
from compress.recipe.data import HandwrittenDigits as HandwrittenDigits
from compress.recipe.data import RenderedDigits as RenderedDigits
from compress.trust import check_trusted

_LARGEST, _MOST_VALUES, _SHOWN = 1_000_000, 100_000, 120
Positive = Annotated[float, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, le=100)]
Weight = Annotated[float, Field(ge=0, le=1e4)]
Epochs = Annotated[int, Field(ge=1, le=100_000)]
Augment = Literal[
    "none", "affine", "flip", "crop_flip", "crop_flip_colour", "trivial", "iou_crop_flip", "scale_crop_flip"
]


class ModelRecipe(Part):
    """`torchvision:NAME` or `module:function`, and where its pretrained weights come from."""

    factory: str
    arguments: dict[str, Any] = Field(default={})
    weights: str | None = None
    licence: Annotated[str, Field(min_length=1, max_length=200)] | None = None


class PreprocessingRecipe(Part):
    """How an image becomes the network's input, in training, evaluation and the bundle alike."""

    size: tuple[Annotated[int, Field(ge=8, le=4096)], Annotated[int, Field(ge=8, le=4096)]]
    mode: Literal["L", "RGB"] = "RGB"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[Positive, ...] = (0.229, 0.224, 0.225)
    interpolation: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"] = "bilinear"
    resize: Literal["stretch", "shorter_side_center_crop"] = "shorter_side_center_crop"


class TrainRecipe(Part):
    """One stage of training, by epochs or by training FLOPs."""

    epochs: Epochs | None = None
    training_flops: Annotated[float, Field(gt=0, le=1e24)] | None = None
    batch_size: Annotated[int, Field(ge=2, le=65_536)] = 64
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: Rate = 0.05
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Weight = 5e-4
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    augment: Augment = "none"
    augment_variants: Annotated[int, Field(ge=1, le=10_000)] | None = None
    mixup: Annotated[float, Field(ge=0, le=100)] = 0.0
    cutmix: Annotated[float, Field(ge=0, le=100)] = 0.0
    backbone_lr: Annotated[float, Field(ge=0, le=1)] = 1.0
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    freeze_epochs: Annotated[int, Field(ge=0, le=100_000)] = 0
    batchnorm: Literal["live", "frozen", "adapted"] = "live"
    accumulate: Annotated[int, Field(ge=1, le=65_536)] = 1
    clip: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    patience: Annotated[int, Field(ge=1, le=100_000)] | None = None
    evaluations: Annotated[int, Field(ge=1, le=100_000)] = 12
    workers: Annotated[int, Field(ge=0, le=256)] = 0
    channels_last: bool = True
    compile: bool = False

    @model_validator(mode="after")
    def _one_budget(self) -> TrainRecipe:
        if (self.epochs is None) == (self.training_flops is None):
            raise ValueError("give exactly one of epochs and training_flops")
        return self


class SourceRecipe(Part):
    """A source domain to pretrain on."""

    data: DataRecipe
    train: TrainRecipe


class PruneRecipe(Part):
    criterion: Literal["l1", "l2", "signal", "random"] = "l1"
    budget: Budget = Budget(macs=0.5)
    scope: Literal["global", "group"] = "global"
    round_to: Annotated[int, Field(ge=1, le=65_536)] = 8
    min_kept: Annotated[int, Field(ge=1, le=65_536)] = 8
    rounds: Annotated[int, Field(ge=1, le=50)] = 1
    recover_epochs: Epochs = 8
    protect: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _rounds_by_macs(self) -> PruneRecipe:
        if self.rounds > 1 and self.budget.macs is None:
            raise ValueError("rounds above 1 need a macs budget; a latency budget is met in one cut")
        return self


class DistillRecipe(TrainRecipe):
    """The student's training: weights of the losses, and what to train beside it for comparison.

    A weight of None is the task's own (`compress.distill.LOSSES`).
    """

    labels: Weight = 1.0
    logits: Weight | None = None
    class_means: Weight | None = None
    relation_distance: Weight | None = None
    relation_angle: Weight | None = None
    hints: Weight | None = None
    hint_layers: tuple[str, ...] = ()
    hint_match: Literal["channels", "projection"] = "channels"
    attention: Weight | None = None
    attention_layers: tuple[str, ...] = ()
    pixels: Weight | None = None
    channels: Weight | None = None
    head_classes: Weight | None = None
    head_boxes: Weight | None = None
    sure: Annotated[float, Field(gt=0, lt=1)] = 0.5
    temperature: Rate = 4.0
    reuse_classifier: bool | Literal["projected"] | None = None
    freeze_classifier: bool = True
    teacher_cache_mb: Annotated[int, Field(ge=0, le=1_000_000)] = 1024
    compare: tuple[Literal["finetuned", "scratch"], ...] = ("finetuned", "scratch")

    @model_validator(mode="after")
    def _learns_something(self) -> DistillRecipe:
        for weight, layers in (("hints", "hint_layers"), ("attention", "attention_layers")):
            if bool(getattr(self, weight)) != bool(getattr(self, layers)):
                raise ValueError(f"{weight} needs a weight above 0 and {layers} names of layers; give both or neither")
            if len(set(getattr(self, layers))) != len(getattr(self, layers)):
                raise ValueError(f"{layers} names something twice")
        if not self.labels and (self.logits, self.class_means) == (0, 0) and not self._others():
            raise ValueError("labels, logits and class_means are all 0; give one of them some weight")
        if (self.mixup or self.cutmix) and self.class_means != 0:
            raise ValueError("a mixed image has no class whose mean it could be near; set class_means, or mixup, to 0")
        if len(set(self.compare)) != len(self.compare):
            raise ValueError("compare names something twice")
        return self

    def _others(self) -> bool:
        """Whether a loss beside the first three has weight."""
        asked = (self.relation_distance, self.relation_angle, self.hints, self.attention)
        return any((*asked, self.pixels, self.channels, self.head_classes, self.head_boxes))


class QatRecipe(Part):
    """Fine-tuning of the student with weights and activations rounded to int8, before it is quantised."""

    epochs: Epochs
    lr: Rate = 0.001


class DeployRecipe(Part):
    precisions: tuple[Literal["fp32", "fp16", "int8"], ...] = ("fp32", "fp16", "int8")
    rtx_targets: tuple[Annotated[str, Field(pattern=r"^sm[1-9][0-9]{1,2}$")], ...] = ("sm86", "sm89")
    calibration_images: Annotated[int, Field(ge=1, le=100_000)] = 200
    accuracy_drop: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    qat: QatRecipe | None = None
    in_graph: bool = False
    opset: Annotated[int, Field(ge=1)] | Literal["auto"] = 18
    dynamic_size: bool = False
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    rounds: Annotated[int, Field(ge=5, le=100_000)] = 200
    ship: Literal["fp32", "fp16", "int8"] = "int8"

    @model_validator(mode="after")
    def _ships_what_it_makes(self) -> DeployRecipe:
        if "fp32" not in self.precisions:
            raise ValueError("precisions must hold fp32, which the others are made from")
        for key in ("precisions", "rtx_targets"):
            if len(set(getattr(self, key))) != len(getattr(self, key)):
                raise ValueError(f"{key} names something twice")
        if self.ship not in self.precisions:
            raise ValueError(f"ship is {self.ship}, which precisions does not hold")
        if self.qat is not None and "int8" not in self.precisions:
            raise ValueError("qat trains for int8, which precisions does not hold; add int8 or leave qat out")
        if self.dynamic_size and self.rtx_targets:
            raise ValueError("dynamic_size is true, but TensorRT engines want one size; give rtx_targets: []")
        return self


class Recipe(Part):
    """Everything one run is asked to do."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    deterministic: bool = False
    tensorboard: bool = False
    model: ModelRecipe
    source: SourceRecipe | None = None
    target: DataRecipe
    preprocessing: PreprocessingRecipe
    transfer: TrainRecipe
    twin: bool = True
    prune: PruneRecipe = PruneRecipe()
    distill: DistillRecipe
    deploy: DeployRecipe | None = DeployRecipe()

    @model_validator(mode="after")
    def _times_what_it_lowers(self) -> Recipe:
        if self.deploy is None and self.prune.budget.latency is not None:
            raise ValueError("prune.budget.latency is timed as deploy says, which is null; give a macs budget")
        return self

    def functions(self) -> dict[str, str]:
        """The user's own functions that a run of this recipe calls, as `module:function`, by key."""
        found: dict[str, str] = {}
        if is_own_code(self.model.factory):
            found["model.factory"] = self.model.factory
        data = {"target": self.target, **({} if self.source is None else {"source.data": self.source.data})}
        found |= {f"{key}.function": part.function for key, part in data.items() if isinstance(part, FunctionData)}
        return found

    def to_yaml(self) -> str:
        """The recipe with every default written out; a deploy of null is not the default one and is kept."""
        kept = {"deploy": None} if self.deploy is None else {}
        return yaml.safe_dump({**self.model_dump(mode="json", exclude_none=True), **kept}, sort_keys=False)


def load_recipe(path: str | Path, overrides: Sequence[str] = (), *, trusted: Sequence[str] = ()) -> Recipe:
    """Reads a recipe file and applies `key.key=value` overrides.

    Args:
        path: the file.
        overrides: keys and values that take the place of the file's.
        trusted: modules of the user's own whose functions the recipe may name.

    Raises:
        RecipeError: no such file, not YAML, an unknown key or a value of the wrong type or range.
    """
    path = Path(path)
    if not path.is_file():
        raise RecipeError(f"There is no recipe {path}; recipes/ holds examples to start from.")
    if (size := path.stat().st_size) > _LARGEST:
        raise RecipeError(f"{path} has {size:,} bytes, more than any recipe; see recipes/digits.yaml.")
    try:
        raw = parsed(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:
        raise RecipeError(f"{path} is not YAML ({' '.join(str(error).split())[:160]}); mend that line.") from None
    if not isinstance(raw, dict):
        raise RecipeError(f"{path} holds {type(raw).__name__}, not a mapping of keys; see recipes/digits.yaml.")
    for override in overrides:
        _set(raw, override)
    try:
        recipe = Recipe.model_validate(_expanded(raw, path))
    except ValidationError as error:
        raise RecipeError(_sentence(path, error)) from None
    for key, function in recipe.functions().items():
        check_trusted(function, trusted, f"in {path}, {key}", RecipeError)
    return recipe


def parsed(text: str) -> Any:
    """The value of a YAML text, without tags, in which no key stands twice and no alias stands for very much.

    Raises:
        yaml.YAMLError, ValueError, RecursionError: it is not YAML, or not of this kind.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _weight(node, {})
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _weight(node: yaml.Node, known: dict[int, int | None]) -> int:
    """How many values a node stands for, its aliases written out; a key that stands twice is refused on the way."""
    if id(node) in known:
        weight = known[id(node)]
        if weight is None:
            raise yaml.YAMLError("an alias holds itself; write the value out")
        return weight
    known[id(node)] = None
    inside: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        seen: set[tuple[str, str]] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                raise yaml.YAMLError(f"the key '{_short(key.value)}' stands twice, line {key.start_mark.line + 1}")
            seen.add((key.tag, str(key.value)))
            inside += [key, value]
    elif isinstance(node, yaml.SequenceNode):
        inside = list(node.value)
    weight = 1 + sum(_weight(one, known) for one in inside)
    if weight > _MOST_VALUES:
        raise yaml.YAMLError(f"its aliases stand for more than {_MOST_VALUES:,} values")
    known[id(node)] = weight
    return weight


def _set(raw: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise RecipeError(f"--set {_short(override)} is not KEY=VALUE, such as prune.budget.macs=0.4.")
    *parents, last = key.split(".")
    place = raw
    for parent in parents:
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise RecipeError(f"--set {_short(override)}: '{_short(parent)}' is a value, not a group of keys.")
    try:
        place[last] = parsed(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise RecipeError(f"--set {_short(override)}: {_short(repr(text))} is not a YAML value.") from None


def _expanded(value: Any, path: Path) -> Any:
    """Replaces ${NAME} by the environment's value in every string."""
    if isinstance(value, dict):
        return {key: _expanded(item, path) for key, item in value.items()}
    if isinstance(value, list):
        return [_expanded(item, path) for item in value]
    if not isinstance(value, str):
        return value

    def look_up(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise RecipeError(f"{path} uses ${{{name}}}, which is not set; export {name}=/the/folder first.")
        return os.environ[name]

    return re.sub(r"\$\{(\w+)\}", look_up, value)


def _sentence(path: Path, error: ValidationError) -> str:
    """The first fault as one sentence: file, key, value, way out."""
    fault = error.errors()[0]
    unknown = fault["type"] == "extra_forbidden"
    keys = [*_keys(fault["loc"][:-1]), str(fault["loc"][-1])] if unknown else _keys(fault["loc"])
    where = _short(".".join(keys)) or "the recipe"
    if unknown:
        return f"{path}: the key '{where}' is unknown; remove it or see docs/recipes.md for the keys there are."
    if fault["type"] == "missing":
        return f"{path}: the key '{where}' is missing; add it (docs/recipes.md says what it may hold)."
    message = fault["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    given = fault.get("input")
    try:
        shown = "" if isinstance(given, dict) else f" (given: {_short(repr(given))})"
    except ValueError:  # Python writes no number of thousands of digits
        shown = ""
    return f"{path}: {where}: {message}{shown}; change it (docs/recipes.md says what it may hold)."


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _keys(location: tuple[int | str, ...]) -> list[str]:
    """A fault's location without the tags of unions, which stand in it beside the keys that the user wrote."""
    members = {"str", "float", "constrained-float", "constrained-str", "CocoSplit", "MaskSplit"}
    keys: list[str] = []
    for before, part in zip(("", *location), map(str, location), strict=False):
        kind = before in ("target", "data") and part in KINDS
        if not kind and part not in members and "[" not in part:
            keys.append(part)
    return keys
