"""What a network may start from: random weights, a file, another run's network; and what does not fit."""

import pytest
import torch
from safetensors.torch import save_file
from test_fit import split

from compress import artifact, prune
from compress.data.images import ImageData
from compress.errors import ArtifactError, ModelError
from compress.models import factory
from compress.models.weights import load_backbone
from compress.recipe.schema import ModelRecipe
from compress.run.transfer import fresh, started

FACTORY, NARROW = "niwaki:cifar_resnet", {"depth": 8, "width": 8, "in_channels": 1}


@pytest.fixture(scope="module")
def data():
    return ImageData(tuple("abcd"), {"train": split(8, 0)})


def recipe(weights, **arguments):
    return ModelRecipe(factory=FACTORY, arguments=NARROW | arguments, weights=str(weights))


def saved(folder, classes="abcd", plan=None):
    torch.manual_seed(9)
    model = factory.build(FACTORY, NARROW, len(classes))
    if plan is not None:
        model = prune.apply(model, plan)
    about = artifact.Description(factory=FACTORY, arguments=NARROW, classes=tuple(classes), plan=plan)
    artifact.save(model, folder, about)
    return model.state_dict()


def equal(model, state, but=()):
    return {n for n, t in model.state_dict().items() if n not in state or not torch.equal(t, state[n])} == set(but)


def test_another_runs_network_is_taken_over(data, tmp_path):
    state = saved(tmp_path / "teacher")
    assert equal(started(recipe(tmp_path / "teacher"), data, 0), state)
    assert equal(started(recipe(tmp_path / "teacher/model.safetensors"), data, 0), state)
    save_file({f"module.{n}": t for n, t in state.items()}, tmp_path / "other.safetensors")
    torch.save({"state_dict": state}, tmp_path / "other.pth")
    assert equal(started(recipe(tmp_path / "other.pth"), data, 0), state)


def test_for_other_classes_the_classifier_alone_is_fresh(data, tmp_path):
    state = saved(tmp_path / "teacher", "abcdefg")
    model, new = started(recipe(tmp_path / "teacher"), data, 3), fresh(recipe(""), data, 3)
    assert equal(model, state, ("fc.weight", "fc.bias"))
    assert torch.equal(model.fc.weight, new.fc.weight)


def test_what_does_not_fit_is_one_sentence(data, tmp_path):
    folder = tmp_path / "teacher"
    saved(folder)
    with pytest.raises(
        ModelError, match=rf"weights {folder} \(a {FACTORY}\) are of another .*has another shape for 'conv1"
    ):
        started(recipe(folder, width=16), data, 0)
    with pytest.raises(ModelError, match=r"the file lacks 'layer1\.1"):
        started(recipe(folder, depth=14), data, 0)
    with pytest.raises(ArtifactError, match=r"holds no model\.json"):
        started(recipe(tmp_path), data, 0)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="does not have the hash"):
        started(recipe(folder), data, 0)
    with pytest.raises(ModelError, match="DEFAULT is for torchvision models"):
        started(recipe("DEFAULT"), data, 0)


def test_a_cut_network_is_refused(data, tmp_path):
    model = fresh(recipe(""), data, 0)
    trace = prune.trace(model, data.example(2))
    plan = prune.plan(trace, prune.score(trace, model, "l1"), ratio=0.5, scope="group")
    saved(tmp_path / "student", plan=plan)
    with pytest.raises(ModelError, match=r"student holds a network that was cut.*such as teacher") as refused:
        started(recipe(tmp_path / "student"), data, 0)
    assert "\n" not in str(refused.value)


def test_auxiliary_classifiers_are_fresh_where_they_do_not_fit(monkeypatch):
    """GoogLeNet's published weights have them, for the classes that it was trained on."""
    build = lambda classes, **given: factory.build("torchvision:googlenet", given, classes)  # noqa: E731
    state = build(9, aux_logits=True).state_dict()
    small = build(4, aux_logits=True)
    before = {n: t.clone() for n, t in small.state_dict().items()}
    load_backbone(small, state, "x")
    own = small.state_dict()
    assert torch.equal(own["aux1.conv.conv.weight"], state["aux1.conv.conv.weight"])
    assert torch.equal(own["aux1.fc2.weight"], before["aux1.fc2.weight"])
    load_backbone(build(4), state, "x")
    load_backbone(small, build(9).state_dict(), "x")
