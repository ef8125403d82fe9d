"""Tables of layer times: read by steps, refused when stale, written by a schema."""

import json

import pytest

from deploy.errors import DeployError
from deploy.latency.table import (
    Entry,
    Setting,
    Table,
    TimedLayer,
    TimedPoint,
    between_jumps,
    sample_widths,
    schema,
)

CONV = TimedLayer(kind="conv", size=(28, 28), kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1))
DEPTHWISE = CONV.model_copy(update={"per_group": 1})
HERE = Setting(runtime="onnxruntime", version="1.31.0", device="a processor", precision="fp32", threads=1)


def entry(points, layer=CONV, setting=HERE):
    listed = tuple(TimedPoint(inputs=a, outputs=b, ms=ms) for (a, b), ms in points.items())
    return Entry(layer=layer, setting=setting, points=listed, load=(1.0, 2.0))


STAIRS = {(64, 64): 4.0, (64, 32): 2.0, (64, 48): 4.0, (32, 64): 2.0, (16, 64): 1.0}


@pytest.mark.parametrize(
    ("inputs", "outputs", "ms"),
    [
        (64, 64, 4.0),
        (64, 33, 4.0),  # the step above, not the line between 2 and 4
        (64, 32, 2.0),
        (64, 1, 2.0),
        (17, 64, 2.0),
        (32, 32, 1.0),  # the share of one axis times the other
        (16, 40, 1.0),
    ],
)
def test_a_time_is_read_by_steps(inputs, outputs, ms):
    assert entry(STAIRS).ms(inputs, outputs, (64, 64)) == pytest.approx(ms)


def test_a_pair_that_was_measured_is_read_as_it_is():
    assert entry(STAIRS | {(32, 32): 0.7}).ms(32, 30, (64, 64)) == 0.7


def test_a_grouped_layer_has_one_axis():
    found = entry({(16, 16): 1.0, (32, 32): 3.0}, DEPTHWISE)
    assert [found.ms(width, width, (32, 32)) for width in (8, 16, 17, 32)] == [1.0, 1.0, 3.0, 3.0]


def test_what_lies_above_all_that_was_measured_is_refused():
    with pytest.raises(DeployError, match="at 33 channels, 32 are its most"):
        entry({(32, 32): 1.0}, DEPTHWISE).ms(33, 33, (32, 32))
    with pytest.raises(DeployError, match=r"no time for conv k3x3 .* from 128 to 64"):
        entry(STAIRS).ms(64, 64, (128, 64))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": "1.30.0"}, "version 1.30.0, not 1.31.0"),
        ({"device": "another"}, "device another, not a processor"),
        ({"precision": "int8"}, "precision int8, not fp32"),
        ({"threads": 2}, "threads 2, not 1"),
        ({"batch": 8}, "batch 8, not 1"),
    ],
)
def test_an_entry_of_another_setting_is_stale(change, said):
    table = Table(entries=(entry(STAIRS, setting=HERE.model_copy(update=change)),))
    assert table.find(CONV, HERE) is None
    with pytest.raises(DeployError, match=rf"{said}.* stale here; profile"):
        table.entry(CONV, HERE)


def test_a_table_from_a_device_is_of_one_setting():
    other = HERE.model_copy(update={"device": "a phone"})
    one = Table(entries=(entry(STAIRS, setting=other),))
    assert one.setting("onnxruntime", "fp32", 1) == other
    with pytest.raises(DeployError, match="none for openvino in fp32 with 1 thread"):
        one.setting("openvino", "fp32", 1)
    with pytest.raises(DeployError, match="mixes 2 machines or versions"):
        one.merged([entry(STAIRS)]).setting("onnxruntime", "fp32", 1)


def test_new_points_join_the_old_ones_of_their_setting(tmp_path):
    table = Table(entries=(entry({(32, 32): 1.0}),)).merged([entry({(16, 32): 0.5, (32, 32): 0.9})], seconds=2.0)
    (found,) = table.entries
    assert found.ms(16, 32, (32, 32)) == 0.5 and found.ms(32, 32, (32, 32)) == 0.9
    assert table.seconds == 2.0 and found.load == (1.0, 2.0, 1.0, 2.0)
    table.write(tmp_path / "latency.json")
    assert Table.read(tmp_path / "latency.json") == table
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(json.loads(table.to_json()), schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(json.loads(table.to_json()) | {"sums": 1}, schema())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}{", "is not a niwaki-latency-1 table"),
        ('{"format": "niwaki-latency-2"}', "format"),
        ('{"entries": [{"layer": {"kind": "conv"}}]}', "entries.0"),
        ('{"sums": 1}', "sums"),
    ],
)
def test_what_is_no_table_is_refused_in_a_sentence(tmp_path, text, said):
    path = tmp_path / "latency.json"
    path.write_text(text)
    with pytest.raises(DeployError, match=said):
        Table.read(path)
    with pytest.raises(DeployError, match="Cannot read the table"):
        Table.read(tmp_path / "none.json")


def test_two_times_for_one_place_are_refused():
    with pytest.raises(ValueError, match="two times"):
        Entry(layer=CONV, setting=HERE, points=(TimedPoint(inputs=8, outputs=8, ms=1.0),) * 2)
    with pytest.raises(ValueError, match="two entries"):
        Table(entries=(entry(STAIRS),) * 2)


@pytest.mark.parametrize(
    ("size", "widths"),
    [
        (64, (8, 16, 24, 32, 40, 48, 56, 64)),
        (10, (4, 8, 10)),
        (3, (1, 2, 3)),
        (512, (8, 16, 32, *range(64, 512, 64), 512)),
        (100, (8, *range(16, 100, 16), 100)),
    ],
)
def test_widths_are_sampled_in_powers_of_two(size, widths):
    assert sample_widths(size) == widths


def test_what_lies_between_a_jump_is_measured_next():
    assert between_jumps({32: 1.0, 64: 4.0}) == (48,)
    assert between_jumps({32: 1.0, 64: 2.0}) == ()
    assert between_jumps({32: 2.0, 64: 1.0}) == (48,)  # faster though wider: the narrow one is misaligned
    assert between_jumps({56: 1.0, 64: 4.0}) == ()  # no multiple of eight lies between
