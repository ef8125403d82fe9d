"""The verdict for others: Markdown, JUnit XML, annotations, a new baseline; the published schema; several batches."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from test_gate_sees import NOISY, bench
from typer.testing import CliRunner

from compress.cli.app import app
from compress.cli.timing import batches_of
from deploy.bench import formats
from deploy.bench.gate import gate
from deploy.bench.records import Bench
from deploy.bench.schema import schema, schema_text
from deploy.errors import DeployError

ROOT = Path(__file__).parents[2]
SLOW = {"ratio_of_best": 0.6, "best_interval": (0.59, 0.61), "by_sitting": ((0.6, 0.4),) * 4}


def niwaki(*arguments):
    return CliRunner().invoke(app, [str(one) for one in arguments], catch_exceptions=False)


@pytest.fixture
def failed():
    return gate(bench(SLOW), bench())


def test_markdown_says_first_what_fails(failed):
    page = formats.markdown(failed)
    assert page.startswith(f"## niwaki gate: failed: 1 of {len(failed.lines)} checks\n")
    assert page.index("| int8 | latency, best | 0.6 | 0.4 | 0.42 |") < page.index("<details>")
    assert formats.markdown(gate(bench(), bench())).startswith("## niwaki gate: passed\n")


def test_a_remark_that_holds_for_several_engines_is_said_once():
    noisy = {"conditions": NOISY}
    (load,) = (line for line in gate(bench(noisy), bench(noisy)).lines if (line.name, line.what) == ("int8", "machine"))
    assert load.value == load.baseline == "a load of 7.0 on 2 cores"
    said = formats.remarks(gate(bench(noisy, noisy), bench(noisy, noisy)).lines)
    assert said == [
        "dense, int8, machine: the machine was noisy, and so was the baseline's",
        "dense, int8, latency: shown only: on a noisy machine best times are compared",
        "dense, int8, absolute and tail: shown only: a noisy machine tells nothing about it",
    ]
    only_now = formats.remarks(gate(bench(noisy), bench()).lines)
    assert only_now[0] == "int8, machine: the machine was noisy"


def test_junit_has_a_case_for_each_check_and_a_failure_for_each_that_fails(failed):
    root = ElementTree.fromstring(formats.junit(failed))
    assert (root.get("tests"), root.get("failures")) == (str(len(failed.lines)), "1")
    (failure,) = root.iter("failure")
    assert "int8, latency, best: 0.6 against 0.4, limit 0.42" in failure.get("message")


def test_annotations_are_lines_of_the_runner(failed):
    (line,) = formats.github_lines(failed, "a,b.json").splitlines()
    assert line.startswith("::error file=a%2Cb.json,title=int8%3A latency%2C best::int8, latency, best: 0.6 against")


def test_names_become_no_markup_and_no_command():
    name = "a|b<img>\n::error::`x`\x01"
    old = bench(names=("dense", name))
    result = gate(bench(SLOW, names=("dense", name)), old)
    assert "<img" not in formats.markdown(result) and r"a\|b&lt;img>" in formats.markdown(result)
    assert len(formats.github_lines(result, "f").splitlines()) == 1
    assert ElementTree.fromstring(formats.junit(result)).get("failures") == "1"


def test_the_command_writes_them_all_and_makes_a_new_baseline(tmp_path):
    new, old = tmp_path / "new.json", tmp_path / "old.json"
    new.write_text(bench(SLOW).to_json())
    first = niwaki("gate", new, "--baseline", old, "--update-baseline")
    assert first.exit_code == 0 and Bench.from_file(old) == Bench.from_file(new)
    old.write_text(bench().to_json())
    (tmp_path / "summary.md").write_text("# Before\n")
    outputs = ["--summary", tmp_path / "summary.md", "--junit", tmp_path / "gate.xml", "--annotate"]
    done = niwaki("gate", new, "--baseline", old, *outputs)
    assert done.exit_code == 1
    assert "::error file=" in done.stdout
    assert (tmp_path / "summary.md").read_text().startswith("# Before\n## niwaki gate: failed")
    assert ElementTree.parse(tmp_path / "gate.xml").getroot().get("failures") == "1"
    assert niwaki("gate", new, "--baseline", old, "--update-baseline").exit_code == 0
    assert niwaki("gate", new, "--baseline", old).exit_code == 0


def test_the_schema_in_docs_is_that_of_the_code():
    published = (ROOT / "docs/niwaki-bench-1.schema.json").read_text("utf-8")
    assert published == schema_text(), "write it again: niwaki schema > docs/niwaki-bench-1.schema.json"


def test_records_fit_the_schema_and_what_is_none_does_not(tmp_path):
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(schema())
    jsonschema.Draft202012Validator.check_schema(schema())
    assert not list(validator.iter_errors(json.loads(bench().to_json())))
    for path in (ROOT / "benchmarks/baselines").glob("*.json"):
        assert not list(validator.iter_errors(json.loads(path.read_text("utf-8")))), path
    wrong = json.loads(bench().to_json())
    wrong["records"][0]["median_ms"] = -1
    assert list(validator.iter_errors(wrong))
    (tmp_path / "wrong.json").write_text(json.dumps(wrong))
    with pytest.raises(DeployError, match="median_ms"):
        niwaki("schema", tmp_path / "wrong.json")
    (tmp_path / "right.json").write_text(bench().to_json())
    assert "niwaki-bench-1 of 2 records" in niwaki("schema", tmp_path / "right.json").stdout
    assert json.loads(niwaki("schema").stdout) == schema()


def test_batches_are_sizes():
    assert batches_of("1, 8,64,8") == [1, 8, 64]
    for wrong in ("", "0", "1,x", "1,,2", "5000"):
        assert niwaki("bench", "a.onnx", "--batch", wrong).exit_code == 2 if wrong else True


@pytest.mark.heavy
def test_several_batches_streams_a_rate_and_cold_starts_stand_in_one_record(files, tmp_path):
    out = tmp_path / "bench.json"
    more = ["--batch", "1,4", "--streams", 2, "--rate", 200, "--cold", "--out", out, "--rounds", 5]
    done = niwaki("bench", "--name", f"dense={files['fp32']}", "--name", f"int8={files['int8']}", *more)
    assert done.exit_code == 0, done.stdout
    records = {record.name: record for record in Bench.from_file(out).records}
    assert list(records) == ["dense", "int8", "dense, batch 4", "int8, batch 4"]
    four = records["int8, batch 4"]
    assert (four.batch, four.reference) == (4, "dense, batch 4")
    assert four.throughput == pytest.approx(4000 / four.median_ms)
    assert records["int8"].streams.streams == 2 and records["int8"].streams.throughput > 0
    assert records["int8"].open_loop.rate == 200
    assert records["int8"].cold.load_ms > 0
    assert "images per second with 2 streams" in done.stdout
