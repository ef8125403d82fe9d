"""Networks by name: all of torchvision's, built with storage and without."""

import threading

import pytest
import torch
import torchvision
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

import compress
from compress.artifact import Description
from compress.errors import ModelError
from compress.models import factory as models
from compress.models import torchvision as zoo
from compress.models.detection import example_input, raw_heads
from compress.models.meta import on_meta
from compress.models.norms import statistics_anew

pytestmark = pytest.mark.heavy

SAMPLE = (
    "resnet18",
    "googlenet",
    "regnet_y_400mf",
    "swin_t",
    "swin_v2_t",
    "maxvit_t",
    "vit_b_16",
    "lraspp_mobilenet_v3_large",
    "fcn_resnet50",
    "ssd300_vgg16",
    "ssdlite320_mobilenet_v3_large",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "keypointrcnn_resnet50_fpn",
)
REST = tuple(name for name in zoo.names() if name not in SAMPLE)


@pytest.fixture
def no_draw(monkeypatch):
    """Weights stay as they were allocated: drawing them is nearly all the time that building takes."""
    for name in dir(nn.init):
        if name.endswith("_") and not name.startswith("_"):
            monkeypatch.setattr(nn.init, name, lambda tensor, *_, **__: tensor)


def empty(name, **arguments):
    with on_meta():
        return models.build(f"torchvision:{name}", arguments, 5)


def saved_tensors(model):
    return {name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()}


def constants(model):
    """Tensors that modules keep and that no state dict holds, by the path of the module and a place."""
    found = {}
    for path, module in model.named_modules():
        own = [(n, module._buffers[n]) for n in sorted(module._non_persistent_buffers_set)]
        for name, value in [*own, *vars(module).items()]:
            values = value if isinstance(value, list | tuple) else [value]
            found |= {f"{path}.{name}.{i}": v for i, v in enumerate(values) if isinstance(v, torch.Tensor)}
    return found


# Every name ----------------------------------------------------------------------------------------------


def check_built_without_storage(name):
    bare, real = empty(name), models.build(f"torchvision:{name}", {}, 5)
    assert list(saved_tensors(bare).items()) == list(saved_tensors(real).items())
    assert all(tensor.is_meta for tensor in bare.state_dict().values())
    assert [p.requires_grad for p in bare.parameters()] == [p.requires_grad for p in real.parameters()]
    kept, expected = constants(bare), constants(real)
    assert list(kept) == list(expected)
    assert all(torch.equal(kept[key], expected[key]) for key in expected)
    if zoo.names()[name] == "detection":
        assert expected, "the anchors"


@pytest.mark.parametrize("name", SAMPLE)
def test_a_network_built_without_storage_has_the_shapes_of_a_real_one(name, no_draw):
    check_built_without_storage(name)


@pytest.mark.slow
def test_every_network_of_torchvision_is_built_without_storage(no_draw):
    assert len(REST) > 80
    for name in REST:
        check_built_without_storage(name)


def test_every_task_is_there():
    tasks = zoo.names()
    assert tasks["resnet18"] == "classification"
    assert tasks["deeplabv3_resnet50"] == "segmentation"
    assert tasks["fcos_resnet50_fpn"] == "detection"
    assert not any("quantized" in name or name.startswith(("r3d", "raft")) for name in tasks)


def test_classes_reach_every_kind_of_head():
    outputs = {
        "mobilenet_v3_small": lambda m, x: m(x).shape[-1],
        "lraspp_mobilenet_v3_large": lambda m, x: m(x)["out"].shape[1],
        "ssdlite320_mobilenet_v3_large": lambda m, x: raw_heads(m)(m, x)["cls_logits"].shape[-1],
    }
    for name, classes in outputs.items():
        model = empty(name).eval()
        assert classes(model, example_input(model)) == 5


def test_an_auxiliary_loss_is_optional():
    assert "aux_classifier.4.bias" not in empty("fcn_resnet50").state_dict()
    assert empty("fcn_resnet50", aux_loss=True).state_dict()["aux_classifier.4.bias"].shape == (5,)


def test_a_name_that_is_not_there_gets_names_like_it():
    with pytest.raises(ModelError, match=r"no model 'fasterrcnn_resnet'.*fasterrcnn_resnet50_fpn"):
        models.build("torchvision:fasterrcnn_resnet", {}, 5)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet18", {"weights": "DEFAULT"}),
        ("fcn_resnet50", {"weights_backbone": "DEFAULT"}),
        ("lraspp_mobilenet_v3_large", {"aux_loss": True}),
        ("resnet18", {"frozen_norms": True}),
        ("ssdlite320_mobilenet_v3_large", {"frozen_norms": True}),
        ("fasterrcnn_resnet50_fpn", {"image_mean": 3, "box_roi_pool": 4}),
        ("regnet_y_400mf", {"norm_layer": "BatchNorm2d"}),
    ],
)
def test_arguments_that_torchvision_refuses_are_a_sentence_and_load_nothing(name, arguments, monkeypatch):
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: pytest.fail("a download"))
    with pytest.raises(ModelError, match="refuses") as caught:
        empty(name, **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["fasterrcnn_resnet50_fpn", "fasterrcnn_mobilenet_v3_large_320_fpn"])
def test_frozen_norms_are_what_torchvision_builds_for_a_pretrained_body(name, no_draw, monkeypatch):
    body = {"r": torchvision.models.resnet50, "m": torchvision.models.mobilenet_v3_large}[name[11]]
    weights = torchvision.models.WeightsEnum
    monkeypatch.setattr(weights, "get_state_dict", lambda *_, **__: body(weights=None).state_dict())
    theirs = torchvision.models.get_model(name, weights=None, num_classes=5)
    ours = models.build(f"torchvision:{name}", {"frozen_norms": True}, 5)
    assert saved_tensors(ours) == saved_tensors(theirs)
    assert [type(m) for m in ours.modules()] == [type(m) for m in theirs.modules()]
    kinds = (nn.BatchNorm2d, FrozenBatchNorm2d)
    assert [m.eps for m in ours.modules() if isinstance(m, kinds)] == [
        m.eps for m in theirs.modules() if isinstance(m, kinds)
    ]


