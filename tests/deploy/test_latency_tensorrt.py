"""TensorRT's exported profiles: files written by hand as its tool writes them, with planted reasons."""

import json
import sys

import pytest

from compress.cli import app
from deploy.errors import DeployError
from deploy.latency.tensorrt import explain_profiles, read_layers


def conv(name, reads, makes, ms, **more):
    """A 3x3 convolution in both files: its time, and what the engine says of it."""
    kind = more.get("format", "Channel major FP16 format where channel % 8 == 0")
    about = {
        "Name": name,
        "LayerType": "CaskConvolution",
        "Inputs": [{"Name": "x", "Location": "Device", "Dimensions": [1, reads, 28, 28], "Format/Datatype": kind}],
        "Outputs": [{"Name": "y", "Location": "Device", "Dimensions": [1, makes, 28, 28], "Format/Datatype": kind}],
        "ParameterType": "Convolution",
        "Kernel": [3, 3],
        "OutMaps": makes,
        "Groups": more.get("groups", 1),
        "TacticName": "sm80_xmma_fprop",
    }
    return about, {"name": name, "timeMs": 100 * ms, "averageMs": 1.5 * ms, "medianMs": ms, "percentage": 50.0}


def other(name, kind, ms):
    about = {"Name": name, "LayerType": kind, "Inputs": [], "Outputs": []}
    return about, {"name": name, "timeMs": 100 * ms, "averageMs": ms, "percentage": 1.0}


def written(folder, name, layers, described=True):
    path = folder / f"{name}.json"
    path.write_text(json.dumps([{"count": 100}, *(timed for _, timed in layers)]))
    if described:
        about = {"Layers": [one for one, _ in layers], "Bindings": ["x", "y"]}
        (folder / f"{name}.layers.json").write_text(json.dumps(about))
    return path


def test_layers_are_read_with_their_shapes(tmp_path):
    path = written(tmp_path, "a", [conv("c", 64, 37, 0.5), other("Reformatting CopyNode", "Reformat", 0.25)])
    product, reorder = read_layers(path)
    assert (product.kind, product.ms, product.precision, product.kernel) == ("Conv", 0.5, "fp16", "sm80_xmma_fprop")
    assert product.weights == (37, 64, 3, 3) and product.macs == 37 * 28 * 28 * 64 * 9
    assert (reorder.kind, reorder.ms) == ("Reorder", 0.25)


def test_each_shortfall_has_its_reason(tmp_path):
    before = written(tmp_path, "dense", [conv("a", 64, 64, 1.0), conv("d", 64, 64, 1.0, groups=64)])
    cut = [
        conv("a", 64, 37, 0.9),
        other("Reformatting CopyNode for d", "Reformat", 0.3),
        conv("d", 32, 32, 0.9, groups=32),
    ]
    found = explain_profiles(written(tmp_path, "cut", cut), before)
    assert [row.reason for row in found.rows] == ["misaligned", "reorder inserted", "memory-bound"]
    assert found.rows[0].expected_ms == pytest.approx(37 / 64)
    assert (found.before_ms, found.after_ms) == (2.0, pytest.approx(2.1))


def test_a_layer_in_half_precision_of_an_int8_engine_fell_back(tmp_path):
    int8 = "Channel major INT8 format where channel % 32 == 0"
    layers = [conv("a", 64, 64, 1.0, format=int8), conv("b", 64, 64, 1.0)]
    found = explain_profiles(written(tmp_path, "a", layers))
    assert [row.reason for row in found.rows] == ["", "precision fell back"]


def test_without_a_description_names_and_times_are_left(tmp_path):
    before = written(tmp_path, "dense", [conv("conv1", 64, 64, 1.0)], described=False)
    found = explain_profiles(written(tmp_path, "cut", [conv("conv1", 64, 37, 0.9)], described=False), before)
    (row,) = found.rows
    assert (row.before_ms, row.after_ms, row.expected_ms, row.reason) == (1.0, 0.9, None, "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"),
        ("{}", "holds dict, not list"),
        ('[{"count": 1}]', "holds no layers"),
        ('[{"name": "a"}]', "averageMs"),
        ("[3]", "is not a profile of TensorRT"),
    ],
)
def test_what_is_no_profile_is_refused(tmp_path, text, said):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DeployError, match=said):
        read_layers(tmp_path / "a.json")


def test_what_is_no_description_is_refused(tmp_path):
    path = written(tmp_path, "a", [conv("a", 64, 64, 1.0)])
    for text, said in (
        ('{"Layers": ["a"]}', "profilingVerbosity=detailed"),
        ('{"Layers": [{}]}', "Name"),
        ('{"Layers": 3}', "describe an engine"),
    ):
        (tmp_path / "a.layers.json").write_text(text)
        with pytest.raises(DeployError, match=said):
            read_layers(path)
    with pytest.raises(DeployError, match=r"Cannot read .*none\.json"):
        read_layers(tmp_path / "none.json")


def test_the_command_reads_two_profiles(tmp_path, monkeypatch, capsys):
    before = written(tmp_path, "dense", [conv("a", 64, 64, 1.0)])
    after = written(tmp_path, "cut", [conv("a", 64, 37, 0.9)])
    monkeypatch.setattr(sys, "argv", ["niwaki", "explain", str(before), str(after), "--runtime", "tensorrt", "--json"])
    with pytest.raises(SystemExit) as ended:
        app.main()
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert ended.value.code == 0 and row["reason"] == "misaligned"
