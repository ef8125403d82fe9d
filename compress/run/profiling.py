"""Make a folder from which a device fills a table: small files of every layer, and whole networks beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from compress import prune
from compress.errors import PlanError
from compress.files import write_text
from compress.models.named import NamedNetwork
from compress.prune import Plan
from compress.run.additive import AdditiveModel
from compress.run.filling import fixed_axes
from compress.run.probes import Precision, placed_layers, probes_of, write_probe
from deploy.exporting.torch_to_onnx import export_onnx
from deploy.latency.profile import ProfileFolder, Whole
from deploy.quantization.int8 import int8_from_fp32


def write_profile_folder(
    network: NamedNetwork,
    folder: Path,
    *,
    plan: Plan | None = None,
    precision: Precision = "fp32",
    runtimes: Sequence[str] = ("onnxruntime",),
    threads: int = 1,
    batch: int = 1,
) -> ProfileFolder:
    """Write the files of a network's layers, the whole network, and the same cut in half or by a plan.

    Args:
        network: what is profiled.
        folder: where the files go; a device needs it, numpy and the runtime.
        plan: the cut that is timed beside the whole network; by default half of every group.
        precision: that ships.
        runtimes: that the device times by, unless it is told otherwise there.
        threads, batch: of one run.

    Raises:
        PlanError: the plan is for another network.
        DeployError: the network cannot be exported.
    """
    model, example = network.model, network.example
    trace = prune.trace(model, example, forward=network.forward)
    if plan is not None:
        prune.validate(model, plan)
    elif trace.groups:
        plan = prune.plan(trace, torch.zeros(trace.units), ratio=0.5, scope="group", round_to=8)
    layers = placed_layers(model, example, network.forward)
    probes = probes_of(layers, {one.name: precision for one in layers}, fixed_axes(layers, trace))
    folder.mkdir(parents=True, exist_ok=True)
    for probe in probes:
        write_probe(probe, folder / probe.file)
    whole = np.ones(trace.units, dtype=bool)
    widths = AdditiveModel(layers, {}, trace).widths
    networks = [Whole(file="dense.onnx", name="dense", widths=widths(whole))]
    _write(network, folder / "dense.onnx", precision)
    if plan is not None:
        small = prune.apply(model, plan)
        _write(network._replace(model=small), folder / "cut.onnx", precision)
        now = {one.name: one.dense for one in placed_layers(small, example, network.forward)}
        if now.keys() != networks[0].widths.keys():
            raise PlanError("The cut network runs other layers than the whole one; profile it without a plan.")
        networks.append(Whole(file="cut.onnx", name="cut", widths=now))
    listed = ProfileFolder(
        probes=probes,
        networks=tuple(networks),
        runtimes=tuple(runtimes),
        threads=threads,
        batch=batch,
        precision=precision,
    )
    write_text(folder / "profile.json", listed.model_dump_json(indent=1) + "\n")
    return listed


def _write(network: NamedNetwork, path: Path, precision: Precision) -> None:
    """Write a whole network; int8 takes its ranges from noise, which changes no time."""
    if precision == "fp32":
        export_onnx(network.model, network.example, path)
        return
    fp32 = path.with_suffix(".fp32.onnx")
    export_onnx(network.model, network.example, fp32)
    noise = [np.random.default_rng(0).standard_normal(tuple(network.example.shape[1:])).astype(np.float32)]
    int8_from_fp32(fp32, path, noise, min_snr_db=None)
    fp32.unlink()
