"""Files that are ONNX and no use: whatever they claim or do, it is one sentence, and nothing outside is read."""

import hashlib
import json
import sys

import numpy as np
import pytest
from PIL import Image

import deploy
from compress.cli import app
from deploy.bundle.writing import BundleSpec, write_bundle
from deploy.engines import load_engine
from deploy.errors import DeployError
from deploy.processing.postprocess import DecodedBoxes, SegmentationDecoder
from deploy.processing.preprocess import Preprocessing

pytestmark = pytest.mark.heavy

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper  # noqa: E402

KNOWN = 3
PREPARED = Preprocessing(size=(8, 8), mode="L")
PICTURE = Image.new("L", (9, 7), 200)


def network(path, *, shape=("n", 1, 8, 8), kind=TensorProto.FLOAT, weights=KNOWN * [1.0], out=("n", "c"), extra=()):
    """The mean of an image times the weights; ``extra`` nodes go from 'made' to 'logits'."""
    last = "made" if extra else "logits"
    nodes = [
        helper.make_node("Cast", ["image"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["real"], ["mean"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["mean", "w"], [last]),
        *extra,
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", kind, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, out)] if out else [],
        [helper.make_tensor("w", TensorProto.FLOAT, [1, len(weights)], weights)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def bundle(tmp_path, **change):
    options = {"task": "classification", "postprocessing": None} | {k: change.pop(k) for k in (*change,) if k in REST}
    return write_bundle(
        tmp_path / "b",
        BundleSpec(
            models={"fp32": network(tmp_path / "x.onnx", **change)},
            default="fp32",
            preprocessing=PREPARED,
            classes=[f"c{k}" for k in range(KNOWN)],
            **options,
        ),
    )


REST = ("task", "postprocessing")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"shape": (3, 1, 8, 8)}, "takes 3 images at once, always; export it with a free batch"),
        ({"shape": (0, 1, 8, 8)}, "takes 0 images at once"),
        ({"kind": TensorProto.INT64}, r"as float32 \[1, 8, 8\] but its network takes int64"),
        ({"kind": TensorProto.UINT8}, "takes uint8"),
        ({"shape": ("n", 1, 0, 0)}, r"takes float32\[any, 1, 0, 0\]"),
        ({"shape": ("n", 1, 2**40, 2**40)}, "but its network takes"),
        ({"out": None}, "names 3 classes but its network gives nothing"),
        ({"extra": [helper.make_node("Evil", ["made"], ["logits"], domain="evil")]}, "cannot load"),
    ],
)
def test_what_predict_cannot_use_is_refused_when_it_loads(change, says, tmp_path):
    with pytest.raises(DeployError, match=says):
        deploy.load(bundle(tmp_path, **change))


FEWER = [helper.make_node("ReduceMean", ["made"], ["logits"], axes=[0], keepdims=1)]


NONE = [
    ({"extra": FEWER}, r"'logits' as \[1, 3\] for 2 images"),
    ({"weights": KNOWN * [np.nan]}, "NaN in 'logits'"),
    ({"weights": KNOWN * [np.inf]}, "gives infinity"),
]


@pytest.mark.parametrize(("change", "says"), NONE)
def test_what_is_no_prediction_is_refused_when_it_is_made(change, says, tmp_path):
    with deploy.load(bundle(tmp_path, **change)) as loaded, pytest.raises(DeployError, match=says):
        loaded.predict([PICTURE, PICTURE])


@pytest.mark.parametrize(("change", "says"), NONE)
def test_number_14_what_gives_no_prediction_is_neither_signed_nor_built(change, says, tmp_path, keys):
    folder = bundle(tmp_path, **change)
    for refuse in (lambda: deploy.sign(folder, keys / "mine.pem"), lambda: deploy.build_engine(folder)):
        with pytest.raises(DeployError, match=says):
            refuse()
    assert not (folder / "manifest.json.sig").exists()


def test_number_14_the_file_that_tensorrt_builds_from_fits_too(tmp_path, keys):
    folder = bundle(tmp_path)
    other = network(folder / "model.fp32.trt.onnx", weights=[1.0, 2.0, 3.0, 4.0]).read_bytes()
    said = json.loads((folder / "manifest.json").read_text())
    about = {"file": "model.fp32.trt.onnx", "bytes": len(other), "sha256": hashlib.sha256(other).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps({**said, "tensorrt": {"fp32": about}}))
    for refuse in (lambda: deploy.sign(folder, keys / "mine.pem"), lambda: deploy.build_engine(folder)):
        with pytest.raises(DeployError, match=r"names 3 classes but its network gives|'logits' as \[2, 4\]"):
            refuse()


