"""Render the outcome of the run: the table of the four networks, the plot, and what each step gained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from deploy.report import units
from deploy.report.markup import card, esc, part, section, small, table, td, th, tr
from deploy.report.plots import Point, accuracy_latency
from deploy.report.view import Column, Facts, Results, StepGain, interval, ratio, wilson


def render_outcome(results: Results) -> str:
    """Render the four networks side by side, in numbers and as a plot, and every engine that was timed."""
    images = results.test_images()
    metric = _capital(results.metric())
    lead = f"{metric} on {images:,} test images that no stage trained on or chose by." if images else ""
    parts = (
        _networks(results),
        _plot(results),
        _engines(results),
    )
    return section("What came out", lead, *parts)


def render_step_gains(results: Results) -> str:
    """Render the accuracy without and with transfer, inheritance and distillation, as far as it was measured."""
    lines = [(p, p.before, p.after) for p in results.step_gains()]
    known = [(p, before, after) for p, before, after in lines if before is not None and after is not None]
    if not known:
        return ""
    ends = [end for _, *both in known for end in both]
    low, span = min(ends), (max(ends) - min(ends)) or 1.0
    lead = (
        f"Test {results.metric()} without the step (ring) and with it (dot). "
        "Both ends of a line have the same architecture."
    )
    return section("What each step bought", lead, card("".join(_step_gain(*line, low, span) for line in known)))


def _capital(text: str) -> str:
    """Capitalise text for the start of a sentence; a name that holds a capital, such as mAP, stays as it is."""
    return text.capitalize() if text.islower() else text


def _networks(results: Results) -> str:
    columns, final = results.columns(), results.final()
    dense = columns[0]

    def line(title: str, value: Callable[[Column], str], beside: Callable[[Column], str] | None = None) -> str:
        cells = (
            td(f"<b>{value(c)}</b>", _mark(c, final), beside(c) if beside and c is not dense else "") for c in columns
        )
        return tr(th(title), *cells)

    def share(value: Callable[[Column], Any]) -> Callable[[Column], str]:
        def beside(column: Column) -> str:
            part_of = ratio(value(column), value(dense))
            return "" if part_of is None else units.percent(part_of, 0)

        return beside

    def gap(column: Column) -> str:
        if column.accuracy is None or dense.accuracy is None:
            return ""
        return units.points(column.accuracy - dense.accuracy)

    def model(key: str) -> Callable[[Column], Any]:
        return lambda column: column.model.get(key)

    def latency(key: str) -> Callable[[Column], str]:
        return lambda column: units.milliseconds(column.record.get(key))

    def file_bytes(column: Column) -> float | None:
        return column.file_bytes

    lines = (
        line(f"Test {results.metric()}", lambda c: units.percent(c.accuracy), gap),
        line("MACs", lambda c: units.count(c.model.get("macs")), share(model("macs"))),
        line("Parameters", lambda c: units.count(c.model.get("params")), share(model("params"))),
        line("File size", lambda c: units.size(c.file_bytes), share(file_bytes)),
    )
    times = (
        line("Latency, median", latency("median_ms")),
        line("Latency, p90", latency("p90_ms")),
        line("Latency, p99", latency("p99_ms")),
        line("Speed-up", lambda c: units.times(c.speedup), _speed_interval),
    )
    heads = "".join(f'<th scope="col"{_mark(c, final)}>{esc(c.heading)}{small(esc(c.caption))}</th>' for c in columns)
    return (
        f'<div class="card scroll"><table class="main"><thead><tr><td></td>{heads}</tr></thead>'
        f"<tbody>{''.join(lines + times if results.bench else lines)}</tbody></table></div>"
    )


def _mark(column: Column, final: Column) -> str:
    return ' class="final"' if column.name == final.name else ""


def _speed_interval(column: Column) -> str:
    """Return the interval of the speed-up, the inverse of that of the ratio: the longest time is the least speed-up."""
    ends = interval(column.record)
    return f"{units.times(1 / ends[1])} to {units.times(1 / ends[0])}" if ends and all(ends) else ""


def _plot(results: Results) -> str:
    columns = {column.name: column for column in results.columns()}
    images, metric = results.trials(), results.metric()
    points = [
        point for r in results.records("measured") if (point := _point(r, columns.get(str(r.get("name"))), images))
    ]
    if not points:
        return ""
    said = "; ".join(f"{p.label} {units.percent(p.accuracy)} at {units.milliseconds(p.latency)}" for p in points)
    upright = "Upright lines: 95 % interval of the accuracy on this test set. " if images else ""
    caption = f"{upright}Level lines: up to the 90th percentile of the latency. ↓: lies below the drawing."
    drawings = (
        f'<div class="plot large" role="img" aria-label="{esc(said)}">'
        f"{accuracy_latency(points, width=8.6, height=4.0, salt='large', metric=metric)}</div>"
        # A second drawing for phones: the one for a page would be scaled down until nobody can read it.
        f'<div class="plot small" aria-hidden="true">'
        f"{accuracy_latency(points, width=4.1, height=4.3, salt='small', metric=metric)}</div>"
    )
    figure = f"<figure>{card(drawings)}<figcaption>{esc(caption)}</figcaption></figure>"
    return part(f"{_capital(metric)} against latency", "", figure)


def _point(record: Facts, column: Column | None, images: int | None) -> Point | None:
    name = str(record.get("name"))
    latency = units.number(record.get("median_ms"))
    accuracy = column.accuracy if column else units.number(record.get("accuracy"))
    # Less than a picosecond or more than a week fits on no axis.
    if latency is None or not 1e-9 <= latency <= 1e9 or accuracy is None or not 0 <= accuracy <= 1:
        return None
    p90 = units.number(record.get("p90_ms"))
    p90 = p90 if p90 is not None and latency <= p90 <= 1e9 else None
    low, high = wilson(accuracy, images) if images else (None, None)
    label = "pruned, not fine-tuned" if name == "pruned" else name.replace("-", " ")
    return Point(name, label, latency, accuracy, p90, low, high)


def _engines(results: Results) -> str:
    records = results.records("measured")
    if not records:
        return ""
    head = ("<Engine", results.metric(), "median", "p90", "p99", "least", "time, dense = 1", "batch", "repeats")
    return part("Every engine that was timed", "", table(head, map(_engine, records)))


def _engine(record: Facts) -> str:
    ends, share = interval(record), units.number(record.get("ratio_to_dense"))
    runtime = " ".join(esc(record[key]) for key in ("runtime", "precision") if record.get(key) is not None)
    return tr(
        th(record.get("name"), runtime),
        td(units.percent(record.get("accuracy"))),
        *(td(units.milliseconds(record.get(key))) for key in ("median_ms", "p90_ms", "p99_ms", "min_ms")),
        td(
            units.NONE if share is None else f"{share:.3f}",
            "",
            f"{ends[0]:.3f} to {ends[1]:.3f}" if ends else "",
        ),
        td(esc(record.get("batch"))),
        td(esc(record.get("repeats"))),
    )


def _step_gain(step: StepGain, without: float, with_it: float, low: float, span: float) -> str:
    """Render one step: its name, the track from ring to dot on the scale that all steps share, and the gain."""
    flops = [units.count(model.get("training_flops")) for model in (step.without, step.with_it)]
    cost = "" if units.NONE in flops else small(f"training FLOPs {flops[0]} against {flops[1]}")
    title = f"<div><b>{esc(step.name)}</b>{small(esc(step.meaning))}{cost}</div>"
    gain = with_it - without
    before, after = (100 * (value - low) / span for value in (without, with_it))
    left, right = sorted((before, after))
    # Two figures that are closer than their own width are written on opposite sides.
    sides = (" left", " right") if before <= after else (" right", " left")
    sides = sides if right - left < 30 else ("", "")
    loss = " loss" if gain < 0 else ""
    track = (
        f'<span class="rail{loss}" style="left:{left:.1f}%;width:{right - left:.1f}%"></span>'
        f'<span class="dot" style="left:{before:.1f}%"></span>'
        f'<span class="dot full" style="left:{after:.1f}%"></span>'
        f'<span class="at{sides[0]}" style="left:{before:.1f}%">{units.percent(without)}</span>'
        f'<span class="at{sides[1]}" style="left:{after:.1f}%">{units.percent(with_it)}</span>'
    )
    noise, doubt = step.noise, ""
    if noise is not None:
        doubt = f"{'within' if abs(gain) < noise else 'beyond'} chance (±{100 * noise:.1f})"
    end = f'<div class="gain">{units.points(gain)}{small(doubt)}</div>'
    return f'<div class="buy">{title}<div class="track">{track}</div>{end}</div>'
