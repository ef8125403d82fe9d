"""`niwaki sensitivity` and `niwaki prune` on a small network that has learnt digits."""

import json
import math
from urllib.error import URLError

import onnx
import pytest
import torch
import yaml
from onnx import TensorProto, helper
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import compress
from compress import prune
from compress.artifact import Description
from compress.models.cifar_resnet import cifar_resnet
from deploy.latency.profile import Timing as LayerTiming
from deploy.latency.table import Table

pytestmark = pytest.mark.heavy

PREPROCESSING = {"size": [8, 8], "mode": "L", "mean": [0.3], "std": [0.4], "resize": "stretch"}
ARGUMENTS = {"depth": 8, "width": 8, "in_channels": 1}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with `net`, which has learnt digits, `photos` in class folders, `bare` without, and a recipe."""
    home = tmp_path_factory.mktemp("home")
    digits = load_digits()
    pixels = torch.from_numpy(digits.images / 16 * 255).round()
    images, labels = (pixels[:, None] / 255 - 0.3).float() / 0.4, torch.from_numpy(digits.target)
    torch.manual_seed(0)
    net = cifar_resnet(**ARGUMENTS, num_classes=10).train()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    for step in range(60):
        at = torch.arange(32) * 37 % 1400 + step % 37
        optimizer.zero_grad()
        F.cross_entropy(net(images[at]), labels[at]).backward()
        optimizer.step()
    about = Description(
        factory="niwaki:cifar_resnet",
        arguments=ARGUMENTS,
        classes=tuple(map(str, range(10))),
        preprocessing=PREPROCESSING,
    )
    compress.save(net.eval(), home / "net", about)
    for n in range(1500, 1564):
        picture = Image.fromarray(pixels[n].byte().numpy())
        for folder in (home / "photos" / str(int(labels[n])), home / "bare"):
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(folder / f"{n}.png")
    recipe = {
        "name": "digits",
        "model": {"factory": "niwaki:cifar_resnet", "arguments": ARGUMENTS},
        "target": {"kind": "handwritten_digits"},
        "preprocessing": PREPROCESSING,
        "transfer": {"epochs": 1},
        "distill": {"epochs": 1},
        "deploy": None,
    }
    (home / "digits.yaml").write_text(yaml.safe_dump(recipe))
    return home


@pytest.fixture
def niwaki(home, command, monkeypatch):
    monkeypatch.chdir(home)
    return command


# --- sensitivity


@pytest.fixture
def measured(niwaki, tmp_path):
    code, out, err = niwaki(
        "sensitivity", "net", "--data", "photos", "--out", tmp_path / "found", "--ratios", "0.5,0.25", "--json",
        *(part for name in ("l1", "fisher", "apoz") for part in ("--criteria", name)),
    )  # fmt: skip
    assert code == 0, err
    return out, tmp_path / "found"


def test_sensitivity_tells_each_group_and_what_foresaw_it(measured):
    out, folder = measured
    found = prune.Sensitivity.from_json(out)
    assert (folder / "sensitivity.json").read_text() == out
    assert found.images == 32
    assert found.metric == "accuracy"
    assert found.accuracy > 0.8
    assert [cell.ratio for cell in found.curves[0].cells] == [0.25, 0.5]
    assert set(found.correlations) == {"l1", "fisher", "apoz"}
    assert all(-1 <= value <= 1 for value in found.correlations.values())
    drawing = (folder / "sensitivity.svg").read_text()
    assert drawing.count("<svg") == 1
    assert "accuracy (%)" in drawing
    # Each curve is a line of three points.
    assert len(found.curves) >= 4


def test_sensitivity_without_labels_is_the_loss_against_its_own_answers(niwaki, tmp_path):
    code, out, _ = niwaki(
        "sensitivity", "net", "--data", "bare", "--out", tmp_path, "--ratios", "0.5", "--criteria", "taylor", "--json"
    )
    found = prune.Sensitivity.from_json(out)
    assert code == 0
    assert found.accuracy is None
    assert all(cell.loss > found.loss for curve in found.curves for cell in curve.cells)
    assert found.correlations["taylor"] is not None


def test_sensitivity_of_a_recipe_is_that_of_its_teacher_on_its_data(niwaki, home, tmp_path):
    code, _, err = niwaki("sensitivity", "digits.yaml", "--out", tmp_path)
    assert code == 2
    assert "There is no trained network of digits.yaml in runs/digits/teacher; run it first" in err
    (home / "runs/digits").mkdir(parents=True, exist_ok=True)
    (home / "runs/digits/teacher").symlink_to(home / "net")
    code, out, _ = niwaki(
        "sensitivity", "digits.yaml", "--out", tmp_path, "--ratios", "0.5", "--criteria", "l2", "--images", "40"
    )
    assert code == 0
    assert "accuracy on 40 images, whole network" in out
    assert "Rank correlation with the rise of the loss: l2 " in out
    assert f"Written  {tmp_path / 'sensitivity.svg'}" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("net",), "There are no images to measure on; add --data"),
        (("net", "--data", "photos", "--ratios", "0.5,1"), "--ratios 0.5,1 is not a list of shares"),
        (("net", "--data", "photos", "--criteria", "l3"), "No criterion is called 'l3'"),
        (("net", "--data", "nowhere"), "There is no folder nowhere"),
        (("niwaki:cifar_resnet", "--data", "photos"), "add --weights DEFAULT"),
        (("net", "--data", "net"), "gives 0 images"),
    ],
)
def test_sensitivity_refuses_in_one_sentence(niwaki, tmp_path, arguments, said):
    code, out, err = niwaki("sensitivity", *arguments, "--out", tmp_path / "x")
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "x").exists()


# --- prune


def cut(niwaki, out, *arguments):
    code, shown, err = niwaki("prune", "net", "--out", out, "--round-to", "1", "--min-kept", "2", *arguments, "--json")
    assert code == 0, err
    return json.loads(shown)


def test_a_cut_network_is_proved_and_loads(niwaki, tmp_path):
    found = cut(niwaki, tmp_path / "half", "--budget", "macs=0.5", "--budget", "params=0.45")
    assert found["macs"][1] <= 0.5 * found["macs"][0]
    assert found["params"][1] <= 0.45 * found["params"][0]
    assert found["proof"] < 1e-8
    assert found["accuracy"] is None
    small = compress.load(tmp_path / "half")
    assert sum(p.numel() for p in small.parameters()) == found["params"][1]
    # And once more: two plans become one.
    code, out, _ = niwaki("prune", tmp_path / "half", "--out", tmp_path / "less", "--ratios", "0.2", "--round-to", "1")
    assert code == 0
    assert "cut = masked within" in out
    assert sum(p.numel() for p in compress.load(tmp_path / "less").parameters()) < found["params"][1]


def test_reconstruction_and_data_serve_accuracy(niwaki, tmp_path):
    asked = ("--data", "digits.yaml", "--criterion", "fisher", "--budget", "macs=0.5")
    plain = cut(niwaki, tmp_path / "plain", *asked, "--no-reconstruct")
    solved = cut(niwaki, tmp_path / "solved", *asked)
    assert plain["accuracy"][0] == solved["accuracy"][0] > 0.8
    assert solved["accuracy"][1] > plain["accuracy"][1]
    assert solved["reconstruction"]["after"] < solved["reconstruction"]["before"]


def test_ratios_from_a_sensitivity_spare_what_is_sensitive(niwaki, measured, tmp_path):
    found = cut(niwaki, tmp_path / "by", "--ratios", measured[1] / "sensitivity.json", "--budget", "macs=0.6")
    assert found["macs"][1] <= 0.6 * found["macs"][0]
    curves = prune.Sensitivity.from_json((measured[1] / "sensitivity.json").read_text())
    rises = {curve.group: curve.rises(curves.loss) for curve in curves.curves}
    gone = {name: before - after for name, (before, after) in found["groups"].items()}
    reached = max(rises[name][count - 1] for name, count in gone.items() if count)
    # One more channel of any group would have cost more than what went of any other.
    for name, count in gone.items():
        before = found["groups"][name][0]
        assert count >= before - 2 or rises[name][count] >= reached


def test_shares_by_pattern(niwaki, tmp_path):
    (tmp_path / "shares.json").write_text('{"layer3.*": 0.5, "*": 0.0}')
    found = cut(niwaki, tmp_path / "by", "--ratios", tmp_path / "shares.json")
    assert {name for name, (before, after) in found["groups"].items() if after < before} == {
        name for name in found["groups"] if name.startswith("layer3")
    }


def test_several_networks_from_one(niwaki, tmp_path):
    found = cut(niwaki, tmp_path / "several", "--budget", "macs=0.8,0.5")
    assert [one["out"] for one in found] == [str(tmp_path / "several" / name) for name in ("macs-0.8", "macs-0.5")]
    counts = [sum(p.numel() for p in compress.load(one["out"]).parameters()) for one in found]
    assert counts == [one["params"][1] for one in found]
    assert counts[0] > counts[1]


def test_the_smallest_network_within_so_many_points(niwaki, tmp_path):
    found = cut(niwaki, tmp_path / "found", "--data", "digits.yaml", "--budget", "max_drop=8", "--images", "32")
    assert found["accuracy"][0] - found["accuracy"][1] <= 0.08
    assert found["reconstruction"] is not None
    assert found["macs"][1] < 0.9 * found["macs"][0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Nothing says how much to remove; add --budget macs=0.5"),
        (("--budget", "macs"), "--budget macs is not KEY=VALUE"),
        (("--budget", "mac=1"), "niwaki prune --help"),
        (("--budget", "macs=2"), "budget.macs: at most 1 is wanted; niwaki prune --help"),
        (("--budget", "macs=0.5", "--scope", "all"), "scope: 'global', 'group', 'isomorphic' or 'per_mac' is wanted"),
        (("--budget", "macs=0.5", "--images", "1"), "'--images': at least 8 is wanted"),
        (("--budget", "macs=0.5", "--epochs", "1"), "No such option: --epochs (niwaki --help"),
        (("--budget", "macs=0.01"), "ask for macs: "),
        (("--budget", "macs=0.5", "--ratios", "0.5"), "--ratios already says how much to remove"),
        (("--budget", "macs=0.5", "--criterion", "fisher"), "There are no images, and the criterion fisher looks at"),
        (("--budget", "macs=0.5", "--reconstruct"), "There are no images, and this looks at images"),
        (("--budget", "max_drop=1", "--data", "bare"), "max_drop is measured on labels"),
        (("--budget", "macs=0.5", "--threads", "2"), "say how a latency is timed"),
        (("--budget", "macs=0.5", "--weights", "DEFAULT"), "leave --weights out"),
        (("--ratios", "net/model.json"), "niwaki prune --help"),
        (("--ratios", "net/model.safetensors"), "is not JSON"),
    ],
)
def test_prune_refuses_in_one_sentence(niwaki, tmp_path, arguments, said):
    code, out, err = niwaki("prune", "net", "--out", tmp_path / "x", *arguments)
    assert code == 2
    # What only planning can tell comes after the first lines of the progress.
    begun = "[ 1/1] Cut net\n          finding which channels go together\n          scoring by l1\n"
    assert out == (begun if "ask for" in said else "")
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_random_weights_are_said(niwaki, tmp_path):
    asked = ("prune", "niwaki:lenet5", "--size", "28", "--budget", "macs=0.5")
    code, out, said = niwaki(*asked, "--out", tmp_path / "cut", "--json")
    assert (code, json.loads(out)["images"]) == (0, None)
    assert "niwaki:lenet5 has random weights, as none were named; --weights FILE loads trained ones" in said
    assert niwaki(*asked, "--out", tmp_path / "quiet", "--quiet") == (0, "", "")
    code, _, said = niwaki(
        "prune", "net", "--out", tmp_path / "half", "--budget", "macs=0.5", "--round-to", "1", "--min-kept", "2"
    )
    assert (code, said) == (0, "")  # what is saved has learnt


def test_weights_out_of_reach_are_a_lack_of_the_machine(niwaki, tmp_path, monkeypatch):
    def unreachable(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr("torch.hub.download_url_to_file", unreachable)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    asked = ("--weights", "DEFAULT", "--budget", "macs=0.5", "--out", tmp_path / "x")
    code, _, said = niwaki("prune", "torchvision:squeezenet1_1", *asked)
    assert code == 3
    assert "The weights of squeezenet1_1 cannot be downloaded (<urlopen error no route to host>)" in said


def test_prune_writes_over_nothing(niwaki, home):
    code, _, err = niwaki("prune", "net", "--out", "net", "--budget", "macs=0.5")
    assert code == 2
    assert "--out net already exists" in err
    assert isinstance(compress.load(home / "net"), nn.Module)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_cut_by_hand_meets_a_latency(niwaki, tmp_path, monkeypatch, precision):
    """On a machine on which a file takes a microsecond for every weight; the answer says what was measured."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = []

    def timer(jobs, how):
        asked.append((how.runtime, how.threads, *{job.batch for job in jobs}))
        found = []
        for job in jobs:
            shapes = [math.prod(t.dims) for t in onnx.load(job.path).graph.initializer if len(t.dims) > 1]
            ms = sum(shapes) / 1000 + 0.001
            found.append(LayerTiming(path=job.path, ms=ms, processes=(ms,) * 3, load=(0.5,)))
        return found

    def weights_of(probe, path):
        shape = (probe.inputs, probe.outputs * math.prod(probe.layer.kernel))
        constant = helper.make_tensor("w", TensorProto.FLOAT, shape, bytes(4 * math.prod(shape)), raw=True)
        ends = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
        graph = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "g", [], ends, [constant])
        onnx.save(helper.make_model(graph), path)

    monkeypatch.setattr("compress.run.filling.write_probe", weights_of)
    monkeypatch.setattr("compress.run.given_latency.time_files", timer)
    more = ("--min-kept", "2", "--precision", precision, "--threads", "2", "--runtime", "openvino", "--batch", "4")
    found = cut(niwaki, tmp_path / "found", "--budget", "latency=0.5", *more)
    assert "0.500 asked for" in found["latency"] and found["macs"][1] < found["macs"][0]
    assert set(asked) == {("openvino", 2, 4)}
    assert {entry.setting.batch for entry in Table.read(tmp_path / "niwaki/latency.json").entries} == {4}
    assert 0.4 < found["params"][1] / found["params"][0] < 0.6
