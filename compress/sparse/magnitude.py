"""Masks by the size of weights: per layer, over the network, step by step, at random, two of four."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from compress.errors import ModelError
from compress.sparse.masks import Layers, Masks, Train, weights_of


def largest(model: nn.Module, keep: int, layers: Layers = "all", patterns: Iterable[str] = ("*",)) -> Masks:
    """Keep the ``keep`` largest |w| of all chosen layers together, exactly so many.

    What "Rethinking the Value of Network Pruning" (Liu et al., 2019) does with ``layers="conv"``, and how GSM ends.

    Raises:
        ModelError: ``keep`` is below 0 or beyond the number of weights.
    """
    weights = weights_of(model, layers, patterns)
    flat = torch.cat([w.detach().abs().flatten().float() for w in weights.values()])
    if not 0 <= keep <= len(flat):
        raise ModelError(f"There are {len(flat)} weights, of which {keep} cannot be kept; ask for 0 to {len(flat)}.")
    return _split(weights, largest_first(flat, keep))


def largest_per_layer(model: nn.Module, density: float | Mapping[str, float], layers: Layers = "all") -> Masks:
    """Keep the largest |w| of each layer by itself.

    Args:
        model: a network.
        density: share that stays, for all layers or by pattern of names; the first that fits counts, and a layer that
            none fits is left dense and out of the masks.
        layers: which kinds.

    Raises:
        ModelError: a share outside 0 to 1, or no layer chosen.
    """
    shares = shares_of(weights_of(model, layers), density)
    weights = {name: w for name, w in weights_of(model, layers).items() if name in shares}
    return Masks(
        {
            n: largest_first(w.detach().abs().flatten(), round(shares[n] * w.numel())).view_as(w)
            for n, w in weights.items()
        }
    )


def by_deviation(model: nn.Module, quality: float | Mapping[str, float], layers: Layers = "all") -> Masks:
    """Keep what is at least ``quality`` standard deviations of its layer's weights (Han et al., NeurIPS 2015)."""
    weights = weights_of(model, layers)
    qualities = by_pattern(weights, quality)
    return Masks(
        {n: weights[n].detach().abs() >= q * weights[n].detach().std(correction=0) for n, q in qualities.items()}
    )


def at_random(model: nn.Module, density: float | Mapping[str, float], seed: int, layers: Layers = "all") -> Masks:
    """Keep as many of each layer as ``density`` says, at places drawn from ``seed`` alone; what others must beat."""
    generator = torch.Generator().manual_seed(seed)
    weights = weights_of(model, layers)
    kept = {}
    for name, share in shares_of(weights, density).items():
        w = weights[name]
        kept[name] = (
            largest_first(torch.rand(w.numel(), generator=generator), round(share * w.numel())).view_as(w).to(w.device)
        )
    return Masks(kept)


def two_of_four(model: nn.Module, names: Iterable[str] | None = None, n: int = 2, m: int = 4) -> Masks:
    """Keep the n largest |w| of each m neighbours along the input channels, as sparse tensor cores want it.

    Args:
        model: a network.
        names: parameters; None takes every layer whose input channels divide by m and leaves the others dense.
        n: how many stay.
        m: of how many.

    Raises:
        ModelError: a named layer's input channels do not divide by m, or no layer's do.
    """
    if not 0 < n < m:
        raise ModelError(f"{n} of {m} is not a pattern; keep at least one of a group, but not all.")
    weights = weights_of(model)
    fitting = {name: w for name, w in weights.items() if w.shape[1] % m == 0}
    if names is not None:
        asked = list(names)
        odd = [name for name in asked if name not in fitting]
        if odd:
            raise ModelError(f"'{odd[0]}' has no input channels in groups of {m}; leave it dense.")
        fitting = {name: fitting[name] for name in asked}
    if not fitting:
        raise ModelError(f"No layer's input channels divide by {m}; this network has no {n}:{m} pattern.")
    return Masks({name: _groups(w.detach().abs(), n, m) for name, w in fitting.items()})


def gradual_density(step: int, begin: int, end: int, final: float) -> float:
    """Share that stays at a step: 1 until ``begin``, ``final`` from ``end`` on, cubic between (Zhu and Gupta, 2017)."""
    if step <= begin:
        return 1.0
    if step >= end:
        return final
    return final + (1 - final) * (1 - (step - begin) / (end - begin)) ** 3


def prune_and_retrain(
    model: nn.Module, train: Train, rounds: Iterable[float | Mapping[str, float]], layers: Layers = "all"
) -> Masks:
    """Han's procedure: cut by deviation, retrain what stays from where it is, cut again.

    Args:
        model: a trained network; changed.
        train: trains it while masks hold.
        rounds: the quality of each round; a weight that went stays away.
        layers: which kinds.

    Returns:
        The masks of the last round, which the network obeys.
    """
    masks: Masks | None = None
    for number, quality in enumerate(rounds):
        found = by_deviation(model, quality, layers)
        masks = found if masks is None else narrowed(masks, found)
        masks.apply_(model)
        train(model, masks.hold, f"round {number}")
    if masks is None:
        raise ModelError("Pruning was given no round; give at least one quality.")
    return masks


def narrowed(before: Masks, now: Masks) -> Masks:
    """Keep what both keep; a parameter that only one of them names is as that one has it."""
    both = {**now.kept, **before.kept}
    return Masks({name: mask & now.kept[name] if name in now.kept else mask for name, mask in both.items()})


def largest_first(values: Tensor, keep: int) -> Tensor:
    """Booleans, True for exactly the ``keep`` largest; of equal ones the first."""
    chosen = torch.zeros(values.shape, dtype=torch.bool, device=values.device)
    chosen[values.sort(descending=True, stable=True).indices[:keep]] = True
    return chosen


def _split(weights: Mapping[str, Tensor], chosen: Tensor) -> Masks:
    parts = chosen.split([w.numel() for w in weights.values()])
    return Masks({name: part.view(w.shape) for (name, w), part in zip(weights.items(), parts, strict=True)})


def _groups(size: Tensor, n: int, m: int) -> Tensor:
    """True for the n largest of every m along dimension 1 of [O, I, ...]."""
    last = size.movedim(1, -1)
    grouped = last.reshape(-1, m)
    kept = torch.zeros_like(grouped, dtype=torch.bool)
    kept.scatter_(1, grouped.sort(dim=1, descending=True, stable=True).indices[:, :n], True)
    return kept.view(last.shape).movedim(-1, 1)


def by_pattern(weights: Mapping[str, Tensor], values: float | Mapping[str, float]) -> dict[str, float]:
    """A number for each weight: the same, or that of the first pattern that fits its name; others have none."""
    if not isinstance(values, Mapping):
        return dict.fromkeys(weights, float(values))
    found = {n: next((float(v) for p, v in values.items() if fnmatchcase(n, p)), None) for n in weights}
    return {name: value for name, value in found.items() if value is not None}


def shares_of(weights: Mapping[str, Tensor], density: float | Mapping[str, float]) -> dict[str, float]:
    """Like ``by_pattern``, held to 0 to 1. Raises ModelError for another number."""
    shares = by_pattern(weights, density)
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ModelError(f"{share} of '{name}' cannot stay; give a share from 0 to 1.")
    return shares
