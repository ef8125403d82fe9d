"""What only running shows of a foreign ONNX graph is found out by a child, and refused in a sentence."""

import json
import shutil
import signal
import subprocess
import sys
import time

import onnx
import pytest
from onnx import TensorProto, helper

from compress.cli import app
from deploy.engines import probe_child, probing
from deploy.errors import DeployError, MissingDependency

pytestmark = pytest.mark.heavy


def saved(path, nodes, constants=(), shape=(1, 3)):
    """A file whose graph gives one float for one image."""
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [given], [made], [helper.make_tensor(*one) for one in constants])
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
    path.write_bytes(model.SerializeToString())
    return path


def loop(path, times):
    """Add one to a number so many times."""
    integer, boolean = (TensorProto.INT64, []), (TensorProto.BOOL, [])
    body = helper.make_graph(
        [helper.make_node("Add", ["v", "x"], ["w"]), helper.make_node("Identity", ["c"], ["d"])],
        "body",
        [
            helper.make_tensor_value_info("i", *integer),
            helper.make_tensor_value_info("c", *boolean),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, [1, 3]),
        ],
        [helper.make_tensor_value_info("d", *boolean), helper.make_tensor_value_info("w", TensorProto.FLOAT, [1, 3])],
    )
    return saved(
        path,
        [helper.make_node("Loop", ["times", "", "x"], ["y"], body=body)],
        [("times", TensorProto.INT64, [], [times])],
    )


def constant(path, numbers):
    """Add the sum of so many ones, made on the spot; they depend on the input, so that no optimiser makes them."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Mul", ["shape", "count"], ["size"]),
        helper.make_node("ConstantOfShape", ["size"], ["many"]),
        helper.make_node("ReduceSum", ["many"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    return saved(path, nodes, [("count", TensorProto.INT64, [2], [numbers, 1])], shape=("N", 3))


@pytest.fixture
def command(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["niwaki", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            app.main()
        shown = capsys.readouterr()
        return ended.value.code, shown.out, shown.err

    return run


def test_a_loop_without_end_is_refused(tmp_path):
    path = loop(tmp_path / "loop.onnx", 1 << 62)
    with pytest.raises(DeployError, match=r"running it once takes more than 1 s of computing; .* --no-probe\.$"):
        probing.probe(path, seconds=1)


def test_a_constant_of_six_gigabytes_is_refused_before_it_is_made(tmp_path, command):
    path = constant(tmp_path / "constant.onnx", 500_000_000)
    assert path.stat().st_size < 1000
    start = time.process_time()
    code, shown, error = command("bench", path)
    assert (code, shown, error.count("\n")) == (2, "", 1)
    assert "takes more than 1.0 GiB of memory; if you trust it, add --no-probe" in error
    assert time.process_time() - start < 5


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_what_a_network_takes_is_let_through(runtime, files):
    pytest.importorskip(runtime)
    probing.probe(files["fp32"], runtime=runtime, batch=2)


def test_loops_and_constants_that_end_are_let_through(tmp_path):
    probing.probe(loop(tmp_path / "loop.onnx", 100))
    probing.probe(constant(tmp_path / "constant.onnx", 1000))


def test_what_the_runtime_itself_refuses_is_left_to_who_loads_it(tmp_path, command):
    path = saved(tmp_path / "odd.onnx", [helper.make_node("NoSuchOperator", ["x"], ["y"])])
    probing.probe(path)
    code, _, error = command("bench", path)
    assert code == 2 and "NoSuchOperator" in error


def test_a_file_outside_a_bundle_is_tried_and_one_inside_when_asked(bundle_dir, files, command, monkeypatch):
    tried = []
    monkeypatch.setattr(probing, "probe", lambda path, **asked: tried.append((path, asked["batch"])))

    def later(*_, **__):
        raise DeployError("tried before")

    for name in ("compress.cli.timing.timed", "compress.cli.doctor.describe", "deploy.bundle.building.build_engine"):
        monkeypatch.setattr(name, later)
    for arguments, expected in (
        (("bench", files["fp32"], bundle_dir, "--batch", 2), [(files["fp32"], 2)]),
        (("bench", files["fp32"], "--no-probe"), []),
        (("bench", bundle_dir, "--probe"), [(bundle_dir / "model.int8.onnx", 1)]),
        (("doctor", bundle_dir), []),
        (("doctor", bundle_dir, "--probe"), [(bundle_dir / "model.int8.onnx", 1)]),
        (("build", bundle_dir), []),
        (("build", bundle_dir, "--probe", "--precision", "fp32"), [(bundle_dir / "model.fp32.onnx", 1)]),
    ):
        assert command(*arguments)[2].startswith("niwaki: tried before. More: niwaki docs ")
        assert tried == expected
        tried.clear()
    code, _, error = command("build", bundle_dir, "--probe", "--precision", "fp8")
    assert code == 2 and "has no fp8 model" in error


def child_that(says, code, monkeypatch):
    done = subprocess.CompletedProcess([], code, f"noise of a library\n{says}".encode(), b"")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)


@pytest.mark.parametrize(
    ("says", "code", "refused"),
    [
        ("", -signal.SIGSEGV, r"ends the process that does so \(SIGSEGV\)"),
        ("", -signal.SIGKILL, r"ends the process that does so \(SIGKILL\)"),
        ("", 1, r"ends the process that does so \(exit code 1\)"),
        ("memory ", 0, "more than 1.0 GiB of memory"),
        ("", -signal.SIGXCPU, "more than 7 s of computing"),
        ("error no such operator", 0, None),
        ("ok ", 0, None),
    ],
)
def test_how_the_child_ends_is_the_verdict(says, code, refused, files, monkeypatch):
    child_that(says, code, monkeypatch)
    if refused is None:
        probing.probe(files["fp32"])
        return
    with pytest.raises(DeployError, match=refused) as caught:
        probing.probe(files["fp32"])
    assert "\n" not in str(caught.value)


def test_a_child_that_only_waits_is_ended(files, monkeypatch):
    def waits(command, *, timeout, **_):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", waits)
    with pytest.raises(DeployError, match="takes more than 140 s;"):
        probing.probe(files["fp32"])


def test_a_large_file_gets_more(files, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(probing, "_child", lambda what, path: asked.append(what) or ("ok", 0))
    probing.probe(files["fp32"])
    model = onnx.load(files["fp32"])
    model.doc_string = "x" * 40_000_000
    (tmp_path / "large.onnx").write_bytes(model.SerializeToString())
    probing.probe(tmp_path / "large.onnx")
    small, large = asked
    assert (small["seconds"], large["seconds"]) == (7, 9)
    assert large["bytes"] - small["bytes"] == 4 * (
        (tmp_path / "large.onnx").stat().st_size - files["fp32"].stat().st_size
    )


def test_the_child_imports_nothing_of_ours_nor_from_the_current_folder(files, tmp_path):
    (tmp_path / "numpy.py").write_text("raise SystemExit('taken from the current folder')")
    script = shutil.copy(probe_child.__file__, tmp_path / "alone.py")
    asked = {"path": str(files["fp32"]), "runtime": "onnxruntime", "batch": 1, "sizes": [], "seconds": 60}
    asked |= {"bytes": 1 << 30}
    code = f"import runpy, sys; sys.argv = ['x', {json.dumps(json.dumps(asked))}]; "
    code += f"runpy.run_path({str(script)!r}, run_name='__main__'); "
    code += "print(sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'deploy', 'compress', 'pydantic'}))"
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["ok", "[]"]


def test_without_a_runtime_it_says_how_to_get_one(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependency, match="pip install onnxruntime"):
        probing.probe(files["fp32"])
