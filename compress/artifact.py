"""A saved network without code or pickle: `model.json` beside `model.safetensors`."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save_file
from torch import Tensor, nn

from compress.data.targets import TaskName
from compress.errors import ArtifactError, ModelError, PlanError
from compress.files import read_bytes, write_text
from compress.models import factory as models
from compress.models import torchvision
from compress.models.detection import take_prepared
from compress.models.meta import on_meta
from compress.models.origin import Origin, origin_of, remember
from compress.models.reload import altered_buffers, difference, set_buffers, unsaved_buffers, without_values
from compress.prune.architecture import architecture_hash
from compress.prune.planning import Plan
from compress.prune.surgery import apply
from compress.validation import explain

WEIGHTS = "model.safetensors"
_LARGEST = 1 << 36  # bytes of weights
_LARGEST_SIDE = 8192


class Description(BaseModel):
    """What `model.json` says: how to build the network, and what the weights must hash to."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: Literal["niwaki-artifact-1"] = "niwaki-artifact-1"
    factory: str
    arguments: dict[str, Any] = {}
    task: TaskName = "classification"
    classes: tuple[str, ...]
    preprocessing: dict[str, Any] = {}
    plan: Plan | None = None
    architecture: str = ""
    weights_sha256: str = ""
    seed: int = 0

    @field_validator("preprocessing")
    @classmethod
    def _size_of_an_image(cls, value: dict[str, Any]) -> dict[str, Any]:
        size = value.get("size", (1, 1))
        sides = size if isinstance(size, list | tuple) else ()
        if len(sides) != 2 or not all(isinstance(side, int) and 1 <= side <= _LARGEST_SIDE for side in sides):
            raise ValueError(f"size is {str(size)[:80]}, not two numbers of pixels up to {_LARGEST_SIDE}")
        return value


def save(
    model: nn.Module,
    directory: str | Path,
    description: Description | None = None,
    *,
    example: Any = None,
    **known: Any,
) -> Path:
    """Writes `model.json` and `model.safetensors` into a new folder that appears whole, and is loaded once to prove it.

    Args:
        model: the network, cut by `description.plan` if there is one.
        directory: the folder; replaced when it exists.
        description: how to build it; the hashes are filled in here. Without it what the network remembers is taken: a
            factory by name that made it, and what `prune.apply` cut since; torchvision's classifiers are recognised.
        known: fields of a description that the network does not remember or that are to be others: `factory`,
            `arguments`, `classes`, `task`, `preprocessing`, `plan`.
        example: a tensor or a tuple of arguments that `model` is fed, for the proof that what is loaded gives the
            same answers; without it an image is tried.

    Raises:
        ArtifactError: what was written does not load as `model`, or nothing says what made it; the folder is left as
            it was.
    """
    if description is not None and known:
        raise ArtifactError(f"save is given a description and {', '.join(known)} as well; put these into it.")
    description = description or remembered(model, known)
    directory = Path(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        _write(model, temporary, description, model.state_dict())
        trusted = _running(description.factory.partition(":")[0])
        back = _loaded(temporary, trusted, directory)
        if changed := altered_buffers(model, back):
            _write(model, temporary, description, {**model.state_dict(), **changed})
            back = _loaded(temporary, trusted, directory)
        if differs := difference(model, back, example, description.preprocessing.get("size")):
            raise ArtifactError(
                f"The network cannot be rebuilt from '{description.factory}': {differs}; give the factory, "
                "arguments and plan that it was made with."
            )
        shutil.rmtree(directory, ignore_errors=True)
        temporary.replace(directory)
    except SafetensorError as error:
        raise ArtifactError(f"{directory} cannot be written ({error}); free some space.") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return directory


def _running(module: str) -> tuple[str, ...]:
    """The module that made the network, where its code runs here already; no other is imported for the proof."""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    return (module,) if module in sys.modules or (script and Path(script).stem == module) else ()


def remembered(model: nn.Module, known: Mapping[str, Any]) -> Description:
    """Describe a network by what it remembers, and by fields that are known beside.

    Raises:
        ArtifactError: that is too little, or a field is none of a description's.
    """
    origin = origin_of(model)
    plan = known.get("plan", origin.plan)
    factory, outputs = known.get("factory", origin.factory), origin.outputs
    if not factory:
        found = torchvision.recognised(model, plan.architecture if plan else architecture_hash(model))
        if found is None:
            raise ArtifactError(
                f"Nothing says what made this {type(model).__name__}; give factory='torchvision:NAME', "
                "'niwaki:NAME' or 'module:function', and its arguments."
            )
        factory, outputs = found
    fields = {"arguments": dict(origin.arguments), **origin.about, **known, "factory": factory, "plan": plan}
    if not fields.get("classes"):
        if outputs is None:
            raise ArtifactError(f"Nothing says what the classes of '{factory}' are; give classes, one name for each.")
        fields["classes"] = tuple(map(str, range(outputs)))
    try:
        return Description(**fields)
    except ValidationError as error:
        raise ArtifactError(f"The network cannot be described: {explain(error)}; give that differently.") from None


def _write(model: nn.Module, directory: Path, description: Description, state: Mapping[str, Tensor]) -> None:
    kept = {n: t.detach().cpu().contiguous().clone() for n, t in state.items()}
    save_file(kept, directory / WEIGHTS)
    filled = description.model_copy(
        update={"architecture": architecture_hash(model), "weights_sha256": _sha256(directory / WEIGHTS)}
    )
    write_text(directory / "model.json", filled.model_dump_json(indent=1))


def _loaded(temporary: Path, trusted: tuple[str, ...], directory: Path) -> nn.Module:
    try:
        return load(temporary, trusted=trusted)
    except (ArtifactError, ModelError) as error:
        said = str(error).replace(str(temporary), str(directory)).replace("; save the network again", "")
        raise ArtifactError(f"The network would not load again: {said}") from None


def describe(directory: str | Path) -> Description:
    """Reads `model.json`; raises ArtifactError when it is missing or damaged."""
    path = Path(directory) / "model.json"
    if not path.is_file():
        raise ArtifactError(f"{directory} holds no model.json; it is not a saved network.")
    try:
        return Description.model_validate_json(read_bytes(path))
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror}); save the network again.") from None
    except ValidationError as error:
        raise ArtifactError(f"{path} is damaged: {explain(error)}; save the network again.") from None


