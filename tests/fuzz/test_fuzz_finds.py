"""What the fuzzer found, by name."""

import json
import struct
import tracemalloc
import zlib
from contextlib import redirect_stdout
from types import SimpleNamespace

import fuzz_calls
import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import save_file

from compress.cli.bundle import _print_json
from compress.cli.common import say
from compress.errors import ArtifactError, said_by
from compress.sparse.storage import load_sparse
from compress.train.checkpoint import Checkpoints
from compress.train.log import Log
from deploy.bundle.manifest import BundledFile
from deploy.engines import load_engine
from deploy.errors import DeployError
from deploy.onnx.file import read
from deploy.processing.preprocess import Preprocessing
from deploy.report.view import read_recipe


@pytest.mark.parametrize(
    "content", [b"step,name,value\n\xff,loss,1\n", b"step\n" + b'"' + b"a" * 200_000, b"s\n\0,b,c\n"]
)
def test_a_log_that_is_no_log_is_a_sentence(content, tmp_path):
    (tmp_path / "transfer.csv").write_bytes(content)
    with pytest.raises(ArtifactError, match="is not a log of this version; remove it"):
        Log(tmp_path, "transfer").begin(3)


@pytest.mark.parametrize("key", ["python", "numpy", "made_by", "rank", "kept"])
@pytest.mark.parametrize("value", [[], [3, [1 << 80] * 625, None], {"a": 1}, 10**400, None])
def test_a_checkpoint_of_other_values_is_a_sentence_or_restored(key, value, tmp_path):
    path = tmp_path / "state.safetensors"
    Checkpoints(path).save(fuzz_calls.training_state())
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["niwaki"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    save_file(tensors, path, {"niwaki": json.dumps(about | {key: value})})
    generators = torch.get_rng_state(), np.random.get_state()
    try:
        Checkpoints(path).restore(fuzz_calls.training_state())
    except ArtifactError as error:
        assert "cannot be used (" in str(error) and "()" not in str(error)
    else:
        assert key in ("rank", "kept", "made_by")
    finally:
        torch.set_rng_state(generators[0])
        np.random.set_state(generators[1])


def test_an_error_that_says_nothing_is_named():
    assert said_by(KeyError()) == "KeyError"
    assert said_by(ValueError("\n a\n b")) == "a"


def test_a_name_too_long_for_a_file_is_refused_before_it_is_looked_for():
    told = {"bytes": 1, "sha256": "0" * 64}
    assert BundledFile(file="a" * 255, **told)
    with pytest.raises(ValidationError, match="at most 255 characters"):
        BundledFile(file="a" * 256, **told)


def test_a_sentence_keeps_its_ends_whatever_a_file_says(capsys):
    say(f"It is {'9' * 5000}; correct it.")
    said = capsys.readouterr().err
    assert said.startswith("niwaki: It is 999") and said.endswith("9; correct it.\n") and " ... " in said
    assert len(said) < 1300


def test_a_few_bytes_ask_for_no_gigabytes(tmp_path):
    about = {"format": "niwaki-sparse-1", "shapes": {"a": [1 << 25], "b": [1 << 25], "c": [1]}}
    nothing = torch.zeros(0, dtype=torch.uint8)
    parts = {f"{name}:{kind}": nothing.clone() for name in "abc" for kind in ("values", "gaps")}
    save_file(parts, tmp_path / "a.safetensors", {"niwaki": json.dumps(about)})
    with pytest.raises(ArtifactError, match="'c' is to have more weights than a file of this size tells of"):
        load_sparse(tmp_path / "a.safetensors")


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(("takes", "returns"), [("elsewhere", "y"), ("x", "elsewhere"), ("y", "y")])
def test_a_graph_that_takes_what_nothing_makes_is_refused(takes, returns, runtime, tmp_path):
    pytest.importorskip(runtime)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", returns)]
    graph = helper.make_graph([helper.make_node("Relu", [takes], ["y"])], "g", ends[:1], ends[1:])
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(DeployError, match=r"takes '(elsewhere|y)', which nothing in it makes"):
        load_engine(tmp_path / "m.onnx", runtime=runtime)


def test_a_large_mask_is_printed_row_by_row(capsys):
    mask = np.arange(12, dtype=np.uint8).reshape(3, 4)
    found = [{"file": "a.png", "mask": mask}, {"file": "b.png", "class": "c"}, {"file": None, "mask": mask[:1]}]
    _print_json(found)
    said = json.loads(capsys.readouterr().out)
    assert said == [{**one, "mask": one["mask"].tolist()} if "mask" in one else one for one in found]
    _print_json([])
    assert json.loads(capsys.readouterr().out) == []
    nowhere = SimpleNamespace(write=len, flush=lambda: None)
    tracemalloc.start()
    try:
        with redirect_stdout(nowhere):
            _print_json([{"file": "a.png", "mask": np.zeros((1000, 1000), np.uint8)}])
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


def test_an_image_of_palette_numbers_without_a_palette_is_a_sentence(tmp_path):
    def part(kind, content):
        said = kind + content
        return len(content).to_bytes(4, "big") + said + zlib.crc32(said).to_bytes(4, "big")

    header = struct.pack(">IIBBBBB", 2, 2, 8, 3, 0, 0, 0)
    pixels = zlib.compress(b"\0\1\2\0\3\4")
    parts = part(b"IHDR", header) + part(b"IDAT", pixels) + part(b"IEND", b"")
    (tmp_path / "photo.png").write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    with pytest.raises(DeployError, match=r"photo\.png is a damaged image .*palette"):
        Preprocessing(size=(2, 2)).load(tmp_path / "photo.png")


def test_an_operator_whose_name_is_no_text_is_a_sentence(tmp_path):
    node = helper.make_node("Relu", ["x"], ["y"])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    whole = helper.make_model(helper.make_graph([node], "g", ends[:1], ends[1:])).SerializeToString()
    (tmp_path / "m.onnx").write_bytes(whole.replace(b"Relu", b"Re\x80u"))
    with pytest.raises(DeployError, match="is not a valid ONNX file"):
        read(tmp_path / "m.onnx")


def test_a_recipe_of_half_a_surrogate_pair_makes_no_page_that_cannot_be_written():
    assert read_recipe('l:\n  "\\uD800": f') == {}
    assert read_recipe("l: {d: f}") == {"l": {"d": "f"}}
