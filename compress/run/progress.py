"""What a person sees while a run goes on: a line and a bar a stage, or plain lines, or nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from compress.terminal import Terminal

Advance = Callable[[int, int, str], None]
"""Called with steps done, steps in all and what to show beside them."""
PAUSE = 60.0
"""Seconds for which a log says nothing about a stage that goes on."""


@dataclass
class StageView:
    """One running stage as seen from inside it."""

    advance: Advance
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Ui:
    """Where progress goes.

    Args:
        console: standard error when standard output is for JSON.
        style: ``bars`` on a terminal, ``lines`` elsewhere, ``quiet`` for nothing.
    """

    console: Console
    style: Literal["bars", "lines", "quiet"]

    @classmethod
    def choose(cls, *, quiet: bool = False, json: bool = False) -> Ui:
        """Return what suits the terminal and the options of the command line."""
        console = Terminal(stderr=json)
        if quiet:
            return cls(console, "quiet")
        return cls(console, "bars" if console.is_terminal else "lines")

    def line(self, text: str) -> None:
        """Print one line, unless nothing is to be shown."""
        if self.style != "quiet":
            # A log wants one line a line, whatever width is assumed for it.
            self.console.print(text, soft_wrap=True, markup=False)

    @contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """Say on a terminal what takes so long before the first stage; nothing of it stays, nor stands in a log."""
        if self.style != "bars":
            yield
            return
        with self.console.status(escape(text)):
            yield

    @contextmanager
    def stage(self, number: int, count: int, title: str) -> Iterator[StageView]:
        """Announce a stage, show its progress and an ETA, and say what came of it."""
        start = time.perf_counter()
        head = f"[{number:>2}/{count}] {title}"
        if self.style != "bars":
            self.line(head)
            view = StageView(_Reminder(self.line))
            yield view
        else:
            columns = (
                TextColumn("  {task.description}"),
                BarColumn(bar_width=28),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("eta"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[text]}"),
            )
            self.console.print(head, style="bold", markup=False)
            with Progress(*columns, console=self.console, transient=True) as progress:
                task = progress.add_task("working", total=None, text="")

                def advance(done: int, total: int, text: str) -> None:
                    progress.update(task, completed=done, total=total, text=text)

                view = StageView(advance)
                yield view
        notes = "; ".join(view.notes)
        self.line(f"        {time.perf_counter() - start:6.1f} s  {notes}".rstrip())


class _Reminder:
    """Says in a log how far a stage has come and when it will be over, at most once in ``PAUSE`` seconds.

    What is one piece of work, such as scoring, is named when it begins.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say, self.said = say, time.monotonic()
        self.began, self.first, self.last, self.total = self.said, 0, 0, 0
        self.named = ""

    def __call__(self, done: int, total: int, text: str) -> None:
        now = time.monotonic()
        if total != self.total or done < self.last:
            # Another piece of work, which may have been resumed in its middle.
            self.began, self.first, self.total = now, done, total
        self.last = done
        begins = total == 1 and done == 0 and text != self.named
        if (done == total and not text) or (now - self.said < PAUSE and not begins):
            return
        self.named = text
        self.said, parts = now, [text]
        if total > 1:
            parts.insert(0, f"{done} of {total}")
        if self.first < done < total:
            left = (now - self.began) / (done - self.first) * (total - done)
            parts.append(f"about {left / 60:.0f} min left" if left >= 90 else f"about {left:.0f} s left")
        self.say("          " + "  ".join(part for part in parts if part))
