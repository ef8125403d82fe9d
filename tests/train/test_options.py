"""What a recipe may ask of a training: each option by what it changes, against values worked out by hand."""

import errno
import math
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from test_fit import READER, net, quiet, split
from torch import nn
from torch.utils.data import dataloader

from compress.data import loader
from compress.data.geometry import Geometry, fitted
from compress.data.images import Batch, ImageData, ImageReader, Split
from compress.data.loader import Feed
from compress.data.targets import Boxes
from compress.errors import ArtifactError, MissingError, TrainingError
from compress.recipe.schema import TrainRecipe
from compress.train import Trainable, checkpoint, fit, loop, make_fabric
from compress.train.checkpoint import Checkpoints
from compress.train.frozen import frozen_trunk
from compress.train.layout import spoiled_by_channels_last
from compress.train.log import Log
from compress.train.schedule import cosine, make_optimizer
from compress.train.state import MovingAverage
from compress.train.tasks import TASKS

pytestmark = pytest.mark.heavy

RECIPE = TrainRecipe(epochs=2, batch_size=16, lr=0.05)


@pytest.fixture(scope="module")
def data():
    return ImageData(tuple("abcd"), {"train": split(64, 0), "val": split(40, 1)})


@pytest.fixture(scope="module")
def fabric():
    return make_fabric("cpu")


def trained(data, fabric, model=None, **settings):
    model = model or net()
    return model, fit(Trainable(model, data, 1.0, 5), RECIPE.model_copy(update=settings), fabric, quiet)


