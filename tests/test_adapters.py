"""Networks of other libraries, where they are installed; what saved networks may hand them, with fakes in the place."""

import importlib
import importlib.util
import json
import sys
import types

import pytest
import torch
from torch import nn

import compress
from compress import prune
from compress.artifact import describe
from compress.errors import ArtifactError, MissingError, ModelError
from compress.models import adapters
from compress.models.adapters import ADAPTERS
from compress.models.factory import build
from compress.models.named import named_network
from compress.models.names import is_own_code

TINY = {
    "nc": 3,
    "scales": {"n": [0.33, 0.25, 64]},
    "scale": "n",
    "backbone": [[-1, 1, "Conv", [32, 3, 2]], [-1, 1, "Conv", [64, 3, 2]], [-1, 1, "C2f", [64, True]]],
    "head": [[[2], 1, "Detect", ["nc"]]],
}


@pytest.fixture
def fake(monkeypatch):
    """Puts a module in the place of a library, installed or not."""

    def put(name, **values):
        module = types.ModuleType(name)
        module.__dict__.update(values, __spec__=importlib.machinery.ModuleSpec(name, None))
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return put


class Small(nn.Module):
    def __init__(self, classes, channels=3):
        super().__init__()
        self.a, self.b = nn.Conv2d(channels, 16, 3), nn.Linear(16, classes)

    def forward(self, x):
        return self.b(self.a(x).relu().mean((2, 3)))


def fake_timm(fake):
    def create_model(name, pretrained, num_classes, in_chans=3, **more):
        assert (name, pretrained) == ("small", False)
        return Small(num_classes, in_chans)

    return fake("timm", list_models=lambda pattern="": ["small"], create_model=create_model)


def test_a_library_that_is_absent_is_named_with_the_way_to_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingError, match=r"needs the package timm.*pip install timm"):
        build("timm:resnet18", {}, 3)
    assert not any(is_own_code(f"{library}:x") for library in ADAPTERS)


def test_a_network_of_timm_is_cut_saved_and_loaded(fake, tmp_path):
    fake_timm(fake)
    model, x = build("timm:small", {"in_chans": 1}, 3), torch.randn(2, 1, 8, 8)
    small, _ = prune.shrink(model, x, ratio=0.5, min_kept=1)
    compress.save(small, tmp_path / "s")
    about = describe(tmp_path / "s")
    assert (about.factory, about.arguments) == ("timm:small", {"in_chans": 1})
    assert torch.equal(compress.load(tmp_path / "s")(x), small.eval()(x))
    assert named_network("timm:small").example.shape == (2, 3, 224, 224)


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("hf-hub:someone/net", {}, "no model 'hf-hub:someone/net'"),
        ("small", {"pretrained": True}, "refuses the argument 'pretrained'"),
        ("small", {"checkpoint_path": "x"}, "refuses the argument 'checkpoint_path'"),
        ("small", {"img_size": 10**9}, "refuses img_size"),
    ],
)
def test_timm_is_handed_neither_a_hub_nor_a_file(fake, name, arguments, said):
    fake_timm(fake)
    with pytest.raises(ModelError, match=said):
        build(f"timm:{name}", arguments, 3)


