"""The entry points that read files, the folders they are tried in, and the real files that mutations begin from."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fuzz_calls
import numpy as np
import onnx
import torch
from fuzz_worker import CANARIES, RAN
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from compress.sparse.masks import Masks
from compress.sparse.storage import save_sparse
from compress.train.checkpoint import Checkpoints
from deploy.bundle.signed import _BUNDLE, sign
from deploy.bundle.signing import read_private_key, sign_bytes
from deploy.bundle.writing import BundleSpec, write_bundle
from deploy.engines.sidecar import Sidecar, write_sidecar
from deploy.latency.table import Entry as Timed
from deploy.latency.table import Setting, Table, TimedLayer, TimedPoint
from deploy.processing.detection import SsdDecoder
from deploy.processing.postprocess import SegmentationDecoder
from deploy.processing.preprocess import Preprocessing

SIDE = fuzz_calls.SIDE
IMAGES = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "DDS", "EPS", "ICO", "TGA")
"""Formats that are read, and some that are not."""


def hashed(path: Path) -> tuple[int, str]:
    content = path.read_bytes()
    return len(content), hashlib.sha256(content).hexdigest()


def seal_weights(folder: Path) -> None:
    about = folder / "student/model.json"
    told = json.loads(about.read_text())
    told["weights_sha256"] = hashed(folder / "student/model.safetensors")[1]
    about.write_text(json.dumps(told))


def seal_models(folder: Path) -> None:
    about = folder / "bundle/manifest.json"
    told = json.loads(about.read_text())
    for one in told["models"].values():
        one["bytes"], one["sha256"] = hashed(folder / "bundle" / one["file"])
    about.write_text(json.dumps(told))


def seal_signature(folder: Path) -> None:
    """Sign what stands there, whatever it is, as its owner would not."""
    about = folder / "bundle/manifest.json.sig"
    key = read_private_key(folder / "key.pem")
    about.write_text(sign_bytes(_BUNDLE + (folder / BUNDLE).read_bytes(), key).model_dump_json())


def seal_engine(folder: Path) -> None:
    about = folder / "bundle/engines/x.engine.json"
    told = json.loads(about.read_text())
    told["bytes"], told["engine_sha256"] = hashed(folder / "bundle/engines/x.engine")
    about.write_text(json.dumps(told))


SEALS: dict[Callable[[Path], None], str] = {
    seal_weights: "student/model.json",
    seal_models: "bundle/manifest.json",
    seal_signature: "bundle/manifest.json.sig",
    seal_engine: "bundle/engines/x.engine.json",
}
"""Each seal, and the file that it writes to."""


@dataclass(frozen=True)
class Entry:
    """What reads a file.

    Args:
        name: of the entry point; its folder has it too.
        call: a function of ``fuzz_calls``.
        file: what a case takes the place of, in the folder.
        form: how the file is written, which tells the mutations.
        template: the folder that it is tried in a copy of.
        seal: mends the hashes that would end most cases at once.
        also: exit codes that are no fault.
        share: of the cases, where another has 1: less for what takes long.
        anew: whether its process is a new one and not forked.
    """

    name: str
    call: str
    file: str
    form: str
    template: str
    seal: Callable[[Path], None] | None = None
    also: tuple[int, ...] = ()
    share: float = 1.0
    anew: bool = False

    def seeds(self, home: Path) -> list[bytes]:
        """The real files of this form, the one that lies in the folder first."""
        first, more = home / self.name / self.file, home / ".seeds" / self.name
        return [first.read_bytes(), *(path.read_bytes() for path in sorted(more.glob("*")))]


BUNDLE = "bundle/manifest.json"
ENTRIES = (
    Entry("artifact", "inspected", "student/model.json", "json", "run"),
    Entry("weights-of-artifact", "inspected", "student/model.safetensors", "tensors", "run", seal_weights),
    Entry("plan", "planned", "plan.json", "json", "run"),
    Entry("weights", "weighted", "weights.safetensors", "tensors", "network"),
    Entry("weights-of-torch", "weighted", "weights.pth", "bytes", "network-of-torch"),
    Entry("sparse-masks", "masked", "masks.safetensors", "tensors", "network"),
    Entry("sparse-network", "unpacked", "sparse.safetensors", "tensors", "network"),
    Entry("checkpoint", "restored", "state.safetensors", "tensors", "network"),
    Entry("log", "logged", "transfer.csv", "text", "network"),
    Entry("recipe", "recipe", "recipe.yaml", "yaml", "run"),
    Entry("ledger", "resumed", "ledger.json", "json", "run"),
    Entry("report-of-ledger", "reported", "ledger.json", "json", "run", share=0.15),
    Entry("report-of-records", "reported", "bench.json", "json", "run", share=0.15),
    Entry("report-of-recipe", "reported", "recipe.yaml", "yaml", "run", share=0.1),
    Entry("records", "gated", "bench.json", "json", "run", None, (1,)),
    Entry("latency-table", "tabled", "latency.json", "json", "network"),
    Entry("manifest", "predicted", BUNDLE, "json", "run"),
    Entry("manifest-signed", "verified", BUNDLE, "json", "run", seal_signature),
    Entry("manifest-described", "described", BUNDLE, "json", "run"),
    Entry("manifest-of-detector", "predicted", BUNDLE, "json", "detector"),
    Entry("manifest-of-masks", "predicted", BUNDLE, "json", "segmenter"),
    Entry("model", "predicted", "bundle/model.fp32.onnx", "onnx", "detector", seal_models),
    Entry("model-of-masks", "predicted", "bundle/model.fp32.onnx", "onnx", "segmenter", seal_models),
    Entry(
        "model-by-openvino",
        "predicted_by_openvino",
        "bundle/model.fp32.onnx",
        "onnx",
        "detector",
        seal_models,
        share=0.3,
        anew=True,
    ),
    Entry("onnx", "timed", "model.onnx", "onnx", "run", share=0.2),
    Entry("onnx-package", "parsed", "model.onnx", "onnx", "run"),
    Entry("signature", "predicted_if_signed", "bundle/manifest.json.sig", "json", "run"),
    Entry("public-key", "predicted_if_signed", "key.pub", "text", "run"),
    Entry("private-key", "signed", "key.pem", "text", "run"),
    Entry("sidecar", "engine", "bundle/engines/x.engine.json", "json", "run"),
    Entry("engine", "engine", "bundle/engines/x.engine", "bytes", "run", seal_engine),
    Entry("image", "predicted", "photo.png", "image", "run"),
    Entry("image-of-masks", "predicted", "photo.png", "image", "segmenter"),
    Entry("coco", "coco", "a.json", "json", "data"),
    Entry("voc", "voc", "Annotations/0.xml", "xml", "data"),
    Entry("voc-list", "voc", "lists/train.txt", "text", "data"),
    Entry("csv", "csv", "a.csv", "text", "data"),
    Entry("mask", "masks", "masks/0.png", "image", "data"),
    Entry("classes", "masks", "classes.txt", "text", "data"),
    Entry("image-of-tree", "tree", "train/a/0.png", "image", "data"),
)


def make_home(home: Path, run: Path) -> None:
    """Make the folder of every entry point, the seeds and the canaries; ``run`` is a finished run."""
    for name in CANARIES:
        text = f"import pathlib\npathlib.Path(__file__).with_name('{RAN}').touch()\ndef make(*a, **k): pass\n"
        (home / name).write_text(text)
    templates = home / ".templates"
    shutil.copytree(run, templates / "run")
    complete_run(templates / "run")
    make_networks(templates / "network")
    (templates / "network-of-torch").mkdir()
    torch.save(fuzz_calls.NETWORK.state_dict(), templates / "network-of-torch/weights.pth")
    make_data(templates / "data")
    for kind in ("detector", "segmenter"):
        make_bundle(templates / kind, kind)
    for entry in ENTRIES:
        shutil.copytree(templates / entry.template, home / entry.name)
        (more := home / ".seeds" / entry.name).mkdir(parents=True)
        if entry.form == "image":
            for number, content in enumerate(pictures()):
                (more / str(number)).write_bytes(content)
    for name in ("onnx", "onnx-package"):
        shutil.copy(templates / "detector/bundle/model.fp32.onnx", home / ".seeds" / name / "0")


def complete_run(run: Path) -> None:
    """Add what a run folder has not: a plan alone, a photo, a baseline, keys and a signature, an engine."""
    from cryptography.hazmat.primitives import serialization as pem
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    for name in ("deploy", "checkpoints", "logs", "report.html"):
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (run / "plan.json").write_text(fuzz_calls.plan_of(run / "student"))
    shutil.copy(run / "samples/0.png", run / "photo.png")
    shutil.copy(run / "bench.json", run / "base.json")
    shutil.copy(run / "bundle/model.int8.onnx", run / "model.onnx")
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    plain = (pem.PrivateFormat.PKCS8, pem.NoEncryption())
    (run / "key.pem").write_bytes(key.private_bytes(pem.Encoding.PEM, *plain))
    public = key.public_key().public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo)
    (run / "key.pub").write_bytes(public)
    sign(run / "bundle", run / "key.pem")
    engine = run / "bundle/engines/x.engine"
    engine.parent.mkdir()
    engine.write_bytes(b"vtrt" + bytes(60) + b"an engine")
    size, digest = hashed(engine)
    source = hashed(run / "bundle/model.fp32.onnx")[1]
    about = {"engine": "x.engine", "engine_sha256": digest, "bytes": size, "source": "model.fp32.onnx"}
    built = {"precision": "fp32", "profile": (1, 1, 8), "runtime": "tensorrt", "version": "10.4", "target": "sm86"}
    write_sidecar(engine, Sidecar(**about, **built, source_sha256=source, build_seconds=1.0))


def make_networks(folder: Path) -> None:
    """Write the states of a small network: whole, sparse, masks, in the middle of a training; and its log."""
    from safetensors.torch import save_file

    folder.mkdir()
    network = fuzz_calls.NETWORK
    save_file(network.state_dict(), folder / "weights.safetensors")
    kept = {name: torch.ones_like(p, dtype=torch.bool) for name, p in network.named_parameters() if p.dim() > 1}
    Masks(kept).save(folder / "masks.safetensors")
    save_sparse(network, folder / "sparse.safetensors", Masks(kept))
    Checkpoints(folder / "state.safetensors").save(fuzz_calls.training_state())
    setting = Setting(runtime="onnxruntime", version="1.22", device="a phone", precision="fp32", threads=1)
    points = tuple(TimedPoint(inputs=a, outputs=b, ms=a * b / 100) for a in (16, 32) for b in (16, 32))
    layer = TimedLayer(kind="conv", size=(8, 8), kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1))
    Table(entries=(Timed(layer=layer, setting=setting, points=points),)).write(folder / "latency.json")
    (folder / "transfer.csv").write_text("step,name,value\n1,loss,2.5\n2,loss,2.25\n2,val_top1,0.5\n4,loss,1\n")


def pictures() -> list[bytes]:
    """One small image in each format that Pillow writes here, in colour and grey."""
    found = []
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    for name in IMAGES:
        for mode in ("RGB", "L", "P"):
            file = io.BytesIO()
            try:
                Image.fromarray(pixels).convert(mode).save(file, format=name)
            except (OSError, ValueError, KeyError):
                continue
            found.append(file.getvalue())
    return [*found, b"qoif" + bytes(12), b"8BPS\0\1" + bytes(40)]


def make_data(folder: Path) -> None:
    """Write three images with classes, boxes and masks, in every layout that is read."""
    for place in ("images", "masks", "lists", "Annotations", "train/a", "train/b"):
        (folder / place).mkdir(parents=True)
    rng = np.random.default_rng(0)
    boxes = []
    for k in range(3):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / f"images/{k}.png")
        shutil.copy(folder / f"images/{k}.png", folder / f"train/{'ab'[k % 2]}/{k}.png")
        Image.fromarray(rng.integers(0, 2, (20, 24), dtype=np.uint8)).save(folder / f"masks/{k}.png")
        (folder / f"Annotations/{k}.xml").write_text(VOC)
        boxes.append({"id": k, "image_id": k, "category_id": 1 + k % 2, "bbox": [1, 2, 8.5, 9], "iscrowd": 0})
    images = [{"id": k, "file_name": f"{k}.png", "width": 24, "height": 20} for k in range(3)]
    categories = [{"id": 1, "name": "ant"}, {"id": 2, "name": "bee"}]
    whole = {"images": images, "annotations": boxes, "categories": categories}
    (folder / "a.json").write_text(json.dumps(whole, indent=1))
    (folder / "a.csv").write_text("path,label\nimages/0.png,3\nimages/1.png,12\nimages/2.png,3\n")
    (folder / "lists/train.txt").write_text("0\n1\n2\n")
    (folder / "classes.txt").write_text("ground\nsky\n")


VOC = """<annotation>
 <size><width>24</width><height>20</height><depth>3</depth></size>
 <object><name>ant</name><difficult>0</difficult>
  <bndbox><xmin>2</xmin><ymin>3</ymin><xmax>9</xmax><ymax>11.5</ymax></bndbox>
 </object>
