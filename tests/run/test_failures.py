"""What can fail in the middle of a training: one sentence, the right exit code, the last good checkpoint whole."""

import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from torch.utils.data import dataloader

from compress.cli import app
from compress.data import files, images
from compress.train import checkpoint
from compress.train.tasks import TASKS

pytestmark = pytest.mark.heavy

STATE = Path("out/checkpoints/transfer.training.safetensors")
TRAIN = {"epochs": 4, "batch_size": 8, "augment": "flip", "evaluations": 2}
RECIPE = {
    "name": "failures",
    "model": {"factory": "niwaki:cifar_resnet", "arguments": {"depth": 8, "width": 8}},
    "target": {"kind": "function", "function": "test_failures:pictures"},
    "preprocessing": {"size": [8, 8], "resize": "stretch"},
    "transfer": TRAIN,
    "twin": False,
    "prune": {"criterion": "l1", "reconstruct": False, "budget": {"macs": 0.6}, "round_to": 4, "min_kept": 4},
    "distill": {**TRAIN, "compare": []},
    "deploy": None,
}


class Pictures:
    """Thirty-two pictures of two classes, read anew each time; `fails` happens once training has left a checkpoint."""

    def __init__(self, fails):
        self.fails = fails

    def __len__(self):
        return 32

    def __getitem__(self, index):
        if self.fails and STATE.exists():
            if self.fails == "dies":
                os._exit(9)
            raise OSError("image file is truncated")
        return Image.fromarray(np.full((8, 8, 3), index, np.uint8)), index % 2


def pictures(fails=""):
    return {"train": Pictures(fails), "val": Pictures(""), "test": Pictures("")}


def full_disk(monkeypatch):
    real, calls = checkpoint.save_file, []

    def save_file(*given):
        calls.append(1)
        if len(calls) > 3:
            Path(given[1]).write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(*given)

    monkeypatch.setattr(checkpoint, "save_file", save_file)


def no_number(monkeypatch):
    task, calls = type(TASKS["classification"]), []
    real = task.loss

    def loss(*given):
        calls.append(1)
        return real(*given) * (float("nan") if len(calls) > 3 else 1.0)

    monkeypatch.setattr(task, "loss", loss)


def fails(how, workers):
    """Makes the recipe's pictures fail so."""
    return {"target": {**RECIPE["target"], "arguments": {"fails": how}}, "transfer": {**TRAIN, "workers": workers}}


class Failure(NamedTuple):
    """How something fails, what the recipe changes, exit code, what is said, the step that the checkpoint is of."""

    happens: Callable[[pytest.MonkeyPatch], None] | None
    change: dict
    code: int
    said: str
    step: int | None


FAILURES = {
    "a full disk": Failure(full_disk, {}, 3, "cannot be written (No space left on device); free some space", 3),
    "a loss that is no number": Failure(no_number, {}, 1, "The loss is nan at step 4 of 16; lower lr (0.05).", 3),
    "a worker that dies": Failure(None, fails("dies", 1), 1, "A data worker died", None),
    "an image damaged meanwhile": Failure(None, fails("breaks", 0), 2, "cannot be read (image file is truncated)", 1),
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_a_failure_is_one_sentence_and_the_checkpoint_before_stays(tmp_path, monkeypatch, capsys, failure):
    monkeypatch.chdir(tmp_path)
    for module in (files, images):
        monkeypatch.setattr(module, "CACHE_BYTES", 0)
    monkeypatch.setattr(checkpoint.Checkpoints.__init__, "__defaults__", (0.0,))
    # How often it is looked whether the workers live, seconds.
    monkeypatch.setattr(dataloader._MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))
    if failure.happens:
        failure.happens(monkeypatch)
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE | failure.change))
    command = ["niwaki", "run", "recipe.yaml", "--out", "out", "--quiet", "--trust", "test_failures"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        app.main()
    shown = capsys.readouterr()
    assert (ended.value.code, shown.out) == (failure.code, "")
    assert shown.err.startswith("niwaki: ")
    assert shown.err.count("\n") == 1
    assert failure.said in shown.err
    with safe_open(STATE, "pt") as held:
        about = json.loads(held.metadata()["niwaki"])
        assert all(torch.isfinite(held.get_tensor(n)).all() for n in held.keys() if n.startswith("model."))  # noqa: SIM118
    # How far a worker is ahead of the step that is taken is its own affair.
    assert about["step"] == failure.step or failure.step is None
    assert not list(STATE.parent.glob(".*.tmp"))
    assert json.loads(Path("out/ledger.json").read_text())["stages"] == []


def test_too_many_unreadable_images_stop_a_run_before_its_folder_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE | fails("breaks", 0)))
    monkeypatch.setattr(sys.modules[__name__], "STATE", Path("recipe.yaml"))
    monkeypatch.setattr(
        sys,
        "argv",
        ["niwaki", "run", "recipe.yaml", "--out", "fresh", "--trust", "test_failures", "--set", "target.unreadable=3"],
    )
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert ended.value.code == 2
    assert "32 image(s) cannot be read and 'unreadable' allows 3" in capsys.readouterr().err
    assert not Path("fresh").exists()
