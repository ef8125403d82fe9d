"""Which way the arrows point: deploy knows neither training nor kernels, and imports late."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import deploy

ROOT = Path(deploy.__file__).parent
HEAVY = {
    "torch",
    "torchvision",
    "onnx",
    "onnxscript",
    "onnxconverter_common",
    "nncf",
    "openvino",
    "tensorrt_rtx",
}


def imported_at_once(path):
    """Top-level packages a file imports when it is imported itself."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_reaches_up_or_imports_heavy_packages_at_once(path):
    assert not imported_at_once(path) & HEAVY
    every = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(path.read_text()))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert not every & {"compress", "cpp_ext", "pickle"}


def test_importing_deploy_imports_next_to_nothing():
    code = "import sys; before = set(sys.modules); import deploy; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numpy", "pydantic", "PIL", "onnxruntime", *HEAVY} & set(ast.literal_eval(done.stdout))


def test_the_exports_are_there_and_nothing_else_is():
    assert [callable(getattr(deploy, name)) for name in deploy.__all__] == [True] * 9
    assert set(deploy.__all__) <= set(dir(deploy))
    with pytest.raises(AttributeError, match="no attribute 'magic'"):
        deploy.magic  # noqa: B018
