"""Keep the house walkable: no circle of imports, one name for a class, few loose files, short files and functions."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("compress", "deploy", "cpp_ext")
SOURCES = (*PACKAGES, "tests", "benchmarks", "examples", "setup.py")
"""Where the project's Python lies; environments and builds lie elsewhere."""

LOOSE = {"compress": 8, "deploy": 6}
LONGEST_FILE, LONGEST_FUNCTION, MOST_PARAMETERS = 450, 60, 7
TORCH_SIGNATURES = {"compress/prune/attention.py": {"MultiheadAttention.forward"}}
"""Methods that take the place of torch's and have to take its arguments."""


def files(root: Path, *places: str) -> list[Path]:
    every = (root / place for place in places)
    return sorted(path for place in every for path in ([place] if place.is_file() else place.rglob("*.py")))


# --- circles


def module(root: Path, path: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def imported(root: Path, path: Path) -> Iterator[tuple[str, str]]:
    """Each import of a file, in functions and for type checkers too: a module, and the name taken from it or ""."""
    package = path.relative_to(root).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((name.name, "") for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            yield from ((".".join((*above, *filter(None, [node.module]))), name.name) for name in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                yield str(node.args[0].value), ""


def graph(root: Path, *packages: str) -> dict[str, set[str]]:
    """Module -> the modules that it imports.

    Importing a module runs the ``__init__`` of each package above it, so each of these is imported too; not so the
    packages that the importing module lies in itself, which run before it does.
    """
    known = {module(root, path): path for path in files(root, *packages)}
    edges: dict[str, set[str]] = {name: set() for name in known}
    for name, path in known.items():
        for target, taken in imported(root, path):
            whole = f"{target}.{taken}"
            # `from package import submodule` needs the submodule, `from package import name` the package.
            end = whole if whole in known else target
            above = {end[:k] for k, character in enumerate(end) if character == "."}
            edges[name] |= {end} | {package for package in above if not f"{name}.".startswith(f"{package}.")}
        edges[name] &= known.keys() - {name}
    return edges


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one module, by Tarjan's method."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for other in sorted(edges[name]):
            if other not in order:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], order[other])
        if low[name] == order[name]:
            start = stack.index(name)
            component = sorted(stack[start:])
            del stack[start:]
            if len(component) > 1:
                found.append(component)

    for name in sorted(edges):
        if name not in order:
            visit(name)
    return sorted(found)


def test_there_is_no_circle_of_imports():
    edges = graph(ROOT, *PACKAGES)
    assert len(edges) > 100
    said = [
        "; ".join(f"{name} imports {sorted(edges[name] & {*circle})}" for name in circle) for circle in circles(edges)
    ]
    assert not said, "\n".join(said)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("from p import b", ["p.a", "p.b"]),
        ("import p.b", ["p.a", "p.b"]),
        ("def f():\n    from .b import thing", ["p.a", "p.b"]),
        ("import importlib\nimportlib.import_module('p.b')", ["p.a", "p.b"]),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import p.b", ["p.a", "p.b"]),
        ("import q.c", ["p.a", "p.b", "q", "q.c"]),
        ("import json", None),
    ],
)
def test_a_circle_is_found_wherever_the_import_stands(tmp_path, text, expected):
    """p.b imports p.a at its top; q.c imports p.b, and what runs when q.c is imported is q's ``__init__`` too."""
    written = {
        "p/__init__": "",
        "p/a": text,
        "p/b": "import p.a",
        "q/__init__": "from q.c import thing",
        "q/c": "import p.b",
    }
    for name, content in written.items():
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    found = circles(graph(tmp_path, "p", "q"))
    assert found == ([expected] if expected else [])


def test_a_package_that_offers_its_modules_is_no_circle(tmp_path):
    (tmp_path / "p").mkdir()
    for name, content in {"__init__": "from p.a import x", "a": "from p import b", "b": "x = 1"}.items():
        (tmp_path / "p" / f"{name}.py").write_text(content)
    assert graph(tmp_path, "p") == {"p": {"p.a"}, "p.a": {"p.b"}, "p.b": set()}


# --- names


@pytest.mark.parametrize("package", ["compress", "deploy"])
def test_no_two_classes_of_a_package_have_one_name(package):
    homes: dict[str, list[str]] = {}
    for path in files(ROOT, package):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(path.relative_to(ROOT).as_posix())
    assert homes
    assert {name: where for name, where in homes.items() if len(where) > 1} == {}


