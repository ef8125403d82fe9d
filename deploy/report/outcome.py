"""Render the outcome of the run: the table of the four networks, the plot, and what each step gained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from deploy.bench.conditions import noisy_line
from deploy.report import units
from deploy.report.latencies import distributions, waterfall
from deploy.report.markup import Markup, card, fill, join, part, section, small, table, td, th, tr
from deploy.report.plots import Point, accuracy_latency
from deploy.report.view import (
    RUNTIMES,
    Column,
    Facts,
    Results,
    StepGain,
    larger_ratio,
    mapping,
    noise_of,
    ratio,
    speed_interval,
    wilson,
)

SHOWN_LOSSES = 8


def render_outcome(results: Results) -> Markup:
    """Render the four networks side by side, in numbers and as a plot, and every engine that was timed."""
    images = results.test_images()
    metric = _capital(results.metric())
    lead = f"{metric} on {images:,} test images that no stage trained on or chose by." if images else ""
    lead += " Differences are taken before rounding." if lead else ""
    if runtime := results.runtime():
        lead += f" Times are those of {RUNTIMES.get(runtime, runtime)}, which the bundle runs first, for all networks."
    if noise := noise_of(results.measured()):
        lead += f" {noisy_line(noise)}"
    parts = (
        _networks(results),
        _plot(results),
        waterfall(results),
        distributions(results.measured()),
        _preferred(results),
        _losses(results),
        _engines(results),
    )
    return section("What came out", lead, *parts)


def render_step_gains(results: Results) -> Markup:
    """Render the accuracy without and with transfer, inheritance and distillation, as far as it was measured."""
    lines = [(p, p.before, p.after) for p in results.step_gains()]
    known = [(p, before, after) for p, before, after in lines if before is not None and after is not None]
    if not known:
        return Markup()
    ends = [end for _, *both in known for end in both]
    low, span = min(ends), (max(ends) - min(ends)) or 1.0
    lead = (
        f"Test {results.metric()} without the step (ring) and with it (dot). "
        "Both ends of a line have the same architecture, in fp32."
    )
    return section("What each step gained", lead, card(join(_step_gain(*line, low, span) for line in known)))


def _capital(text: str) -> str:
    """Capitalise text for the start of a sentence; a name that holds a capital, such as mAP, stays as it is."""
    return text.capitalize() if text.islower() else text


def _networks(results: Results) -> Markup:
    columns, final = results.columns(), results.final()
    dense = columns[0]

    def line(title: str, value: Callable[[Column], str], beside: Callable[[Column], str] | None = None) -> Markup:
        cells = (
            td(fill("<b>{value}</b>", value=value(c)), _mark(c, final), beside(c) if beside and c is not dense else "")
            for c in columns
        )
        return tr(th(title), *cells)

    def share(value: Callable[[Column], Any]) -> Callable[[Column], str]:
        def beside(column: Column) -> str:
            part_of = ratio(value(column), value(dense))
            return "" if part_of is None else units.percent(part_of)

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
        line("Latency, best", latency("min_ms")),
        line("Latency, median", latency("median_ms")),
        line("Latency, p90", latency("p90_ms")),
        line("Latency, p99", latency("p99_ms")),
        line("Speed-up, the smaller", lambda c: units.times(c.speedup), _speed_interval),
    )
    heads = join(
        fill(
            '<th scope="col"{mark}>{heading}{caption}</th>',
            mark=_mark(c, final),
            heading=c.heading,
            caption=small(c.caption),
        )
        for c in columns
    )
    return fill(
        '<div class="card scroll"><table class="main"><thead><tr><td></td>{heads}</tr></thead>'
        "<tbody>{lines}</tbody></table></div>",
        heads=heads,
        lines=join(lines + times if results.bench else lines),
    )


def _mark(column: Column, final: Column) -> Markup:
    return Markup(' class="final"' if column.name == final.name else "")


def _speed_interval(column: Column) -> str:
    """Return the interval of the speed-up, the inverse of that of the ratio: the longest time is the least speed-up."""
    ends = speed_interval(column.record)
    return f"{units.times(1 / ends[1])} to {units.times(1 / ends[0])}" if ends and all(ends) else ""


def _plot(results: Results) -> Markup:
    columns = {column.name: column for column in results.columns()}
    images, metric = results.trials(), results.metric()
    points = [point for r in results.measured() if (point := _point(r, columns.get(str(r.get("name"))), images))]
    if not points:
        return Markup()
    said = "; ".join(f"{p.label} {units.percent(p.accuracy)} at {units.milliseconds(p.latency)}" for p in points)
    upright = "Vertical lines: 95 % interval of the accuracy on this test set. " if images else ""
    caption = (
        f"{upright}Horizontal lines: up to the 90th percentile of the latency, or to the edge if that is nearer. "
        "↓: lies below the drawing."
    )
    drawings = fill(
        '<div class="plot large" role="img" aria-label="{said}">{large}</div>'
        '<div class="plot small" role="img" aria-label="{said}">{small}</div>',  # one of the two is shown
        said=said,
        # matplotlib escapes the texts in it.
        large=Markup(accuracy_latency(points, width=8.6, height=4.0, salt="large", metric=metric)),
        # A second drawing for phones: the one for a page would be scaled down until nobody can read it.
        small=Markup(accuracy_latency(points, width=4.1, height=4.3, salt="small", metric=metric)),
    )
    figure = fill("<figure>{card}<figcaption>{caption}</figcaption></figure>", card=card(drawings), caption=caption)
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


def _preferred(results: Results) -> Markup:
    """Say how the shipped file does on the runtime that the bundle runs it by, where that is another one."""
    shipping = mapping(results.ledger.get("shipping"))
    if shipping.get("reason"):
        where = RUNTIMES.get(str(shipping.get("runtime")), "")
        said = f"{shipping.get('precision')} on {where} first: {shipping['reason']}."
        if results.runtime() is None and shipping.get("runtime") == "openvino":  # a run of an earlier version
            said += " The times on this page are of ONNX Runtime."
        return part("What the bundle runs", "", card(said))
    share = results.figure("openvino_time_of_onnxruntime")
    if share is None:
        return Markup()
    time = units.number(results.final().record.get("median_ms"))
    first = "OpenVINO" if share < 0.95 else "ONNX Runtime"
    said = f"The bundle runs it by {first} first: OpenVINO takes {units.percent(share, 0)} of ONNX Runtime's time"
    if time is not None and share < 0.95:
        said += f", about {units.milliseconds(share * time)} in place of {units.milliseconds(time)}"
    return part("What the bundle runs", "", card(f"{said}. The tables here are of ONNX Runtime."))


def _losses(results: Results) -> Markup:
    """Render the metrics of single classes in which the student lost most against its teacher."""
    teacher, student = (mapping(results.role(role).get("test_metrics")) for role in ("teacher", "student"))
    known = [
        (str(name), before, after)
        for name in teacher
        if (before := units.number(teacher[name])) is not None
        and (after := units.number(student.get(name))) is not None
        and name != "loss"
        and after < before
    ]
    known.sort(key=lambda row: row[2] - row[1])
    lines = [
        tr(
            th(name.replace("accuracy_", "accuracy of ", 1).replace("_", " ")),
            *(td(units.percent(v)) for v in (before, after)),
            td(units.points(after - before)),
        )
        for name, before, after in known[:SHOWN_LOSSES]
    ]
    head = ("<Metric", "teacher", "student, fp32", "change")
    return part("Where most was lost", "", table(head, lines, "tight")) if lines else Markup()


def _engines(results: Results) -> Markup:
    records = results.records("measured")
    if not records:
        return Markup()
    head = ("<Engine", results.metric(), "best", "median", "p90", "p99", "time, dense = 1", "batch", "repeats")
    lead = (
        "In turns against the dense network, by best times and by medians: the larger of the two ratios. What the "
        "bundle runs was chosen by timings of its own."
    )
    return part("Every engine that was timed", lead, table(head, map(_engine, records)))


def _engine(record: Facts) -> Markup:
    ends, share = speed_interval(record), larger_ratio(record)
    runtime = " ".join(str(record[key]) for key in ("runtime", "precision") if record.get(key) is not None)
    return tr(
        th(record.get("name"), runtime),
        td(units.percent(record.get("accuracy"))),
        *(td(units.milliseconds(record.get(key))) for key in ("min_ms", "median_ms", "p90_ms", "p99_ms")),
        td(
            units.NONE if share is None else f"{share:.3f}",
            beside=f"{ends[0]:.3f} to {ends[1]:.3f}" if ends else "",
        ),
        td(record.get("batch")),
        td(record.get("repeats")),
    )


def _step_gain(step: StepGain, without: float, with_it: float, low: float, span: float) -> Markup:
    """Render one step: its name, the track from ring to dot on the scale that all steps share, and the gain."""
    flops = [units.count(model.get("training_flops")) for model in (step.without, step.with_it)]
    cost = Markup() if units.NONE in flops else small(f"training FLOPs {flops[0]} against {flops[1]}")
    title = fill("<div><b>{name}</b>{meaning}{cost}</div>", name=step.name, meaning=small(step.meaning), cost=cost)
    gain = with_it - without
    before, after = (100 * (value - low) / span for value in (without, with_it))
    left, right = sorted((before, after))
    # Two figures that are closer than their own width are written on opposite sides.
    sides = (" left", " right") if before <= after else (" right", " left")
    sides = sides if right - left < 30 else ("", "")
    loss = " loss" if gain < 0 else ""
    track = fill(
        '<span class="rail{loss}" style="left:{left}%;width:{width}%"></span>'
        '<span class="dot" style="left:{before}%"></span>'
        '<span class="dot full" style="left:{after}%"></span>'
        '<span class="at{side}" style="left:{before}%">{without}</span>'
        '<span class="at{other_side}" style="left:{after}%">{with_it}</span>',
        loss=loss,
        left=f"{left:.1f}",
        width=f"{right - left:.1f}",
        before=f"{before:.1f}",
        after=f"{after:.1f}",
        side=sides[0],
        other_side=sides[1],
        without=units.percent(without),
        with_it=units.percent(with_it),
    )
    noise, doubt = step.noise, ""
    if noise is not None:
        doubt = f"{'within' if abs(gain) < noise else 'beyond'} chance (±{100 * noise:.1f})"
    end = fill('<div class="gain">{gain}{doubt}</div>', gain=units.points(gain), doubt=small(doubt))
    return fill(
        '<div class="buy">{title}<div class="track">{track}</div>{end}</div>', title=title, track=track, end=end
    )
