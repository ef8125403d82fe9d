"""A table of the papers as a YAML file tells it: network, methods, sizes, published figures."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from compress.errors import RecipeError

HERE = Path(__file__).parent
_FROZEN = ConfigDict(frozen=True, extra="forbid")


class Training(BaseModel):
    """Epochs at each rate, and how one steps."""

    model_config = _FROZEN
    steps: tuple[tuple[float, int], ...]
    momentum: float = 0.9
    weight_decay: float = 0.0
    nesterov: bool = False


class Published(BaseModel):
    """What a paper says, and where it says so."""

    model_config = _FROZEN
    base: float | None = None
    accuracy: float
    ratio: float | None = None
    source: str


class Method(BaseModel):
    """One row: a procedure of ``benchmarks.papers.procedures``, its schedule, how often that is run, its numbers."""

    model_config = _FROZEN
    procedure: str
    train: Training
    phases: int = 1
    options: dict[str, Any] = {}
    published: Published | None = None
    within: float | None = None


class Size(BaseModel):
    """How much of the table is run: seeds, a factor on every number of epochs, so many images."""

    model_config = _FROZEN
    seeds: tuple[int, ...]
    epochs: float = 1.0
    images: int | None = None


class PaperTable(BaseModel):
    """One YAML file; ``mean`` is taken from MNIST's pixels and ``std`` divides them.

    Where ``weights`` is given, each row begins from the ResNet of CIFAR-10 of so many layers as it was published, and
    ``base`` is what a network is trained by that a row trains itself.
    """

    model_config = _FROZEN
    title: str
    network: str
    arguments: dict[str, Any] = {}
    data: Literal["mnist", "cifar10"] = "mnist"
    weights: int | None = None
    flip: bool = False
    mean: float = 0.0
    std: float = 1.0
    batch_size: int
    base: Training
    equal_epochs: int
    methods: dict[str, Method]
    sizes: dict[Literal["smoke", "small", "full"], Size]


def read_table(name: str) -> PaperTable:
    """Read ``NAME.yaml`` from this folder.

    Raises:
        RecipeError: there is none, or it has a wrong key or value.
    """
    path = HERE / f"{name}.yaml"
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in HERE.glob("*.yaml")))
        raise RecipeError(f"There is no table '{name}'; there are {names}.")
    try:
        return PaperTable.model_validate(yaml.safe_load(path.read_text("utf-8")))
    except (ValidationError, yaml.YAMLError) as error:
        raise RecipeError(f"{path.name} is wrong: {' '.join(str(error).split())[:200]}.") from None


def digest(value: Any) -> str:
    """Twelve letters that differ when settings do."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
