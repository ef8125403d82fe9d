"""The training loop: repeatable, as long as asked for, and it keeps the best it has seen."""

import re
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from compress.data.images import ImageData, ImageReader, Split
from compress.errors import MissingError, TrainingError
from compress.models.cifar_resnet import cifar_resnet
from compress.recipe.schema import TrainRecipe
from compress.train import Trainable, evaluate, fit, loop, make_fabric
from compress.train.loop import steps_for

pytestmark = pytest.mark.heavy

warnings.filterwarnings("ignore", module="lightning")
READER = ImageReader(Image.open, lambda image: np.asarray(image, dtype=np.float32)[None] / 128 - 1)


class Bars:
    """Bright columns: the class is where the column is, under noise."""

    def __init__(self, count, seed):
        rng = np.random.default_rng(seed)
        self.labels = np.arange(count) % 4
        self.arrays = rng.integers(0, 120, (count, 8, 8), dtype=np.uint8)
        for array, label in zip(self.arrays, self.labels, strict=True):
            array[:, 2 * label] += 110

    def __len__(self):
        return len(self.arrays)

    def __getitem__(self, index):
        return Image.fromarray(self.arrays[index])


def split(count, seed):
    images = Bars(count, seed)
    return Split(images, torch.from_numpy(images.labels), READER)


@pytest.fixture(scope="module")
def data():
    return ImageData(tuple("abcd"), {"train": split(64, 0), "val": split(40, 1), "test": split(40, 2)})


@pytest.fixture(scope="module")
def fabric():
    return make_fabric("cpu")


def net(seed=0):
    torch.manual_seed(seed)
    return cifar_resnet(8, 4, in_channels=1, num_classes=4)


def quiet(done, total, text):
    pass


RECIPE = TrainRecipe(epochs=3, batch_size=16, lr=0.05, augment="affine")


def trained(data, fabric, recipe=RECIPE, seed=5, **settings):
    model = net()
    result = fit(Trainable(model, data, 1000.0, seed), recipe, fabric, quiet, **settings)
    return model, result


def test_two_runs_are_equal_to_the_bit(data, fabric):
    first, one = trained(data, fabric)
    torch.randn(1000)  # what others draw changes nothing
    second, two = trained(data, fabric)
    assert one == two
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_another_seed_trains_otherwise(data, fabric):
    first, second = trained(data, fabric)[0], trained(data, fabric, seed=6)[0]
    assert not torch.equal(first.conv1.weight, second.conv1.weight)


def test_it_learns(data, fabric):
    model, result = trained(data, fabric, RECIPE.model_copy(update={"epochs": 12, "augment": "none"}))
    assert evaluate(model, data, "test", fabric)["top1"] >= 0.75
    assert result.val_accuracy >= 0.75
    assert not model.training


def test_the_best_checkpoint_is_kept_not_the_last(data, fabric, monkeypatch):
    """Validation is scripted: the second of the evaluations is the best one."""
    scripted, seen = iter([0.25, 0.75, 0.5, 0.5] + [0.5] * 20), []
    real = loop._measured

    def measured(model, *rest):
        real(model, *rest)
        seen.append({n: t.clone() for n, t in model.state_dict().items()})
        return {"top1": next(scripted), "loss": 1.0}

    monkeypatch.setattr(loop, "_measured", measured)
    model, result = trained(data, fabric)
    assert result.val_accuracy == 0.75
    assert len(seen) > 3
    assert all(torch.equal(t, seen[1][n]) for n, t in model.state_dict().items())
    assert not torch.equal(model.conv1.weight, seen[-1]["conv1.weight"])


def test_of_equal_accuracies_the_lower_loss_wins(data, fabric, monkeypatch):
    losses, seen = iter([3.0, 1.0] + [2.0] * 20), []

    def measured(model, *rest):
        seen.append(model.conv1.weight.detach().clone())
        return {"top1": 0.5, "loss": next(losses)}

    monkeypatch.setattr(loop, "_measured", measured)
    assert torch.equal(trained(data, fabric)[0].conv1.weight, seen[1])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("first", "sentence"), [(1, "not finite before any update"), (3, r"at step 3 of 12; lower lr")]
)
def test_a_loss_that_is_not_finite_is_one_sentence(data, fabric, value, first, sentence):
    calls = []

    def loss(model, batch):
        calls.append(1)
        return model(batch.images).sum() * (value if len(calls) == first else 1e-3)

    task = Trainable(net(), data, 1.0, 0, loss)
    with pytest.raises(TrainingError, match=sentence) as caught:
        fit(task, RECIPE, fabric, quiet)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("recipe", "images", "budget", "steps"),
    [
        ({"epochs": 3, "batch_size": 16}, 64, None, 12),
        ({"epochs": 3, "batch_size": 16}, 70, None, 12),
        ({"epochs": 3, "batch_size": 100}, 64, None, 3),
        ({"training_flops": 32_000.0, "batch_size": 16}, 64, None, 20),
        ({"epochs": 3, "batch_size": 16}, 64, 16_000.0, 10),
        ({"epochs": 3, "batch_size": 16}, 64, 1.0, 1),
        ({"training_flops": 1e4, "batch_size": 200}, 50, None, 2),
    ],
)
def test_the_length_is_what_was_asked_for(recipe, images, budget, steps):
    assert steps_for(TrainRecipe(**recipe), images, 100.0, budget) == steps


