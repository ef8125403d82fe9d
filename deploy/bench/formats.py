"""Tell a gate's verdict to others: Markdown for a summary, JUnit XML for a list of tests, lines that GitHub marks."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from xml.etree import ElementTree

from deploy.bench.findings import GateFinding, GateResult

_PASSED_LINES = 30
# What XML 1.0 cannot hold at all.
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def markdown(result: GateResult, title: str = "niwaki gate") -> str:
    """Return the verdict as a short page: what failed first, then what was said, then the rest folded away."""
    failed = result.failed()
    told = [line for line in result.lines if line.ok and line.note]
    rest = [line for line in result.lines if line.ok and not line.note and line.what != "presence"]
    verdict = "passed" if result.passed else f"failed: {len(failed)} of {len(result.lines)} checks"
    again = f" Timed again {result.repeats} times before this verdict." if result.repeats else ""
    parts = [f"## {_cell(title)}: {verdict}\n"]
    if again:
        parts.append(f"{again.strip()}\n")
    if failed:
        parts.append(_table(failed))
    if told:
        parts.append("\n".join(f"- {_cell(one)}" for one in remarks(told)) + "\n")
    if rest:
        parts.append(f"<details><summary>{len(rest)} checks that pass</summary>\n\n{_table(rest)}\n</details>\n")
    return "\n".join(parts)


def junit(result: GateResult, title: str = "niwaki gate") -> str:
    """Return the findings as JUnit XML: a suite for each record, a case for each finding."""
    by_name: dict[str, list[GateFinding]] = defaultdict(list)
    for line in result.lines:
        by_name[line.name].append(line)
    root = ElementTree.Element("testsuites", name=_xml(title), tests=str(len(result.lines)))
    root.set("failures", str(len(result.failed())))
    for name, lines in by_name.items():
        suite = ElementTree.SubElement(root, "testsuite", name=_xml(name), tests=str(len(lines)))
        suite.set("failures", str(sum(not line.ok for line in lines)))
        for line in lines:
            case = ElementTree.SubElement(suite, "testcase", classname=_xml(name), name=_xml(line.what))
            if not line.ok:
                ElementTree.SubElement(case, "failure", message=_xml(sentence(line)))
            elif line.note:
                ElementTree.SubElement(case, "system-out").text = _xml(sentence(line))
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def github_lines(result: GateResult, file: str) -> str:
    """Return lines that GitHub Actions shows at ``file``: an error for each failure, a notice for each remark."""
    lines = []
    for line in result.lines:
        if not line.ok or line.note:
            kind = "notice" if line.ok else "error"
            where = f"file={_escaped(file, True)},title={_escaped(f'{line.name}: {line.what}', True)}"
            lines.append(f"::{kind} {where}::{_escaped(sentence(line))}")
    return "".join(f"{line}\n" for line in lines)


def sentence(line: GateFinding) -> str:
    """Return a finding in words."""
    said = f"{line.name}, {line.what}: {figure(line.value, line.what)} against {figure(line.baseline, line.what)}"
    if line.limit is not None:
        said += f", limit {figure(line.limit, line.what)}"
    return f"{said}; {line.note}" if line.note else said


def remarks(lines: Iterable[GateFinding]) -> list[str]:
    """Return what findings have to say, each remark once, with what it is about and the records it holds for."""
    about: dict[str, dict[str, list[str]]] = {}
    for line in lines:
        if line.note:
            about.setdefault(line.note, {}).setdefault(line.name, []).append(line.what)
    said = []
    for note, names in about.items():
        alike: dict[str, list[str]] = {}
        for name, whats in names.items():
            alike.setdefault(" and ".join(whats), []).append(name)
        said += [f"{', '.join(of)}, {whats}: {note}" for whats, of in alike.items()]
    return said


_UNITS = {
    "absolute": (1.0, "ms"),
    "accuracy": (100.0, "%"),
    "size": (1e-3, "kB"),
    "memory": (1e-6, "MB"),
    "parity": (1.0, "dB"),
}
"""What is held -> by what its value is multiplied to be shown, and the unit; the others are ratios."""


def figure(value: float | str | None, what: str) -> str:
    """Return a value of what is held, such as ``size``, as a table shows it."""
    if not isinstance(value, float):
        return "–" if value is None else str(value)
    factor, unit = _UNITS.get(what, (1.0, ""))
    return f"{factor * value:.4g} {unit}".rstrip()


def figures(line: GateFinding) -> list[str]:
    """Return a finding's value, baseline and limit as a table shows them."""
    return [figure(value, line.what) for value in (line.value, line.baseline, line.limit)]


def _table(lines: list[GateFinding] | tuple[GateFinding, ...]) -> str:
    head = "| engine | what | now | baseline | limit |\n| --- | --- | ---: | ---: | ---: |\n"
    rows = (f"| {' | '.join(map(_cell, (line.name, line.what, *figures(line))))} |" for line in lines[:_PASSED_LINES])
    more = f"\n\nand {len(lines) - _PASSED_LINES} more\n" if len(lines) > _PASSED_LINES else "\n"
    return head + "\n".join(rows) + more


def _cell(text: str) -> str:
    """Escape what Markdown, or the HTML in it, would obey."""
    plain = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_{}\[\]|#!])", r"\\\1", plain)


def _xml(text: str) -> str:
    return _NO_XML.sub("\ufffd", text)


def _escaped(text: str, in_property: bool = False) -> str:
    """Escape text as the runner's commands want it."""
    text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return text.replace(":", "%3A").replace(",", "%2C") if in_property else text