def groups():
    """A network that treats each image by itself."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))


def test_the_average_is_the_one_by_hand():
    layer = nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(0.0)
    average = MovingAverage(layer, 0.5)
    layer.weight.data.fill_(11.0)
    average.update(layer)  # decay (1 + 1) / (10 + 1)
    assert average.weights["weight"].item() == pytest.approx(11 * 9 / 11)
    for _ in range(20):
        average.update(layer)
    layer.weight.data.fill_(0.0)
    before = average.weights["weight"].item()
    average.update(layer)  # decay 0.5 from here on
    assert average.weights["weight"].item() == pytest.approx(before / 2)


def test_with_an_average_other_weights_are_kept(data, fabric):
    plain, _ = trained(data, fabric)
    averaged, result = trained(data, fabric, ema=0.9)
    assert not torch.equal(plain.fc.weight, averaged.fc.weight)
    assert 0 <= result.val_accuracy <= 1


def test_patience_ends_a_training_that_gets_no_better(data, fabric, monkeypatch):
    monkeypatch.setattr(loop, "_measured", lambda *_: {"top1": 0.5, "loss": 1.0})
    _, whole = trained(data, fabric, evaluations=8)
    _, short = trained(data, fabric, evaluations=8, patience=3)
    assert (whole.steps, short.steps) == (8, 4)
    assert short.training_flops == 4 * 16


def test_accumulated_parts_are_the_batch(data, fabric):
    (one, _), (two, _) = (trained(data, fabric, groups(), accumulate=parts) for parts in (1, 4))
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_batch_that_does_not_fall_into_parts_is_refused(data, fabric):
    with pytest.raises(TrainingError, match=r"batch of 16 images cannot be split over 1 process.* x 3"):
        trained(data, fabric, accumulate=3)


def test_a_frozen_backbone_does_not_move_and_its_head_does(data, fabric):
    before = net().state_dict()
    after = trained(data, fabric, freeze_epochs=2)[0].state_dict()
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert moved == {"fc.weight", "fc.bias"}
    later = trained(data, fabric, freeze_epochs=1)[0].state_dict()
    assert not torch.equal(later["conv1.weight"], before["conv1.weight"])


def passes(model):
    """Counts how many images the first layer reads in training; evaluation reads them too, in eval mode."""
    counted = []
    model.conv1.register_forward_pre_hook(
        lambda module, inputs: counted.append(len(inputs[0]) if torch.is_grad_enabled() else 0)
    )
    return counted


def test_a_frozen_trunk_reads_each_image_once_and_its_head_learns_the_same(data, fabric, monkeypatch):
    settings = {"freeze_epochs": 3, "epochs": 4, "lr": 0.5}
    model = net()
    read = passes(model)
    trained(data, fabric, model, **settings)
    assert sum(read) == 64  # the fourth epoch alone learns by whole passes
    monkeypatch.setattr(loop, "frozen_trunk", lambda *given: None)
    other = net()
    read = passes(other)
    trained(data, fabric, other, **settings)
    assert sum(read) == 4 * 64
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, other.state_dict()[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("settings", [{"augment": "flip"}, {"mixup": 0.2}, {"freeze_epochs": 0}])
def test_what_a_trunk_reads_anew_in_every_epoch_is_not_kept(data, fabric, settings):
    model = net()
    read = passes(model)
    trained(data, fabric, model, **{"freeze_epochs": 2, **settings})
    assert sum(read) == 2 * 64


def test_an_optimizer_of_its_own_may_move_the_trunk_so_nothing_is_kept(data, fabric):
    model = net()
    read = passes(model)
    task = Trainable(model, data, 1.0, 5, optimizer=make_optimizer)
    fit(task, RECIPE.model_copy(update={"freeze_epochs": 2}), fabric, quiet)
    assert sum(read) == 2 * 64


class Noisy(nn.Module):
    """A trunk that draws, or a network that ends in more than its head."""

    def __init__(self, drop=0.0, scale=1.0):
        super().__init__()
        self.body, self.drop, self.scale = nn.Linear(64, 8), drop, scale
        self.classifier = nn.Sequential(nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 4))

    def forward(self, images):
        seen = nn.functional.dropout(self.body(images.flatten(1)), self.drop, self.training)
        return self.scale * self.classifier(seen)


def test_dropout_belongs_to_the_head_and_what_else_is_drawn_or_added_rules_keeping_out(data):
    split, device = data.splits["train"], torch.device("cpu")
    kept = frozen_trunk(model := Noisy(), split, device)
    assert [type(module) for module in kept.head] == [nn.Dropout, nn.Linear]
    assert kept.head[1] is model.classifier[2]
    images = split.inputs(0, 64)
    torch.testing.assert_close(kept.features, model.body(images.flatten(1)).relu())
    batch = kept.read(Batch(images[[5, 2]], split.labels[[5, 2]], torch.tensor([5, 2])))
    assert torch.equal(batch.images, kept.features[[5, 2]])
    assert frozen_trunk(Noisy(drop=0.5), split, device) is None
    assert frozen_trunk(Noisy(scale=2.0), split, device) is None


def test_frozen_statistics_stay_and_adapted_ones_are_those_of_the_images(data, fabric):
    before = net()
    frozen, _ = trained(data, fabric, batchnorm="frozen")
    assert torch.equal(frozen.bn1.running_mean, before.bn1.running_mean)
    assert not torch.equal(frozen.bn1.weight, before.bn1.weight)
    adapted, _ = trained(data, fabric, batchnorm="adapted")
    seen = before.conv1(data.splits["train"].inputs(0, 64))
    torch.testing.assert_close(adapted.bn1.running_mean, seen.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_rates_fall_towards_the_input():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    recipe = RECIPE.model_copy(update={"lr": 1.0, "layer_decay": 0.5, "backbone_lr": 0.1})
    optimizer = make_optimizer(model, recipe)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert [rates[id(layer.weight)] for layer in model] == pytest.approx([0.025, 0.05, 1.0])
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert [decays[id(p)] for p in model[0].parameters()] == [recipe.weight_decay, 0.0]


def test_clipping_bounds_what_a_step_changes(data, fabric):
    before = groups()
    settings = {"clip": 1e-6, "momentum": 0.0, "weight_decay": 0.0}
    after, _ = trained(data, fabric, groups(), **settings)
    change = sum(
        float((a - b).detach().square().sum()) for a, b in zip(after.parameters(), before.parameters(), strict=True)
    )
    assert 0 < change**0.5 <= 8 * 0.05 * 1e-6 * 1.01


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_images_have_mixed_labels(data, fabric, kind):
    feed = Feed(data.splits["train"], 16, "none", 0, classes=4, **{kind: 1.0})
    (mixed,), (again,) = list(feed.batches(0, 1)), list(feed.batches(0, 1))
    plain = next(Feed(data.splits["train"], 16, "none", 0).batches(0, 1))
    assert torch.equal(mixed.images, again.images)
    torch.testing.assert_close(mixed.soft.sum(1), torch.ones(16))
    assert not torch.equal(mixed.images, plain.images)
    if kind == "mixup":
        share = mixed.soft.max(1).values
        pure = plain.images.roll(1, 0)
        i = int((share < 1).nonzero()[0])
        own = mixed.soft[i, plain.targets[i]]
        torch.testing.assert_close(mixed.images[i], own * plain.images[i] + (1 - own) * pure[i], rtol=1e-4, atol=1e-4)


def test_a_mixed_batch_is_trained_on_by_its_shares(data, fabric):
    task, logits = TASKS["classification"], torch.tensor([[0.0, math.log(3.0)]])
    half = Batch(torch.zeros(1, 1, 8, 8), torch.tensor([0]), torch.arange(1), soft=torch.tensor([[0.5, 0.5]]))
    # Probabilities 1/4 and 3/4.
    expected = 0.5 * math.log(4) + 0.5 * math.log(4 / 3)
    assert float(task.loss(lambda images: logits, half)) == pytest.approx(expected)
    plain, mixed = (trained(data, fabric, groups(), mixup=alpha)[0] for alpha in (0.0, 1.0))
    assert not torch.equal(plain[0].weight, mixed[0].weight)


def test_smoothed_labels_are_trained_on(data, fabric):
    task, logits = TASKS["classification"], torch.tensor([[0.0, math.log(3.0)]])
    batch = Batch(torch.zeros(1, 1, 8, 8), torch.tensor([1]), torch.arange(1))
    # A share of 0.2 goes to both classes alike.
    expected = 0.9 * math.log(4 / 3) + 0.1 * math.log(4)
    assert float(task.loss(lambda images: logits, batch, 0.2)) == pytest.approx(expected)
    plain, smoothed = (trained(data, fabric, groups(), label_smoothing=share)[0] for share in (0.0, 0.2))
    assert not torch.equal(plain[0].weight, smoothed[0].weight)


def test_the_rate_rises_and_then_falls_along_a_cosine(data, fabric, tmp_path):
    assert [cosine(step, 10, 0.2) for step in (0, 1, 2, 6)] == pytest.approx([0.5, 1.0, 1.0, 0.5])
    assert cosine(9, 10, 0.2) == pytest.approx(0.5 * (1 + math.cos(7 * math.pi / 8)))
    log, recipe = Log(tmp_path, "short"), RECIPE.model_copy(update={"warmup": 0.5})
    fit(Trainable(net(), data, 1.0, 5), recipe, fabric, quiet, log=log)
    rates = [float(row.split(",")[2]) for row in log.path.read_text().splitlines() if ",lr," in row]
    assert rates == pytest.approx([0.05 * cosine(step, 8, 0.5) for step in range(8)])


# How it is computed ----------------------------------------------------------------------------------------


def watched(data, fabric, **settings):
    """The network after training, and what its second convolution was given in the first step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 16, 4))
    seen = []
    handle = model[2].register_forward_hook(lambda module, given, gave: seen.append((given[0], module.weight, gave)))
    trained(data, fabric, model, **settings)
    handle.remove()
    return model, seen[0]


