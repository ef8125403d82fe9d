"""Energy and memory of graphics cards, read from a made-up sysfs and a made-up NVML."""

import os
from types import SimpleNamespace

import pytest

from deploy.bench.conditions import Watch
from deploy.bench.energy import PowerMeter
from deploy.environment import clock_mhz, int8_sums


class NvmlError(Exception):
    pass


class Nvml:
    """Two cards that take a joule at each reading."""

    NVMLError = NvmlError

    def __init__(self, refuses=False):
        self.refuses, self.millijoules, self.opened = refuses, 5000, 0
        self.nvmlInit = lambda: self.count(1)
        self.nvmlShutdown = lambda: self.count(-1)
        self.nvmlDeviceGetCount = lambda: 2
        self.nvmlDeviceGetHandleByIndex = lambda index: index
        self.nvmlDeviceGetTotalEnergyConsumption = self.energy
        self.nvmlDeviceGetComputeRunningProcesses = self.running
        self.NVML_CLOCK_SM = 1
        self.nvmlDeviceGetName = lambda card: (b"A card", "Another card")[card]
        self.nvmlDeviceGetClockInfo = lambda card, kind: 1980 + card if kind == 1 else 0

    def count(self, change):
        self.opened += change

    def energy(self, card):
        if self.refuses:
            raise NvmlError("Not Supported")
        self.millijoules += 1000
        return self.millijoules

    def running(self, card):
        mine = SimpleNamespace(pid=os.getpid(), usedGpuMemory=100)
        return [mine, SimpleNamespace(pid=-1, usedGpuMemory=7)]


def zone(root, name, title, microjoules, most=1000):
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    for file, value in (("name", title), ("energy_uj", microjoules), ("max_energy_range_uj", most)):
        (folder / file).write_text(f"{value}\n")


def test_packages_are_added_up_without_their_parts_and_over_the_end_of_a_counter(tmp_path):
    for name, title, value in (
        ("intel-rapl:0", "package-0", 100), ("intel-rapl:0:0", "core", 50), ("intel-rapl:1", "package-1", 900),
        ("intel-rapl:2", "psys", 7),
    ):  # fmt: skip
        zone(tmp_path, name, title, value)
    meter = PowerMeter(tmp_path, Nvml())
    zone(tmp_path, "intel-rapl:0", "package-0", 300)
    zone(tmp_path, "intel-rapl:0:0", "core", 150)
    zone(tmp_path, "intel-rapl:1", "package-1", 100)
    assert meter.power().processor_joules == pytest.approx((200 + 200) / 1e6)


def test_cards_tell_their_energy_and_what_this_process_holds(tmp_path):
    nvml = Nvml()
    found = PowerMeter(tmp_path, nvml).power()
    # 6 and 7 joules at first, 8 and 9 at the end.
    assert (found.gpu_joules, found.gpu_memory_bytes) == (pytest.approx(4.0), 200)
    assert found.gpus == ("A card, 1980 MHz", "Another card, 1981 MHz")
    assert nvml.opened == 0


def test_what_cannot_be_read_is_none_and_says_why(tmp_path):
    found = PowerMeter(tmp_path / "none", Nvml(refuses=True)).power()
    assert found.processor_joules is None and found.gpu_joules is None
    assert "RAPL counts no processor package here" in found.reason and "Not Supported" in found.reason
    zone(tmp_path, "intel-rapl:0", "package-0", "no number")
    assert "RAPL cannot be read" in PowerMeter(tmp_path, Nvml()).power().reason


def test_the_conditions_of_every_sitting_hold_them():
    power = Watch().conditions().power
    assert power.processor_joules is not None or power.reason


def test_the_clock_is_that_of_the_cores_that_may_be_used(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 2}, raising=False)
    assert clock_mhz(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("".join(f"processor : {i}\ncpu MHz : {2000.0 + i}\n" for i in range(4)))
    assert clock_mhz(tmp_path) == 2001.5
    for core, kilohertz in enumerate((800_000, 3_000_000, 3_100_000)):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{core}/cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_cur_freq").write_text(f"{kilohertz}\n")
    assert clock_mhz(tmp_path) == 3050.0


@pytest.mark.parametrize(
    ("flags", "sums"),
    [
        ("flags\t\t: fpu sse4_2 avx2 avx512f avx512_vnni", "exact"),
        ("flags\t\t: fpu avx2 avx_vnni", "exact"),
        ("flags\t\t: fpu avx2 avx512f", "saturating"),
        ("Features\t: fp asimd asimddp", None),  # aarch64
    ],
)
def test_the_processor_tells_how_it_sums_products_of_int8(tmp_path, flags, sums):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nmodel name\t: any\n{flags}\n")
    assert int8_sums(tmp_path / "cpuinfo") == sums
    assert int8_sums(tmp_path / "none") is None
