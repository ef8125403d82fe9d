"""Say which commit of this package a run is made by."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]


def source_commit(root: Path = _ROOT) -> str | None:
    """Return the commit that ``root`` is a checkout of, with a word where it was altered; None where it is none."""
    git = shutil.which("git")
    # An installed package may lie inside somebody else's repository, whose commit says nothing of it.
    if git is None or not (root / ".git").exists():
        return None
    said = [
        subprocess.run([git, "-C", root, *asked], capture_output=True, text=True, check=False)
        for asked in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
    ]
    if any(one.returncode for one in said):
        return None
    commit, changed = (one.stdout.strip() for one in said)
    return f"{commit}, altered" if changed else commit
