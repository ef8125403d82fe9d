"""The engines of one run: which network in which precision, and where its ONNX file lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from compress.recipe.schema import DeployRecipe, Recipe
from compress.run.workspace import Workspace
from deploy.exporting.lowering import Lowered, lower

PARITY = "deploy/parity.json"
ENGINES = "deploy/engines.json"
AWARE = "aware"
"""The stage of quantisation-aware training, and the student after it, beside the comparisons in ``checkpoints/``."""


@dataclass(frozen=True)
class Variant:
    """One engine of the run: a network in a precision."""

    name: str
    model: str
    precision: str

    @property
    def held(self) -> bool:
        """Whether a gate holds it to a baseline: not the network that is cut and not trained since."""
        return self.model != "pruned"

    @property
    def onnx(self) -> str:
        """Where its ONNX file lies in the run folder."""
        return f"deploy/{self.model}.{self.precision}.onnx"


def lowered_of(work: Workspace, model: nn.Module, *, in_graph: bool | None = None) -> Lowered:
    """Return what of a network goes into its ONNX file, the outputs' names, and what the bundle does with them.

    Args:
        in_graph: whether the file itself does what follows the network; by default what the recipe says.
    """
    inside = work.deploy.in_graph if in_graph is None else in_graph
    return lower(model, work.target.task, work.example, in_graph=inside)


def exporting(deploy: DeployRecipe) -> dict[str, Any]:
    """Return what the recipe says of every ONNX file, as arguments of ``export_onnx``."""
    auto = ("onnxruntime", "openvino", *(("tensorrt_rtx",) if deploy.rtx_targets else ()))
    opset = None if deploy.opset == "auto" else deploy.opset
    return {"opset": opset, "runtimes": auto, "dynamic_size": deploy.dynamic_size}


def variants_of(recipe: Recipe) -> list[Variant]:
    """List every engine that the recipe asks for, the dense one first; none where it stops after distilling."""
    if recipe.deploy is None:
        return []
    made = [Variant("dense", "teacher", "fp32"), Variant("pruned", "pruned", "fp32")]
    names = {"fp32": "distilled", "fp16": "distilled-fp16", "int8": "int8"}
    return made + [Variant(names[p], "student", p) for p in ("fp32", "fp16", "int8") if p in recipe.deploy.precisions]
