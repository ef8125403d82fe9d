"""What a recipe may hold: one frozen, validated class for each part of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from compress.models.names import RENAMED, is_own_code
from compress.prune.budget import Budget
from compress.prune.criteria import CRITERIA
from compress.prune.schedule import Schedule
from compress.prune.sparsify import Kind
from compress.recipe.data import DataRecipe, FunctionData, Part
from compress.recipe.sparse import SparseRecipe
from compress.recipe.training import Epochs, Rate, TrainRecipe, Weight

Positive = Annotated[float, Field(gt=0)]
Level = Annotated[int, Field(ge=0, le=255)]


class ModelRecipe(Part):
    """``torchvision:NAME``, ``niwaki:NAME`` or ``module:function``, and where its pretrained weights come from."""

    factory: str
    arguments: dict[str, Any] = Field(default={})
    weights: str | None = None
    licence: Annotated[str, Field(min_length=1, max_length=200)] | None = None

    @field_validator("factory")
    @classmethod
    def _current_name(cls, value: str) -> str:
        """Read what earlier versions called our networks."""
        return RENAMED.get(value, value)


class PreprocessingRecipe(Part):
    """How an image becomes the network's input, in training, evaluation and the bundle alike."""

    size: tuple[Annotated[int, Field(ge=8, le=4096)], Annotated[int, Field(ge=8, le=4096)]]
    mode: Literal["L", "RGB"] = "RGB"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[Positive, ...] = (0.229, 0.224, 0.225)
    interpolation: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"] = "bilinear"
    resize: Literal["stretch", "shorter_side_center_crop", "letterbox"] = "shorter_side_center_crop"
    channels: Literal["RGB", "BGR"] = "RGB"
    background: tuple[Level, Level, Level] | None = None
    bits: Annotated[int, Field(ge=9, le=16)] | None = None
    padding: Level = 0


class SourceRecipe(Part):
    """A source domain to pretrain on."""

    data: DataRecipe
    train: TrainRecipe


STUDIED = {"criterion": "kfac", "reconstruct": True}
"""How a network is cut unless its recipe says otherwise: what benchmarks/criteria and the examples found best."""


_OF_FILTERS = ("l1", "l2", "fpgm", "random")
"""Criteria that look at filters alone, not at the norms behind them."""

AFTER_TRANSFER = ("S-T-P-T", "S-T-P")
"""Orders in which the cut comes after transfer: source, target, prune, and target again or nothing."""


class SparsifyRecipe(Part):
    """A training of the whole network before it is cut, in which a penalty grows on what is to go.

    ``kind`` is a penalty of ``compress.prune.sparsify``, ``structures`` (scales driven to exactly zero,
    ``compress.prune.structures``) or ``unit_gsm`` (``compress.sparse.unit_gsm``); a strength of None is the kind's
    own, of ``unit_gsm`` its weight decay, an lr of None transfer's. With ``blocks`` the scales of ``structures`` stand
    behind the branches of residual blocks, not behind channels; blocks whose scale ends at zero go whole.
    """

    kind: Kind | Literal["structures", "unit_gsm"]
    epochs: Epochs
    strength: Annotated[float, Field(gt=0, le=1e4)] | None = None
    lr: Rate | None = None
    blocks: bool = False

    @model_validator(mode="after")
    def _blocks_have_scales(self) -> SparsifyRecipe:
        if self.blocks and self.kind != "structures":
            raise ValueError(f"blocks belongs to structures; {self.kind} has none, leave it out")
        return self


class SearchRecipe(Part):
    """A search for how far each group is cut: candidates of a generation, and generations after the first."""

    population: Annotated[int, Field(ge=5, le=1000)] = 16
    generations: Annotated[int, Field(ge=0, le=1000)] = 8


