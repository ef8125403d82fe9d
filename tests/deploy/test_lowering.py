"""RetinaNet, FCOS and Faster R-CNN without torch: the boxes that torchvision's whole detectors give."""

import numpy as np
import pytest
import torch
from detectors import SIDE, made
from PIL import Image
from torchvision.models import detection

import deploy
from deploy.bundle.writing import BundleSpec, write_bundle
from deploy.engines import load_engine
from deploy.errors import DeployError
from deploy.exporting.lowering import lower
from deploy.exporting.torch_to_onnx import export_onnx
from deploy.processing.postprocess import DecodedBoxes
from deploy.processing.preprocess import Preprocessing
from deploy.quantization.half import fp16_from_fp32

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module", params=["RetinaNet", "FCOS", "FasterRCNN"])
def case(request, tmp_path_factory):
    model, example = made(request.param), torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    lowered = lower(model, "detection", example)
    module, names, after = lowered.module, lowered.output_name, lowered.postprocessing
    path = tmp_path_factory.mktemp(request.param) / "model.fp32.onnx"
    return model, after, export_onnx(module, example, path, output_name=names)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_file_and_numpy_give_the_whole_detectors_boxes(case, runtime):
    model, after, path = case
    images = torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        wanted = model(list(images))
    with load_engine(path, runtime=runtime) as engine:
        outputs = engine.run({"image": images.numpy()})
        found = after(*(outputs[name] for name in after.OUTPUTS))
        shapes = {name: spec.shape[1:] for name, spec in engine.outputs.items()}
    if runtime == "onnxruntime":
        assert shapes == after.shapes(3)
    for ours, want in zip(found, wanted, strict=True):
        assert len(ours["scores"]) == len(want["scores"]) > 5
        np.testing.assert_allclose(ours["scores"], want["scores"].numpy(), atol=1e-5)
        np.testing.assert_array_equal(ours["labels"] + 1, want["labels"].numpy())
        np.testing.assert_allclose(ours["boxes"], want["boxes"].numpy(), atol=1e-2)
    assert len({int(label) for one in found for label in one["labels"]}) > 1


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_half_precision_gives_nearly_the_same(case, runtime, tmp_path):
    _, _, path = case
    image = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2)).numpy()
    half = fp16_from_fp32(path, tmp_path / "model.fp16.onnx", [image[0]])
    with load_engine(path, runtime=runtime) as whole, load_engine(half, runtime=runtime) as engine:
        wanted, found = whole.run({"image": image}), engine.run({"image": image})
    same = slice(None)
    if "regions" in wanted:  # those of nearly the same score may change places
        same = np.abs(wanted["regions"] - found["regions"]).max(-1) < 1
        assert same.mean() > 0.8
    for name, value in wanted.items():
        error = np.abs(found[name][same] - value[same]).max() / np.abs(value).max()
        assert error < 0.02, name


def test_a_bundle_runs_each(case, tmp_path):
    _, after, path = case
    options = {"task": "detection", "postprocessing": after, "preprocessing": Preprocessing(size=(SIDE, SIDE))}
    rest = {"metrics": {}, "latency": {}, "provenance": {}}
    folder = write_bundle(
        tmp_path / "b", BundleSpec(models={"fp32": path}, default="fp32", classes=("a", "b", "c"), **options, **rest)
    )
    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    with deploy.load(folder) as bundle:
        assert bundle.manifest.postprocessing == after
        (found,) = bundle.predict([Image.fromarray(image)])
    assert {box["class"] for box in found["boxes"]} <= {"a", "b", "c"}
    assert found["boxes"]


def test_masks_are_refused():
    model = detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=2)
    with pytest.raises(DeployError, match="MaskRCNN is not a plain Faster R-CNN"):
        lower(model, "detection", torch.zeros(1, 3, SIDE, SIDE))


def test_boxes_of_the_graph_are_taken_as_they_are():
    after = DecodedBoxes(size=(8, 8), score_threshold=0.1, detections=2)
    boxes, scores, labels = np.ones((1, 2, 4)), np.asarray([[0.5, 0.0]]), np.asarray([[1, 0]])
    (found,) = after(boxes, scores, labels)
    assert (len(found["boxes"]), found["labels"].tolist()) == (1, [1])
    with pytest.raises(TypeError, match="takes boxes, scores, labels"):
        after(boxes, scores)
