"""Find the layers of a network that take time, and write each as a small ONNX file at the widths to be measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from deploy.latency.profile import Probe
from deploy.latency.table import Activation, TimedLayer, sample_widths

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx

Precision = Literal["fp32", "int8"]

_ACTIVATIONS: Mapping[type[nn.Module], Activation] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
    nn.Sigmoid: "sigmoid",
}
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_OPSET = 18


@dataclass(frozen=True)
class PlacedLayer:
    """A layer where it stands in a network.

    Attributes:
        name: the module's name.
        layer: what it is but for its widths.
        dense: channels that it reads and makes.
        axes: the dimensions of parameters that hold both; of ``name.weight`` where they are not given.
    """

    name: str
    layer: TimedLayer
    dense: tuple[int, int]
    axes: tuple[tuple[str, int], tuple[str, int]] | None = None

    @property
    def reads(self) -> tuple[str, int]:
        """The dimension of a parameter that holds the channels which it reads."""
        return self.axes[0] if self.axes is not None else (f"{self.name}.weight", 1)

    @property
    def makes(self) -> tuple[str, int]:
        """The dimension of a parameter that holds the channels which it makes."""
        return self.axes[1] if self.axes is not None else (f"{self.name}.weight", 0)


def placed_layers(
    model: nn.Module, example: Tensor, forward: Callable[[nn.Module, Tensor], object] | None = None
) -> tuple[PlacedLayer, ...]:
    """Return every convolution, linear layer and attention block that runs, in the order in which they run.

    A transposed convolution is among them, but for one of several groups that reads more than a channel in each.

    Args:
        model: the network; it is run once in evaluation mode.
        example: (N, C, H, W).
        forward: what runs it, by default itself.
    """
    names = {module: name for name, module in model.named_modules()}
    seen: dict[nn.Module, tuple[int, ...]] = {}
    made_by: dict[int, nn.Module] = {}
    follows: dict[nn.Module, Activation] = {}
    held: list[object] = []  # a tensor that is gone may give its id to the next

    def note(module: nn.Module, given: tuple[object, ...], made: object) -> None:
        first = given[0] if given else None
        source = made_by.get(id(first))
        if isinstance(module, nn.Conv2d | nn.Conv1d | nn.Linear) and isinstance(first, Tensor):
            if type(module) in (nn.Conv2d, nn.Conv1d, nn.Linear):
                seen.setdefault(module, tuple(first.shape))
            source = module
        elif isinstance(module, nn.ConvTranspose2d | nn.ConvTranspose1d) and isinstance(first, Tensor):
            if module.groups in (1, module.in_channels) and module.groups in (1, module.out_channels):
                seen.setdefault(module, tuple(first.shape))
            source = module
        elif isinstance(module, nn.MultiheadAttention):
            if _is_packed_self_attention(module, given):
                assert isinstance(first, Tensor)
                seen.setdefault(module, tuple(first.shape if module.batch_first else first.transpose(0, 1).shape))
            source = None
        elif source is not None and type(module) in _ACTIVATIONS:
            follows.setdefault(source, _ACTIVATIONS[type(module)])
            source = None
        elif not isinstance(module, (*_NORMS, nn.Identity, nn.Dropout)):
            source = None
        held.append(made)
        if source is not None:
            made_by[id(made)] = source
        else:
            made_by.pop(id(made), None)

    leaves = [
        module for module in model.modules() if not any(module.children()) or isinstance(module, nn.MultiheadAttention)
    ]
    hooks = [leaf.register_forward_hook(note) for leaf in leaves]
    training = model.training
    try:
        model.eval()
        with torch.no_grad():
            model(example[:1]) if forward is None else forward(model, example[:1])
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return tuple(_placed(names[module], module, shape, follows.get(module, "none")) for module, shape in seen.items())


def _is_packed_self_attention(module: nn.MultiheadAttention, given: tuple[object, ...]) -> bool:
    """Tell whether a block attends to what it reads alone, with its three projections in one weight."""
    query = given[0] if given else None
    same = len(given) >= 3 and query is given[1] and query is given[2]
    return same and module.in_proj_weight is not None and isinstance(query, Tensor) and query.dim() == 3


def _placed(name: str, module: nn.Module, shape: tuple[int, ...], activation: Activation) -> PlacedLayer:
    if isinstance(module, nn.MultiheadAttention):
        inner, reads = module.in_proj_weight.shape[0] // 3, module.in_proj_weight.shape[1]
        bias = module.in_proj_bias is not None
        layer = TimedLayer(kind="attention", size=shape[1:-1], head=module.head_dim, bias=bias)
        return PlacedLayer(name, layer, (reads, inner), ((f"{name}.in_proj_weight", 1), (f"{name}.out_proj.weight", 1)))
    if isinstance(module, nn.Linear):
        layer = TimedLayer(kind="linear", size=shape[1:-1], activation=activation)
        return PlacedLayer(name, layer, (module.in_features, module.out_features))
    if isinstance(module, nn.ConvTranspose2d | nn.ConvTranspose1d):
        # Its weight holds what it reads first; one that is depthwise has a single axis.
        weight, depthwise = f"{name}.weight", module.groups > 1
        layer = TimedLayer(
            kind="transposed",
            size=shape[-len(module.kernel_size) :],
            kernel=tuple(module.kernel_size),
            stride=tuple(module.stride),
            padding=tuple(int(one) for one in module.padding),
            dilation=tuple(module.dilation),
            per_group=1 if depthwise else 0,
            activation=activation,
            output_padding=tuple(module.output_padding),
        )
        axes = ((weight, 0), (weight, 0 if depthwise else 1))
        return PlacedLayer(name, layer, (module.in_channels, module.out_channels), axes)
    assert isinstance(module, nn.Conv2d | nn.Conv1d)
    size = shape[-len(module.kernel_size) :]
    padding = module.padding
    if isinstance(padding, str):
        reach = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        padding = tuple(0 if padding == "valid" else one // 2 for one in reach)
    layer = TimedLayer(
        kind="conv",
        size=size,
        kernel=tuple(module.kernel_size),
        stride=tuple(module.stride),
        padding=tuple(padding),
        dilation=tuple(module.dilation),
        per_group=0 if module.groups == 1 else module.in_channels // module.groups,
        activation=activation,
    )
    return PlacedLayer(name, layer, (module.in_channels, module.out_channels))


def widths_of(one: PlacedLayer, fixed: frozenset[tuple[str, int]] = frozenset()) -> Iterator[tuple[int, int]]:
    """Yield the pairs of widths at which a layer is measured: along both axes, the other one as wide as it was.

    Args:
        one: the layer.
        fixed: (parameter, dimension) that no cut changes.
    """
    reads, makes = one.dense
    if one.layer.per_group:
        each = one.layer.per_group
        for groups in sample_widths(reads // each, finest=max(1, 8 // each)):
            yield groups * each, groups * each * makes // reads
        return
    yield one.dense
    if one.reads not in fixed:
        yield from ((width, makes) for width in sample_widths(reads) if width != reads)
    if one.makes not in fixed:
        # Whole heads at least: what lies between is read as the next one above.
        head = one.layer.head or 1
        widths = sample_widths(makes // head, finest=max(1, 8 // head))
        yield from ((reads, width * head) for width in widths if width * head != makes)


def probes_of(
    layers: Sequence[PlacedLayer],
    precisions: Mapping[str, Precision],
    fixed: frozenset[tuple[str, int]] = frozenset(),
) -> tuple[Probe, ...]:
    """List the small files for a network: each distinct layer once, at the widths of all places that it has.

    Args:
        layers: of the network.
        precisions: the precision in which each of them ships, by name.
        fixed: see ``widths_of``.
    """
    wanted: dict[tuple[str, str, int, int], tuple[TimedLayer, Precision]] = {}
    for one in layers:
        for reads, makes in widths_of(one, fixed):
            precision = precisions[one.name]
            wanted[one.layer.key, precision, reads, makes] = (one.layer, precision)
    return tuple(
        Probe(file=f"probe-{number:04d}.onnx", layer=layer, inputs=reads, outputs=makes, precision=precision)
        for number, ((_, _, reads, makes), (layer, precision)) in enumerate(wanted.items())
    )


def write_probe(probe: Probe, path: Path) -> None:
    """Write one layer, with what follows it, as an ONNX file; in int8 its numbers come and go as eight bits."""
    import onnx
    from onnx import TensorProto, helper

    layer, int8 = probe.layer, probe.precision == "int8"
    kind = TensorProto.UINT8 if int8 else TensorProto.FLOAT
    graph = _GraphOfProbe(int8)
    source = graph.opened("x")
    make = graph.attention if layer.kind == "attention" else graph.product
    made = make(layer, source, probe.inputs, probe.outputs)
    result = graph.closed(graph.activated(layer.activation, made))
    channels_last = layer.kind not in ("conv", "transposed")
    reads: list[str | int | None] = (
        ["batch", *layer.size, probe.inputs] if channels_last else ["batch", probe.inputs, *layer.size]
    )
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "probe",
            [helper.make_tensor_value_info("x", kind, reads)],
            [helper.make_tensor_value_info(result, kind, None)],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=10,
    )
    onnx.save(model, path)


class _GraphOfProbe:
    """The nodes and constants of one small file while it is written."""

    def __init__(self, int8: bool) -> None:
        self.int8 = int8
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def opened(self, name: str) -> str:
        """Return the tensor in fp32 that a quantised input stands for."""
        return self._node("DequantizeLinear", [name, *self._scale(0.02, 0, np.uint8)]) if self.int8 else name

    def closed(self, name: str) -> str:
        """Return the quantised tensor that is given out."""
        return self._node("QuantizeLinear", [name, *self._scale(0.02, 0, np.uint8)]) if self.int8 else name

    def product(self, layer: TimedLayer, source: str, reads: int, makes: int) -> str:
        """Add the convolution or the linear layer."""
        if layer.kind == "conv":
            each = layer.per_group or reads
            inputs = [source, self._weights((makes, each, *layer.kernel)), *self._bias(layer, makes)]
            return self._node(
                "Conv",
                inputs,
                group=reads // each,
                kernel_shape=layer.kernel,
                strides=layer.stride,
                pads=(*layer.padding, *layer.padding),
                dilations=layer.dilation,
            )
        if layer.kind == "transposed":
            each = 1 if layer.per_group else makes
            inputs = [source, self._weights((reads, each, *layer.kernel)), *self._bias(layer, makes)]
            return self._node(
                "ConvTranspose",
                inputs,
                group=reads if layer.per_group else 1,
                kernel_shape=layer.kernel,
                strides=layer.stride,
                pads=(*layer.padding, *layer.padding),
                dilations=layer.dilation,
                output_padding=layer.output_padding,
            )
        if not layer.size:
            inputs = [source, self._weights((makes, reads)), *self._bias(layer, makes)]
            return self._node("Gemm", inputs, transB=1)
        return self._linear(layer, source, reads, makes)

    def attention(self, layer: TimedLayer, source: str, reads: int, inner: int) -> str:
        """Add a block of self-attention: one projection into all heads, the heads, and one projection out of them."""
        heads = max(1, inner // layer.head)
        each = inner // heads
        packed = self._linear(layer, source, reads, 3 * heads * each)
        tokens = (layer.size[0], 3, heads, each)
        apart = self._node("Reshape", [packed, self._constant(np.array([-1, *tokens], np.int64))])
        turned = self._node("Transpose", [apart], perm=[2, 0, 3, 1, 4])
        query, key, value = (
            self._node("Gather", [turned, self._constant(np.array(which, np.int64))], axis=0) for which in range(3)
        )
        scaled = self._node("Mul", [query, self._constant(np.array(each**-0.5, np.float32))])
        across = self._node("Transpose", [key], perm=[0, 1, 3, 2])
        weights = self._node("Softmax", [self._node("MatMul", [scaled, across])], axis=-1)
        mixed = self._node("Transpose", [self._node("MatMul", [weights, value])], perm=[0, 2, 1, 3])
        joined = self._node("Reshape", [mixed, self._constant(np.array([-1, layer.size[0], heads * each], np.int64))])
        return self._linear(layer, self.opened(self.closed(joined)) if self.int8 else joined, heads * each, reads)

    def _linear(self, layer: TimedLayer, source: str, reads: int, makes: int) -> str:
        made = self._node("MatMul", [source, self._weights((reads, makes))])
        return self._node("Add", [made, self._constant(np.zeros(makes, np.float32))]) if layer.bias else made

    def activated(self, activation: Activation, name: str) -> str:
        """Add what follows the layer."""
        if activation == "relu":
            return self._node("Relu", [name])
        if activation == "relu6":
            bounds = [self._constant(np.array(value, np.float32)) for value in (0.0, 6.0)]
            return self._node("Clip", [name, *bounds])
        if activation == "hardswish":
            return self._node("HardSwish", [name])
        if activation == "sigmoid":
            return self._node("Sigmoid", [name])
        return self._node("Mul", [name, self._node("Sigmoid", [name])]) if activation == "silu" else name

    def _weights(self, shape: tuple[int, ...]) -> str:
        if self.int8:
            values = np.random.default_rng(0).integers(-127, 128, shape, np.int8)
            return self._node("DequantizeLinear", [self._constant(values), *self._scale(0.001, 0, np.int8)])
        # One value, spread out by the runtime when it loads the file: the file stays small.
        value = self._constant(np.full((1,) * len(shape), 0.01, np.float32))
        return self._node("Expand", [value, self._constant(np.array(shape, np.int64))])

    def _bias(self, layer: TimedLayer, makes: int) -> list[str]:
        if not layer.bias:
            return []
        if self.int8:
            values = self._constant(np.zeros(makes, np.int32))
            return [self._node("DequantizeLinear", [values, *self._scale(0.02 * 0.001, 0, np.int32)])]
        return [self._constant(np.zeros(makes, np.float32))]

    def _scale(self, scale: float, zero: int, kind: type[np.integer]) -> list[str]:
        return [self._constant(np.array(scale, np.float32)), self._constant(np.array(zero, kind))]

    def _constant(self, values: np.ndarray) -> str:
        from onnx import numpy_helper

        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def _node(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        from onnx import helper

        name = f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name