class PruneRecipe(Part):
    """How channels are scored and how many of them go.

    ``ratio`` takes the budget's place: the share of all free channels that goes, or of each group's, by pattern; so
    does ``widths_from``, the folder of a network that was cut, whose widths are taken over.
    ``budget: {macs: [0.7, 0.5]}`` asks for several networks from one teacher: ``table`` holds the shares then.
    """

    criterion: str = "l1"
    budget: Budget = Budget(macs=0.5)
    table: tuple[Annotated[float, Field(gt=0, le=1)], ...] = ()
    ratio: float | dict[str, float] | None = None
    widths_from: str | None = None
    images: Annotated[int, Field(ge=4, le=100_000)] = 256
    scope: Literal["global", "group", "isomorphic", "per_mac"] = "global"
    max_ratio: Annotated[float, Field(gt=0, le=1)] = 1.0
    round_to: Annotated[int, Field(ge=1, le=65_536)] = 8
    min_kept: Annotated[int, Field(ge=1, le=65_536)] = 8
    rounds: Annotated[int, Field(ge=1, le=50)] = 1
    schedule: Schedule = "linear"
    recover_epochs: Epochs = 8
    reconstruct: bool = False
    sensitivity: bool = False
    sparsify: SparsifyRecipe | None = None
    search: SearchRecipe | None = None
    protect: tuple[str, ...] = ()
    latency_table: str | None = None

    @field_validator("criterion")
    @classmethod
    def _registered(cls, value: str) -> str:
        if value not in CRITERIA:
            raise ValueError(f"there is no such criterion; there are {', '.join(CRITERIA)}")
        return value

    @model_validator(mode="before")
    @classmethod
    def _several_networks(cls, given: Any) -> Any:
        """Read a list of MACs as a table; the budget is its first."""
        budget = given.get("budget") if isinstance(given, dict) else None
        several = budget.get("macs") if isinstance(budget, dict) else None
        if not isinstance(budget, dict) or not isinstance(several, list | tuple):
            return given
        if not several or given.get("table"):
            raise ValueError("budget.macs is a list: give one share or more, and no table beside it")
        return {**given, "budget": {**budget, "macs": several[0]}, "table": several}

    @model_validator(mode="after")
    def _one_measure(self) -> PruneRecipe:
        if self.ratio is not None and "budget" in self.model_fields_set and self.budget != Budget(macs=0.5):
            raise ValueError("give either a budget or a ratio, not both")
        shares = self.ratio.values() if isinstance(self.ratio, dict) else (self.ratio or 0.0,)
        if not all(0 <= share < 1 for share in shares):
            raise ValueError("a ratio is the share that goes, at least 0 and less than 1")
        if self.ratio == {}:
            raise ValueError("ratio is empty; give a share, or shares by pattern such as {'layer3.*': 0.6, '*': 0.3}")
        if self.ratio is not None and self.rounds > 1:
            raise ValueError("rounds above 1 need a budget of macs alone, not a ratio")
        if self.sparsify is not None and ((not self.budget.bounds and self.ratio is None) or self.rounds > 1):
            raise ValueError("sparsify drives one cut: give it a budget that can be computed, or a ratio, and 1 round")
        of_blocks = self.sparsify is not None and self.sparsify.blocks
        if of_blocks and self.ratio is None and (set(self.budget.bounds) != {"macs"} or self.search is not None):
            raise ValueError("blocks that go count towards a budget of macs alone; give that or a ratio, and no search")
        of_norms = self.sparsify is not None and self.sparsify.kind == "structures" and not of_blocks
        if of_norms and self.criterion in _OF_FILTERS:
            raise ValueError(
                f"structures drives the scales of norms to zero, which {self.criterion} does not see; "
                "give criterion: bn_scale"
            )
        measured = self.budget.latency is not None or self.budget.max_drop is not None
        if self.search is not None and (not self.budget.bounds or measured or self.by_widths or self.rounds > 1):
            raise ValueError("search finds one cut within a budget that can be computed, such as macs; give that alone")
        if self.widths_from is not None:
            others = [
                key for key in ("budget", "ratio", "table") if key in self.model_fields_set and getattr(self, key)
            ]
            if self.budget != Budget(macs=0.5) or self.ratio is not None or self.table or self.rounds > 1:
                raise ValueError(f"widths_from says what stays; leave out {', '.join(others) or 'rounds'}")
            if self.sparsify is not None:
                raise ValueError("sparsify drives towards a budget or a ratio, not towards widths_from; leave one out")
        if len(set(self.table)) != len(self.table):
            raise ValueError("budget.macs names a share twice")
        return self

    @property
    def by_widths(self) -> bool:
        """Whether ratios or another network's widths say what stays."""
        return self.ratio is not None or self.widths_from is not None

    @model_validator(mode="after")
    def _rounds_by_macs(self) -> PruneRecipe:
        bounds = {*self.budget.bounds} | ({"latency"} if self.budget.latency is not None else set())
        if self.rounds > 1 and bounds not in ({"macs"}, {"latency"}):
            raise ValueError("rounds above 1 need a budget of macs or latency alone; any other is met in one cut")
        if self.latency_table is not None and self.budget.latency is None:
            raise ValueError("latency_table holds the times that a budget of latency is met by; give one, or no table")
        return self


