"""Define the contract that every engine keeps: named inputs, named outputs, ``run``."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from deploy.engines.cores import usable_cores
from deploy.errors import DeployError
from deploy.onnx.precision import precision_in_bytes

# OpenVINO begins its messages with the place in its own source.
_SOURCE_LOCATION = re.compile(
    r"Exception from |Check '.*' failed at |FrontEnd API |Loading input model|Model wasn't |.*:$|$"
)
# ONNX Runtime puts a code before its messages, and C++ files, lines and signatures into them.
_ORT_CODE = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_CPP_PLACE = re.compile(r"\S*\.(?:cc|cpp|h|hpp):\d+ [^()]*\(")
_MAX_MESSAGE = 500
_MAX_THREADS = 1024


@dataclass(frozen=True)
class TensorSpec:
    """The element type (a NumPy name such as ``float32``) and the shape of a tensor, None where a dimension is free."""

    dtype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join('any' if d is None else str(d) for d in self.shape)}]"

    def accepts(self, array: np.ndarray) -> bool:
        """Return whether ``array`` has this element type and fits this shape."""
        return (
            array.dtype == np.dtype(self.dtype)
            and array.ndim == len(self.shape)
            and all(want is None or want == got for want, got in zip(self.shape, array.shape, strict=True))
        )


class Closeable(ABC):
    """An object that holds resources; a ``with`` statement releases them."""

    @abstractmethod
    def close(self) -> None:
        """Release what is held; closing twice is harmless."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Engine(Closeable):
    """A network that is ready to run.

    Attributes:
        name: its name in tables, usually the file's name without its ending.
        runtime: which library runs it, a key of ``deploy.engines.ENGINES``.
        precision: ``fp32``, ``fp16``, ``bf16``, ``int8``, or ``unknown`` where the file does not say.
        inputs: the tensors that ``run`` takes, by name.
        outputs: the tensors that ``run`` returns, by name.
        path: the file it was loaded from, where there is one.
        kernels: which kernels run, in words, where they are not the runtime's own choice; records keep it.
    """

    name: str
    runtime: str
    precision: str
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
    path: Path | None = None
    kernels: str | None = None

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once on ``feeds`` and return every output by name.

        Raises:
            DeployError: a name is missing or unknown, a type or a shape differs, an input holds NaN or infinity, or
                the engine is closed.
        """
        self._check(feeds)
        return self._run(feeds)

    @abstractmethod
    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run on checked feeds."""

    def run_apart(self, feeds: Mapping[str, np.ndarray]) -> tuple[float, float, float] | None:
        """Run once and return the milliseconds of copying in, of the network and of copying out.

        None where nothing is copied, as on a CPU. Each of the three is waited for, so together they take longer than
        ``run``.

        Raises:
            DeployError: as ``run`` does.
        """
        return None

    def _check(self, feeds: Mapping[str, np.ndarray]) -> None:
        if set(feeds) != set(self.inputs):
            raise DeployError(
                f"{self.name} takes the inputs {sorted(self.inputs)} but was given {sorted(map(str, feeds))}; "
                "feed exactly those names."
            )
        for key, spec in self.inputs.items():
            array = feeds[key]
            if not isinstance(array, np.ndarray):
                raise DeployError(
                    f"{self.name} takes NumPy arrays but input {key!r} is a {type(array).__name__}; "
                    "convert it with numpy.asarray."
                )
            if not spec.accepts(array):
                raise DeployError(
                    f"{self.name} takes input {key!r} as {spec} but was given "
                    f"{array.dtype}{list(array.shape)}; convert or reshape it first."
                )
            # Some runtimes, and every int8 file, would make a finite answer of it that looks like any other.
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                what = "NaN" if np.isnan(array).any() else "infinity"
                raise DeployError(f"{self.name} was given {what} in input {key!r}; feed finite numbers.")


def check_threads(threads: int) -> int:
    """Return the number of threads, for 0 as many as cores may be used here: a runtime sees no container's quota.

    Raises:
        DeployError: ``threads`` is no integer from 0 to 1024; a runtime would really try to start a million.
    """
    if not isinstance(threads, int) or not 0 <= threads <= _MAX_THREADS:
        raise DeployError(f"threads is {threads!r}; give 0 (as many as the cores that may be used) to {_MAX_THREADS}.")
    return threads or usable_cores()


def precision_of(path: Path, content: bytes, metadata: Mapping[str, str]) -> str:
    """Return the precision of a model file: what its ``content`` is, or where that tells nothing, what it states.

    Its name (``model.int8.onnx``) counts last: a file can be called anything.
    """
    if (found := precision_in_bytes(content)) is not None:
        return found
    if (stated := metadata.get("niwaki.precision")) is not None:
        return stated
    return next((part for part in path.name.split(".") if part in ("fp32", "fp16", "bf16", "int8")), "unknown")


def first_line(error: Exception) -> str:
    """Return the first line of a library's message, without its final full stop and without source locations.

    A long one ends at a word.
    """
    lines = str(error).strip().splitlines()
    said = next(
        (line for line in lines if not _SOURCE_LOCATION.match(line)), lines[0] if lines else type(error).__name__
    )
    said = _without_source(said).strip(".- ")
    return said if len(said) <= _MAX_MESSAGE else f"{said[:_MAX_MESSAGE].rpartition(' ')[0]} ..."


def _without_source(said: str) -> str:
    """Remove ONNX Runtime's error code, and a C++ file, line and signature, from within a message."""
    said = _ORT_CODE.sub("", said)
    found = _CPP_PLACE.search(said)
    if found is None:
        return said
    depth, end = 0, found.end()
    for end in range(found.end() - 1, len(said)):
        depth += {"(": 1, ")": -1}.get(said[end], 0)
        if depth == 0:
            break
    return (said[: found.start()] + said[end + 1 :].removeprefix(" const").lstrip()) or said
