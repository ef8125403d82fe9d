"""The timer: best of several processes, in turns, with the load; and a folder that is timed where it is copied to."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import deploy
from deploy.errors import DeployError
from deploy.latency import profile
from deploy.latency.layers import LayerTime, _from_events
from deploy.latency.profile import How, Job, Probe, ProfileFolder, Timing, Whole, here, measured, profile_folder
from deploy.latency.table import Table, TimedLayer

CONV = TimedLayer(kind="conv", size=(6, 6), kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1))


def tiny(path: Path, reads=3, makes=4) -> Path:
    """A convolution with a ReLU behind it, of a free batch."""
    weights = numpy_helper.from_array(np.full((makes, reads, 3, 3), 0.1, np.float32), "w")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["y"], name="relu"),
    ]
    given, made = (
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", c, 6, 6]) for n, c in (("x", reads), ("y", makes))
    )
    graph = helper.make_graph(nodes, "g", [given], [made], [weights])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probes")
    return tiny(folder / "a.onnx", makes=16), tiny(folder / "b.onnx", makes=32)


def answered(monkeypatch, answers):
    """Let each process of the timer answer what is planted."""
    waiting = list(answers)
    asked = []

    def one(jobs, how):
        asked.append((jobs, how))
        return waiting.pop(0)

    monkeypatch.setattr(profile, "_in_a_process", one)
    return asked


def test_the_best_process_counts_and_all_are_recorded(monkeypatch):
    files = [[{"ms": ms, "layers": []}, {"ms": 2 * ms, "layers": []}] for ms in (3.0, 1.0, 1.5)]
    answered(monkeypatch, [{"files": own, "switches": n} for n, own in enumerate(files)])
    first, second = profile.time_files([Job(path="a"), Job(path="b")], How(processes=3))
    assert (first.ms, first.processes) == (1.0, (3.0, 1.0, 1.5))
    assert (second.ms, second.processes) == (2.0, (6.0, 2.0, 3.0))
    assert len(first.load) == 6 and first.switches == (0, 1, 2)


def test_each_layer_has_its_own_best_process(monkeypatch):
    def layers(*times):
        return [LayerTime(f"n{k}", "Conv", "Conv", "fp32", ms).to_dict() for k, ms in enumerate(times)]

    files = [[{"ms": 3.0, "layers": layers(*times)}] for times in ((1.0, 4.0), (2.0, 3.0))]
    answered(monkeypatch, [{"files": own, "switches": 0} for own in files])
    (found,) = profile.time_files([Job(path="a")], How(processes=2, layers=True))
    assert [one.ms for one in found.layer_times()] == [1.0, 3.0]
    assert found.layer_ms == 4.0


def test_processes_that_disagree_are_followed_by_more(monkeypatch):
    files = [[{"ms": ms, "layers": []}] for ms in (9.0, 5.0, 4.0, 7.0, 4.1, 1.0)]
    answered(monkeypatch, [{"files": own, "switches": 0} for own in files])
    (found,) = profile.time_files([Job(path="a")], How(processes=2, agree=0.03))
    assert found.processes == (9.0, 5.0, 4.0, 7.0, 4.1) and found.ms == 4.0
    files = [[{"ms": 9.0 - number, "layers": []}] for number in range(7)]
    answered(monkeypatch, [{"files": own, "switches": 0} for own in files])
    (found,) = profile.time_files([Job(path="a")], How(processes=2, agree=0.01))
    assert found.ms == 4.0  # three times as many and no more


def test_nothing_to_time_starts_no_process(monkeypatch):
    asked = answered(monkeypatch, [])
    assert profile.time_files([], How()) == [] and asked == []


def test_every_round_visits_each_engine_once_in_turns():
    visits = []

    class Fake:
        def __init__(self, name):
            self.name = name

        def run(self, feeds):
            visits.append(self.name)

    best = profile._best_of_rounds([Fake("a"), Fake("b")], [{}, {}], How(rounds=3))
    assert visits == ["a", "b", "a", "b", "b", "a", "a", "b"]  # one of each unmeasured, then turns that rotate
    assert all(ms > 0 for ms in best)


def test_ends_of_a_small_file_count_for_nothing():
    kinds = ["ReorderInput", "Conv", "Relu", "ReorderOutput", "QuantizeLinear"]
    layers = tuple(LayerTime(kind, kind, kind, "fp32", 1.0).to_dict() for kind in kinds)
    assert Timing(path="a", ms=9.0, processes=(9.0,), layers=layers).layer_ms == 2.0
    assert Timing(path="a", ms=9.0, processes=(9.0,)).layer_ms == 9.0  # no profile of layers: the whole file


def test_events_of_onnx_runtime_become_one_best_time_a_node():
    def event(ms, node="3"):
        about = {
            "op_name": "Conv",
            "node_index": node,
            "input_type_shape": [{"float": [1, 64, 28, 28]}, {"float": [32, 64, 3, 3]}, {"float": [32]}],
            "output_type_shape": [{"float": [1, 32, 28, 28]}],
        }
        return {"cat": "Node", "name": "c_kernel_time", "dur": ms, "args": about}

    (found, other) = _from_events([{"cat": "Session", "name": "x", "dur": 1}, event(300), event(200), event(50, "4")])
    assert (found.name, found.kind, found.ms, found.precision) == ("c", "Conv", 0.2, "fp32")
    assert found.macs == 32 * 28 * 28 * 64 * 9 and found.weights == (32, 64, 3, 3)
    assert other.ms == 0.05


@pytest.mark.heavy
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_real_process_times_files_and_their_layers(two, runtime):
    jobs = [Job(path=str(path), batch=2) for path in two]
    found = profile.time_files(jobs, How(runtime=runtime, layers=True, rounds=2, processes=1))
    assert [one.path for one in found] == [str(path) for path in two]
    for one, makes in zip(found, (16, 32), strict=True):
        (product,) = [layer for layer in one.layer_times() if layer.is_product]
        assert product.macs == 2 * 36 * makes * 27
        assert product.ms > 0 and product.precision == "fp32"


def test_a_file_that_cannot_be_timed_is_one_sentence(tmp_path):
    with pytest.raises(DeployError, match="There is no ONNX file at"):
        profile.time_files([Job(path=str(tmp_path / "none.onnx"))], How(processes=1))


def planted(jobs, how):
    """A machine on which a file takes as many milliseconds as its name has letters."""
    return [Timing(path=job.path, ms=len(Path(job.path).stem), processes=(1.0,), load=(0.5, 0.6)) for job in jobs]


def folder_of(tmp_path) -> Path:
    probes = tuple(Probe(file=f"{'p' * n}.onnx", layer=CONV, inputs=3, outputs=n, precision="fp32") for n in (1, 2, 4))
    dense = Whole(file="dense.onnx", name="dense", widths={"a": (3, 4)})
    (tmp_path / "profile.json").write_text(ProfileFolder(probes=probes, networks=(dense,)).model_dump_json())
    return tmp_path


def test_a_folder_becomes_a_table(tmp_path):
    seen = []
    table = profile_folder(folder_of(tmp_path), timer=planted, progress=lambda done, total: seen.append((done, total)))
    (entry,) = table.entries
    assert entry.setting == here("onnxruntime", "fp32", 1) and entry.load == (0.5, 0.6)
    assert [entry.ms(3, n, (3, 4)) for n in (1, 2, 3, 4)] == [1.0, 2.0, 4.0, 4.0]
    assert [(one.name, one.ms) for one in table.networks] == [("dense", 5.0)]
    assert seen == [(3, 4)]


def test_precisions_of_one_folder_are_entries_of_their_own(tmp_path):
    probes = [Probe(file="p.onnx", layer=CONV, inputs=3, outputs=4, precision=p) for p in ("fp32", "int8")]
    entries = measured(probes, tmp_path, runtime="onnxruntime", threads=1, timer=planted)
    assert [one.setting.precision for one in entries] == ["fp32", "int8"]


@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt_rtx", "torch"])
def test_a_runtime_that_runs_no_small_file_is_refused_in_a_sentence(tmp_path, runtime):
    with pytest.raises(DeployError, match=rf"{runtime} runs no ONNX file.*openvino.*niwaki explain --runtime tensorrt"):
        profile_folder(folder_of(tmp_path), runtimes=[runtime], timer=planted)


def test_a_folder_without_a_list_is_refused(tmp_path):
    with pytest.raises(DeployError, match="niwaki profile NETWORK --bundle DIR"):
        profile_folder(tmp_path)
    (tmp_path / "profile.json").write_text('{"probes": [{"file": "../x.onnx"}]}')
    with pytest.raises(DeployError, match="is not a niwaki-profile-1 list"):
        profile_folder(tmp_path)


@pytest.mark.heavy
def test_a_folder_is_timed_where_there_is_no_torch(tmp_path):
    tiny(tmp_path / "p.onnx", 3, 4)
    probe = Probe(file="p.onnx", layer=CONV, inputs=3, outputs=4, precision="fp32")
    (tmp_path / "profile.json").write_text(ProfileFolder(probes=(probe,)).model_dump_json())
    code = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'onnx', 'scipy', 'yaml'): sys.modules[name] = None\n"
        "from deploy.latency import profile\n"
        "few = lambda jobs, how: profile.time_files(jobs, how.model_copy(update={'processes': 1, 'rounds': 2}))\n"
        "profile.profile_folder.__kwdefaults__['timer'] = few\n"
        "sys.argv = ['niwaki', 'profile', sys.argv[1], '--json']\n"
        "from compress.cli.app import main\n"
        "main()"
    )
    root = Path(deploy.__file__).parent.parent
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["entries"] == 1
    assert Table.read(tmp_path / "latency.json").entries[0].points[0].ms > 0