def weights(directory: str | Path, about: Description) -> dict[str, Tensor]:
    """Reads the tensors of a saved network; raises ArtifactError when they are not those that `about` tells of."""
    path = Path(directory) / WEIGHTS
    if not path.is_file():
        raise ArtifactError(f"{directory} holds no {WEIGHTS}; it is not a whole saved network.")
    # Once, so that what was hashed is what is used; a mapped file that is cut short would kill the process.
    content = read_bytes(path, _LARGEST)
    if hashlib.sha256(content).hexdigest() != about.weights_sha256:
        raise ArtifactError(f"{path} does not have the hash that model.json gives; copy the folder again.")
    try:
        return read_tensors(content)
    except SafetensorError as error:
        raise ArtifactError(f"{path} is not a safetensors file ({error}).") from None


def load(directory: str | Path, *, trusted: tuple[str, ...] = ()) -> nn.Module:
    """Rebuilds a saved network: made and cut without storage, then given its weights.

    Args:
        directory: what `save` wrote.
        trusted: modules of the user's own whose factories may run; torchvision's and ours always may.

    Raises:
        ArtifactError: a file is missing or damaged, a hash or a shape is wrong.
        ModelError: the factory is unknown or not trusted.
    """
    about, path = describe(directory), Path(directory) / WEIGHTS
    state = weights(directory, about)
    model = _built(about, trusted)
    if about.task == "detection" and "size" in about.preprocessing:
        take_prepared(model, about.preprocessing["size"])
    if about.plan is not None:
        try:
            model = apply(model, about.plan)
        except PlanError as error:
            raise ArtifactError(f"{directory}: {error}") from None
    own = model.state_dict(keep_vars=True)
    for name, tensor in own.items():
        if name not in state:
            raise ArtifactError(f"{path} lacks '{name}'; save the network again.")
        if state[name].shape != tensor.shape:
            raise ArtifactError(
                f"{path} has '{name}' as {tuple(state[name].shape)}, the network needs {tuple(tensor.shape)}."
            )
    unsaved = unsaved_buffers(model)
    buffers = {name: state.pop(name) for name in sorted(set(state) - set(own)) if name in unsaved}
    extra = sorted(set(state) - set(own))
    if extra:
        raise ArtifactError(f"{path} also holds '{extra[0]}', which the network does not have; save it again.")
    set_buffers(model, buffers)
    if architecture_hash(model) != about.architecture:
        raise ArtifactError(f"{directory} builds another architecture than it was saved from; use that version.")
    # One parameter under two names is filled once.
    filled: dict[int, nn.Parameter] = {}
    for name, tensor in own.items():
        if isinstance(tensor, nn.Parameter):
            state[name] = filled.setdefault(id(tensor), nn.Parameter(state[name], tensor.requires_grad))
    model.load_state_dict(state, assign=True)
    saved = {"task": about.task, "classes": about.classes, "preprocessing": about.preprocessing}
    remember(model, Origin(about.factory, about.arguments, len(about.classes), saved, about.plan))
    return model.eval()


def _built(about: Description, trusted: tuple[str, ...]) -> nn.Module:
    """Make the network without storage for what is saved, or for real where its constructor needs that."""
    asked = about.factory, about.arguments, len(about.classes)
    try:
        with on_meta():
            model = models.build(*asked, trusted=trusted)
    except ModelError:
        # A constructor that runs the network, as ultralytics' do, needs its weights; any other fault shows again.
        return models.build(*asked, trusted=trusted)
    # What is made on the device of a parameter, as timm's Swin makes its masks, has no values there and is not saved.
    return models.build(*asked, trusted=trusted) if without_values(model) else model


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