# --- sizes


@pytest.mark.parametrize("package", LOOSE)
def test_few_files_lie_loose(package):
    loose = sorted(path.name for path in (ROOT / package).glob("*.py"))
    assert len(loose) <= LOOSE[package], f"{package} has {len(loose)} loose files: {', '.join(loose)}"


def assert_none_above(limit: int, sizes: dict[str, int]) -> None:
    above = [f"{name}: {size}, limit {limit}" for name, size in sizes.items() if size > limit]
    assert not above, "\n" + "\n".join(above)


def test_no_file_is_long():
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text("utf-8").splitlines()) for path in files(ROOT, *SOURCES)
    }
    assert len(lengths) > 200
    assert_none_above(LONGEST_FILE, lengths)


Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.Module) -> Iterator[tuple[str, Function]]:
    """Every function of a module, inner ones too, by its path in it."""

    def inside(node: ast.AST, path: str) -> Iterator[tuple[str, Function]]:
        for child in ast.iter_child_nodes(node):
            named = isinstance(child, Function | ast.ClassDef)
            below = f"{path}.{child.name}".lstrip(".") if named else path
            if isinstance(child, Function):
                yield below, child
            yield from inside(child, below)

    return inside(tree, "")


def counted(where: str, name: str, function: Function) -> int:
    """How many parameters are counted, ``self`` included; ``*args`` and ``**kwargs`` are none.

    What a public entry point takes by keyword alone is not counted: it is named at each call. Entry points are the
    public functions of a module and the constructors of its public classes. Nor is what others call by name: the
    options of a command (``compress/cli``) and what pytest and hypothesis give a test.
    """
    own = function.args
    kind, _, method = name.rpartition(".")
    public = not name.startswith("_")
    if public and not kind and (where.startswith("compress/cli/") or name.startswith("test_")):
        return 0
    entry = public and (not kind or (method == "__init__" and "." not in kind))
    return len(own.posonlyargs) + len(own.args) + (0 if entry else len(own.kwonlyargs))


@cache
def every_function() -> tuple[tuple[str, str, Function], ...]:
    return tuple(
        (path.relative_to(ROOT).as_posix(), name, function)
        for path in files(ROOT, *SOURCES)
        for name, function in functions(ast.parse(path.read_text("utf-8")))
    )


def test_no_function_is_long():
    found = {f"{w}: {n}": (f.end_lineno or 0) - f.lineno + 1 for w, n, f in every_function()}
    assert len(found) > 2000
    assert_none_above(LONGEST_FUNCTION, found)


def test_no_function_takes_many_parameters():
    found = {
        f"{where}: {name}": counted(where, name, function)
        for where, name, function in every_function()
        if name not in TORCH_SIGNATURES.get(where, ())
    }
    assert_none_above(MOST_PARAMETERS, found)


@pytest.mark.parametrize(
    ("where", "text", "expected"),
    [
        ("deploy/a.py", "def f(a, b, /, c, *rest, d, **named): ...", {"f": 3}),
        ("deploy/a.py", "def _f(a, *, b): ...", {"_f": 2}),
        ("deploy/a.py", "class A:\n    def __init__(self, a, *, b): ...", {"A.__init__": 2}),
        ("deploy/a.py", "class A:\n    def run(self, *, b): ...", {"A.run": 2}),
        ("deploy/a.py", "class _A:\n    def __init__(self, *, b): ...", {"_A.__init__": 2}),
        ("deploy/a.py", "def f(a):\n    def inner(b, *, c): ...", {"f": 1, "f.inner": 2}),
        ("compress/cli/a.py", "def f(a, b): ...\ndef _f(a, b): ...", {"f": 0, "_f": 2}),
        ("tests/a.py", "def test_f(a, b): ...\ndef f(a, b): ...", {"test_f": 0, "f": 2}),
    ],
)  # fmt: skip
def test_parameters_are_counted_by_this_rule(where, text, expected):
    assert {name: counted(where, name, function) for name, function in functions(ast.parse(text))} == expected


def test_what_follows_torch_is_still_there():
    names = {(where, name) for where, name, _ in every_function()}
    assert all((where, name) in names for where, several in TORCH_SIGNATURES.items() for name in several)
