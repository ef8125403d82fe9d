"""Saved networks: the same outputs come back, and nothing foreign is run."""

import copy
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from prune_nets import image
from safetensors.torch import load_file, save_file

import compress
from compress import prune
from compress.artifact import Description, describe
from compress.errors import ArtifactError, ModelError
from compress.models import factory as models
from compress.models.cifar_resnet import cifar_resnet
from compress.models.weights import load_backbone, read_weights

ARGUMENTS = {"depth": 8, "width": 8}
ABOUT = Description(factory="niwaki:cifar_resnet", arguments=ARGUMENTS, classes=tuple("abcd"), seed=3)


@pytest.fixture(scope="module")
def dense():
    torch.manual_seed(0)
    net = cifar_resnet(**ARGUMENTS, num_classes=4)
    net(image(8, 16))  # running statistics that are not the initial ones
    return net.eval()


@pytest.fixture(scope="module")
def plan(dense):
    trace = prune.trace(dense, image(2, 16))
    return prune.plan(trace, prune.score(trace, dense), budget=prune.Budget(macs=0.4))


@pytest.fixture
def saved(dense, plan, tmp_path):
    about = ABOUT.model_copy(update={"plan": plan})
    return compress.save(prune.apply(dense, plan), tmp_path / "student", about)


def refused(folder, words, kind=ArtifactError):
    with pytest.raises(kind, match=words) as caught:
        compress.load(folder)
    assert "\n" not in str(caught.value)


def rewrite(folder, **changes):
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("size", ["x", [8], [0, 8], [10**9, 10**9], [1.5, 8], None])
def test_a_size_that_is_none_is_refused(size, saved):
    rewrite(saved, preprocessing={"size": size})
    refused(saved, "damaged: preprocessing: size is .*, not two numbers of pixels")


def test_a_dense_network_comes_back_as_it_was(dense, tmp_path):
    back = compress.load(compress.save(dense, tmp_path / "teacher", ABOUT))
    assert torch.equal(back(image(4, 16)), dense(image(4, 16)))
    assert not back.training


def test_a_cut_network_comes_back_without_the_dense_weights(saved, dense, plan):
    small = prune.apply(dense, plan).eval()
    back = compress.load(saved)
    assert torch.equal(back(image(4, 16)), small(image(4, 16)))
    assert describe(saved).plan == plan
    stored = load_file(saved / "model.safetensors")
    assert {n: t.shape for n, t in stored.items()} == {n: t.shape for n, t in small.state_dict().items()}
    dense_bytes = sum(t.nbytes for t in dense.state_dict().values())
    assert sum(t.nbytes for t in stored.values()) < 0.7 * dense_bytes
    assert sorted(p.name for p in saved.iterdir()) == ["model.json", "model.safetensors"]
    assert all(not t.is_meta for t in back.state_dict().values())


def test_a_loaded_network_trains(saved):
    back = compress.load(saved).train()
    back(image(4, 16)).sum().backward()
    assert all(p.grad is not None for p in back.parameters())


def test_saving_again_replaces_the_folder_and_leaves_nothing_beside_it(saved, dense):
    (saved / "old.txt").write_text("old")
    compress.save(dense, saved, ABOUT)
    assert not (saved / "old.txt").exists()
    assert [p.name for p in saved.parent.iterdir()] == ["student"]
    assert describe(saved).plan is None


def test_altered_weights_are_refused(saved):
    path = saved / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    refused(saved, "does not have the hash")


def test_a_wrong_hash_is_refused(saved):
    rewrite(saved, weights_sha256="0" * 64)
    refused(saved, "does not have the hash")


def _rehash(folder):
    import hashlib

    rewrite(folder, weights_sha256=hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest())


def test_weights_of_another_shape_are_refused(saved, dense):
    save_file({n: t.contiguous() for n, t in dense.state_dict().items()}, saved / "model.safetensors")
    _rehash(saved)
    refused(saved, "the network needs")


def test_a_missing_tensor_is_refused(saved):
    state = load_file(saved / "model.safetensors")
    del state["fc.bias"]
    save_file(state, saved / "model.safetensors")
    _rehash(saved)
    refused(saved, "lacks 'fc.bias'")


def test_a_tensor_too_many_is_refused(saved):
    state = load_file(saved / "model.safetensors") | {"extra": torch.zeros(3)}
    save_file(state, saved / "model.safetensors")
    _rehash(saved)
    refused(saved, "extra")


def test_what_is_not_safetensors_is_refused(saved):
    (saved / "model.safetensors").write_bytes(b"not a tensor in sight")
    _rehash(saved)
    refused(saved, "not a safetensors file")


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    refused(saved, f"holds no {name}")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"factory": 3}'])
def test_a_damaged_description_is_refused(saved, text):
    (saved / "model.json").write_text(text)
    refused(saved, "is damaged")


