"""What a command on a network is given: a network by name, and images from a folder or from a recipe's data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from compress import artifact, prune
from compress.artifact import Description
from compress.data.files import Unreadable, is_image, read_all
from compress.data.images import Batch, Split
from compress.data.targets import TaskName
from compress.errors import ArtifactError, DataError, ModelError
from compress.models import torchvision
from compress.models.detection import RawHeads, raw_heads
from compress.models.named import named_network
from compress.models.names import RENAMED
from compress.models.origin import origin_of
from compress.models.weights import load_backbone, pretrained
from compress.prune import Trace
from compress.prune.calibration import answers
from compress.prune.sensitivity import Measure
from compress.recipe.schema import Recipe
from compress.run.measuring import measured_on
from compress.run.prepare import read_data, reader_of
from compress.run.scoring import BATCH, drawn, scored
from compress.train import TASKS
from compress.train.tasks import Task
from compress.validation import explain
from deploy.processing.preprocess import Preprocessing

_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "resize": "shorter_side_center_crop"}


@dataclass(frozen=True)
class GivenNetwork:
    """A network, a batch that it accepts, how it is run where it is a detector, and how it is saved again."""

    model: nn.Module
    example: Tensor
    forward: RawHeads | None
    about: Description

    @property
    def task(self) -> Task:
        return TASKS[self.about.task]

    def preprocessing(self) -> Preprocessing:
        """Return how an image becomes an input; raise ArtifactError where what was saved cannot be used."""
        try:
            return Preprocessing(**self.about.preprocessing)
        except ValidationError as error:
            raise ArtifactError(f"The network's preprocessing is {explain(error)}; save the network again.") from None


@dataclass(frozen=True)
class GivenImages:
    """Images to score by and to solve on, and others to judge by.

    Args:
        scoring: the first ones.
        judging: the others.
        task: what the targets are for; None where there are none.
        classes: their names.
    """

    scoring: list[Batch]
    judging: list[Batch]
    task: Task | None
    classes: tuple[str, ...]

    def scores(self, trace: Trace, network: nn.Module, criterion: str, seed: int) -> Tensor:
        """Score every unit by a criterion, as a run does; float64 (units,)."""
        return scored(trace, network, criterion, self.scoring, self.task or TASKS["classification"], seed=seed)

    def measure(self) -> Measure | None:
        """Return a function from a network to loss, metric and images; None where there are no targets."""
        return None if self.task is None else measured_on(self.task, self.judging, self.classes)


def given_network(
    name: str, *, size: int | None = None, weights: str | None = None, trusted: tuple[str, ...] = ()
) -> GivenNetwork:
    """Build or load the network that a user names, with what is needed to save it again.

    Args:
        name: as ``named_network`` takes it.
        size: height and width of the images; by default what the network was made or saved for.
        weights: DEFAULT or a weight file, for a network that is not a saved one.
        trusted: modules of the user's own that may be imported.

    Raises:
        ModelError, ArtifactError: there is no such network, or the weights are another's.
    """
    found = named_network(name, size=size, trusted=trusted)
    model = found.model.eval()
    if Path(name).is_dir():
        if weights is not None:
            raise ModelError(f"{name} is a saved network, which has its weights; leave --weights out.")
        about = artifact.describe(name)
        about = about.model_copy(update={"preprocessing": {**about.preprocessing, "size": _sides(found.example)}})
        return GivenNetwork(model, found.example, found.forward, about)
    factory = RENAMED.get(name, name)
    if weights is not None:
        load_backbone(model, pretrained(factory, weights), weights)
    about = Description(
        factory=factory,
        arguments=dict(origin_of(model).arguments),
        task=_task(factory, model),
        classes=_outputs(factory, model, found.example),
        preprocessing=_preprocessing(found.example),
    )
    return GivenNetwork(model, found.example, found.forward, about)


def _sides(example: Tensor) -> list[int]:
    return list(example.shape[2:])


def _task(factory: str, model: nn.Module) -> TaskName:
    if raw_heads(model) is not None:
        return "detection"
    module, _, name = factory.partition(":")
    if module == "torchvision":
        return torchvision.names()[name]
    return "segmentation" if factory.startswith(("niwaki:mobilenet_v2_", "smp:")) else "classification"


def _outputs(factory: str, model: nn.Module, example: Tensor) -> tuple[str, ...]:
    """Name the outputs by their numbers, as many as the network has."""
    if raw_heads(model) is not None:
        count = 2 if "keypoint" in factory else 91
    else:
        with torch.no_grad():
            answer = model(example)
        count = answers(answer).shape[1]
    return tuple(map(str, range(count)))


def _preprocessing(example: Tensor) -> dict[str, object]:
    """What most published weights expect of photographs; grey values as they are."""
    rgb = example.shape[1] == 3
    return {"size": _sides(example), "mode": "RGB" if rgb else "L", **(_IMAGENET if rgb else {})}


# Images ------------------------------------------------------------------------------------------------------


def images_of(recipe: Recipe, count: int, seed: int) -> GivenImages:
    """Take a recipe's images: up to ``count`` of training to score by, as many of validation to judge by."""
    _, data = read_data(recipe)
    scoring = drawn(data.splits["train"], count, seed)
    return GivenImages(scoring, drawn(data.splits["val"], count, seed), TASKS[data.task], data.classes)


