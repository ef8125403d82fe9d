"""Processes, device and precision, by Lightning Fabric."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from torch import nn

from compress.errors import MissingError


def make_fabric(device: str = "auto", precision: str = "32-true") -> Fabric:
    """This process on its device, one of several where torchrun started it. Raises MissingError without that device."""
    if device == "cuda" and not torch.cuda.is_available():
        raise MissingError("device: cuda, but torch sees no GPU here; set device: auto or cpu.")
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks == 1:
        return Fabric(accelerator=device, devices=1, precision=precision)  # type: ignore[arg-type]
    here = int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
    if device != "cpu" and 0 < torch.cuda.device_count() < here:
        raise MissingError(f"{here} processes share {torch.cuda.device_count()} GPU(s) here; start one for each GPU.")
    fabric = Fabric(
        accelerator=device,
        devices=here,
        num_nodes=ranks // here,
        strategy="ddp",
        precision=precision,  # type: ignore[arg-type]
    )
    fabric.launch()
    return fabric


def is_first() -> bool:
    """Whether this process writes: it is alone, or rank 0."""
    return int(os.environ.get("RANK", "0")) == 0


def agree(*modules: nn.Module) -> None:
    """Gives every rank the parameters and buffers of rank 0, to the bit."""
    if dist.is_initialized():
        for module in modules:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, 0)
