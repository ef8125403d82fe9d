"""Which way the arrows point: deploy knows neither training nor kernels, imports late and never in a circle."""

import ast
import graphlib
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
    assert [callable(getattr(deploy, name)) for name in deploy.__all__] == [True] * 15
    assert set(deploy.__all__) <= set(dir(deploy))
    with pytest.raises(AttributeError, match="no attribute 'magic'"):
        deploy.magic  # noqa: B018


EVERY_NAME = """
import importlib, pkgutil, types
import compress, deploy

def modules(package):
    return [one.name for one in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]

names = modules(deploy) + modules(compress)
assert len(names) > 100, names
for name in names:
    importlib.import_module(name)
for name in names:
    above, _, own = name.rpartition(".")
    value = getattr(importlib.import_module(above), own)
    assert isinstance(value, types.ModuleType), f"{name} is a {type(value).__name__}, for a function bears its name"
for package in ("deploy", "compress", "compress.prune", "compress.distill"):
    module = importlib.import_module(package)
    for name in module.__all__:
        value = getattr(module, name)
        if (package, name) != ("compress", "prune"):
            assert not isinstance(value, types.ModuleType), f"{package}.{name} is a module"
            assert callable(value) or name.isupper(), f"{package}.{name} is a {type(value).__name__}"
"""


@pytest.mark.heavy
def test_after_every_submodule_is_imported_every_public_name_is_what_it_was():
    done = subprocess.run([sys.executable, "-c", EVERY_NAME], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def imported_modules(path):
    """The modules of deploy that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "deploy":
            # ``from deploy.report import units`` imports the module, ``from deploy.errors import X`` a name of it.
            for alias in node.names:
                inside = ROOT.parent / node.module.replace(".", "/") / alias.name
                is_module = inside.with_suffix(".py").is_file() or inside.is_dir()
                yield f"{node.module}.{alias.name}" if is_module else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "deploy")


def module_of(path):
    return ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")


def test_no_module_and_no_folder_of_deploy_imports_in_a_circle():
    # The package's own names are fetched late, so that it may name what imports from it.
    modules = {module_of(path): set(imported_modules(path)) for path in ROOT.rglob("*.py") if path.parent != ROOT}
    folders = {}
    for name, needs in modules.items():
        folder = name.split(".")[1]
        wanted = {need.split(".")[1] for need in needs if need != "deploy"}
        folders.setdefault(folder, set()).update(wanted - {folder})
    for graph in (modules, folders):
        list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError
    assert "engines" in folders["bench"] and "processing" in folders["onnx"]


def test_no_class_of_deploy_shares_its_name():
    where = {}
    for path in sorted([*ROOT.rglob("*.py"), *(ROOT.parent / "compress").rglob("*.py")]):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                where.setdefault(node.name, []).append(path)
    twice = {name for name, paths in where.items() if len(paths) > 1 and any(ROOT in path.parents for path in paths)}
    assert not twice
