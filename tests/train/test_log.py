"""Curves: every step once, in the CSV file and in TensorBoard, whatever was killed in between."""

import csv
import sys

import pytest
from test_fit import net, split

from compress.data.images import ImageData
from compress.errors import ArtifactError, MissingError
from compress.recipe.schema import TrainRecipe
from compress.train import Trainable, fit, make_fabric
from compress.train.checkpoint import Checkpoints
from compress.train.log import Log, check_tensorboard

RECIPE = TrainRecipe(epochs=2, batch_size=16, lr=0.05)
STEPS = list(range(1, 9))


@pytest.fixture(scope="module")
def data():
    return ImageData(tuple("abcd"), {"train": split(64, 0), "val": split(40, 1)})


class Killed(BaseException):
    """A process that is gone."""


class SavedAt(Checkpoints):
    """Saves after one step alone, so that the log is ahead of it."""

    step = 3

    def save(self, training):
        if training.done == self.step:
            super().save(training)


def trained(data, folder, **settings):
    """Killed after step 6 and resumed from step 3."""
    state = folder / "state.safetensors"

    def kill(done, total, text):
        if done == 7:
            raise Killed

    for progress in (kill, lambda *_: None):
        kept, log = SavedAt(state, seconds=0), Log(folder / "logs", "short", **settings)
        try:
            fit(Trainable(net(), data, 1.0, 5), RECIPE, make_fabric("cpu"), progress, checkpoints=kept, log=log)
        except Killed:
            assert [row["step"] for row in rows(folder) if row["name"] == "loss"][-1] == "6"
    return folder / "logs"


def rows(folder):
    with (folder / "logs/short.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_curves_are_rows_and_a_resumed_training_takes_its_own_back(data, tmp_path):
    logs = trained(data, tmp_path)
    found = rows(tmp_path)
    for name in ("loss", "lr", "images_per_second", "val_top1", "val_loss"):
        assert [int(row["step"]) for row in found if row["name"] == name] == STEPS
    assert [path.name for path in logs.iterdir()] == ["short.csv"]
    again = trained(data, tmp_path / "other")
    assert again.is_dir()
    pairs = zip(found, rows(tmp_path / "other"), strict=True)
    assert all(a == b for a, b in pairs if a["name"] != "images_per_second")


def test_a_training_that_starts_again_starts_its_log_again(data, tmp_path):
    for _ in range(2):
        fit(
            Trainable(net(), data, 1.0, 5),
            RECIPE,
            make_fabric("cpu"),
            lambda *_: None,
            log=Log(tmp_path / "logs", "short"),
        )
    assert [int(row["step"]) for row in rows(tmp_path) if row["name"] == "loss"] == STEPS


def test_a_file_that_is_no_log_is_one_sentence(data, tmp_path):
    (tmp_path / "short.csv").write_text("a,b,c\nd,e,f\n")
    with pytest.raises(ArtifactError, match=r"short\.csv is not a log"):
        Log(tmp_path, "short").begin(0)


def test_tensorboard_shows_each_step_once(data, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logs = trained(data, tmp_path, tensorboard=True)
    assert len(list((logs / "short").iterdir())) == 2
    shown = EventAccumulator(str(logs / "short")).Reload()
    by_step = {(row["name"], int(row["step"])): float(row["value"]) for row in rows(tmp_path)}
    assert set(shown.Tags()["scalars"]) == {name for name, _ in by_step}
    for name in shown.Tags()["scalars"]:
        events = shown.Scalars(name)
        assert [event.step for event in events] == STEPS
        assert [event.value for event in events] == pytest.approx([by_step[name, step] for step in STEPS], rel=1e-6)


def test_tensorboard_that_is_not_installed_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    check_tensorboard(False)
    with pytest.raises(MissingError, match=r"pip install 'niwaki-vision\[tensorboard\]'") as refused:
        Log(tmp_path, "short", tensorboard=True)
    assert refused.value.exit_code == 3


def test_the_start_is_in_it_once_where_it_is_measured_though_the_training_begins_twice(data, tmp_path):
    def kill(done, total, text):
        if done == 2:
            raise Killed

    def begun():
        return Trainable(net(), data, 1.0, 5, from_start=True)

    with pytest.raises(Killed):
        fit(begun(), RECIPE, make_fabric("cpu"), kill, log=Log(tmp_path / "logs", "short"))
    fit(begun(), RECIPE, make_fabric("cpu"), lambda *_: None, log=Log(tmp_path / "logs", "short"))
    found = rows(tmp_path)
    assert [int(row["step"]) for row in found if row["name"] == "loss"] == STEPS
    assert [int(row["step"]) for row in found if row["name"] == "val_top1"] == [0, *STEPS]
    assert {row["name"] for row in found if row["step"] == "0"} >= {"val_top1", "val_loss"}
