"""Pick out of the ledger and the records what the page shows; markup and drawing are elsewhere."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from deploy.bench.conditions import Conditions
from deploy.report.units import MINUS, count, milliseconds, number, percent, points, size, times

Facts = Mapping[str, Any]

# (record, model that the record runs, heading, caption) of each column.
COLUMNS = (
    ("dense", "teacher", "Dense", "the teacher, fp32"),
    ("pruned", "pruned", "Pruned", "cut, not yet trained again"),
    ("distilled", "student", "Distilled", "the student, fp32"),
    ("int8", "student", "int8", "the student, quantised"),
)

RUNTIMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}

# (step, role without it, role with it, what the two differ in).
STEPS = (
    ("Transfer", "twin", "teacher", "the dense network from scratch, against pretrained and fine-tuned"),
    (
        "Inheritance",
        "scratch",
        "finetuned",
        "the small network from scratch, against the pruned weights fine-tuned",
    ),
    ("Distillation", "finetuned", "student", "the pruned weights fine-tuned alone, against with the teacher"),
)


@dataclass(frozen=True)
class Column:
    """One network of the main table: its model in the ledger and its record in the bench file."""

    name: str
    heading: str
    caption: str
    model: Facts
    record: Facts

    @property
    def is_fp32(self) -> bool:
        return self.name in ("dense", "pruned", "distilled")

    @property
    def accuracy(self) -> float | None:
        """The accuracy of this engine where it was measured, else that of the model it came from."""
        if (measured := number(self.record.get("accuracy"))) is not None:
            return measured
        # An engine of lower precision computes another function: the model's accuracy is not its own.
        return number(self.model.get("test_accuracy")) if self.is_fp32 else None

    @property
    def file_bytes(self) -> float | None:
        """The size of the engine's file where there is one, else, for fp32, of the model's."""
        if (engine := number(self.record.get("file_bytes"))) is not None:
            return engine
        return number(self.model.get("file_bytes")) if self.is_fp32 else None

    @property
    def speedup(self) -> float | None:
        """How many times faster it is than the dense network."""
        if (given := number(self.record.get("speedup"))) is not None:
            return given
        share = larger_ratio(self.record)
        return 1 / share if share else None


@dataclass(frozen=True)
class StepGain:
    """What one step gained: the test accuracy without it and with it."""

    name: str
    meaning: str
    without: Facts
    with_it: Facts

    @property
    def before(self) -> float | None:
        return number(self.without.get("test_accuracy"))

    @property
    def after(self) -> float | None:
        return number(self.with_it.get("test_accuracy"))

    @property
    def noise(self) -> float | None:
        """Half of the 95 % interval of the difference between two shares of this test set."""
        total = number(self.with_it.get("test_total"))
        if self.before is None or self.after is None or total is None or total <= 0:
            return None
        if not (0 <= self.before <= 1 and 0 <= self.after <= 1):
            return None
        return 1.96 * math.sqrt(sum(p * (1 - p) for p in (self.before, self.after)) / total)


@dataclass(frozen=True)
class Results:
    """The files of a run together, with every part that may be missing replaced by an empty one.

    ``pictures`` are data URIs of the test images that student and teacher answer differently, by place in the ledger.
    """

    ledger: Facts
    bench: Facts
    recipe: Facts
    pictures: Mapping[int, str] = field(default_factory=dict)

    def models(self) -> list[Facts]:
        return rows(self.ledger.get("models"))

    def records(self, status: str) -> list[Facts]:
        return [record for record in rows(self.bench.get("records")) if record.get("status") == status]

    def runtime(self) -> str | None:
        """Return the runtime that the bundle runs first, where all engines were timed on it by themselves."""
        runtime = mapping(self.ledger.get("shipping")).get("runtime")
        timed = any(
            r.get("runtime") == runtime and str(r.get("name")).endswith(f"-{runtime}") for r in self._measured()
        )
        return str(runtime) if runtime and timed else None

    def measured(self) -> list[Facts]:
        """Return what was measured of each engine, with its times on the runtime that the bundle runs first."""
        runtime = self.runtime()
        if runtime is None:
            return self._measured()
        ending = f"-{runtime}"
        own = {str(r.get("name")).removesuffix(ending): r for r in self._measured() if r.get("runtime") == runtime}
        return [
            {**record, **{key: value for key, value in own[name].items() if value is not None and key != "name"}}
            if (name := str(record.get("name"))) in own
            else record
            for record in self._measured()
            if record.get("runtime") != runtime
        ]

    def _measured(self) -> list[Facts]:
        return self.records("measured")

    def plan(self) -> Facts:
        return mapping(self.ledger.get("plan"))

    def role(self, role: str) -> Facts:
        return next((model for model in self.models() if role in (model.get("role"), model.get("name"))), {})

    def columns(self) -> list[Column]:
        """Return the networks of the main table; a run that stops after distilling has no records and no int8."""
        measured = {str(record.get("name")): record for record in self.measured()}
        models = {str(model.get("name")): model for model in self.models()}
        columns = []
        for name, role, heading, caption in COLUMNS if self.bench else COLUMNS[:3]:
            record = measured.get(name, {})
            model = models.get(str(record.get("model"))) or self.role(role)
            columns.append(Column(name, heading, caption, model, record))
        return columns

    def step_gains(self) -> list[StepGain]:
        return [
            StepGain(name, meaning, self.role(without), self.role(with_it)) for name, without, with_it, meaning in STEPS
        ]

    def test_images(self) -> int | None:
        total = number(self.ledger.get("test_images") or self.role("teacher").get("test_total"))
        return int(total) if total is not None and total >= 1 else None

    def figure(self, name: str) -> float | None:
        """Return the newest figure of that name among the stages' metrics."""
        found = [mapping(stage.get("metrics")).get(name) for stage in rows(self.ledger.get("stages"))]
        return next((value for one in reversed(found) if (value := number(one)) is not None), None)

    def metric(self) -> str:
        """Return what a network is judged by: ``accuracy``, ``mAP`` or ``mIoU``."""
        return str(self.ledger.get("metric") or "accuracy")

    def trials(self) -> int | None:
        """Count the test images if each is right or wrong, as the interval of a share needs; else return None."""
        return self.test_images() if self.metric() == "accuracy" else None

    def final(self) -> Column:
        """Return the network that ships: by the ledger's decision, or in an older run by what the recipe names."""
        columns = {column.name: column for column in self.columns()}
        distilled, int8 = columns["distilled"], columns.get("int8")
        decided = mapping(self.ledger.get("shipping")).get("precision")
        ship = decided or mapping(self.recipe.get("deploy")).get("ship")
        if ship == "fp16":
            fp16 = next((r for r in self.measured() if r.get("name") == "distilled-fp16"), {})
            return Column("distilled-fp16", "fp16", "the student, fp16", distilled.model, fp16) if fp16 else distilled
        return int8 if int8 is not None and int8.record and ship != "fp32" else distilled

    def verdict(self) -> str:
        """Return the outcome of the run in one sentence, with its numbers."""
        dense, final = self.columns()[0], self.final()
        name = "The distilled network" if final.name == "distilled" else f"The distilled {final.heading} network"
        claims = [_accuracy_claim(final, dense, self.test_images(), self.metric()), _cost_claim(final, dense)]
        claims.append(_speed_claim(final, dense, mapping(self.bench.get("settings")), self.runtime()))
        spoken = [claim for claim in claims if claim]
        if not spoken:
            return "This run has not measured anything yet."
        head, last = ", ".join(spoken[:-1]), spoken[-1]
        return f"{name} {head}{', and ' if head else ''}{last}."