class DistillRecipe(TrainRecipe):
    """The student's training: weights of the losses, and what to train beside it for comparison.

    A weight of None is the task's own (``compress.distill.LOSSES``).
    """

    labels: Weight = 1.0
    logits: Weight | None = None
    class_means: Weight | None = None
    relation_distance: Weight | None = None
    relation_angle: Weight | None = None
    hints: Weight | None = None
    hint_layers: tuple[str, ...] = ()
    hint_match: Literal["channels", "projection"] = "channels"
    attention: Weight | None = None
    attention_layers: tuple[str, ...] = ()
    pixels: Weight | None = None
    channels: Weight | None = None
    head_classes: Weight | None = None
    head_boxes: Weight | None = None
    box_confidence: Annotated[float, Field(gt=0, lt=1)] = 0.5
    temperature: Rate = 4.0
    reuse_classifier: bool | Literal["projected"] | None = None
    freeze_classifier: bool = True
    teacher_cache_mb: Annotated[int, Field(ge=0, le=1_000_000)] = 1024
    compare: tuple[Literal["finetuned", "scratch", "scratch_e", "scratch_b"], ...] = ("finetuned", "scratch")
    count_finetuning: bool = False
    teacher: Literal["dense", "sparse"] = "dense"
    hint_loss: Literal["squared", "cosine"] = "squared"

    @model_validator(mode="before")
    @classmethod
    def _current_names(cls, given: Any) -> Any:
        """Read ``sure``, which earlier versions called ``box_confidence``."""
        if not isinstance(given, dict) or "sure" not in given:
            return given
        if "box_confidence" in given:
            raise ValueError("sure is the former name of box_confidence; give box_confidence alone")
        return {"box_confidence" if key == "sure" else key: value for key, value in given.items()}

    @model_validator(mode="after")
    def _learns_something(self) -> DistillRecipe:
        for weight, layers in (("hints", "hint_layers"), ("attention", "attention_layers")):
            if bool(getattr(self, weight)) != bool(getattr(self, layers)):
                raise ValueError(f"{weight} needs a weight above 0 and {layers} names of layers; give both or neither")
            if len(set(getattr(self, layers))) != len(getattr(self, layers)):
                raise ValueError(f"{layers} names something twice")
        if not self.labels and (self.logits, self.class_means) == (0, 0) and not self._others():
            raise ValueError("labels, logits and class_means are all 0; give one of them some weight")
        if (self.mixup or self.cutmix) and self.class_means != 0:
            raise ValueError("a mixed image has no class whose mean it could be near; set class_means, or mixup, to 0")
        if len(set(self.compare)) != len(self.compare):
            raise ValueError("compare names something twice")
        return self

    def _others(self) -> bool:
        """Tell whether a loss beside the first three has weight."""
        asked = (self.relation_distance, self.relation_angle, self.hints, self.attention)
        return any((*asked, self.pixels, self.channels, self.head_classes, self.head_boxes))


