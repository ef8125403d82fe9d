"""`niwaki inspect`: what it says of a network, as a tree, as lines and as JSON, and how it refuses."""

import io
import json
import sys
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from torch import nn

import compress
from compress import prune
from compress.artifact import Description
from compress.cli import app
from compress.cli.inspection import render
from compress.errors import ModelError
from compress.models.cifar_resnet import cifar_resnet
from compress.models.named import named_network
from compress.prune import tracing
from compress.prune.inspection import Inspection, inspect_model

NETS = """
import sys
from torch import nn
print("a user's own print")
def small(): return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3))
def wants(num_classes):
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))
def fails(): raise KeyError("the table\\nis empty")
def leaves(): sys.exit("no")
def needs(depth, num_classes): return small()
def number(): return 3
def empty(): return nn.ReLU()
value = 3
"""


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x):
        return x + self.norm(self.conv(x)).relu()


class Small(nn.Module):
    """A stem and a block that add, a grouped convolution, and a classifier that reads every position."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Sequential(nn.Sequential(Block()))
        self.wide = nn.Conv2d(8, 12, 3, padding=1)
        self.grouped = nn.Conv2d(12, 12, 3, padding=1, groups=3)
        self.fc = nn.Linear(12 * 16, 5)

    def forward(self, x):
        return self.fc(self.grouped(self.wide(self.body(self.stem(x)).relu()).relu()).relu().flatten(1))


@pytest.fixture(scope="module")
def seen() -> Inspection:
    return inspect_model(Small(), torch.rand(2, 3, 4, 4), name="small")


def shown(inspection, *, everything=False, terminal=False) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=200, highlight=False)
    render(inspection, console, everything=everything)
    return console.file.getvalue()


# --- what it says


def test_groups_with_their_units_and_shares(seen):
    groups = {group.name: group for group in seen.groups}
    assert [(g.name, g.units, g.width) for g in seen.groups] == [("stem", 8, 1), ("wide", 4, 3), ("grouped", 4, 3)]
    slots = [m.slot for m in groups["stem"].members]
    assert slots[:2] == ["stem.weight:0", "stem.bias:0"]
    inside = {f"conv.{name}" for name in ("weight:0", "weight:1", "bias:0")}
    inside |= {f"norm.{name}:0" for name in ("weight", "bias", "running_mean", "running_var")}
    assert set(slots[2:]) == {f"body.0.0.{name}" for name in inside} | {"wide.weight:1"}
    assert {m.slot: m.role for m in groups["stem"].members}["wide.weight:1"] == "consumer"
    # By hand: positions x kernel x rows x columns, and the same without all but one unit of the stem.
    macs = 16 * 9 * (3 * 8 + 8 * 8 + 8 * 12 + 12 * 4) + 5 * 12 * 16
    assert seen.macs == macs
    left = 16 * 9 * (3 * 1 + 1 * 1 + 1 * 12 + 12 * 4) + 5 * 12 * 16
    assert groups["stem"].macs_share == pytest.approx(1 - left / macs)
    parameters = sum(p.numel() for p in Small().parameters())
    assert seen.parameters == parameters
    # Of 12 rows three stay, and of the classifier's 12 x 16 columns three times 16.
    assert groups["grouped"].parameters_share == pytest.approx((9 * 4 * 9 + 9 + 5 * 9 * 16) / parameters)
    assert seen.free_units == 16
    assert seen.units == seen.free_units + sum(one.channels for one in seen.protected)
    assert 0.5 < seen.parameters_free < 1
    assert seen.seconds > 0


def test_the_rest_stays_for_a_reason(seen):
    reasons = {p.reason: p for p in seen.protected}
    assert reasons["graph input"].slots == ("stem.weight:1",)
    assert reasons["graph input"].channels == 3
    assert set(reasons["graph output"].slots) == {"fc.weight:0", "fc.bias:0"}
    assert reasons["graph output"].channels == 5
    patched = {(p.module, p.name): (p.value, p.slot) for p in seen.attributes}
    assert patched["stem", "out_channels"] == (8, "stem.weight:0")
    assert patched["fc", "in_features"] == (192, "fc.weight:1")
    assert ("fc", "out_features") not in patched
    assert seen.unknown_ops == ()
    assert seen.substitutions == {}


def test_a_pattern_protects_and_one_that_matches_nothing_is_refused(seen):
    found = inspect_model(Small(), torch.rand(2, 3, 4, 4), protect=["body.*"])
    assert [g.name for g in found.groups] == ["wide", "grouped"]
    assert "stem.weight:0" in {slot for p in found.protected if p.reason == "the user's choice" for slot in p.slots}
    with pytest.raises(ModelError, match=r"'head\*' matches no parameter \(the first one is 'stem.weight'\)"):
        inspect_model(Small(), torch.rand(2, 3, 4, 4), protect=["head*"])


def test_blocks_that_may_go_whole_are_listed_where_they_are_asked_for(seen):
    class Twice(nn.Module):
        def __init__(self, last):
            super().__init__()
            self.conv, self.last = nn.Conv2d(6, 6, 1), last

        def forward(self, x):
            return x + self.last(self.conv(x))

    assert seen.blocks is None
    net = nn.Sequential(nn.Conv2d(3, 6, 1), Twice(nn.Identity()), Twice(nn.Sigmoid()))
    found = inspect_model(net, torch.rand(2, 3, 4, 4), blocks=True)
    (block,) = found.blocks
    macs = 16 * (3 * 6 + 2 * 6 * 6)
    assert (block.name, block.becomes, found.macs) == ("1", "Identity", macs)
    assert block.macs_share == pytest.approx(16 * 6 * 6 / macs)
    text = shown(found)
    assert "residual blocks that may go whole\n  1  40.0 % of the MACs · leaves Identity\n" in text
    assert "residual blocks that stay\n  2  has a branch that does not end in a layer" in text
    assert "residual blocks" not in shown(seen)


def test_an_operator_without_a_rule_is_named():
    class Sorts(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.b(self.a(x).sort(dim=1).values)

    found = inspect_model(Sorts(), torch.rand(2, 3, 4, 4))
    assert found.unknown_ops == ("aten.sort",)
    assert "operators without a rule\n  aten.sort\n" in shown(found)
    assert "no channel is free to go" in shown(found)


def test_units_that_are_not_preserving_are_marked(monkeypatch):
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    trace = prune.trace(net, torch.rand(2, 3, 4, 4))
    marked = replace(trace, preserving=~trace.preserving)
    monkeypatch.setattr(tracing, "trace", lambda *_, **__: marked)
    net[0] = nn.LayerNorm(4)  # who owns `0.weight` is asked of the modules
    found = inspect_model(net, torch.rand(2, 3, 4, 4))
    assert [(g.preserving, g.note) for g in found.groups] == [(False, "under a LayerNorm")]
    assert "[under a LayerNorm: not function-preserving]" in shown(found)


def test_a_detector_is_seen_through_its_raw_heads():
    found = named_network("torchvision:fasterrcnn_mobilenet_v3_large_320_fpn")
    seen = inspect_model(found.model, found.example, forward=found.forward)
    assert (seen.forward, seen.input) == ("rcnn_heads", (3, 128, 128))
    assert len(seen.groups) > 20
    assert "FasterRCNN, 128x128, rcnn heads" in shown(seen)


def test_our_own_networks_go_by_their_names_old_and_new():
    own, renamed = named_network("niwaki:cifar_resnet"), named_network("compress.models:cifar_resnet")
    assert type(own.model) is type(renamed.model) is type(cifar_resnet())
    with pytest.raises(ModelError, match="Niwaki has no model 'resnet19'; it has cifar_resnet"):
        named_network("niwaki:resnet19")


# --- how it says it


def test_lines_are_a_tree_by_indentation(seen):
    lines = shown(seen).splitlines()
    assert "\x1b" not in "".join(lines)
    assert lines[0].startswith("small (Small, 4x4): ")
    assert "3 free groups" in lines[0]
    assert lines[1] == "free groups"
    assert lines[2].startswith("  stem  8 units · ")
    assert lines[3].startswith("    stem.weight:0, stem.bias:0, body.0.0.")
    assert lines[3].endswith(" + 7 more")
    assert lines[4].startswith("  wide  4 units of 3 · ")
    assert "  graph input — 1 slot, 3 channels — stem.weight:1" in lines


def test_shares_that_overlap_are_said_to(seen):
    assert sum(group.macs_share for group in seen.groups) > 1
    assert "(a layer between two groups counts for both: their shares can sum to over 100 %)" in shown(seen)


def test_everything_spells_the_names_out(seen):
    text = shown(seen, everything=True)
    assert " more" not in text
    assert all(name in text for name in ("body.0.0.norm.running_var:0", "wide.weight:1", "fc.weight:1"))
    assert "fc.in_features = 192, follows fc.weight:1" in text


def test_modules_on_the_way_share_a_line():
    groups = [g.model_copy(update={"name": name}) for g, name in zip(
        inspect_model(Small(), torch.rand(2, 3, 4, 4)).groups, ("a.b.c", "a.b.d.0", "e"), strict=True)]  # fmt: skip
    found = inspect_model(Small(), torch.rand(2, 3, 4, 4)).model_copy(update={"groups": tuple(groups)})
    names = [line.split("  4")[0].split("  8")[0] for line in shown(found).splitlines()[1:8] if ":" not in line]
    assert names == ["free groups", "  a › b", "    c", "    d › 0", "  e"]


def test_a_terminal_gets_the_same_words_as_a_tree(seen):
    text = shown(seen, terminal=True)
    assert "├── " in text
    assert "\x1b[" in text
    plain = [line.strip() for line in shown(seen).splitlines()]
    words = "".join(text.split("\x1b[")).replace(" ", "")
    assert all(name in words for name in ("8units·", "4unitsof3·", "+7more"))
    assert len(text.splitlines()) == len(plain)


def test_names_are_never_markup(seen):
    odd = seen.model_copy(update={"model": "[red]x[/nonsense]", "unknown_ops": ("[/]",)})
    assert "[red]x[/nonsense]" in shown(odd)
    assert "[/]" in shown(odd)


def test_json_is_the_whole_inspection(seen):
    value = json.loads(seen.model_dump_json())
    assert Inspection.model_validate(value) == seen
    assert list(value) == [
        "model", "type", "input", "forward", "parameters", "macs", "units", "free_units", "parameters_free",
        "macs_free", "seconds", "groups", "protected", "substitutions", "attributes", "unknown_ops",
        "unfollowed", "blocks", "blocks_that_stay",
    ]  # fmt: skip
    assert list(value["groups"][0]) == [
        "name", "units", "width", "preserving", "note", "macs_share", "parameters_share", "members",
    ]  # fmt: skip


# --- the command


@pytest.fixture
def niwaki(tmp_path, monkeypatch, capsys):
    """Runs the command in a folder with a user's nets.py; gives exit code, output and errors."""
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        # What the command puts on the path, and what is imported from there, ends with it.
        with monkeypatch.context() as patch:
            patch.setattr(sys, "path", list(sys.path))
            patch.setattr(sys, "argv", ["niwaki", "inspect", *map(str, arguments)])
            patch.setattr(sys, "dont_write_bytecode", True)
            sys.modules.pop("nets", None)
            with pytest.raises(SystemExit) as ended:
                app.main()
            sys.modules.pop("nets", None)
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return run


