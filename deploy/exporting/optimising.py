"""Run the exporter's optimiser without the rewrites of it that are exact only almost."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx_ir as ir

_HIDDEN = "niwaki.hidden"  # a domain of which no optimiser knows any operator
_NEUTRAL = {"Add": 0.0, "Sub": 0.0, "Mul": 1.0, "Div": 1.0}
_LOWER = {"Clip": 1, "Max": 1}  # which input of an operator bounds another
_UPPER = {"Clip": 2, "Min": 1}
_RELATIVE, _ABSOLUTE = 1e-4, 1e-6  # ten times and more of what the optimiser's patterns take for equal


def optimise(program: Any) -> None:
    """Optimise an exported program in place; whatever its file computes afterwards is what it computed before.

    Of the optimiser's rewrites (constants folded, no-ops removed, BatchNorm and Pad moved into convolutions, Clip and
    Relu merged, slices and casts simplified) two kinds change values. It takes a number within 1e-8 of 0 for 0 and one
    within 1e-5 of 1 for 1, so the addition that guards a division goes; and it merges two clips that have no number in
    common into one whose bounds lie the wrong way round. The constants of such nodes are hidden from it.

    Args:
        program: what ``torch.onnx.export(..., optimize=False)`` returned.
    """
    import onnx_ir.passes.common as passes
    from onnxscript.optimizer import fold_constants_ir

    # Only now are constants single values: 1e-4 * 1e-4 stands there as a product.
    passes.InlinePass()(program.model)
    fold_constants_ir(program.model)
    hidden = False
    for node in list(program.model.graph.all_nodes()):
        for place in _places(node):
            _hide(node, place)
            hidden = True
    if hidden:
        program.model.opset_imports[_HIDDEN] = 1
    program.optimize()
    for node in list(program.model.graph.all_nodes()):
        if node.domain == _HIDDEN:
            node.outputs[0].replace_all_uses_with(node.inputs[0], replace_graph_outputs=True)
            node.graph.remove(node, safe=True)
    program.model.opset_imports.pop(_HIDDEN, None)
    for node in list(program.model.graph.all_nodes()):
        _keep_finite(node)


def _keep_finite(node: ir.Node) -> None:
    """Make of the logarithm of a sigmoid the softplus that it is: a runtime's sigmoid of -20 is 0 and has none."""
    import onnx_ir as ir

    before = node.inputs[0].producer() if node.op_type == "Log" and node.inputs[0] is not None else None
    if before is None or before.op_type != "Sigmoid" or node.graph is None:
        return
    value = before.inputs[0]
    negated = ir.Node("", "Neg", [value])
    positive = ir.Node("", "Softplus", negated.outputs)
    for one in (*negated.outputs, *positive.outputs):
        one.shape, one.type = node.outputs[0].shape, node.outputs[0].type
    node.graph.insert_before(node, [negated, positive])
    node.op_type = "Neg"
    node.replace_input_with(0, positive.outputs[0])
    if not before.outputs[0].uses() and not before.outputs[0].is_graph_output():
        before.graph.remove(before, safe=True)  # type: ignore[union-attr]  # it is in the graph of its reader


def _places(node: ir.Node) -> Iterator[int]:
    """Yield which inputs of ``node`` are constants that the optimiser would misjudge."""
    if (neutral := _NEUTRAL.get(node.op_type)) is not None:
        for place, value in enumerate(node.inputs):
            number = _number(value)
            if number is None or number == neutral:
                continue
            if math.isclose(number, neutral, rel_tol=_RELATIVE, abs_tol=0.0 if neutral else _ABSOLUTE):
                yield place
    elif (bounding := _UPPER.get(node.op_type)) is not None and (upper := _bound(node, bounding)) is not None:
        above = [_bound(reader, _LOWER.get(reader.op_type)) for reader, _ in node.outputs[0].uses()]
        if any(lower is not None and lower > upper for lower in above):
            yield bounding


def _bound(node: ir.Node, place: int | None) -> float | None:
    """Return the constant by which ``node`` bounds what it reads; that of a ReLU is 0."""
    if node.op_type == "Relu":
        return 0.0
    return _number(node.inputs[place]) if place is not None and place < len(node.inputs) else None


def _number(value: ir.Value | None) -> float | None:
    import onnx_ir as ir

    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    if tensor is None or tensor.size != 1 or not tensor.dtype.is_floating_point():
        return None
    return float(tensor.numpy().item())


def _hide(node: ir.Node, place: int) -> None:
    """Put an operator that nothing can fold between ``node`` and one of its inputs."""
    import onnx_ir as ir

    value = node.inputs[place]
    assert value is not None and node.graph is not None
    cover = ir.node("Hidden", [value], domain=_HIDDEN)
    cover.outputs[0].type, cover.outputs[0].shape = value.type, value.shape
    node.graph.insert_before(node, cover)
    node.replace_input_with(place, cover.outputs[0])
