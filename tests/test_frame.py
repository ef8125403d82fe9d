"""What holds the house together: who may import whom, what is locked, what the repository never names."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
TORCH_FREE = ("onnx", "processing", "engines", "bench", "bundle", "latency")
"""The folders of deploy that run, time and gate a bundle; what lies loose beside them is theirs too."""
TORCH_LOADER = ROOT / "deploy/engines/torch.py"  # the one engine that is torch; it loads only when asked for
ONNX_WRITER = ROOT / "deploy/onnx/file.py"  # needs the package onnx, as what calls it does


# --- who may import whom


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in the file, by name from the top."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*above, *filter(None, [node.module])))
            yield module
            yield from (f"{module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.args[0].value


def offenders(paths: list[Path], *packages: str) -> list[str]:
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in paths
        for name in imports(path)
        if name.split(".")[0] in packages
    ]


def runtime_path() -> list[Path]:
    home = ROOT / "deploy"
    return [p for p in sources("deploy") if p.parent == home or p.relative_to(home).parts[0] in TORCH_FREE]


def test_the_packages_are_where_they_are_looked_for():
    assert all(sources(package) for package in ("compress", "deploy", "cpp_ext"))
    assert {path.stem for path in runtime_path()} >= {"bundle", "preprocess", "timing", "gate", "errors", "wire"}


def test_an_import_inside_a_function_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    file = tmp_path / "deploy/engines/x.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "def f():\n    import torch.nn\n    from ..a import b\n    importlib.import_module('compress.prune')\n"
    )
    assert set(imports(file)) == {"torch.nn", "deploy.a", "deploy.a.b", "compress.prune"}


def test_deploy_imports_neither_compress_nor_cpp_ext():
    assert not offenders(sources("deploy"), "compress", "cpp_ext")


def test_cpp_ext_imports_neither_compress_nor_deploy():
    assert not offenders(sources("cpp_ext"), "compress", "deploy")


def test_only_run_and_cli_of_compress_import_deploy():
    allowed = {ROOT / "compress/run", ROOT / "compress/cli"}
    assert not offenders([path for path in sources("compress") if not allowed & set(path.parents)], "deploy")


def test_the_runtime_path_imports_no_torch():
    assert not offenders([path for path in runtime_path() if path != TORCH_LOADER], "torch", "torchvision")


def test_in_deploy_only_the_report_draws():
    others = [path for path in sources("deploy") if ROOT / "deploy/report" not in path.parents]
    assert not offenders(others, "matplotlib")


@pytest.mark.parametrize("module", ["compress", "deploy", "cpp_ext", "compress.cli.app", "deploy.report"])
def test_importing_loads_no_torch(module):
    heavy = {"torch", "torchvision", "onnx", "nncf", "matplotlib"}
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_runtime_path_loads_where_there_is_no_torch():
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in runtime_path()
        if path not in (TORCH_LOADER, ONNX_WRITER)
    ]
    code = (
        "import importlib, sys\n"
        "for name in ('torch', 'torchvision', 'onnx', 'matplotlib', 'yaml'): sys.modules[name] = None\n"
        f"for name in {modules}: importlib.import_module(name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


# --- what is locked


def wanted() -> dict[str, list[Requirement]]:
    """Every range of pyproject.toml that the lock has to satisfy, by package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    lines = list(project["project"]["dependencies"])
    for extra, inside in project["project"]["optional-dependencies"].items():
        lines += inside if extra != "tensorrt" else []
    lines += project["dependency-groups"]["dev"]
    ranges: dict[str, list[Requirement]] = {}
    for requirement in map(Requirement, lines):
        if requirement.name != project["project"]["name"]:
            ranges.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return ranges


def locked(text: str) -> dict[str, list[tuple[str, int]]]:
    """Package -> (version, number of hashes) of each of its entries; a package may differ by Python version."""
    entries: dict[str, list[tuple[str, int]]] = {}
    for entry in re.split(r"\n(?=\S)", text.strip()):
        head = entry.split("\\")[0].split(";")[0].strip()
        name, _, version = head.partition("==")
        entries.setdefault(canonicalize_name(name), []).append((version, entry.count("--hash=sha256:")))
    return entries


def disagreements(ranges: dict[str, list[Requirement]], lock: str) -> list[str]:
    entries = locked(lock)
    said = [f"{name} is not in requirements.lock." for name in ranges if name not in entries]
    for name, versions in entries.items():
        said += [f"{name} {version} has no hash in requirements.lock." for version, count in versions if not count]
        said += [
            f"{name} is locked at {version}, which {requirement} in pyproject.toml does not allow."
            for version, _ in versions
            for requirement in ranges.get(name, [])
            if not requirement.specifier.contains(version, prereleases=True)
        ]
    return said


def test_the_lock_satisfies_pyproject():
    said = disagreements(wanted(), (ROOT / "requirements.lock").read_text("utf-8"))
    assert not said, "\n".join([*said, "Refresh the lock: see CONTRIBUTING.md."])


def test_a_lock_that_disagrees_is_told_in_a_sentence_a_package():
    ranges = {"a": [Requirement("a>=2")], "b": [Requirement("b")], "c": [Requirement("c")]}
    lock = "a==1.0 \\\n    --hash=sha256:00\nb==1.0 ; python_version < '3.12'\n"
    assert disagreements(ranges, lock) == [
        "c is not in requirements.lock.",
        "a is locked at 1.0, which a>=2 in pyproject.toml does not allow.",
        "b 1.0 has no hash in requirements.lock.",
    ]


def test_the_lock_names_no_host():
    assert "://" not in (ROOT / "requirements.lock").read_text("utf-8")


def test_every_range_has_an_upper_end():
    """What was tested is all that is promised; tools of development may move freely."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lines = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    open_ended = [line for line in lines if not any(s.operator == "<" for s in Requirement(line).specifier)]
    assert not open_ended


# --- what the repository never names


def tracked() -> list[Path]:
    """The files that git has or would take."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    except FileNotFoundError:
        pytest.skip("git is not installed, so its list of files cannot be asked for")
    if done.returncode:
        pytest.skip("this is not a git checkout, so there is no list of files")
    return [path for name in done.stdout.split("\0") if name and (path := ROOT / name).is_file()]


# Written in parts, so that this file does not hold what it looks for.
HOSTS = ("pypi" + ".org", "pythonhosted" + ".org", "download.pytorch" + ".org", "pypi.nvidia" + ".com")
FOLDERS = ("/wo" + "rk/", "/ro" + "ot/", "/ho" + "me/")


def test_no_file_names_a_package_index_or_a_folder_of_one_machine():
    found = []
    for path in tracked():
        text = path.read_bytes().decode("utf-8", "ignore")
        # Only after what cannot be part of a name: `frame/work/` is a folder of anybody's.
        found += [f"{path.relative_to(ROOT)} names {host}" for host in HOSTS if host in text]
        found += [
            f"{path.relative_to(ROOT)} names {folder}"
            for folder in FOLDERS
            if re.search(rf"(?<![\w.~}}-]){re.escape(folder)}", text)
        ]
    assert not found


def test_only_the_build_looks_for_the_data_beside_the_checkout():
    beside = "shared" + "/data"
    naming = [path for path in tracked() if beside.encode() in path.read_bytes()]
    assert naming in ([], [ROOT / ".ci/run"])


def test_what_must_not_be_committed_is_not():
    names = {path.relative_to(ROOT).as_posix() for path in tracked()}
    assert "uv.lock" not in names
    assert not [name for name in names if name.endswith((".so", ".o", ".pyc", ".onnx", ".engine", ".pth"))]
