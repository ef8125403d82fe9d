"""Calls that do what no file may make a command do: each is found."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import time
from pathlib import Path

from compress.errors import NiwakiError


def fine(folder: Path) -> None:
    (folder / "inside").write_text("allowed")


def refuses(folder: Path) -> None:
    raise NiwakiError(f"{folder.name} is damaged; correct it.")


def trips(folder: Path) -> None:
    raise KeyError(folder.name)


def rambles(folder: Path) -> None:
    print("This comes first.", file=sys.stderr)
    raise NiwakiError("This is the sentence.")


def floods(folder: Path) -> None:
    sys.stderr.write("niwaki: " + "a" * 3000 + "\n")
    sys.exit(2)


def hangs(folder: Path) -> None:
    while True:
        pass


def sleeps(folder: Path) -> None:
    time.sleep(60)


def fills(folder: Path) -> None:
    held = [bytes([1]) * (16 << 20) for _ in range(40)]
    time.sleep(len(held))


def fills_elsewhere(folder: Path) -> None:
    subprocess.run([sys.executable, __file__], check=True)


def crashes(folder: Path) -> None:
    os.abort()


def leaves(folder: Path) -> None:
    os._exit(7)


def writes_outside(folder: Path) -> None:
    (folder / "../outside").write_text("gone astray")


def moves_outside(folder: Path) -> None:
    (folder / "inside").write_text("")
    (folder / "inside").rename(folder.parent / "outside")


def runs_a_program(folder: Path) -> None:
    subprocess.run(["true"], check=True)


def imports_a_stranger(folder: Path) -> None:
    sys.path.append(str(folder.parent))
    importlib.import_module("evil")


if __name__ == "__main__":
    fills(Path())
