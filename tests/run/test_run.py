"""One tiny run from recipe to bundle: its folder, its manners, resuming it, gating it, predicting with it."""

import fcntl
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import processes
import pytest
from processes import niwaki

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    "model.arguments.depth=8", "model.arguments.width=8", "preprocessing.size=[16, 16]",
    "source.data.images=200", "source.train.epochs=1", "transfer.epochs=1", "distill.epochs=1",
    "prune.budget.macs=0.6", "prune.round_to=4", "prune.min_kept=4",
    "deploy.rtx_targets=[]", "deploy.rounds=5", "deploy.calibration_images=20",
)  # fmt: skip
SETS = [part for value in TINY for part in ("--set", value)]
FILES = (
    "recipe.yaml", "ledger.json", "log.jsonl", "bench.json", "report.html",
    "teacher/model.json", "teacher/model.safetensors", "pruned/model.json", "pruned/model.safetensors",
    "student/model.json", "student/model.safetensors", "checkpoints/pretrained.safetensors",
    "deploy/teacher.fp32.onnx", "deploy/pruned.fp32.onnx", "deploy/student.fp32.onnx", "deploy/student.fp16.onnx",
    "deploy/student.int8.onnx", "deploy/student.int8.trt.onnx", "deploy/parity.json",
)  # fmt: skip


