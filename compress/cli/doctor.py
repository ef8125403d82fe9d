"""The command ``niwaki doctor``: what is installed and works here, and how to get each thing that is missing.

Packages are read from their metadata and the kernels from what their build left behind. Only the runtimes
are loaded, because whether one loads, and for which devices, is the question; and torch, where no tool of
the system can say whether there is a GPU.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from compress.cli.bundle import describe
from compress.cli.common import JsonFlag, replaceable
from compress.cli.probe import Probe, probe_first
from compress.terminal import Terminal
from deploy.environment import int8_sums

DISTRIBUTION = "niwaki-vision"
TIMEOUT = 20  # seconds for a tool of the system to say who it is

# Extra -> how it is got; one that is not named here comes with `pip install "niwaki-vision[EXTRA]"`.
SPECIAL = {
    "tensorrt": "install TensorRT from NVIDIA's own package index, or use the extra tensorrt-rtx",
}
# What a broken import raises: the package is absent, a library of its is, or it refuses this machine.
BROKEN = (ImportError, OSError, RuntimeError, AttributeError)


@dataclass(frozen=True)
class Check:
    """One thing looked at: whether it is there, whether Niwaki cannot run without it, and how to get it."""

    name: str
    ok: bool
    required: bool
    found: str
    fix: str = ""

    def to_dict(self) -> dict[str, str | bool]:
        """Return the same for ``--json``."""
        return asdict(self)


@dataclass(frozen=True)
class Requirement:
    """One line of the distribution's own metadata."""

    name: str
    ranges: str
    extra: str
    marker: str

    def applies(self) -> bool:
        """Tell whether this machine is one that the requirement is meant for."""
        facts = {"sys_platform": sys.platform, "platform_machine": platform.machine()}
        named = re.findall(r"(\w+) == ['\"]([^'\"]+)['\"]", self.marker)
        return all(facts.get(key, value) == value for key, value in named)


def doctor(
    bundle: Annotated[Path | None, typer.Argument(help="A bundle folder: say what runs it here, and why.")] = None,
    bill: Annotated[
        Path | None,
        typer.Option(
            "--sbom", metavar="FILE", help="Write a bill of materials (CycloneDX) of the bundle and what runs it."
        ),
    ] = None,
    probe: Probe = None,
    as_json: JsonFlag = False,
) -> None:
    """Say what is installed, what works here, and how to get what is missing; or what runs a bundle here."""
    if bundle is not None:
        probe_first(bundle, probe)
        _describe_bundle(bundle, as_json=as_json)
        if bill is not None:
            _write_bill(bundle, bill)
        return
    if bill is not None:
        raise typer.BadParameter("lists what a bundle carries; name the bundle too", param_hint="--sbom")
    checks = diagnose()
    if as_json:
        print(json.dumps([check.to_dict() for check in checks], indent=1))
    else:
        render(checks, Terminal())
    if any(check.required and not check.ok for check in checks):
        raise typer.Exit(3)


def _write_bill(bundle: Path, out: Path) -> None:
    """Write the bundle's bill of materials; the bundle itself stays as it was signed."""
    from deploy.bundle.manifest import read_manifest
    from deploy.bundle.sbom import sbom
    from deploy.errors import DeployError
    from deploy.files import write_text

    if out.resolve().is_relative_to(bundle.resolve()):
        raise DeployError(f"{out} lies in the bundle, whose manifest does not name it; write it elsewhere.")
    write_text(replaceable(out, ".json"), json.dumps(sbom(bundle, read_manifest(bundle)), indent=1) + "\n")


def _describe_bundle(bundle: Path, *, as_json: bool) -> None:
    """Print what a bundle is and what runs it here."""
    about = describe(bundle)
    if as_json:
        print(json.dumps(about, indent=1))
        return
    shown = Table(box=None, pad_edge=False, show_header=False)
    for key, value in about.items():
        said = ", ".join(value) if isinstance(value, list) else value
        shown.add_row(key, escape("–" if said in (None, "") else str(said)))
    Terminal().print(shown)


def diagnose() -> list[Check]:
    """Look at everything, base first; no check raises."""
    return [_python(), *_packages(), *_kernels(), *_tools(), *_runtimes(), *_int8()]


