"""What the stages of one run share: the recipe, the folder, the data and the ledger."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from compress import artifact, cost, data
from compress.data import ImageData, ImageReader
from compress.errors import RecipeError
from compress.prune.planning import Plan
from compress.recipe.schema import DeployRecipe, Recipe
from compress.run.ledger import Ledger, Made, ModelEntry, Outcome
from compress.train import TASKS, make_fabric
from compress.train.fabric import is_first
from compress.train.ranks import once

if TYPE_CHECKING:
    from lightning.fabric import Fabric


@dataclass(frozen=True)
class MadeNetwork:
    """What a stage knows of a network that it made; the rest of its entry in the ledger is measured.

    Args:
        name: what the ledger and the folder call it.
        title: what a person reads.
        role: what the report takes it for.
        val_accuracy: the metric that chooses, on validation data.
        val_metrics: all metrics on validation data.
        training_flops: what making it cost, with all that it began from.
        plan: teacher to this network; None for a whole one.
    """

    name: str
    title: str
    role: str
    val_accuracy: float
    val_metrics: Mapping[str, float] = field(default_factory=dict)
    training_flops: float = 0.0
    plan: Plan | None = None


def saved_in(network: str) -> str:
    """Return the folder of a network's artifact in the run folder: three on top, comparisons under checkpoints."""
    return network if network in {"teacher", "pruned", "student"} else f"checkpoints/{network}"


@dataclass
class Workspace:
    """One run's folder and everything that its stages read; nothing else writes the ledger.

    Args:
        recipe: what is asked for.
        out: the run folder.
        reader: how images are read and prepared.
        target: the target data, already checked.
        ledger: what is done so far.
        basis: names what the stage in progress begins from; the state of a training is bound to it.
    """

    recipe: Recipe
    out: Path
    reader: ImageReader
    target: ImageData
    ledger: Ledger
    basis: str = ""

    @cached_property
    def source(self) -> ImageData:
        """The data of the source domain; raises RecipeError where they are for another task than the target."""
        assert self.recipe.source is not None
        found = data.load(self.recipe.source.data, self.reader, self.recipe.seed)
        if found.task != self.target.task:
            raise RecipeError(f"source.data is for {found.task}, target for {self.target.task}; give both one task.")
        return found

    @cached_property
    def fabric(self) -> Fabric:
        """The device and the processes that the run trains on."""
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

    def folder(self, network: str) -> Path:
        """Return where a network's artifact lies."""
        return self.out / saved_in(network)

    def training_state(self, name: str) -> Path:
        """Return where a training leaves what ``--resume`` goes on from; it is removed when its stage is done."""
        return self.out / "checkpoints" / f"{name}.training.safetensors"

    def load(self, network: str) -> nn.Module:
        """Load a network that an earlier stage saved; raises what ``artifact.load`` raises."""
        return artifact.load(self.folder(network), trusted=(self.recipe.model.factory.partition(":")[0],))

    def plan(self) -> Plan:
        """Return the plan from the teacher to the pruned network."""
        found = artifact.describe(self.folder("pruned")).plan
        assert found is not None
        return found

    def save(self, model: nn.Module, made: MadeNetwork) -> ModelEntry:
        """Write a network's artifact and return its entry for the stage's outcome.

        Of several processes the first one alone writes, the others wait for it.
        """
        about = artifact.Description(
            factory=self.recipe.model.factory,
            arguments=self.recipe.model.arguments,
            task=self.target.task,
            classes=TASKS[self.target.task].outputs(self.target.classes),
            preprocessing=self.recipe.preprocessing.model_dump(mode="json"),
            plan=made.plan,
            seed=self.recipe.seed,
        )
        once(lambda: artifact.save(model, self.folder(made.name), about) and None)
        return ModelEntry(
            name=made.name,
            title=made.title,
            role=made.role,
            macs=cost.macs(model, self.example),
            params=cost.parameters(model),
            file_bytes=(self.folder(made.name) / artifact.WEIGHTS).stat().st_size,
            training_flops=made.training_flops,
            val_accuracy=made.val_accuracy,
            val_metrics=dict(made.val_metrics),
        )

    def finish(self, name: str, title: str, seconds: float, outcome: Outcome, made: Made | None = None) -> None:
        """Enter a finished stage and write the ledger; from here on a resumed run skips it."""
        self.ledger = self.ledger.with_stage(name, title, seconds, outcome, made)
        self.write_ledger()
        self.forget_trainings()
        self.log("stage", name=name, seconds=round(seconds, 3), metrics=outcome.metrics)

    def forget_trainings(self) -> None:
        """Remove the states that a training would go on from."""
        for state in self.training_state("*").parent.glob(self.training_state("*").name):
            state.unlink()

    def note(self, notes: tuple[str, ...]) -> None:
        """Add notes about the whole run and write the ledger."""
        self.ledger = self.ledger.with_notes(notes)
        self.write_ledger()

    def take_back(self, kept: int) -> None:
        """Forget all stages but the first ``kept``; the file follows when the next stage is done."""
        self.ledger = self.ledger.first(kept)

    def share_ledger(self) -> None:
        """Give the other processes of the run the ledger of the first."""
        told = once(self.ledger.model_dump_json)
        if not is_first():
            self.ledger = Ledger.model_validate_json(told)

    def write_ledger(self) -> None:
        """Write ``ledger.json``."""
        self.ledger.write(self.out / "ledger.json")

    def log(self, event: str, **values: object) -> None:
        """Append one line to ``log.jsonl``."""
        line = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": event, **values})
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
