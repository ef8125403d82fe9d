"""Render the evidence behind the outcome: widths, stages, proofs, and the engines that were not timed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from deploy.report import units
from deploy.report.markup import (
    LEFT,
    NOWRAP,
    Markup,
    card,
    details,
    facts,
    fill,
    join,
    pair,
    part,
    section,
    table,
    td,
    th,
    tr,
)
from deploy.report.view import Facts, Results, mapping, rows

# What the proof compares -> its name, and the largest relative error that rounding in float64 explains.
PROOFS = {
    "eval_forward": ("forward, evaluation", 1e-10),
    "train_forward": ("forward, training", 1e-8),
    "train_gradient": ("gradients, training", 1e-8),
}
SHOWN_GROUPS = 24


def widths(plan: Facts) -> Markup:
    """Render each group's channels: the dense width as an outline, the kept width as its filling."""
    groups = [
        (group.get("name"), before, after)
        for group in rows(plan.get("groups"))
        if (before := units.number(group.get("before"))) and (after := units.number(group.get("after"))) is not None
    ]
    if not groups:
        return Markup()
    widest = max(before for _, before, _ in groups)
    lines = [_group(name, before, after, widest) for name, before, after in groups]
    shown = [_groups(lines[:SHOWN_GROUPS])]
    if rest := lines[SHOWN_GROUPS:]:
        shown.append(details(f"and {len(rest)} more", _groups(rest)))
    costs = [
        f"{what} {units.count(plan.get(f'{key}_before'))} → {units.count(plan.get(f'{key}_after'))}"
        for key, what in (("macs", "MACs"), ("params", "parameters"))
        if units.number(plan.get(f"{key}_after")) is not None
    ]
    lead = "Channels of each group of layers that must stay equal: outline dense, filling kept."
    kept = mapping(plan.get("protected"))
    count = f"{len(kept)} dimension{'' if len(kept) == 1 else 's'} of weights left whole, and why"
    whole = details(count, facts(_by_reason(kept))) if kept else ""
    blocks = ", ".join(map(str, mapping(plan.get("blocks"))))
    gone = f" Residual blocks that went whole: {blocks}." if blocks else ""
    in_all = f" In all: {'; '.join(costs)}." if costs else ""
    return section("Widths before and after", lead + gone + in_all, card(join(shown)), whole)


def _by_reason(kept: Facts) -> list[tuple[Any, Any]]:
    """Return each reason with what was left whole for it: a plan lists every slot, a dimension of one tensor."""
    slots: dict[str, list[str]] = {}
    for slot, reason in kept.items():
        slots.setdefault(str(reason), []).append(str(slot))
    return [(f"{reason} ({len(names)})", ", ".join(names)) for reason, names in slots.items()]


def _groups(lines: Sequence[Markup]) -> Markup:
    return fill('<div class="widths">{lines}</div>', lines=join(lines))


def _group(name: Any, before: float, after: float, widest: float) -> Markup:
    return fill(
        '<div class="group"><code title="{name}">{name}</code>'
        '<span class="bar"><i style="width:{width}%"><b style="width:{kept}%"></b></i></span>'
        "<span>{counts}</span></div>",
        name=name,
        width=f"{100 * before / widest:.1f}",
        kept=f"{min(100.0, 100 * after / before):.1f}",
        counts=f"{before:,.0f} → {after:,.0f}",
    )


def stages(records: Sequence[Facts]) -> Markup:
    """Render the ledger: time, training FLOPs and metrics of each stage."""
    if not records:
        return Markup()
    taken = [units.number(stage.get("seconds")) or 0.0 for stage in records]
    flops = sum(units.number(stage.get("training_flops")) or 0.0 for stage in records)
    lines = [_stage(stage, seconds / (max(taken) or 1.0)) for stage, seconds in zip(records, taken, strict=True)]
    figures = (units.seconds(sum(taken)), units.count(flops or None))
    bold = [td(fill("<b>{figure}</b>", figure=figure), NOWRAP) for figure in figures]
    lines.append(tr(th("Total"), *bold, td("", LEFT)))
    head = ("<Stage", "Time", "Training FLOPs", "<What it gave")
    return section("The ledger, stage by stage", "", table(head, lines, "ledger"))


def _stage(stage: Facts, share: float) -> Markup:
    noted = stage.get("notes")
    notes = join(fill("<li>{note}</li>", note=note) for note in noted) if isinstance(noted, list | tuple) else ""
    tested = stage.get("name") == "test"  # its figures are called as the networks are
    gave = [
        pair(_title(str(name)), units.percent(value) if tested else _metric(str(name), value))
        for name, value in mapping(stage.get("metrics")).items()
    ]
    if notes:
        gave.append(fill('<ul class="notes">{notes}</ul>', notes=notes))
    bar = fill('<span class="share" style="width:{share}%"></span>', share=f"{100 * share:.0f}")
    return tr(
        th(stage.get("title") or stage.get("name")),
        td(join((units.seconds(stage.get("seconds")), bar)), NOWRAP),
        td(units.count(stage.get("training_flops")), NOWRAP),
        td(join(gave), LEFT),
    )


