"""Reading regular files within a limit; writing so that a killed process leaves the old file or the new one."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TEXT_BYTES = 64 << 20
"""The largest JSON or YAML file that is read: records and ledgers take a few megabytes at most."""


LIST_BYTES = 1 << 30
"""The largest list of images or annotations that is read."""


def read_bytes(path: Path, limit: int = TEXT_BYTES, *, follow: bool = True) -> bytes:
    """Return the content of the regular file at ``path``.

    A pipe or a device is refused without reading from it: the one would wait for ever, the other never end.

    Args:
        path: the file.
        limit: the most bytes that it may have.
        follow: whether ``path`` may be a symbolic link.

    Raises:
        OSError: there is no such file, it is no regular one or larger than ``limit``; ``strerror`` says which.
    """
    # Opening a pipe without this flag waits for its other end.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        handle = os.open(path, flags if follow else flags | getattr(os, "O_NOFOLLOW", 0))
    except ValueError:
        raise OSError(errno.EINVAL, "its name holds a NUL", str(path)) from None
    try:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        if about.st_size > limit:
            raise OSError(errno.EFBIG, f"it has {about.st_size} bytes and {limit} are the limit", str(path))
        with os.fdopen(handle, "rb", closefd=False) as file:
            return file.read(about.st_size)
    finally:
        os.close(handle)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary name beside `path` to write to, and renames it when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1) + "\n")
