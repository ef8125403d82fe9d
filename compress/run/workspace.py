"""What the stages of one run share: the recipe, the folder, the data and the ledger."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from compress import artifact, cost, data
from compress.data import ImageData, ImageReader
from compress.errors import RecipeError
from compress.prune.planning import Plan
from compress.recipe.schema import DeployRecipe, Recipe
from compress.run.ledger import Ledger, ModelEntry, StageEntry
from compress.train import TASKS, make_fabric
from compress.train.ranks import once

if TYPE_CHECKING:
    from lightning.fabric import Fabric


@dataclass
class Workspace:
    """One run's folder and everything that its stages read.

    Args:
        recipe: what is asked for.
        out: the run folder.
        reader: how images are read and prepared.
        target: the target data, already checked.
        ledger: what is done so far; `ledger.json` always says the same.
    """

    recipe: Recipe
    out: Path
    reader: ImageReader
    target: ImageData
    ledger: Ledger

    @cached_property
    def source(self) -> ImageData:
        assert self.recipe.source is not None
        found = data.load(self.recipe.source.data, self.reader, self.recipe.seed)
        if found.task != self.target.task:
            raise RecipeError(f"source.data is for {found.task}, target for {self.target.task}; give both one task.")
        return found

    @cached_property
    def fabric(self) -> Fabric:
        return make_fabric(self.recipe.device, self.recipe.precision)

    @cached_property
    def example(self) -> Tensor:
        """Eight prepared training images, shape (8, C, H, W)."""
        return self.target.example(8)

    @property
    def deploy(self) -> DeployRecipe:
        """What the stages that lower are asked for; a run without them has no such stages."""
        assert self.recipe.deploy is not None
        return self.recipe.deploy

    def folder(self, model: str) -> Path:
        """Where a network's artifact lies: the three of the design on top, comparisons under checkpoints."""
        return self.out / model if model in {"teacher", "pruned", "student"} else self.out / "checkpoints" / model

    def training_state(self, name: str) -> Path:
        """Where a training leaves what `--resume` goes on from; removed when its stage is done."""
        return self.out / "checkpoints" / f"{name}.training.safetensors"

    def load(self, model: str) -> nn.Module:
        return artifact.load(self.folder(model), trusted=(self.recipe.model.factory.partition(":")[0],))

    def save(
        self,
        name: str,
        title: str,
        role: str,
        model: nn.Module,
        *,
        plan: Plan | None = None,
        val_accuracy: float | None = None,
        training_flops: float = 0.0,
        val_metrics: dict[str, float] | None = None,
        seed: int | None = None,
    ) -> None:
        """Writes an artifact and enters the network into the ledger (written when its stage is done).

        Of several processes rank 0 alone does, the others wait for it.
        """
        about = artifact.Description(
            factory=self.recipe.model.factory,
            arguments=self.recipe.model.arguments,
            task=self.target.task,
            classes=TASKS[self.target.task].outputs(self.target.classes),
            preprocessing=self.recipe.preprocessing.model_dump(mode="json"),
            plan=plan,
            seed=self.recipe.seed if seed is None else seed,
        )
        once(lambda: artifact.save(model, self.folder(name), about) and None)
        entry = ModelEntry(
            name=name,
            title=title,
            role=role,
            macs=cost.macs(model, self.example),
            params=cost.parameters(model),
            file_bytes=(self.folder(name) / "model.safetensors").stat().st_size,
            training_flops=training_flops,
            val_accuracy=val_accuracy,
            val_metrics=val_metrics or {},
        )
        self.ledger = self.ledger.with_model(entry)

    def finish(self, entry: StageEntry) -> None:
        """Enters a finished stage and writes the ledger; from here on a resumed run skips it."""
        self.ledger = self.ledger.with_stage(entry)
        self.ledger.write(self.out / "ledger.json")
        for state in self.training_state("*").parent.glob(self.training_state("*").name):
            state.unlink()
        self.log("stage", name=entry.name, seconds=round(entry.seconds, 3), metrics=entry.metrics)

    def log(self, event: str, **values: object) -> None:
        """Appends one line to `log.jsonl`."""
        line = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": event, **values})
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