class QatRecipe(Part):
    """Fine-tuning of the student with weights and activations rounded to int8, before it is quantised."""

    epochs: Epochs
    lr: Rate = 0.001


class DeployRecipe(Part):
    """What the student is lowered to, how it is timed and which precision ships."""

    precisions: tuple[Literal["fp32", "fp16", "int8"], ...] = ("fp32", "fp16", "int8")
    rtx_targets: tuple[Annotated[str, Field(pattern=r"^sm[1-9][0-9]{1,2}$")], ...] = ("sm86", "sm89")
    calibration_images: Annotated[int, Field(ge=1, le=100_000)] = 200
    accuracy_drop: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    qat: QatRecipe | None = None
    in_graph: bool = False
    opset: Annotated[int, Field(ge=1)] | Literal["auto"] = 18
    dynamic_size: bool = False
    runtime: Literal["onnxruntime", "openvino"] = "onnxruntime"
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    rounds: Annotated[int, Field(ge=5, le=100_000)] = 200
    ship: Literal["auto", "fp32", "fp16", "int8"] = "auto"

    @model_validator(mode="after")
    def _ships_what_it_makes(self) -> DeployRecipe:
        if "fp32" not in self.precisions:
            raise ValueError("precisions must hold fp32, which the others are made from")
        for key in ("precisions", "rtx_targets"):
            if len(set(getattr(self, key))) != len(getattr(self, key)):
                raise ValueError(f"{key} names something twice")
        if self.ship not in ("auto", *self.precisions):
            raise ValueError(f"ship is {self.ship}, which precisions does not hold")
        if self.qat is not None and "int8" not in self.precisions:
            raise ValueError("qat trains for int8, which precisions does not hold; add int8 or leave qat out")
        if self.dynamic_size and self.rtx_targets:
            raise ValueError("dynamic_size is true, but TensorRT engines want one size; give rtx_targets: []")
        return self


class AcceptRecipe(Part):
    """What a run must reach: the student's points (hundredths of the metric that chooses) below its teacher on test."""

    max_drop: Annotated[float, Field(ge=0, le=100)]


