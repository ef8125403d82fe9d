"""niwaki profile: a folder for a device, and the table that comes back from it."""

import json
from pathlib import Path

import pytest
import torch

from compress import prune
from compress.models.cifar_resnet import cifar_resnet
from compress.recipe.loading import load_recipe
from deploy.errors import DeployError
from deploy.latency import explain as explaining
from deploy.latency import profile as timing
from deploy.latency.explain import Explanation
from deploy.latency.profile import ProfileFolder, Timing
from deploy.latency.table import Table


def planted(jobs, how):
    return [Timing(path=job.path, ms=1.0, processes=(1.0,), load=(0.5,)) for job in jobs]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What --bundle makes of a small network, and a copy of the command's answer."""
    from compress.models.named import named_network
    from compress.run.profiling import write_profile_folder

    home = tmp_path_factory.mktemp("device") / "probes"
    network = named_network("niwaki:cifar_resnet", size=16)
    write_profile_folder(network, home, threads=2)
    return home


@pytest.mark.heavy
def test_a_folder_holds_every_layer_and_two_networks(folder):
    listed = ProfileFolder.read(folder)
    assert listed.threads == 2 and [one.name for one in listed.networks] == ["dense", "cut"]
    assert {path.name for path in folder.glob("*.onnx")} == {one.file for one in (*listed.probes, *listed.networks)}
    whole, cut = (one.widths for one in listed.networks)
    assert whole["layer3.0.conv1"] == (32, 64) and cut["layer3.0.conv1"] == (16, 32)
    assert sum(path.stat().st_size for path in folder.glob("probe-*.onnx")) < 200_000


@pytest.mark.heavy
def test_a_folder_is_timed_into_a_table_that_a_run_takes(folder, command, monkeypatch, tmp_path):
    real = timing.profile_folder
    monkeypatch.setattr(timing, "profile_folder", lambda home, **more: real(home, timer=planted, **more))
    code, out, said = command("profile", folder, "--out", tmp_path / "table.json", "--json")
    assert code == 0, said
    table = Table.read(tmp_path / "table.json")
    assert json.loads(out)["entries"] == len(table.entries) > 5
    assert [one.name for one in table.networks] == ["dense", "cut"]
    overrides = ["prune.budget.latency=0.5", f"prune.latency_table={json.dumps(str(tmp_path / 'table.json'))}"]
    assert load_recipe("recipes/digits.yaml", overrides).prune.latency_table == str(tmp_path / "table.json")


@pytest.mark.parametrize(("load", "noisy"), [(400.0, True), (0.1, False)])
def test_a_busy_machine_is_said_beside_layer_times(command, monkeypatch, tmp_path, load, noisy):
    rows = ({"name": "a", "kind": "Conv", "after_ms": 1.0},)
    found = Explanation(runtime="onnxruntime", threads=1, after="a", after_ms=1.0, load=(0.1, load), rows=rows)
    monkeypatch.setattr(explaining, "explain_files", lambda *_, **__: found)
    code, out, _ = command("explain", tmp_path / "a.onnx")
    assert code == 0
    assert ("The machine was noisy (a load of 400.0 on" in out) is noisy


@pytest.mark.heavy
def test_a_folder_is_of_as_many_images_as_were_asked_for(command, monkeypatch, tmp_path):
    code, _, said = command("profile", "niwaki:cifar_resnet", "--size", 16, "--batch", 4, "--bundle", tmp_path / "d")
    assert code == 0 and ProfileFolder.read(tmp_path / "d").batch == 4, said
    asked = []
    timer = lambda jobs, how: asked.extend(jobs) or planted(jobs, how)  # noqa: E731
    table = timing.profile_folder(tmp_path / "d", timer=timer)
    assert {job.batch for job in asked} == {4} and {entry.setting.batch for entry in table.entries} == {4}
    with pytest.raises(DeployError, match=r"4 images.*none for onnxruntime in fp32 with 1 thread\(s\) and 1 image"):
        table.setting("onnxruntime", "fp32", 1)


def test_what_is_no_folder_of_files_is_told_how_to_make_one(command, tmp_path):
    code, _, said = command("profile", tmp_path)
    assert code == 2 and "--bundle DIR" in said
    code, _, said = command("explain", *(tmp_path / name for name in "abc"))
    assert code == 2 and "name one, or two" in said


def test_a_plan_needs_its_network(command, tmp_path):
    net = cifar_resnet(8, 8)
    trace = prune.trace(net, torch.rand(2, 3, 16, 16))
    plan = prune.plan(trace, torch.zeros(trace.units), ratio=0.5)
    Path(tmp_path / "plan.json").write_text(plan.to_json())
    code, _, said = command("profile", tmp_path / "plan.json", "--bundle", tmp_path / "d")
    assert code == 2 and "name the network that it is for with --model" in said
    (tmp_path / "plan.json").write_text("{}")
    code, _, said = command("profile", tmp_path / "plan.json", "--bundle", tmp_path / "d")
    assert code == 2 and "Not a pruning plan" in said
