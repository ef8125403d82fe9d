"""Decoding and suppression in the ONNX file: the boxes that NumPy finds, by ONNX Runtime and OpenVINO alike."""

import numpy as np
import onnx
import pytest
import torch
from detectors import CLASSES, SIDE, made
from PIL import Image

import deploy
from deploy.bundle.writing import BundleSpec, write_bundle
from deploy.engines import load_engine
from deploy.errors import DeployError
from deploy.exporting.lowering import lower
from deploy.exporting.torch_to_onnx import export_onnx
from deploy.processing.postprocess import DecodedBoxes
from deploy.processing.preprocess import Preprocessing
from deploy.quantization.int8 import int8_from_fp32

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module", params=["SSD", "RetinaNet", "FCOS"])
def case(request, tmp_path_factory):
    model, example = made(request.param), torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    outside = lower(model, "detection", example)
    heads, numpys = outside.module, outside.postprocessing
    inside = lower(model, "detection", example, in_graph=True)
    module, names, after = inside.module, inside.output_name, inside.postprocessing
    assert names == ("boxes", "scores", "labels")
    path = tmp_path_factory.mktemp(request.param) / "model.fp32.onnx"
    return heads, numpys, module, after, export_onnx(module, example, path, output_name=names)


def wanted(heads, numpys, images):
    with torch.inference_mode():
        return numpys(*(value.numpy() for value in heads(images)))


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime", "openvino"])
def test_the_graph_finds_what_numpy_finds(case, runtime):
    heads, numpys, module, after, path = case
    images = torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    if runtime == "torch":
        with torch.inference_mode():
            outputs = dict(zip(after.OUTPUTS, (value.numpy() for value in module(images)), strict=True))
    else:
        with load_engine(path, runtime=runtime) as engine:
            outputs = engine.run({"image": images.numpy()})
    found = after(*(outputs[name] for name in after.OUTPUTS))
    for ours, want in zip(found, wanted(heads, numpys, images), strict=True):
        assert len(ours["scores"]) == len(want["scores"]) > 5
        np.testing.assert_allclose(ours["scores"], want["scores"], atol=1e-5)
        np.testing.assert_array_equal(ours["labels"], want["labels"])
        np.testing.assert_allclose(ours["boxes"], want["boxes"], atol=1e-2)
    assert len({int(label) for one in found for label in one["labels"]}) > 1


def test_torchvisions_ssdlite_at_its_own_size_finds_what_numpy_finds():
    """The module alone: exporting this one takes ten seconds, and the small ones above have the same operators."""
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large

    torch.manual_seed(0)
    model = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    for module in model.head.modules():
        if isinstance(module, torch.nn.Conv2d) and module.bias is not None:
            torch.nn.init.normal_(module.weight, 0, 2 / module.weight[0].numel() ** 0.5)
    image = torch.nn.functional.interpolate(torch.randn(2, 3, 20, 20), size=(320, 320), mode="bilinear")
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean of what it saw: random weights alone leave nothing of an image
    model.train()
    with torch.no_grad():
        model.head(list(model.backbone(image).values()))
    model.eval()
    outside, inside = lower(model, "detection", image), lower(model, "detection", image, in_graph=True)
    heads, numpys, module, after = outside.module, outside.postprocessing, inside.module, inside.postprocessing
    with torch.inference_mode():
        found = after(*(value.numpy() for value in module(image[:1])))[0]
    (want,) = wanted(heads, numpys, image[:1])
    assert len(found["scores"]) == len(want["scores"]) == 300
    assert len(set(want["labels"].tolist())) > 20
    np.testing.assert_allclose(found["scores"], want["scores"], atol=1e-5)
    # Boxes of nearly one score may change places.
    for label, box in zip(want["labels"], want["boxes"], strict=True):
        assert (np.abs(found["boxes"] - box).max(1)[found["labels"] == label] < 0.05).any()


def test_suppression_and_both_limits_are_reached(case):
    """Else a graph without them would pass the test above."""
    heads, numpys, _, after, _ = case
    images = torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    counts = [len(one["scores"]) for one in wanted(heads, numpys, images)]
    for change in ({"overlap": 1.0}, {"candidates": 10_000}):
        other = numpys.model_copy(update={**change, "detections": 100_000})
        assert [len(one["scores"]) for one in wanted(heads, other, images)] != counts
    assert after.detections == numpys.detections


def test_a_bundle_takes_the_boxes_as_they_are(case, tmp_path):
    heads, numpys, _, after, path = case
    options = {"task": "detection", "postprocessing": after, "preprocessing": Preprocessing(size=(SIDE, SIDE))}
    rest = {"classes": CLASSES}
    folder = write_bundle(tmp_path / "b", BundleSpec(models={"fp32": path}, default="fp32", **options, **rest))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
    with deploy.load(folder) as bundle:
        assert isinstance(bundle.manifest.postprocessing, DecodedBoxes)
        (found,) = bundle.predict([image])
        prepared = torch.from_numpy(bundle.preprocessing(image)[None])
    (want,) = wanted(heads, numpys, prepared)
    assert [box["index"] for box in found["boxes"]] == want["labels"].tolist()
    np.testing.assert_allclose([box["box"] for box in found["boxes"]], want["boxes"], atol=1e-2)


def test_int8_leaves_the_decoding_in_fp32(case, tmp_path):
    *_, path = case
    images = [np.random.default_rng(k).random((3, SIDE, SIDE), np.float32) for k in range(4)]
    graph = onnx.load(int8_from_fp32(path, tmp_path / "m.int8.onnx", images)).graph
    kinds = [node.op_type for node in graph.node]
    last = max(k for k, kind in enumerate(kinds) if kind == "Conv")
    assert "QuantizeLinear" in kinds[:last]
    assert "QuantizeLinear" not in kinds[last + 1 :]


def test_a_faster_rcnn_keeps_its_last_decoding_outside():
    with pytest.raises(DeployError, match="RcnnDecoder stays outside the graph; leave in_graph out"):
        lower(made("FasterRCNN"), "detection", torch.zeros(1, 3, SIDE, SIDE), in_graph=True)
