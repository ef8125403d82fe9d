"""The ledger: what each stage did and cost, and how good each network is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from compress.errors import ArtifactError
from compress.files import write_text


class StageEntry(BaseModel):
    """One finished stage: its seconds, the FLOPs it trained with and what it measured."""

    model_config = ConfigDict(frozen=True)
    name: str
    title: str
    seconds: float = Field(ge=0, allow_inf_nan=False)
    training_flops: float | None = None
    metrics: dict[str, float] = {}
    notes: tuple[str, ...] = ()


class ModelEntry(BaseModel):
    """One network: accuracies are shares of 1, sizes are counts, file_bytes is its fp32 artifact.

    `val_accuracy` and `test_accuracy` hold the metric that chooses (top-1, mAP, mIoU), the others are beside them.
    """

    model_config = ConfigDict(frozen=True)
    name: str
    title: str
    role: str
    macs: int
    params: int
    file_bytes: int
    training_flops: float
    val_accuracy: float | None = None
    test_accuracy: float | None = None
    test_correct: int | None = None
    test_total: int | None = None
    val_metrics: dict[str, float] = {}
    test_metrics: dict[str, float] = {}


class Ledger(BaseModel):
    """Everything that one run has to show; `with_...` give a new one.

    `metric` is the title of what chooses: accuracy (top-1), mAP or mIoU. `made_by` is what the weights' last bits
    depend on beside the recipe; `notes` tell of the whole run, such as that it was resumed under something else.
    """

    model_config = ConfigDict(frozen=True)
    format: Literal["niwaki-ledger-1"] = "niwaki-ledger-1"
    name: str
    seed: int
    created: str
    kernels: str
    machine: dict[str, Any] = {}
    versions: dict[str, str] = {}
    task: str = "classification"
    metric: str = "accuracy"
    classes: tuple[str, ...] = ()
    stages: tuple[StageEntry, ...] = ()
    models: tuple[ModelEntry, ...] = ()
    plan: dict[str, Any] | None = None
    test_images: int | None = None
    made_by: dict[str, str] = {}
    notes: tuple[str, ...] = ()

    def done(self, stage: str) -> bool:
        return any(entry.name == stage for entry in self.stages)

    def model(self, name: str) -> ModelEntry:
        found = next((entry for entry in self.models if entry.name == name), None)
        if found is None:
            raise ArtifactError(f"The ledger knows no network '{name}'; start the run again in another folder.")
        return found

    def with_stage(self, entry: StageEntry) -> Ledger:
        return self.model_copy(update={"stages": (*self.stages, entry)})

    def with_model(self, entry: ModelEntry) -> Ledger:
        """Adds a network, or replaces the entry of that name in its place."""
        if any(e.name == entry.name for e in self.models):
            models = tuple(entry if e.name == entry.name else e for e in self.models)
        else:
            models = (*self.models, entry)
        return self.model_copy(update={"models": models})

    def write(self, path: Path) -> None:
        write_text(path, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Ledger:
        """Raises ArtifactError when the file is damaged."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (ValidationError, OSError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise ArtifactError(f"{path} is not a ledger ({reason}); start the run again without --resume.") from None
