"""Describe an engine in a JSON file beside it, and refuse an engine that does not match before it is loaded."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NoReturn, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from deploy.errors import DeployError
from deploy.files import read_bytes, sha256, write_text
from deploy.validation import explain

# An RTX engine begins with a header of 64 bytes: this tag, at 16 the length of the file, at 24 the four parts of the
# version, at 32 a bit for each generation in _TARGET_BITS. Observed in 1.7.1 and documented nowhere, so only files
# that have the tag are checked.
_TAG = b"vtrt"
_HEADER = 64
_TARGET_BITS = {"sm75": 1, "sm80": 2, "sm86": 4, "sm89": 8, "sm120": 16}


class Sidecar(BaseModel):
    """The JSON beside an engine.

    Attributes:
        engine: the engine's file name; ``engine_sha256`` and ``bytes`` are its hash and size.
        source: the name of the ONNX file it was built from; ``source_sha256`` is its hash.
        precision: ``fp32``, ``fp16``, ``bf16``, ``int8`` or ``unknown``.
        profile: smallest, usual and largest batch.
        runtime: ``tensorrt`` or ``tensorrt_rtx``; ``version`` is the version of that package.
        target: the compute capability it was built for, such as ``sm86``.
        flags: the builder flags that were on.
        build_seconds: how long the build took.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["niwaki-engine-1"] = "niwaki-engine-1"
    engine: str
    engine_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)
    source: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.\-]*$", max_length=255)
    source_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    precision: str
    profile: tuple[PositiveInt, PositiveInt, PositiveInt]
    runtime: Literal["tensorrt", "tensorrt_rtx"]
    version: str
    target: str = Field(pattern=r"^sm\d+$")
    flags: tuple[str, ...] = ()
    build_seconds: float = Field(ge=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _check_profile(self) -> Self:
        if list(self.profile) != sorted(self.profile):
            raise ValueError(f"the profile {self.profile} does not ascend")
        return self


def sidecar_of(path: Path) -> Path:
    """Return the path of the JSON file that describes the engine at ``path``."""
    return path.with_name(path.name + ".json")


def write_sidecar(path: Path, sidecar: Sidecar) -> None:
    """Write ``sidecar`` beside the engine at ``path`` in one step."""
    write_text(sidecar_of(path), sidecar.model_dump_json(indent=2) + "\n")


def load_sidecar(path: Path, *, check: Callable[[bytes], None] | None = None) -> Sidecar:
    """Read the sidecar of the engine at ``path``; the engine itself is not read.

    Args:
        path: the engine.
        check: called with the bytes of the sidecar before they are parsed; it raises where it does not trust them.

    Raises:
        DeployError: the engine or its sidecar is missing, or the sidecar is damaged or describes another file.
    """
    if not path.is_file():
        raise DeployError(f"There is no engine at {path}; build it first.")
    beside = sidecar_of(path)
    try:
        content = read_bytes(beside)
        if check is not None:
            check(content)
        sidecar = Sidecar.model_validate_json(content)
    except OSError as error:
        raise DeployError(
            f"{path.name} has no sidecar {beside.name} ({error.strerror}), so nothing says what it is; "
            "copy both files, or build the engine again."
        ) from error
    except ValidationError as error:
        raise DeployError(f"{beside} is not an engine's sidecar ({explain(error)}); build the engine again.") from error
    if sidecar.engine != path.name:
        _refuse(path, f"its sidecar describes {sidecar.engine}")
    return sidecar


def verify_engine(path: Path) -> Sidecar:
    """Check the engine at ``path`` as ``read_engine`` does; return its sidecar alone."""
    return read_engine(path)[0]


def read_engine(path: Path, expected: str | None = None) -> tuple[Sidecar, bytes]:
    """Read the engine at ``path`` and its sidecar, once, and check the one against the other.

    Args:
        path: the engine.
        expected: the SHA-256 that the sidecar named when it was checked before; None where it was not.

    Raises:
        DeployError: the engine or its sidecar is missing or damaged, the engine is not the file that the sidecar
            describes, its own header contradicts it, or the ONNX file beside it has changed since.
    """
    sidecar = load_sidecar(path)
    if expected not in (None, sidecar.engine_sha256):
        _refuse(path, "its sidecar was replaced meanwhile", "load the bundle again")
    if (size := path.stat().st_size) != sidecar.bytes:
        _refuse(path, f"it has {size} bytes instead of {sidecar.bytes}", "copy it again, or build it again")
    try:
        content = read_bytes(path, sidecar.bytes)
    except OSError as error:
        _refuse(path, f"it cannot be read ({error.strerror})", "copy it again, or build it again")
    if hashlib.sha256(content).hexdigest() != sidecar.engine_sha256:
        _refuse(path, "its content is not what its sidecar describes", "copy it again, or build it again")
    _check_header(path, content[:_HEADER], sidecar)
    source = path.with_name(sidecar.source)
    if source.is_file() and sha256(source) != sidecar.source_sha256:
        _refuse(path, f"it was built from another version of {source.name} than lies beside it")
    return sidecar, content


def check_compatible(path: Path, sidecar: Sidecar, *, runtime: str, version: str, target: str) -> None:
    """Refuse an engine that this machine's runtime or GPU cannot run.

    Raises:
        DeployError: the runtime, its version or the GPU's compute capability is not the engine's.
    """
    if sidecar.runtime != runtime:
        _refuse(path, f"it is for {sidecar.runtime} and {runtime} was asked to run it")
    fault = incompatibility(sidecar.runtime, sidecar.version, sidecar.target, version=version, target=target)
    if fault is not None:
        _refuse(path, fault)


def incompatibility(runtime: str, built_by: str, built_for: str, *, version: str, target: str) -> str | None:
    """Return why an engine of ``runtime`` cannot run where ``version`` is installed and the GPU is ``target``.

    None means that it can.
    """
    if built_by != version:
        return f"it was built by {runtime} {built_by} and {version} is installed"
    if built_for != target:
        return f"it was built for {built_for} and the GPU here is {target}"
    return None


def _check_header(path: Path, head: bytes, sidecar: Sidecar) -> None:
    if sidecar.runtime != "tensorrt_rtx" or not head.startswith(_TAG):
        return
    if len(head) < _HEADER or struct.unpack_from("<Q", head, 16)[0] != sidecar.bytes:
        _refuse(path, "its header says that it was longer", "copy it again, or build it again")
    version = ".".join(map(str, head[24:28]))
    if version != sidecar.version:
        _refuse(path, f"its header says version {version} and its sidecar {sidecar.version}")
    mask = _TARGET_BITS.get(sidecar.target)
    if mask is not None and not head[32] & mask:
        _refuse(path, f"its header does not name {sidecar.target}, which its sidecar does")


def _refuse(path: Path, why: str, remedy: str = "build it again from its ONNX file") -> NoReturn:
    raise DeployError(f"The engine {path.name} cannot be used: {why}; {remedy}.")
