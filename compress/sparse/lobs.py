"""Layer-wise optimal brain surgeon (Dong et al., NeurIPS 2017): drop what a layer's output needs least, mend the rest.

The error of a layer's output, before its activation, is quadratic in the change of its weights:
    E = 1/2 dw^T H dw for each output, H = mean over inputs of x x^T, the bias counted as an input that is always 1.
Setting w_q to zero and moving the others as well as can be costs w_q^2 / (2 [H^-1]_qq).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.errors import ModelError
from compress.sparse.magnitude import largest_first, shares_of
from compress.sparse.masks import Layers, Masks, bare, weights_of

POSITIONS = 64
"""Of a convolution, so many places of each image are looked at."""


def prune_layers(
    model: nn.Module,
    batches: Iterable[Tensor],
    density: float | Mapping[str, float],
    *,
    damping: float = 1e-4,
    layers: Layers = "all",
) -> Masks:
    """Cut every layer by its own error and mend what stays; all layers are judged by the uncut network's inputs.

    The paper deletes one weight after another and corrects the rest by -w_q / [H^-1]_qq H^-1 e_q each time, with the
    inverse of the whole layer throughout. Here the corrections of one output are solved together, which is what that
    formula gives when the inverse is downdated after each deletion; for one deletion both are the same.

    Args:
        model: a trained network; its weights and biases are changed.
        batches: inputs [N, ...] of the network.
        density: share of each layer that stays, for all or by pattern of names; others are left alone.
        damping: added to H's diagonal, as a share of its mean.
        layers: which kinds.

    Returns:
        What stays.

    Raises:
        ModelError: a grouped or transposed convolution, a share outside 0 to 1, no batch.
    """
    shares = shares_of(weights_of(model, layers), density)
    modules = _modules(model, shares)
    moments = second_moments(model, modules, batches)
    kept = {}
    for name, module in modules.items():
        hessian = damped(moments[name], damping)
        matrix, bias = module.weight.detach().flatten(1).double(), module.bias
        scores = sensitivities(matrix, hessian)
        stays = largest_first(scores.flatten(), round(shares[name] * matrix.numel())).view_as(matrix)
        whole = matrix if bias is None else torch.cat([matrix, bias.detach()[:, None].double()], 1)
        mended = repaired(whole, hessian, stays)
        with torch.no_grad():
            module.weight.copy_(mended[:, : matrix.shape[1]].view_as(module.weight))
            if bias is not None:
                bias.copy_(mended[:, -1])
        kept[name] = stays.view_as(module.weight)
    return Masks(kept)


def second_moments(model: nn.Module, modules: Mapping[str, nn.Module], batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """For each layer the mean of x x^T over its inputs, float64 [I, I] without a bias, [I + 1, I + 1] with one."""
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(modules, 0)

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            rows = _rows(module, inputs[0].detach())
            sums[name] = sums.get(name, 0) + rows.T @ rows
            counts[name] += len(rows)

        return hook

    handles = [module.register_forward_pre_hook(watch(name)) for name, module in modules.items()]
    training = model.training
    try:
        model.eval()
        with torch.no_grad():
            for batch in batches:
                model(batch)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    silent = [name for name in modules if not counts[name]]
    if silent:
        raise ModelError(
            f"No input reached '{silent[0]}'; give at least one batch, and leave out layers that do not run."
        )
    return {name: sums[name] / counts[name] for name in modules}


def damped(hessian: Tensor, damping: float) -> Tensor:
    """H with a share of its mean diagonal added, so that inputs that are always zero leave it invertible."""
    extra = damping * float(hessian.diagonal().mean())
    return hessian + torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device) * (extra or damping)


def sensitivities(weights: Tensor, hessian: Tensor) -> Tensor:
    """w_q^2 / (2 [H^-1]_qq) of each weight [O, I]; H may have the bias as its last row and column."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian)).diagonal()
    return weights.square() / (2 * inverse[: weights.shape[1]])


def repaired(weights: Tensor, hessian: Tensor, kept: Tensor) -> Tensor:
    """Weights with the dropped ones at zero and the kept ones moved to where the output changes least.

    Row by row: with K kept and D dropped, w_K becomes w_K + H_KK^-1 H_KD w_D.

    Args:
        weights: [O, I], or [O, I + 1] with the bias last.
        hessian: symmetric positive definite, of the width of ``weights``.
        kept: booleans [O, I]; a bias always stays.
    """
    stays = kept
    if weights.shape[1] > kept.shape[1]:
        stays = torch.cat([kept, torch.ones_like(kept[:, :1])], 1)
    new = torch.zeros_like(weights)
    for row, (w, mask) in enumerate(zip(weights, stays, strict=True)):
        k, d = mask.nonzero()[:, 0], (~mask).nonzero()[:, 0]
        new[row, k] = w[k]
        if len(k) and len(d):
            factor = torch.linalg.cholesky(hessian[k][:, k])
            new[row, k] += torch.cholesky_solve((hessian[k][:, d] @ w[d])[:, None], factor)[:, 0]
    return new


def _modules(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Linear | nn.Conv2d]:
    found: dict[str, nn.Linear | nn.Conv2d] = {}
    for name in names:
        module = bare(model).get_submodule(name.rpartition(".")[0])
        plain = isinstance(module, nn.Conv2d) and module.groups == 1 and module.padding_mode == "zeros"
        if not isinstance(module, nn.Linear) and not plain:
            raise ModelError(
                f"'{name}' is of a {type(module).__name__} that the surgeon does not know; leave it out by `density`."
            )
        found[name] = module  # type: ignore[assignment]
    return found


def _rows(module: nn.Module, x: Tensor) -> Tensor:
    """Inputs of a layer as rows [N, I], float64, a one at the end of each where there is a bias."""
    if isinstance(module, nn.Conv2d):
        patches = F.unfold(x, module.kernel_size, module.dilation, _padding(module), module.stride)
        step = max(1, patches.shape[2] // POSITIONS)
        rows = patches[:, :, ::step].transpose(1, 2).flatten(0, 1)
    else:
        rows = x.flatten(0, -2)
    rows = rows.double()
    return rows if module.bias is None else torch.cat([rows, torch.ones_like(rows[:, :1])], 1)


def _padding(module: nn.Conv2d) -> tuple[int, ...]:
    if isinstance(module.padding, str):
        raise ModelError(f"The surgeon cannot read padding='{module.padding}'; give the convolution numbers.")
    return module.padding
