"""What a gate once passed blindly: other threads, another reference, a long tail, a large file, lost parity."""

import pytest

from deploy.bench.conditions import Conditions
from deploy.bench.gate import gate
from deploy.bench.records import Bench, Record
from deploy.bench.tolerances import Tolerances
from deploy.errors import DeployError

MACHINE = {"cpu": "a processor", "cores": 2, "architecture": "x86_64"}
QUIET = Conditions(load=0.5, cores=2, processor_share=1.0)
COLD = {"load_ms": 9.0, "first_ms": 1.0, "peak_rss_bytes": 100_000_000, "own_rss_bytes": 10_000_000}
NOISY = QUIET.model_copy(update={"load": 7.0})
DENSE = {
    "model": "teacher", "runtime": "onnxruntime", "precision": "fp32", "batch": 1, "status": "measured",
    "reference": "dense", "repeats": 500, "min_ms": 1.0, "median_ms": 1.1, "p99_ms": 1.5, "ratio_to_dense": 1.0,
    "ratio_interval": (1.0, 1.0), "ratio_of_best": 1.0, "best_interval": (1.0, 1.0), "accuracy": 0.97,
    "file_bytes": 1_000_000, "sha256": "d" * 64, "structure": "D" * 64, "conditions": QUIET, "cold": COLD,
    "parity": ({"batch": 1, "snr_db": 120.0},),
}  # fmt: skip
INT8 = DENSE | {
    "model": "student", "precision": "int8", "min_ms": 0.4, "median_ms": 0.44, "p99_ms": 0.6, "ratio_to_dense": 0.4,
    "ratio_interval": (0.39, 0.41), "ratio_of_best": 0.4, "best_interval": (0.395, 0.405), "file_bytes": 300_000,
    "sha256": "e" * 64, "structure": "E" * 64, "parity": ({"batch": 1, "snr_db": 30.0}, {"batch": 2, "snr_db": 35.0}),
}  # fmt: skip


def bench(int8=None, dense=None, *, machine=None, versions=None, threads=1, names=("dense", "int8")):
    told = {"dense": DENSE | (dense or {}), "int8": INT8 | (int8 or {})}
    records = (Record(**{"name": name, **fields}) for name, fields in zip(names, told.values(), strict=True))
    return Bench(
        name="b",
        machine=MACHINE | (machine or {}),
        versions={"onnxruntime": "1.31.1"} | (versions or {}),
        settings={"threads": threads},
        records=tuple(records),
    )


def failures(result):
    return [(line.name, line.what) for line in result.failed()]


@pytest.mark.parametrize(
    ("change", "fails"),
    [
        ({"ratio_of_best": 0.44, "best_interval": (0.43, 0.45), "min_ms": 0.44}, "latency, best"),
        ({"ratio_to_dense": 0.44, "ratio_interval": (0.43, 0.45)}, "latency"),
        ({"best_interval": (0.1, 9.0)}, "interval"),
        ({"best_interval": (0.6, 0.7)}, "interval"),
        ({"p99_ms": 12.0}, "tail"),
        ({"file_bytes": 3_000_000}, "size"),
        ({"parity": ({"batch": 1, "snr_db": 12.0},)}, "parity"),
        ({"parity": None, "sha256": "f" * 64}, "parity"),
        ({"cold": COLD | {"peak_rss_bytes": 200_000_000}}, "memory"),
    ],
)
def test_each_loss_is_seen(change, fails):
    assert failures(gate(bench(change), bench())) == [("int8", fails)]
    assert gate(bench(), bench()).passed


def test_an_absurd_interval_of_the_baseline_is_seen_too():
    assert ("int8", "interval") in failures(gate(bench(), bench({"best_interval": (0.1, 9.0)})))


def test_other_threads_fail_and_another_version_or_processor_is_said():
    assert failures(gate(bench(threads=4), bench())) == [("dense", "threads"), ("int8", "threads")]
    allowed = Tolerances(allow=frozenset({"threads"}))
    assert gate(bench(threads=4), bench(), tolerances=allowed).passed
    found = gate(bench(versions={"onnxruntime": "1.32.0"}, machine={"cpu": "another"}), bench())
    assert found.passed
    said = {line.note for line in found.lines if line.what == "machine"}
    assert any("another version of the runtime" in note for note in said)
    assert any("another processor" in note for note in said)