@pytest.mark.parametrize(
    ("task", "after", "outputs", "says"),
    [
        ("detection", DecodedBoxes(size=(8, 8), detections=1), {"scores": [[np.inf]]}, "infinity in 'scores'"),
        ("detection", DecodedBoxes(size=(8, 8), detections=1), {"labels": [[7.0]]}, "do not exist"),
        ("detection", DecodedBoxes(size=(8, 8), detections=1), {"boxes": [[[0.0, 0.0]]]}, r"'boxes' as \[1, 1, 2\]"),
        ("classification", None, {"logits": [[1.0, 2.0, 3.0, 4.0]]}, r"'logits' as \[1, 4\] for 1 images"),
        ("segmentation", SegmentationDecoder(in_graph=True), {"classes": [[[3]]]}, "classes that do not exist"),
        ("segmentation", SegmentationDecoder(), {"logits": np.zeros((1, KNOWN, 0, 4))}, r"'logits' as \[1, 3, 0, 4\]"),
        ("segmentation", SegmentationDecoder(), {"logits": np.full((1, KNOWN, 2, 2), np.inf)}, "infinity in 'logits'"),
    ],
)
def test_boxes_and_masks_of_nothing_are_refused(task, after, outputs, says, tmp_path, monkeypatch):
    monkeypatch.setattr("deploy.bundle.bundle._check_fit", lambda *_: None)
    found = {"boxes": [[[0.0, 0.0, 4.0, 4.0]]], "scores": [[0.9]], "labels": [[0.0]]} if task == "detection" else {}
    given = {name: np.asarray(value) for name, value in (found | outputs).items()}
    with deploy.load(bundle(tmp_path, task=task, postprocessing=after)) as loaded:
        monkeypatch.setattr(loaded, "_run", lambda _: given)
        with pytest.raises(DeployError, match=says):
            loaded.predict([PICTURE])


@pytest.mark.parametrize("threads", [-1, 10**9, 1.5, None])
def test_threads_are_a_number_of_them(threads, tmp_path):
    with pytest.raises(DeployError, match="threads is"):
        deploy.load(bundle(tmp_path), threads=threads)


def test_a_picture_of_which_less_than_a_pixel_is_seen_has_a_mask_of_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("deploy.bundle.bundle._check_fit", lambda *_: None)
    with deploy.load(bundle(tmp_path, task="segmentation", postprocessing=SegmentationDecoder())) as loaded:
        monkeypatch.setattr(loaded, "run", lambda _: {"logits": np.zeros((1, KNOWN, 2, 2), np.float32)})
        loaded.preprocessing = Preprocessing(size=(1, 64), mode="L", resize="shorter_side_center_crop")
        assert (loaded.predict([Image.new("L", (4, 4))])[0]["mask"] == 255).all()


def test_a_file_for_one_image_predicts_many(tmp_path):
    with deploy.load(bundle(tmp_path, shape=(1, 1, 8, 8), out=(1, KNOWN))) as loaded:
        assert len(loaded.predict([PICTURE] * 3)) == 3


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("place", ["../outside.bin", "/etc/passwd"])
def test_weights_outside_the_folder_are_not_read(runtime, place, tmp_path):
    pytest.importorskip(runtime)
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "outside.bin").write_bytes(bytes(4 * KNOWN))
    path = network(folder / "x.onnx")
    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", place), ("length", str(4 * KNOWN))):
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(DeployError, match="is not a file in its folder"):
        load_engine(path, runtime=runtime)
    with pytest.raises(DeployError, match="keeps 'w' in another file, which no hash covers"):
        write_bundle(
            tmp_path / "b",
            BundleSpec(models={"fp32": path}, default="fp32", preprocessing=PREPARED, classes=["a", "b", "c"]),
        )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"shape": (3, 1, 8, 8), "more": ["--batch", "1"]}, "is not a batch of 1; give --batch 3"),
        ({"shape": (), "more": ["--batch", "2"]}, "one per run, and no batch; leave --batch out"),
        ({"shape": ("n", 1, 2**40, 2**40)}, "too large to be timed"),
    ],
)
def test_bench_says_what_cannot_be_timed(change, says, tmp_path, monkeypatch, capsys):
    path = tmp_path / "x.onnx"
    network(path, shape=change["shape"]) if change["shape"] else onnx.save(scalar(), path)
    monkeypatch.setattr(sys, "argv", ["niwaki", "bench", str(path), *change.get("more", [])])
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert ended.value.code == 2 and says in capsys.readouterr().err


def scalar():
    graph = helper.make_graph(
        [helper.make_node("Identity", ["image"], ["logits"])],
        "g",
        *([helper.make_tensor_value_info(name, TensorProto.FLOAT, ())] for name in ("image", "logits")),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("said", ["[" * 5000, "1" * 5000, "{"])
def test_properties_without_end_are_one_sentence(said, tmp_path):
    from deploy.onnx.metadata import Metadata

    path = network(tmp_path / "x.onnx")
    model = onnx.load(path)
    helper.set_model_props(model, {"niwaki.classes": said})
    onnx.save(model, path)
    with pytest.raises(DeployError, match="properties that cannot be read"):
        Metadata.from_file(path)


def test_doctor_says_of_a_file_that_calls_itself_something_else(tmp_path, monkeypatch, capsys):
    path = network(tmp_path / "x.onnx")
    model = onnx.load(path)
    helper.set_model_props(model, {"niwaki.precision": "int4"})
    onnx.save(model, path)
    folder = write_bundle(
        tmp_path / "b",
        BundleSpec(models={"fp32": path}, default="fp32", preprocessing=PREPARED, classes=["a", "b", "c"]),
    )
    monkeypatch.setattr(sys, "argv", ["niwaki", "doctor", str(folder), "--json"])
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert ended.value.code == 0 and json.loads(capsys.readouterr().out)["precision"] == "fp32"
