"""What benchmarks share: whether they are timed, and lines that the summary at the end prints."""

from __future__ import annotations

import pytest

LINES = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def timed(pytestconfig: pytest.Config) -> bool:
    """Whether this run times: `--benchmark-only` or `--benchmark-enable`."""
    return not pytestconfig.getoption("benchmark_disable")


@pytest.fixture(scope="session")
def say(pytestconfig: pytest.Config):
    """Adds a line to the summary."""
    return pytestconfig.stash.setdefault(LINES, []).append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = config.stash.get(LINES, [])
    if lines:
        terminalreporter.section("measured")
    for line in lines:
        terminalreporter.write_line(line)
