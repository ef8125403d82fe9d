"""Detection and segmentation without torch: the same boxes and pixels as torchvision's own postprocessing."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from torch.nn import functional
from torchvision.models.detection import ssdlite320_mobilenet_v3_large
from torchvision.models.segmentation import lraspp_mobilenet_v3_large
from torchvision.ops import batched_nms

import deploy
from deploy.bundle.writing import BundleSpec, write_bundle
from deploy.engines import load_engine
from deploy.errors import DeployError
from deploy.exporting.lowering import Lowered, lower, segmentation_logits, ssd_heads
from deploy.exporting.parity import parity
from deploy.exporting.torch_to_onnx import export_onnx
from deploy.processing.boxes import suppress_by_class
from deploy.processing.postprocess import SegmentationDecoder, SsdDecoder, resize_bilinear
from deploy.processing.preprocess import Preprocessing

pytestmark = pytest.mark.heavy

CLASSES = ("red", "white", "platelet")


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    model = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4).eval()
    with torch.no_grad():
        for module in model.head.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.weight.normal_(0, 0.3)
    return model


@pytest.fixture(scope="module")
def lowered(detector, tmp_path_factory):
    example = torch.randn(2, 3, 320, 320)
    heads, decoding = ssd_heads(detector, example)
    path = tmp_path_factory.mktemp("ssd") / "model.fp32.onnx"
    return heads, decoding, export_onnx(heads, example, path, output_name=("boxes", "logits"))


def theirs(detector, images):
    """Random raw outputs of the right shapes, the anchors, and what torchvision's own decoding makes of them."""
    from torchvision.models.detection.image_list import ImageList

    with torch.inference_mode():
        maps = list(detector.backbone(images).values())
        generator = torch.Generator().manual_seed(7)
        raw = {key: torch.randn(value.shape, generator=generator) * 3 for key, value in detector.head(maps).items()}
        anchors = detector.anchor_generator(ImageList(images, [tuple(images.shape[-2:])] * len(images)), maps)
        return raw, anchors, detector.postprocess_detections(raw, anchors, [tuple(images.shape[-2:])] * len(images))


def test_the_same_boxes_as_torchvision(detector, lowered):
    images = torch.randn(3, 3, 320, 320, generator=torch.Generator().manual_seed(5))
    raw, anchors, wanted = theirs(detector, images)
    _, decoding, _ = lowered
    default = decoding.default_boxes()
    corners = np.concatenate([default[:, :2] - default[:, 2:] / 2, default[:, :2] + default[:, 2:] / 2], axis=1)
    np.testing.assert_allclose(corners, anchors[0].numpy(), atol=1e-3)
    found = decoding(raw["bbox_regression"].numpy(), raw["cls_logits"].numpy())
    for ours, want in zip(found, wanted, strict=True):
        assert len(ours["scores"]) == len(want["scores"]) > 50
        np.testing.assert_allclose(ours["scores"], want["scores"].numpy(), atol=1e-6)
        np.testing.assert_array_equal(ours["labels"] + 1, want["labels"].numpy())
        np.testing.assert_allclose(ours["boxes"], want["boxes"].numpy(), atol=2e-2)


@given(
    st.integers(0, 2**32 - 1), st.integers(0, 60), st.sampled_from([0.0, 0.3, 0.55, 1.0]), st.sampled_from([1, 5, 99])
)
def test_suppression_is_torchvisions(seed, count, overlap, limit):
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 20, (count, 2))
    boxes = np.concatenate([corner, corner + rng.integers(0, 12, (count, 2))], axis=1).astype(np.float32)
    scores = torch.linspace(1, 0, max(count, 1))[:count]
    labels = rng.integers(0, 3, count)
    found = suppress_by_class(boxes, scores.numpy(), labels, overlap=overlap, limit=limit)
    kept = batched_nms(torch.from_numpy(boxes), scores, torch.from_numpy(labels), overlap)[:limit].numpy()
    for name, wanted in (("boxes", boxes), ("scores", scores.numpy()), ("labels", labels)):
        np.testing.assert_array_equal(found[name], wanted[kept])


