"""A run that an earlier version finished, kept as an archive."""

import tarfile
from pathlib import Path

ARCHIVE = Path(__file__).parent / "fixtures/before_the_move.tar.gz"


def unpack(home: Path) -> Path:
    """Unpack it into ``home`` and return its folder."""
    # Python has the filter since 3.11.4, and Debian 12 an older one; the archive is ours.
    safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(home, **safe)
    return home / "run"