def test_a_configuration_of_transformers_is_plain_values_and_a_class(fake):
    class Config:
        def __init__(self, hidden_size=8, num_labels=2):
            self.hidden_size, self.num_labels, self.image_size = hidden_size, num_labels, 16

    class Network(nn.Module):
        def __init__(self, config):
            super().__init__()
            self.config, self.net = config, Small(config.num_labels)

        def forward(self, pixel_values):
            class Found(dict):
                logits = self.net(pixel_values)

            return Found(logits=1)

    tables = {name: {} for name in adapters._HEADS.values()}
    tables["MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING"] = {Config: Network}
    fake("transformers", PreTrainedConfig=Config, TinyConfig=Config, **tables)
    model = build("transformers:TinyConfig", {"config": {"hidden_size": 4}}, 5)
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 5)
    assert model.model.config.hidden_size == 4
    assert named_network("transformers:TinyConfig").example.shape[-1] == 16
    for name, arguments, said in (
        ("os", {}, "no configuration 'os'"),
        ("someone/net", {}, "no configuration"),
        ("TinyConfig", {"head": "depth_estimation"}, "has no network for depth_estimation"),
        ("TinyConfig", {"head": "speech"}, "refuses head"),
        ("TinyConfig", {"config": {"auto_map": "x"}}, "may fetch something"),
        ("TinyConfig", {"config": {"inner": {"backbone": "x"}}}, "may fetch something"),
        ("TinyConfig", {"config": {"hidden_size": 10**7}}, "not a plain value within bounds"),
        ("TinyConfig", {"config": {"path": "a/b"}}, "not a plain value within bounds"),
        ("TinyConfig", {"config": {"a": [0] * 5000}}, "more than 4096 values"),
        ("TinyConfig", {"config": {"hidden": 3}}, "refuses"),
    ):
        with pytest.raises(ModelError, match=said):
            build(f"transformers:{name}", arguments, 5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"activation": "__import__('os').system('x')"}, "refuses the activation"),
        ({"head": [[-1, 1, "TorchVision", [64]]]}, "not on the list of layers"),
        ({"head": [[-1, 1, "nn.Module", [64]]]}, "not on the list of layers"),
        ({"head": [[-1, 1, "Conv", ["().__class__"]]]}, "give plain numbers"),
        ({"head": [[-1, 10**4, "Conv", [64]]]}, "give plain numbers"),
        ({"head": [[-1, 1, "Conv", [10**6]]]}, "not a plain value within bounds"),
        ({"head": []}, "rows"),
        ({"weights": "x"}, "refuses the key 'weights'"),
    ],
)
def test_a_yaml_names_what_is_on_the_lists_alone(fake, change, said):
    fake("ultralytics", nn=None)
    with pytest.raises(ModelError, match=said):
        build("ultralytics:tiny.yaml", {"content": {**TINY, **change}}, 3)
    with pytest.raises(ModelError, match="hash is another"):
        build("ultralytics:tiny.yaml", {"content": TINY, "sha256": "0" * 64}, 3)


# With the libraries themselves ----------------------------------------------------------------------------


def installed(library):
    package = ADAPTERS[library].package
    return pytest.importorskip(package, reason=f"{package} is not installed")


@pytest.mark.parametrize(
    ("factory", "arguments", "side"),
    [
        ("timm:mobilenetv3_small_050", {}, 64),
        ("transformers:ViTConfig", {"config": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
                                               "intermediate_size": 64, "image_size": 32, "patch_size": 8}}, 32),
        ("transformers:SegformerConfig", {"config": {"hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1]},
                                          "head": "semantic_segmentation"}, 64),
        ("ultralytics:yolov8n.yaml", {}, 64),
        ("ultralytics:tiny.yaml", {"content": TINY}, 64),
        ("smp:Unet", {"encoder_name": "resnet18"}, 64),
    ],
)  # fmt: skip
def test_a_network_of_a_library_goes_the_whole_way(tmp_path, factory, arguments, side):
    installed(factory.partition(":")[0])
    model, x = build(factory, arguments, 3).eval(), torch.rand(2, 3, side, side)
    small, plan = prune.shrink(model, x, ratio=0.3, min_kept=4, scope="group")
    assert plan.asked["proof"] < 1e-8
    compress.save(small, tmp_path / "s", example=x)
    back = compress.load(tmp_path / "s")
    assert [tuple(p.shape) for p in back.parameters()] == [tuple(p.shape) for p in small.parameters()]
    if factory.startswith("ultralytics"):
        assert {m.dynamic for m in back.modules() if hasattr(m, "shape") and hasattr(m, "dynamic")} == {True}
        text = (tmp_path / "s/model.json").read_text()
        assert json.loads(text)["arguments"]["content"]["backbone"][0][2] == "Conv"
        (tmp_path / "s/model.json").write_text(text.replace('"Conv"', '"TorchVision"', 1))
        with pytest.raises((ArtifactError, ModelError), match=r"hash is another|not on the list"):
            compress.load(tmp_path / "s")


def test_names_that_the_libraries_do_not_have():
    installed("smp")
    with pytest.raises(ModelError, match="no network 'Odd'"):
        build("smp:Odd", {}, 3)
    with pytest.raises(ModelError, match="no encoder 'tu-resnet18'"):
        build("smp:Unet", {"encoder_name": "tu-resnet18"}, 3)
    installed("ultralytics")
    with pytest.raises(ModelError, match="There is no odd"):
        build("ultralytics:odd.yaml", {}, 3)
