"""Times that decide within a run: of the cut network against the dense one, of OpenVINO against ONNX Runtime."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import deploy
from compress.data.images import ImageData
from compress.errors import PlanError, RecipeError
from compress.models.detection import raw_heads
from compress.prune import Trace
from compress.prune.allocation import Limits, ranked
from compress.recipe.schema import DeployRecipe, Recipe
from compress.run.additive import AdditiveModel
from compress.run.filling import Shipping, filled
from compress.run.fitting import AGREE, WITHIN, FittedCut, LatencyFit, Target, floor_of
from compress.run.probes import Precision, placed_layers
from compress.run.progress import Advance
from compress.run.variants import exporting
from deploy.bench.shipping import Runtime, Timed
from deploy.engines import load_engine
from deploy.engines.base import Engine
from deploy.errors import DeployError
from deploy.exporting.lowering import lower
from deploy.exporting.torch_to_onnx import export_onnx
from deploy.latency.explain import explain_files
from deploy.latency.profile import How, Job, Timer, time_files
from deploy.latency.table import Table
from deploy.quantization.int8 import int8_from_fp32
from deploy.quantization.search import fastest_int8

RUNTIMES: tuple[Runtime, ...] = ("onnxruntime", "openvino")


def timed_by_runtime(
    files: Mapping[str, tuple[Path, float | None]],
    image: np.ndarray,
    threads: int,
    rounds: int,
) -> tuple[list[Timed], tuple[str, ...]]:
    """Time each file on each runtime that is installed and takes them all, in turns against fp32 on ONNX Runtime.

    Args:
        files: precision -> its ONNX file and its accuracy on validation data; ``fp32`` is among them.
        image: their input, shape (1, C, H, W).
        threads: of one run.
        rounds: how often each is timed.

    Returns:
        the times, and a sentence for each runtime that refuses a file.

    Raises:
        DeployError: ONNX Runtime refuses one.
    """
    runtimes = [name for name in RUNTIMES if name == "onnxruntime" or find_spec(name) is not None]
    pairs: list[tuple[str, Runtime]] = []
    refused: list[str] = []
    with ExitStack() as stack:
        engines: list[Engine] = []
        for runtime in runtimes:
            try:
                own = [
                    stack.enter_context(load_engine(path, runtime=runtime, threads=threads))
                    for path, _ in files.values()
                ]
            except DeployError as error:
                if runtime == "onnxruntime":
                    raise
                refused.append(f"Nothing is timed by {runtime}: {error}")
                continue
            engines += own
            pairs += [(precision, runtime) for precision in files]
        for engine, (precision, runtime) in zip(engines, pairs, strict=True):
            engine.name = f"{precision} {runtime}"
        (name,) = tuple(engines[0].inputs)
        records = deploy.benchmark(engines, {name: image}, reference="fp32 onnxruntime", rounds=rounds)
    timed = [
        Timed(precision=precision, runtime=runtime, share=record.share or 1.0, accuracy=files[precision][1])
        for (precision, runtime), record in zip(pairs, records, strict=True)
    ]
    return timed, tuple(refused)


def timed_precision(deploy: DeployRecipe) -> Precision:
    """Return the precision that a latency is measured in: what ships, for ``auto`` int8 where it is made."""
    assert deploy.ship != "fp16"  # the recipe's own check refuses it
    if deploy.ship == "auto":
        return "int8" if "int8" in deploy.precisions else "fp32"
    return deploy.ship


def cache_path() -> Path:
    """Return where this user's table of layer times is kept from run to run."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "niwaki" / "latency.json"


