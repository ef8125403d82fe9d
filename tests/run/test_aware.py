"""A tiny run that trains for int8: the stage, what it leaves, and what the int8 file is made from."""

from pathlib import Path

import pytest
from processes import niwaki

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SETS = (
    "model.arguments.depth=8", "model.arguments.width=8", "preprocessing.size=[16, 16]", "twin=false",
    "source.data.images=200", "source.train.epochs=1", "transfer.epochs=1", "distill.epochs=1", "distill.compare=[]",
    "prune.budget.macs=0.6", "prune.round_to=4", "prune.min_kept=4", "deploy.precisions=[fp32, int8]",
    "deploy.rtx_targets=[]", "deploy.rounds=5", "deploy.calibration_images=20", "deploy.qat.epochs=1",
)  # fmt: skip


def test_the_int8_file_comes_from_what_was_trained_for_it(tmp_path):
    pytest.importorskip("nncf", reason="NNCF is not installed")
    from compress import load
    from compress.run.ledger import Ledger
    from deploy.files import sha256
    from deploy.onnx.wire import scan

    arguments = [part for value in SETS for part in ("--set", value)]
    done = niwaki("run", ROOT / "recipes/digits.yaml", "--out", "out", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    stages = {stage.name: stage for stage in Ledger.read(out / "ledger.json").stages}
    assert list(stages).index("distill") < list(stages).index("aware") < list(stages).index("export")
    assert stages["aware"].training_flops > 0
    source = scan(out / "deploy/student.int8.onnx").properties["niwaki.source_sha256"]
    assert source == sha256(out / "deploy/aware.fp32.onnx") != sha256(out / "deploy/student.fp32.onnx")
    student, aware = (load(out / name).state_dict() for name in ("student", "checkpoints/aware"))
    assert list(student) == list(aware)
    assert any(not student[name].equal(aware[name]) for name in student if name.endswith("conv1.weight"))
    # Statistics are those of the student: only weights were trained.
    assert all(student[name].equal(aware[name]) for name in student if "running_" in name)
