"""Builds the compiled kernels of `cpp_ext` where torch can be imported, and a pure package where it cannot.

Environment: NIWAKI_KERNELS_BUILD=0 builds the pure package, NIWAKI_CUDA=0 leaves the CUDA kernels out,
CUDA_HOME names the CUDA toolkit, TORCH_CUDA_ARCH_LIST the GPU architectures, CXX the compiler. What was
built, and why, is printed in one line and written to `cpp_ext/_build.json`. All else is in pyproject.toml.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import BaseError, CCompilerError

ROOT = Path(__file__).resolve().parent
CSRC = "cpp_ext/csrc"
TARGET = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # the stable ABI of torch 2.11, the oldest supported
CPU_SOURCES = ("norms", "slices", "select", "loops_plain", "loops_avx2", "loops_avx512")
PURE = "NIWAKI_KERNELS_BUILD=0"


@dataclass
class Report:
    """What a build made: written to `cpp_ext/_build.json`, read by `cpp_ext.build_info`."""

    cpu: bool = False
    cuda: bool = False
    torch: str | None = None
    compiler: str | None = None
    cuda_compiler: str | None = None
    cuda_arch_list: str | None = None
    why: str = ""

    def publish(self, package: Path) -> None:
        """Print the report's sentence and leave the report in the built `package`."""
        package.mkdir(parents=True, exist_ok=True)
        (package / "_build.json").write_text(json.dumps(asdict(self), indent=2) + "\n")
        print(f"niwaki: {self.why}", flush=True)


def torch_version() -> tuple[str | None, str]:
    """The version of the torch that the kernels are built against, or None and why there is none."""
    if os.environ.get("NIWAKI_KERNELS_BUILD") == "0":
        return None, f"{PURE} is set"
    try:
        import torch
    except (ImportError, OSError) as error:
        return (
            None,
            f"torch cannot be imported here ({error}); install it, then build with --no-build-isolation",
        )
    return str(torch.__version__), ""


def find_compiler() -> tuple[str, str] | None:
    """The C++ compiler's command and its name with version, or None."""
    for command in [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "c++", "clang++"]:
        words = shlex.split(command)
        if not words or shutil.which(words[0]) is None:
            continue
        text = subprocess.run([*words, "--version"], capture_output=True, text=True, check=False).stdout
        version = re.findall(r"\d+\.\d+(?:\.\d+)?", text.partition("\n")[0])
        name = "g++" if "Free Software Foundation" in text else Path(words[0]).name
        return command, f"{name} {version[-1]}" if version else name
    return None


def no_headers() -> str | None:
    """Why nothing can be compiled for this Python though a compiler is there, or None: its C headers are missing."""
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if header.is_file():
        return None
    return (
        f"niwaki: this Python has no C headers ({header} is missing): install python{sys.version_info.major}."
        f"{sys.version_info.minor}-dev (python3-devel on Fedora), or set {PURE} to install without the kernels."
    )


def find_cuda(torch_cuda: str | None, *, in_place: bool = False, cards: bool = True) -> tuple[Path | None, str]:
    """The CUDA toolkit to build with and its version, or None and why there is none.

    `torch_cuda` is the CUDA version that torch was built with: the toolkit's major version must be the same.
    The nvcc on PATH may be a wrapper script, so a toolkit is a folder with `bin/nvcc` and the header.
    `in_place` is a build for this machine alone, and `cards` says whether it has a GPU: without one the kernels
    would take minutes and never run: they are left out, unless TORCH_CUDA_ARCH_LIST or CUDA_HOME asks for them.
    """
    if os.environ.get("NIWAKI_CUDA") == "0":
        return None, "NIWAKI_CUDA=0 is set"
    if torch_cuda is None:
        return None, "this torch was built without CUDA"
    if in_place and not cards and not {"TORCH_CUDA_ARCH_LIST", "CUDA_HOME"} & set(os.environ):
        return None, "no GPU here (set TORCH_CUDA_ARCH_LIST to build for one elsewhere)"
    given = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    on_path = shutil.which("nvcc")
    guesses = [Path(given)] if given else [Path("/usr/local/cuda"), *sorted(Path("/usr/local").glob("cuda-*"))[::-1]]
    if on_path and not given:
        guesses.insert(0, Path(on_path).resolve().parent.parent)
    others = []
    for home in guesses:
        if not ((home / "bin/nvcc").is_file() and (home / "include/cuda_runtime.h").is_file()):
            continue
        text = subprocess.run([home / "bin/nvcc", "--version"], capture_output=True, text=True, check=False).stdout
        release = re.search(r"release (\d+)\.(\d+)", text)
        if release and release[1] == torch_cuda.partition(".")[0]:
            return home, f"{release[1]}.{release[2]}"
        others.append(f"{release[1]}.{release[2]}" if release else "unknown")
    if others:
        return (
            None,
            f"nvcc is of CUDA {others[0]}, torch of {torch_cuda} (set CUDA_HOME to a matching toolkit)",
        )
    where = f"no nvcc with its headers in CUDA_HOME={given}" if given else "no nvcc found"
    return None, f"{where} (set CUDA_HOME)"