class Recipe(Part):
    """Everything one run is asked to do."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    deterministic: bool = False
    tensorboard: bool = False
    model: ModelRecipe
    source: SourceRecipe | None = None
    target: DataRecipe
    preprocessing: PreprocessingRecipe
    transfer: TrainRecipe | None
    twin: bool = True
    order: Literal["S-T-P-T", "S-P-T", "S-T-P", "SP-T"] = "S-T-P-T"
    prune: PruneRecipe = PruneRecipe()
    distill: DistillRecipe
    sparse: SparseRecipe | None = None
    deploy: DeployRecipe | None = DeployRecipe()
    accept: AcceptRecipe | None = None

    @model_validator(mode="before")
    @classmethod
    def _cuts_as_studied(cls, given: Any) -> Any:
        """Fill in what a recipe leaves open of the cut."""
        if not isinstance(given, dict):
            return given
        cut = given.get("prune", {})
        # Where the cut comes before the target's head has learned, gradients of its loss say nothing.
        if not isinstance(cut, dict) or given.get("order", "S-T-P-T") not in AFTER_TRANSFER:
            return given
        return {**given, "prune": {**STUDIED, **cut}}

    @model_validator(mode="before")
    @classmethod
    def _no_twin_of_what_is_not_trained(cls, given: Any) -> Any:
        """Where nothing is transferred, nothing is trained beside it, unless that is asked for."""
        if isinstance(given, dict) and "transfer" in given and given["transfer"] is None:
            return {"twin": False, **given}
        return given

    @model_validator(mode="after")
    def _starts_from_what_is_trained(self) -> Recipe:
        if self.transfer is None:
            if self.model.weights is None:
                raise ValueError("transfer is null, so model.weights has to name those of the trained network")
            if self.twin:
                raise ValueError("twin is true, but it trains as transfer does, which is null; give twin: false")
            if self.source is not None:
                raise ValueError("source trains before transfer, which is null; leave source out, or give transfer")
            if self.prune.sparsify is not None:
                raise ValueError(
                    "prune.sparsify trains as transfer does, which is null; leave it out, or give transfer"
                )
        return self

    @model_validator(mode="after")
    def _comes_in_an_order(self) -> Recipe:
        """Refuse what an order of the stages leaves without its place."""
        if self.order == "S-T-P" and self.distill.compare:
            raise ValueError("order S-T-P trains nothing after the cut, so nothing compares with it; give compare: []")
        if self.order == "SP-T" and self.source is None:
            raise ValueError("order SP-T trains the cut network on the source; give source, or take S-P-T")
        if self.order not in AFTER_TRANSFER:
            if CRITERIA[self.prune.criterion].needs == "gradients":
                raise ValueError(
                    f"order {self.order} cuts before the target's classifier has learned, and {self.prune.criterion} "
                    "needs its gradients; take a criterion of weights or activations, such as l1"
                )
            if self.transfer is None:
                raise ValueError(f"order {self.order} cuts before transfer, which is null; give transfer")
            if self.prune.rounds > 1 or self.prune.sparsify is not None:
                raise ValueError(f"order {self.order} has one cut of the source's network; leave rounds and sparsify")
            if self.prune.budget.latency is not None or self.prune.budget.max_drop is not None:
                raise ValueError(f"order {self.order} cuts by macs, params or a ratio; give one of these")
        of_a_trained = [name for name in ("scratch_e", "scratch_b") if name in self.distill.compare]
        if of_a_trained and self.transfer is None:
            raise ValueError(f"{of_a_trained[0]} trains as long as the large network did; give transfer, or scratch")
        return self

    @model_validator(mode="after")
    def _has_a_sparse_teacher(self) -> Recipe:
        if self.distill.teacher == "sparse" and (self.sparse is None or self.sparse.of != "teacher"):
            raise ValueError("distill.teacher is sparse, so sparse has to say how the teacher is thinned")
        if self.sparse is not None and self.sparse.method == "pacnet" and self.source is None:
            raise ValueError("pacnet keeps what holds the source's data, which source has to name")
        return self

    @model_validator(mode="after")
    def _times_what_it_lowers(self) -> Recipe:
        if self.deploy is None and self.prune.budget.latency is not None:
            raise ValueError("prune.budget.latency is timed as deploy says, which is null; give a macs budget")
        if self.deploy is not None and self.deploy.ship == "fp16" and self.prune.budget.latency is not None:
            raise ValueError("prune.budget.latency is timed in what deploy.ship names, on a CPU fp32 or int8, not fp16")
        return self

    def functions(self) -> dict[str, str]:
        """Return the user's own functions that a run of this recipe calls, as ``module:function``, by key."""
        found: dict[str, str] = {}
        if is_own_code(self.model.factory):
            found["model.factory"] = self.model.factory
        data = {"target": self.target, **({} if self.source is None else {"source.data": self.source.data})}
        found |= {f"{key}.function": part.function for key, part in data.items() if isinstance(part, FunctionData)}
        return found

    def to_yaml(self) -> str:
        """Write the recipe with every default; a deploy or a transfer of null is not the default one and is kept."""
        kept = {key: None for key in ("transfer", "deploy") if getattr(self, key) is None}
        return yaml.safe_dump({**self.model_dump(mode="json", exclude_none=True), **kept}, sort_keys=False)