def test_claims_of_anchors_are_bounded_before_any_is_made():
    """180,000 boxes that hide none of each other took hours when all of them went into suppression."""
    said = {"kind": "ssd", "size": [320, 320], "grids": [[300, 300]], "scales": [0.1, 0.2], "aspect_ratios": [[]]}
    for claimed, says in (
        ({"candidates": 180_000}, "less than or equal to 5000"),
        ({"detections": 180_000}, "less than or equal to 1000"),
        ({"grids": [[4096, 4096]]}, "hold 33554432 anchors, and 2097152 are the limit"),
        ({"grids": [[1, 1]] * 17, "scales": [0.1] * 18, "aspect_ratios": [[]] * 17}, "at most 16"),
    ):
        with pytest.raises(ValidationError, match=says):
            SsdDecoder(**{**said, **claimed})
    decoder = SsdDecoder(**said, candidates=5000, detections=1000, overlap=1.0)
    logits = np.zeros((1, 180_000, 3), np.float32)
    start = time.process_time()
    (found,) = decoder(np.zeros((1, 180_000, 4), np.float32), logits)
    assert len(found["scores"]) == 1000
    assert time.process_time() - start < 10


def test_the_file_gives_what_the_heads_give(lowered):
    heads, _, path = lowered
    with load_engine(path) as engine:
        assert list(engine.outputs) == ["boxes", "logits"]
        rows = parity(heads, engine, torch.randn(2, 3, 320, 320), (1, 2))
    assert max(row["max_relative_error"] for row in rows) < 1e-4


@pytest.mark.parametrize("resize", ["stretch", "shorter_side_center_crop"])
def test_a_bundle_finds_boxes_in_the_image_own_pixels(resize, lowered, tmp_path):
    _, decoding, path = lowered
    preprocessing = Preprocessing(size=(320, 320), mean=(0.5,) * 3, std=(0.5,) * 3, resize=resize)
    options = {"task": "detection", "postprocessing": decoding, "preprocessing": preprocessing, "classes": CLASSES}
    folder = write_bundle(tmp_path / "b", BundleSpec(models={"fp32": path}, default="fp32", **options))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 200, 3), dtype=np.uint8))
    with deploy.load(folder) as bundle:
        (found,) = bundle.predict([image])
        raw = bundle.run({"image": preprocessing(image)[None]})
    (want,) = decoding(raw["boxes"], raw["logits"])
    assert [box["score"] for box in found["boxes"]] == pytest.approx(want["scores"].tolist())
    scale, offset = ([200 / 320, 100 / 320] * 2, 0) if resize == "stretch" else ([100 / 320] * 4, [50, 0, 50, 0])
    wanted = want["boxes"] * np.asarray(scale) + offset
    np.testing.assert_allclose([box["box"] for box in found["boxes"]], wanted, atol=1e-3)
    assert found["boxes"][0]["class"] == CLASSES[found["boxes"][0]["index"]]
    json.dumps(found)
    image.save(tmp_path / "i.png")
    code = "import sys, deploy; deploy.load(sys.argv[1]).predict([sys.argv[2]]); print('torch' in sys.modules)"
    run = [sys.executable, "-c", code, str(folder), str(tmp_path / "i.png")]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout == "False\n"


def test_a_detector_that_does_not_fit_is_refused(lowered, tmp_path):
    _, decoding, path = lowered
    options = {"models": {"fp32": path}, "default": "fp32", "task": "detection"}
    options["preprocessing"] = Preprocessing(size=(320, 320))
    with pytest.raises(DeployError, match="needs a postprocessing of its own"):
        write_bundle(tmp_path / "a", BundleSpec(classes=CLASSES, **options))
    folder = write_bundle(tmp_path / "b", BundleSpec(classes=CLASSES[:2], postprocessing=decoding, **options))
    with pytest.raises(DeployError, match="for 2 classes but its network gives"):
        deploy.load(folder)
    with pytest.raises(DeployError, match="Linear is not a torchvision SSD"):
        ssd_heads(torch.nn.Linear(1, 1), torch.zeros(1))


@pytest.mark.parametrize(
    "change",
    [
        {"size": (0, 8)},
        {"grids": ((0, 1),)},
        {"grids": ((1, 1), (1, 1))},
        {"grids": ((10**9, 10**9),)},
        {"scales": (0.5,)},
        {"scales": (0.5, float("nan"))},
        {"aspect_ratios": ()},
        {"aspect_ratios": ((-2.0,),)},
        {"steps": (0.0,)},
        {"weights": (0.0, 10.0, 5.0, 5.0)},
    ],
)
def test_a_decoding_that_computes_nothing_is_refused(change):
    fine = {"size": (8, 8), "grids": ((1, 1),), "scales": (0.5, 1.0), "aspect_ratios": ((2.0,),)}
    assert SsdDecoder(**fine).shapes(2)["boxes"] == SsdDecoder(**fine).default_boxes().shape
    with pytest.raises(ValueError, match=next(iter(change))):
        SsdDecoder(**fine | change)


