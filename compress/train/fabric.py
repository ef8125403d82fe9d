"""Processes, device and precision, by Lightning Fabric."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy
from torch import nn

from compress.errors import MissingError, TrainingError

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"

PATIENCE = timedelta(days=30)
"""How long a process waits for the others: what rank 0 does alone, such as benchmarking, may take hours."""


def make_fabric(device: str = "auto", precision: str = "32-true") -> Fabric:
    """Set up this process, one of several if torchrun started it; raise MissingError if the device is missing."""
    if device == "cuda" and not torch.cuda.is_available():
        raise MissingError("device: cuda, but torch sees no GPU here; set device: auto or cpu.")
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks == 1:
        return Fabric(accelerator=device, devices=1, precision=precision)  # type: ignore[arg-type]
    here = int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
    if device != "cpu" and 0 < torch.cuda.device_count() < here:
        raise MissingError(f"{here} processes share {torch.cuda.device_count()} GPU(s) here; start one for each GPU.")
    for name in ("lightning.fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    gpu = device != "cpu" and torch.cuda.is_available()
    fabric = Fabric(
        accelerator=device,
        devices=here,
        num_nodes=ranks // here,
        # What the processes exchange beside gradients does not go through the GPU.
        strategy=DDPStrategy(timeout=PATIENCE, process_group_backend="cpu:gloo,cuda:nccl" if gpu else "gloo"),
        precision=precision,  # type: ignore[arg-type]
    )
    fabric.launch()
    return fabric


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Inside, make torch use only algorithms that return the same bits each time; restore its settings afterwards.

    Raises:
        TrainingError: an operator has no such algorithm on this device.
    """
    if not wanted:
        yield
        return
    cudnn = torch.backends.cudnn
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        cudnn.deterministic,
        cudnn.benchmark,
    )
    workspace = os.environ.get(CUBLAS)
    # cuBLAS reads it when it starts; without it a matrix product refuses under deterministic algorithms.
    os.environ.setdefault(CUBLAS, ":4096:8")
    try:
        torch.use_deterministic_algorithms(True)
        cudnn.deterministic, cudnn.benchmark = True, False
        yield
    except RuntimeError as error:
        if "does not have a deterministic implementation" not in str(error):
            raise
        name = str(error).split(" does not")[0].split()[-1]
        raise TrainingError(
            f"deterministic: true, but {name} has no deterministic algorithm on this device; set deterministic: false, "
            "or device: cpu."
        ) from None
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.deterministic, cudnn.benchmark = before[2:]
        if workspace is None:
            os.environ.pop(CUBLAS, None)


def is_first() -> bool:
    """Whether this process writes files: it is alone, or rank 0."""
    return int(os.environ.get("RANK", "0")) == 0


def agree(*modules: nn.Module) -> None:
    """Broadcast the parameters and buffers of rank 0 to every rank, bit by bit."""
    if dist.is_initialized():
        for module in modules:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, 0)
