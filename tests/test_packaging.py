"""The wheels, each in a new environment: with kernels under the oldest torch, and without torch at the edge."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
NAMED = ("VIRTUAL_ENV", "UV_PROJECT_ENVIRONMENT", "PYTHONPATH", "PYTHONHOME", "CXX")
pytestmark = [pytest.mark.network, pytest.mark.slow]


def uv() -> str:
    found = shutil.which("uv")
    if found is None:
        pytest.skip("uv is not on PATH: pip install uv")
    return found


def tried(*command: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess:
    """Run a command in the caller's environment less what names another Python, with ``env`` on top."""
    kept = {key: value for key, value in os.environ.items() if key not in NAMED}
    told = [*map(str, command)]
    done = subprocess.run(told, capture_output=True, text=True, env=kept | env, cwd=cwd, check=False)
    if done.returncode and re.search(r"error sending request|dns error|Failed to fetch|timed out", done.stderr, re.I):
        pytest.skip("the package index cannot be reached from here")
    return done


def step(*command: str | Path, cwd: Path, **env: str) -> str:
    """The output of a command that has to succeed."""
    done = tried(*command, cwd=cwd, **env)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done.stdout


def wheel(folder: Path, *options: str, **env: str) -> Path:
    """The wheel of a copy of the checkout that holds nothing built."""
    left = (".git", ".venv", "*.so", "_build.json", "runs", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, folder / "source", ignore=shutil.ignore_patterns(*left))
    command = (uv(), "build", "--wheel", "--python", sys.executable, "--out-dir", folder / "dist", *options)
    step(*command, folder / "source", cwd=folder, **env)
    (made,) = (folder / "dist").glob("*.whl")
    return made


def environment(folder: Path) -> Path:
    """The folder of the commands of a new, empty environment."""
    step(uv(), "venv", "--python", sys.executable, folder / "env", cwd=folder)
    return folder / "env" / ("Scripts" if os.name == "nt" else "bin")


def required_checks(doctor: str) -> list[dict]:
    return [check for check in json.loads(doctor) if check["required"]]


# --- with kernels

KERNELS_AGAINST_REFERENCES = """
import pathlib, shutil, sys
import cpp_ext, torch

assert not any(map(shutil.which, ("g++", "c++", "clang++", "cc", "nvcc"))), "a compiler is on PATH"
assert pathlib.Path(cpp_ext.__file__).is_relative_to(sys.prefix), cpp_ext.__file__
torch.manual_seed(0)
for dtype in (torch.float32, torch.bfloat16, torch.float64):
    x = torch.randn(64, 48, 3, 3).to(dtype)
    assert cpp_ext.kernels_in_use("cpu") != "reference"
    for dim in (0, 1):
        torch.testing.assert_close(cpp_ext.filter_norm(x, 2.0, dim), cpp_ext.filter_norm_reference(x, 2.0, dim))
    keep = torch.arange(0, 48, 3)
    assert torch.equal(cpp_ext.channel_slice(x, keep, keep), cpp_ext.channel_slice_reference(x, keep, keep))
print(torch.__version__, cpp_ext.build_info()["build"]["torch"])
"""


def test_a_wheel_with_kernels_runs_under_the_oldest_torch_where_there_is_no_compiler(tmp_path):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    (torch,) = (r for r in map(Requirement, project["optional-dependencies"]["compress"]) if r.name == "torch")
    (oldest,) = (s.version for s in torch.specifier if s.operator == ">=")
    made = wheel(tmp_path, "--no-build-isolation", NIWAKI_CUDA="0")
    assert "-cp311-abi3-" in made.name

    scripts = environment(tmp_path)
    # The CUDA libraries that are here already, which a CPU never calls: the oldest torch's own are 2 GB more to fetch.
    here = step(uv(), "pip", "freeze", "--python", sys.executable, cwd=tmp_path).splitlines()
    libraries = tmp_path / "libraries.txt"
    libraries.write_text("\n".join(line for line in here if re.match(r"nvidia-|triton==", line)))
    command = (uv(), "pip", "install", "--python", scripts / "python", "--overrides", libraries)
    step(*command, made, f"torch=={oldest}.*", cwd=tmp_path)

    alone = {"PATH": str(scripts)}
    said = step(scripts / "python", "-c", KERNELS_AGAINST_REFERENCES, cwd=tmp_path, **alone).split()
    assert said[0].startswith(oldest)
    assert not said[1].startswith(oldest), "built and run with one torch, which shows nothing"
    doctor = step(scripts / "niwaki", "doctor", "--json", cwd=tmp_path, **alone)
    assert all(check["ok"] for check in required_checks(doctor))
    (kernels,) = (check for check in json.loads(doctor) if check["name"] == "Kernels for the CPU")
    assert kernels["ok"]
    assert "runs as" in kernels["found"]


