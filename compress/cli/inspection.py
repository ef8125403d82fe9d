"""An inspection for the eye: a tree on a terminal, indented lines elsewhere, both of the same words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from compress.prune.inspection import GroupView, Inspection

SHOWN = 3
"""Names of a list before it becomes "+ 5 more"."""

_OVERLAP = "(a layer between two groups counts for both: their shares can sum to over 100 %)"


@dataclass
class TextTree:
    """One line and what hangs under it."""

    text: Text
    children: list[TextTree] = field(default_factory=list)


@dataclass
class _Place:
    """A module on the way to groups."""

    groups: list[GroupView] = field(default_factory=list)
    inside: dict[str, _Place] = field(default_factory=dict)


def render(inspection: Inspection, console: Console, *, everything: bool = False) -> None:
    """Print an inspection; ``everything`` spells out what else is "+ 5 more"."""
    console.print(_totals(inspection), soft_wrap=True)
    for node in outline(inspection, everything=everything):
        if console.is_terminal:
            console.print(_tree(node))
        else:
            for line in _lines(node):
                console.print(line, soft_wrap=True, markup=False, highlight=False)


def outline(inspection: Inspection, *, everything: bool = False) -> list[TextTree]:
    """Lay out everything below the line of totals, as trees."""
    few = None if everything else SHOWN
    return [
        _free(inspection, few),
        *_section(
            "protected",
            [
                TextTree(
                    Text.assemble(
                        (p.reason, "yellow"),
                        f" — {_count(len(p.slots), 'slot')}, {_count(p.channels, 'channel')} — ",
                        (_listed(p.slots, few), "dim"),
                    )
                )
                for p in inspection.protected
            ],
        ),
        *_blocks(inspection, few),
        *_section(
            "replaced before a cut",
            [TextTree(Text.assemble((m, "bold"), f" by {c}")) for m, c in inspection.substitutions.items()][:few],
            len(inspection.substitutions),
        ),
        *_section("sizes that a cut patches", _patches(inspection, everything)),
        *_section(
            "numbers that a cut does not change, though they may be sizes",
            [TextTree(Text(number)) for number in inspection.unfollowed][:few],
            len(inspection.unfollowed),
        ),
        *_section("operators without a rule", [TextTree(Text(name, "red")) for name in inspection.unknown_ops]),
    ]


def _totals(inspection: Inspection) -> Text:
    side = "x".join(map(str, inspection.input[1:]))
    of = f", {inspection.forward.replace('_', ' ')}" if inspection.forward else ""
    return Text.assemble(
        (inspection.model, "bold"),
        f" ({inspection.type}, {side}{of}): {_large(inspection.parameters)} parameters, "
        f"{_large(inspection.macs)} MACs, {_count(inspection.units, 'unit')}, {inspection.free_units} of them in "
        f"{_count(len(inspection.groups), 'free group')}; {_share(inspection.parameters_free)} of the parameters and "
        f"{_share(inspection.macs_free)} of the MACs can go; traced in {inspection.seconds:.2f} s",
    )


def _free(inspection: Inspection, few: int | None) -> TextTree:
    if not inspection.groups:
        return TextTree(Text("no channel is free to go", "bold red"))
    root = _Place()
    for group in inspection.groups:
        place = root
        for part in group.name.split("."):
            place = place.inside.setdefault(part, _Place())
        place.groups.append(group)
    several = [TextTree(Text(_OVERLAP, "dim"))] if len(inspection.groups) > 1 else []
    return TextTree(Text("free groups", "bold"), [*_nodes(root, few), *several])


def _blocks(inspection: Inspection, few: int | None) -> Iterator[TextTree]:
    """Yield the residual blocks that may go whole, and those that stay, where they were looked for."""
    if inspection.blocks is None:
        return
    free = [
        TextTree(Text.assemble((b.name, "bold green"), f"  {_share(b.macs_share)} of the MACs · leaves {b.becomes}"))
        for b in inspection.blocks
    ]
    yield from _section("residual blocks that may go whole", free or [TextTree(Text("none", "bold red"))])
    stay = [
        TextTree(Text.assemble((name, "bold"), f"  {why}", style="yellow"))
        for name, why in inspection.blocks_that_stay.items()
    ]
    yield from _section("residual blocks that stay", stay[:few], len(stay))


def _nodes(place: _Place, few: int | None) -> Iterator[TextTree]:
    for part, inner in place.inside.items():
        name, end = part, inner
        # A module that only leads to one other shares its line.
        while not end.groups and len(end.inside) == 1:
            ((step, end),) = end.inside.items()
            name = f"{name} › {step}"
        below = list(_nodes(end, few))
        if end.groups:
            *others, last = (_described(group, name, few) for group in end.groups)
            last.children += below
            yield from (*others, last)
        else:
            yield TextTree(Text(name), below)


def _described(group: GroupView, name: str, few: int | None) -> TextTree:
    units = _count(group.units, "unit") + (f" of {group.width}" if group.width > 1 else "")
    line = Text.assemble(
        (name, "bold green" if group.preserving else "bold yellow"),
        f"  {units} · {_share(group.macs_share)} of the MACs · {_share(group.parameters_share)} of the parameters",
    )
    if not group.preserving:
        why = f"{group.note}: not function-preserving" if group.note else "not function-preserving"
        line.append(f"  [{why}]", "yellow")
    return TextTree(line, [TextTree(Text(_listed([member.slot for member in group.members], few), "dim"))])


def _patches(inspection: Inspection, everything: bool) -> list[TextTree]:
    if everything:
        return [TextTree(Text(f"{a.module}.{a.name} = {a.value}, follows {a.slot}")) for a in inspection.attributes]
    counts = Counter(a.name for a in inspection.attributes)
    return (
        [TextTree(Text(", ".join(f"{name} of {_count(n, 'module')}" for name, n in counts.items())))] if counts else []
    )


def _section(title: str, nodes: list[TextTree], count: int | None = None) -> Iterator[TextTree]:
    """Yield a titled section, or nothing where there is nothing to list."""
    if nodes:
        more = [] if count is None or count <= len(nodes) else [TextTree(Text(f"+ {count - len(nodes)} more", "dim"))]
        yield TextTree(Text(title, "bold"), nodes + more)


def _tree(node: TextTree) -> Tree:
    tree = Tree(node.text, guide_style="dim")
    for child in node.children:
        tree.children.append(_tree(child))
    return tree


def _lines(node: TextTree, depth: int = 0) -> Iterator[str]:
    yield "  " * depth + node.text.plain
    for child in node.children:
        yield from _lines(child, depth + 1)


def _listed(names: Sequence[str], few: int | None) -> str:
    shown = list(names[:few])
    return ", ".join(shown) + (f" + {len(names) - len(shown)} more" if len(names) > len(shown) else "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _share(share: float) -> str:
    # What is not everything is not shown as 100 %.
    return f"{100 * (min(share, 0.999) if share < 1 else share):.1f} %"


def _large(number: float) -> str:
    """12 345 678 -> 12.3 M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.0f}"
