"""Read regular files within a limit, write files whole or not at all, and hash them."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.errors import DeployError

TEXT_BYTES = 64 << 20
"""The largest JSON or YAML file that is read: records and ledgers take a few megabytes at most."""


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
    """Yield a temporary path beside ``path``; on success it replaces ``path``, on failure it is removed.

    Raises:
        DeployError: the folder cannot be made or written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise DeployError(f"Cannot write {path} ({error.strerror}); choose a folder you may write to.") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        apply_umask(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> Path:
    """Write ``text`` as UTF-8 to ``path`` in one step."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def apply_umask(path: Path) -> None:
    """Give a temporary file or folder, so far private to its owner, the permissions of an ordinary new one."""
    umask = os.umask(0)  # it can be read only by setting it
    os.umask(umask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
