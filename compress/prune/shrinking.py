"""All of it in one call: trace, score, plan, cut and prove."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from compress.errors import PlanError
from compress.prune.budget import Budget
from compress.prune.calibration import Forward, Loss, batches
from compress.prune.criteria import CRITERIA, score
from compress.prune.planning import Plan, plan
from compress.prune.proof import check
from compress.prune.reconstruction import reconstruct
from compress.prune.surgery import apply
from compress.prune.tracing import trace
from compress.prune.units import protect


def shrink(
    model: nn.Module,
    example: Any,
    *,
    macs: float | None = None,
    budget: Budget | None = None,
    ratio: float | Mapping[str, float] | None = None,
    criterion: str = "l1",
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    keep: Sequence[str] = (),
    repair: bool = False,
    forward: Forward | None = None,
    **options: Any,
) -> tuple[nn.Module, Plan]:
    """Remove whole channels of a network until it fits, and prove the cut.

    Args:
        model: the network, which is not changed.
        example: what it is called with: a tensor of images, a tuple of arguments, or a loader, whose first batch is
            taken.
        macs: the share of the multiply-accumulates that may stay; or give one of the next two.
        budget: upper bounds on several costs.
        ratio: the share of the free channels that goes, or shares by pattern: ``{"layer3.*": 0.6, "*": 0.3}``.
        criterion: a name in ``CRITERIA``.
        data: batches of images, or pairs of images and targets, for criteria that need them and for ``repair``; by
            default ``example`` where that is a loader.
        loss: for criteria of gradients.
        keep: patterns of parameters whose channels stay.
        repair: whether what reads the kept channels is solved again over ``data``.
        forward: called as ``forward(model, *example)`` instead of the model.
        options: ``scope``, ``round_to`` (8 here), ``min_kept`` (8 here) and ``max_ratio`` of ``plan``.

    Returns:
        The new network and the plan, whose ``asked`` holds the proof as ``proof``, its largest relative error.

    Raises:
        PlanError: none or several of macs, budget and ratio, something that the criterion lacks, a budget that no plan
            meets, or a cut that differs from the mask.
        ModelError: the forward pass fails.
    """
    if sum(one is not None for one in (macs, budget, ratio)) != 1:
        raise PlanError("Give shrink() one of macs, budget and ratio, such as macs=0.5.")
    inputs, loaded = _inputs(example)
    data = loaded if data is None else data
    if data is None and (repair or CRITERIA.get(criterion, CRITERIA["l1"]).needs != "weights"):
        raise PlanError(f"The criterion '{criterion}', or repair, looks at images; give data=, batches of them.")
    seen = protect(trace(model, *inputs, forward=forward), tuple(keep))
    scores = score(seen, model, criterion, data=data, loss=loss, forward=forward)
    bounds: dict[str, Any] = {"budget": Budget(macs=macs) if macs is not None else budget, "ratio": ratio}
    made = plan(seen, scores, **bounds, **{"round_to": 8, "min_kept": 8, **options}, asked={"criterion": criterion})
    proof = check(model, made, *inputs, forward=forward)
    made = made.model_copy(update={"asked": {**made.asked, "proof": proof.worst}})
    small = apply(model, made)
    if repair:
        assert data is not None
        small, _ = reconstruct(model, small, made, data, forward=forward)
    return small, made


def _inputs(example: Any) -> tuple[tuple[Any, ...], Iterable[Any] | None]:
    """What the network is called with, and the loader that it came from."""
    if isinstance(example, Tensor | Mapping):
        return (example,), None
    if isinstance(example, tuple):
        return example, None
    if not isinstance(example, Iterable):
        raise PlanError(f"The example is {type(example).__name__}; give a tensor, a tuple of arguments or a loader.")
    if isinstance(example, list) and example and isinstance(example[0], Tensor) and example[0].dim() < 4:
        return (example,), None  # images of several sizes, as detectors take them
    return (next(batches(example)).inputs,), example