def test_a_baseline_whose_int8_sums_are_of_the_other_kind_is_said_of_int8_alone():
    here, there = ({"cpu": kind, "int8_sums": kind} for kind in ("saturating", "exact"))
    found = gate(bench(machine=here), bench(machine=there))
    said = {line.name for line in found.lines if "int8 sums saturate, so that answers differ" in (line.note or "")}
    assert said == {"int8"}
    alike = gate(bench(machine=here), bench(machine=here | {"cpu": "another"}))
    assert not any("saturate" in (line.note or "") for line in alike.lines)


def test_a_reference_is_known_by_its_content_and_not_by_its_name():
    """A slower reference hid a student that was 20 % slower."""
    slower = {"sha256": "a" * 64, "structure": "A" * 64}
    assert failures(gate(bench(dense=slower), bench())) == [("dense", "reference"), ("int8", "reference")]
    # Weights that were trained anew change nothing: the structure is the same.
    assert gate(bench(dense={"sha256": "a" * 64}), bench()).passed
    unknown = {"sha256": "a" * 64, "structure": None}
    assert not gate(bench(dense=unknown), bench()).passed
    assert gate(bench(dense=unknown), bench(), tolerances=Tolerances(allow=frozenset({"reference"}))).passed


def test_milliseconds_are_held_on_the_same_machine_alone():
    slow = {"min_ms": 2.0, "median_ms": 2.2, "p99_ms": 3.0}  # dense and int8 alike: the ratios are as they were
    both = {"int8": {"min_ms": 0.8, "median_ms": 0.88, "p99_ms": 1.2}, "dense": slow}
    assert failures(gate(bench(**both), bench())) == [("dense", "absolute"), ("int8", "absolute")]
    assert gate(bench(**both, machine={"cpu": "another"}), bench()).passed


def test_on_a_noisy_machine_best_times_judge_and_it_is_said():
    noisy = {"conditions": NOISY, "ratio_to_dense": 0.9, "ratio_interval": (0.8, 1.0), "p99_ms": 40.0}
    found = gate(bench(noisy), bench())
    assert found.passed
    assert any(line.what == "machine" and "noisy" in line.note for line in found.lines)
    slower = noisy | {"ratio_of_best": 0.44, "best_interval": (0.43, 0.45)}
    assert failures(gate(bench(slower), bench())) == [("int8", "latency, best")]


def test_what_a_noisy_baseline_fails_says_so():
    slower = {"ratio_of_best": 0.44, "best_interval": (0.43, 0.45)}
    (fails,) = gate(bench(slower), bench({"conditions": NOISY})).failed()
    assert "the baseline was timed on a noisy machine (" in fails.note
    assert "make it anew on a quiet one" in fails.note
    (fails, _) = gate(bench(slower | {"ratio_to_dense": 0.44}), bench()).failed()
    assert fails.note is None


def test_a_bench_from_another_folder_is_matched_by_content():
    elsewhere = bench({"reference": "teacher.fp32"}, {"reference": "teacher.fp32"}, names=("teacher.fp32", "student"))
    found = gate(elsewhere, bench())
    assert found.passed
    assert {line.name for line in found.lines} == {"dense", "int8"}
    other = bench({"sha256": "f" * 64}, names=("dense", "student"))
    assert failures(gate(other, bench())) == [("int8", "presence")]


def test_what_the_same_file_was_measured_for_is_not_asked_again():
    timed = {"accuracy": None, "parity": None}
    assert gate(bench(timed, timed), bench()).passed
    found = gate(bench(timed | {"sha256": "f" * 64}), bench())
    assert failures(found) == [("int8", "accuracy"), ("int8", "parity")]
    assert "--data" in next(line.note for line in found.failed())


def test_older_records_are_judged_by_the_best_times_that_they_hold():
    new = dict.fromkeys(("ratio_of_best", "best_interval", "conditions", "structure"))
    old = bench(new, new)
    assert gate(old, old).passed
    assert failures(gate(bench(new | {"min_ms": 0.44}, new), old)) == [("int8", "latency, best")]


def test_only_some_records_can_be_held():
    assert gate(bench({"file_bytes": 9_000_000}), bench(), only=["dense"]).passed
    with pytest.raises(DeployError, match="has no record 'fp16'; it has dense, int8"):
        gate(bench(), bench(), only=["fp16"])
    with pytest.raises(DeployError, match="nothing called 'luck' to allow"):
        gate(bench(), bench(), tolerances=Tolerances(allow=frozenset({"luck"})))
