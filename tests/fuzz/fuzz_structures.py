"""Structures that Hypothesis draws: documents of the right keys with any values, and graphs of ONNX operators."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import yaml
from fuzz_mutations import NUMBERS, TEXTS, places
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(NUMBERS),
    st.sampled_from(TEXTS),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
)
ANY = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
OPERATORS = (
    "Add", "AveragePool", "Cast", "Concat", "Constant", "ConstantOfShape", "Conv", "CumSum", "DequantizeLinear",
    "Expand", "Gather", "Gemm", "If", "Loop", "MatMul", "NonZero", "Pad", "QuantizeLinear", "Range", "Relu",
    "Reshape", "Resize", "Slice", "Softmax", "Split", "Tile", "TopK", "Transpose", "Where",
)  # fmt: skip
SIZES = st.sampled_from((0, 1, 2, 16, 1 << 12, 1 << 20, (1 << 31) - 1, 1 << 40, 1 << 62, -1))


def documents(known: Any) -> st.SearchStrategy[Any]:
    """Documents like ``known``: its keys at their places, each with its own value, another's or anything."""
    pieces = [holder[key] for holder, key in places(known)][:40] or [None]

    def like(value: Any, depth: int) -> st.SearchStrategy[Any]:
        own = st.just(value)
        if isinstance(value, dict) and value and depth < 4:
            own = st.fixed_dictionaries({}, optional={key: like(one, depth + 1) for key, one in value.items()})
            own = own | st.just(value).flatmap(lambda whole: replaced(whole, depth))
        elif isinstance(value, list) and value and depth < 4:
            own = st.lists(like(value[0], depth + 1), max_size=6)
        return st.one_of(own, st.just(value), st.just(value), st.sampled_from(pieces), ANY)

    def replaced(whole: dict[str, Any], depth: int) -> st.SearchStrategy[Any]:
        names = st.sampled_from([*whole])
        return names.flatmap(lambda name: like(whole[name], depth + 1).map(lambda new: {**whole, name: new}))

    return like(known, 0)


@st.composite
def graphs(draw: st.DrawFn) -> bytes:
    """A few operators on an image, with constants of any size and names that may not be there."""
    names, shape, kept = ["images"], st.lists(SIZES, max_size=4), []
    for name in draw(st.lists(st.sampled_from(["a", "b", "c"]), unique=True)):
        names.append(name)
        numbers = draw(st.lists(SIZES, min_size=1, max_size=4))
        kept.append(helper.make_tensor(name, TensorProto.INT64, [len(numbers)], numbers))

    def known() -> st.SearchStrategy[str]:
        """Names that are there, and now and then one that is not."""
        return st.sampled_from([*names * 4, "elsewhere"])

    inner = helper.make_graph([], "inner", [], [helper.make_tensor_value_info("a", TensorProto.FLOAT, None)])
    nodes = []
    for place in range(draw(st.integers(1, 4))):
        told = draw(
            st.sampled_from(({}, {"axis": draw(SIZES)}, {"to": 1}, {"kernel_shape": draw(shape)}, {"body": inner}))
        )
        told = {name: value for name, value in told.items() if value != []}
        nodes.append(
            helper.make_node(
                draw(st.sampled_from(OPERATORS)), draw(st.lists(known(), max_size=4)), [f"n{place}"], **told
            )
        )
        names.append(f"n{place}")
    ends = [helper.make_tensor_value_info(draw(known()), TensorProto.FLOAT, draw(shape | st.none()))]
    begins = [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", *draw(shape)])]
    graph = helper.make_graph(nodes, "g", begins, ends, kept)
    opset = helper.make_opsetid("", draw(st.sampled_from((7, 13, 18, 23, 1 << 40))))
    model = helper.make_model(graph, ir_version=draw(st.sampled_from((3, 8, 10))), opset_imports=[opset])
    for key in draw(
        st.lists(st.sampled_from(("niwaki.classes", "niwaki.preprocessing", "niwaki.precision")), unique=True)
    ):
        model.metadata_props.add(key=key, value=draw(st.sampled_from([t for t in TEXTS if t.isprintable()])))
    return model.SerializeToString()


@cache
def structures(form: str, seed_file: bytes, count: int, number: int) -> tuple[bytes, ...]:
    """The first ``count`` files of a form that Hypothesis draws from a seed; none for a form without structures."""
    if not count:
        return ()
    if form == "onnx":
        strategy: st.SearchStrategy[bytes] = graphs()
    elif form == "json":
        strategy = documents(json.loads(seed_file)).map(lambda v: json.dumps(v).encode("utf-8", "surrogatepass"))
    elif form == "yaml":
        strategy = documents(yaml.safe_load(seed_file)).map(
            lambda v: yaml.safe_dump(v).encode("utf-8", "surrogatepass")
        )
    else:
        return ()
    found: list[bytes] = []

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        phases=[Phase.generate],
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(content: bytes) -> None:
        found.append(content)

    collect()
    return tuple(found[:count])
