"""What a recipe asks of single weights: a sparse network beside the cut one, or a sparse teacher."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from compress.recipe.training import TrainRecipe

Share = Annotated[float, Field(ge=0, le=1)]
Shares = Share | dict[str, Share]
Factor = Annotated[float, Field(ge=0, le=100)]
Method = Literal[
    "gsm", "magnitude", "random", "scratch", "gradual", "iterative", "two_of_four", "han", "dns", "lobs", "dsd",
    "ticket", "pacnet",
]  # fmt: skip
COUNTED = ("gsm", "magnitude", "random", "scratch", "gradual", "iterative", "lobs", "dsd", "ticket", "pacnet")
"""Methods that are told how many weights stay; the others find that by what they are told instead."""
DENSE = ("dsd", "pacnet")
"""Methods that end with a network in which no weight has to be zero."""
ITERATED = ("iterative", "ticket")
LAST_WEIGHTS = ("gsm", "gradual", "dns")
"""Methods whose masks change while they train: the best weights on validation may be from before the masks."""


class SparseRecipe(TrainRecipe):
    """A training at whose end single weights are zero; its length is that of each phase of the method.

    How many weights stay is said once: ``ratio`` (60 keeps every sixtieth), ``bytes`` of the sparse file, or
    ``milliseconds`` of one image on this CPU with only nonzero weights multiplied. ``han`` has ``quality`` for each
    round instead, ``dns`` ``c``, both by pattern of names or as one number. A ticket goes back to the weights that
    transfer began with, or to those after ``rewind_epochs`` of training from there. By ``decay`` a weight that learns
    nothing in ``gsm`` shrinks by e to so much over the training, whatever its length, in place of ``weight_decay``.
    """

    method: Method
    of: Literal["teacher", "student"] = "teacher"
    ratio: Annotated[float, Field(gt=1, le=1e6)] | None = None
    bytes: Annotated[int, Field(ge=1)] | None = None
    milliseconds: Annotated[float, Field(gt=0, le=1e6)] | None = None
    layers: Literal["all", "conv", "linear"] = "all"
    rounds: Annotated[int, Field(ge=1, le=100)] = 1
    found_by: Literal["magnitude", "gsm"] = "magnitude"
    rewind_epochs: Annotated[int, Field(ge=0, le=100_000)] = 0
    quality: tuple[Factor | dict[str, Factor], ...] = (1.0,)
    c: float | dict[str, float] = 1.0
    gamma: Factor = 1e-4
    power: Factor = 1.0
    stop: Share = 0.6
    decay: Annotated[float, Field(gt=0, le=1000)] | None = None
    images: Annotated[int, Field(ge=8, le=1_000_000)] = 1024
    pull: Factor = 1e-3

    @model_validator(mode="after")
    def _says_once_how_many_stay(self) -> SparseRecipe:
        said = [key for key in ("ratio", "bytes", "milliseconds") if getattr(self, key) is not None]
        if self.method in COUNTED and len(said) != 1:
            raise ValueError(
                f"{self.method} keeps as many weights as it is told: give exactly one of ratio, bytes and milliseconds"
            )
        if self.method not in COUNTED and said:
            other = {"han": "quality", "dns": "c"}.get(self.method, "its pattern")
            raise ValueError(f"{self.method} finds by {other} how many weights stay; leave {said[0]} out")
        if self.rounds > 1 and self.method not in ITERATED:
            raise ValueError(f"rounds belong to {' and '.join(ITERATED)}; {self.method} has none, leave them out")
        if self.of == "student" and self.method in ("ticket", "pacnet"):
            raise ValueError(f"{self.method} begins before the network was trained; it is of the teacher")
        odd = [key for key, own in (("found_by", "magnitude"), ("rewind_epochs", 0)) if getattr(self, key) != own]
        if odd and self.method != "ticket":
            raise ValueError(f"{odd[0]} belongs to ticket; {self.method} has none, leave it out")
        if self.decay is not None and "gsm" not in (self.method, self.found_by):
            raise ValueError(f"decay belongs to gsm; {self.method} has none, leave it out")
        if self.decay is not None and "weight_decay" in self.model_fields_set:
            raise ValueError("decay takes the place of weight_decay; leave one of them out")
        if self.found_by == "gsm" and self.rounds > 1:
            raise ValueError("gsm finds a ticket's masks in one training; leave rounds out")
        if "gsm" in (self.method, self.found_by) and self.optimizer != "sgd":
            raise ValueError("gsm is an optimizer itself, with the momentum of sgd; leave optimizer out")
        last = self.method if self.method in LAST_WEIGHTS else "gsm" if self.found_by == "gsm" else None
        if last is not None and (self.ema or self.patience is not None):
            raise ValueError(f"{last} ends with its last weights; leave ema and patience out")
        return self

    @property
    def ends_dense(self) -> bool:
        """Whether the method's network is dense in the end."""
        return self.method in DENSE