def run(*arguments, cwd, command=niwaki, env=processes.ENVIRONMENT):
    return command("run", ROOT / "recipes/digits.yaml", "--out", "out", *SETS, *arguments, cwd=cwd, env=env)


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def hashes(folder):
    return {str(p.relative_to(folder)): digest(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def out_of(out, name):
    return out / name if (out / name).is_dir() else out / "checkpoints" / name


def one_sentence(text):
    assert text.startswith("niwaki: ")
    assert text.count("\n") == 1
    assert "Traceback" not in text


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder in which `out` lies, and the finished process, which was started as a user starts it."""
    home = tmp_path_factory.mktemp("run")
    warned = processes.ENVIRONMENT | {"PYTHONWARNINGS": "default"}
    process = run(cwd=home, command=processes.niwaki_anew, env=warned)
    assert process.returncode == 0, process.stderr
    return home, process


@pytest.fixture(scope="module")
def out(done):
    return done[0] / "out"


def test_every_file_of_the_run_folder_is_there(done, out):
    assert [name for name in FILES if not (out / name).is_file()] == []
    assert (out / "bundle").is_dir()
    assert len(list((out / "samples").iterdir())) == 10
    assert [str(p) for p in out.rglob("*") if p.name.endswith(".tmp") or p.name.startswith(".")] == []
    assert [p.name for p in done[0].iterdir()] == ["out"]


def test_the_ledger_holds_every_stage_and_network(out):
    import cpp_ext
    from compress.run.ledger import Ledger

    ledger = Ledger.read(out / "ledger.json")
    assert ledger.kernels in ("reference", f"compiled, {cpp_ext.instruction_set()}")
    stages = [
        "pretrain",
        "transfer",
        "twin",
        "prune",
        "distill",
        "finetuned",
        "scratch",
        "export",
        "test",
        "bench",
        "bundle",
    ]
    assert [s.name for s in ledger.stages] == stages
    assert [m.name for m in ledger.models] == ["teacher", "twin", "pruned", "student", "finetuned", "scratch"]
    assert ledger.test_images == 1047
    for model in ledger.models:
        assert model.test_total == 1047
        assert model.test_accuracy == pytest.approx(model.test_correct / 1047)
        assert 0 <= model.val_accuracy <= 1
        assert model.val_metrics["top1"] == model.val_accuracy
        assert {"top5", "macro_f1", "loss"} <= set(model.val_metrics)
        assert json.loads((out_of(out, model.name) / "model.json").read_text(encoding="utf-8"))["seed"] == ledger.seed
    teacher, student = ledger.model("teacher"), ledger.model("student")
    assert student.macs <= 0.6 * teacher.macs
    assert student.params < teacher.params
    proof = dict(ledger.plan["proof"])
    assert (proof.pop("train_mode"), proof.pop("unproved")) == (True, "")
    assert max(proof.values()) < 1e-8
    assert all(s.seconds >= 0 for s in ledger.stages)


def test_comparisons_had_the_same_training_flops(out):
    from compress.run.ledger import Ledger

    ledger = Ledger.read(out / "ledger.json")
    for one, other in (("teacher", "twin"), ("student", "finetuned"), ("student", "scratch")):
        a, b = ledger.model(one).training_flops, ledger.model(other).training_flops
        assert b == pytest.approx(a, rel=0.1)


def test_the_record_holds_every_engine(out):
    from deploy.bench.records import Bench

    bench = Bench.from_file(out / "bench.json")
    ours = [r for r in bench.records if r.runtime == "onnxruntime"]
    assert [r.name for r in ours] == ["dense", "pruned", "distilled", "distilled-fp16", "int8"]
    # Where OpenVINO goes first all were timed on it too, and are shown alone.
    assert [(r.name, r.reference) for r in bench.records[5:]] in (
        [], [(f"{r.name}-openvino", "dense-openvino") for r in ours]
    )  # fmt: skip
    assert bench.records[0].ratio_to_dense == 1
    # A network that is cut and not trained since is at chance: a gate holds all but it to a baseline.
    assert [r.name for r in ours if not r.held] == ["pruned"] and not any(r.held for r in bench.records[5:])
    for record in ours:
        assert record.status == "measured"
        assert record.parity
        assert 0 <= record.accuracy <= 1


def test_the_export_stage_says_what_each_precision_costs(out):
    from compress.run.ledger import Ledger

    stage = next(s for s in Ledger.read(out / "ledger.json").stages if s.name == "export")
    for name in ("distilled", "distilled-fp16", "int8"):
        assert 0 <= stage.metrics[f"val_accuracy_{name}"] <= 1
    assert stage.metrics["int8_time_of_fp32"] > 0
    said = next(note for note in stage.notes if note.startswith("int8: ") and " of the time of fp32" in note)
    assert ("int8 is no faster than fp32" in said) == (stage.metrics["int8_time_of_fp32"] > 1)


def test_the_log_is_one_json_document_a_line(out):
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines[0]["event"] == "start"
    assert [line["name"] for line in lines if line["event"] == "stage"][-1] == "bundle"


def test_the_artifacts_load_and_fit_their_ledger(out):
    import torch

    import compress
    from compress import cost
    from compress.run.ledger import Ledger

    ledger = Ledger.read(out / "ledger.json")
    for name in ("teacher", "pruned", "student"):
        net = compress.load(out / name)
        assert cost.macs(net, torch.zeros(1, 1, 16, 16)) == ledger.model(name).macs
        assert cost.parameters(net) == ledger.model(name).params


def test_output_that_is_no_terminal_has_no_control_characters(done):
    process = done[1]
    text = process.stdout + process.stderr
    assert all(c.isprintable() or c == "\n" for c in text)
    assert process.stderr == ""
    assert "[ 1/11]" in process.stdout
    assert "accuracy on 1047 test images" in process.stdout


def test_nothing_of_this_machine_is_in_what_is_shipped(done, out):
    home = str(done[0]).encode()
    for path in [*(out / "bundle").rglob("*"), out / "ledger.json", out / "bench.json", out / "report.html"]:
        if path.is_file():
            assert home not in path.read_bytes(), path


def test_running_again_without_resume_exits_two(done, out):
    before = hashes(out)
    process = run(cwd=done[0])
    assert process.returncode == 2
    one_sentence(process.stderr)
    assert "--resume" in process.stderr
    assert process.stdout == ""
    assert hashes(out) == before


def test_resuming_what_is_done_changes_the_report_alone(done, out):
    before = hashes(out)
    process = run("--resume", cwd=done[0])
    assert process.returncode == 0, process.stderr
    after = hashes(out)
    assert {n for n in before | after if before.get(n) != after.get(n)} <= {"report.html"}
    assert process.stdout.count("done before") == 11


@pytest.mark.parametrize("lost", ["bundle", "deploy/student.int8.onnx", "student/model.safetensors"])
def test_resuming_makes_what_was_lost_again(out, tmp_path, lost):
    shutil.copytree(out, tmp_path / "out")
    gone = tmp_path / "out" / lost
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    process = run("--resume", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert "done before" in process.stdout
    for name in ("teacher/model.safetensors", "student/model.safetensors", "deploy/student.fp32.onnx"):
        assert digest(tmp_path / "out" / name) == digest(out / name), name
    assert (tmp_path / "out/bundle/manifest.json").is_file()


def test_two_processes_cannot_share_a_folder(out, tmp_path):
    shutil.copytree(out, tmp_path / "out")
    with (tmp_path / "out/log.jsonl").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        process = run("--resume", cwd=tmp_path)
    assert process.returncode == 2
    one_sentence(process.stderr)
    assert "Another process" in process.stderr


def test_resuming_with_a_changed_recipe_exits_two(done, out):
    before = hashes(out)
    process = run("--resume", "--set", "seed=1", cwd=done[0])
    assert process.returncode == 2
    one_sentence(process.stderr)
    assert "another recipe" in process.stderr
    assert hashes(out) == before


def test_json_prints_one_document_and_quiet_prints_nothing(done):
    process = run("--resume", "--json", cwd=done[0])
    assert process.returncode == 0
    figures = json.loads(process.stdout)
    assert figures["test_images"] == 1047
    assert set(figures["engines"]) == {"dense", "pruned", "distilled", "int8"}
    quiet = run("--resume", "--quiet", cwd=done[0])
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")


def test_a_damaged_ledger_is_one_sentence(done, tmp_path):
    shutil.copytree(done[0] / "out", tmp_path / "out")
    (tmp_path / "out/ledger.json").write_text("{")
    process = run("--resume", cwd=tmp_path)
    assert process.returncode == 2
    one_sentence(process.stderr)
    assert "ledger.json" in process.stderr


NO_TORCH = """
import sys
from compress.cli.app import main
try:
    main()
finally:
    heavy = sorted({"torch", "onnx", "torchvision", "lightning", "nncf", "scipy"} & set(sys.modules))
    print(heavy, file=sys.stderr)
"""


def test_predict_needs_neither_torch_nor_onnx(done, out):
    images = sorted(str(p) for p in (out / "samples").iterdir())
    command = [sys.executable, "-c", NO_TORCH, "predict", str(out / "bundle"), *images, "--json"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=done[0], check=False)
    assert process.returncode == 0, process.stderr
    assert process.stderr.strip() == "[]"
    found = json.loads(process.stdout)
    assert [Path(item["file"]).name for item in found] == [Path(p).name for p in images]
    assert all(item["class"] in "0123456789" and 0 <= item["probability"] <= 1 for item in found)


def test_the_bundle_says_what_it_was_made_of(out):
    said = json.loads((out / "bundle/manifest.json").read_text())
    assert said["tensorrt"]["int8"]["sha256"] == digest(out / "deploy/student.int8.trt.onnx")
    calibration = said["calibration"]
    assert (calibration["count"], calibration["seed"]) == (20, 0)
    assert len(calibration["ranges"]) > 3
    assert said["weights"] == {"source": "pretrained on rendered_digits", "sha256": None}
    assert said["licence"] is None


def test_predict_agrees_with_the_student(done, out):
    import numpy as np
    import torch

    import compress
    from compress.artifact import describe
    from deploy.bundle.bundle import load
    from deploy.processing import preprocess
    from deploy.processing.preprocess import Preprocessing

    net, about = compress.load(out / "student"), describe(out / "student")
    prepare = Preprocessing(**about.preprocessing)
    paths = sorted((out / "samples").iterdir())
    batch = torch.from_numpy(np.stack([prepare(preprocess.load(p)) for p in paths]))
    expected = net(batch).softmax(1).max(1)
    with load(out / "bundle") as engine:
        found = engine.predict(paths)
    # The bundle ships int8; a tiny student is sure of little.
    assert np.abs([f["probability"] for f in found] - expected.values.detach().numpy()).max() < 0.2


def test_the_gate_passes_itself_and_stops_what_is_worse(done, out, tmp_path):
    bench = out / "bench.json"
    same = niwaki("gate", bench, "--baseline", bench, "--json", cwd=done[0])
    assert same.returncode == 0, same.stderr
    assert json.loads(same.stdout)["passed"] is True
    better = json.loads(bench.read_text(encoding="utf-8"))
    better["records"][4]["accuracy"] += 0.05
    doctored = tmp_path / "better.json"
    doctored.write_text(json.dumps(better), encoding="utf-8")
    worse = niwaki("gate", bench, "--baseline", doctored, cwd=done[0])
    assert worse.returncode == 1, worse.stderr
    assert "failed" in worse.stdout
    assert all(c.isprintable() or c == "\n" for c in worse.stdout)
    better["records"][4]["accuracy"] -= 0.05
    for key in ("ratio_to_dense", "ratio_of_best"):
        better["records"][4][key] /= 2
    better["records"][4]["best_interval"] = [better["records"][4]["ratio_of_best"]] * 2
    doctored.write_text(json.dumps(better), encoding="utf-8")
    assert niwaki("gate", bench, "--baseline", doctored, "--repeats", "0", cwd=done[0]).returncode == 1


def interrupted(cwd, after):
    """Starts the run, presses Ctrl-C when the stage `after` is in the ledger, gives the finished process."""
    process = processes.started("run", ROOT / "recipes/digits.yaml", "--out", "out", *SETS, cwd=cwd)
    log, deadline = cwd / "out/log.jsonl", time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if log.is_file() and f'"name": "{after}"' in log.read_text(encoding="utf-8"):
            process.send_signal(signal.SIGINT)
            break
        time.sleep(0.01)
    shown, error = process.communicate(timeout=120)
    return process.returncode, shown, error


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was stopped after its teacher: its folder, exit code and what it said."""
    home = tmp_path_factory.mktemp("stopped")
    return home, *interrupted(home, "transfer")


def test_ctrl_c_exits_130_and_leaves_nothing_half_written(stopped):
    home, code, shown, error = stopped
    assert code == 130, error
    assert "Traceback" not in shown + error
    assert not (home / "out/bench.json").exists()
    assert [p.name for p in (home / "out").rglob("*.tmp")] == []


def test_ctrl_c_says_how_to_go_on(stopped):
    one_sentence(stopped[3])
    assert "--resume" in stopped[3]


def test_resuming_what_was_stopped_gives_the_same_networks(out, stopped, tmp_path):
    shutil.copytree(stopped[0] / "out", tmp_path / "out")
    process = run("--resume", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("done before") == 2
    for name in ("teacher", "pruned", "student"):
        path = f"{name}/model.safetensors"
        assert digest(tmp_path / "out" / path) == digest(out / path), name
