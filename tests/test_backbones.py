"""Detectors and segmenters on MobileNetV2: exact to cut, and ready for a classifier's weights."""

import pytest
import torch
import torchvision
from torch import nn

import compress
from compress import artifact, cost, prune
from compress.errors import ModelError
from compress.models import factory
from compress.models.detection import raw_heads
from compress.models.weights import load_backbone

pytestmark = pytest.mark.heavy

SSDLITE = {"size": [64, 96], "scales": [0.1, 0.2, 0.4, 0.8], "finest": 8}
FACTORIES = {
    "mobilenet_v2_ssdlite": SSDLITE,
    "mobilenet_v2_lraspp": {},
    "mobilenet_v2_deeplabv3": {"channels": 32},
}


def made(name, classes=4):
    """The network with drawn weights and statistics, in eval mode."""
    torch.manual_seed(0)
    model = factory.build(f"niwaki:{name}", FACTORIES[name], classes).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
    return model


def answers(model, images):
    run = raw_heads(model)
    with torch.no_grad():
        return model(images)["out"] if run is None else torch.cat(list(run(model, images).values()), 2)


@pytest.mark.parametrize("name", FACTORIES)
def test_half_the_macs_go_exactly_and_the_artifact_is_the_network(name, tmp_path):
    model, images = made(name), torch.rand(2, 3, 64, 96)
    seen = answers(model, images)
    assert not torch.allclose(seen[0], seen[1], rtol=1e-2, atol=1e-3), "what is compared depends on the image"
    trace = prune.trace(model, images[:1], forward=raw_heads(model))
    assert trace.unknown_ops == ()
    plan = prune.plan(trace, prune.score(trace, model), budget=prune.Budget(macs=0.5), round_to=4, min_kept=4)
    proof = prune.check(model, plan, images, forward=raw_heads(model))
    assert proof.eval_forward <= 1e-10
    assert max(proof.train_forward, proof.train_gradient) <= 1e-8
    small = prune.apply(model, plan).eval()
    assert cost.macs(small, images) <= 0.5 * cost.macs(model, images)
    about = artifact.Description(
        factory=f"niwaki:{name}",
        arguments=FACTORIES[name],
        task="detection" if raw_heads(model) else "segmentation",
        classes=tuple("abcd"),
        plan=plan,
    )
    again = compress.load(artifact.save(small, tmp_path / "artifact", about))
    torch.testing.assert_close(answers(again, images), answers(small, images))


def test_a_detector_takes_its_input_as_it_is_and_gives_boxes_in_its_pixels():
    model = made("mobilenet_v2_ssdlite")
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        found = model(list(images))
        (prepared, _) = model.transform(list(images), None)
    assert torch.equal(prepared.tensors, images)
    assert all(len(one["boxes"]) >= 20 for one in found)
    corners = torch.cat([one["boxes"] for one in found])
    assert bool((corners >= 0).all())
    assert bool((corners <= torch.tensor([96.0, 64.0, 96.0, 64.0])).all())


@pytest.mark.parametrize("name", FACTORIES)
def test_a_classifiers_weights_go_into_the_backbone(name):
    torch.manual_seed(1)
    classifier = torchvision.models.mobilenet_v2(weights=None)
    model = made(name)
    heads = {n: t.clone() for n, t in model.state_dict().items() if not n.startswith("backbone.features")}
    load_backbone(model, classifier.state_dict(), "the file")
    own = model.state_dict()
    shared = [n for n in classifier.state_dict() if f"backbone.{n}" in own and "num_batches" not in n]
    assert len(shared) > 250
    assert all(torch.equal(own[f"backbone.{n}"], classifier.state_dict()[n]) for n in shared)
    assert all(torch.equal(own[n], tensor) for n, tensor in heads.items())


def test_its_own_weights_load_for_another_number_of_classes():
    source, model = made("mobilenet_v2_lraspp"), made("mobilenet_v2_lraspp", classes=7)
    load_backbone(model, source.state_dict(), "the file")
    own = model.state_dict()
    for name, tensor in source.state_dict().items():
        if own[name].shape == tensor.shape and "num_batches" not in name:
            assert torch.equal(own[name], tensor), name


def test_weights_of_another_network_are_refused():
    with pytest.raises(ModelError, match="fit neither LRASPP nor its backbone"):
        load_backbone(made("mobilenet_v2_lraspp"), torchvision.models.resnet18().state_dict(), "the file")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({"finest": 4}, "finest is 4"), ({"size": [16, 64]}, "size is"), ({"scales": [0.3, 0.2, 0.5, 0.9]}, "scales is")],
)
def test_what_cannot_be_is_refused(arguments, said):
    with pytest.raises(ModelError, match=said):
        factory.build("niwaki:mobilenet_v2_ssdlite", SSDLITE | arguments, 4)


def test_the_segmenters_file_gives_at_two_sizes_what_torch_gives(tmp_path):
    """Of free size, in the newest operator set of its runtimes, which is how a run may ask for it."""
    from deploy.engines import load_engine
    from deploy.exporting.lowering import segmentation_logits
    from deploy.exporting.parity import parity
    from deploy.exporting.torch_to_onnx import export_onnx

    images = torch.rand(3, 3, 64, 96)
    module, _ = segmentation_logits(made("mobilenet_v2_lraspp"))
    options = {"runtimes": ("onnxruntime", "openvino"), "dynamic_size": True}
    path = export_onnx(module, images, tmp_path / "segmenter.fp32.onnx", **options)
    with load_engine(path, threads=1) as engine:
        for size in (images, nn.functional.pad(images, (0, 64, 0, 32))):
            assert all(row["max_relative_error"] < 1e-4 for row in parity(module, engine, size, (1, 2)))