def test_an_unknown_key_is_refused(saved):
    rewrite(saved, run_this="rm")
    refused(saved, "run_this")


def test_a_plan_for_another_architecture_is_refused(saved):
    rewrite(saved, arguments={"depth": 8, "width": 16})
    refused(saved, "another architecture")


def test_an_altered_plan_is_refused(saved):
    about = json.loads((saved / "model.json").read_text())
    key = next(iter(about["plan"]["slots"]))
    about["plan"]["slots"][key]["kept"] = [10**6]
    rewrite(saved, plan=about["plan"])
    refused(saved, "indices")


@pytest.mark.parametrize("factory", ["os:system", "builtins:eval", "subprocess:run", "compress.models.evil:x"])
def test_a_foreign_factory_is_not_imported(saved, factory, monkeypatch):
    called = []
    monkeypatch.setattr(os, "system", lambda *a, **k: called.append(a))
    rewrite(saved, factory=factory)
    refused(saved, "is not a function of your own", ModelError)
    assert not called


@pytest.mark.parametrize("name", ["read_weights", "Path", "importlib", "BasicBlock"])
def test_a_trusted_module_gives_networks_only(saved, name):
    """`trusted` names a module; not everything in it makes a network."""
    rewrite(saved, factory=f"niwaki:{name}")
    with pytest.raises((ModelError, ArtifactError)) as caught:
        compress.load(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("factory", ["nothing", "torchvision:resnet19", "no.such.module:f", "niwaki:nothing"])
def test_a_factory_that_is_not_there_is_a_sentence(factory):
    with pytest.raises(ModelError) as caught:
        models.build(factory, {}, 4)
    assert factory.split(":")[-1] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_arguments_that_a_factory_refuses_are_a_sentence():
    with pytest.raises(ModelError, match="depth 9 is not 6n"):
        models.build("niwaki:cifar_resnet", {"depth": 9}, 4)
    with pytest.raises(ModelError, match="refuses"):
        models.build("torchvision:resnet18", {"wide": 2}, 4)


# Weight files ---------------------------------------------------------------------------------------------


class Trap:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("write", ["torch", "pickle"])
def test_a_weight_file_with_an_object_is_refused_and_not_run(tmp_path, write):
    path, mark = tmp_path / "weights.pth", tmp_path / "mark"
    state = {"conv1.weight": torch.zeros(3), "trap": Trap(mark)}
    if write == "torch":
        torch.save(state, path)
    else:
        path.write_bytes(pickle.dumps(state))
    with pytest.raises(ModelError, match="not a readable weight file") as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)
    assert not mark.exists()


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"model": s, "epoch": 3}])
def test_a_plain_weight_file_is_read(tmp_path, dense, wrap):
    torch.save(wrap({f"module.{n}": t for n, t in dense.state_dict().items()}), tmp_path / "w.pth")
    found = read_weights(tmp_path / "w.pth")
    assert set(found) == set(dense.state_dict())