def read_recipe(text: str) -> Facts:
    """Return the recipe's keys; none without PyYAML or where it refuses the text, which the page shows anyway.

    None either for a text with aliases, a few of which can expand to millions of values; a resolved recipe has none.
    """
    try:
        import yaml
    except ImportError:
        return {}
    try:
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            return {}
        found = mapping(yaml.safe_load(text))
        # Refuses an integer of thousands of digits and half of a surrogate pair, neither of which the page could show.
        str(found).encode()
        json.dumps(found, default=str, ensure_ascii=False).encode()
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return found


def rows(value: Any) -> list[Facts]:
    """Return the mappings of a list; anything else is left out."""
    return [row for row in value if isinstance(row, Mapping)] if isinstance(value, list | tuple) else []


def mapping(value: Any) -> Facts:
    """Return ``value`` where it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def ratio(value: Any, reference: Any) -> float | None:
    """Return value / reference where both are numbers and the reference is not zero."""
    top, bottom = number(value), number(reference)
    return None if top is None or not bottom else top / bottom


def wilson(share: float, total: float) -> tuple[float, float]:
    """Return the 95 % interval of a share of ``total`` trials (Wilson, 1927), which stays within 0 and 1."""
    z = 1.96
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, middle - half), min(1.0, middle + half)


def _accuracy_claim(final: Column, dense: Column, images: int | None, metric: str) -> str:
    if final.accuracy is None:
        return ""
    on = f"{f'{images:,} ' if images else ''}test images"
    claim = f"gets {percent(final.accuracy)} of the {on} right"
    if metric != "accuracy":
        claim = f"reaches {percent(final.accuracy)} {metric} on the {on}"
    if dense.accuracy is None:
        return claim
    gap = points(final.accuracy - dense.accuracy)
    if gap.startswith("±"):
        return f"{claim}, level with its dense teacher"
    side = "below" if gap.startswith(MINUS) else "above"
    return f"{claim} ({gap[1:]} {side} its dense teacher)"


def _cost_claim(final: Column, dense: Column) -> str:
    macs = ratio(final.model.get("macs"), dense.model.get("macs"))
    bytes_ = ratio(final.file_bytes, dense.file_bytes)
    needs = [f"{percent(macs)} of the MACs"] if macs is not None else []
    if bytes_ is not None:
        needs.append(f"{percent(bytes_)} of the file size ({size(final.file_bytes)})")
    return f"needs {' and '.join(needs)}" if needs else ""


def _speed_claim(final: Column, dense: Column, settings: Facts, runtime: str | None) -> str:
    speedup = final.speedup
    if speedup is None:
        return ""
    low, high = speed_interval(final.record) or (None, None)
    figures = _against(final, dense, "median_ms")
    if final.record.get("min_ms") and dense.record.get("min_ms"):
        figures = f"{_against(final, dense, 'min_ms')} at best, {figures}"
    how = [RUNTIMES.get(runtime, runtime)] if runtime else []
    how += [f"{count(settings[key])} {word}" for key, word in (("threads", "thread"),) if number(settings.get(key))]
    how += [f"batch {count(final.record['batch'])}"] if number(final.record.get("batch")) else []
    setting = f" by medians{''.join(f', {part}' for part in how)}"
    if low is not None and high is not None and low <= 1 <= high:
        return f"runs about as fast ({figures}{setting})"
    pace = f"{times(speedup)} as fast" if speedup >= 1 else f"only {times(speedup)} as fast"
    return f"runs {pace} ({figures}{setting})"


def _against(final: Column, dense: Column, key: str) -> str:
    return f"{milliseconds(final.record.get(key))} against {milliseconds(dense.record.get(key))}"


def speed_interval(record: Facts) -> tuple[float, float] | None:
    """Return the interval of the ratio that the speed-up is the inverse of: by best times or by medians, the larger."""
    return interval(record, "best_interval" if _by_best(record) else "ratio_interval")


def larger_ratio(record: Facts) -> float | None:
    """Return the time as a share of the dense network's: by best times or by medians, the larger."""
    return number(record.get("ratio_of_best" if _by_best(record) else "ratio_to_dense"))


def _by_best(record: Facts) -> bool:
    best, median = number(record.get("ratio_of_best")), number(record.get("ratio_to_dense"))
    return best is not None and (median is None or best > median)


def noise_of(records: Sequence[Facts]) -> str | None:
    """Say why the machine counts as noisy, by the busiest sitting of ``records``; None where it does not."""
    found: list[Conditions] = []
    for record in records:
        try:
            found.append(Conditions.model_validate(record.get("conditions")))
        except ValidationError:
            continue  # records of earlier versions hold none
    noisy = [one for one in found if one.noise()]
    return max(noisy, key=lambda one: one.load or 0.0).noise() if noisy else None


def interval(record: Facts, which: str = "ratio_interval") -> tuple[float, float] | None:
    """Return the interval of the ratio to the dense network, where the record holds one."""
    ends = record.get(which)
    if not isinstance(ends, list | tuple) or len(ends) != 2:
        return None
    low, high = number(ends[0]), number(ends[1])
    return None if low is None or high is None else (low, high)
