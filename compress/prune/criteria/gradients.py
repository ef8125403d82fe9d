"""Criteria of gradients: what the loss says of a unit, by its weights or at the gate through which it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from compress.errors import PlanError
from compress.prune.criteria.base import Given, by_unit, over
from compress.prune.reads import ReadCall, Reads, Site, images_first, sites, unseen


def taylor(given: Given) -> Tensor:
    """Mean over batches of the squared sum of weight times gradient over all that makes a unit.

    The sum is the change of the batch's loss, to first order, when the unit is masked (Molchanov et al., Importance
    Estimation for Neural Network Pruning, 2019, with whole units for their single filters).
    """
    copy, total, count = given.copy(), given.zeros(), 0
    made = _makers(given, copy.parameters)
    for count, batch in enumerate(given.batches(), 1):
        loss = given.loss_of(copy.network, batch, count)
        total += _sums(given, made, _gradients(loss, [made[name] for name in made])).square()
    return total / count


def taylor_gate(given: Given) -> Tensor:
    """Mean over images of the size of activation times gradient, summed over what is read of a unit (Molchanov et
    al., Pruning Convolutional Neural Networks for Resource Efficient Inference, 2017)."""
    return _over_images(given, lambda slopes: slopes.abs())


def fisher(given: Given) -> Tensor:
    """Half the mean over images of the squared sum of activation times gradient over what is read of a unit: the
    loss lost, to second order, with the Fisher information for its curvature (Theis et al., Faster Gaze Prediction
    with Dense Networks and Fisher Pruning, 2018). Their cost per unit is `normalize="cost"`."""
    return _over_images(given, lambda slopes: slopes.square() / 2)


def obd(given: Given) -> Tensor:
    """Half the sum over a unit's weights of weight squared times the Hessian's diagonal (LeCun et al., Optimal Brain
    Damage, 1990), the diagonal estimated by one random direction a batch (Bekas et al., 2007)."""
    total, count = given.zeros(), 0
    for made, products in _curvatures(given):
        total += by_unit(given.trace, {
            slot: over(made[slot[0]].square() * products[slot[0]], slot[1]) for slot in _slots(given, made)
        })  # fmt: skip
        count += 1
    return total / (2 * count)


def hutchinson(given: Given) -> Tensor:
    """The mean curvature of a unit's filters, half the trace of its block of the Hessian for each weight, times their
    squared norm (Yu et al., Hessian-Aware Pruning and Optimal Neural Implant, 2022); the trace is Hutchinson's
    estimate with one random direction a batch."""
    trace, squares, sizes, count = given.zeros(), given.zeros(), given.zeros(), 0
    for made, products in _curvatures(given):
        filters = [slot for slot in _slots(given, made) if made[slot[0]].dim() > 1]
        trace += by_unit(given.trace, {slot: over(products[slot[0]], slot[1]) for slot in filters})
        count += 1
        if count == 1:
            squares = by_unit(given.trace, {s: over(made[s[0]].square(), s[1]) for s in filters})
            sizes = by_unit(given.trace, {s: over(torch.ones_like(made[s[0]]), s[1]) for s in filters})
    return trace / (2 * count * sizes.clamp_min(1)) * squares


# Weights -------------------------------------------------------------------------------------------------


def _slots(given: Given, made: Mapping[str, Tensor]) -> list[tuple[str, int]]:
    return [slot for slot in given.trace.slots if slot[0] in made and given.trace.roles[slot] == "producer"]


def _makers(given: Given, parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """The parameters that make units, asking for gradients."""
    names = {name for (name, _), role in given.trace.roles.items() if role == "producer" and name in parameters}
    made = {name: parameters[name] for name in given.trace.parameters if name in names}
    for parameter in made.values():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    return made


def _gradients(loss: Tensor, wanted: Sequence[Tensor], again: bool = False) -> list[Tensor]:
    """The slopes of the loss; zero for what it does not depend on."""
    if not loss.requires_grad:
        raise PlanError("The loss does not depend on the weights; give a loss of the network's outputs, not detached.")
    try:
        found = torch.autograd.grad(loss, wanted, allow_unused=True, create_graph=again)
    except RuntimeError as error:
        if "double backward" not in str(error):
            raise
        raise PlanError(
            f"The loss has no second derivative ({str(error).splitlines()[0][:120]}); take a criterion of the first, "
            "such as fisher."
        ) from None
    return [torch.zeros_like(w) if g is None else g for w, g in zip(wanted, found, strict=True)]


def _sums(given: Given, made: Mapping[str, Tensor], gradients: list[Tensor]) -> Tensor:
    products = {name: made[name].detach() * g for name, g in zip(made, gradients, strict=True)}
    return by_unit(given.trace, {slot: over(products[slot[0]], slot[1]) for slot in _slots(given, made)})


def _curvatures(given: Given) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """For each batch v * (H v), whose mean over random signs v is the diagonal of the loss's Hessian H."""
    copy = given.copy()
    made = _makers(given, copy.parameters)
    for number, batch in enumerate(given.batches(), 1):
        loss = given.loss_of(copy.network, batch, number)
        slopes = _gradients(loss, list(made.values()), again=True)
        signs = [_signs(slope, given.generator) for slope in slopes]
        along = torch.stack([(slope * sign).sum() for slope, sign in zip(slopes, signs, strict=True)]).sum()
        # Of a loss that is linear in all weights there is no curvature.
        curved = _gradients(along, list(made.values())) if along.requires_grad else [torch.zeros_like(s) for s in signs]
        yield (
            {name: p.detach() for name, p in made.items()},
            {name: sign * curve.detach() for name, sign, curve in zip(made, signs, curved, strict=True)},
        )


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randint(0, 2, like.shape, generator=generator)
    return (2 * drawn - 1).to(like)