@dataclass(frozen=True)
class LatencyJob:
    """Where a latency is asked for: a recipe, its data's task and size, and what times.

    Attributes:
        recipe: what is asked for.
        task: what the network is for.
        example: prepared images, shape (N, C, H, W), N at least 2.
        images: prepared arrays that int8 takes its ranges from, which change no time.
        timer: what times files.
        advance: told of what is being done.
    """

    recipe: Recipe
    task: str
    example: Tensor
    images: Sequence[np.ndarray] = ()
    timer: Timer = time_files
    advance: Advance = lambda done, total, text: None

    @property
    def deploy(self) -> DeployRecipe:
        """Return what the recipe says of engines; a recipe with a latency has it."""
        assert self.recipe.deploy is not None
        return self.recipe.deploy

    @property
    def precision(self) -> Precision:
        """Return the precision that ships."""
        return timed_precision(self.deploy)

    def shipping(self, dense: nn.Module | None) -> Shipping:
        """Return how the network will run; ``dense`` is what int8 keeps in fp32 is chosen by, None for nothing kept."""
        asked = self.recipe.prune.latency_table
        table = None if asked is None else Table.read(asked)
        kept: tuple[str, ...] = ()
        if self.precision == "int8" and dense is not None and table is None:
            self.advance(0, 1, "choosing what int8 leaves in fp32")
            kept = self._kept(dense)
        shape = (1, *self.example.shape[1:])
        return Shipping(
            write=lambda model, path: self.write(model, path, kept),
            runtime=self.deploy.runtime,
            precision=self.precision,
            threads=self.deploy.threads,
            shapes={"image": tuple(shape)},
            kept=kept,
            timer=self.timer,
            cache=cache_path(),
            table=table,
        )

    def write(self, model: nn.Module, path: Path, kept: Sequence[str] = ()) -> Path:
        """Write the file that ships of a network: fp32, or int8 with some kinds of operators left in fp32."""
        lowered = lower(model, self.task, self.example, in_graph=self.deploy.in_graph)
        fp32 = path.with_name(f"{path.stem}.fp32.onnx")
        export_onnx(lowered.module, self.example, fp32, output_name=lowered.output_name, **exporting(self.deploy))
        if self.precision == "fp32":
            return fp32
        int8 = path.with_name(f"{path.stem}.int8.onnx")
        return int8_from_fp32(fp32, int8, list(self.images), keep_fp32=tuple(kept), min_snr_db=None)

    def _kept(self, dense: nn.Module) -> tuple[str, ...]:
        """Return the kinds of operators that are faster in fp32 here, as the stage that lowers will find."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "dense.onnx"
            lowered = lower(dense, self.task, self.example, in_graph=self.deploy.in_graph)
            export_onnx(lowered.module, self.example, path, output_name=lowered.output_name, **exporting(self.deploy))
            into = Path(folder) / "dense.int8.onnx"
            how: dict[str, Any] = {"threads": self.deploy.threads, "runtime": self.deploy.runtime}
            # The file itself is thrown away, so it may agree with fp32 as little as it likes.
            return fastest_int8(path, into, list(self.images), min_snr_db=None, **how).kept

    def fit(self, dense: nn.Module, network: nn.Module, trace: Trace, scores: Tensor, kept: bool = True) -> ProfiledFit:
        """Profile the layers and return what meets a latency.

        Args:
            dense: the whole network.
            network: the one that is cut now.
            trace: of ``network``.
            scores: one per unit.
            kept: whether int8 leaves in fp32 what is faster so.
        """
        layers = placed_layers(dense, self.example, raw_heads(dense))
        shipping = self.shipping(dense if kept else None)
        entries, seconds = filled(layers, trace, shipping, self.advance)
        asked = self.recipe.prune
        limits = Limits(1, asked.min_kept, asked.max_ratio)
        model = AdditiveModel(layers, entries, trace)
        return ProfiledFit(
            LatencyFit(dense, network, model, ranked(trace, scores), shipping, limits, self.advance), seconds
        )


@dataclass(frozen=True)
class ProfiledFit:
    """What meets a latency, and the seconds that profiling for it took."""

    fit: LatencyFit
    seconds: float


def within_latency(
    job: LatencyJob, networks: tuple[nn.Module, nn.Module], trace: Trace, scores: Tensor, turn: int = 1
) -> tuple[FittedCut, str]:
    """Return the plan that meets the recipe's latency, or a part of the way to it, and what was measured in words.

    Args:
        job: what is asked for.
        networks: the whole network and the one that is cut now.
        trace, scores: of the latter.
        turn: which of the recipe's rounds this is, from 1.

    Raises:
        PlanError: it cannot be reached; the sentence says what can.
    """
    asked = job.recipe.prune
    made = job.fit(*networks, trace, scores)
    found = made.fit.fit(asked.budget, Target.of(asked.budget, turn, asked.rounds, asked.schedule))
    return found, found.sentence(made.seconds, made.fit.shipping.said)


def check_latency(recipe: Recipe, target: ImageData, model: nn.Module, trace: Trace, timer: Timer = time_files) -> None:
    """Measure the narrowest network that the recipe allows, untrained, and refuse a latency below it.

    Raises:
        RecipeError: the latency cannot be reached; the sentence says what can, and how wide the network is there.
    """
    job = LatencyJob(recipe, target.task, target.example(8), list(target.example(4).numpy()), timer)
    asked = Target.of(recipe.prune.budget)
    try:
        made = job.fit(model, model, trace, torch.zeros(trace.units), kept=False)
        if made.fit.shipping.table is None:
            floor_of(made.fit, asked)
        else:
            made.fit.fit(recipe.prune.budget, asked)
    except PlanError as error:
        raise RecipeError(f"prune.budget: {error}") from None


def after_training(job: LatencyJob, teacher: nn.Module, shipped: Path) -> dict[str, Any]:
    """Write the dense network as it would ship, time what ships beside it, and say where the time goes.

    Args:
        job: what is asked for.
        teacher: the dense network.
        shipped: the file that ships.

    Returns:
        The measured ``share``, the one ``asked`` for, what is ``said`` of both, and the layers as ``explained``.
    """
    with tempfile.TemporaryDirectory() as folder:
        shipping = job.shipping(teacher)
        dense = shipping.write(teacher, Path(folder) / "dense.onnx")
        found = reached(job, shipped, dense)
        layers = explain_files(
            shipped,
            dense,
            runtime=shipping.runtime,
            threads=shipping.threads,
            shapes=shipping.shapes,
            timer=job.timer,
        )
    named = layers.model_copy(update={"before": "dense", "after": shipped.name})
    return {**found, "explained": named.model_dump(mode="json")}


def reached(job: LatencyJob, shipped: Path, dense: Path) -> dict[str, Any]:
    """Time what ships beside the dense network in the same precision: ``share``, ``asked`` and ``said``."""
    how = How(runtime=job.deploy.runtime, threads=job.deploy.threads, rounds=20, min_seconds=2.0, agree=AGREE)
    shape = (1, *job.example.shape[1:])
    whole, cut = job.timer([Job(path=str(path), shapes={"image": shape}) for path in (dense, shipped)], how)
    share, asked = cut.ms / whole.ms, Target.of(job.recipe.prune.budget).share_of(whole.ms)
    off = share / asked - 1
    verdict = (
        "within 5 % of it" if abs(off) <= WITHIN else f"{100 * abs(off):.0f} % {'above' if off > 0 else 'below'} it"
    )
    said = (
        f"After training, the engine that ships takes {cut.ms:.3g} of the dense one's {whole.ms:.3g} ms, "
        f"{share:.3f}; asked for {asked:.3f}: {verdict}, best of {len(cut.processes)} processes."
    )
    return {"share": share, "asked": asked, "said": said}
