"""What operators make on the meta device is asked once for equal sizes, and then made as torch made it."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress import prune
from compress.prune import dispatch
from compress.prune.meta import Made, makes_fresh, remembered

A: Any = torch.ops.aten


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def described(out: Any) -> Any:
    if isinstance(out, Tensor):
        return tuple(out.shape), out.stride(), out.dtype, out.storage_offset(), out.device
    return type(out), [described(part) for part in out]


ASKED: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {
    "one": (A.bmm.default, (meta(2, 3, 4), meta(2, 4, 5)), {}),
    "strided": (A.gelu.default, (meta(2, 3, 4, 5).permute(0, 2, 3, 1),), {}),
    "several": (A.native_group_norm.default, (meta(2, 6, 4, 4), meta(6), meta(6), 2, 6, 16, 3, 1e-5), {}),
    "a list of inputs": (A.stack.default, ([meta(2, 3), meta(2, 3)], 1), {}),
    "named": (A.full.default, ([2, 3], 1.0), {"dtype": torch.float64, "device": torch.device("meta")}),
    "an index": (A.index.Tensor, (meta(5, 7), [None, meta(3, dtype=torch.int64)]), {}),
    "padded": (A.constant_pad_nd.default, (meta(1, 3, 7, 7), [0, 1, 0, 1]), {}),
}


@pytest.mark.parametrize("name", ASKED)
def test_an_answer_is_given_again_as_torch_gave_it(name: str) -> None:
    func, args, kwargs = ASKED[name]
    made: Made = {}
    assert makes_fresh(func)
    first, again = (remembered(func, made, args, kwargs) for _ in range(2))
    assert len(made) == 1
    assert described(first) == described(again) == described(func(*args, **kwargs))
    parts = [*(first if isinstance(first, tuple | list) else [first])]
    assert all(a is not b for a, b in zip(parts, again if isinstance(again, tuple | list) else [again], strict=True))


def test_numbers_that_are_equal_and_of_other_types_are_asked_apart() -> None:
    made: Made = {}
    x = meta(3, dtype=torch.int64)
    kinds = [remembered(A.mul.Tensor, made, (x, factor), {}).dtype for factor in (2, 2.0, 1, True, 1.0)]
    assert kinds == [torch.int64, torch.float32, torch.int64, torch.int64, torch.float32]


def test_a_default_type_that_changes_is_asked_for_again(request: pytest.FixtureRequest) -> None:
    made: Made = {}
    x = meta(3, dtype=torch.int64)
    before = torch.get_default_dtype()
    request.addfinalizer(lambda: torch.set_default_dtype(before))
    found = []
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        found.append(remembered(A.sigmoid.default, made, (x,), {}).dtype)
    assert found == [torch.float32, torch.float64]


def test_values_are_never_remembered() -> None:
    made: Made = {}
    x = torch.ones(3)
    assert remembered(A.add.Tensor, made, (x, 1.0), {}).tolist() == [2.0] * 3
    assert remembered(A.full.default, made, ([2], 3.0), {}).tolist() == [3.0, 3.0]
    pair = meta(1, 2, 2, dtype=torch.complex64), meta(1, 2, 2, dtype=torch.complex64)
    assert remembered(A.bmm.default, made, pair, {}).is_complex()
    assert not made


def test_refusals_are_not_remembered() -> None:
    made: Made = {}
    for _ in range(2):
        with pytest.raises(RuntimeError):
            remembered(A.bmm.default, made, (meta(2, 3, 4), meta(2, 5, 5)), {})
    assert not made


@pytest.mark.parametrize("func", [A.view.default, A.relu_.default, A.select.int, A.split.Tensor, A.add_.Tensor])
def test_views_and_writes_are_never_remembered(func: Any) -> None:
    assert not makes_fresh(func)
    assert dispatch.operator(func).made is None


def test_the_cuts_of_a_network_ask_torch_once_for_equal_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def counted(func: Any, made: Made, args: Any, kwargs: Any) -> Any:
        before = len(made)
        out = remembered(func, made, args, kwargs)
        asked.extend([str(func)] * (len(made) > before))
        return out

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(7, 19), nn.Linear(19, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.up(x)
            for _ in range(5):
                x = torch.erf(x) / 2
            return self.down(x)

    monkeypatch.setattr(dispatch, "remembered", counted)
    monkeypatch.setattr(dispatch, "operator", cache(dispatch.operator.__wrapped__))
    assert prune.trace(Twice().eval(), torch.randn(2, 7)).groups
    # The whole network and the two ways in which it is cut have one width each.
    assert 1 <= asked.count("aten.erf.default") <= 3
