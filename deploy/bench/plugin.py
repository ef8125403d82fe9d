"""The pytest plugin: ``def test_latency(niwaki_engine, benchmark)`` gives records and holds them to a baseline.

pytest loads it by the entry point of the extra ``pytest``; nothing but pytest is imported until a fixture is used.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import numpy as np

    from deploy.bench.records import Record
    from deploy.engines.base import Engine

_SESSION = pytest.StashKey["_Session"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options, each of which may stand in the ini file by the same name."""
    group = parser.getgroup("niwaki", "latency of engines, compared with a baseline")
    for name, words in (
        ("engine", "ONNX file or bundle that the fixture niwaki_engine runs"),
        ("reference", "ONNX file or bundle that its time is a share of; by default itself"),
        ("baseline", "bench.json to compare the records with"),
        ("record", "write the records of this session to this file"),
        ("latency_tolerance", "how much the ratio may grow, as a share of it (0.05)"),
    ):
        group.addoption(f"--niwaki-{name.replace('_', '-')}", dest=f"niwaki_{name}", default=None, help=words)
        parser.addini(f"niwaki_{name}", words)


def pytest_configure(config: pytest.Config) -> None:
    """Remember the records of a session beside its configuration."""
    config.stash[_SESSION] = _Session(config)


class _Session:
    """The records that the tests of one session gave."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self.records: dict[str, Record] = {}

    def option(self, name: str) -> str | None:
        """Return an option of the command line, else of the ini file; a path in the latter is seen from that file."""
        given = self._config.getoption(f"niwaki_{name}")
        if given is not None:
            return str(given)
        stated = str(self._config.getini(f"niwaki_{name}") or "")
        if stated and name != "latency_tolerance":
            return str(self._config.rootpath / stated)
        return stated or None


class EngineUnderTest:
    """An engine with seeded inputs: calling it runs it once, so that pytest-benchmark can time it.

    Attributes:
        engine: the engine itself.
        feeds: seeded noise of the shapes that it takes, a batch of one.
    """

    def __init__(
        self, engine: Engine, reference: Engine, feeds: dict[str, np.ndarray], of_reference: dict[str, np.ndarray]
    ) -> None:
        self.engine, self.reference, self.feeds, self._of_reference = engine, reference, feeds, of_reference

    def __call__(self) -> dict[str, np.ndarray]:
        """Run once and return the outputs."""
        return self.engine.run(self.feeds)

    def measure(self) -> list[Record]:
        """Time it against the reference, in turns."""
        from deploy.bench.timing import benchmark

        if self.engine is self.reference:
            return benchmark([self.engine], self.feeds)
        feeds = [self._of_reference, self.feeds]
        return benchmark([self.reference, self.engine], feeds, reference=self.reference.name)


@pytest.fixture
def niwaki_engine(request: pytest.FixtureRequest) -> Iterator[EngineUnderTest]:
    """Open the engine that --niwaki-engine names; the test that uses it is timed, recorded and gated when it ends."""
    session = request.config.stash[_SESSION]
    path = session.option("engine")
    if path is None:
        pytest.skip("no engine is named: give --niwaki-engine FILE, or niwaki_engine in the ini file")
    from deploy.bench.isolate import Place, open_engine
    from deploy.errors import DeployError

    other = session.option("reference")
    with ExitStack() as stack:
        try:
            engine = stack.enter_context(open_engine(Place(_name(path), Path(path)), 1))
            reference = engine
            if other is not None and Path(other) != Path(path):
                reference = stack.enter_context(open_engine(Place(_name(other), Path(other)), 1))
            feeds, of_reference = _noise(engine), _noise(reference)
        except DeployError as error:
            pytest.fail(str(error), pytrace=False)
        yield EngineUnderTest(engine, reference, feeds, of_reference)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Measure and gate after the body of a test that uses the fixture: a regression is a failure of that test."""
    result = yield
    found = getattr(item, "funcargs", {}).get("niwaki_engine")
    if isinstance(found, EngineUnderTest):
        _finish(item, found)
    return result


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the records where asked."""
    mine = session.config.stash[_SESSION]
    path = mine.option("record")
    if path is not None and mine.records:
        from deploy.files import write_text

        write_text(Path(path), _bench(mine).to_json())


def _finish(item: pytest.Item, found: EngineUnderTest) -> None:
    from deploy.bench.again import gate_again
    from deploy.bench.formats import sentence
    from deploy.bench.gate import gate
    from deploy.bench.records import Bench
    from deploy.errors import DeployError

    session = item.config.stash[_SESSION]
    try:
        records = {record.name: record for record in found.measure()}
        session.records |= records
        fixture = getattr(item, "funcargs", {}).get("benchmark")
        if fixture is not None:
            record = records[found.engine.name]
            figures = {"ratio_of_best": record.ratio_of_best, "ratio_to_dense": record.ratio_to_dense}
            fixture.extra_info.update({**figures, "sha256": record.sha256, "runtime": record.runtime})
        baseline = session.option("baseline")
        if baseline is None or not Path(baseline).is_file():
            return
        past = Bench.from_file(baseline)
        known = [name for name in records if name in {one.name for one in past.records}]
        tolerance = float(session.option("latency_tolerance") or 0.05)
        now = _bench(session, tuple(records.values()))
        result = gate_again(
            now,
            lambda one: gate(one, past, latency_tolerance=tolerance, only=known),
            lambda: _bench(session, tuple(found.measure())),
        )
    except DeployError as error:
        pytest.fail(str(error), pytrace=False)
    if not result.passed:
        pytest.fail("\n".join(sentence(line) for line in result.failed()), pytrace=False)


def _bench(session: _Session, records: tuple[Record, ...] | None = None) -> Any:
    from deploy.bench.records import Bench

    told = tuple(session.records.values()) if records is None else records
    return Bench(name=f"pytest on {platform.system()}", settings={"threads": 1, "batch": 1}, records=told)


def _name(path: str) -> str:
    found = Path(path)
    return found.name.removesuffix(".onnx").removesuffix(".engine")


def _noise(engine: Engine) -> dict[str, np.ndarray]:
    """Draw seeded noise for each input.

    Raises:
        DeployError: the engine leaves a size open that is not the batch, and does not say how images are prepared.
    """
    from deploy.bench.noise import has_batch, noise
    from deploy.errors import DeployError

    prepared = getattr(engine, "preprocessing", None)
    stated = None if prepared is None else list(prepared.shape)
    for name, spec in engine.inputs.items():
        sizes = spec.shape[1:] if has_batch(spec) else spec.shape
        if None in sizes and (stated is None or len(stated) != len(sizes)):
            raise DeployError(f"{engine.name} leaves the size of {name!r} open ({spec}); test a file of one size.")
    return noise(engine.inputs, engine.name, None, stated=stated)[0]
