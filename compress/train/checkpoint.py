"""Save and restore a training in one file, so that a killed run resumes to the same weights."""

from __future__ import annotations

import json
import os
import platform
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from compress.errors import ArtifactError, MissingError, said_by
from compress.files import replacing
from compress.train.fabric import is_first
from compress.train.state import TrainingState

FORMAT = "niwaki-checkpoint-2"
# What a state of other numbers, names or shapes may raise on its way into a training.
_DAMAGED = (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)


class Checkpoints:
    """The last state of one training, in a safetensors file whose header holds what is not a tensor as JSON.

    Args:
        path: the file.
        seconds: the least time between two; the last state, when training is over, is always written.
        made_from: names what the training begins from; a state that names anything else is of another training.
    """

    def __init__(self, path: Path, seconds: float = 30.0, *, made_from: str = "") -> None:
        self.path, self.seconds, self.made_from = path, seconds, made_from
        self._last = time.monotonic()

    def due(self, over: bool) -> bool:
        """Whether to save now; ``over`` says whether training is over. Only rank 0 saves."""
        return is_first() and (over or time.monotonic() - self._last >= self.seconds)

    def save(self, state: TrainingState) -> None:
        """Write the state after a step.

        Raises:
            MissingError: the disk is full or refuses; the checkpoint before is kept.
        """
        tensors, about = _packed(state)
        about["made_from"] = self.made_from
        try:
            with replacing(self.path) as temporary:
                save_file(tensors, temporary, {"niwaki": json.dumps(about)})
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise MissingError(
                f"The checkpoint {self.path} cannot be written ({reason}); free some space and continue with "
                "--resume; the previous checkpoint is intact."
            ) from None
        self._last = time.monotonic()

    def restore(self, state: TrainingState) -> tuple[str, ...]:
        """Restore the state from the file, if there is one; return what is different here, one sentence each.

        Raises:
            ArtifactError: the file is damaged or of another training.
        """
        for left in self.path.parent.glob(f".{self.path.name}.*.tmp"):
            # Left by a process that was killed while writing.
            left.unlink(missing_ok=True)
        if not self.path.is_file():
            return ()
        try:
            with safe_open(self.path, "pt") as file:
                about = json.loads(file.metadata()["niwaki"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            if about["format"] != FORMAT or about["total"] != state.total or about["seed"] != state.seed:
                raise ValueError("it is of another training")
            if about.get("made_from", self.made_from) != self.made_from:
                raise ValueError("it was made by another recipe or from other networks")
            _restore(state, tensors, about)
            return differences(about["made_by"])
        except (*_DAMAGED, SafetensorError) as error:
            raise ArtifactError(
                f"The checkpoint {self.path} cannot be used ({said_by(error)}); remove it, and this stage starts again."
            ) from None


def made_by() -> dict[str, str]:
    """What the last bits of a training's weights depend on beside its recipe."""
    return {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "threads": str(torch.get_num_threads()),
        "processes": os.environ.get("WORLD_SIZE", "1"),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
    }


def differences(then: Mapping[str, str]) -> tuple[str, ...]:
    """Compare this environment with ``then``, an earlier ``made_by``: one sentence, or none if they agree."""
    now = made_by()
    changed = [f"{key} {now[key]} (it began under {then[key]})" for key in now if now[key] != then.get(key, now[key])]
    if not changed:
        return ()
    return (
        f"Resumed under {', '.join(changed)}: the weights may differ in their last bits from an uninterrupted run.",
    )


def _packed(state: TrainingState) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors = {f"model.{n}": t for n, t in state.network.state_dict().items()}
    tensors |= {f"best.{n}": t for n, t in state.best.weights.items()}
    if state.average is not None:
        tensors |= {f"ema.{n}": t for n, t in state.average.weights.items()}
    if state.helpers is not None:
        tensors |= {f"helpers.{n}": t for n, t in state.helpers.state_dict().items()}
    optimizer = state.optimizer.state_dict()
    for number, held in optimizer["state"].items():
        tensors |= {f"optimizer.{number}.{k}": torch.as_tensor(v) for k, v in held.items() if v is not None}
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    tensors |= {"rng.torch": torch.get_rng_state(), "rng.numpy": torch.from_numpy(np.array(keys, dtype=np.int64))}
    for k, cuda in enumerate(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else ()):
        tensors[f"rng.cuda.{k}"] = cuda
    about = {
        "format": FORMAT,
        "step": state.done,
        "total": state.total,
        "seed": state.seed,
        "rank": state.best.rank if state.best.metrics else None,
        "since": state.best.since,
        "kept": state.best.metrics,
        "kept_at": state.best.step,
        "metrics": state.metrics,
        "ema_steps": state.average.steps if state.average is not None else 0,
        "python": random.getstate(),
        "numpy": [kind, int(position), int(has_gauss), float(gauss)],
        "made_by": made_by(),
    }
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, about


def _restore(state: TrainingState, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    def part(name: str) -> dict[str, Tensor]:
        return {n[len(name) + 1 :]: t for n, t in tensors.items() if n.startswith(f"{name}.")}

    device = state.device
    state.network.load_state_dict(part("model"))
    state.best.weights = {n: t.to(device) for n, t in part("best").items()}
    if state.average is not None:
        state.average.weights = {n: t.to(device) for n, t in part("ema").items()}
        state.average.steps = about["ema_steps"]
    if state.helpers is not None:
        state.helpers.load_state_dict(part("helpers"))
    held = state.optimizer.state_dict()
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in part("optimizer").items():
        number, key = name.split(".", 1)
        states.setdefault(int(number), {})[key] = tensor
    state.optimizer.load_state_dict({**held, "state": states})
    if about["rank"] is not None:
        state.best.rank = (about["rank"][0], about["rank"][1])
    state.best.since, state.best.metrics, state.best.step = about["since"], about["kept"], about["kept_at"]
    state.metrics, state.done = about["metrics"], about["step"]
    if not is_first():
        # Only rank 0's generators were saved; the others start from seeds of their own.
        torch.manual_seed(state.seed + 7919 * state.rank + state.done)
        return
    torch.set_rng_state(tensors["rng.torch"])
    if torch.cuda.is_available():
        for k, cuda in part("rng.cuda").items():
            if int(k) < torch.cuda.device_count():
                torch.cuda.set_rng_state(cuda, int(k))
    version, internal, gauss = about["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, position, has_gauss, cached = about["numpy"]
    keys = tensors["rng.numpy"].numpy().astype(np.uint32)
    np.random.set_state((kind, keys, position, has_gauss, cached))
