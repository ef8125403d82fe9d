"""Plans: which channels stay. A plan is frozen, is JSON, holds names only and is sufficient by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from compress.errors import PlanError
from compress.prune.budget import Budget
from compress.prune.units import Group, Role, Slot, Trace
from compress.validation import explain

Kept = npt.NDArray[np.bool_]

Order = npt.NDArray[np.int64]
"""Rows (group, unit), first to go first."""


class KeptSlot(BaseModel):
    """Which indices of one dimension stay, out of how many, and what that dimension does."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kept: tuple[int, ...]
    of: int
    role: Role


class GroupSize(BaseModel):
    """Channels of one group before and after."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    before: int
    after: int
    slots: int


class Plan(BaseModel):
    """What stays.

    Args:
        architecture: hash of the network that the plan is for (`architecture_hash`).
        slots: `parameter:dimension` -> kept indices; only dimensions that lose channels.
        attributes: module -> attribute -> (value before, value after).
        substitutions: module -> the class of `compress.prune.attention` that takes its place, its weights unchanged.
        groups: every free group with its size before and after.
        protected: `parameter:dimension` -> why it stays whole.
        costs: MACs and parameters before and after.
        asked: criterion, scope, budget, rounding, as asked for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: Literal["niwaki-plan-1"] = "niwaki-plan-1"
    architecture: str
    slots: dict[str, KeptSlot]
    attributes: dict[str, dict[str, tuple[int, int]]]
    substitutions: dict[str, str] = {}
    groups: tuple[GroupSize, ...] = ()
    protected: dict[str, str] = {}
    costs: dict[str, float] = {}
    asked: dict[str, Any] = {}

    def to_json(self) -> str:
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Reads a plan; raises PlanError with one sentence when the text is not one."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise PlanError(f"Not a pruning plan: {explain(error)}; make it again with niwaki.") from None

    def then(self, later: Plan) -> Plan:
        """One plan that does what this plan and then `later`, made for the network it leaves, do.

        Raises:
            PlanError: `later` does not fit what this plan leaves.
        """
        slots = dict(self.slots)
        for key, second in later.slots.items():
            first = self.slots.get(key)
            if first is None:
                slots[key] = second
                continue
            if second.of != len(first.kept):
                raise PlanError(
                    f"The later plan takes '{key}' to have {second.of} channels, {len(first.kept)} are left."
                )
            kept = tuple(first.kept[i] for i in second.kept)
            slots[key] = KeptSlot(kept=kept, of=first.of, role=first.role)
        attributes = {module: dict(changes) for module, changes in self.attributes.items()}
        for module, changes in later.attributes.items():
            for name, (before, after) in changes.items():
                known = attributes.setdefault(module, {})
                known[name] = (known.get(name, (before, before))[0], after)
        sizes = {group.name: group for group in self.groups}
        first_costs = {name: value for name, value in self.costs.items() if name.endswith("_before")}
        return later.model_copy(
            update={
                "architecture": self.architecture,
                "slots": slots,
                "attributes": attributes,
                "substitutions": {**self.substitutions, **later.substitutions},
                "groups": tuple(
                    group.model_copy(update={"before": sizes[group.name].before}) if group.name in sizes else group
                    for group in later.groups
                ),
                "costs": {**later.costs, **first_costs},
            }
        )

    def kept_indices(self, slot: Slot, size: int) -> npt.NDArray[np.int64]:
        """Kept indices of one dimension; all of them when the plan does not touch it."""
        found = self.slots.get(f"{slot[0]}:{slot[1]}")
        return np.arange(size) if found is None else np.asarray(found.kept, dtype=np.int64)


