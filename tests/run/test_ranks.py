"""A run in two processes: what it leaves, how it fails, and that it goes on after a process was killed."""

import json
import os
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
    "source.data.images=200", "source.train.epochs=2", "transfer.epochs=2", "distill.epochs=2",
    "prune.budget.macs=0.6", "prune.round_to=4", "prune.min_kept=4", "prune.rounds=2", "prune.recover_epochs=1",
    "deploy.rtx_targets=[]", "deploy.rounds=5", "deploy.precisions=[fp32]", "deploy.ship=fp32", "twin=false",
)  # fmt: skip
ARGUMENTS = [str(ROOT / "recipes/digits.yaml"), "--out", "out", *(part for v in TINY for part in ("--set", v))]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
STAGES = ("pretrain", "transfer", "prune", "distill", "finetuned", "scratch", "export", "test", "bench", "bundle")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    home = tmp_path_factory.mktemp("alone")
    process = niwaki("run", *ARGUMENTS, cwd=home)
    assert process.returncode == 0, process.stderr
    return home / "out"


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    home = tmp_path_factory.mktemp("two")
    command = [*TORCHRUN, "compress.run", *ARGUMENTS, "--json"]
    process = subprocess.run(
        command, cwd=home, env=processes.ENVIRONMENT, capture_output=True, text=True, timeout=900, check=False
    )
    assert process.returncode == 0, process.stderr
    return home / "out", process


def ledger_of(out):
    return json.loads((out / "ledger.json").read_text(encoding="utf-8"))


def test_torchrun_leaves_what_one_process_leaves(alone, two):
    out, process = two
    assert json.loads(process.stdout)["test_images"] == 1047
    assert process.stderr.count("Distil the student from the teacher") == 1
    files = [{str(p.relative_to(o)) for p in o.rglob("*") if "answers" not in p.parts} for o in (alone, out)]
    assert files[0] == files[1]
    events = [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [e["event"] for e in events] == ["start"] + ["stage"] * len(STAGES)


def test_two_processes_do_the_same_steps_as_one(alone, two):
    one, both = ledger_of(alone), ledger_of(two[0])
    assert tuple(s["name"] for s in both["stages"]) == STAGES
    for a, b in zip(one["stages"][:2], both["stages"][:2], strict=True):
        assert a["training_flops"] == b["training_flops"], a["name"]
    for name in ("pretrain", "transfer"):
        rows = [(o / "logs" / f"{name}.csv").read_text(encoding="utf-8").splitlines() for o in (alone, two[0])]
        assert len(rows[0]) == len(rows[1])
    assert both["models"][0]["training_flops"] == one["models"][0]["training_flops"]


def test_a_rank_that_is_killed_ends_the_run_and_resume_goes_on(tmp_path, two):
    command = ["run", *ARGUMENTS, "--devices", "2"]
    process = processes.started(*command, cwd=tmp_path)
    log, deadline = tmp_path / "out/log.jsonl", time.monotonic() + 400
    while time.monotonic() < deadline and process.poll() is None:
        if log.is_file() and '"name": "transfer"' in log.read_text(encoding="utf-8"):
            os.kill(rank_of(process.pid, 1), signal.SIGKILL)
            break
        time.sleep(0.01)
    shown, error = process.communicate(timeout=400)
    assert process.returncode == 1, error
    assert "Traceback" not in shown + error
    assert error.count("\n") <= 1
    again = niwaki(*command, "--resume", cwd=tmp_path, timeout=400)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("done before") >= 2
    student = [(o / "student/model.safetensors").read_bytes() for o in (tmp_path / "out", two[0])]
    assert student[0] == student[1]


def rank_of(parent, rank):
    """The process id of a rank that `parent` started."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                status = (entry / "status").read_text()
                environment = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if f"\nPPid:\t{parent}\n" in status and f"RANK={rank}".encode() in environment:
                return int(entry.name)
    raise AssertionError("no such rank")


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        (["--out", "holds"], 2, "not empty and holds no run"),
        (["--set", "source.train.batch_size=33"], 1, "make batch_size a multiple of 2"),
        (["--set", "prune.budget.macs=7"], 2, "at most 1 is wanted"),
    ],
)
def test_an_error_is_one_sentence_of_one_process_and_its_exit_code(tmp_path, given, code, said):
    (tmp_path / "holds").mkdir()
    (tmp_path / "holds/file").touch()
    process = niwaki("run", *ARGUMENTS, *given, "--devices", "2", cwd=tmp_path)
    assert process.returncode == code, process.stderr
    assert process.stderr.startswith("niwaki: ")
    assert process.stderr.count("\n") == 1
    assert said in process.stderr


def test_devices_under_a_launcher_is_refused(tmp_path):
    environment = processes.ENVIRONMENT | {"WORLD_SIZE": "2", "RANK": "0"}
    process = niwaki("run", *ARGUMENTS, "--devices", "2", cwd=tmp_path, env=environment)
    assert process.returncode == 2
    assert "torchrun says itself" in process.stderr