def default_archs(cuda: str) -> str:
    """The GPU architectures that CUDA version `cuda` builds for, unless TORCH_CUDA_ARCH_LIST names others."""
    newer = tuple(map(int, cuda.split("."))) >= (12, 8)
    return "7.5;8.0;8.6;8.9;9.0+PTX" + (";12.0+PTX" if newer else "")


def extensions(cuda_home: Path | None) -> list[Extension]:
    """The extension modules to build where torch can be imported: `_C`, and `_C_cuda` with a CUDA toolkit."""
    if cuda_home:
        os.environ["CUDA_HOME"] = str(cuda_home)  # torch guesses it from the nvcc on PATH otherwise, when imported
    from torch.utils.cpp_extension import CppExtension, CUDAExtension

    # No contraction: the builds for different vector widths must round alike.
    prefix = f"-ffile-prefix-map={ROOT}=."
    # Under a sanitizer CFLAGS say how much to optimise: all of it would compile for half an hour.
    speed = [] if "-fsanitize" in os.environ.get("CFLAGS", "") else ["-O3", "-g0"]
    cxx = [*speed, "-fvisibility=hidden", "-ffp-contract=off", prefix, TARGET]
    link = ["-Wl,-s"] if sys.platform == "linux" else []
    # One module linked against libtorch_cuda could not load under a CPU-only torch: hence two.
    modules = [
        CppExtension(
            "cpp_ext._C",
            [f"{CSRC}/module.cpp", *(f"{CSRC}/cpu/{name}.cpp" for name in CPU_SOURCES)],
            extra_compile_args={"cxx": cxx},
            extra_link_args=link,
            py_limited_api=True,
        )
    ]
    if cuda_home:
        nvcc = ["-O3", "--threads=2", f"-Xcompiler=-fvisibility=hidden,{prefix}", "-DUSE_CUDA", TARGET]
        modules.append(
            CUDAExtension(
                "cpp_ext._C_cuda",
                [
                    f"{CSRC}/cuda/{name}"
                    for name in ("module_cuda.cpp", "norms_cuda.cu", "slices_cuda.cu", "select_cuda.cu")
                ],
                extra_compile_args={"cxx": [*cxx, "-DUSE_CUDA"], "nvcc": nvcc},
                extra_link_args=link,
                py_limited_api=True,
            )
        )
    return modules


def remove_built(package: Path) -> None:
    """Remove what an earlier build left: it would travel in the wheel, or be loaded if this build fails."""
    for leftover in (*package.glob("_C*.so"), package / "_build.json"):
        leftover.unlink(missing_ok=True)


class PagesBuildPy(build_py):
    """Carries the pages of `docs` into the package, where `niwaki docs` finds them; a checkout has them in place."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        pages = {page.relative_to(ROOT / "docs"): page for page in sorted((ROOT / "docs").rglob("*.md"))}
        for name, page in {**pages, Path("readme.md"): ROOT / "README.md"}.items():
            target = Path(self.build_lib) / "compress/pages" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(page, target)


def bill(report: Report, kernels: list[Path]) -> dict[str, Any]:
    """The wheel's bill of materials, CycloneDX 1.6: itself, the compiled kernels in it, and what it asks pip for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    own = f"pkg:pypi/{project['name']}@{project['version']}"
    compiled = [
        {
            "type": "library",
            "bom-ref": f"cpp_ext/{path.name}",
            "name": f"cpp_ext/{path.name}",
            "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(path.read_bytes()).hexdigest()}],
            "licenses": [{"license": {"id": project["license"]}}],
            "properties": [
                {"name": "niwaki:compiler", "value": f"{report.compiler or ''} {report.cuda_compiler or ''}".strip()},
                {"name": "niwaki:compiled-against", "value": f"torch {report.torch}, its stable ABI"},
            ],
        }
        for path in kernels
    ]
    wanted = [
        {
            "type": "library",
            "bom-ref": f"pkg:pypi/{name}",
            "name": name,
            "purl": f"pkg:pypi/{name}",
            "properties": [{"name": "niwaki:requires", "value": line}],
        }
        for line in project["dependencies"]
        for name in re.findall(r"^[A-Za-z0-9._-]+", line)
    ]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, json.dumps([own, compiled, wanted]))}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "library",
                "bom-ref": own,
                "name": project["name"],
                "version": project["version"],
                "purl": own,
                "licenses": [{"license": {"id": project["license"]}}],
            }
        },
        "components": [*compiled, *wanted],
        "dependencies": [{"ref": own, "dependsOn": [part["bom-ref"] for part in (*compiled, *wanted)]}],
    }