def plan(
    trace: Trace,
    scores: torch.Tensor,
    *,
    budget: Budget | None = None,
    ratio: float | None = None,
    scope: Literal["global", "group"] = "global",
    round_to: int = 1,
    min_kept: int = 1,
    asked: Mapping[str, Any] | None = None,
) -> Plan:
    """Chooses the units that stay.

    Args:
        trace: the network.
        scores: one score a unit, higher stays; shape (units,).
        budget: the share of the MACs that may remain; the largest network within it is taken.
        ratio: instead of a budget, the share of the free units that goes (0 <= ratio < 1).
        scope: `global` ranks all units together, each score divided by its group's mean; `group` removes the
            same share of every group.
        round_to: kept channels of a group are rounded up to a multiple of it.
        min_kept: channels of a group that always stay.
        asked: what to record of the request beside these arguments.

    Raises:
        PlanError: both or neither of budget and ratio, nothing is free, or the budget cannot be reached.
    """
    if (budget is None) == (ratio is None):
        raise PlanError("Give plan() either a budget or a ratio, not both and not neither.")
    if scope not in ("global", "group"):
        raise PlanError(f"scope='{scope}' is unknown; give 'global' or 'group'.")
    if not isinstance(round_to, int) or not isinstance(min_kept, int) or round_to < 1 or min_kept < 0:
        raise PlanError(f"round_to={round_to} and min_kept={min_kept} have to be whole, at least 1 and at least 0.")
    if not bool(torch.isfinite(scores).all()):
        raise PlanError("Some scores are not finite numbers; check the weights, or score by another criterion.")
    if ratio is not None and not 0 <= ratio < 1:
        raise PlanError(f"A ratio of {ratio} is impossible; give the share that goes, at least 0 and below 1.")
    if tuple(scores.shape) != (trace.units,):
        raise PlanError(f"The scores have shape {tuple(scores.shape)}, this trace has {trace.units} units.")
    if not trace.groups and ratio != 0:
        raise PlanError(f"No channel of this network is free to go: {why_nothing_is_free(trace)}.")
    order = _removal_order(trace, scores.detach().double().cpu().numpy(), scope)
    if budget is not None and budget.macs is None:
        raise PlanError("A latency budget is met by measuring: search over plans with macs budgets.")
    if ratio is not None:
        gone = round(ratio * len(order))
    else:
        assert budget is not None
        assert budget.macs is not None
        gone = _fewest_removed(trace, order, budget.macs, round_to, min_kept)
    kept = _round_up(trace, order, gone, round_to, min_kept)
    request = {"scope": scope, "round_to": round_to, "min_kept": min_kept, "ratio": ratio, **(asked or {})}
    if budget is not None:
        request["budget"] = budget.model_dump(exclude_none=True)
    return plan_from_kept(trace, kept, asked=request)


def why_nothing_is_free(trace: Trace) -> str:
    """What holds most of a network, where, and what may help; an input's and an output's channels stay anyway."""
    held: dict[str, int] = {}
    for reasons in trace.protected.values():
        for reason in reasons.split("; "):
            held[reason] = held.get(reason, 0) + 1
    if not held:
        return "it has no channels"
    own = {reason: n for reason, n in held.items() if reason not in ("graph input", "graph output")} or held
    reason = max(own, key=lambda name: (own[name], name))
    place = trace.where.get(reason, "")
    said = f"{reason[:200]}{f' ({place})' if place else ''} holds {own[reason]} of {len(trace.slots)} slots"
    if reason.startswith("fixed size"):
        return f"{said}; let the code take sizes from its tensors, as reshape(B, N, -1) does"
    if reason.startswith("unknown operator"):
        return f"{said}; trace a part of the network without it by forward="
    return said


def smallest_share(trace: Trace, round_to: int = 1, min_kept: int = 1) -> float:
    """Share of the MACs that remains when every free group is cut as far as it goes."""
    order = _removal_order(trace, np.zeros(trace.units), "group")
    whole = trace.macs(np.ones(trace.units, dtype=bool))
    return trace.macs(_round_up(trace, order, len(order), round_to, min_kept)) / whole if whole else 1.0


