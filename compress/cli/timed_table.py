"""Print what ``niwaki bench`` measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from compress.terminal import Terminal, plain

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from deploy.bench.records import Bench, Record


def show(result: Bench, data: Path | None) -> None:
    """Print the table, what else was measured, and what to doubt; ``data`` is that of the images, if there is one."""
    console = Terminal()
    console.print(_bench_table(result, console.width))
    if len({record.batch for record in result.records}) > 1:
        console.print(_throughputs(result))
    for engine, taken in result.settings.get("inputs", {}).items():
        console.print(f"{engine} takes {taken}", soft_wrap=True, markup=False)
    for sentence in (*(said for record in result.records for said in _more_of(record)), *_data_of(result, data)):
        console.print(sentence, markup=False, soft_wrap=True)
    for sentence in _noise_of(result):
        console.print(sentence, style="yellow", markup=False)


def _throughputs(result: Bench) -> Table:
    """Return the images a second of each engine at each batch."""
    batches = list(dict.fromkeys(record.batch for record in result.records))
    shown = Table("images per second", *(f"batch {batch}" for batch in batches))
    shown.columns[0].overflow = "fold"
    by_name: dict[str, list[str]] = {}
    for record in result.records:
        name = record.name.removesuffix(f", batch {record.batch}")
        by_name.setdefault(name, []).append(f"{record.throughput or 0.0:,.0f}")
    for name, figures in by_name.items():
        shown.add_row(escape(name), *figures)
    return shown


def _data_of(result: Bench, data: Path | None) -> Iterator[str]:
    """Say which engines were not fed the images, and which have no accuracy, of those that were to have it."""
    fed = result.settings.get("fed", {})
    if noise := [name for name, what in fed.items() if what == "noise"]:
        yield f"{', '.join(noise)}: timed on noise, as nothing says how images are prepared."
    first = result.records[: len(fed)]
    if data is not None and (without := [record.name for record in first if record.accuracy is None]):
        yield f"{', '.join(without)}: no accuracy, as {plain(data)} has no folder named after one of its classes."


def _bench_table(result: Bench, width: int) -> Table:
    head = ["engine", "best", "median", "p90", "p99", "by best", "by medians"]
    accurate = any(record.accuracy is not None for record in result.records)
    shown = Table(*head, *(["accuracy"] if accurate else []), title=escape(_machine(result)))
    # A name is folded and never cut: two of them could be cut to the same letters.
    shown.columns[0].overflow = "fold"
    shown.columns[0].min_width = min(24, max(width // 4, 8))
    for record in result.records:
        accuracy = [] if not accurate else ["–" if record.accuracy is None else f"{100 * record.accuracy:.1f} %"]
        shown.add_row(escape(record.name), *map(escape, [*_times(record), *accuracy]))
    return shown


def _times(record: Record) -> list[str]:
    low, high = record.ratio_interval or (0.0, 0.0)
    figures = (record.min_ms, record.median_ms, record.p90_ms, record.p99_ms)
    times = [f"{value:.3f}" for value in figures if value is not None]
    best = "–" if record.ratio_of_best is None else f"{record.ratio_of_best:.3f}"
    return [*times, best, f"{record.ratio_to_dense:.3f} [{low:.3f}, {high:.3f}]"]


def _more_of(record: Record) -> Iterator[str]:
    """Say what else was measured of an engine."""
    if (parts := record.transfers) is not None:
        copied = f"{parts.in_ms:.3f} ms to copy in, {parts.out_ms:.3f} ms to copy out"
        yield f"{record.name}: {parts.network_ms:.3f} ms for the network, {copied}."
    if (cold := record.cold) is not None:
        memory = "" if cold.peak_rss_bytes is None else f", {cold.peak_rss_bytes / 1e6:.0f} MB at most"
        yield f"{record.name}: loads in {cold.load_ms:.0f} ms, first run {cold.first_ms:.2f} ms{memory}."
    if (streams := record.streams) is not None:
        yield f"{record.name}: {streams.throughput:.1f} images per second with {streams.streams} streams."
    if (loop := record.open_loop) is not None:
        times = f"median {loop.median_ms:.2f} ms, p99 {loop.p99_ms:.2f} ms"
        yield f"{record.name}: {times} at {loop.rate:g} requests a second ({loop.answered:.1f} answered)."


def _noise_of(result: Bench) -> list[str]:
    """Say so where the machine was noisy, threads share cores, or an engine's times had not settled."""
    from deploy.bench.conditions import noisy_line
    from deploy.engines.cores import over_cores

    noisy = [r.conditions for r in result.records if r.conditions and r.conditions.noise()]
    said = []
    if noisy:  # of several sittings the busiest one is told
        worst = max(noisy, key=lambda one: one.load or 0.0)
        said = [noisy_line(str(worst.noise()))]
    unsettled = [record.name for record in result.records if record.steady is False]
    if unsettled:
        said.append(f"The times of {', '.join(unsettled)} were still falling when the warm-up ended.")
    crowded = over_cores(int(result.settings.get("threads", 1)))
    return said if crowded is None else [*said, crowded]


def _machine(result: Bench) -> str:
    threads = result.settings.get("threads")
    by = " and ".join(dict.fromkeys(record.runtime for record in result.records))
    return f"{result.machine.get('cpu', 'unknown CPU')}, {threads} thread(s), {by}; ms and shares of the first"
