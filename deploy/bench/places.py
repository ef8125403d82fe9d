"""Name engines by what tells them apart, and find the files that a record was measured from by their content."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from deploy.bench.isolate import Place
from deploy.bench.records import Bench
from deploy.errors import DeployError
from deploy.files import sha256

_NAMED = re.compile(r"([^=/\\]+)=(.+)")
_ENDINGS = (".onnx", ".engine")
_MOST_FILES = 1000


def places_of(said: Sequence[str], named: Sequence[str] = (), runtime: str | None = None) -> list[Place]:
    """Return where the engines lie and what they are called.

    Args:
        said: their paths; each is called by its file's name without its ending, with as many folders before it as tell
            it from the others.
        named: further ones as ``NAME=PATH``, which come first.
        runtime: what runs them all.

    Raises:
        DeployError: a name is given twice, or what should be NAME=PATH is not.
    """
    called: list[tuple[str, Path]] = []
    for one in named:
        found = _NAMED.fullmatch(one)
        if found is None:
            raise DeployError(f"--name is {one!r}; give it as NAME=PATH.")
        called.append((found[1], Path(found[2])))
    plain = [path for path in dict.fromkeys(map(Path, said)) if path not in {path for _, path in called}]
    # One file under two names is timed against itself, which tells what the machine's noise is.
    called += zip(_shortest(plain), plain, strict=True)
    given = [name for name, _ in called]
    if len(set(given)) != len(given):
        twice = next(name for name in given if given.count(name) > 1)
        raise DeployError(f"Two engines are called {twice!r}; name one by --name NAME=PATH.")
    return [Place(name, path, runtime) for name, path in called]


def find_engines(record: Bench, folders: Iterable[Path]) -> list[Place] | None:
    """Return the files that the measured records were made from, found by their content.

    Args:
        record: what was measured.
        folders: where to look: files, or folders, of which the files are looked at and not those of folders in them.

    Returns:
        One place for each measured record, in their order; None where a file of them is not there.
    """
    wanted = [one for one in record.records if one.status == "measured"]
    sizes = {one.file_bytes for one in wanted}
    by_hash: dict[str, Path] = {}
    for folder in folders:
        inside = sorted(folder.iterdir())[:_MOST_FILES] if folder.is_dir() else [folder]
        for path in inside:
            if path.suffix in _ENDINGS and path.is_file() and path.stat().st_size in sizes:
                by_hash.setdefault(sha256(path), path)
    if not wanted or any(one.sha256 not in by_hash for one in wanted):
        return None
    return [Place(one.name, by_hash[one.sha256 or ""], one.runtime) for one in wanted]


def _shortest(paths: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that differ from one another."""
    parts = [[*path.absolute().parts[1:-1], _stem(path)] for path in paths]
    longest = max((len(one) for one in parts), default=0)
    names = []
    for index, mine in enumerate(parts):
        others = [one for place, one in enumerate(parts) if place != index]
        wanted = (n for n in range(1, longest + 1) if all(one[-n:] != mine[-n:] for one in others))
        names.append("/".join(mine[-next(wanted, longest) :]))
    return names


def _stem(path: Path) -> str:
    absolute = path.absolute()
    return absolute.stem if absolute.suffix in _ENDINGS else absolute.name
