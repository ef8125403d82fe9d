"""Keep records in a local SQLite file, and say where a metric changed over commits."""

from __future__ import annotations

import math
import sqlite3
import statistics
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from deploy.bench.records import Bench
from deploy.errors import DeployError, MissingDependency

METRICS = (
    "ratio_of_best", "ratio_to_dense", "speedup", "min_ms", "median_ms", "p90_ms", "p99_ms", "mean_ms", "throughput",
    "accuracy", "file_bytes",
)  # fmt: skip
_VERSION = 1
_LEAST_SIDE = 3  # points on each side of a change
_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class HistoryEntry:
    """One figure of one record: where it stands in the history and what it was measured for."""

    place: int
    created: str
    commit: str
    value: float


@dataclass(frozen=True)
class Change:
    """A lasting change of a metric: the first entry after it, and the medians before and after."""

    at: HistoryEntry
    before: float
    after: float

    def __str__(self) -> str:
        share = self.after / self.before - 1 if self.before else math.inf
        return f"{100 * share:+.1f} % since {self.at.commit or self.at.created}: {self.before:.4g} to {self.after:.4g}"


def append(database: Path, bench: Bench, commit: str = "") -> int:
    """Add the measured records of ``bench`` and return how many figures that were; adding it again changes nothing.

    Raises:
        DeployError: the file is no history, or cannot be written.
    """
    rows = [
        (bench.created, commit, str(bench.machine.get("cpu", "")), record.name, metric, float(value))
        for record in bench.records
        if record.status == "measured"
        for metric in METRICS
        if (value := getattr(record, metric)) is not None
    ]
    with _opened(database) as connection:
        before = connection.total_changes
        connection.executemany("INSERT OR IGNORE INTO figures VALUES (?, ?, ?, ?, ?, ?)", rows)
        connection.commit()
        return connection.total_changes - before


def series(database: Path, engine: str, metric: str) -> list[HistoryEntry]:
    """Return an engine's figures, oldest first.

    Raises:
        DeployError: the file is no history, or holds no such figure.
    """
    if metric not in METRICS:
        raise DeployError(f"There is no metric {metric!r}; choose one of {', '.join(METRICS)}.")
    if not database.is_file():
        raise DeployError(f"There is no history at {database}; add a record: niwaki history bench.json.")
    query = "SELECT created, commit_id, value FROM figures WHERE engine = ? AND metric = ? ORDER BY created, rowid"
    with _opened(database) as connection:
        found = connection.execute(query, (engine, metric)).fetchall()
        if not found:
            known = [name for (name,) in connection.execute("SELECT DISTINCT engine FROM figures ORDER BY engine")]
            whose = repr(engine) if engine else "any engine"
            raise DeployError(f"{database} has no {metric} of {whose}; it knows {', '.join(known) or 'nothing'}.")
    return [
        HistoryEntry(place, str(created), str(commit), float(value))
        for place, (created, commit, value) in enumerate(found)
    ]


def engines_in(database: Path, metric: str) -> list[str]:
    """Return the names of the engines of which a history knows a metric."""
    query = "SELECT DISTINCT engine FROM figures WHERE metric = ? ORDER BY engine"
    with _opened(database) as connection:
        return [name for (name,) in connection.execute(query, (metric,))]


def changes(entries: Sequence[HistoryEntry], least: float = 0.03) -> list[Change]:
    """Name the lasting changes: binary segmentation (Scott and Knott, 1974) on the median of each side.

    Args:
        entries: oldest first.
        least: a change smaller than this share is none; nor is one within three times the scatter.
    """
    return sorted(_split(entries, least), key=lambda change: change.at.place)


def sparkline(values: Sequence[float]) -> str:
    """Return the values as one line of bars."""
    low, high = min(values), max(values)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * scale)] for value in values)


