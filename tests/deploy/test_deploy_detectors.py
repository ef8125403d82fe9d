"""RetinaNet, FCOS and Faster R-CNN without torch: the boxes that torchvision's whole detectors give."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator

import deploy
from deploy.bundle import write_bundle
from deploy.engines import load_engine
from deploy.errors import DeployError
from deploy.export import export_onnx
from deploy.lowering import lowered
from deploy.postprocess import FoundBoxes
from deploy.preprocess import Preprocessing

SIDE = 96


class Body(torch.nn.Module):
    """Three maps of one width, which is all that a detector asks of its backbone."""

    out_channels = 32

    def __init__(self):
        super().__init__()
        self.steps = torch.nn.ModuleList(
            torch.nn.Conv2d(c, 32, s, s) for c, s in zip((3, 32, 32), (8, 2, 2), strict=True)
        )

    def forward(self, images):
        maps = {}
        for k, step in enumerate(self.steps):
            images = step(images).tanh()
            maps[str(k)] = images
        return maps


def made(kind):
    """A small detector of torchvision's class, with heads that find much, and no resizing."""
    torch.manual_seed(3)
    plain = {"min_size": SIDE, "max_size": SIDE, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    anchors = AnchorGenerator(((16, 24), (32, 40), (56,)), ((0.5, 1.0, 2.0),) * 3)
    if kind == "RetinaNet":
        anchors = AnchorGenerator(((16, 24), (32, 40), (56, 70)), ((0.5, 1.0, 2.0),) * 3)
        model = detection.RetinaNet(Body(), 4, anchor_generator=anchors, topk_candidates=100, **plain)
    elif kind == "FCOS":
        squares = AnchorGenerator(((8,), (16,), (32,)), ((1.0,),) * 3)
        model = detection.FCOS(Body(), 4, anchor_generator=squares, topk_candidates=40, **plain)
    else:
        one = AnchorGenerator(((16,), (32,), (56,)), ((0.5, 1.0, 2.0),) * 3)
        pool = detection.faster_rcnn.MultiScaleRoIAlign(["0", "1", "2"], 3, 2, canonical_scale=40)
        tops = {"rpn_pre_nms_top_n_test": 60, "rpn_post_nms_top_n_test": 50, "rpn_score_thresh": 0.1}
        head = detection.faster_rcnn.TwoMLPHead(32 * 9, 32)
        boxes = {"box_head": head, "box_predictor": detection.faster_rcnn.FastRCNNPredictor(32, 4)}
        model = detection.FasterRCNN(Body(), rpn_anchor_generator=one, box_roi_pool=pool, **boxes, **tops, **plain)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            box = "bbox" in name
            torch.nn.init.normal_(module.weight, 0, (0.3 if box else 1.5) / module.weight[0].numel() ** 0.5)
            torch.nn.init.zeros_(module.bias)
    for name, value in model.named_parameters():
        # Nothing learns that the background is there: its column has to stay out of what is compared.
        if name.endswith("classification_head.cls_logits.bias"):
            value.data.view(-1, 4)[:, 0] = -50
    return model.eval()


@pytest.fixture(scope="module", params=["RetinaNet", "FCOS", "FasterRCNN"])
def case(request, tmp_path_factory):
    model, example = made(request.param), torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    module, names, after = lowered(model, "detection", example)
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


def test_a_bundle_runs_each(case, tmp_path):
    _, after, path = case
    options = {"task": "detection", "postprocessing": after, "preprocessing": Preprocessing(size=(SIDE, SIDE))}
    rest = {"metrics": {}, "latency": {}, "provenance": {}}
    folder = write_bundle(
        tmp_path / "b", models={"fp32": path}, default="fp32", classes=("a", "b", "c"), **options, **rest
    )
    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    with deploy.load(folder) as bundle:
        assert bundle.manifest.postprocessing == after
        (found,) = bundle.predict([Image.fromarray(image)])
    assert {box["class"] for box in found["boxes"]} <= {"a", "b", "c"}
    assert found["boxes"]


def test_masks_are_refused():
    model = detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=2)
    with pytest.raises(DeployError, match="MaskRCNN is no plain Faster R-CNN"):
        lowered(model, "detection", torch.zeros(1, 3, SIDE, SIDE))


def test_boxes_of_the_graph_are_taken_as_they_are():
    after = FoundBoxes(size=(8, 8), score_threshold=0.1, detections=2)
    boxes, scores, labels = np.ones((1, 2, 4)), np.asarray([[0.5, 0.0]]), np.asarray([[1, 0]])
    (found,) = after(boxes, scores, labels)
    assert (len(found["boxes"]), found["labels"].tolist()) == (1, [1])
    with pytest.raises(TypeError, match="takes boxes, scores, labels"):
        after(boxes, scores)
