"""Find the record that answers for one of the baseline, and say what the two were measured against and on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from deploy.bench.findings import GateFinding
from deploy.bench.records import Bench, Record
from deploy.bench.tolerances import Tolerances

_PACKAGE = {"onnxruntime_cuda": "onnxruntime-gpu", "onnxruntime_tensorrt": "onnxruntime-gpu"}
_PACKAGE |= {"tensorrt_rtx": "tensorrt-rtx-cu13"}


@dataclass(frozen=True)
class Match:
    """A record of the baseline and the candidate's that answers for it, each with the file that it stands in."""

    old: Record
    new: Record | None
    past: Bench
    now: Bench

    def references(self) -> tuple[Record | None, Record | None]:
        """Return the records that the ratios of the two refer to."""
        return _named(self.past, self.old.reference), _named(self.now, self.new.reference if self.new else None)

    def same_reference(self, tolerances: Tolerances) -> GateFinding | None:
        """Say whether the two were measured against the same network; None where there is nothing to say.

        One that was trained anew is the same yardstick: its weights differ, its structure does not.
        """
        old, new = self.references()
        names = self.old.reference, self.new.reference if self.new else None
        if None not in (old, new) and old is not None and new is not None and old.sha256 and new.sha256:
            if old.sha256 == new.sha256:
                return None
            if old.structure and old.structure == new.structure:
                return self.line("reference", names[1], names[0], None, True, note="the same network, other weights")
            why = "another network" if old.structure and new.structure else "another file, perhaps of another network"
            hashes = f"{new.sha256[:12]} against {old.sha256[:12]}"
        elif names[0] == names[1]:
            return None
        else:
            why, hashes = "another name, and no hashes to go by", ""
        allowed = "reference" in tolerances.allow
        note = f"the ratios refer to {why}: time both against the same file, or record the baseline again"
        return self.line("reference", hashes or names[1], names[0], None, allowed, note=note)

    def machine(self, tolerances: Tolerances) -> Iterator[GateFinding]:
        """Yield what differs between the two sittings beside the engines."""
        threads = self.past.settings.get("threads"), self.now.settings.get("threads")
        if None not in threads and threads[0] != threads[1]:
            note = "the number of threads changes every ratio: use the same number"
            was, now = (str(value) for value in threads)
            yield self.line("threads", now, was, was, "threads" in tolerances.allow, note=note)
        if not self.same_processor():
            was, now = (str(bench.machine.get("cpu", "unknown")) for bench in (self.past, self.now))
            note = "another processor: ratios are compared and milliseconds are not; ratios may differ by a third too"
            sums = [bench.machine.get("int8_sums") for bench in (self.past, self.now)]
            if self.old.precision == "int8" and None not in sums and sums[0] != sums[1]:
                note += "; without VNNI int8 sums saturate, so that answers differ as well"
            yield self.line("machine", now, was, None, True, note=note)
        was, now = self._version(self.past), self._version(self.now)
        if was != now:
            yield self.line("machine", now, was, None, True, note="another version of the runtime")
        before, here = (one.conditions.noise() if one and one.conditions else None for one in (self.old, self.new))
        if before or here:
            note = "the machine was noisy" if here else "the baseline's machine was noisy"
            also = ", and so was the baseline's" if before and here else ""
            yield self.line("machine", here, before, None, True, note=note + also)

    def same_processor(self) -> bool:
        """Tell whether the two ran on as many cores of the same processor."""
        keys = ("cpu", "cores", "architecture")
        return all(self.past.machine.get(key) == self.now.machine.get(key) for key in keys)

    def same_machine(self) -> bool:
        """Tell whether milliseconds can be compared: the same processor, threads and runtime."""
        return (
            self.same_processor()
            and self.past.settings.get("threads") == self.now.settings.get("threads")
            and self._version(self.past) == self._version(self.now)
        )

    def line(
        self,
        what: str,
        value: float | str | None,
        past: float | str | None,
        limit: float | str | None,
        ok: bool,
        *,
        note: str | None = None,
    ) -> GateFinding:
        """Return a finding on this pair."""
        return GateFinding(name=self.old.name, what=what, value=value, baseline=past, limit=limit, ok=ok, note=note)

    def _version(self, bench: Bench) -> str:
        package = _PACKAGE.get(self.old.runtime, self.old.runtime)
        return f"{package} {bench.versions.get(package, 'of unknown version')}"


def pairs_of(now: Bench, past: Bench) -> list[Match]:
    """Pair each record of the baseline with the candidate's of its name, else with one of the same file and runtime."""
    by_name = {record.name: record for record in now.records}
    names = {record.name for record in past.records}
    free = [record for record in now.records if record.name not in names]
    pairs = []
    for old in past.records:
        new = by_name.get(old.name)
        if new is None and old.sha256:
            same = (r for r in free if (r.sha256, r.runtime, r.batch) == (old.sha256, old.runtime, old.batch))
            new = next(same, None)
        pairs.append(Match(old, new, past, now))
    return pairs


def _named(bench: Bench, name: str | None) -> Record | None:
    return next((record for record in bench.records if record.name == name), None)
