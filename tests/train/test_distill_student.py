"""A student under its losses: what it inherits, what is compared, what the teacher costs and what is stored."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from compress import cost, distill, prune
from compress.data.images import Batch, ImageData, ImageReader, Split
from compress.errors import ModelError, RecipeError
from compress.models.cifar_resnet import cifar_resnet
from compress.models.factory import build
from compress.models.weights import classifier_name
from compress.recipe.schema import DistillRecipe
from compress.train import Trainable, fit, make_fabric

pytestmark = pytest.mark.heavy

NOTHING = {"labels": 0.0, "logits": 0.0, "class_means": 0.0, "reuse_classifier": False}
READER = ImageReader(Image.open, lambda image: np.asarray(image, dtype=np.float32)[None] / 255)


class Pixels:
    def __init__(self, count, side=8):
        self.arrays = np.random.default_rng(0).integers(0, 256, (count, side, side), dtype=np.uint8)

    def __len__(self):
        return len(self.arrays)

    def __getitem__(self, index):
        return Image.fromarray(self.arrays[index])


def asked(**changes):
    return DistillRecipe(**{"epochs": 1, "batch_size": 4, "lr": 0.01, **NOTHING, "labels": 1.0, **changes})


def shaken(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * (0.5 if "running_var" in name else 0.3) + 0.1)
            if tensor.dim() > 1:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
    return model


class Case:
    """A teacher, a student cut from it with another last width, data and a device."""

    def __init__(self):
        self.teacher = shaken(cifar_resnet(8, 8, in_channels=1, num_classes=4)).eval()
        labels = torch.arange(12) % 4
        split = Split(Pixels(12), labels, READER)
        self.data = ImageData(tuple("abcd"), {"train": split, "val": split})
        trace = prune.trace(self.teacher, self.data.example(2))
        self.plan = prune.plan(trace, prune.score(trace, self.teacher, "random", seed=1), ratio=0.5, scope="group")
        self.student = prune.apply(self.teacher, self.plan)
        self.fabric = make_fabric("cpu")
        self.calls = 0
        self.teacher.register_forward_hook(self._count)

    def _count(self, *_):
        self.calls += 1

    def set_up(self, recipe, **kw):
        return distill.set_up(
            recipe, self.data, self.student, self.teacher, self.plan, seed=5, fabric=self.fabric, **kw
        )

    def batch(self):
        return self.data.splits["train"].batch(torch.arange(4))

    def loss(self, recipe, **kw):
        found = self.set_up(recipe, **kw)
        return float(found.loss(self.student, self.batch()).detach())


@pytest.fixture
def case():
    return Case()


def test_class_means_equal_a_loop():
    torch.manual_seed(0)
    teacher = cifar_resnet(8, 8, in_channels=1, num_classes=4).eval()
    labels = torch.tensor([0, 1, 1, 3, 0, 1, 3])
    split = Split(Pixels(7), labels, READER)
    found = distill.class_means(teacher, split, 4)
    expected = torch.zeros(4, 32)
    for c in (0, 1, 3):
        rows = []
        for i in range(7):
            if labels[i] == c:
                with torch.no_grad():
                    x = F.relu(teacher.bn1(teacher.conv1(split.inputs(i, i + 1))))
                    rows.append(teacher.layer3(teacher.layer2(teacher.layer1(x))).mean((2, 3))[0])
        expected[c] = torch.stack(rows).mean(0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not found[2].any()


def test_images_first_read_for_the_means_can_still_be_trained_on():
    net = cifar_resnet(8, 8, in_channels=1, num_classes=4)
    split = Split(Pixels(8), torch.arange(8) % 4, READER)
    distill.class_means(net.eval(), split, 4)
    batch = split.batch(torch.arange(8))
    F.cross_entropy(net.train()(batch.images), batch.targets).backward()
    assert not batch.images.is_inference()


# The classifier -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("freeze", [True, False])
def test_the_classifier_is_copied_and_frozen_if_asked(freeze):
    student, teacher = cifar_resnet(8, 8), cifar_resnet(8, 8)
    distill.reuse_classifier(student, teacher, freeze=freeze)
    assert torch.equal(student.fc.weight, teacher.fc.weight)
    assert torch.equal(student.fc.bias, teacher.fc.bias)
    assert student.fc.weight.data_ptr() != teacher.fc.weight.data_ptr()
    held = {n for n, p in student.named_parameters() if not p.requires_grad}
    assert held == ({"fc.weight", "fc.bias"} if freeze else set())


def test_a_projected_classifier_starts_as_the_cut_network_and_folds_into_the_plain_one(case):
    images, before = case.batch().images, copy.deepcopy(case.student).eval()
    architecture = {n: tuple(t.shape) for n, t in before.state_dict().items()}
    case.set_up(asked(reuse_classifier="projected"))
    student = case.student.eval()
    torch.testing.assert_close(student(images), before(images))
    learned = {n for n, p in student.named_parameters() if n.startswith("fc.") and p.requires_grad}
    assert learned == {"fc.parametrizations.weight.original"}
    with torch.no_grad():
        distill.projection(student).add_(torch.randn(32, 16, generator=torch.Generator().manual_seed(2)))
        expected = student(images)
        weight = case.teacher.fc.weight @ distill.projection(student)
    distill.fold_classifier(student)
    assert {n: tuple(t.shape) for n, t in student.state_dict().items()} == architecture
    torch.testing.assert_close(student(images), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(student.fc.weight, weight, rtol=1e-6, atol=1e-6)
    assert (expected - before(images)).abs().max() > 0.1
    distill.fold_classifier(student)


@pytest.mark.parametrize("how", [True, "projected"])
@pytest.mark.parametrize("from_teacher", [True, False])
def test_a_classifier_that_the_repair_solved_again_stays_where_the_student_is_the_teachers_own(case, how, from_teacher):
    if how is True:
        case.student = copy.deepcopy(case.teacher)
    with torch.no_grad():
        case.student.fc.weight.mul_(1.5).add_(0.1)
        case.student.fc.bias.sub_(0.7)
    solved, bias = case.student.fc.weight.detach().clone(), case.student.fc.bias.detach().clone()
    case.set_up(asked(reuse_classifier=how), from_teacher=from_teacher)
    kept = torch.from_numpy(case.plan.kept_indices(("fc.weight", 1), 32)) if how == "projected" else torch.arange(32)
    of_teacher = (case.teacher.fc.weight[:, kept], case.teacher.fc.bias)
    weight, offset = (solved, bias) if from_teacher else of_teacher
    torch.testing.assert_close(case.student.fc.weight, weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(case.student.fc.bias, offset, rtol=0, atol=0)


def test_the_projection_learns_and_the_teachers_weight_does_not(case):
    recipe = asked(reuse_classifier="projected", logits=1.0, class_means=1.0, epochs=2)
    found = case.set_up(recipe)
    start = distill.projection(case.student).detach().clone()
    work = Trainable(case.student, case.data, 1.0, 5, found.loss, found.helpers)
    fit(work, recipe, case.fabric, lambda *_: None)
    assert not torch.equal(distill.projection(case.student), start)
    held = case.student.get_parameter("fc.parametrizations.weight.0.teacher")
    assert torch.equal(held, case.teacher.fc.weight)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "vgg11", "shufflenet_v2_x0_5", "densenet121"])
def test_the_projection_folds_in_torchvisions_families(name):
    if name == "vgg11":
        teacher = build(f"torchvision:{name}", {}, 3).eval()
        teacher.classifier[0] = nn.Linear(512 * 49, 64)
        teacher.classifier[3], teacher.classifier[6] = nn.Linear(64, 64), nn.Linear(64, 3)
    else:
        teacher = build(f"torchvision:{name}", {}, 3).eval()
    student, path = copy.deepcopy(teacher), classifier_name(teacher)
    own = student.get_submodule(path)
    kept = torch.arange(0, own.in_features, 2)
    parent, _, last = path.rpartition(".")
    narrow = nn.Linear(len(kept), 3)
    setattr(student.get_submodule(parent), last, narrow)
    distill.project_classifier(student, teacher, kept)
    assert classifier_name(student) == path
    with torch.no_grad():
        distill.projection(student).normal_(generator=torch.Generator().manual_seed(0))
    x = torch.randn(2, len(kept))
    expected = student.get_submodule(path)(x)
    distill.fold_classifier(student)
    plain = student.get_submodule(path)
    assert type(plain) is nn.Linear and plain is narrow
    torch.testing.assert_close(plain(x), expected, rtol=1e-6, atol=1e-6)
    assert set(student.state_dict()) == set(teacher.state_dict())


# What is compared ----------------------------------------------------------------------------------------------


def test_the_loss_is_the_weighted_sum(case):
    case.student.eval()
    only = partial(asked, labels=0.0)
    terms = {"logits": 2.0, "class_means": 3.0, "relation_distance": 0.5, "relation_angle": 0.25}
    layers = {"hints": 1.5, "hint_layers": ("layer2",), "attention": 4.0, "attention_layers": ("layer1", "layer3")}
    parts = [case.loss(asked(labels=1.0))]
    parts += [w * (case.loss(only(**{n: 1.0}))) for n, w in terms.items()]
    parts.append(1.5 * case.loss(only(hints=1.0, hint_layers=("layer2",))))
    parts.append(4.0 * case.loss(only(attention=1.0, attention_layers=("layer1", "layer3"))))
    assert all(part > 1e-6 for part in parts)
    assert case.loss(asked(**terms, **layers)) == pytest.approx(sum(parts), rel=1e-4)


def test_hints_compare_the_channels_that_the_plan_leaves(case):
    case.student.eval()
    found = case.set_up(asked(labels=0.0, hints=1.0, hint_layers=("layer1", "layer3.0")))
    assert found.helpers is None
    images = case.batch().images
    expected = []
    for layer, slot in (("layer1", "layer1.0.bn2.weight"), ("layer3.0", "fc.weight")):
        seen = []
        for net in (case.student, case.teacher):
            handle = net.get_submodule(layer).register_forward_hook(lambda m, i, o, seen=seen: seen.append(o))
            net(images)
            handle.remove()
        dim = 1 if slot.startswith("fc") else 0
        kept = torch.from_numpy(case.plan.kept_indices((slot, dim), seen[1].shape[1]))
        expected.append(0.5 * (seen[0] - seen[1][:, kept]).square().mean())
    assert float(found.loss(case.student, case.batch()).detach()) == pytest.approx(
        float(sum(expected).detach() / 2), rel=1e-5
    )


def test_hints_by_projection_reach_all_of_the_teachers_channels_and_learn(case):
    recipe = asked(labels=0.0, hints=1.0, hint_layers=("layer2",), hint_match="projection", epochs=2)
    found = case.set_up(recipe)
    (own,), image = found.helpers.children(), case.data.example(2)
    assert own.weight.shape == (16, 8)
    # Forward and both gradients of 8 x 16 weights at 4 x 4 places, and the teacher's pass.
    expected = cost.training_flops(case.student, image) + 2 * cost.macs(case.teacher, image) + 6 * 8 * 16 * 4 * 4
    assert found.flops_per_image == expected
    before = own.weight.detach().clone()
    work = Trainable(case.student, case.data, 1.0, 5, found.loss, found.helpers)
    fit(work, recipe, case.fabric, lambda *_: None)
    assert not torch.equal(own.weight, before)


def test_the_teacher_learns_nothing(case):
    found = case.set_up(asked(logits=1.0, class_means=1.0, hints=1.0, hint_layers=("layer1",)))
    before = {n: t.clone() for n, t in case.teacher.state_dict().items()}
    case.student.train()
    found.loss(case.student, case.batch()).backward()
    assert all(p.grad is None for p in case.teacher.parameters())
    assert all(torch.equal(before[n], t) for n, t in case.teacher.state_dict().items())
    assert case.student.conv1.weight.grad is not None


def test_a_loss_of_weight_0_costs_no_pass_of_the_teacher_and_no_hook(case):
    found = case.set_up(asked())
    own = cost.training_flops(case.student, case.data.example(2))
    assert (found.flops_per_image, found.flops_once, found.helpers) == (own, 0, None)
    found.loss(case.student, case.batch())
    assert case.calls == 0
    layers = [m for net in (case.student, case.teacher) for m in net.modules() if m is not case.teacher]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in layers)


def test_mixed_images_are_taught_by_their_shares(case):
    found = case.set_up(asked(labels=0.0, class_means=1.0))
    whole = case.batch()
    soft = F.one_hot(whole.targets, 4).float()
    mixed = Batch(whole.images, whole.targets, whole.index, soft=soft)
    case.student.eval()
    hard = float(found.loss(case.student, whole).detach())
    assert float(found.loss(case.student, mixed).detach()) == pytest.approx(hard, rel=1e-5)


def test_float64_stays_float64(case):
    case.student.double(), case.teacher.double()
    hooks = distill.FeatureHooks(case.student, ("layer1",))
    with hooks.recording() as outputs:
        case.student(case.batch().images.double())
    assert outputs["layer1"].dtype == torch.float64


# What is refused -----------------------------------------------------------------------------------------------


def test_an_unknown_layer_is_refused_with_its_neighbours(case):
    with pytest.raises(RecipeError, match=r"hint_layers: CifarResNet has no layer 'layr2'; near it are .*layer2"):
        case.set_up(asked(hints=1.0, hint_layers=("layr2",)))
    assert case.calls == 0


def test_a_loss_of_another_task_is_refused(case):
    with pytest.raises(RecipeError, match=r"distill\.pixels: 2 is for segmentation, this run is classification"):
        distill.weights(asked(pixels=2.0), "classification")
    with pytest.raises(RecipeError, match="reuse_classifier: True is for classification"):
        distill.reuse(asked(reuse_classifier=True), "detection")
    bare = DistillRecipe(epochs=1)
    assert distill.weights(bare, "segmentation") == {"pixels": 1.0}
    assert distill.weights(bare, "detection") == {"head_classes": 1.0, "head_boxes": 1.0}
    assert distill.weights(bare, "classification") == {"logits": 1.0, "class_means": 1.0}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"hints": 1.0}, "hints needs a weight above 0 and hint_layers"),
        ({"attention_layers": ("layer1",)}, "attention needs a weight above 0"),
        ({"hints": 1.0, "hint_layers": ("a", "a")}, "hint_layers names something twice"),
        ({"reuse_classifier": "folded"}, "reuse_classifier"),
        ({"box_confidence": 1.0}, "box_confidence"),
    ],
)
def test_a_bad_key_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        asked(**wrong)


def test_a_network_without_a_classifier_can_still_be_hinted_at():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten())
    distill.check(asked(hints=1.0, hint_layers=("0",)), "classification", net)
    with pytest.raises(ModelError):
        distill.check(asked(class_means=1.0), "classification", net)


# What the teacher costs ----------------------------------------------------------------------------------------


def test_teacher_passes_are_counted_and_stored_ones_once(case, tmp_path):
    image = case.data.example(1)
    a_pass = 2 * cost.macs(case.teacher, image)
    assert distill.forward_flops(case.teacher, "classification", image) == a_pass
    recipe = asked(logits=1.0, class_means=1.0)
    own = cost.training_flops(case.student, image)
    live = case.set_up(recipe)
    assert (live.flops_per_image, live.flops_once) == (own + a_pass, 12 * a_pass)
    stored = case.set_up(recipe, folder=tmp_path)
    assert (stored.flops_per_image, stored.flops_once) == (own, 24 * a_pass)


def test_stored_answers_are_the_teachers_and_cost_no_pass(case, tmp_path):
    recipe = asked(logits=1.0, class_means=1.0, hints=0.5, hint_layers=("layer1",), epochs=4)
    live, stored = case.set_up(recipe), case.set_up(recipe, folder=tmp_path)
    case.student.eval()
    seen = case.data.splits["train"].batch(torch.tensor([7, 0, 3, 11]))
    torch.testing.assert_close(live.loss(case.student, seen), stored.loss(case.student, seen))
    case.calls = 0
    work = Trainable(case.student, case.data, 1.0, 5, stored.loss, stored.helpers)
    fit(work, recipe, case.fabric, lambda *_: None)
    assert case.calls == 0


def test_augmented_variants_are_stored_each(case, tmp_path):
    recipe = asked(logits=1.0, augment="affine", augment_variants=2, epochs=5)
    split = case.data.splits["train"]
    live, stored = case.set_up(recipe), case.set_up(recipe, folder=tmp_path)
    assert len(list(tmp_path.glob("*/*.safetensors"))) == 2
    case.student.eval()
    losses = []
    for variant in (0, 1):
        batch = split.batch(torch.tensor([2, 9]), "affine", 5, variant)
        losses.append(float(stored.loss(case.student, batch).detach()))
        assert losses[-1] == pytest.approx(float(live.loss(case.student, batch).detach()), rel=1e-5)
    assert losses[0] != losses[1]
    case.calls = 0
    work = Trainable(case.student, case.data, 1.0, 5, stored.loss)
    fit(work, recipe, case.fabric, lambda *_: None)
    assert case.calls == 0


def test_a_resumed_run_takes_up_what_is_stored_and_mends_what_is_damaged(case, tmp_path):
    recipe = asked(logits=1.0, augment="affine", augment_variants=2)
    case.set_up(recipe, folder=tmp_path)
    files = sorted(tmp_path.glob("*/*.safetensors"))
    before = [f.read_bytes() for f in files]
    case.calls = 0
    case.set_up(recipe, folder=tmp_path)
    looks = case.calls
    files[0].write_bytes(before[0][:50])
    files[1].unlink()
    case.calls = 0
    case.set_up(recipe, folder=tmp_path)
    assert case.calls == looks + 2
    assert [f.read_bytes() for f in files] == before


@pytest.mark.parametrize("change", ["weights", "seed", "images", "variants"])
def test_other_weights_data_or_augmentation_are_other_answers_and_the_old_go(case, tmp_path, change):
    recipe = asked(logits=1.0, augment="affine", augment_variants=2)
    set_up = partial(distill.set_up, plan=case.plan, fabric=case.fabric, folder=tmp_path)
    set_up(recipe, case.data, case.student, case.teacher, seed=1)
    (first,) = tmp_path.iterdir()
    if change == "weights":
        case.teacher.fc.bias.data[0] += 1
    elif change == "images":
        case.data.splits["train"].inputs(0, 12)[3] += 1
    elif change == "variants":
        recipe = recipe.model_copy(update={"augment_variants": 3})
    set_up(recipe, case.data, case.student, case.teacher, seed=2 if change == "seed" else 1)
    (second,) = tmp_path.iterdir()
    assert first != second


def test_answers_that_change_every_epoch_or_are_too_large_are_not_stored(case, tmp_path):
    live = case.set_up(asked(logits=1.0)).flops_per_image
    for change in ({"augment": "affine"}, {"mixup": 0.2}, {"teacher_cache_mb": 0}):
        assert case.set_up(asked(logits=1.0, **change), folder=tmp_path).flops_per_image == live
    many = {"augment": "affine", "augment_variants": 10_000, "teacher_cache_mb": 1}
    found = case.set_up(asked(attention=1.0, attention_layers=("conv1",), **many), folder=tmp_path)
    assert found.flops_per_image == live
    assert "would take 31 MB, more than distill.teacher_cache_mb allows (1)" in found.notes[0]
    assert not list(tmp_path.iterdir())
