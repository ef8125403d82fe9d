"""A rank of two that trains by GSM on its own half of the data, and writes what it ended with."""

import sys

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import save_file
from sparse_nets import batch, two_layers
from torch.distributed import init_device_mesh
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from compress import sparse
from compress.errors import ModelError


def train(rank, compressed):
    model = two_layers(seed=rank)  # data parallelism begins with rank 0's weights
    network = DistributedDataParallel(model)
    if compressed:
        network.register_comm_hook(None, fp16_compress_hook)
    optimizer = sparse.GSM(network.named_parameters(), lr=0.1, keep=12, momentum=0.9)
    inputs, labels = (part.chunk(2)[rank] for part in batch())
    written = {}
    for step in range(6):
        optimizer.zero_grad()
        F.cross_entropy(network(inputs), labels).backward()
        optimizer.step()
        written |= {f"active.{step}.{k}": mask.to(torch.uint8) for k, mask in enumerate(sparse.active(optimizer))}
    masks = sparse.largest(network, 12)
    handle = masks.hold(network, optimizer)
    optimizer.step()
    handle.remove()
    assert not masks.broken(network)
    written |= {f"mask.{n}": m.to(torch.uint8) for n, m in masks.kept.items()}
    return written | {f"weight.{n}": p.detach() for n, p in model.named_parameters()}


def main(out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    sharded = distribute_tensor(torch.ones(4, 2), init_device_mesh("cpu", (2,)), [Shard(0)])
    try:
        sparse.GSM([torch.nn.Parameter(sharded)], lr=0.1, keep=1)
        raise AssertionError("a sharded tensor was taken")
    except ModelError as error:
        assert "whole tensors" in str(error)
    for kind in ("plain", "compressed"):
        save_file(train(rank, kind == "compressed"), f"{out}.{kind}.{rank}.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
