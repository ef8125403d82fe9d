"""Pointwise operators: y[i] = f(a[i], b[i], ...). Channels that meet are equal; each says what becomes of a zero."""

from __future__ import annotations

from collections.abc import Callable

import torch

from compress.prune.labels import Flow, Layer
from compress.prune.rules.base import Call, Labeller, Rule, meet, named, tensors


def pointwise(zero: Callable[[list[bool]], bool]) -> Rule:
    """y[i] = f(a[i], b[i], ...): channels that meet are equal; ``zero`` tells whether zeros stay zero."""

    def rule(tracer: Labeller, call: Call) -> Flow:
        operands = tensors(call.args)
        flows = [tracer.flow(t) for t in operands]
        if len(flows) == 1:
            return _alone(tracer, flows[0], zero([True]))
        if len(flows) == 2 and len(flows[0].layers) == len(flows[1].layers) == 1:
            (a,), (b,) = flows[0].layers, flows[1].layers
            if a.slot is None and b.slot is None and a.labels.shape == b.labels.shape:
                # Two activations with the same channels, as in a residual stage.
                tracer.equate(a.vector, b.vector)
                still = zero([a.zero, b.zero])
                return flows[0] if still == a.zero else Flow((Layer(a.labels, still),))
        layers = meet(
            tracer,
            [(flow, _spread(t)) for flow, t in zip(flows, operands, strict=True)],
            tensors(call.out)[0].dim(),
            zero,
        )
        return Flow(layers, next((f.origin for f in flows if f.origin), ""), all(f.uniform for f in flows))

    return rule


def _spread(tensor: torch.Tensor) -> tuple[int, ...]:
    """The shape, with 1 where one value was expanded: there it meets any channel."""
    return tuple(1 if step == 0 else n for n, step in zip(tensor.shape, tensor.stride(), strict=True))


def _alone(tracer: Labeller, flow: Flow, still_zero: bool) -> Flow:
    for layer in flow.layers:
        tracer.role(layer.slot, "producer")
    if all(layer.slot is None and (still_zero or not layer.zero) for layer in flow.layers):
        return flow
    layers = tuple(Layer(layer.labels, layer.zero and still_zero) for layer in flow.layers)
    return Flow(layers, flow.origin, flow.uniform)


keeps_zero = pointwise(all)  # f(0, 0) = 0
loses_zero = pointwise(lambda _: False)  # f(0) is some constant
multiplies = pointwise(any)  # 0 * b = 0
first_zero = pointwise(lambda zeros: zeros[0])  # 0 / b = 0
rest_zero = pointwise(lambda zeros: all(zeros[1:]))  # where(c, 0, 0) = 0
adds_product = pointwise(lambda zeros: zeros[0] and (zeros[1] or zeros[-1]))  # 0 + v * 0 * c = 0
adds_quotient = pointwise(lambda zeros: zeros[0] and zeros[1])  # 0 + v * 0 / c = 0
second_zero = pointwise(lambda zeros: zeros[1])  # drawn with probability 0 = 0


def without_zero(tracer: Labeller, value: object, what: str = "value") -> None:
    """Protect channels whose zeros would be infinite, or have no gradient: 1 / 0, log 0, the slope of sqrt at 0."""
    for tensor in tensors(value):
        for layer in tracer.flow(tensor).layers:
            if layer.slot is not None:
                # A parameter is cut like any other, but cannot be masked.
                tracer.role(layer.slot, "statistic")
            elif layer.zero:
                tracer.protect(layer.labels, f"a masked channel has an infinite {what} on the way")


def pole(tracer: Labeller, call: Call) -> Flow:
    """y = f(x) where f(0) is infinite."""
    without_zero(tracer, call.args[0])
    return loses_zero(tracer, call)


def root(tracer: Labeller, call: Call) -> Flow:
    """y = sqrt(x): zero stays zero, where the slope is infinite."""
    without_zero(tracer, call.args[0], "gradient")
    return keeps_zero(tracer, call)


def divide(tracer: Labeller, call: Call) -> Flow:
    """y = a / b, and its remainder: 0 / b = 0."""
    without_zero(tracer, call.args[1])
    return (first_zero if tensors(call.args[:1]) else loses_zero)(tracer, call)


def add_quotient(tracer: Labeller, call: Call) -> Flow:
    """y = a + v * b / c."""
    without_zero(tracer, call.args[2])
    return adds_quotient(tracer, call)


