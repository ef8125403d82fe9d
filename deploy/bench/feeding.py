"""Choose what each engine is timed on: seeded noise, or a batch of real images where it says how they are prepared."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from deploy.bench.noise import noise, takes_size
from deploy.bundle.bundle import Bundle
from deploy.engines.base import Engine
from deploy.errors import DeployError
from deploy.onnx.metadata import Metadata
from deploy.processing.files import drawn, prepared
from deploy.processing.preprocess import Preprocessing

MOST_PIXELS = 1 << 16
"""Of one dimension of a shape: what a record says is read from a file."""


@dataclass(frozen=True)
class Fed:
    """What one engine is fed.

    Attributes:
        feeds: an array for each input, by its name.
        rows: how many images one run takes.
        real: whether they are images, and not noise.
    """

    feeds: dict[str, np.ndarray]
    rows: int
    real: bool = False


@dataclass(frozen=True)
class Feeding:
    """How what engines are fed is chosen.

    Attributes:
        size: height and width, where an engine leaves them open.
        shapes: whole shapes, batch included, by the input's name; that of ``""`` is for engines with one input.
        images: files that engines with one input are fed, where they say how images are prepared.
        seed: of the noise and of which images are taken.
    """

    size: tuple[int, int] | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    images: Sequence[Path] = ()
    seed: int = 0

    def feed(self, engine: Engine, path: Path, batch: int | None) -> Fed:
        """Return what ``engine``, which ``path`` was opened as, is fed in one run.

        Raises:
            DeployError: it takes no such batch or shape, or leaves a size open that nobody gave.
        """
        stated = stated_by(engine, path)
        given = self._given(engine, str(path))
        size = None if stated is None else list(stated.shape)
        feeds, rows = noise(engine.inputs, str(path), batch, size=self.size, stated=size, shapes=given, seed=self.seed)
        if not self.images or stated is None or len(feeds) != 1:
            return Fed(feeds, rows)
        ((name, drawn_noise),) = feeds.items()
        spec = engine.inputs[name]
        if spec.dtype not in ("float32", "float16") or drawn_noise.shape[1:] != stated.shape:
            return Fed(feeds, rows)  # its pixels are prepared in some other way
        # Fewer files than a batch has images come round again.
        files = itertools.islice(itertools.cycle(drawn(self.images, rows, self.seed)), rows)
        return Fed({name: np.stack(prepared(list(files), stated)).astype(spec.dtype)}, rows, real=True)

    def check(self, engines: Sequence[Engine]) -> None:
        """Refuse a shape for an input that no engine has, and a size that none leaves open.

        Raises:
            DeployError: there is one.
        """
        size = self.size
        if size is not None and not any(takes_size(spec, size) for one in engines for spec in one.inputs.values()):
            taken = "; ".join(f"{one.name} takes {', '.join(map(str, one.inputs.values()))}" for one in engines)
            raise DeployError(
                f"--size {size[0]}x{size[1]} fills no height and width: {taken}; leave it out, or give a whole --shape."
            )
        known = {name for engine in engines for name in engine.inputs}
        for name in self.shapes:
            if name and name not in known:
                raise DeployError(f"--shape names the input {name!r}; the engines have {', '.join(sorted(known))}.")

    def settings(self) -> dict[str, Any]:
        """Return what a record keeps of it, so that the engines can be timed again as they were."""
        said: dict[str, Any] = {}
        if self.size is not None:
            said["size"] = list(self.size)
        if self.shapes:
            said["shapes"] = {name: list(shape) for name, shape in self.shapes.items()}
        return said

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Return how the engines of a record were fed; what its settings do not say in whole numbers is left out."""
        size, shapes = _sizes(settings.get("size")), settings.get("shapes")
        found = {str(name): _sizes(shape) for name, shape in shapes.items()} if isinstance(shapes, dict) else {}
        return cls(
            size=(size[0], size[1]) if size is not None and len(size) == 2 else None,
            shapes={name: shape for name, shape in found.items() if shape is not None},
        )

    def _given(self, engine: Engine, what: str) -> dict[str, tuple[int, ...]]:
        """Return the shapes that are given for the inputs of ``engine``."""
        given = {name: shape for name, shape in self.shapes.items() if name in engine.inputs}
        if "" in self.shapes:
            if len(engine.inputs) > 1:
                raise DeployError(
                    f"{what} takes {', '.join(engine.inputs)}; say whose the shape is: --shape NAME=1x3x224x224."
                )
            given = dict.fromkeys(engine.inputs, self.shapes[""]) | given
        return given


def stated_by(engine: Engine, path: Path) -> Preprocessing | None:
    """Return how images are prepared for an engine, by its bundle or its file; None where neither says."""
    if isinstance(engine, Bundle):
        return engine.preprocessing
    return Metadata.from_file(path).preprocessing if path.suffix == ".onnx" else None


def _sizes(value: Any) -> tuple[int, ...] | None:
    if not isinstance(value, list | tuple) or not all(
        isinstance(one, int) and not isinstance(one, bool) and 1 <= one <= MOST_PIXELS for one in value
    ):
        return None
    return tuple(value)
