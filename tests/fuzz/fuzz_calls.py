"""What reads files: one call for each entry point. A call is given a folder; what it returns is a command of niwaki."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch

from compress import artifact, data, prune
from compress.models.weights import load_backbone, read_weights
from compress.prune.planning import Plan
from compress.recipe.data import CocoData, CsvData, FolderData, MasksData, VocData
from compress.recipe.loading import load_recipe
from compress.run import prepare
from compress.run.ledger import Ledger
from compress.run.summary import summary, table
from compress.sparse.masks import Masks
from compress.sparse.storage import load_sparse
from compress.terminal import Terminal
from compress.train.checkpoint import Checkpoints
from compress.train.log import Log
from compress.train.state import BestWeights, TrainingState
from deploy.engines.sidecar import read_engine
from deploy.latency.table import Table
from deploy.onnx.file import read
from deploy.onnx.metadata import Metadata
from deploy.onnx.precision import precision_in
from deploy.processing.preprocess import Preprocessing

NETWORK = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(16, 2))
SIDE = 16


def get_ready() -> None:
    """Do once what is done at the first call: libraries that find out about the machine."""
    import matplotlib.figure  # noqa: F401
    import onnxruntime  # noqa: F401

    torch.set_num_threads(1)
    # Each is said each time, not only the first.
    warnings.simplefilter("always")


# --- networks and training


def inspected(folder: Path) -> list[str]:
    return ["inspect", str(folder / "student"), "--json"]


def planned(folder: Path) -> None:
    plan = Plan.from_json((folder / "plan.json").read_text("utf-8", "surrogateescape"))
    network = artifact.load(folder / "teacher")
    prune.validate(network, plan)
    prune.apply(network, plan)


def weighted(folder: Path) -> None:
    for path in sorted(folder.glob("weights.*")):
        load_backbone(NETWORK, read_weights(path), str(path))


def masked(folder: Path) -> None:
    Masks.load(folder / "masks.safetensors")


def unpacked(folder: Path) -> None:
    load_sparse(folder / "sparse.safetensors")


def training_state() -> TrainingState:
    """The state that a training of ``NETWORK`` saves and restores."""
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(16, 2))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    return TrainingState(network, None, optimizer, BestWeights(network, "accuracy"), None, 8, 0, torch.device("cpu"), 0)


def restored(folder: Path) -> None:
    Checkpoints(folder / "state.safetensors").restore(training_state())


def logged(folder: Path) -> None:
    Log(folder, "transfer").begin(3)


# --- runs and records


def recipe(folder: Path) -> None:
    asked = load_recipe(folder / "recipe.yaml")
    try:
        Preprocessing(**asked.preprocessing.model_dump())
    finally:
        asked.to_yaml()


def resumed(folder: Path) -> None:
    Ledger.read(folder / "ledger.json")
    Terminal().print(table(summary(folder)))


def reported(folder: Path) -> list[str]:
    return ["report", str(folder)]


def gated(folder: Path) -> list[str]:
    return ["gate", str(folder / "bench.json"), "--baseline", str(folder / "base.json")]


def tabled(folder: Path) -> None:
    table = Table.read(folder / "latency.json")
    setting = table.setting("onnxruntime", "fp32", 1)
    for entry in table.entries:
        table.entry(entry.layer, setting).ms(16, 32, (32, 32))


# --- bundles and models


def predicted(folder: Path) -> list[str]:
    return ["predict", str(folder / "bundle"), str(folder / "photo.png"), "--json"]


def predicted_by_openvino(folder: Path) -> list[str]:
    return [*predicted(folder), "--runtime", "openvino"]


def predicted_if_signed(folder: Path) -> list[str]:
    return [*predicted(folder), "--trusted-key", str(folder / "key.pub")]


def signed(folder: Path) -> list[str]:
    return ["sign", str(folder / "bundle"), "--key", str(folder / "key.pem")]


def verified(folder: Path) -> list[str]:
    return ["verify", str(folder / "bundle"), "--key", str(folder / "key.pub")]


def described(folder: Path) -> list[str]:
    return ["doctor", str(folder / "bundle")]


def timed(folder: Path) -> list[str]:
    return ["bench", str(folder / "model.onnx"), "--rounds", "5"]


def parsed(folder: Path) -> None:
    path = folder / "model.onnx"
    precision_in(path)
    Metadata.from_file(path)
    read(path)


def engine(folder: Path) -> list[str]:
    read_engine(folder / "bundle/engines/x.engine")
    return described(folder)


# --- images and what is said of them


def _read(recipe: CocoData | CsvData | FolderData | MasksData | VocData) -> None:
    preprocessing = Preprocessing(size=(SIDE, SIDE))
    reader = data.ImageReader(prepare._loaded, preprocessing, lambda image: prepare._seen(preprocessing, image))
    with warnings.catch_warnings():
        # As a run does: libraries warn their developers.
        warnings.simplefilter("ignore")
        found = data.load(recipe, reader, 0)
        found.splits["train"].batch(torch.arange(len(found.splits["train"])))


def coco(folder: Path) -> None:
    split = {"images": "images", "annotations": "a.json"}
    _read(CocoData(kind="coco", path=str(folder), train=split, val=split, test=split))


def voc(folder: Path) -> None:
    _read(VocData(kind="voc", path=str(folder), images="images", lists="lists", val="train", test="train"))


def csv(folder: Path) -> None:
    _read(CsvData(kind="csv", path=str(folder), train="a.csv", val="a.csv", test="a.csv"))


def masks(folder: Path) -> None:
    split = {"images": "images", "masks": "masks"}
    _read(MasksData(kind="masks", path=str(folder), train=split, val=split, test=split, classes="classes.txt"))


def tree(folder: Path) -> None:
    _read(FolderData(kind="folder", path=str(folder), val="train", test="train"))


def plan_of(folder: Path) -> str:
    """The plan of a saved network, as a seed."""
    return json.dumps(json.loads((folder / "model.json").read_text())["plan"], indent=1)
