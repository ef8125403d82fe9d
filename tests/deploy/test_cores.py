"""Threads follow the CPU quota of the container, in control groups of both versions; too many are said to be."""

import os

import pytest
from typer.testing import CliRunner

import deploy
from compress.cli.app import app
from deploy.engines import cores
from deploy.engines.base import check_threads
from deploy.engines.cores import cpu_quota, over_cores, usable_cores


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


def machine(root, groups, **files):
    """Lay out ``proc`` and ``sys`` under ``root``; a file's name has a dash for each slash."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for place, text in files.items():
        path = root / "sys/fs/cgroup" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V2 = {
    "in a namespace of its own": ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5, 1),
    "below a limited group": ("0::/a/b\n", {"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "max 100000\n"}, 3.0, 3),
    "the least of several": ("0::/a/b\n", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "200000 100000"}, 2.0, 2),
    "a tenth of a core": ("0::/\n", {"cpu.max": "10000 100000\n"}, 0.1, 1),
    "more than there are": ("0::/\n", {"cpu.max": "1600000 100000\n"}, 16.0, 8),
    "no quota": ("0::/\n", {"cpu.max": "max 100000\n"}, None, 8),
    "no controller": ("0::/\n", {}, None, 8),
    "the whole machine's groups": ("0::/docker/abc\n", {"cpu.max": "400000 100000\n"}, 4.0, 4),
}
V1 = {
    "by its name": (
        "3:cpu:/x\n",
        {"cpu/x/cpu.cfs_quota_us": "250000\n", "cpu/x/cpu.cfs_period_us": "100000\n"},
        2.5,
        2,
    ),
    "with accounting": (
        "4:memory:/x\n3:cpu,cpuacct:/x\n",
        {"cpu,cpuacct/cpu.cfs_quota_us": "50000", "cpu,cpuacct/cpu.cfs_period_us": "50000"},
        1.0,
        1,
    ),
    "no quota": ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None, 8),
}

MIXED = {
    "version 2 beside version 1": ("3:memory:/\n0::/x\n", {"unified/x/cpu.max": "250000 100000\n"}, 2.5, 2),
    "the quota of version 1 holds": (
        "3:cpu:/x\n0::/x\n",
        {"unified/x/cgroup.procs": "1\n", "cpu/x/cpu.cfs_quota_us": "300000", "cpu/x/cpu.cfs_period_us": "100000"},
        3.0,
        3,
    ),
}
SETS = {
    "version 2": ("0::/a\n", {"a/cpuset.cpus.effective": "0-2,5\n"}, None, 4),
    "version 2 of the group above": ("0::/a\n", {"cpuset.cpus.effective": "7\n", "a/cpuset.cpus": "\n"}, None, 1),
    "version 1": ("4:cpuset:/a\n", {"cpuset/a/cpuset.cpus": "2-3\n"}, None, 2),
    "version 1 as it is in force": (
        "4:cpuset:/a\n",
        {"cpuset/a/cpuset.effective_cpus": "1\n", "cpuset/a/cpuset.cpus": "0-5\n"},
        None,
        1,
    ),
    "a set beside a quota": ("0::/\n", {"cpuset.cpus.effective": "0-5\n", "cpu.max": "250000 100000\n"}, 2.5, 2),
    "a set below the quota": ("0::/\n", {"cpuset.cpus.effective": "0\n", "cpu.max": "250000 100000\n"}, 2.5, 1),
    "more than there are": ("0::/\n", {"cpuset.cpus.effective": "0-63\n"}, None, 8),
    "what is no list": ("0::/\n", {"cpuset.cpus.effective": "all\n"}, None, 8),
}


@pytest.mark.parametrize("case", [*MIXED.values(), *SETS.values()], ids=[*MIXED, *SETS])
def test_number_16_cpu_sets_and_mixed_groups_are_followed(case, tmp_path):
    groups, files, quota, usable = case
    root = machine(tmp_path, groups, **files)
    assert (cpu_quota(root), usable_cores(root)) == (quota, usable)


@pytest.mark.parametrize("case", [*V2.values(), *V1.values()], ids=[*V2, *(f"version 1, {name}" for name in V1)])
def test_number_16_cores_follow_the_quota(case, tmp_path):
    groups, files, quota, usable = case
    root = machine(tmp_path, groups, **files)
    assert (cpu_quota(root), usable_cores(root)) == (quota, usable)


def test_number_16_no_files_are_no_quota(tmp_path):
    assert (cpu_quota(tmp_path), usable_cores(tmp_path)) == (None, 8)


def test_number_16_more_threads_than_cores_are_said(tmp_path):
    root = machine(tmp_path, "0::/\n", **{"cpu.max": "200000 100000\n"})
    assert over_cores(2, root) is None and over_cores(0, root) is None
    said = over_cores(3, root)
    assert said is not None and "3 threads share 2 usable core(s), by a CPU quota of 2" in said
    assert "9 threads share 8 usable core(s):" in str(over_cores(9, tmp_path / "none"))


def test_number_16_bench_predict_and_the_bundle_say_it(bundle_dir, picture, monkeypatch):
    monkeypatch.setattr(cores, "usable_cores", lambda root=None: 1)
    said = "2 threads share 1 usable core(s)"
    with deploy.load(bundle_dir, threads=2) as crowded, deploy.load(bundle_dir) as alone:
        assert said in crowded.why and "share" not in alone.why
    model, runner = bundle_dir / "model.fp32.onnx", CliRunner()
    for words in (["predict", bundle_dir, picture], ["bench", model, "--rounds", "5", "--seconds", "0", "--no-probe"]):
        found = [runner.invoke(app, [*map(str, words), "--threads", str(threads)]) for threads in (1, 2)]
        assert [done.exit_code for done in found] == [0, 0]
        heard = [" ".join(done.output.split()) for done in found]
        assert said not in heard[0] and said in heard[1]


def test_number_16_zero_threads_are_the_usable_cores(monkeypatch):
    monkeypatch.setattr(cores, "cpu_quota", lambda root: 3.7)
    monkeypatch.setattr(cores, "_cores_in", lambda folder: 0)
    assert check_threads(0) == 3 and check_threads(5) == 5