def test_a_wheel_without_kernels_can_be_asked_for(tmp_path):
    made = wheel(tmp_path, "--no-build-isolation", NIWAKI_KERNELS_BUILD="0")
    assert made.name.endswith("-py3-none-any.whl")


# --- at the edge


def tiny_bundle(folder: Path) -> Path:
    """A bundle that answers by brightness: dark, grey or bright."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from deploy.bundle.writing import BundleSpec, write_bundle
    from deploy.processing.preprocess import Preprocessing

    weight = numpy_helper.from_array(np.array([[-8.0, 0.0, 8.0]], np.float32), "weight")
    bias = numpy_helper.from_array(np.array([4.0, 2.0, -4.0], np.float32), "bias")
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["image"], ["mean"]),
            helper.make_node("Flatten", ["mean"], ["flat"]),
            helper.make_node("Gemm", ["flat", "weight", "bias"], ["logits"]),
        ],
        "brightness",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [weight, bias],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, folder / "brightness.onnx")
    return write_bundle(
        folder / "bundle",
        BundleSpec(
            models={"fp32": folder / "brightness.onnx"},
            default="fp32",
            preprocessing=Preprocessing(size=(8, 8), mode="L"),
            classes=("dark", "grey", "bright"),
        ),
    )


@pytest.fixture(scope="module")
def edge(tmp_path_factory):
    """A folder with a bundle, an image, and in env the base install alone, made with neither torch nor a compiler."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("edge")
    made = wheel(folder, CXX="no-such-compiler")
    assert made.name.endswith("-py3-none-any.whl"), "built without torch, the wheel has to be pure"
    step(uv(), "pip", "install", "--python", environment(folder) / "python", made, cwd=folder)
    tiny_bundle(folder)
    Image.new("L", (8, 8), 250).save(folder / "snow.png")
    return folder


def niwaki(edge: Path, *arguments: str) -> subprocess.CompletedProcess:
    return tried(edge / "env" / ("Scripts" if os.name == "nt" else "bin") / "niwaki", *arguments, cwd=edge)


def python(edge: Path) -> Path:
    return edge / "env" / ("Scripts/python" if os.name == "nt" else "bin/python")


@pytest.mark.parametrize("name", ["torch", "matplotlib", "onnx"])
def test_the_base_install_brings_nothing_of_the_training_side(edge, name):
    assert tried(python(edge), "-c", f"import {name}", cwd=edge).returncode == 1, f"{name} came along"


def test_the_base_install_runs_a_bundle(edge):
    (answer,) = json.loads(niwaki(edge, "predict", "bundle", "snow.png", "--json").stdout)
    assert answer["class"] == "bright"
    doctor = niwaki(edge, "doctor", "--json")
    assert all(check["ok"] for check in required_checks(doctor.stdout))


def test_the_base_install_times_a_bundle_and_gates_the_record(edge):
    done = niwaki(edge, "bench", "bundle", "brightness.onnx", "--rounds", "5", "--out", "record.json")
    assert done.returncode == 0, done.stderr
    record = json.loads((edge / "record.json").read_text())
    assert [r["status"] for r in record["records"]] == ["measured", "measured"]
    done = niwaki(edge, "gate", "record.json", "--baseline", "record.json")
    assert done.returncode == 0, done.stderr


def test_without_a_builder_an_engine_is_refused_in_one_sentence(edge):
    done = niwaki(edge, "build", "bundle", "--target", "sm86")
    assert done.returncode == 3
    assert done.stderr.startswith("niwaki: Building an engine needs the package tensorrt or tensorrt_rtx")
    assert len(done.stderr.splitlines()) == 1
    assert not (edge / "bundle/engines").exists()


@pytest.mark.tensorrt
@pytest.mark.skipif(sys.platform != "linux", reason="TensorRT-RTX is installed on Linux alone")
def test_with_a_builder_alone_an_engine_is_built(edge, tmp_path):
    """No torch, no onnx, no ONNX Runtime: in an environment of its own."""
    (made,) = (edge / "dist").glob("*.whl")
    command = (uv(), "pip", "install", "--python", environment(tmp_path) / "python")
    step(*command, made, "tensorrt-rtx-cu13<2", cwd=tmp_path)
    step(uv(), "pip", "uninstall", "--python", python(tmp_path), "onnxruntime", cwd=tmp_path)
    shutil.copytree(edge / "bundle", tmp_path / "bundle")
    shutil.copy(edge / "snow.png", tmp_path)
    edge = tmp_path
    done = niwaki(edge, "build", "bundle", "--target", "sm86", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["target"], told["precision"]) == ("sm86", "fp32")
    assert (edge / told["path"]).stat().st_size == told["bytes"]
    done = niwaki(edge, "predict", "bundle", "snow.png", "--runtime", "onnxruntime")
    assert done.returncode == 3
    assert done.stderr.startswith("niwaki: The package onnxruntime cannot be imported here")
