"""Name a network by what it computes and not by its weights: one trained anew is still the same yardstick."""

from __future__ import annotations

import hashlib
from pathlib import Path

from deploy.onnx.protobuf import fields
from deploy.onnx.wire import read_onnx
from deploy.onnx.wire_graph import parse_graph


def structure_of(path: Path) -> str | None:
    """Return a hash of the operators, their attributes, how they are joined, and the shapes of the constants.

    Two files have the same one if they differ in the values of weights or in names alone, and so take equally long.
    None for a file that cannot be read so.

    Raises:
        DeployError: there is no such file, or it cannot be read.
    """
    data = read_onnx(path)
    try:
        graph = parse_graph(data)
        opsets = sorted(bytes(value) for number, value in fields(memoryview(data)) if number == 8)
    except (ValueError, IndexError, TypeError, KeyError):
        return None
    known = {name: f"input {index} {shape}" for index, (name, shape) in enumerate(graph.inputs.items())}
    known |= {name: f"constant {tensor.dtype} {tensor.shape}" for name, tensor in graph.tensors.items()}
    said = [repr(opsets), repr([*graph.inputs.values()])]
    for index, node in enumerate(graph.nodes):
        sources = [known.get(name, "nothing") for name in node.inputs]
        said.append(repr((node.op_type, sources, sorted(node.ints.items()), sorted(node.strings.items()))))
        known |= {name: f"node {index} output {place}" for place, name in enumerate(node.outputs)}
    return hashlib.sha256("\n".join(said).encode()).hexdigest()