def images_in(folder: Path, network: GivenNetwork, count: int, seed: int) -> GivenImages:
    """Read images in class folders, or images alone, which have no labels; of up to ``count`` every other one judges.

    Raises:
        DataError: there are too few images, one cannot be read, or the folders are no classes of the network.
    """
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}; name one with images, or a recipe.")
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    labelled = len(names) > 0
    if labelled and network.about.task != "classification":
        raise DataError(f"{folder} has class folders and the network is for {network.about.task}; name a recipe.")
    labels = _labels(folder, names, network.about.classes) if labelled else {}
    found = sorted(p for p in folder.rglob("*") if is_image(p))
    chosen = [found[i] for i in np.sort(np.random.default_rng(seed).permutation(len(found))[:count])]
    if len(chosen) < 8:
        raise DataError(f"{folder} gives {len(chosen)} images; give at least 8.")
    reader = reader_of(network.preprocessing())
    items = [(path, labels[path.relative_to(folder).parts[0]] if labelled else 0) for path in chosen]
    images, targets = read_all(items, reader, Unreadable(None, folder), folder)
    split = Split(images, torch.tensor(targets), reader)
    parts = [torch.arange(first, len(items), 2) for first in (0, 1)]
    batches = [[split.batch(own) for own in part.split(BATCH)] for part in parts]
    if labelled:
        return GivenImages(batches[0], batches[1], TASKS["classification"], network.about.classes)
    bare = [[Batch(batch.images, None, batch.index) for batch in part] for part in batches]
    return GivenImages(bare[0], bare[1], None, network.about.classes)


def _labels(folder: Path, names: Sequence[str], classes: Sequence[str]) -> dict[str, int]:
    """Class folder -> label: by name, or in order where there are as many folders as classes that are mere numbers."""
    known = {name: label for label, name in enumerate(classes)}
    if set(names) <= set(known):
        return {name: known[name] for name in names}
    if len(names) == len(classes) and tuple(classes) == tuple(map(str, range(len(classes)))):
        return {name: label for label, name in enumerate(names)}
    other = next(name for name in names if name not in known)
    if "train" in names:
        raise DataError(f"{folder} holds splits, not classes; name one of them, such as {folder / 'train'}.")
    raise DataError(
        f"{folder} has a folder '{other}', which is not a class of the network ({', '.join(list(classes)[:5])}, ...); "
        "name the folders after the classes, or give images without class folders, which need no labels."
    )


def trace_of(network: GivenNetwork, protect: Sequence[str]) -> Trace:
    """Trace a network and keep what the user's patterns name; raise PlanError where a pattern matches nothing."""
    trace = prune.trace(network.model, network.example, forward=network.forward)
    return prune.protect(trace, tuple(protect)) if protect else trace