# Building without storage --------------------------------------------------------------------------------


class Odd(nn.Module):
    """What a constructor may do beside registering weights."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        shared = nn.Parameter(torch.zeros(4), requires_grad=False)
        self.one, self.other = shared, shared
        self.missing = nn.Parameter(torch.zeros(2))
        self.missing = None
        self.register_parameter("none", None)
        self.register_buffer("table", torch.arange(4.0), persistent=False)
        self.register_buffer("saved", torch.arange(4.0))
        self.register_buffer("unset", None)
        self.wide = int(torch.linspace(0, 8, 3)[1])
        self.grid = torch.arange(3.0)
        self.lazy = nn.LazyLinear(3)


def test_only_what_a_state_dict_holds_loses_its_storage():
    with on_meta():
        odd = Odd()
    assert odd.first.weight.is_meta
    assert odd.second.weight is odd.first.weight
    assert odd.one.is_meta
    assert odd.other is odd.one
    assert not odd.one.requires_grad
    assert odd.saved.is_meta
    assert torch.equal(odd.table, torch.arange(4.0))
    assert torch.equal(odd.grid, torch.arange(3.0))
    assert odd.wide == 4
    assert odd.missing is odd.none is odd.unset is None
    assert nn.parameter.is_lazy(odd.lazy.weight)


def test_other_threads_and_what_comes_after_are_left_alone():
    made = []
    with on_meta():
        thread = threading.Thread(target=lambda: made.append(nn.BatchNorm1d(2)))
        thread.start()
        thread.join()
    with pytest.raises(ValueError, match="stop"), on_meta():
        raise ValueError("stop")
    made.append(nn.BatchNorm1d(2))
    assert not any(tensor.is_meta for module in made for tensor in module.state_dict().values())


# Saved and loaded ----------------------------------------------------------------------------------------


def restless(model):
    """Numbers that no constructor gives, in every floating point tensor that is saved and no table."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point() or "coords_table" in name:
            continue
        drawn = torch.rand(tensor.shape, generator=generator)
        if name.endswith("running_var") or (tensor.dim() == 1 and name.endswith("weight")):
            tensor.copy_(drawn + 0.5)
        else:
            tensor.copy_((2 * drawn - 1) * (3 / max(tensor[0].numel(), 3)) ** 0.5)
    return model.eval()


def outputs(model):
    """What the network gives in float64: in float32 the sums depend on how the weights lie in memory."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(3, 96, 128, generator=generator).double()
    if raw_heads(model) is None:
        out = model.double()(image[None])
        return list(out.values()) if isinstance(out, dict) else [out]
    return list(model.double()([image])[0].values())


SMALL = {"min_size": 96, "max_size": 128, "box_score_thresh": 0.0}
ROUND_TRIPS = {
    "resnet18": {},
    "regnet_y_400mf": {},
    "swin_t": {},
    "lraspp_mobilenet_v3_large": {},
    "ssdlite320_mobilenet_v3_large": {"score_thresh": 0.0},
    "fasterrcnn_mobilenet_v3_large_320_fpn": SMALL,
    "fasterrcnn_mobilenet_v3_large_fpn": {**SMALL, "frozen_norms": True},
    "swin_v2_t": {},
}
SLOW_ROUND_TRIPS = {
    "inception_v3": {"aux_logits": True},
    "deeplabv3_resnet50": {"aux_loss": True},
    "maskrcnn_resnet50_fpn": {**SMALL, "frozen_norms": True},
    "retinanet_resnet50_fpn_v2": {"min_size": 96, "max_size": 128, "score_thresh": 0.0},
    "fcos_resnet50_fpn": {"min_size": 96, "max_size": 128, "score_thresh": 0.0},
    "ssd300_vgg16": {"score_thresh": 0.0},
}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [*ROUND_TRIPS.items(), *(pytest.param(*p, marks=pytest.mark.slow) for p in SLOW_ROUND_TRIPS.items())],
)
@torch.no_grad()
def test_a_network_comes_back_as_it_was_saved(name, arguments, no_draw, tmp_path):
    factory, task = f"torchvision:{name}", zoo.names()[name]
    model = restless(models.build(factory, arguments, 5))
    about = Description(factory=factory, arguments=arguments, task=task, classes=tuple("abcde"))
    back = compress.load(compress.save(model, tmp_path / "net", about))
    own, kept = back.state_dict(), constants(back)
    assert all(torch.equal(own[name], tensor) for name, tensor in model.state_dict().items())
    assert all(torch.equal(kept[key], value) for key, value in constants(model).items())
    for got, expected in zip(outputs(back), outputs(model), strict=True):
        assert got.numel() > 0
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_taking_statistics_anew_leaves_modes_and_momenta_though_it_fails():
    net = nn.Sequential(nn.BatchNorm1d(3, momentum=0.3), nn.Dropout(), nn.BatchNorm1d(3, track_running_stats=False))
    net.train()
    net[1].eval()
    with pytest.raises(ZeroDivisionError), statistics_anew(net):
        assert [module.training for module in net] == [True, False, False]
        net(torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]]))
        _ = 1 / 0
    assert [module.training for module in (net, *net)] == [True, True, False, True]
    assert net[0].momentum == 0.3
    assert net[0].running_mean.tolist() == [2.0, 2.0, 2.0]
