"""The engines of one run: which network in which precision, and where its ONNX file lies."""

from __future__ import annotations

from dataclasses import dataclass

from compress.recipe import Recipe

PARITY = "deploy/parity.json"
ENGINES = "deploy/engines.json"
AWARE = "aware"
"""The student after quantisation-aware training, beside the comparisons under `checkpoints/`."""


@dataclass(frozen=True)
class Variant:
    """One engine of the run: a network in a precision."""

    name: str
    model: str
    precision: str

    @property
    def onnx(self) -> str:
        return f"deploy/{self.model}.{self.precision}.onnx"


def variants_of(recipe: Recipe) -> list[Variant]:
    """Every engine that the recipe asks for, the dense one first; none where it stops after distilling."""
    if recipe.deploy is None:
        return []
    made = [Variant("dense", "teacher", "fp32"), Variant("pruned", "pruned", "fp32")]
    names = {"fp32": "distilled", "fp16": "distilled-fp16", "int8": "int8"}
    return made + [Variant(names[p], "student", p) for p in ("fp32", "fp16", "int8") if p in recipe.deploy.precisions]
