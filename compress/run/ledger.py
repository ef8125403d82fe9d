"""The ledger: what each stage did and cost, and how good each network is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from compress.errors import ArtifactError
from compress.files import read_bytes, write_text
from compress.validation import explain
from deploy.bench.shipping import ShipDecision


class Made(BaseModel):
    """What a stage was made from and what it left, each a SHA-256 in hexadecimal.

    ``recipe`` is of what was asked for, ``parents`` of all that the stages before it left, ``outputs`` of each file
    that it left, by its path in the run folder.
    """

    model_config = ConfigDict(frozen=True)
    recipe: str
    parents: str
    outputs: dict[str, str]


class StageEntry(BaseModel):
    """One finished stage: its seconds, the FLOPs it trained with, what it measured and what it was made from."""

    model_config = ConfigDict(frozen=True)
    name: str
    title: str
    seconds: float = Field(ge=0, allow_inf_nan=False)
    training_flops: float | None = None
    metrics: dict[str, float] = {}
    notes: tuple[str, ...] = ()
    made: Made | None = None


class ReliabilityBin(BaseModel):
    """The answers of a classifier whose probability lies above ``low`` and up to ``high``, both shares of 1.

    ``images`` counts them and ``right`` those that are right; ``probability`` is their mean probability.
    """

    model_config = ConfigDict(frozen=True)
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)
    images: int = Field(ge=1)
    right: int = Field(ge=0)
    probability: float = Field(ge=0, le=1)


class ModelEntry(BaseModel):
    """One network: accuracies are shares of 1, sizes are counts, file_bytes is its fp32 artifact.

    ``val_accuracy`` and ``test_accuracy`` hold the metric that chooses (top-1, mAP, mIoU), ``val_metrics`` and
    ``test_metrics`` hold all of them. ``test_reliability`` says how sure a classifier is on the test split and how
    often it is right.
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
    test_reliability: tuple[ReliabilityBin, ...] = ()


class DifferingImage(BaseModel):
    """A test image that student and teacher answer differently.

    ``index`` is its place in the split and ``file`` its file, relative to the data set, where it is made from one;
    ``label`` is its true class, ``picture`` the SHA-256 of the small picture of it in the run folder.
    """

    model_config = ConfigDict(frozen=True)
    index: int = Field(ge=0)
    file: str | None = None
    label: str
    teacher: str
    teacher_probability: float = Field(ge=0, allow_inf_nan=False)
    student: str
    student_probability: float = Field(ge=0, allow_inf_nan=False)
    picture: str


class DifferingImages(BaseModel):
    """How many test images student and teacher answer differently, and those that differ most."""

    model_config = ConfigDict(frozen=True)
    total: int = Field(ge=0)
    images: tuple[DifferingImage, ...] = ()


class Outcome(BaseModel):
    """What a finished stage hands to the ledger.

    ``metrics`` are its figures, ``models`` the networks that it made or measured, ``plan`` the figures of a cut,
    ``shipping`` the one decision of what ships, ``differing`` what student and teacher answer differently.
    """

    model_config = ConfigDict(frozen=True)
    metrics: dict[str, float] = {}
    training_flops: float | None = None
    notes: tuple[str, ...] = ()
    models: tuple[ModelEntry, ...] = ()
    plan: dict[str, Any] | None = None
    shipping: ShipDecision | None = None
    differing: DifferingImages | None = None


class Ledger(BaseModel):
    """Everything that one run has to show; the methods ``with_...`` return a new one.

    ``metric`` is the title of the metric that chooses: accuracy (top-1), mAP or mIoU. ``made_by`` is what the last bits
    of the weights depend on beside the recipe; ``commit`` is that of this package, where it is a checkout, and
    ``data_sha256`` names the target data; ``notes`` are about the whole run, such as that it was resumed under
    other versions.
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
    shipping: ShipDecision | None = None
    differing: DifferingImages | None = None
    made_by: dict[str, str] = {}
    commit: str | None = None
    data_sha256: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def training_flops(self) -> float:
        """FLOPs that all stages so far trained with."""
        return sum(entry.training_flops or 0.0 for entry in self.stages)

    def figure(self, name: str) -> float | None:
        """Return the newest figure of that name among the stages' metrics; None where no stage measured it."""
        return next((entry.metrics[name] for entry in reversed(self.stages) if name in entry.metrics), None)

    def model(self, name: str) -> ModelEntry:
        """Return a network's entry; raise ArtifactError where there is none."""
        found = next((entry for entry in self.models if entry.name == name), None)
        if found is None:
            raise ArtifactError(f"The ledger knows no network '{name}'; start the run again in another folder.")
        return found

    def with_stage(self, name: str, title: str, seconds: float, outcome: Outcome, made: Made | None = None) -> Ledger:
        """Add a finished stage; its networks replace entries of the same name in their places."""
        entry = StageEntry(
            name=name,
            title=title,
            seconds=seconds,
            training_flops=outcome.training_flops,
            metrics=outcome.metrics,
            notes=outcome.notes,
            made=made,
        )
        models = {model.name: model for model in (*self.models, *outcome.models)}
        plan = self.plan if outcome.plan is None else outcome.plan
        shipping = self.shipping if outcome.shipping is None else outcome.shipping
        differing = self.differing if outcome.differing is None else outcome.differing
        stages, networks = (*self.stages, entry), tuple(models.values())
        update = {"stages": stages, "models": networks, "plan": plan, "shipping": shipping, "differing": differing}
        return self.model_copy(update=update)

    def with_notes(self, notes: tuple[str, ...]) -> Ledger:
        """Add notes about the whole run."""
        return self.model_copy(update={"notes": (*self.notes, *notes)})

    def first(self, count: int) -> Ledger:
        """Keep the first ``count`` stages alone; what they left, networks and plan, stays."""
        return self.model_copy(update={"stages": self.stages[:count]})

    def write(self, path: Path) -> None:
        """Write the ledger to a temporary name and rename it."""
        write_text(path, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Ledger:
        """Read a ledger; raise ArtifactError where the file is damaged."""
        try:
            return cls.model_validate_json(read_bytes(path))
        except (ValidationError, OSError) as error:
            reason = explain(error) if isinstance(error, ValidationError) else str(error)
            raise ArtifactError(f"{path} is not a ledger ({reason}); start the run again without --resume.") from None
