"""The kernels, not the references, whatever the caller's environment says."""

import pytest


@pytest.fixture(autouse=True)
def compiled(monkeypatch):
    monkeypatch.delenv("NIWAKI_KERNELS", raising=False)