def test_a_torchvision_name(niwaki):
    code, out, err = niwaki("torchvision:squeezenet1_1", "--size", "64")
    assert (code, err) == (0, "")
    assert out.startswith("torchvision:squeezenet1_1 (SqueezeNet, 64x64): 1.24 M parameters, ")
    assert "\n  features\n" in out


def test_a_function_of_the_current_folder(niwaki):
    code, out, err = niwaki("nets:small", "--size", "16", "--json")
    assert (code, err) == (0, "a user's own print\n")
    value = json.loads(out)
    assert value["input"] == [1, 16, 16]
    assert [(g["name"], g["units"]) for g in value["groups"]] == [("0", 6)]
    code, out, _ = niwaki("nets:wants", "--size", "16", "--protect", "0.*", "--json")
    assert code == 0
    assert json.loads(out)["groups"] == []


def test_quiet_prints_nothing(niwaki):
    assert niwaki("nets:small", "--size", "16", "--quiet")[:2] == (0, "")


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("resnet18",), "'resnet18' is not a folder; name torchvision:NAME (torchvision:resnet18)"),
        (("nets.py",), "'nets.py' is a file"),
        (("torchvision:resnet19",), "torchvision has no model 'resnet19'; it has for example resnet101"),
        (("nowhere:small",), "'nowhere:small' cannot be imported (No module named 'nowhere')"),
        (("nets:nothing",), "'nets:nothing' cannot be imported (module 'nets' has no attribute 'nothing')"),
        (("nets:fails",), "'nets:fails' fails (KeyError: "),
        (("nets:leaves",), "'nets:leaves' fails (SystemExit: no)"),
        (("nets:needs",), "'nets:needs' takes depth, num_classes"),
        (("nets:number",), "'nets:number' returns int, not a torch.nn.Module."),
        (("nets:value",), "'nets:value' is of type int"),
        (("nets:empty",), "nets:empty has no parameters"),
        (("nets:small", "--size", "3"), "(--size N sets its height and width)."),
        (("nets:small", "--protect", "head*"), "--protect: 'head*' matches no parameter"),
        (("nets:small", "--size", "0"), "Invalid value for '--size'"),
        ((".",), "holds no model.json"),
    ],
)
def test_bad_input_is_one_sentence(niwaki, arguments, said):
    code, out, err = niwaki(*arguments)
    err = err.replace("a user's own print\n", "")
    assert (code, out) == (2, "")
    assert err.startswith("niwaki: ")
    assert err.count("\n") == 1
    assert said in err


