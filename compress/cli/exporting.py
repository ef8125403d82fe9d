"""What ``niwaki export`` does: a network by name becomes an ONNX file that states what the network was saved with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress import artifact
from compress.cli.common import unused
from compress.errors import ModelError
from compress.models import torchvision
from compress.models.detection import take_prepared
from compress.models.named import named_network
from compress.models.names import RENAMED
from compress.models.weights import pretrained
from deploy.engines import load_engine
from deploy.exporting.lowering import lower
from deploy.exporting.parity import parity
from deploy.exporting.torch_to_onnx import export_onnx
from deploy.files import sha256
from deploy.onnx.file import read
from deploy.onnx.metadata import Metadata
from deploy.processing.preprocess import Preprocessing

_ROWS = 4


def exported(
    name: str,
    out: Path | None,
    *,
    force: bool,
    size: int | None,
    trust: tuple[str, ...],
    weights: str | None,
    task: str | None,
    settings: Mapping[str, Any],
    in_graph: bool,
) -> dict[str, Any]:
    """Export the network that ``name`` names and compare the file with torch.

    Args:
        name: what ``named_network`` takes.
        out: the file; by default named after the network.
        force: replace it if it is there.
        size: height and width of the images.
        trust: modules that a saved network may import.
        weights: DEFAULT or a file, for a network that is not saved.
        task: what the network is for; by default what a saved network or torchvision says.
        settings: ``opset``, ``runtimes`` and ``dynamic_size`` of ``export_onnx``.
        in_graph: whether the file itself decodes boxes or classes.

    Returns:
        ``file``, ``bytes``, ``opset``, ``task``, ``max_relative_error`` and ``snr_db``.

    Raises:
        NiwakiError, DeployError: one sentence about what cannot be used.
    """
    folder = Path(name)
    short = folder.resolve().name if folder.is_dir() else name.rpartition(":")[2]
    path = unused(out or Path(f"{short}.fp32.onnx"), force=force)
    network = named_network(name, size=size, trusted=trust)
    about = artifact.describe(folder) if folder.is_dir() else None
    if weights is not None:
        if about is not None:
            raise ModelError(f"{name} is a saved network and has weights; leave out --weights.")
        _load(network.model, RENAMED.get(name, name), weights)
    kind = task or (
        about.task if about else torchvision.names().get(name.removeprefix("torchvision:"), "classification")
    )
    if kind == "detection" and about is None:
        # Images come prepared, as a bundle gives them.
        take_prepared(network.model, tuple(network.example.shape[-2:]))
    lowered = lower(network.model, kind, network.example, in_graph=in_graph)
    stated = {} if about is None else _stated(folder, about, size)
    metadata = Metadata(model=short, **stated).properties()
    export_onnx(lowered.module, network.example, path, output_name=lowered.output_name, metadata=metadata, **settings)
    rows = _compared(lowered.module, path, network.example)
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        "opset": next(one.version for one in read(path).opset_import if one.domain in ("", "ai.onnx")),
        "task": kind,
        "max_relative_error": max(row["max_relative_error"] for row in rows),
        "snr_db": min(row["snr_db"] for row in rows),
    }


def _stated(folder: Path, about: artifact.Description, size: int | None) -> dict[str, Any]:
    """What a file says of itself that is made from a saved network."""
    prepared = (
        about.preprocessing if size is None else about.preprocessing and {**about.preprocessing, "size": [size] * 2}
    )
    return {
        # A detector's first output is the background, which no bundle names.
        "classes": about.classes[1:] if about.task == "detection" else about.classes,
        "preprocessing": Preprocessing(**prepared) if prepared else None,
        "weights_sha256": sha256(folder / artifact.WEIGHTS),
    }


def _load(model: nn.Module, name: str, weights: str) -> None:
    """Load weights that fit exactly; raise ModelError where they do not."""
    state = pretrained(name, weights)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        first = (str(error).strip().splitlines() or [""])[-1].strip()
        raise ModelError(
            f"The weights {weights} do not fit {name} ({first[:160]}); name those of this network."
        ) from None


def _compared(module: nn.Module, path: Path, example: torch.Tensor) -> list[dict[str, Any]]:
    """Compare the file with torch on drawn images, at several batch sizes."""
    drawn = torch.rand((_ROWS, *example.shape[1:]), generator=torch.Generator().manual_seed(0)).to(example)
    with load_engine(path) as engine:
        return parity(module, engine, drawn, batches=(1, 3))
