"""What a file says of itself: through every precision, read without the package onnx, the same bytes each time."""

import hashlib
import json
import subprocess
import sys

import pytest
import torch

from deploy.bundle.writing import BundleSpec, write_bundle
from deploy.errors import DeployError
from deploy.exporting.torch_to_onnx import export_onnx
from deploy.onnx.file import read, write
from deploy.onnx.metadata import Metadata
from deploy.processing.preprocess import Preprocessing
from deploy.quantization.half import bf16_from_fp32, fp16_from_fp32
from deploy.quantization.int8 import int8_from_fp32, signed_from_unsigned

pytestmark = pytest.mark.heavy

CLASSES = ("ant", "bee, striped", "[c]", "déjà", "e")
PREPARED = Preprocessing(size=(16, 16), mode="L", mean=(0.45,), std=(0.225,))
ABOUT = Metadata(model="student", classes=CLASSES, preprocessing=PREPARED, weights_sha256="0f" * 32)
MAKERS = {
    "fp32": lambda model, images, at: export_onnx(
        model, torch.from_numpy(images), at / "fp32.onnx", metadata=ABOUT.properties()
    ),
    "fp16": lambda model, images, at: fp16_from_fp32(at / "fp32.onnx", at / "fp16.onnx", list(images)),
    "bf16": lambda model, images, at: bf16_from_fp32(at / "fp32.onnx", at / "bf16.onnx"),
    "int8": lambda model, images, at: int8_from_fp32(at / "fp32.onnx", at / "int8.onnx", list(images)),
    "signed": lambda model, images, at: signed_from_unsigned(at / "int8.onnx", at / "signed.onnx"),
}


@pytest.fixture(scope="module")
def twice(tmp_path_factory, cnn, images):
    """Every precision, made twice from the same network."""
    # Of the range that the preprocessing gives, -2 to 2.44.
    images = images.clip(-2, 2.44)
    made = []
    for _ in range(2):
        folder = tmp_path_factory.mktemp("about")
        made.append({name: maker(cnn, images, folder) for name, maker in MAKERS.items()})
    return made


@pytest.mark.parametrize("name", list(MAKERS))
def test_every_precision_keeps_it_and_is_the_same_bytes_again(name, twice):
    first, again = (made[name] for made in twice)
    found = Metadata.from_file(first)
    assert (found.model, found.classes, found.preprocessing, found.weights_sha256) == (
        "student",
        CLASSES,
        PREPARED,
        "0f" * 32,
    )
    assert found.precision == ("int8" if name == "signed" else name)
    source = {"fp32": None, "signed": "int8"}.get(name, "fp32")
    assert found.source_sha256 == (source and hashlib.sha256(twice[0][source].read_bytes()).hexdigest())
    assert first.read_bytes() == again.read_bytes()


def test_the_properties_stand_in_the_order_of_their_names(twice):
    names = [prop.key for prop in read(twice[0]["fp32"]).metadata_props]
    assert names == sorted(names)
    assert len(names) == 5


def test_reading_it_needs_neither_torch_nor_onnx(twice):
    code = (
        "import sys; sys.modules['onnx'] = sys.modules['torch'] = None\n"
        "from pathlib import Path; from deploy.onnx.metadata import Metadata\n"
        "print(Metadata.from_file(Path(sys.argv[1])).model_dump_json())"
    )
    run = [sys.executable, "-c", code, str(twice[0]["int8"])]
    said = json.loads(subprocess.run(run, capture_output=True, text=True, check=True).stdout)
    assert tuple(said["classes"]) == CLASSES


def test_a_file_without_properties_says_nothing(files):
    found = Metadata.from_file(files["fp32"])
    assert (found.model, found.classes, found.preprocessing, found.precision) == (None, None, None, "fp32")


@pytest.mark.parametrize("said", [{"niwaki.classes": "ant,bee"}, {"niwaki.preprocessing": "{}"}])
def test_properties_that_cannot_be_read_are_one_sentence(said, files, tmp_path):
    path = write(read(files["fp32"]), tmp_path / "m.onnx", said)
    with pytest.raises(DeployError, match=r"properties that cannot be read \(.*\); export it again"):
        Metadata.from_file(path)


@pytest.mark.parametrize(
    ("given", "says"),
    [({"classes": CLASSES[::-1]}, "classes"), ({"preprocessing": Preprocessing(size=(16, 16), mode="L")}, "preproc")],
)
def test_a_bundle_that_contradicts_its_file_is_refused(given, says, twice, tmp_path):
    rest = {"classes": CLASSES, "preprocessing": PREPARED}
    models = {key: twice[0][key] for key in ("fp32", "int8")}
    write_bundle(tmp_path / "fits", BundleSpec(models=models, default="fp32", **rest))
    with pytest.raises(DeployError, match=f"states {says}"):
        write_bundle(tmp_path / "not", BundleSpec(models=models, default="fp32", **{**rest, **given}))
    assert not (tmp_path / "not").exists()


def test_a_number_in_place_of_a_text_is_no_onnx_and_no_memory(tmp_path):
    def field(number, content):
        head = bytes([number << 3 | 2]) if isinstance(content, bytes) else bytes([number << 3])
        return head + (bytes([len(content)]) + content if isinstance(content, bytes) else content.value)

    class Varint:
        value = b"\xff\xff\xff\xff\xff\xff\x1f"  # 2**47 - 1

    for graph in (field(1, field(1, Varint())), field(1, field(4, Varint())), field(5, field(8, Varint()))):
        (tmp_path / "x.onnx").write_bytes(field(7, graph))
        with pytest.raises(DeployError, match="is not a valid ONNX file"):
            Metadata.from_file(tmp_path / "x.onnx")