def wheel_with_bill(report: Report) -> type[bdist_wheel]:
    """The bdist_wheel command that puts the bill of materials where PEP 770 says: ``.dist-info/sboms``."""

    class WheelWithBill(bdist_wheel):
        def write_wheelfile(self, wheelfile_base: str, *rest: Any, **more: Any) -> None:
            super().write_wheelfile(wheelfile_base, *rest, **more)
            boms = Path(wheelfile_base) / "sboms"
            boms.mkdir(parents=True, exist_ok=True)
            kernels = sorted((Path(self.bdist_dir) / "cpp_ext").glob("_C*.so"))
            text = json.dumps(bill(report, kernels), indent=1) + "\n"
            (boms / "niwaki-vision.cdx.json").write_text(text, encoding="utf-8")

    return WheelWithBill


def kernel_build(report: Report, cuda_why: str) -> type[build_ext]:
    """The build_ext command that compiles the kernels and publishes `report`."""
    from torch.utils.cpp_extension import BuildExtension

    class KernelBuild(BuildExtension):  # type: ignore[misc]
        def run(self) -> None:
            compiler = find_compiler()
            if compiler is None:
                asked = f"CXX={os.environ['CXX']}" if "CXX" in os.environ else "g++, c++ or clang++"
                raise SystemExit(
                    f"niwaki: no C++ compiler found ({asked} is not on PATH): install g++, set CXX, or set "
                    f"{PURE} to install without the kernels."
                )
            if (lacking := no_headers()) is not None:
                raise SystemExit(lacking)
            os.environ["CXX"], report.compiler = compiler
            package = (ROOT if self.inplace else Path(self.build_lib)) / "cpp_ext"
            remove_built(package)
            super().run()
            report.cpu = True
            report.cuda = report.cuda_compiler is not None
            if report.cuda:
                cuda = f"CUDA kernels with {report.cuda_compiler} for {report.cuda_arch_list}"
            else:
                cuda = f"no CUDA kernels: {cuda_why}"
            report.why = f"built the CPU kernels with {report.compiler} against torch {report.torch}; {cuda}"
            report.publish(package)

        def build_extensions(self) -> None:
            try:
                super().build_extensions()
            except (CCompilerError, BaseError, RuntimeError, OSError, ValueError) as error:
                way_out = "NIWAKI_CUDA=0 to build without them" if report.cuda_compiler else "CXX to another compiler"
                what = "CPU or CUDA kernels" if report.cuda_compiler else "CPU kernels"
                reason = " ".join(str(part) for part in error.args) or type(error).__name__
                raise SystemExit(
                    f"niwaki: the {what} did not compile ({reason}; the compiler's own words are above): set "
                    f"{way_out}, or {PURE} to install without any."
                ) from None

        def build_extension(self, ext: Extension) -> None:
            try:
                super().build_extension(ext)
            except (CCompilerError, BaseError, RuntimeError, OSError) as error:
                if ext.name != "cpp_ext._C_cuda":
                    raise
                raise SystemExit(
                    f"niwaki: the CUDA kernels did not compile with {report.cuda_compiler} ({error}; the "
                    "compiler's own words are above): set NIWAKI_CUDA=0 to build without them."
                ) from None

    return KernelBuild


def pure_build(report: Report) -> dict[str, Any]:
    """The commands of a build without kernels, which publish `report`."""

    class PureBuildPy(PagesBuildPy):
        def run(self) -> None:
            super().run()
            package = (ROOT if self.editable_mode else Path(self.build_lib)) / "cpp_ext"
            remove_built(package)
            report.publish(package)

    class PureBuildExt(build_ext):
        def run(self) -> None:
            package = (ROOT if self.inplace else Path(self.build_lib)) / "cpp_ext"
            remove_built(package)
            report.publish(package)

    return {"build_py": PureBuildPy, "build_ext": PureBuildExt, "bdist_wheel": wheel_with_bill(report)}


def main() -> None:
    version, no_torch = torch_version()
    sources = {"": ["*.cpp", "*.cu", "*.h"]}  # of use in the sdist alone
    if version is None:
        report = Report(why=f"built without kernels: {no_torch}")
        setup(cmdclass=pure_build(report), exclude_package_data=sources)
        return
    import torch

    in_place = bool({"editable_wheel", "develop", "--inplace"} & set(sys.argv))
    cuda_home, cuda = find_cuda(torch.version.cuda, in_place=in_place, cards=torch.cuda.is_available())
    report = Report(torch=version)
    if cuda_home:
        report.cuda_compiler = f"nvcc {cuda}"
        report.cuda_arch_list = os.environ.setdefault("TORCH_CUDA_ARCH_LIST", default_archs(cuda))
    setup(
        ext_modules=extensions(cuda_home),
        cmdclass={
            "build_py": PagesBuildPy,
            "build_ext": kernel_build(report, cuda),
            "bdist_wheel": wheel_with_bill(report),
        },
        exclude_package_data=sources,
        options={"bdist_wheel": {"py_limited_api": "cp311"}},
    )


if __name__ == "__main__":
    main()
