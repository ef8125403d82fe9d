"""A tiny run of a detector and one of a segmenter, from pictures that are drawn here to a bundle that predicts."""

import hashlib
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
import yaml
from PIL import Image
from processes import niwaki

import deploy
from deploy.onnx.metadata import Metadata

pytestmark = pytest.mark.slow

COLOURS = {"red": (220, 40, 40), "blue": (40, 60, 220)}
HEIGHT, WIDTH = 64, 96
# Exporting takes time by the layer, and a segmenter's file is exported once more: this one is small and of the user's.
SEGMENTER = """
from torch import nn
from torch.nn import functional as F


class Segmenter(nn.Module):
    def __init__(self, num_classes, width):
        super().__init__()
        self.backbone = nn.Sequential(
            *(nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU()),
            *(nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU()),
        )
        self.classifier = nn.Conv2d(2 * width, num_classes, 1)

    def forward(self, images):
        logits = self.classifier(self.backbone(images))
        return {"out": F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)}
"""
SSDLITE = {"size": [HEIGHT, WIDTH], "finest": 16, "scales": [0.15, 0.3, 0.6, 0.9]}
# Quantising takes most of the time; one of the two does.
PRECISIONS = {"detection": ["fp32", "int8"], "segmentation": ["fp32"]}
# One of the two takes what follows the network into its file.
IN_GRAPH = {"segmentation"}
# One writes a file of any size in the newest operator set that its runtimes read.
EXPORTED = {"detection": {}, "segmentation": {"dynamic_size": True, "opset": "auto"}}
SHORT = {"epochs": 1, "batch_size": 8, "optimizer": "adamw", "lr": 0.002, "evaluations": 1}


def drawn(seed):
    """A grey picture with a red and a blue block, and where they are: (class, box) each, and a mask."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(90, 130, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    mask, found = np.zeros((HEIGHT, WIDTH), np.uint8), []
    for column, (name, colour) in enumerate(COLOURS.items()):
        width, height = rng.integers(16, 32, 2)
        x, y = column * WIDTH // 2 + rng.integers(0, 14), rng.integers(0, HEIGHT - height)
        pixels[y : y + height, x : x + width] = colour
        mask[y : y + height, x : x + width] = column + 1
        found.append((name, (int(x), int(y), int(x + width), int(y + height))))
    return Image.fromarray(pixels), mask, found


def voc(folder):
    """Writes the pictures in Pascal VOC's layout."""
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    seed = 0
    for split, count in (("train", 16), ("val", 6), ("test", 6)):
        names = []
        for _ in range(count):
            image, _, boxes = drawn(seed)
            name = f"p{seed:03d}"
            image.save(folder / "JPEGImages" / f"{name}.jpg", quality=95)
            root = ElementTree.Element("annotation")
            ElementTree.SubElement(root, "filename").text = f"{name}.jpg"
            size = ElementTree.SubElement(root, "size")
            for key, value in (("width", WIDTH), ("height", HEIGHT), ("depth", 3)):
                ElementTree.SubElement(size, key).text = str(value)
            for label, corners in boxes:
                item = ElementTree.SubElement(root, "object")
                ElementTree.SubElement(item, "name").text = label
                box = ElementTree.SubElement(item, "bndbox")
                for key, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True):
                    ElementTree.SubElement(box, key).text = str(value)
            ElementTree.ElementTree(root).write(folder / "Annotations" / f"{name}.xml")
            names.append(name)
            seed += 1
        (folder / f"ImageSets/Main/{split}.txt").write_text("\n".join(names) + "\n")


def masks(folder):
    """Writes the pictures with a mask each."""
    seed = 0
    for split, count in (("train", 16), ("val", 6), ("test", 6)):
        for kind in ("images", "masks"):
            (folder / split / kind).mkdir(parents=True)
        for _ in range(count):
            image, mask, _ = drawn(seed)
            image.save(folder / split / "images" / f"{seed}.png")
            Image.fromarray(mask).save(folder / split / "masks" / f"{seed}.png")
            seed += 1