def test_without_torch_it_says_how_to_get_it(niwaki, monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else real(name, *rest))
    code, _, err = niwaki("torchvision:resnet18")
    assert code == 3
    assert err == (
        "niwaki: niwaki inspect needs torch, not installed here; install the training side with: "
        "pip install 'niwaki-vision[compress]'. More: niwaki docs pruning\n"
    )


# --- saved networks


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """What a run leaves: a dense teacher, and a student with the plan that it was cut by."""
    folder = tmp_path_factory.mktemp("run")
    arguments = {"depth": 8, "width": 8, "in_channels": 1}
    about = Description(
        factory="niwaki:cifar_resnet",
        arguments=arguments,
        classes=tuple("abcd"),
        preprocessing={"size": [16, 24], "mode": "L"},
    )
    dense = cifar_resnet(**arguments, num_classes=4)
    trace = prune.trace(dense, torch.rand(2, 1, 16, 24))
    plan = prune.plan(trace, prune.score(trace, dense), ratio=0.5, scope="group")
    compress.save(dense, folder / "teacher", about)
    compress.save(prune.apply(dense, plan), folder / "student", about.model_copy(update={"plan": plan}))
    return folder


def test_a_saved_network_and_one_that_was_cut(niwaki, run_folder):
    found = {name: json.loads(niwaki(run_folder / name, "--json")[1]) for name in ("teacher", "student")}
    assert found["teacher"]["input"] == [1, 16, 24]
    for before, after in zip(found["teacher"]["groups"], found["student"]["groups"], strict=True):
        assert (after["name"], after["units"]) == (before["name"], before["units"] // 2)
    assert found["student"]["macs"] < 0.4 * found["teacher"]["macs"]


def test_a_run_folder_names_the_networks_inside(niwaki, run_folder):
    code, _, err = niwaki(run_folder)
    assert code == 2
    assert f"name {run_folder / 'teacher'}." in err


def own(num_classes):
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))


def test_a_saved_network_of_foreign_code_asks_for_trust(niwaki, tmp_path):
    about = Description(factory=f"{__name__}:own", classes=("a", "b"), preprocessing={"size": [16, 16]})
    described = compress.save(own(2), tmp_path / "saved", about) / "model.json"
    described.write_text(json.dumps(json.loads(described.read_text()) | {"factory": "nets:wants"}))
    code, _, err = niwaki("saved")
    assert code == 2
    assert "add --trust nets " in err
    assert "a user's own print" not in err  # nothing of it was run
    code, out, _ = niwaki("saved", "--trust", "nets", "--json")
    assert (code, [g["units"] for g in json.loads(out)["groups"]]) == (0, [8])