def plot(
    entries: Sequence[HistoryEntry], found: Sequence[Change], title: str, *, width: int = 720, height: int = 240
) -> str:
    """Return an SVG of the values over their order, with an upright line at each change."""
    values = [entry.value for entry in entries]
    low, high = min(values), max(values)
    low, high = (low - 0.05 * abs(low), high + 0.05 * abs(high)) if high == low else (low, high)
    left, top = 56, 28

    def at(entry: HistoryEntry, value: float) -> tuple[float, float]:
        across = left + (width - left - 16) * (entry.place / max(1, len(entries) - 1))
        return across, top + (height - top - 28) * (1 - (value - low) / (high - low))

    points = [at(entry, entry.value) for entry in entries]
    marks = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in points)
    lines = "".join(
        f'<line x1="{(x := at(one.at, low)[0]):.1f}" x2="{x:.1f}" y1="{top}" y2="{height - 28}" stroke-dasharray="4"/>'
        f'<text x="{x + 4:.1f}" y="{top + 12}">{_escaped(str(one))}</text>'
        for one in found
    )
    axis = "".join(f'<text x="4" y="{y:.1f}">{value:.4g}</text>' for value, y in ((high, top + 4), (low, height - 28)))
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="11" role="img" aria-label="{_escaped(title)}"><text x="{left}" y="16">{_escaped(title)}</text>'
        f'<polyline points="{path}" fill="none" stroke="#2c6148"/><g fill="#2c6148">{marks}</g>'
        f'<g stroke="#9a4a1c" stroke-width=".5">{lines}</g>{axis}</svg>\n'
    )


def to_mlflow(bench: Bench, commit: str = "") -> None:
    """Log the measured records as one run of MLflow, where that is installed.

    Raises:
        MissingDependency: it is not.
    """
    try:
        import mlflow
    except ImportError as error:
        raise MissingDependency(
            "The package mlflow cannot be imported here; get it with `pip install mlflow`."
        ) from error
    with mlflow.start_run(run_name=bench.name):
        mlflow.set_tags({"commit": commit, "created": bench.created, "cpu": str(bench.machine.get("cpu", ""))})
        for record in bench.records:
            figures = {metric: getattr(record, metric) for metric in METRICS}
            mlflow.log_metrics({f"{record.name}/{name}": v for name, v in figures.items() if v is not None})


@contextmanager
def _opened(database: Path) -> Iterator[sqlite3.Connection]:
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(database, timeout=30)) as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version not in (0, _VERSION):
                raise DeployError(f"{database} is a history of version {version}, not {_VERSION}; take another file.")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS figures (created TEXT, commit_id TEXT, cpu TEXT, engine TEXT, metric TEXT, "
                "value REAL, PRIMARY KEY (created, commit_id, engine, metric))"
            )
            connection.execute(f"PRAGMA user_version = {_VERSION}")
            yield connection
    except (sqlite3.Error, OSError) as error:
        raise DeployError(f"{database} cannot be used as a history ({error}); take another file.") from error


def _split(entries: Sequence[HistoryEntry], least: float) -> Iterator[Change]:
    """Yield the change that explains most, and those on either side of it."""
    best: tuple[float, int] | None = None
    for place in range(_LEAST_SIDE, len(entries) - _LEAST_SIDE + 1):
        left, right = ([entry.value for entry in part] for part in (entries[:place], entries[place:]))
        gain = len(left) * len(right) / len(entries) * (statistics.fmean(left) - statistics.fmean(right)) ** 2
        if best is None or gain > best[0]:
            best = gain, place
    if best is None:
        return
    place = best[1]
    before, after = ([entry.value for entry in part] for part in (entries[:place], entries[place:]))
    middle, other = statistics.median(before), statistics.median(after)
    scatter = _scatter([*before, *after])
    if abs(other - middle) <= max(least * abs(middle), 3 * scatter):
        return
    yield Change(entries[place], middle, other)
    yield from _split(entries[:place], least)
    yield from _split(entries[place:], least)


def _scatter(values: Sequence[float]) -> float:
    """Return a standard deviation from the median step between neighbours, which no lasting change moves."""
    steps = [abs(other - one) for one, other in pairwise(values)]
    return 1.4826 * statistics.median(steps) / math.sqrt(2)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
