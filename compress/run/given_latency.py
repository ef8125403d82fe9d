"""A latency asked of one cut by hand: the network at hand is exported, timed and cut to it, without any training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from compress.errors import PlanError
from compress.prune import Plan, Trace
from compress.prune.allocation import Limits, ranked
from compress.recipe.schema import PruneRecipe
from compress.run.additive import AdditiveModel
from compress.run.filling import Shipping, filled
from compress.run.fitting import LatencyFit, Target
from compress.run.given import GivenNetwork
from compress.run.latency import cache_path
from compress.run.probes import Precision, placed_layers
from compress.run.progress import Advance
from deploy.exporting.torch_to_onnx import export_onnx
from deploy.latency.profile import time_files
from deploy.latency.table import Table
from deploy.quantization.int8 import int8_from_fp32


@dataclass(frozen=True)
class TimedBy:
    """Where and how the network at hand will run.

    Attributes:
        runtime, precision, threads, batch: see ``deploy.latency.table.Setting``.
        table: a file of times from a device; None where they are measured here.
    """

    runtime: str = "onnxruntime"
    precision: Precision = "fp32"
    threads: int = 1
    table: str | None = None
    batch: int = 1

    def shipping(self, network: GivenNetwork) -> Shipping:
        """Return how the network runs; int8 takes its ranges from noise, which changes no time."""
        one = tuple(network.example.shape[1:])
        given = [np.random.default_rng(0).standard_normal(one).astype(np.float32)]

        def write(model: nn.Module, path: Path) -> Path:
            fp32 = export_onnx(model, network.example, path.with_name(f"{path.stem}.fp32.onnx"))
            if self.precision == "fp32":
                return fp32
            return int8_from_fp32(fp32, path.with_name(f"{path.stem}.int8.onnx"), given, min_snr_db=None)

        return Shipping(
            write,
            runtime=self.runtime,
            precision=self.precision,
            threads=self.threads,
            batch=self.batch,
            timer=time_files,
            cache=cache_path(),
            table=None if self.table is None else Table.read(self.table),
        )


def cut_to_latency(
    network: GivenNetwork, trace: Trace, scores: Tensor, asked: PruneRecipe, timing: TimedBy, advance: Advance
) -> tuple[Plan, str]:
    """Return the plan that meets ``asked.budget`` with its latency, and what was measured in words.

    Raises:
        PlanError: it cannot be reached, or the network is one whose own forward pass does not export.
    """
    if network.forward is not None:
        raise PlanError("A detector is timed as its recipe exports it; give its latency in a recipe to niwaki run.")
    layers = placed_layers(network.model, network.example)
    shipping = timing.shipping(network)
    entries, seconds = filled(layers, trace, shipping, advance)
    model = AdditiveModel(layers, entries, trace)
    limits = Limits(1, asked.min_kept, asked.max_ratio)
    fit = LatencyFit(network.model, network.model, model, ranked(trace, scores), shipping, limits, advance)
    found = fit.fit(asked.budget, Target.of(asked.budget))
    return found.plan, found.sentence(seconds, shipping.said)