def draw(tracer: Labeller, call: Call) -> Flow:
    """y = 1 with probability p, else 0: zero where p = 0, whatever x is if p is given beside it."""
    if len(call.args) > 1 and tensors(call.args[1]):
        return second_zero(tracer, call)
    chance = call.arg(1, "p", 0.5 if call.name == "aten.bernoulli_" else 0)
    return (keeps_zero if chance == 0 else loses_zero)(tracer, call)


def add(tracer: Labeller, call: Call) -> Flow:
    """y = a + b: zero where both are; a number added makes a constant."""
    both = len(tensors(call.args)) > 1 or call.arg(1, "other") == 0
    return (keeps_zero if both else loses_zero)(tracer, call)


def power(tracer: Labeller, call: Call) -> Flow:
    """y = x ** n: zero stays zero for a positive exponent."""
    exponent = call.arg(1, "exponent")
    if (tensors(exponent) and tensors(call.args[:1])) or (isinstance(exponent, int | float) and exponent < 0):
        without_zero(tracer, call.args[0])
    elif isinstance(exponent, int | float) and 0 < exponent < 1:
        without_zero(tracer, call.args[0], "gradient")
    return (keeps_zero if isinstance(exponent, int | float) and exponent > 0 else loses_zero)(tracer, call)


def clamp(tracer: Labeller, call: Call) -> Flow:
    """y = min(max(x, low), high): zero stays zero where low <= 0 <= high."""
    low, high = call.arg(1, "min"), call.arg(2, "max")
    if call.name.startswith("aten.clamp_max"):
        low, high = None, call.arg(1, "max")
    if call.name.startswith("aten.hardtanh"):
        low, high = call.arg(1, "min_val", -1), call.arg(2, "max_val", 1)
    inside = not tensors((low, high)) and (low is None or low <= 0) and (high is None or high >= 0)
    return (keeps_zero if inside else loses_zero)(tracer, call)


def fill(tracer: Labeller, call: Call) -> Flow:
    """y = value where masked, else x: a constant in every channel unless the value is 0."""
    value = call.arg(2, "value")
    return (first_zero if isinstance(value, int | float) and value == 0 else loses_zero)(tracer, call)


def choose(tracer: Labeller, call: Call) -> Flow:
    """y = a where c, else b: zero where both are."""
    numbers = [v for v in call.args[1:] if not tensors(v)]
    return (rest_zero if all(v == 0 for v in numbers) else loses_zero)(tracer, call)


def zeros(tracer: Labeller, call: Call) -> Flow:
    """y = 0 in the shape of x."""
    return tracer.flow(call.args[0]).with_zero(True)


RULES: dict[str, Rule] = {
    **named(
        keeps_zero,
        "relu relu_ relu6 hardswish hardswish_ silu silu_ gelu gelu_ leaky_relu leaky_relu_ elu elu_ selu selu_ celu "
        "celu_ mish mish_ tanh tanh_ neg neg_ abs abs_ square sign floor ceil round trunc maximum minimum "
        "hardshrink softshrink erf expm1 log1p sin atan logical_and logical_or nan_to_num",
    ),
    **named(
        loses_zero,
        "sigmoid sigmoid_ hardsigmoid hardsigmoid_ exp exp_ exp2 softplus cos rsub log_sigmoid_forward "
        "eq ne lt le gt ge logical_not isnan isfinite bitwise_and bitwise_or bitwise_not",
    ),
    **named(multiplies, "mul mul_"),
    **named(pole, "rsqrt rsqrt_ reciprocal log log2 logit"),
    **named(root, "sqrt sqrt_"),
    **named(first_zero, "_prelu_kernel"),
    **named(divide, "div div_ true_divide floor_divide remainder fmod"),
    **named(draw, "bernoulli bernoulli_"),
    **named(choose, "where"),
    **named(adds_product, "addcmul addcmul_"),
    **named(adds_quotient, "lerp lerp_"),
    **named(add_quotient, "addcdiv addcdiv_"),
    **named(add, "add add_ sub sub_"),
    **named(power, "pow pow_"),
    **named(clamp, "clamp clamp_ clamp_min clamp_min_ clamp_max clamp_max_ hardtanh hardtanh_"),
    **named(fill, "masked_fill masked_fill_"),
    **named(zeros, "zero_"),
}
