"""Make a network's passes repeatable: nothing is drawn at random, and BatchNorms leave their statistics alone.

``with Repeatable(): model(x)``; the mode holds in backward passes with recomputation too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

FEWEST_VALUES = 16
"""Values per channel below which batch statistics magnify rounding too much for gradients to be compared."""


class TooFewValuesError(Exception):
    """A BatchNorm in training mode sees fewer than ``FEWEST_VALUES`` values per channel."""


class Repeatable(TorchFunctionMode):
    """Make runs repeatable: replace what dropout, stochastic depth and random slopes draw by its mean, noise by 0.5.

    BatchNorms leave their running statistics alone. Raise TooFewValuesError where one in training mode would take
    batch statistics over too few values.

    Args:
        batch_statistics: False makes a BatchNorm in training mode use its running statistics, if it has any.
    """

    def __init__(self, batch_statistics: bool = True) -> None:
        super().__init__()
        self._batch_statistics = batch_statistics

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm:
            return self._batch_norm({**dict(zip(_BATCH_NORM, args, strict=False)), **kwargs})
        if func in _BERNOULLI:
            return _mean_draw(func, *args, **kwargs)
        if func in _NOISE:
            with torch.no_grad():
                return func(*args, **kwargs).fill_(0.5)
        if func in _DRAWING:
            place, name, value = _DRAWING[func]
            if len(args) > place:
                args = (*args[:place], value, *args[place + 1 :])
            else:
                kwargs = {**kwargs, name: value}
        return func(*args, **kwargs)

    def _batch_norm(self, given: dict[str, Any]) -> Tensor:
        # Without running statistics it uses its batch in eval mode as well: there is nothing to choose.
        if given.get("training") and given["running_mean"] is not None:
            if not self._batch_statistics:
                given = {**given, "training": False}
            elif given["input"].numel() // given["input"].shape[1] < FEWEST_VALUES:
                raise TooFewValuesError
            else:
                given = {**given, "running_mean": None, "running_var": None}
        return F.batch_norm(**given)


def _mean_draw(func: Callable[..., Any], x: Tensor, p: float | Tensor | None = None, **_: Any) -> Tensor:
    """What ``bernoulli`` draws on average: p, or x itself where no p is given; in place 0.5."""
    if func is Tensor.bernoulli_:
        mean = 0.5 if p is None else p
        return x.copy_(mean) if isinstance(mean, Tensor) else x.fill_(mean)
    return x.detach().clone() if p is None else torch.full_like(x, float(p))


_BATCH_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_BERNOULLI = (torch.bernoulli, Tensor.bernoulli, Tensor.bernoulli_)

# What draws numbers, of as many places as the channels that are left: it draws one number instead.
_NOISE = frozenset(
    (torch.randn_like, torch.rand_like, torch.randn, torch.rand, torch.normal, Tensor.normal_, Tensor.uniform_,
     Tensor.exponential_, Tensor.log_normal_, Tensor.cauchy_)
)  # fmt: skip

# What draws -> the place and name of the argument that stops it, and the value that does.
_DRAWING: dict[Callable[..., Any], tuple[int, str, object]] = {
    **dict.fromkeys((F.dropout, F.dropout1d, F.dropout2d, F.dropout3d), (2, "training", False)),
    **dict.fromkeys((F.alpha_dropout, F.feature_alpha_dropout), (2, "training", False)),
    **dict.fromkeys(
        (torch.dropout, torch.dropout_, torch.feature_dropout, torch.feature_dropout_), (2, "train", False)
    ),
    **dict.fromkeys((torch.alpha_dropout, torch.alpha_dropout_), (2, "train", False)),
    **dict.fromkeys((torch.feature_alpha_dropout, torch.feature_alpha_dropout_), (2, "train", False)),
    **dict.fromkeys((F.rrelu, torch.rrelu, torch.rrelu_), (3, "training", False)),
    F.scaled_dot_product_attention: (4, "dropout_p", 0.0),
    F.multi_head_attention_forward: (10, "dropout_p", 0.0),
}