TASKS = {
    "detection": (
        voc,
        {"factory": "niwaki:mobilenet_v2_ssdlite", "arguments": SSDLITE},
        {"kind": "voc", "path": "data"},
    ),
    "segmentation": (
        masks,
        {"factory": "own_segmenter:Segmenter", "arguments": {"width": 16}},
        {
            "kind": "masks",
            "path": "data",
            "classes": ["ground", "red", "blue"],
            **{s: {"images": f"{s}/images", "masks": f"{s}/masks"} for s in ("train", "val", "test")},
        },
    ),
}  # fmt: skip
TRUST = {"detection": (), "segmentation": ("--trust", "own_segmenter")}
METRICS = {"detection": ("mAP", {"map", "map50", "map75"}), "segmentation": ("mIoU", {"miou", "pixel_accuracy"})}


@pytest.fixture(scope="module", params=list(TASKS))
def done(request, tmp_path_factory):
    """The task and the folder in which `data` and the finished run `out` lie."""
    write, model, target = TASKS[request.param]
    home = tmp_path_factory.mktemp(request.param)
    write(home / "data")
    recipe = {
        "name": request.param,
        "model": model,
        "target": target,
        "preprocessing": {"size": [HEIGHT, WIDTH], "resize": "stretch"},
        "transfer": {**SHORT, "augment": "flip"},
        "twin": False,
        "prune": {"budget": {"macs": 0.6}, "round_to": 8, "criterion": "l1"},
        "distill": {**SHORT, "augment": "flip", "compare": []},
        "deploy": {
            "precisions": PRECISIONS[request.param],
            "ship": PRECISIONS[request.param][-1],
            "rtx_targets": [],
            "in_graph": request.param in IN_GRAPH,
            "rounds": 5,
            "calibration_images": 4,
            **EXPORTED[request.param],
        },
    }
    (home / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (home / "own_segmenter.py").write_text(SEGMENTER)
    process = niwaki("run", "recipe.yaml", "--out", "out", *TRUST[request.param], cwd=home)
    assert process.returncode == 0, process.stderr
    assert METRICS[request.param][0] in process.stdout
    return request.param, home


def test_the_ledger_judges_by_the_tasks_own_metric(done):
    task, home = done
    title, wanted = METRICS[task]
    ledger = json.loads((home / "out/ledger.json").read_text())
    assert (ledger["task"], ledger["metric"], ledger["test_images"]) == (task, title, 6)
    assert [model["name"] for model in ledger["models"]] == ["teacher", "pruned", "student"]
    for model in ledger["models"]:
        assert wanted <= set(model["test_metrics"])
        assert model["test_accuracy"] == model["test_metrics"][next(iter(sorted(wanted & {"map", "miou"})))]
        assert model["test_correct"] is None
    teacher, student = ledger["models"][0], ledger["models"][2]
    assert student["macs"] <= 0.6 * teacher["macs"]


def test_the_artifact_predicts_as_the_bundles_fp32_model(done, monkeypatch):
    """What was measured in torch is what is shipped: same image file, same boxes or mask."""
    import torch

    import compress
    from compress.train import TASKS as KINDS

    task, home = done
    image = home / "out/samples/0.png"
    with deploy.load(home / "out/bundle", precision="fp32") as bundle:
        (found,) = bundle.predict([image])
        prepared = torch.from_numpy(bundle.preprocessing(Image.open(image)))[None]
    monkeypatch.syspath_prepend(home)
    model = compress.load(home / "out/student", trusted=TRUST[task][1:]).eval()
    with torch.inference_mode():
        (own,) = KINDS[task].predict(model, prepared)
    if task == "segmentation":
        # Masks come in the image's own size, which is the network's here.
        assert np.mean(found["mask"] == own.argmax(0).numpy()) > 0.999
    else:
        scores = np.asarray([box["score"] for box in found["boxes"]])
        np.testing.assert_allclose(scores, own["scores"].numpy(), rtol=1e-3, atol=1e-4)


def test_predict_and_the_page_speak_of_the_task(done):
    task, home = done
    said = niwaki("predict", "out/bundle", "out/samples/0.png", "--json", cwd=home)
    assert said.returncode == 0, said.stderr
    assert ("boxes" if task == "detection" else "mask") in said.stdout
    assert f"Test {METRICS[task][0]}" in (home / "out/report.html").read_text()


def test_the_bench_record_has_the_accuracy_of_each_engine(done):
    task, home = done
    records = {r["name"]: r for r in json.loads((home / "out/bench.json").read_text())["records"]}
    ours = {"dense", "pruned", "distilled", *PRECISIONS[task][1:]}
    # Where OpenVINO is what the bundle prefers, which the processor decides, the same files are timed on it too.
    assert set(records) in (ours, ours | {f"{name}-openvino" for name in ours})
    assert all(0 <= records[name]["accuracy"] <= 1 for name in ours)


def test_a_classifier_on_boxes_is_one_sentence(done, tmp_path):
    task, home = done
    recipe = yaml.safe_load((home / "recipe.yaml").read_text()) | {"model": {"factory": "torchvision:resnet18"}}
    (home / "wrong.yaml").write_text(yaml.safe_dump(recipe))
    process = niwaki("run", "wrong.yaml", "--out", tmp_path / "out", cwd=home)
    assert process.returncode == 2
    assert process.stderr.startswith("niwaki: ")
    assert process.stderr.count("\n") == 1
    assert "ResNet" in process.stderr
    assert not (tmp_path / "out").exists(), task


def test_the_files_have_the_size_and_the_operator_set_that_the_recipe_asks_for(done):
    task, home = done
    free = task == "segmentation"
    for path in sorted((home / "out/deploy").glob("*.onnx")):
        model = onnx.load(path)
        sides = model.graph.input[0].type.tensor_type.shape.dim[2:]
        assert [(side.dim_param, side.dim_value) for side in sides] == (
            [("height", 0), ("width", 0)] if free else [("", HEIGHT), ("", WIDTH)]
        )
        assert next(one.version for one in model.opset_import if not one.domain) == (26 if free else 18)


def test_files_and_bundles_of_any_size_are_timed_at_the_size_of_their_preprocessing(done):
    _, home = done
    for path in ("out/bundle", "out/deploy/student.fp32.onnx"):
        said = niwaki("bench", path, "--rounds", 5, cwd=home)
        assert said.returncode == 0, said.stderr


def test_a_detector_of_any_size_is_one_sentence_before_anything_is_trained(done, tmp_path):
    task, home = done
    if task != "detection":
        pytest.skip("the data are masks")
    recipe = yaml.safe_load((home / "recipe.yaml").read_text())
    recipe["deploy"]["dynamic_size"] = True
    (home / "free.yaml").write_text(yaml.safe_dump(recipe))
    process = niwaki("run", "free.yaml", "--out", tmp_path / "out", cwd=home)
    assert (process.returncode, process.stderr.count("\n")) == (2, 1)
    assert "cannot have a free size: the bundle's decoding holds the anchors of one size" in process.stderr
    assert not (tmp_path / "out").exists()


def test_the_files_lie_where_a_detector_expects_them(done):
    _, home = done
    assert Path(home / "out/bundle/manifest.json").is_file()
    manifest = json.loads((home / "out/bundle/manifest.json").read_text())
    assert manifest["task"] == done[0]
    assert manifest["postprocessing"]["kind"]


def test_the_file_tells_of_itself_and_the_ledger_why_its_runtime_goes_first(done):
    task, home = done
    manifest = json.loads((home / "out/bundle/manifest.json").read_text())
    own = Metadata.from_file(home / "out/bundle/model.fp32.onnx")
    assert list(own.classes) == manifest["classes"]
    assert own.preprocessing.model_dump(mode="json") == manifest["preprocessing"]
    weights = (home / "out/student/model.safetensors").read_bytes()
    assert own.weights_sha256 == hashlib.sha256(weights).hexdigest()
    ledger = json.loads((home / "out/ledger.json").read_text())
    shipping = ledger["shipping"]
    assert (shipping["precision"], shipping["runtime"]) == (manifest["default"], manifest["cpu_runtime"])
    assert {(one["precision"], one["runtime"]) for one in shipping["timed"]} >= {
        (precision, runtime) for precision in PRECISIONS[task] for runtime in ("onnxruntime", "openvino")
    }
    stages = {stage["name"]: stage for stage in ledger["stages"]}
    assert any(f"ships {shipping['precision']} on " in note for note in stages["bench"]["notes"])
    rows = json.loads((home / "out/deploy/parity.json").read_text())["distilled"]
    assert {row["inputs"] for row in rows} >= {"real", "times 0.001", "constant", "negated"}
    assert {row["batch"] for row in rows} == {1, 2, 7}
    inside = manifest["postprocessing"].get("in_graph", manifest["postprocessing"]["kind"] == "boxes")
    assert inside == (task in IN_GRAPH)