def plan_from_kept(trace: Trace, kept: Kept, *, asked: Mapping[str, Any] | None = None) -> Plan:
    """The plan that keeps exactly the units in `kept` (bool, one a unit)."""
    slots: dict[str, KeptSlot] = {}
    # Slots of one group often are one array: its indices are written out once, and once for each role.
    written: dict[int, tuple[int, ...]] = {}
    alike: dict[tuple[int, Role], KeptSlot] = {}
    for slot, units in trace.slots.items():
        if id(units) not in written:
            written[id(units)] = tuple(np.flatnonzero(kept[units]).tolist())
        stays = written[id(units)]
        if len(stays) < len(units):
            key = (id(units), trace.roles[slot])
            if key not in alike:
                alike[key] = KeptSlot.model_construct(kept=stays, of=len(units), role=key[1])
            slots[f"{slot[0]}:{slot[1]}"] = alike[key]
    sizes = trace.kept_sizes(kept)
    attributes: dict[str, dict[str, tuple[int, int]]] = {}
    for a in trace.attributes:
        after = a.after(kept, sizes)
        if after != a.value:
            attributes.setdefault(a.module, {})[a.name] = (a.value, after)
    cut = [key.rpartition(":")[0] for key in slots]
    everything = np.ones(trace.units, dtype=bool)
    return Plan(
        architecture=trace.architecture,
        slots=slots,
        attributes=attributes,
        substitutions={
            path: name for path, name in trace.substitutions.items() if any(key.startswith(f"{path}.") for key in cut)
        },
        groups=tuple(
            GroupSize(name=g.name, before=len(g.units), after=int(kept[g.units].sum()), slots=len(g.slots))
            for g in trace.groups
        ),
        protected=dict(trace.protected),
        costs={
            "macs_before": trace.macs(everything),
            "macs_after": trace.macs(kept),
            "units_before": trace.units,
            "units_after": int(kept.sum()),
            "units_not_preserving": int((~kept & ~trace.preserving).sum()),
        },
        asked=dict(asked or {}),
    )


def _removal_order(trace: Trace, scores: npt.NDArray[np.float64], scope: str) -> Order:
    """What goes, first to go first."""
    keys, relative, owner, unit = [], [], [], []
    for g, group in enumerate(trace.groups):
        own = scores[group.units]
        ranked = np.argsort(own, kind="stable")
        share = own[ranked] / (float(own.mean()) or 1.0)
        keys.append((np.arange(len(ranked)) + 0.5) / len(ranked) if scope == "group" else share)
        relative.append(share)
        owner.append(np.full(len(ranked), g))
        unit.append(group.units[ranked])
    if not keys:
        return np.empty((0, 2), np.int64)
    whole = [np.concatenate(parts) for parts in (unit, owner, relative, keys)]
    return np.stack([whole[1], whole[0]], axis=1)[np.lexsort(whole)]


def _round_up(trace: Trace, order: Order, gone: int, round_to: int, min_kept: int) -> Kept:
    """Keeps all but the first `gone` of `order`, then takes the best of them back until sizes are right."""
    going = order[:gone]
    going = going[np.argsort(going[:, 0], kind="stable")]
    kept = np.ones(trace.units, dtype=bool)
    for g, start, count in zip(*np.unique(going[:, 0], return_index=True, return_counts=True), strict=True):
        group = trace.groups[g]
        stays = _stays(group, int(count), round_to, min_kept)
        kept[going[start : start + len(group.units) - stays, 1]] = False
    return kept


def _stays(group: Group, gone: int, round_to: int, min_kept: int) -> int:
    size = len(group.units)
    least = max(size - gone, min_kept, 1)
    return min(size, -(-least // round_to) * round_to)


def _fewest_removed(trace: Trace, order: Order, share: float, round_to: int, min_kept: int) -> int:
    """Bisects for the fewest units to remove such that the MACs are within the budget."""
    whole = trace.macs(np.ones(trace.units, dtype=bool))

    def share_at(gone: int) -> float:
        return trace.macs(_round_up(trace, order, gone, round_to, min_kept)) / whole

    if share_at(len(order)) > share:
        floor = np.ceil(share_at(len(order)) * 1000) / 1000
        raise PlanError(
            f"A budget of {share:g} of the MACs is impossible: with at least {max(min_kept, 1)} channels a group, "
            f"in multiples of {round_to}, no less than {floor:g} can remain; ask for macs: {floor:g} or more."
        )
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        if share_at(middle) <= share:
            high = middle
        else:
            low = middle + 1
    return low