@pytest.mark.parametrize("held", [[torch.zeros(2)], {"a": 3}, torch.zeros(2)])
def test_a_file_without_a_state_dict_is_refused(tmp_path, held):
    torch.save(held, tmp_path / "w.pth")
    with pytest.raises(ModelError, match="does not hold a state dict"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_damaged_or_missing_weight_file_is_named(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(ModelError, match=f"no weight file .*{name}"):
        read_weights(path)
    path.write_bytes(b"\x80\x02 torn")
    with pytest.raises(ModelError, match=f"{name} is not a readable weight file"):
        read_weights(path)


def test_a_backbone_is_loaded_and_the_head_kept_where_it_differs(dense):
    other = cifar_resnet(**ARGUMENTS, num_classes=9)
    head = other.fc.weight.clone()
    load_backbone(other, dense.state_dict(), "w.pth")
    assert torch.equal(other.conv1.weight, dense.conv1.weight)
    assert torch.equal(other.bn1.running_mean, dense.bn1.running_mean)
    assert torch.equal(other.fc.weight, head)


@pytest.mark.parametrize(
    ("change", "words"),
    [("lacks", "lacks 'bn1.bias'"), ("extra", "also has 'more'"), ("shape", "another shape for 'conv1.weight'")],
)
def test_weights_of_another_architecture_are_refused(dense, change, words):
    state = dict(dense.state_dict())
    if change == "lacks":
        del state["bn1.bias"]
    elif change == "extra":
        state["more"] = torch.zeros(1)
    else:
        state["conv1.weight"] = torch.zeros(8, 1, 3, 3)
    with pytest.raises(ModelError, match=words):
        load_backbone(cifar_resnet(**ARGUMENTS), state, "w.pth")


@pytest.mark.data
def test_real_pretrained_weights_are_read_and_cut():
    root = os.environ.get("NIWAKI_DATA")
    if not root:
        pytest.skip("NIWAKI_DATA is not set")
    path = Path(root) / "mobilenet_v2_imagenet" / "mobilenet_v2_imagenet.pth"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    net = models.build("torchvision:mobilenet_v2", {}, 1000)
    load_backbone(net, read_weights(path), str(path))
    trace = prune.trace(net, image(1, 64))
    plan = prune.plan(trace, prune.score(trace, net), budget=prune.Budget(macs=0.5), round_to=8, min_kept=8)
    prune.check(net, plan, image(4, 64))


class Tied(torch.nn.Module):
    """A layer whose weight goes by two names."""

    def __init__(self, num_classes=4):
        super().__init__()
        self.a, self.b = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
        self.head = torch.nn.Linear(8, num_classes)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.head(self.b(torch.relu(self.a(x))))


def test_a_parameter_of_two_names_stays_one(tmp_path, monkeypatch):
    monkeypatch.setattr(Tied, "__module__", __name__)
    description = Description(factory=f"{__name__}:Tied", classes=tuple("abcd"))
    net = Tied().eval()
    folder = compress.save(net, tmp_path / "net", description)
    back = compress.load(folder, trusted=(__name__,))
    assert back.b.weight is back.a.weight
    x = torch.randn(2, 8)
    assert torch.equal(back(x), net(x))


class Unsaved(torch.nn.Module):
    """Buffers that no state dict holds, made in the ways in which libraries make them."""

    def __init__(self, num_classes=4, how="filled later"):
        super().__init__()
        self.a, self.head = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Linear(8, num_classes)
        self.how = how
        if how == "repeated":
            self.register_buffer("own", torch.tensor([1.0, 2.0, 1.0]).expand(8, 1, 3, 3).clone() / 12, persistent=False)
        else:
            self.register_buffer("own", torch.empty(8, 1, 3, 3), persistent=False)
            self.register_buffer("places", torch.empty(4, dtype=torch.long), False)
            self.reset()

    @torch.no_grad()
    def reset(self):
        if self.how == "drawn":
            self.own.normal_()
        elif self.how == "replaced":
            self.own = torch.full((8, 1, 3, 3), 0.2)
        elif self.how == "on a weight's device":
            weight = self.head.weight
            self.own = torch.linspace(-1, 1, 72, device=weight.device, dtype=weight.dtype).view(8, 1, 3, 3)
        else:
            self.own.copy_(torch.linspace(-1, 1, 72).view(8, 1, 3, 3))
        self.places.copy_(torch.arange(3, -1, -1))

    def forward(self, x):
        y = torch.nn.functional.conv2d(self.a(x), self.own, padding=1, groups=len(self.own))
        if self.how != "repeated":
            y = y[:, :, self.places % y.shape[2]]
        return self.head(y.relu().mean((2, 3)))


@pytest.mark.parametrize("how", ["filled later", "drawn", "replaced", "on a weight's device", "repeated"])
def test_buffers_that_are_not_saved_are_what_they_were(how, tmp_path):
    torch.manual_seed(0)
    net = Unsaved(how=how).eval()
    trace = prune.trace(net, image(2))
    plan = prune.plan(trace, prune.score(trace, net), ratio=0.5)
    small = prune.apply(net, plan).eval()
    about = Description(factory=f"{__name__}:Unsaved", arguments={"how": how}, classes=tuple("abcd"), plan=plan)
    junk = [torch.full((72,), 7e9) for _ in range(1000)]
    del junk
    back = compress.load(compress.save(small, tmp_path / "net", about), trusted=(__name__,))
    assert len(back.a.weight) == len(back.own) == 4
    assert torch.equal(back.own, small.own)
    assert torch.equal(back(image(2)), small(image(2)))
    stored = load_file(tmp_path / "net" / "model.safetensors")
    assert ("own" in stored) == (how == "drawn"), "what the factory makes again is not stored"


def test_a_network_that_does_not_come_back_is_not_saved(saved, dense):
    before = (saved / "model.json").read_bytes()

    with pytest.raises(ArtifactError, match=r"would not load again: .* has 'conv1.weight' as|builds another"):
        compress.save(dense, saved, ABOUT.model_copy(update={"arguments": {"depth": 8, "width": 16}}))
    double = copy.deepcopy(dense)
    double.register_forward_hook(lambda module, inputs, out: 2 * out)
    with pytest.raises(ArtifactError, match=r"cannot be rebuilt from 'niwaki:cifar_resnet': its outputs"):
        compress.save(double, saved, ABOUT, example=image(2, 16))
    assert (saved / "model.json").read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == ["student"]
    assert not double.training
