"""What the processes of one run exchange: rank 0 writes and reports, and all hold the same weights."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchmetrics import Metric

from compress.errors import ElsewhereError, TrainingError, exit_code_of
from compress.models.weights import weights_hash
from compress.train.fabric import is_first

_doing = False


def once(action: Callable[[], Any]) -> Any:
    """Run ``action`` on rank 0 alone and return its result on every rank; with several, it has to be JSON.

    The others wait, however long it takes. Inside another ``once`` it is a plain call.

    Raises:
        ElsewhereError: on the other ranks, if it raised on rank 0.
    """
    global _doing
    if not dist.is_initialized() or _doing:
        return action()
    if not is_first():
        told = _hear()
        if "code" in told:
            raise ElsewhereError(told["error"], told["code"])
        return told["value"]
    _doing = True
    try:
        value = action()
        text = json.dumps({"value": value})
    except BaseException as error:
        _tell(json.dumps({"error": str(error), "code": exit_code_of(error)}))
        raise
    finally:
        _doing = False
    _tell(text)
    return value


def check_same(network: nn.Module, name: str) -> None:
    """Raise TrainingError, on every rank, unless all hold the same weights to the bit after the training ``name``."""
    if not dist.is_initialized():
        return
    own = torch.frombuffer(bytearray.fromhex(weights_hash(network)), dtype=torch.uint8)
    found = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(found, own)
    others = [rank for rank, digest in enumerate(found) if not torch.equal(digest, found[0])]
    if others:
        raise TrainingError(
            f"After {name}, process {others[0]} holds other weights than process 0; use the same versions and "
            "processors for all, or train in one process."
        )


def all_finite(loss: Tensor) -> bool:
    """Whether the loss is finite on every rank, so that all stop at the same step."""
    finite = torch.isfinite(loss.detach())
    if not dist.is_initialized():
        return bool(finite)
    flag = finite.to(torch.uint8)
    dist.all_reduce(flag, dist.ReduceOp.MIN)
    return bool(flag)


def measured_alone(metrics: Any) -> None:
    """Make metrics count this process's images alone: the other processes may be waiting for it."""
    for part in metrics.modules():
        if isinstance(part, Metric):
            part.distributed_available_fn = _no


def _no() -> bool:
    return False


def may_speak() -> bool:
    """Whether this process is the first of the run to report why it ends; the others fail as a consequence."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return True
    own = os.environ.get("RANK", "0")
    try:
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=5),
        )
        said = store.compare_set(f"niwaki/said/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", "", own)
        return said.decode() == own
    except (KeyError, ValueError, RuntimeError):
        # The process that held the store is gone, so there is nobody to ask.
        return True


def leave() -> None:
    """Disconnect the run's processes when all is done."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _tell(text: str) -> None:
    data = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    dist.broadcast(torch.tensor([len(data)]), 0)
    dist.broadcast(data, 0)


def _hear() -> dict[str, Any]:
    length = torch.zeros(1, dtype=torch.int64)
    dist.broadcast(length, 0)
    data = torch.empty(int(length), dtype=torch.uint8)
    dist.broadcast(data, 0)
    return json.loads(data.numpy().tobytes())
