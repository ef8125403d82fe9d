"""Dynamic network surgery (Guo et al., NeurIPS 2016): what was cut may be spliced back while training goes on."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from compress.errors import ArtifactError, ModelError
from compress.sparse.masks import Layers, Masks, weights_of

LOW, HIGH = 0.9, 1.1
"""A weight goes at 0.9 t or below, comes back above 1.1 t, and stays what it is in between."""


class DynamicSurgery:
    """Masks that follow the weights: the network computes with w * mask, the gradient of that moves all of w.

    Every layer has one threshold, fixed at the start: t = max(mean + c std, 0) of its |w|. After a step the masks are
    taken anew with probability (1 + gamma * iteration) ** -power, for each layer by itself, until ``stop``. While
    attached, the network's parameters are the masked ones, and the dense ones are kept here; during a step of the
    optimizer they change places. Several processes draw the same numbers from ``seed``.

    Args:
        model: a trained network; changed at once.
        optimizer: of its parameters. Weight decay acts on the dense weights.
        c: per pattern of names, or one number; a layer that no pattern fits stays dense.
        gamma: how fast surgery becomes rare.
        power: likewise.
        stop: the last iteration of surgery; None for no end.
        seed: of the draws.
        layers: which kinds.

    Raises:
        ModelError: no layer fits, or a number is out of its range.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        c: float | Mapping[str, float],
        *,
        gamma: float = 1e-4,
        power: float = 1.0,
        stop: int | None = None,
        seed: int = 0,
        layers: Layers = "all",
    ) -> None:
        if gamma < 0 or power < 0:
            raise ModelError(f"Surgery was given gamma {gamma} and power {power}; neither may be below 0.")
        patterns = c if isinstance(c, Mapping) else {"*": c}
        self._parameters: dict[str, nn.Parameter] = {}
        self.thresholds: dict[str, float] = {}
        for name, p in weights_of(model, layers).items():
            factor = next((value for pattern, value in patterns.items() if fnmatchcase(name, pattern)), None)
            if factor is not None:
                size = p.detach().abs()
                self._parameters[name] = p
                self.thresholds[name] = max(float(size.mean() + factor * size.std(correction=0)), 0.0)
        if not self._parameters:
            raise ModelError(f"No layer is named {', '.join(patterns)}; name the layers to operate on.")
        self._gamma, self._power, self._stop = gamma, power, stop
        self._generator = torch.Generator().manual_seed(seed)
        self._dense = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._kept = {name: torch.ones_like(p, dtype=torch.bool) for name, p in self._parameters.items()}
        self.iteration = 0
        self._operate(tuple(self._parameters))
        self._put_masked()
        self._handles = (
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        )

    @property
    def masks(self) -> Masks:
        """What stays as of now."""
        return Masks(self._kept)

    def finish(self) -> Masks:
        """End surgery: the network keeps its masked weights; the masks, to hold it to."""
        for handle in self._handles:
            handle.remove()
        self._put_masked()
        return self.masks

    def state_dict(self) -> dict[str, Tensor]:
        """All that a resumed training needs beside network and optimizer."""
        return {
            **{f"dense.{name}": t.clone() for name, t in self._dense.items()},
            **{f"kept.{name}": t.clone() for name, t in self._kept.items()},
            "thresholds": torch.tensor(list(self.thresholds.values()), dtype=torch.float64),
            "iteration": torch.tensor(self.iteration),
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on where ``state_dict`` was taken.

        Raises:
            ArtifactError: it is of another network.
        """
        wanted = set(self.state_dict())
        shapes = all(state[f"dense.{n}"].shape == p.shape for n, p in self._parameters.items() if f"dense.{n}" in state)
        if set(state) != wanted or not shapes:
            raise ArtifactError("The state of surgery is of another network; start this training again.")
        for name in self._parameters:
            self._dense[name].copy_(state[f"dense.{name}"])
            self._kept[name].copy_(state[f"kept.{name}"].bool())
        self.thresholds = dict(zip(self.thresholds, state["thresholds"].tolist(), strict=True))
        self.iteration = int(state["iteration"])
        self._generator.set_state(state["generator"].to("cpu", torch.uint8))
        self._put_masked()

    @torch.no_grad()
    def _before(self, *_: Any) -> None:
        for name, p in self._parameters.items():
            p.copy_(self._dense[name])

    @torch.no_grad()
    def _after(self, *_: Any) -> None:
        for name, p in self._parameters.items():
            self._dense[name].copy_(p)
        self.iteration += 1
        if self._stop is None or self.iteration <= self._stop:
            chance = (1 + self._gamma * self.iteration) ** -self._power
            draws = torch.rand(len(self._parameters), generator=self._generator).tolist()
            self._operate(tuple(n for n, draw in zip(self._parameters, draws, strict=True) if draw < chance))
        self._put_masked()

    def _operate(self, names: tuple[str, ...]) -> None:
        for name in names:
            self._kept[name] = operated(self._dense[name], self._kept[name], self.thresholds[name])

    @torch.no_grad()
    def _put_masked(self) -> None:
        for name, p in self._parameters.items():
            p.copy_(self._dense[name] * self._kept[name])


def operated(weights: Tensor, kept: Tensor, threshold: float) -> Tensor:
    """The mask after one surgery: cut at 0.9 t or below, splice above 1.1 t, leave the rest."""
    size = weights.abs()
    return (kept & (size > LOW * threshold)) | (size > HIGH * threshold)
