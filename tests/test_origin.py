"""A network that a known factory made is saved without being told again what it is."""

import copy
import sys

import pytest
import torch
import torchvision
from torch import nn

import compress
from compress import prune
from compress.artifact import describe
from compress.errors import ArtifactError
from compress.models.factory import build
from compress.models.named import named_network
from compress.models.origin import origin_of

MODULE = """
from torch import nn

def make():
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3))
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of the user's own whose function takes no number of classes."""
    (tmp_path / "own_networks.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_networks:make"
    sys.modules.pop("own_networks", None)


def cut_twice(model, x):
    for ratio in (0.25, 0.5):
        trace = prune.trace(model, x)
        model = prune.apply(model, prune.plan(trace, prune.score(trace, model), ratio=ratio, scope="group"))
    return model


def same(a, b, x):
    with torch.no_grad():
        return torch.equal(a.eval()(x), b.eval()(x))


def test_what_a_factory_made_and_two_cuts_left_is_saved_and_loaded(tmp_path):
    model, x = build("niwaki:cifar_resnet", {"depth": 8}, 7), torch.randn(2, 3, 16, 16)
    small = cut_twice(model, x)
    with torch.no_grad():
        next(small.parameters()).mul_(1.5)  # trained since
    compress.save(copy.deepcopy(small), tmp_path / "s")
    about = describe(tmp_path / "s")
    assert (about.factory, about.arguments, about.classes) == ("niwaki:cifar_resnet", {"depth": 8}, tuple("0123456"))
    back = compress.load(tmp_path / "s")
    assert same(small, back, x)
    again = cut_twice(back, x)
    compress.save(again, tmp_path / "t", classes=tuple("abcdefg"))
    assert same(again, compress.load(tmp_path / "t"), x)
    assert describe(tmp_path / "t").classes == tuple("abcdefg")
    assert origin_of(model).plan is None


def test_a_classifier_of_torchvision_is_recognised_cut_or_whole(tmp_path):
    x = torch.randn(2, 3, 64, 64)
    model = torchvision.models.squeezenet1_1(num_classes=6)
    for k, one in enumerate((model, cut_twice(model, x))):
        compress.save(one, tmp_path / str(k))
        assert describe(tmp_path / str(k)).factory == "torchvision:squeezenet1_1"
        assert same(one, compress.load(tmp_path / str(k)), x)


def test_a_network_by_name_remembers_the_name(tmp_path, own):
    made = named_network(own).model
    compress.save(made, tmp_path / "n")
    about = describe(tmp_path / "n")
    assert (about.factory, about.classes) == (own, ("0", "1", "2"))
    x = torch.randn(2, 3, 8, 8)
    assert same(made, compress.load(tmp_path / "n", trusted=("own_networks",)), x)


@pytest.mark.parametrize(
    ("known", "said"),
    [
        ({}, "Nothing says what made this Sequential; give factory="),
        ({"factory": "niwaki:lenet5"}, "Nothing says what the classes"),
        ({"factory": "niwaki:lenet5", "classes": ("a", "b")}, "would not load|cannot be rebuilt"),
        ({"factory": "niwaki:lenet5", "classes": ("a",), "size": 3}, "cannot be described"),
    ],
)
def test_a_network_that_nothing_is_known_of_is_refused(tmp_path, known, said):
    with pytest.raises(ArtifactError, match=said):
        compress.save(nn.Sequential(nn.Linear(4, 2)), tmp_path / "x", **known)
    assert not (tmp_path / "x").exists()