# Gates ---------------------------------------------------------------------------------------------------


class _Gates:
    """Puts a gate, a factor of one, before every read of a unit: its slope is activation times gradient."""

    def __init__(self, found: Mapping[str, tuple[Site, ...]], images: int) -> None:
        self.found, self.images = found, images
        self.gates: list[tuple[Tensor, Site, int]] = []

    def __call__(self, call: ReadCall, product: Callable[[Tensor], Tensor]) -> Tensor:
        x = call.x
        for site in self.found[call.name]:
            if not site.made:
                x = self._gated(x, site, call.along)
        out = product(x)
        for site in self.found[call.name]:
            if site.made:
                out = self._gated(out, site, call.along)
        return out

    def _gated(self, x: Tensor, site: Site, along: int) -> Tensor:
        shape, channels = [1] * x.dim(), x.dim() + along
        sequences_first = x.shape[0] != self.images and channels > 1 and x.shape[1] == self.images
        shape[channels] = x.shape[channels]
        if channels:
            place = 1 if sequences_first else 0
            shape[place] = x.shape[place]
        gate = torch.ones(shape, dtype=x.dtype, device=x.device, requires_grad=True)
        self.gates.append((gate, site, along))
        return x * gate


def _over_images(given: Given, judged: Callable[[Tensor], Tensor]) -> Tensor:
    """The mean over images of what is made of each unit's slope at its gates.

    Raises:
        PlanError: a free unit has no gate, or the loss does not depend on any.
    """
    copy, found = given.copy(), sites(given.trace)
    total, seen, images = given.zeros(), given.zeros(), 0
    weights = {name: copy.parameters[name] for name in found if name in copy.parameters}
    for number, batch in enumerate(given.batches(), 1):
        gates = _Gates(found, batch.images)
        with Reads(weights, gates):
            loss = given.loss_of(copy.network, batch, number)
        slopes = _gradients(loss, [gate for gate, _, _ in gates.gates]) if gates.gates else []
        sums = torch.zeros(batch.images, given.trace.units, dtype=torch.float64)
        for slope, (_, site, along) in zip(slopes, gates.gates, strict=True):
            each = images_first(slope.double().cpu(), batch.images, along)
            units = site.channels(each.shape[1])
            if number == 1:
                seen.index_add_(0, units, torch.ones(len(units), dtype=torch.float64))
            # The loss is a mean: an image's own is as many times as large. Where images cannot be told apart they
            # share alike what all have.
            own = each * batch.images if len(each) == batch.images else each.expand(batch.images, -1)
            sums.index_add_(1, units, own)
        total += judged(sums).sum(0)
        images += batch.images
        if number == 1:
            unseen(given.trace, seen)
    return total / images
