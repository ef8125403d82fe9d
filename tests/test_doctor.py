"""The doctor names what is there and what is not, each with a way out, and never raises."""

import importlib.metadata
import importlib.util
import io
import json
import subprocess
import sys

import pytest
from rich.console import Console

from compress.cli import doctor

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def checks():
    return doctor.diagnose()


def fit(checks) -> bool:
    return all(check.ok for check in checks if check.required)


def shown(checks) -> str:
    console = Console(file=io.StringIO(), width=160, color_system=None)
    doctor.render(checks, console)
    return console.file.getvalue()


def test_this_environment_is_fit(checks):
    assert fit(checks)
    named = {check.name: check for check in checks}
    assert {"Python", "numpy", "onnxruntime", "torch [compress]", "C++ compiler", "NVIDIA GPU"} <= set(named)
    assert named["torch [compress]"].found == importlib.metadata.version("torch")
    assert "CPUExecutionProvider" in named["ONNX Runtime works"].found


def test_it_says_which_instruction_set_runs(checks):
    cpp_ext = pytest.importorskip("cpp_ext")
    if not cpp_ext.build_info()["cpu"]:
        pytest.skip("the kernels are not built: python setup.py build_ext --inplace")
    (kernels,) = (check for check in checks if check.name == "Kernels for the CPU")
    assert kernels.ok
    assert kernels.found.endswith(f"; runs as {cpp_ext.instruction_set()}")


def test_each_thing_that_is_missing_has_a_way_out(checks):
    for check in checks:
        assert check.ok or check.fix or check.found.startswith("not for "), check
        assert "\n" not in check.fix + check.found


@pytest.mark.parametrize("there", [True, False])
def test_kernels_for_cuda_are_asked_for_only_where_a_gpu_could_run_them(monkeypatch, there):
    monkeypatch.setattr(doctor, "_gpu", lambda: doctor.Check("NVIDIA GPU", there, False, ""))
    cpu, cuda = doctor._kernels()
    assert cuda.fix.startswith("of use only where there is an NVIDIA GPU") is not there
    assert "GPU" not in cpu.fix


def test_json_holds_every_check(checks):
    value = json.loads(json.dumps([check.to_dict() for check in checks]))
    assert [doctor.Check(**check) for check in value] == checks


def test_the_table_holds_every_name_and_way_out(checks):
    text = " ".join(shown(checks).split())
    for check in checks:
        assert check.name in text
        assert check.ok or " ".join(check.fix.split()) in text


def test_a_missing_base_package_fails_and_an_extra_does_not(monkeypatch):
    real = importlib.metadata.version

    def version(name):
        if name in ("pydantic", "torch"):
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(doctor, "_pip", lambda: "pip")
    checks = doctor.diagnose()
    named = {check.name: check for check in checks}
    assert named["pydantic"] == doctor.Check("pydantic", False, True, "not installed", "pip install niwaki-vision")
    assert named["torch [compress]"].fix == 'pip install "niwaki-vision[compress]"'
    assert not named["torch [compress]"].required and not fit(checks)
    assert "Niwaki cannot run here yet: see pydantic above." in shown(checks)


def test_a_version_outside_the_range_is_named(monkeypatch):
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.10.1" if name == "torch" else real(name))
    (torch,) = (check for check in doctor.diagnose() if check.name == "torch [compress]")
    assert not torch.ok and torch.found.startswith("2.10.1, outside ")
    assert torch.fix.startswith(f'{doctor._pip()} install "torch<')


@pytest.mark.parametrize(("there", "command"), [(True, "pip"), (False, "uv pip")])
def test_the_command_that_installs_is_one_that_the_environment_has(monkeypatch, there, command):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if there else None)
    assert doctor._install("niwaki-vision[serve]") == f'{command} install "niwaki-vision[serve]"'


def test_a_package_that_several_extras_ask_for_is_listed_once(checks):
    names = [check.name.partition(" ")[0] for check in checks[: [c.name for c in checks].index("Kernels for the CPU")]]
    assert len(names) == len(set(names))
    assert "matplotlib [compress, report]" in {check.name for check in checks}


def test_not_installed_as_a_distribution(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    for function in ("version", "requires", "metadata"):
        monkeypatch.setattr(importlib.metadata, function, absent)
    (niwaki,) = (check for check in doctor.diagnose() if check.name == doctor.DISTRIBUTION)
    assert not niwaki.ok and "pip install ." in niwaki.fix


def test_a_runtime_that_does_not_load_says_why(monkeypatch):
    real = doctor.importlib.import_module

    def broken(name, *args):
        if name == "openvino":
            raise OSError("libtbb.so.12: cannot open shared object file\nand more")
        return real(name, *args)

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    (openvino,) = (check for check in doctor.diagnose() if check.name == "OpenVINO works")
    assert not openvino.ok and openvino.found == "libtbb.so.12: cannot open shared object file"


def test_text_from_outside_is_not_markup():
    assert "[red]boom[/nonsense]" in shown([doctor.Check("[b]x", False, True, "[red]boom[/nonsense]", "[/]")])


@pytest.mark.parametrize(
    "version, ranges, fits",
    [
        ("2.15.0", ">=2.11,<2.16", True),
        ("2.15.0+cu132", ">=2.11,<2.16", True),
        ("2.16.0", "<2.16,>=2.11", False),
        ("2.11", ">=2.11.0", True),
        ("2.9.1", ">=2.11", False),
        ("10.0", ">=9.1,<11", True),
        ("1.0", "", True),
    ],
)
def test_ranges(version, ranges, fits):
    assert doctor.satisfies(version, ranges) is fits


def test_a_requirement_knows_the_machines_it_is_for(monkeypatch):
    line = 'rtx<2,>=1.4; (sys_platform == "linux" and platform_machine == "x86_64") and extra == "tensorrt-rtx"'
    requirement = doctor._requirement(line)
    assert (requirement.name, requirement.ranges, requirement.extra) == ("rtx", "<2,>=1.4", "tensorrt-rtx")
    monkeypatch.setattr(doctor.sys, "platform", "darwin")
    assert not requirement.applies()


def test_asking_the_doctor_loads_no_torch():
    code = "import sys; from compress.cli import doctor; assert 'torch' not in sys.modules and doctor.diagnose"
    subprocess.run([sys.executable, "-c", code], check=True)