@pytest.mark.parametrize("last", [True, False])
def test_channels_last_is_how_images_and_weights_lie(data, fabric, last):
    _, (given, weight, gave) = watched(data, fabric, channels_last=last)
    for tensor in (given, weight, gave):
        assert tensor.is_contiguous(memory_format=torch.channels_last) is last
        assert tensor.is_contiguous() is not last


def test_bf16_mixed_computes_in_bf16_and_keeps_float32(data, fabric):
    whole, _ = watched(data, fabric)
    mixed, (given, weight, gave) = watched(data, make_fabric("cpu", "bf16-mixed"))
    assert (given.dtype, weight.dtype, gave.dtype) == (torch.bfloat16, torch.float32, torch.bfloat16)
    assert all(p.dtype == torch.float32 for p in mixed.parameters())
    assert not torch.equal(whole[0].weight, mixed[0].weight)
    torch.testing.assert_close(whole[0].weight, mixed[0].weight, rtol=0.1, atol=0.02)


def test_what_is_compiled_trains_to_the_same_weights(data, fabric, monkeypatch):
    compiled, real = [], torch.compile

    def compile_(module, **_):
        # The default backend needs a C++ compiler and half a minute.
        compiled.append(real(module, backend=backend))
        return compiled[-1]

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    graphs = []
    monkeypatch.setattr(torch, "compile", compile_)
    model, result = trained(data, fabric, groups(), compile=True)
    monkeypatch.undo()
    plain, expected = trained(data, fabric, groups())
    assert compiled and graphs
    assert result.steps == expected.steps
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