@pytest.mark.parametrize("size", [(7, 9), (40, 56), (33, 17), (4, 4)])
def test_resizing_is_torchs(size):
    values = np.random.default_rng(0).standard_normal((2, 3, 10, 14)).astype(np.float32)
    want = functional.interpolate(torch.from_numpy(values), size=size, mode="bilinear", align_corners=False)
    np.testing.assert_allclose(resize_bilinear(values, size), want.numpy(), atol=1e-5)


def test_a_mask_made_in_bands_is_the_mask_made_at_once(monkeypatch):
    values = np.random.default_rng(0).standard_normal((2, 3, 5, 7)).astype(np.float32)
    want = resize_bilinear(values, (31, 40)).argmax(axis=1)
    monkeypatch.setattr("deploy.processing.postprocess._MAX_LOGITS", 4 * 2 * 3 * 40)
    assert np.array_equal(SegmentationDecoder()(values, (31, 40)), want)


@pytest.mark.parametrize("in_graph", [False, True])
def test_a_bundle_gives_a_class_for_every_pixel(in_graph, tmp_path):
    torch.manual_seed(0)
    model = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3).eval()
    module, after = segmentation_logits(model, in_graph=in_graph)
    assert after == SegmentationDecoder(in_graph=in_graph)
    name = "classes" if in_graph else "logits"
    path = export_onnx(module, torch.randn(2, 3, 64, 96), tmp_path / "model.fp32.onnx", output_name=name)
    preprocessing = Preprocessing(size=(64, 96), mean=(0.5,) * 3, std=(0.5,) * 3)
    options = {"task": "segmentation", "postprocessing": after, "preprocessing": preprocessing, "classes": CLASSES}
    folder = write_bundle(tmp_path / "b", BundleSpec(models={"fp32": path}, default="fp32", **options))
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 96, 3), dtype=np.uint8))
    with deploy.load(folder) as bundle, torch.inference_mode():
        (found,) = bundle.predict([image])
        want = model(torch.from_numpy(preprocessing(image)[None]))["out"].argmax(1)[0].numpy()
        assert bundle.predict([image.resize((50, 30))])[0]["mask"].shape == (30, 50)
    assert found["mask"].dtype == np.uint8
    assert (found["mask"] == want).mean() > 0.999


def test_a_graph_that_names_classes_is_resized_by_nearest():
    classes = np.arange(6).reshape(1, 2, 3)
    np.testing.assert_array_equal(
        SegmentationDecoder(in_graph=True)(classes, (4, 3)), [[[0, 1, 2], [0, 1, 2], [3, 4, 5], [3, 4, 5]]]
    )
    one = SsdDecoder(size=(8, 8), grids=((1, 1),), scales=(0.5, 1.0), aspect_ratios=((2.0,),))
    assert one.default_boxes().shape == (4, 4)


def test_one_call_lowers_every_task(detector):
    image, linear = torch.randn(1, 3, 320, 320), torch.nn.Linear(1, 1)
    assert lower(linear, "classification", image) == Lowered(linear, "logits", None)
    found = lower(detector, "detection", image)
    assert (found.output_name, found.postprocessing) == (("boxes", "logits"), ssd_heads(detector, image)[1])
    with torch.inference_mode():
        assert len(found.module(image)) == 2
    found = lower(torch.nn.Conv2d(3, 4, 1), "segmentation", image)
    assert (found.module(image).shape, found.output_name, found.postprocessing) == (
        (1, 4, 320, 320),
        "logits",
        SegmentationDecoder(),
    )
    found = lower(torch.nn.Conv2d(3, 4, 1), "segmentation", image, in_graph=True)
    assert (found.module(image).shape, found.output_name, found.postprocessing) == (
        (1, 320, 320),
        "classes",
        SegmentationDecoder(in_graph=True),
    )
    with pytest.raises(DeployError, match="Linear is not a detector whose decoding the bundle knows"):
        lower(linear, "detection", image)
    with pytest.raises(DeployError, match="The task is 'pose'"):
        lower(linear, "pose", image)
