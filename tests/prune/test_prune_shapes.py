"""The shapes that common operators are said to give: those of torch, or none, and none where torch refuses."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from compress.prune.dispatch import operator
from compress.prune.rules import tensors
from compress.prune.shapes import SHAPES

pytestmark = pytest.mark.heavy

A = torch.ops.aten
REFUSALS = (RuntimeError, IndexError, ValueError, TypeError, NotImplementedError)
DRAWN = settings(max_examples=120, deadline=None, derandomize=True)

FLOATS = st.sampled_from([torch.float32, torch.float64])
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool])
SIZES = st.lists(st.integers(0, 4), min_size=0, max_size=5)
RARELY = st.sampled_from([False] * 7 + [True])
TESTED = set()
"""Operators that the test which runs has compared."""
DECLARED = {}
"""Test -> the operators that it says it compares."""


def of(*names):
    """Says which operators a test compares; one that takes them by parameter compares one of them each time."""

    def declare(test):
        DECLARED[test.__name__] = set(names)
        return test

    return declare


@pytest.fixture(autouse=True)
def declared(request):
    """Holds each test to what it says."""
    TESTED.clear()
    yield
    said = DECLARED.get(request.function.__name__)
    if said is not None:
        assert said >= TESTED if "name" in request.fixturenames else said == TESTED
        assert TESTED


def tensor(shape, dtype=torch.float32):
    return torch.ones(shape, dtype=dtype)


def on_meta(value):
    if isinstance(value, torch.Tensor):
        return value.to("meta")
    return [on_meta(v) for v in value] if isinstance(value, list) else value


def agrees(func, *args, **named):
    """What torch gives on the CPU and on the meta device is what is said, where anything is said; True where it is."""
    key = str(func) if str(func) in SHAPES else str(func.overloadpacket)
    TESTED.add(key)
    shape = operator(func).shape
    assert shape is SHAPES[key]
    metas = [on_meta(a) for a in args]
    said = refused(shape, *metas, **named)
    real = refused(func, *[a.clone() if isinstance(a, torch.Tensor) else a for a in args], **named)
    if said is None:
        return False
    assert real is not None, "torch refuses what is given a shape"
    meta = func(*[on_meta(a) for a in args], **named)
    # The statistics that a norm remembers for its backward pass are not the same everywhere.
    assert described(said) in (described(real), described(meta))
    assert described(said)[0] == described(real)[0] == described(meta)[0]
    assert all(t.is_meta for t in tensors(said))
    if str(func.overloadpacket).endswith("_"):
        assert said is metas[0]
    return True


def described(value):
    return [(tuple(t.shape), t.dtype) for t in tensors(value)]


def refused(func, *args, **named):
    """None where it gives nothing, or refuses its arguments."""
    try:
        return func(*args, **named)
    except REFUSALS:
        return None


# Convolutions ---------------------------------------------------------------------------------------------


@st.composite
def convolutions(draw):
    n = draw(st.integers(1, 3))
    groups, inner, outer = (draw(st.integers(1, 3)) for _ in range(3))
    several = lambda low, high: draw(st.lists(st.integers(low, high), min_size=n, max_size=n))
    channels = groups * inner + draw(RARELY)
    made = groups * outer + draw(RARELY)
    x = tensor([draw(st.integers(0, 2)), channels, *several(1, 7)], draw(FLOATS))
    transposed = draw(RARELY)
    weight = tensor([made, inner, *several(1, 3)], torch.float64 if draw(RARELY) else x.dtype)
    bias = tensor([made + draw(RARELY)], x.dtype) if draw(st.booleans()) else None
    stride, padding, dilation = several(1, 3), several(0, 2), several(1, 2)
    if draw(RARELY):
        stride, padding, dilation = ([v[0]] if draw(st.booleans()) else v for v in (stride, padding, dilation))
    if draw(RARELY):
        x = x.flatten(0, 1)
    return x, weight, bias, stride, padding, dilation, transposed, [0] * n, groups


@of("aten.convolution")
@given(convolutions())
@DRAWN
def test_a_convolution(args):
    agrees(A.convolution.default, *args)


def plain_convolution(x, w, bias=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1):
    return agrees(
        A.convolution.default, tensor(x), tensor(w), bias, list(stride), list(padding), list(dilation), False, [0, 0],
        groups,
    )  # fmt: skip


def test_a_convolution_is_known_and_one_whose_weight_does_not_fit_is_left_to_torch():
    assert plain_convolution((2, 6, 8, 8), (4, 6, 3, 3), tensor(4))
    assert plain_convolution((2, 6, 8, 8), (6, 1, 3, 3), groups=6)
    assert not plain_convolution((2, 5, 8, 8), (4, 6, 3, 3)), "columns"
    assert not plain_convolution((2, 6, 8, 8), (4, 6, 3, 3), tensor(5)), "bias"
    assert not plain_convolution((2, 6, 8, 8), (4, 2, 3, 3), groups=3), "rows"
    assert not plain_convolution((2, 4, 8, 8), (6, 1, 3, 3), groups=6), "groups"
    assert not plain_convolution((2, 6, 2, 2), (4, 6, 3, 3)), "positions"


@pytest.mark.parametrize("settings", [{"stride": (0, 1)}, {"padding": (-1, 0)}, {"dilation": (0, 1)}], ids=str)
def test_a_convolution_with_impossible_settings_is_left_to_torch(settings):
    assert not plain_convolution((2, 6, 8, 8), (4, 6, 3, 3), **settings)


# Norms ----------------------------------------------------------------------------------------------------


@st.composite
def norms(draw):
    c = draw(st.integers(1, 4))
    x = tensor([draw(st.integers(1, 3)), c, *draw(st.lists(st.integers(1, 3), max_size=3))], draw(FLOATS))
    own = lambda: tensor([c + draw(RARELY)], x.dtype if not draw(RARELY) else torch.float32)
    weight, bias = (own(), own()) if draw(st.booleans()) else (None, None)
    mean, var = (own(), own()) if draw(st.booleans()) else (None, None)
    return x, weight, bias, mean, var


@of("aten.native_batch_norm", "aten._native_batch_norm_legit_no_training")
@given(norms(), st.booleans())
@DRAWN
def test_a_batch_norm(args, training):
    agrees(A.native_batch_norm.default, *args, training, 0.1, 1e-5)
    if args[3] is not None:
        agrees(A._native_batch_norm_legit_no_training.default, *args, 0.1, 1e-5)


@pytest.mark.parametrize("which", range(4))
def test_a_batch_norm_of_another_size_is_left_to_torch(which):
    own = [tensor(6) for _ in range(4)]
    assert agrees(A._native_batch_norm_legit_no_training.default, tensor((2, 6, 4, 4)), *own, 0.1, 1e-5)
    own[which] = tensor(5)
    assert not agrees(A._native_batch_norm_legit_no_training.default, tensor((2, 6, 4, 4)), *own, 0.1, 1e-5)


@of("aten.native_layer_norm", "aten._fused_rms_norm")
@given(SIZES, st.integers(0, 3), RARELY, st.booleans(), st.booleans(), FLOATS)
@DRAWN
def test_a_layer_norm_and_an_rms_norm(size, over, wrong, weighted, shifted, dtype):
    shape = size[len(size) - over :] if over else []
    if wrong and shape:
        shape = [*shape[:-1], shape[-1] + 1]
    weight = tensor(shape, dtype) if weighted else None
    bias = tensor(shape, dtype) if shifted else None
    agrees(A.native_layer_norm.default, tensor(size, dtype), shape, weight, bias, 1e-5)
    agrees(A._fused_rms_norm.default, tensor(size, dtype), shape, weight, 1e-5)


@pytest.mark.parametrize(("x", "shape", "w"), [((2, 5), [6], (6,)), ((2, 6), [6], (5,)), ((6, 6), [5], (5,))])
def test_a_layer_norm_of_another_size_is_left_to_torch(x, shape, w):
    assert agrees(A.native_layer_norm.default, tensor((2, 6)), [6], tensor(6), tensor(6), 1e-5)
    assert not agrees(A.native_layer_norm.default, tensor(x), shape, tensor(w), None, 1e-5)
    assert not agrees(A._fused_rms_norm.default, tensor(x), shape, tensor(w), None)


# Pointwise ------------------------------------------------------------------------------------------------

UNARY = ["relu", "gelu", "silu", "sigmoid", "hardswish", "hardsigmoid", "tanh", "exp"]


@of(*(f"aten.{name}" for name in UNARY))
@pytest.mark.parametrize("name", UNARY)
@given(SIZES, DTYPES)
@settings(DRAWN, max_examples=40)
def test_a_function_of_one_tensor(name, size, dtype):
    agrees(getattr(A, name).default, tensor(size, dtype))


IN_PLACE = ["relu_", "silu_", "hardswish_", "hardtanh_", "hardsigmoid_", "sigmoid_", "tanh_", "leaky_relu_"]


@of(*(f"aten.{name}" for name in IN_PLACE))
@pytest.mark.parametrize("name", IN_PLACE)
@given(SIZES, DTYPES)
@settings(DRAWN, max_examples=40)
def test_a_function_of_one_tensor_in_place(name, size, dtype):
    agrees(getattr(A, name).default, tensor(size, dtype))


@st.composite
def broadcast(draw):
    """A shape and one that may or may not broadcast with it."""
    size = draw(SIZES)
    other = [1 if draw(RARELY) else n + draw(RARELY) for n in size]
    return size, other[draw(st.integers(0, 1)) * draw(st.integers(0, 3)) :]


BINARY = {
    "add": "aten.add.Tensor",
    "sub": "aten.sub.Tensor",
    "mul": "aten.mul.Tensor",
    "add_": "aten.add_",
    "mul_": "aten.mul_",
}


@of(*BINARY.values())
@pytest.mark.parametrize("name", BINARY)
@given(broadcast(), DTYPES, DTYPES, st.booleans())
@settings(DRAWN, max_examples=60)
def test_two_tensors(name, shapes, left, right, swapped):
    one, two = reversed(shapes) if swapped else shapes
    agrees(getattr(A, name).Tensor, tensor(one, left), tensor(two, right))
    agrees(getattr(A, name).Tensor, tensor(one, left), tensor(two, left))


@pytest.mark.parametrize("name", ["add", "mul", "add_", "mul_"])
def test_channels_that_do_not_meet_are_left_to_torch(name):
    func = getattr(A, name).Tensor
    assert agrees(func, tensor((2, 6, 4, 4)), tensor((2, 6, 4, 4)))
    assert not agrees(func, tensor((2, 6, 4, 4)), tensor((2, 5, 4, 4)))
    assert not agrees(func, tensor((2, 6, 4, 4)), tensor((5, 1, 1)))


NUMBERS = st.sampled_from([2, 0.5, True])


@of("aten.mul.Scalar", "aten.clamp_min", "aten.add_", "aten.mul_")
@given(SIZES, DTYPES, NUMBERS)
@DRAWN
def test_a_tensor_and_a_number(size, dtype, number):
    agrees(A.mul.Scalar, tensor(size, dtype), number)
    agrees(A.clamp_min.default, tensor(size, dtype), number)
    agrees(A.clamp_min.Tensor, tensor(size, dtype), tensor(size, dtype))
    for func in (A.add_.Scalar, A.mul_.Scalar):
        agrees(func, tensor(size, dtype), number)


# Reductions and products ----------------------------------------------------------------------------------

DIMS = st.lists(st.integers(-3, 3), max_size=3)


@of("aten.mean.dim", "aten.linalg_vector_norm")
@given(SIZES, DIMS, st.booleans(), DTYPES)
@example([4], [], False, torch.float32)
@DRAWN
def test_a_reduction(size, dims, keep, dtype):
    agrees(A.mean.dim, tensor(size, dtype), dims, keep)
    agrees(A.mean.dim, tensor(size, dtype), dims)
    agrees(A.linalg_vector_norm.default, tensor(size, dtype), 2, dims, keep)
    agrees(A.linalg_vector_norm.default, tensor(size, dtype))


@of("aten._softmax", "aten._safe_softmax")
@given(SIZES, st.integers(-5, 5), DTYPES)
@DRAWN
def test_a_softmax(size, dim, dtype):
    agrees(A._softmax.default, tensor(size, dtype), dim, False)
    agrees(A._softmax.default, tensor(size, dtype), dim, True)
    agrees(A._safe_softmax.default, tensor(size, dtype), dim)
    agrees(A._safe_softmax.default, tensor(size, dtype), dim, torch.float64)


@st.composite
def products(draw):
    """What is added, two factors that may fit, and one that fits and may be of another type."""
    n, k, m = (draw(st.integers(1, 3)) for _ in range(3))
    dtype, other = draw(FLOATS), draw(FLOATS)
    wide = m + draw(RARELY)
    c = tensor([wide] if draw(st.booleans()) else [n, wide], dtype)
    return c, tensor((n, k), dtype), tensor((k + draw(RARELY), m), dtype), tensor((k, m), other)


@of("aten.addmm")
@given(products())
@DRAWN
def test_a_product_of_matrices(args):
    c, left, right, other = args
    agrees(A.addmm.default, c, left, right)
    agrees(A.addmm.default, c, left, other)


def test_a_linear_layer_that_does_not_fit_is_left_to_torch():
    assert agrees(A.addmm.default, tensor(5), tensor((4, 6)), tensor((6, 5)))
    assert not agrees(A.addmm.default, tensor(5), tensor((4, 6)), tensor((7, 5)))
    assert not agrees(A.addmm.default, tensor(4), tensor((4, 6)), tensor((6, 5)))


@of("aten.cat")
@given(SIZES, st.integers(-4, 4), st.lists(st.integers(0, 2), min_size=1, max_size=3), RARELY, DTYPES, DTYPES)
@DRAWN
def test_a_concatenation(size, dim, more, wrong, dtype, other):
    parts = []
    for k, extra in enumerate(more):
        shape = list(size)
        if shape:
            shape[dim % len(shape)] += extra
            shape[-1] += wrong and k
        parts.append(tensor(shape, other if wrong else dtype))
    agrees(A.cat.default, parts, dim)
    if dim == 0:
        agrees(A.cat.default, parts)
    agrees(A.cat.default, [*parts, tensor(0, dtype)], dim)


# Pooling --------------------------------------------------------------------------------------------------

PAIRS = st.lists(st.integers(1, 4), min_size=1, max_size=2)


@of("aten.max_pool2d_with_indices")
@given(
    st.lists(st.integers(1, 6), min_size=3, max_size=5), PAIRS, st.lists(st.integers(1, 3), max_size=2),
    st.lists(st.integers(0, 2), min_size=1, max_size=2), st.lists(st.integers(1, 2), min_size=1, max_size=2),
    st.booleans(), DTYPES,
)  # fmt: skip
@DRAWN
def test_a_max_pooling(size, kernel, stride, padding, dilation, ceil, dtype):
    func = A.max_pool2d_with_indices.default
    agrees(func, tensor(size, dtype), kernel, stride, padding, dilation, ceil)
    agrees(func, tensor(size, dtype), kernel, stride)
    agrees(func, tensor(size, dtype), kernel)


def test_no_shape_is_untested():
    assert set(SHAPES) == set().union(*DECLARED.values())
