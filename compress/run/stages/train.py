"""The stages that train whole networks: on the source, on the target, and the twin that starts from nothing."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from compress import cost
from compress.files import replacing
from compress.models.weights import read_weights
from compress.run.ledger import Outcome
from compress.run.progress import StageView
from compress.run.training import on_validation, train
from compress.run.transfer import fresh, started, started_from, teacher_of
from compress.run.workspace import MadeNetwork, Workspace
from compress.train import TASKS, Trainable, evaluate
from compress.train.ranks import once

PRETRAINED = "checkpoints/pretrained.safetensors"


def pretrain(work: Workspace, view: StageView) -> Outcome:
    """Train the network on the source domain."""
    recipe = work.recipe
    assert recipe.source is not None
    model = started(recipe.model, work.source, recipe.seed)
    flops = cost.training_flops(model, work.example)
    task = Trainable(model, work.source, flops, recipe.seed)
    result = train(work, view.advance, "pretrain", task, recipe.source.train)
    once(lambda: _write_weights(model, work.out / PRETRAINED))
    view.notes.append(f"{100 * result.val_accuracy:.1f} % of source validation")
    return Outcome(
        metrics={"source_val_accuracy": result.val_accuracy},
        training_flops=result.training_flops,
        notes=(*work.source.notes, *result.notes),
    )


def _write_weights(model: nn.Module, path: Path) -> None:
    with replacing(path) as temporary:
        save_file({n: t.contiguous() for n, t in model.state_dict().items()}, temporary)


def transfer(work: Workspace, view: StageView) -> Outcome:
    """Fine-tune the pretrained network on the target: the teacher; or take it as it is where it is trained already."""
    recipe = work.recipe
    if recipe.transfer is None:
        return _as_it_is(work, view)
    if recipe.source is not None:
        state = read_weights(work.out / PRETRAINED)
        model = started_from(recipe.model, work.target, recipe.seed, state, PRETRAINED)
    else:
        model = started(recipe.model, work.target, recipe.seed)
    task = Trainable(model, work.target, cost.training_flops(model, work.example), recipe.seed + 1)
    result = train(work, view.advance, "transfer", task, recipe.transfer)
    made = MadeNetwork(
        "teacher",
        "Dense teacher",
        "teacher",
        result.val_accuracy,
        result.metrics,
        # All that was trained before went into it.
        work.ledger.training_flops + result.training_flops,
    )
    view.notes.append(f"teacher: {on_validation(work, result)}")
    return Outcome(
        metrics={"val_accuracy": result.val_accuracy},
        training_flops=result.training_flops,
        notes=(*work.target.notes, *result.notes),
        models=(work.save(model, made),),
    )


def _as_it_is(work: Workspace, view: StageView) -> Outcome:
    """Take the network whose weights the recipe names for the teacher."""
    model = teacher_of(work.recipe, work.target)
    measured = evaluate(model, work.target, "val", work.fabric)
    accuracy = measured[TASKS[work.target.task].selects]
    made = MadeNetwork("teacher", "Dense teacher", "teacher", accuracy, measured)
    view.notes.append(f"teacher, as it is: {100 * accuracy:.1f} % {work.ledger.metric} on validation")
    return Outcome(
        metrics={"val_accuracy": accuracy},
        notes=(*work.target.notes, "The teacher was trained before this run; what that cost is not counted."),
        models=(work.save(model, made),),
    )


def twin(work: Workspace, view: StageView) -> Outcome:
    """Train the teacher's architecture from random weights, on target data alone, with the teacher's training FLOPs."""
    recipe = work.recipe
    model = fresh(recipe.model, work.target, recipe.seed + 100)
    task = Trainable(model, work.target, cost.training_flops(model, work.example), recipe.seed + 2)
    budget = work.ledger.model("teacher").training_flops
    assert recipe.transfer is not None
    from_scratch = recipe.transfer.model_copy(update={"backbone_lr": 1.0})
    result = train(work, view.advance, "twin", task, from_scratch, budget)
    title = "Teacher's twin from scratch"
    made = MadeNetwork("twin", title, "twin", result.val_accuracy, result.metrics, result.training_flops)
    view.notes.append(f"without transfer: {on_validation(work, result)}")
    notes = result.notes
    if recipe.model.weights is not None:
        notes += ("The FLOPs that the pretrained weights cost before this run are not counted.",)
    return Outcome(
        metrics={"val_accuracy": result.val_accuracy},
        training_flops=result.training_flops,
        notes=notes,
        models=(work.save(model, made),),
    )
