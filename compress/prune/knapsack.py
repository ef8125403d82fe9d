"""Which width each group gets: the most saliency that fits into so many milliseconds, a multiple-choice knapsack."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from compress.errors import PlanError
from compress.prune.allocation import Kept, Limits, costs
from compress.prune.budget import Budget
from compress.prune.units import Trace

Steps = Mapping[str, Sequence[tuple[int, float]]]
"""Group, by `group_keys`, -> (width, milliseconds) of the widths that it may have; `REST` -> what no group changes."""

REST = "*"
MOST_GROUPS, _MOST_STATES = 64, 1024


@dataclass(frozen=True)
class Option:
    """One width of a group: what it takes and what it is worth."""

    width: int
    ms: float
    worth: float


def group_keys(trace: Trace) -> tuple[str, ...]:
    """Return one name for each group; the second group of one name is called `name#2`."""
    seen: dict[str, int] = {}
    keys = []
    for group in trace.groups:
        seen[group.name] = seen.get(group.name, 0) + 1
        keys.append(group.name if seen[group.name] == 1 else f"{group.name}#{seen[group.name]}")
    return tuple(keys)


def worthwhile(steps: Sequence[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    """Return the steps that are worth having, narrowest first: each faster than every wider one.

    A width that takes as long as a wider one, as one that no kernel is made for does, is never taken.
    """
    kept: list[tuple[int, float]] = []
    for width, ms in sorted(steps, reverse=True):
        if not kept or ms < kept[-1][1]:
            kept.append((width, ms))
    return tuple(reversed(kept))


def choose(options: Sequence[Sequence[Option]], limit: float) -> tuple[int, ...]:
    """Return the index of the option of each group: the most worth within the limit.

    Exact by dynamic programming as long as few sums differ, within a thousandth of the limit where many do; a
    Lagrangian where there are more groups than `MOST_GROUPS`.

    Raises:
        PlanError: the least that the groups take together lies above the limit.
    """
    _check(options, limit)
    return dynamic(options, limit) if len(options) <= MOST_GROUPS else lagrangian(options, limit)


def dynamic(options: Sequence[Sequence[Option]], limit: float) -> tuple[int, ...]:
    """Solve by dynamic programming over the sums that are worth having: no other takes less and is worth more.

    More than 1024 such sums are thinned to the best one of each 1024th of the limit.
    """
    # The least that the groups still to come take is set aside, so that no sum is kept that leads nowhere.
    least = [min(one.ms for one in own) for own in options]
    ahead = np.cumsum([0.0, *reversed(least)])[::-1][1:]
    sums, worths = np.zeros(1), np.zeros(1)
    back: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = []
    for place, own in enumerate(options):
        ms, worth = np.array([one.ms for one in own]), np.array([one.worth for one in own])
        total = (sums[:, None] + ms).reshape(-1)
        value = (worths[:, None] + worth).reshape(-1)
        fits = np.flatnonzero(total + ahead[place] <= limit + 1e-9 * abs(limit))
        order = fits[np.lexsort((-value[fits], total[fits]))]
        best = np.maximum.accumulate(value[order])
        kept = order[np.concatenate([[True], value[order][1:] > best[:-1]])]
        if len(kept) > _MOST_STATES:
            kept = _thinned(kept, total, limit - ahead[place])
        sums, worths = total[kept], value[kept]
        back.append((kept // len(own), kept % len(own)))
    state, chosen = len(sums) - 1, []
    for parents, taken in reversed(back):
        chosen.append(int(taken[state]))
        state = int(parents[state])
    return tuple(reversed(chosen))


def _thinned(kept: npt.NDArray[np.int64], total: npt.NDArray[np.float64], most: float) -> npt.NDArray[np.int64]:
    """Keep the last of each part of the way to the limit, which is worth most in it, and the cheapest of all."""
    low = float(total[kept[0]])
    part = ((total[kept] - low) / max(most - low, 1e-12) * (_MOST_STATES - 1)).astype(np.int64)
    last = np.concatenate([part[1:] != part[:-1], [True]])
    last[0] = True
    return kept[last]


def lagrangian(options: Sequence[Sequence[Option]], limit: float) -> tuple[int, ...]:
    """Solve by a price of a millisecond (Everett, Generalized Lagrange Multiplier Method, 1963), then fill the rest.

    At the least price at which the groups' own best choices fit together they are optimal for what they take; what is
    left goes to the options that gain most for each millisecond.
    """

    def at(price: float) -> list[int]:
        return [max(range(len(own)), key=lambda k: (own[k].worth - price * own[k].ms, -own[k].ms)) for own in options]

    def taken(chosen: Sequence[int]) -> float:
        return sum(own[k].ms for own, k in zip(options, chosen, strict=True))

    chosen = at(0.0)
    if taken(chosen) > limit:
        low, high = 0.0, 1e-9
        while taken(at(high)) > limit and high < 1e30:
            low, high = high, high * 8
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (middle, high) if taken(at(middle)) > limit else (low, middle)
        chosen = at(high)
        if taken(chosen) > limit:
            chosen = [min(range(len(own)), key=lambda k: own[k].ms) for own in options]
    return _filled(options, chosen, limit)


def greedy(options: Sequence[Sequence[Option]], limit: float) -> tuple[int, ...]:
    """Take, from the widest options on, the step that loses least worth for each millisecond until all fits.

    The reference that the others are held to: simple, and not optimal.
    """
    _check(options, limit)
    chosen = [max(range(len(own)), key=lambda k: own[k].worth) for own in options]
    while sum(own[k].ms for own, k in zip(options, chosen, strict=True)) > limit:
        best: tuple[float, int, int] | None = None
        for place, own in enumerate(options):
            now = own[chosen[place]]
            for k, one in enumerate(own):
                if one.ms < now.ms:
                    price = (now.worth - one.worth) / (now.ms - one.ms)
                    best = min(best or (price, place, k), (price, place, k))
        assert best is not None
        chosen[best[1]] = best[2]
    return _filled(options, chosen, limit)


def _filled(options: Sequence[Sequence[Option]], chosen: Sequence[int], limit: float) -> tuple[int, ...]:
    """Spend what is left of the limit on the options that gain most for each millisecond."""
    now = list(chosen)
    left = limit - sum(own[k].ms for own, k in zip(options, now, strict=True))
    while True:
        gains = [
            ((one.worth - own[now[place]].worth) / max(one.ms - own[now[place]].ms, 1e-12), place, k)
            for place, own in enumerate(options)
            for k, one in enumerate(own)
            if one.worth > own[now[place]].worth and one.ms - own[now[place]].ms <= left
        ]
        if not gains:
            return tuple(now)
        _, place, k = max(gains)
        left -= options[place][k].ms - options[place][now[place]].ms
        now[place] = k


def _check(options: Sequence[Sequence[Option]], limit: float) -> None:
    least = sum(min(one.ms for one in own) for own in options)
    if least > limit + 1e-9 * abs(limit):
        raise PlanError(
            f"A latency of {limit:.4g} ms is impossible: the groups take {least:.4g} ms at their fastest; ask for more."
        )


def options_of(
    trace: Trace, scores: npt.NDArray[np.float64], steps: Steps, limits: Limits
) -> tuple[tuple[Option, ...], ...]:
    """Return what each group may have: the steps within the limits that are worth having, and the saliency kept there.

    Alignment comes from the steps, not from `limits.round_to`.

    Raises:
        PlanError: a group has no steps, or they do not reach its whole width.
    """
    found = []
    for key, group in zip(group_keys(trace), trace.groups, strict=True):
        size = len(group.units)
        own = steps.get(key)
        if not own:
            raise PlanError(f"The steps name no widths for the group '{key}' of {size} channels; profile the network.")
        if max(width for width, _ in own) != size:
            raise PlanError(
                f"The steps of '{key}' end at {max(width for width, _ in own)} channels, the group has {size}; profile "
                "this network."
            )
        least = Limits(1, limits.min_kept, limits.max_ratio).stays(group, size)
        kept = np.concatenate([[0.0], np.cumsum(np.sort(scores[group.units])[::-1])])
        found.append(
            tuple(Option(w, ms, float(kept[w])) for w, ms in worthwhile(own) if w >= least and w <= size)
            or (Option(size, dict(own)[size], float(kept[size])),)
        )
    return tuple(found)


def within_steps(trace: Trace, scores: npt.NDArray[np.float64], budget: Budget, steps: Steps, limits: Limits) -> Kept:
    """What stays: the widths that keep most saliency within the latency, and within every other bound of the budget.

    Bounds other than the latency add a price to what they count, raised until they hold.

    Args:
        trace: the network.
        scores: one per unit.
        budget: a latency, a share of what the steps come to or in milliseconds, and what else is bounded.
        steps: plain data, from a measured table.
        limits: the least that stays of a group.

    Raises:
        PlanError: the latency or another bound cannot be met; the sentence says what can be reached.
    """
    rest = sum(ms for _, ms in steps.get(REST, ()))
    options = options_of(trace, scores, steps, limits)
    dense = rest + sum(own[-1].ms for own in options)
    limit = budget.latency_limit(dense)
    least = rest + sum(own[0].ms for own in options)
    if least > limit:
        asked = f"{budget.latency:g} of the dense latency" if isinstance(budget.latency, float) else str(budget.latency)
        raise PlanError(
            f"A latency of {asked} is impossible: at least {least:.3g} of {dense:.3g} ms remain; "
            f"ask for latency: {np.ceil(1000 * least / dense) / 1000:g} or more."
        )
    order = [group.units[np.argsort(-scores[group.units], kind="stable")] for group in trace.groups]

    def kept_at(chosen: Sequence[int]) -> Kept:
        kept = np.ones(trace.units, dtype=bool)
        for units, own, k in zip(order, options, chosen, strict=True):
            kept[units[own[k].width :]] = False
        return kept

    def holds(kept: Kept) -> bool:
        found = costs(trace, kept, budget)
        return all(found[name] <= bound for name, bound in budget.bounds.items())

    kept = kept_at(choose(options, limit - rest))
    if not budget.bounds or holds(kept):
        return kept
    narrowest = kept_at([0] * len(options))
    if not holds(narrowest):
        left = costs(trace, narrowest, budget)
        missed = "; ".join(f"{name} {left[name]:.4g}, not {b:g}" for name, b in budget.bounds.items() if left[name] > b)
        raise PlanError(
            f"The budget is impossible: at the narrowest widths that are worth having these remain: {missed}."
        )
    saved = [_saved(trace, own, ranked, budget) for own, ranked in zip(options, order, strict=True)]

    def priced(price: float) -> Kept:
        worth = [
            [replace(one, worth=one.worth + price * gain) for one, gain in zip(own, gains, strict=True)]
            for own, gains in zip(options, saved, strict=True)
        ]
        return kept_at(choose(worth, limit - rest))

    found = _cheapest(priced, holds, max(1e-12, sum(abs(own[-1].worth) for own in options)))
    return narrowest if found is None else found


def _cheapest(priced: Callable[[float], Kept], holds: Callable[[Kept], bool], scale: float) -> Kept | None:
    """Return what the least price gives that makes every bound hold; None where no price does."""
    low, high = 1e-6 * scale, 1e6 * scale
    best = None
    for _ in range(24):
        middle = (low * high) ** 0.5
        kept = priced(middle)
        if holds(kept):
            best, high = kept, middle
        else:
            low = middle
    return best


def _saved(trace: Trace, own: Sequence[Option], ranked: npt.NDArray[np.int64], budget: Budget) -> list[float]:
    """Return what each option saves of all that is bounded, as a share of the dense network, cut alone."""
    whole = np.ones(trace.units, dtype=bool)
    dense = costs(trace, whole, budget)
    found = []
    for one in own:
        kept = whole.copy()
        kept[ranked[one.width :]] = False
        now = costs(trace, kept, budget)
        found.append(sum(1 - now[name] / dense[name] for name in dense if dense[name]))
    return found