def test_equal_budgets_spend_equal_flops(data, fabric):
    """A network of a third of the cost takes three times the steps."""
    spent = {}
    for flops in (900.0, 300.0):
        task = Trainable(net(), data, flops, 0)
        result = fit(task, RECIPE, fabric, quiet, budget=900.0 * 16 * 4)
        assert result.training_flops == result.steps * 16 * flops
        spent[flops] = result
    assert (spent[900.0].steps, spent[300.0].steps) == (4, 12)
    assert spent[900.0].training_flops == spent[300.0].training_flops == 900.0 * 16 * 4


def test_progress_counts_every_step(data, fabric):
    calls = []
    fit(Trainable(net(), data, 1.0, 0), RECIPE, fabric, lambda *a: calls.append(a))
    assert [call[:2] for call in calls] == [(k, 12) for k in range(1, 13)]
    assert all(re.fullmatch(r"loss \d+\.\d{3}  val \d+\.\d %  \d+ images/s", text) for _, _, text in calls)


def test_frozen_parameters_stay_and_the_backbone_may_be_slower(data, fabric):
    frozen, still = net(), net()
    frozen.fc.requires_grad_(False)
    fit(Trainable(frozen, data, 1.0, 0), RECIPE, fabric, quiet)
    assert torch.equal(frozen.fc.weight, net().fc.weight)
    assert not torch.equal(frozen.conv1.weight, net().conv1.weight)
    fit(Trainable(still, data, 1.0, 0), RECIPE.model_copy(update={"backbone_lr": 0.0}), fabric, quiet)
    assert torch.equal(still.conv1.weight, net().conv1.weight)
    assert not torch.equal(still.fc.weight, net().fc.weight)


def test_adamw_trains_too(data, fabric):
    recipe = RECIPE.model_copy(update={"optimizer": "adamw", "lr": 1e-3})
    assert not torch.equal(trained(data, fabric, recipe)[0].conv1.weight, net().conv1.weight)


def test_evaluation_counts_right_answers(data, fabric):
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = nn.Parameter(torch.tensor([0.0, 1.0, 0.0, 0.0]))

        def forward(self, x):
            return self.logits.expand(len(x), 4)

    found = evaluate(Constant(), data, "val", fabric)
    # All 40 answers are class 1, of which there are 10: precision 1/4, recall 1, F1 0.4, and 0 for the other three.
    assert found["top1"] == 0.25
    assert found["macro_f1"] == pytest.approx(0.1)
    assert found["loss"] == pytest.approx(np.log(3 + np.e) - 0.25)
    assert "top5" not in found


def test_a_device_that_is_not_there_is_one_sentence():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(MissingError, match="device: cuda, but torch sees no GPU here"):
        make_fabric("cuda")


@pytest.mark.parametrize("start", [0.9, 0.5])
def test_where_nothing_later_is_better_the_start_is_kept(data, fabric, monkeypatch, start):
    """Validation is scripted: after the start comes 0.75, then less."""
    scripted = iter([start, 0.75] + [0.25] * 20)
    monkeypatch.setattr(loop, "_measured", lambda *given: {"top1": next(scripted), "loss": 1.0})
    model, begun = net(), net().state_dict()
    result = fit(Trainable(model, data, 1000.0, 5, from_start=True), RECIPE, fabric, quiet)
    kept = all(torch.equal(t, begun[n]) for n, t in model.state_dict().items())
    assert (result.best_step, result.val_accuracy, kept) == ((0, 0.9, True) if start == 0.9 else (1, 0.75, False))
    assert result.steps == 12


def test_with_a_teachers_answers_the_weights_nearest_to_them_are_kept(data, fabric):
    """Against a slow reference: the divergence of every evaluation, image by image; accuracy would choose otherwise."""
    expected = 3 * torch.randn(len(data.splits["val"]), 4, generator=torch.Generator().manual_seed(3))
    answers, seen, real = expected.log_softmax(1), [], loop.BestWeights.offer

    def offer(best, network, metrics, step):
        network.eval()
        rows = []
        with torch.no_grad():
            for i in range(len(answers)):
                said = network(data.splits["val"].inputs(i, i + 1)).log_softmax(1)[0]
                rows.append(float((answers[i].exp() * (answers[i] - said)).sum()))
        seen.append((sum(rows) / len(rows), step, metrics))
        network.train()
        real(best, network, metrics, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.BestWeights, "offer", offer)
        model = net()
        result = fit(Trainable(model, data, 1000.0, 5, from_start=True, answers=expected), RECIPE, fabric, quiet)
    assert [step for _, step, _ in seen] == list(range(13))
    for divergence, _, metrics in seen:
        assert metrics["divergence"] == pytest.approx(divergence, rel=1e-4)
    best = min(seen)
    assert (result.best_step, result.metrics) == (best[1], best[2])
    assert result.val_accuracy == best[2]["top1"] < max(metrics["top1"] for _, _, metrics in seen)