def _title(name: str) -> str:
    """Return a metric's name without its unit, which is written after the value."""
    for unit in ("_ms", "_seconds", "_bytes"):
        name = name.removesuffix(unit)
    if name.startswith("snr_db_"):
        name = f"signal to noise, {name.removeprefix('snr_db_')}"
    return name.replace("_", " ")


def _metric(name: str, value: Any) -> str:
    """Format a metric in the unit that its name implies."""
    amount = units.number(value)
    if amount is None:
        return units.NONE if value is None else str(value)
    if "accuracy" in name or name.startswith(("map", "miou", "iou_", "top", "macro_f1")):
        return units.percent(amount)
    if name.endswith("_share") or "_time_of_" in name:
        return units.percent(amount, 0 if "_time_of_" in name else 1)
    if name.startswith("speedup"):
        return units.times(amount)
    if name.startswith("snr_db"):
        return units.decibels(amount)
    if name.endswith("bytes"):
        return units.size(amount)
    if name.endswith("_ms"):
        return units.milliseconds(amount)
    if name.endswith("seconds"):
        return units.seconds(amount)
    if name.startswith(("macs", "params", "training_flops")):
        return units.count(amount)
    if amount.is_integer() and abs(amount) < 1e15:  # a count, which the ledger keeps as 4.0
        return f"{amount:,.0f}"
    return units.scientific(amount) if 0 < abs(amount) < 1e-3 or abs(amount) >= 1e6 else units.significant(amount)


def proof(results: Results) -> Markup:
    """Render the proof that surgery changed only the size and that the engines compute what the networks compute."""
    shown = join((_surgery(mapping(results.plan().get("proof"))), _parity(rows(results.bench.get("records")))))
    return section("Proof", "", shown) if shown else Markup()


def _surgery(errors: Facts) -> Markup:
    if not errors:
        return Markup()
    lead = (
        "The cut network against the same network with the dropped channels set to zero, "
        "in double precision, before any further training: largest relative error."
    )
    if errors.get("train_mode") is False:
        lead += " Batch norms used their running statistics: batches gave them too few values a channel to compare."
    if unproved := errors.get("unproved"):
        lead += f" Not compared: {unproved}."
    lines = (_surgery_error(name, errors[name]) for name in PROOFS if errors.get(name) is not None)
    head = ("<Compared", "error", "allowed", "verdict")
    return part("The cut changed nothing but the size", lead, table(head, lines, "parity"))


def _surgery_error(name: str, value: Any) -> Markup:
    title, bound = PROOFS.get(name, (name, None))
    error, verdict = units.number(value), Markup(units.NONE)
    if bound is not None and error is not None:
        verdict = Markup('<span class="ok">✓ holds</span>' if error <= bound else '<span class="bad">✗ fails</span>')
    allowed = units.NONE if bound is None else f"≤{units.SPACE}{units.scientific(bound)}"
    return tr(th(title), td(units.scientific(value)), td(allowed), td(verdict, NOWRAP))


def _parity(records: Sequence[Facts]) -> Markup:
    """Render of each engine the comparison that came out worst, and the others folded away."""
    worst, others = [], []
    for record in records:
        compared = sorted(rows(record.get("parity")), key=_noise)
        worst += [_compared(record, one, len(compared)) for one in compared[:1]]
        others += [_compared(record, one) for one in compared[1:]]
    if not worst:
        return Markup()
    lead = (
        "Outputs of each engine against the network it was made from, on the same inputs: validation images, and the "
        "same ones altered to be hard for an engine. For each engine the worst comparison is shown."
    )
    head = ("<Engine", "<inputs", "batch", "largest relative error", "signal to noise")
    rest = details(f"the other {len(others)} comparisons", table(head, others, "parity")) if others else Markup()
    shown = join((table(head, worst, "parity"), rest))
    return part("The engines compute what the networks compute", lead, shown)


def _noise(parity: Facts) -> float:
    """Return the signal to noise, by which comparisons are sorted; where it is missing, the error's own."""
    snr, error = units.number(parity.get("snr_db")), units.number(parity.get("max_relative_error"))
    return snr if snr is not None else -math.log10(error) * 20 if error is not None and error > 0 else math.inf


def _compared(record: Facts, parity: Facts, of: int = 0) -> Markup:
    return tr(
        th(record.get("name"), f"worst of {of}" if of > 1 else ""),
        td(parity.get("inputs"), LEFT),
        td(units.count(parity.get("batch"))),
        td(units.scientific(parity.get("max_relative_error"))),
        td(units.decibels(parity.get("snr_db"))),
    )


def built(records: Sequence[Facts]) -> Markup:
    """Render the engines for other devices, with the reason why they were not timed here."""
    if not records:
        return Markup()
    lines = [
        tr(
            th(record.get("name")),
            td(record.get("runtime"), LEFT),
            td(record.get("precision"), LEFT),
            td(units.size(record.get("file_bytes")), NOWRAP),
            td(record.get("reason"), LEFT),
        )
        for record in records
    ]
    head = ("<Engine", "<Runtime", "<Precision", "Size", "<Why not")
    lead = "These engines are in the folder of the run; no figure above is theirs."
    return section("Built, not measured here", lead, table(head, lines, "built"))