class Deadly:
    def __len__(self):
        return 32

    def __getitem__(self, index):
        if index == 20 and torch.utils.data.get_worker_info() is not None:
            os._exit(9)
        return Image.fromarray(np.full((8, 8), index, np.uint8))


def test_a_worker_that_dies_is_one_sentence(monkeypatch):
    monkeypatch.setattr(dataloader._MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))
    before = signal.getsignal(signal.SIGCHLD)
    dying = Split(Deadly(), torch.zeros(32, dtype=torch.int64), READER)
    with pytest.raises(TrainingError, match=r"A data worker died .*--resume"):
        list(Feed(dying, 8, "flip", 0, workers=1).batches(0, 4))
    # Torch's own would raise in the middle of whatever goes on, such as the writing of a checkpoint.
    assert signal.getsignal(signal.SIGCHLD) is before


@pytest.mark.parametrize("broken", [ConnectionResetError("reset by peer"), EOFError()])
def test_a_worker_that_dies_while_it_sends_is_the_same_sentence(data, monkeypatch, broken):
    def steps(loader_):
        raise broken
        yield

    monkeypatch.setattr(loader, "_quietly", steps)
    with pytest.raises(TrainingError, match=r"A data worker died .(reset by peer|EOFError)"):
        list(Feed(data.splits["train"], 16, "none", 0, workers=1).batches(0, 4))
    with pytest.raises(type(broken)):
        list(Feed(data.splits["train"], 16, "none", 0).batches(0, 4))


# What is left for a killed run ----------------------------------------------------------------------------


def test_a_full_disk_is_one_sentence_and_the_checkpoint_before_stays(data, fabric, tmp_path, monkeypatch):
    state, real, calls = tmp_path / "state.safetensors", checkpoint.save_file, []

    def full(*given):
        calls.append(1)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*given)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(MissingError, match=r"cannot be written .No space left on device.; free some space"):
        fit(Trainable(net(), data, 1.0, 5), RECIPE, fabric, quiet, checkpoints=Checkpoints(state, seconds=0))
    monkeypatch.undo()
    resumed, whole = net(), net()
    fit(Trainable(resumed, data, 1.0, 5), RECIPE, fabric, quiet, checkpoints=Checkpoints(state))
    fit(Trainable(whole, data, 1.0, 5), RECIPE, fabric, quiet)
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))


