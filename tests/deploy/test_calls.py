"""The calls of ``deploy``: what they take images in, and the way from a module to a bundle."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import deploy
from deploy.bench.records import Bench
from deploy.errors import DeployError
from deploy.onnx.metadata import Metadata
from deploy.processing.arrays import arrays_of

pytestmark = pytest.mark.heavy

CLASSES = tuple("abcde")
PREPARED = {"size": (16, 16), "mode": "L", "mean": (0.5,), "std": (0.25,)}


@pytest.fixture(scope="module")
def loader(images):
    """Batches of images, within what ``PREPARED`` makes, with labels."""
    labels = torch.arange(len(images)) % 5
    return DataLoader(TensorDataset(torch.from_numpy(images).clamp(-2, 2), labels), batch_size=8)


@pytest.mark.parametrize(
    "given",
    [
        lambda a: a,
        torch.from_numpy,
        list,
        lambda a: [torch.from_numpy(one) for one in a],
        lambda a: [a[:20], a[20:]],
        lambda a: DataLoader(TensorDataset(torch.from_numpy(a)), batch_size=8),
        lambda a: DataLoader([{"pixel_values": one, "label": 0} for one in a], batch_size=8),
        lambda a: ((part, None) for part in (a[:20], a[20:])),
        lambda a: [SimpleNamespace(images=torch.from_numpy(a))],
        lambda a: a.astype(np.float64),
    ],
    ids=["array", "tensor", "list", "tensors", "batches", "loader", "mappings", "pairs", "objects", "float64"],
)
def test_images_are_taken_in_whatever_holds_them(images, given):
    found = arrays_of(given(images))
    rows = np.concatenate([one if one.ndim == 4 else one[None] for one in found])
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, images)


def test_a_loader_is_read_no_further_than_asked(images):
    read = []

    def batches():
        for k in range(4):
            read.append(k)
            yield images[8 * k : 8 * k + 8]

    assert sum(len(one) for one in arrays_of(batches(), 12)) == 12
    assert read == [0, 1]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (np.zeros((2, 1, 4, 4), np.uint8), "uint8.*float32"),
        ([], "0 images"),
        ([{"label": 3}], "with the keys label.*pixel_values"),
        (["a.png"], "A batch is a str"),
        (7, "came as int"),
    ],
)
def test_what_is_no_images_is_refused_in_a_sentence(given, said):
    with pytest.raises(DeployError, match=said):
        arrays_of(given)


def test_a_module_goes_to_int8_by_a_loader(tmp_path, resnet, loader):
    fp32 = deploy.export(resnet, loader, tmp_path / "m.onnx", classes=CLASSES, preprocessing=PREPARED)
    stated = Metadata.from_file(fp32)
    assert stated.classes == CLASSES
    assert stated.preprocessing.size == (16, 16)
    (row,) = deploy.parity(resnet, fp32, loader, batches=(2,))
    assert row["max_relative_error"] < 1e-4
    int8 = deploy.quantize(fp32, tmp_path / "m.int8.onnx", loader)
    assert Metadata.from_file(int8).precision == "int8"
    with deploy.load_engine(int8) as engine:
        (row,) = deploy.parity(resnet, engine, loader, batches=(2,))
    assert 10 < row["snr_db"] < 100
    assert Metadata.from_file(deploy.quantize(fp32, tmp_path / "m.fp16.onnx", loader, precision="fp16")).precision
    with pytest.raises(DeployError, match="quantise to int8 or fp16"):
        deploy.quantize(fp32, tmp_path / "m.int4.onnx", loader, precision="int4")


def test_a_bundle_is_written_from_a_module_in_one_call(tmp_path, resnet, loader, picture):
    folder = deploy.write_bundle(
        resnet, tmp_path / "b", loader, classes=CLASSES, preprocessing=PREPARED, precisions=("fp32", "int8")
    )
    with deploy.load(folder) as bundle:
        assert bundle.precision == "int8"
        assert bundle.predict([picture])[0]["class"] in CLASSES


def test_a_bundle_is_written_from_files_that_say_what_they_are(tmp_path, resnet, loader):
    fp32 = deploy.export(resnet, loader, tmp_path / "m.onnx", classes=CLASSES, preprocessing=PREPARED)
    with deploy.load(deploy.write_bundle(fp32, tmp_path / "one")) as bundle:
        assert (bundle.classes, bundle.precision) == (CLASSES, "fp32")
    fp16 = deploy.quantize(fp32, tmp_path / "m.fp16.onnx", loader, precision="fp16")
    with deploy.load(deploy.write_bundle({"fp32": fp32, "fp16": fp16}, tmp_path / "two")) as bundle:
        assert bundle.precision == "fp16"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"classes": None}, "needs classes"),
        ({"preprocessing": None}, "needs preprocessing"),
        ({"preprocessing": {"size": (16, 0)}}, "between 1 and 4096"),
        ({"precisions": ("int8",)}, "name fp32"),
        ({"images": None}, "give images"),
    ],
)
def test_a_bundle_without_a_part_is_refused(tmp_path, resnet, images, change, said):
    given = {"images": images, "classes": CLASSES, "preprocessing": PREPARED} | change
    with pytest.raises(DeployError, match=said):
        deploy.write_bundle(resnet, tmp_path / "b", **given)
    assert not (tmp_path / "b").exists()


def test_the_example_goes_from_a_loop_of_ones_own_to_a_gate_in_less_than_forty_lines(tmp_path):
    script = Path(__file__).resolve().parents[2] / "examples/pipeline.py"
    assert len(script.read_text().splitlines()) < 40
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script, tmp_path], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("True")
    names = {"small", "bundle", "0.onnx", "1.onnx", "int8.onnx", "bench.json"}
    assert {path.name for path in tmp_path.iterdir()} == names
    with deploy.load(tmp_path / "bundle") as bundle:
        assert (bundle.classes, bundle.precision) == (("dark", "bright"), "int8")
    dense, student = Bench.from_file(tmp_path / "bench.json").records
    assert (dense.precision, student.precision, student.reference) == ("fp32", "int8", dense.name)