</annotation>
"""


def make_bundle(folder: Path, kind: str) -> None:
    """Write a small bundle of a detector or a segmenter, and a photo."""
    folder.mkdir()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (20, 24), dtype=np.uint8)).save(folder / "photo.png")
    rest: dict[str, Any]
    if kind == "detector":
        decoder = SsdDecoder(size=(SIDE, SIDE), grids=((2, 1),), scales=(0.3, 0.6), aspect_ratios=((2.0,),))
        nodes, outputs = heads({"boxes": (8, 4), "logits": (8, 3)})
        rest = {"postprocessing": decoder, "task": "detection"}
    else:
        nodes, outputs = heads({"logits": (2, SIDE, SIDE)})
        rest = {"postprocessing": SegmentationDecoder(), "task": "segmentation"}
    graph = helper.make_graph(nodes[0], "g", [tensor("images", (1, SIDE, SIDE))], outputs, nodes[1])
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
    helper.set_model_props(model, {"niwaki.precision": "fp32"})
    onnx.save(model, folder / "model.onnx")
    grey = Preprocessing(size=(SIDE, SIDE), mode="L", mean=(0.5,), std=(0.25,))
    models = {"fp32": folder / "model.onnx"}
    spec = BundleSpec(models=models, default="fp32", preprocessing=grey, classes=("ant", "bee"), **rest)
    write_bundle(folder / "bundle", spec)


def tensor(name: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])


def heads(shapes: dict[str, tuple[int, ...]]) -> tuple[tuple[list, list], list]:
    """A head for each output: the image's mean times a vector, in the output's shape."""
    rng = np.random.default_rng(2)
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["one"]),
    ]
    kept, outputs = [], []
    for name, shape in shapes.items():
        vector = rng.standard_normal((1, int(np.prod(shape)))).astype(np.float32)
        kept += [
            numpy_helper.from_array(vector, f"{name}.weight"),
            numpy_helper.from_array(np.array([0, *shape]), f"{name}.shape"),
        ]
        nodes += [
            helper.make_node("MatMul", ["one", f"{name}.weight"], [f"{name}.flat"]),
            helper.make_node("Reshape", [f"{name}.flat", f"{name}.shape"], [name]),
        ]
        outputs.append(tensor(name, shape))
    return (nodes, kept), outputs