def test_a_damaged_checkpoint_or_another_trainings_is_refused(data, fabric, tmp_path):
    state = tmp_path / "state.safetensors"
    kept = Checkpoints(state, seconds=0)
    fit(Trainable(net(), data, 1.0, 5), RECIPE, fabric, quiet, checkpoints=kept)
    with pytest.raises(ArtifactError, match="it is of another training"):
        fit(Trainable(net(), data, 1.0, 6), RECIPE, fabric, quiet, checkpoints=kept)
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(ArtifactError, match=r"cannot be used .*remove it"):
        fit(Trainable(net(), data, 1.0, 5), RECIPE, fabric, quiet, checkpoints=kept)


def test_other_threads_or_versions_are_said(data, fabric, tmp_path, monkeypatch):
    kept = Checkpoints(tmp_path / "state.safetensors", seconds=0)
    assert fit(Trainable(net(), data, 1.0, 5), RECIPE, fabric, quiet, checkpoints=kept).notes == ()
    monkeypatch.setattr(checkpoint.np, "__version__", "9.9")
    (note,) = fit(Trainable(net(), data, 1.0, 5), RECIPE, fabric, quiet, checkpoints=kept).notes
    assert "Resumed under numpy 9.9" in note


# Targets with places in them ------------------------------------------------------------------------------


def test_masks_and_boxes_follow_the_crop_and_the_resize():
    half = Geometry(box=(10, 0, 30, 20), size=(10, 10))
    mask = np.zeros((20, 40), np.uint8)
    mask[:10, 20:30] = 3
    found = fitted(mask, half)
    assert found.shape == (10, 10)
    assert bool((found[:5, 5:] == 3).all())
    assert int((found == 3).sum()) == 25
    boxes = Boxes(np.array([[12, 2, 20, 10], [0, 0, 9, 9], [25, 15, 40, 20]], np.float32), np.array([0, 1, 2]))
    found = fitted(boxes, half)
    assert found["boxes"].tolist() == [[1, 1, 5, 5], [7.5, 7.5, 10, 10]]
    assert found["labels"].tolist() == [0, 2]


def test_a_flip_takes_masks_and_boxes_along():
    picture = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    whole = ImageReader(Image.open, READER.prepare, lambda image: Geometry((0, 0, image.width, image.height), (8, 8)))
    mask = np.arange(64, dtype=np.uint8).reshape(8, 8)
    masks = Split([picture] * 2, [mask, mask], whole)
    flips = [masks.batch(torch.tensor([0]), "flip", seed, 0) for seed in range(8)]
    assert {bool((b.targets[0].flip(1) == torch.from_numpy(mask)).all()) for b in flips} == {True, False}
    for b in flips:
        assert torch.equal(((b.images[0, 0] + 1) * 128).round().long(), b.targets[0])
    one = Boxes(np.array([[1, 2, 4, 6]], np.float32), np.array([2]))
    found = [Split([picture], [one], whole).batch(torch.tensor([0]), "flip", seed, 0).targets[0] for seed in range(8)]
    assert {tuple(t["boxes"][0].tolist()) for t in found} == {(1, 2, 4, 6), (4, 2, 7, 6)}
    assert all(t["labels"].tolist() == [2] for t in found)


# The layout that one kind of CPU computes wrongly ------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "spoiled"),
    [
        (nn.Conv2d(4, 8, 1, 2), True),
        (nn.Conv2d(16, 16, 1, 2, groups=4), True),
        (nn.Conv2d(8, 8, 1, 2), False),
        (nn.Conv2d(4, 8, 1), False),
        (nn.Conv2d(3, 8, 3, 2), False),
    ],
)
def test_networks_that_channels_last_spoils_are_known(layer, spoiled):
    model = nn.Sequential(layer, nn.ReLU())
    assert spoiled_by_channels_last(model, torch.device("cpu")) is spoiled
    assert not spoiled_by_channels_last(model, torch.device("cuda"))
