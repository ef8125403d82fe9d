"""The stage that makes single weights zero: the sparse network, its file, and what an ONNX file makes of it."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

from torch import nn

from compress import sparse
from compress.recipe.schema import Recipe
from compress.run.evaluation import accuracy_of_file
from compress.run.ledger import Outcome
from compress.run.progress import StageView
from compress.run.thinning import Thinning, thinned
from compress.run.variants import exporting, lowered_of
from compress.run.workspace import MadeNetwork, Workspace
from compress.sparse import Masks
from compress.train import TASKS, evaluate
from compress.train.ranks import once
from deploy.exporting.torch_to_onnx import export_onnx
from deploy.onnx.zeros import count_zeros

NETWORK = "sparse"
FILE = "sparse/network.safetensors"
MASKS = "sparse/masks.safetensors"
ONNX = "deploy/sparse.fp32.onnx"
NO_FASTER = (
    "Zeros make files smaller; dense runtimes multiply them like any other number, so the network is no faster there."
)


def outputs(recipe: Recipe) -> tuple[str, ...]:
    """Return the files that the stage leaves beside the network's artifact."""
    assert recipe.sparse is not None
    onnx = (ONNX,) if recipe.deploy is not None else ()
    return (*onnx, MASKS) if recipe.sparse.ends_dense else (*onnx, FILE, MASKS)


def thin(work: Workspace, view: StageView) -> Outcome:
    """Make the teacher or the student sparse by the recipe's method; write and weigh it."""
    asked = work.recipe.sparse
    assert asked is not None
    job = Thinning(work, asked, work.load(asked.of), view.advance)
    masks = thinned(job)
    network = job.network
    measured = evaluate(network, work.target, "val", work.fabric)
    accuracy = measured[TASKS[work.target.task].selects]
    made = MadeNetwork(
        NETWORK,
        f"{asked.of.capitalize()} with single weights at zero: {asked.method}",
        NETWORK,
        accuracy,
        measured,
        work.ledger.model(asked.of).training_flops + job.flops,
        work.plan() if asked.of == "student" else None,
    )
    entry = work.save(network, made)
    metrics = {
        "val_accuracy": accuracy,
        **job.metrics,
        **json.loads(once(lambda: json.dumps(_written(work, job, masks)))),
    }
    if asked.ends_dense:
        view.notes.append(f"{100 * accuracy:.1f} % on validation, dense again")
    else:
        view.notes.append(
            f"{metrics['nonzeros']:.0f} weights of {masks.total} ({masks.ratio:.1f}x fewer), "
            f"{metrics['sparse_bytes'] / 1000:.1f} kB, {100 * accuracy:.1f} % on validation"
        )
    notes = job.notes if asked.ends_dense else [*job.notes, NO_FASTER]
    return Outcome(metrics=metrics, training_flops=job.flops or None, notes=tuple(notes), models=(entry,))


def _written(work: Workspace, job: Thinning, masks: Masks) -> dict[str, float]:
    """Write masks, sparse file and ONNX file; return what they came to."""
    network, out = job.network, work.out
    (out / MASKS).parent.mkdir(exist_ok=True)
    masks.save(out / MASKS)
    found: dict[str, float] = {}
    if not job.asked.ends_dense:
        found = {
            "nonzeros": float(masks.nonzeros),
            "ratio": masks.ratio,
            "sparse_bytes": float(sparse.save_sparse(network, out / FILE, masks)),
        }
    if work.recipe.deploy is not None:
        found |= _exported(work, network, out / ONNX, job.asked.of)
    return found


def _exported(work: Workspace, network: nn.Module, path: Path, like: str) -> dict[str, float]:
    """Write the ONNX file, measure its accuracy beside torch's and count what is zero in it."""
    lowered, settings = lowered_of(work, network), exporting(work.deploy)
    path.parent.mkdir(exist_ok=True)
    export_onnx(lowered.module, work.example, path, output_name=lowered.output_name, **settings)
    content = path.read_bytes()
    zeros, numbers = count_zeros(path)
    return {
        "onnx_val_accuracy": accuracy_of_file(work, path, "val", like),
        "onnx_zeros": zeros / max(1, numbers),
        "onnx_bytes": float(len(content)),
        "onnx_compressed_bytes": float(len(zlib.compress(content, 9))),
    }