def render(checks: Sequence[Check], console: Console) -> None:
    """Print what was found, then the ways out; text from outside is printed as text, never as markup."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    table.add_column("Looked at", no_wrap=True)
    table.add_column("Found", overflow="fold")
    for check in checks:
        mark = Text("✓", "green") if check.ok else Text("✗", "bold red") if check.required else Text("–", "yellow")
        table.add_row(mark, Text(check.name), Text(check.found, "" if check.ok else "dim"))
    console.print(table)
    wanting = [check for check in checks if not check.ok and check.fix]
    if wanting:
        console.print()
        console.print(Text("What is missing, and how to get it", "bold"))
    for fix in dict.fromkeys(check.fix for check in wanting):
        names = ", ".join(check.name for check in wanting if check.fix == fix)
        console.print(Text.assemble("  ", (names, "bold"), f": {fix}"))
    required = [check.name for check in wanting if check.required]
    console.print()
    if required:
        console.print(Text(f"Niwaki cannot run here yet: see {', '.join(required)} above.", "bold red"))
    else:
        console.print(Text("Everything that is required is here; – marks what is optional.", "green"))


def _python() -> Check:
    found = platform.python_version()
    wanted = _metadata("Requires-Python") or ">=3.11"
    fix = f"Niwaki runs on Python {wanted}: make an environment with one of those"
    return Check("Python", satisfies(found, wanted), True, found, fix)


def _packages() -> list[Check]:
    requirements = _requirements()
    if not requirements:
        fix = f'in a checkout run "uv sync" or "{_pip()} install .", elsewhere {_pip()} install its wheel'
        return [Check(DISTRIBUTION, False, True, "not installed as a distribution", fix)]
    found = f"{importlib.metadata.version(DISTRIBUTION)}"
    extras: dict[tuple[str, str], list[Requirement]] = {}
    for requirement in requirements:
        extras.setdefault((requirement.name, requirement.ranges), []).append(requirement)
    return [Check(DISTRIBUTION, True, True, found), *map(_package, extras.values())]


def _package(asked: Sequence[Requirement]) -> Check:
    """Look for one package that the base, or several extras, ask for."""
    requirement, extra = asked[0], asked[0].extra
    title = f"{requirement.name} [{', '.join(one.extra for one in asked)}]" if extra else requirement.name
    fix = SPECIAL.get(extra) or _install(f"{DISTRIBUTION}[{extra}]" if extra else DISTRIBUTION)
    found = _version(requirement.name)
    if found is None:
        if not requirement.applies():
            return Check(title, False, False, f"not for {sys.platform} on {platform.machine()}")
        return Check(title, False, not extra, "not installed", fix)
    if not satisfies(found, requirement.ranges):
        way_out = _install(f"{requirement.name}{requirement.ranges}")
        return Check(title, False, not extra, f"{found}, outside {requirement.ranges}", way_out)
    return Check(title, True, not extra, found)


def _install(what: str) -> str:
    """Return the command that installs a package into this environment; those that uv makes have no pip."""
    return f'{_pip()} install "{what}"' if what != DISTRIBUTION else f"{_pip()} install {what}"


def _pip() -> str:
    return "uv pip" if importlib.util.find_spec("pip") is None else "pip"


def _requirements() -> list[Requirement]:
    """Return what pyproject.toml asks for, as the installed metadata has it: said once, there."""
    try:
        lines = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return sorted(map(_requirement, lines), key=lambda requirement: requirement.extra)


def _requirement(line: str) -> Requirement:
    """Split ``torch<2.16,>=2.11; extra == "compress"`` into its parts."""
    wanted, _, marker = line.partition(";")
    name = re.split(r"[^\w.-]", wanted.strip(), maxsplit=1)[0]
    ranges = ",".join(re.findall(r"[<>=!~]+\s*[\w.*]+", wanted))
    extra = re.search(r"extra == ['\"]([^'\"]+)['\"]", marker)
    return Requirement(name, ranges, extra[1] if extra else "", marker)


def satisfies(version: str, ranges: str) -> bool:
    """Tell whether a version lies in ``>=a,<b``, the only bounds that this project writes."""
    return all(
        (_release(version) >= _release(bound)) == (sign == ">=")
        for sign, bound in re.findall(r"(>=|<)\s*([\d.]+)", ranges)
    )


def _release(version: str) -> tuple[int, ...]:
    """Read 2.15.0+cu132 as (2, 15); zeros at the end say nothing."""
    digits = re.match(r"\d+(?:\.\d+)*", version)
    numbers = [int(part) for part in digits[0].split(".")] if digits else [0]
    while len(numbers) > 1 and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _metadata(field: str) -> str | None:
    try:
        return importlib.metadata.metadata(DISTRIBUTION)[field]
    except importlib.metadata.PackageNotFoundError:
        return None


def _kernels() -> Iterable[Check]:
    import cpp_ext

    info = cpp_ext.build_info()
    build = info.get("build") or {}
    why = str(build.get("why") or "never built here")
    rebuild = f"in a checkout run: {_pip()} install --no-build-isolation --no-deps -e . (it needs torch and "
    unused = "" if _gpu().ok else "of use only where there is an NVIDIA GPU; "
    torch = _version("torch")
    for part, title, needs in (
        ("cpu", "Kernels for the CPU", "a C++ compiler"),
        ("cuda", "Kernels for CUDA", "nvcc of the CUDA version that torch has"),
    ):
        there, fix = bool(info.get(part)), f"{unused if part == 'cuda' else ''}{rebuild}{needs})"
        if there and torch is None:
            way_out = _install(f"{DISTRIBUTION}[compress]")
            yield Check(title, False, False, "built, but torch is not installed", way_out)
            continue
        if there:
            works, says = _loads(part)
            if not works:
                yield Check(title, False, False, says, fix)
                continue
        compiler = build.get("compiler" if part == "cpu" else "cuda_compiler")
        why = why.rpartition("no CUDA kernels: ")[2] if part == "cuda" else why
        found = ("built" + (f" with {compiler}" if compiler else "") + says) if there else why
        yield Check(title, there, False, found, fix)


@functools.cache
def _loads(part: str) -> tuple[bool, str]:
    """Tell whether a half of the kernels loads, and what it runs as; another process loads torch for that."""
    code = (
        "import cpp_ext, torch; reference = cpp_ext.kernels_in_use({device!r}) == 'reference'; "
        "print('reference' if reference else cpp_ext.instruction_set())"
    ).format(device="cpu" if part == "cpu" else "cuda")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return False, (done.stderr.strip().splitlines() or ["does not load"])[-1]
    if done.stdout.strip() == "reference":
        return True, "; NIWAKI_KERNELS=reference uses the slow Python ones instead"
    return True, f"; runs as {done.stdout.strip()}" if part == "cpu" else "; loads"


def _tools() -> list[Check]:
    compiler = shutil.which(os.environ.get("CXX", "").split(" ")[0]) or _first("g++", "c++", "clang++", "cl")
    return [
        Check(
            "C++ compiler",
            compiler is not None,
            False,
            _says([compiler, "--version"]) if compiler else "none on PATH",
            "install g++ or clang (Debian: apt install g++; macOS: xcode-select --install), or set CXX",
        ),
        _nvcc(),
        _gpu(),
    ]


def _nvcc() -> Check:
    homes = [Path(home) for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    nvcc = _first("nvcc") or next((str(h / "bin/nvcc") for h in homes if (h / "bin/nvcc").is_file()), None)
    found = _says([nvcc, "--version"], r"release ([\d.]+)") if nvcc else "not on PATH and no CUDA_HOME"
    fix = "only to build the CUDA kernels: install the CUDA toolkit, or set CUDA_HOME to it"
    return Check("nvcc", nvcc is not None, False, found, fix)


def _gpu() -> Check:
    fix = "only for CUDA and TensorRT: an NVIDIA GPU with its driver, whose nvidia-smi is on PATH"
    if smi := _first("nvidia-smi"):
        query = [smi, "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader"]
        lines = _run(query)
        if lines is not None:
            return Check("NVIDIA GPU", True, False, "; ".join(lines.splitlines()) or "none listed")
        return Check("NVIDIA GPU", False, False, "nvidia-smi fails", fix)
    # In a container torch may see a GPU whose tools are not there.
    if _version("torch") is not None:
        torch = _load("torch")
        if isinstance(torch, ModuleType) and torch.cuda.is_available():
            names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
            return Check("NVIDIA GPU", True, False, names)
    return Check("NVIDIA GPU", False, False, "none", fix)


def _runtimes() -> Iterable[Check]:
    looks: tuple[tuple[str, str, str, Callable[[ModuleType], str]], ...] = (
        ("ONNX Runtime", "onnxruntime", "", lambda m: ", ".join(m.get_available_providers())),
        ("OpenVINO", "openvino", "openvino", lambda m: ", ".join(m.Core().available_devices)),
        ("TensorRT", "tensorrt", "tensorrt", _tensorrt),
        ("TensorRT-RTX", "tensorrt_rtx", "tensorrt-rtx", _tensorrt),
    )
    for title, module, extra, look in looks:
        fix = SPECIAL.get(extra) or _install(f"{DISTRIBUTION}[{extra}]" if extra else DISTRIBUTION)
        loaded = _load(module)
        if isinstance(loaded, str):
            yield Check(f"{title} works", False, not extra, loaded, fix)
            continue
        try:
            yield Check(f"{title} works", True, not extra, look(loaded))
        except BROKEN as error:
            yield Check(f"{title} works", False, not extra, _first_line(error), fix)


def _int8() -> Iterable[Check]:
    """Say whether int8 files answer here as they do elsewhere, where the system tells."""
    if (sums := int8_sums()) is not None:
        found = "VNNI" if sums == "exact" else "no VNNI: products saturate in 16 bits, and int8 gains little time"
        fix = "int8 answers a little differently here: measure its accuracy on this processor (niwaki docs engines)"
        yield Check("Exact sums in int8", sums == "exact", False, found, fix)


def _tensorrt(module: ModuleType) -> str:
    """Say what TensorRT can do here: a builder works without a GPU, engines only run where there is one."""
    runs = "runs engines on the GPU" if _gpu().ok else "no GPU here to run them on"
    return f"{module.__version__}: builds engines, {runs}"


def _load(name: str) -> ModuleType | str:
    """Return the module, or why it does not load."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        return "not installed" if error.name == name else _first_line(error)
    except BROKEN as error:
        return _first_line(error)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]


def _first(*commands: str) -> str | None:
    return next(filter(None, map(shutil.which, commands)), None)


def _says(command: list[str], pattern: str = r"(.*)") -> str:
    """Return what a tool says about itself: the first match of ``pattern``."""
    text = _run(command)
    said = re.search(pattern, text) if text else None
    return said[1].strip() if said else f"{command[0]} does not answer"


def _run(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
