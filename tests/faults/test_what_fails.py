"""What a machine does to a run: one sentence and the right exit code, and ``--resume`` comes to the same result."""

import errno
import json
import os
import subprocess

import pytest
from fault_recipe import STAGES, ended, one_sentence, result

pytestmark = pytest.mark.faults


def goes_on(home, expected, out="out"):
    done = ended(home, "none", out=out)
    assert (done.returncode, done.stderr) == (0, "")
    assert result(home / out) == expected


def test_a_clock_that_jumps_changes_nothing(expected, tmp_path):
    done = ended(tmp_path, "clock", 86_400)
    assert (done.returncode, done.stderr) == (0, "")
    assert result(tmp_path / "out") == expected


def test_a_data_worker_that_dies(expected, tmp_path):
    # Its checkpoint is there once a step is done.
    under_way = tmp_path / "out/checkpoints/transfer.training.safetensors"
    done = ended(tmp_path, "worker", under_way)
    assert done.returncode == 1
    one_sentence(done.stderr)
    assert "A data worker died" in done.stderr
    goes_on(tmp_path, expected)


def test_a_loss_that_is_no_number(expected, tmp_path):
    done = ended(tmp_path, "no_number", 6)
    assert done.returncode == 1
    one_sentence(done.stderr)
    assert "The loss is nan at step" in done.stderr
    goes_on(tmp_path, expected)


@pytest.mark.parametrize(
    ("number", "code"), [(0, "ENOSPC"), (1, "EROFS"), (7, "ENOSPC"), (25, "EROFS"), (40, "ENOSPC"), (55, "ENOSPC")]
)
def test_a_disk_that_takes_no_more_files(number, code, expected, tmp_path):
    done = ended(tmp_path, "refuse", number, code)
    said = os.strerror(getattr(errno, code))
    assert done.returncode == 3, done.stderr
    one_sentence(done.stderr)
    assert said in done.stderr
    assert code != "ENOSPC" or "free some space" in done.stderr
    goes_on(tmp_path, expected)


@pytest.mark.parametrize("kilobytes", [40, 500])
def test_a_full_disk(kilobytes, expected, tmp_path):
    """A file system of so many kilobytes, which is then made larger."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(options):
        return subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "none", disk], check=False, capture_output=True, text=True
        )

    try:
        made = mount(f"size={kilobytes}k")
    except FileNotFoundError:
        pytest.skip("there is no command mount")
    if made.returncode:
        pytest.skip(f"mounting is not allowed ({made.stderr.strip()})")
    try:
        done = ended(tmp_path, "none", out=disk / "out")
        assert done.returncode == 3, done.stderr
        one_sentence(done.stderr)
        assert "No space left" in done.stderr and "free some space" in done.stderr
        mount("remount,size=64m")
        goes_on(tmp_path, expected, out=disk / "out")
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("stage", ["prepare", "transfer", "export", "report"])
def test_a_folder_that_may_not_be_written_to(stage, expected, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    done = ended(tmp_path, "read_only", stage, out)
    assert done.returncode in (2, 3), done.stderr
    one_sentence(done.stderr)
    for place in (out, *(path for path in out.rglob("*") if path.is_dir())):
        place.chmod(0o755)
    goes_on(tmp_path, expected)


@pytest.mark.parametrize(("stage", "megabytes"), [("prepare", 1), ("transfer", 1), ("prune", 1), ("export", 20)])
def test_no_memory(stage, megabytes, expected, tmp_path):
    done = ended(tmp_path, "no_memory", stage, megabytes)
    # What is small enough goes through.
    if done.returncode:
        assert done.returncode == 3, (done.returncode, done.stderr)
        one_sentence(done.stderr)
        assert "memory" in done.stderr
    goes_on(tmp_path, expected)


def test_the_faults_meet_a_run_of_every_stage(whole):
    stages = json.loads((whole / "out/ledger.json").read_text())["stages"]
    assert [stage["name"] for stage in stages] == [*STAGES]
    assert os.listdir(whole / "out/bundle")  # noqa: PTH208
