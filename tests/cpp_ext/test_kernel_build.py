"""What setup.py decides: which kernels are built, and the sentence that says why."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from setuptools import Distribution

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def build(monkeypatch):
    """setup.py as a module, in an environment that names no toolkit."""
    for name in (
        "CUDA_HOME",
        "CUDA_PATH",
        "CXX",
        "NIWAKI_CUDA",
        "NIWAKI_KERNELS_BUILD",
        "TORCH_CUDA_ARCH_LIST",
    ):
        monkeypatch.delenv(name, raising=False)
    spec = importlib.util.spec_from_file_location("niwaki_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "niwaki_setup", module)
    spec.loader.exec_module(module)
    return module


def toolkit(home, release):
    """A folder that looks like a CUDA toolkit of that release."""
    (home / "bin").mkdir(parents=True)
    (home / "include").mkdir()
    (home / "include/cuda_runtime.h").touch()
    nvcc = home / "bin/nvcc"
    nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.1'\n")
    nvcc.chmod(0o755)
    return home


def test_a_matching_toolkit_is_found(build, monkeypatch, tmp_path):
    home = toolkit(tmp_path / "cuda", "13.0")
    monkeypatch.setenv("CUDA_HOME", str(home))
    assert build.find_cuda("13.2") == (home, "13.0")


def test_a_toolkit_of_another_major_version_is_refused(build, monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path / "cuda", "12.4")))
    assert build.find_cuda("13.2") == (
        None,
        "nvcc is of CUDA 12.4, torch of 13.2 (set CUDA_HOME to a matching toolkit)",
    )


def test_an_nvcc_without_headers_is_no_toolkit(build, monkeypatch, tmp_path):
    home = toolkit(tmp_path / "cuda", "13.0")
    (home / "include/cuda_runtime.h").unlink()
    monkeypatch.setenv("CUDA_HOME", str(home))
    found, why = build.find_cuda("13.2")
    assert found is None
    assert why == f"no nvcc with its headers in CUDA_HOME={home} (set CUDA_HOME)"


def test_cuda_can_be_turned_off(build, monkeypatch):
    monkeypatch.setenv("NIWAKI_CUDA", "0")
    assert build.find_cuda("13.2") == (None, "NIWAKI_CUDA=0 is set")


def test_a_torch_without_cuda_gets_no_cuda_kernels(build):
    assert build.find_cuda(None) == (None, "this torch was built without CUDA")


def test_an_installation_in_place_compiles_for_no_card_that_is_not_there(build, monkeypatch, tmp_path):
    nvcc = toolkit(tmp_path / "cuda", "13.0") / "bin/nvcc"
    monkeypatch.setattr(build.shutil, "which", lambda _: str(nvcc))
    found, why = build.find_cuda("13.2", in_place=True, cards=False)
    assert found is None
    assert why == "no GPU here (set TORCH_CUDA_ARCH_LIST to build for one elsewhere)"
    assert build.find_cuda("13.2", in_place=True, cards=True)[0] == tmp_path / "cuda"
    assert build.find_cuda("13.2", cards=False)[0] == tmp_path / "cuda"  # a wheel is for other machines
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    assert build.find_cuda("13.2", in_place=True, cards=False)[0] == tmp_path / "cuda"


def test_only_a_toolkit_that_knows_blackwell_builds_for_it(build):
    assert build.default_archs("12.8").endswith("12.0+PTX")
    assert "12.0" not in build.default_archs("12.6")


def test_a_pure_build_can_be_asked_for(build, monkeypatch):
    monkeypatch.setenv("NIWAKI_KERNELS_BUILD", "0")
    assert build.torch_version() == (None, "NIWAKI_KERNELS_BUILD=0 is set")


def test_without_torch_the_build_is_pure(build, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    version, why = build.torch_version()
    assert version is None
    assert "--no-build-isolation" in why


def test_a_python_without_headers_is_told_before_anything_compiles(build, monkeypatch, tmp_path):
    pytest.importorskip("torch")
    monkeypatch.setattr(build, "find_compiler", lambda: ("g++", "g++ 12.2.0"))
    monkeypatch.setattr(build.sysconfig, "get_path", lambda _: str(tmp_path))
    command = build.kernel_build(build.Report(), "")(Distribution())
    with pytest.raises(SystemExit, match=rf"{tmp_path}/Python.h is missing.*-dev.*NIWAKI_KERNELS_BUILD=0"):
        command.run()


def test_a_missing_compiler_is_seen(build, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build.find_compiler() is None
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert build.find_compiler() is None


def test_the_report_is_what_build_info_reads(build, tmp_path, capsys):
    build.Report(torch="2.15.0", why="built nothing").publish(tmp_path / "cpp_ext")
    written = json.loads((tmp_path / "cpp_ext/_build.json").read_text())
    assert written["torch"] == "2.15.0"
    assert written["cpu"] is written["cuda"] is False
    assert capsys.readouterr().out == "niwaki: built nothing\n"


def test_a_wheel_carries_its_bill_of_materials(tmp_path):
    left = (".git", ".venv", "*.so", "_build.json", "runs", "build", "*.egg-info", "__pycache__", "tests", "site")
    shutil.copytree(ROOT, tmp_path / "source", ignore=shutil.ignore_patterns(*left))
    code = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    env = {**os.environ, "NIWAKI_KERNELS_BUILD": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "source", env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (made,) = (tmp_path / "source/dist").glob("*.whl")
    with zipfile.ZipFile(made) as wheel:
        (name,) = (one for one in wheel.namelist() if one.endswith(".cdx.json"))
        bill = json.loads(wheel.read(name))
        recorded = wheel.read(name.replace("sboms/niwaki-vision.cdx.json", "RECORD")).decode()
    assert ".dist-info/sboms/" in name and name in recorded
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert bill["metadata"]["component"]["version"] == project["version"]
    assert [one["properties"][0]["value"] for one in bill["components"]] == project["dependencies"]


def test_the_bill_names_the_kernels_and_what_made_them(build, tmp_path):
    (tmp_path / "_C.abi3.so").write_bytes(b"kernels")
    report = build.Report(torch="2.15.0", compiler="g++ 12.2.0")
    first = build.bill(report, [tmp_path / "_C.abi3.so"])["components"][0]
    assert first["name"] == "cpp_ext/_C.abi3.so"
    assert first["hashes"][0]["content"] == hashlib.sha256(b"kernels").hexdigest()
    assert [one["value"] for one in first["properties"]] == ["g++ 12.2.0", "torch 2.15.0, its stable ABI"]


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("aarch64-linux-gnu-g++") is None, reason="no cross-compiler: install g++-aarch64-linux-gnu"
)
def test_the_loops_compile_to_neon():
    done = subprocess.run(
        ["bash", str(ROOT / "cpp_ext/compile_neon.sh"), "loops"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "NEON additions" in done.stdout
