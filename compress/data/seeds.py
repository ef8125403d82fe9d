"""Derive one seed from several numbers, so that what is drawn depends on them alone."""

from __future__ import annotations

import numpy as np


def hash_seed(*parts: int) -> int:
    """Derive one 63-bit seed from several numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
