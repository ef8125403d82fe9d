"""A run folder of an earlier version, which names our networks and a key as they were called then."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import yaml

import compress
from compress.artifact import describe
from compress.errors import RecipeError
from compress.models.factory import OWN
from compress.models.names import RENAMED
from compress.recipe.loading import load_recipe
from compress.run.ledger import Ledger
from compress.run.preflight import going_on
from deploy.processing import preprocess
from deploy.processing.preprocess import Preprocessing

OLD_FACTORY = "compress.models:cifar_resnet"
STAGES = ["pretrain", "transfer", "prune", "distill", "export", "test", "bench", "bundle"]


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_folder_is_of_before_the_move(kept):
    assert f"factory: {OLD_FACTORY}\n" in (kept / "recipe.yaml").read_text()
    assert "\n  sure: 0.5\n" in (kept / "recipe.yaml").read_text()
    assert describe(kept / "student").factory == OLD_FACTORY


@pytest.mark.parametrize("name", ["teacher", "pruned", "student"])
def test_its_networks_load_and_compute_what_their_onnx_files_do(kept, name):
    prepare = Preprocessing(**describe(kept / name).preprocessing)
    images = np.stack([prepare(preprocess.load(path)) for path in sorted((kept / "samples").iterdir())])
    session = onnxruntime.InferenceSession(kept / f"deploy/{name}.fp32.onnx")
    (expected,) = session.run(None, {session.get_inputs()[0].name: images})
    with torch.no_grad():
        found = compress.load(kept / name)(torch.from_numpy(images)).numpy()
    assert expected.shape == (10, 10) and np.ptp(expected) > 0.1
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_every_old_name_of_a_network_has_a_new_one():
    assert all(new.removeprefix("niwaki:") in OWN and old.endswith(new[7:]) for old, new in RENAMED.items())


def test_its_recipe_is_read_and_written_out_under_the_new_names(kept, tmp_path):
    recipe = load_recipe(kept / "recipe.yaml", ["distill.sure=0.25"])
    assert (recipe.model.factory, recipe.distill.box_confidence) == ("niwaki:cifar_resnet", 0.25)
    written = yaml.safe_load(recipe.to_yaml())
    assert "sure" not in written["distill"] and written["distill"]["box_confidence"] == 0.25
    assert written["model"]["factory"] == "niwaki:cifar_resnet"
    (tmp_path / "new.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "new.yaml") == recipe
    with pytest.raises(RecipeError, match="sure is the former name of box_confidence; give box_confidence alone"):
        load_recipe(tmp_path / "new.yaml", ["distill.sure=0.3"])
    with pytest.raises(RecipeError, match=r"distill\.box_confidence: .*less than 1"):
        load_recipe(kept / "recipe.yaml", ["distill.sure=2"])


def test_old_and_new_names_are_one_recipe(kept, tmp_path):
    (tmp_path / "new.yaml").write_text(load_recipe(kept / "recipe.yaml").to_yaml())
    assert going_on(load_recipe(tmp_path / "new.yaml"), kept, True)
    with pytest.raises(RecipeError, match=r"another recipe.*\(seed differs\)"):
        going_on(load_recipe(tmp_path / "new.yaml", ["seed=6"]), kept, True)


def test_what_is_done_is_not_done_again(old_run, command):
    before = contents(old_run)
    code, shown, error = command("run", "recipe.yaml", "--out", "run", "--resume")
    assert (code, error) == (0, "")
    assert shown.count("done before") == len(STAGES)
    after = contents(old_run)
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    # The ledger and the log say that it is resumed under other versions than it began under.
    assert changed <= {"report.html", "ledger.json", "log.jsonl"}
    then, now = (Ledger.model_validate_json(held["ledger.json"]) for held in (before, after))
    assert now == then.model_copy(update={"notes": now.notes})


@pytest.mark.heavy
def test_it_goes_on_after_distilling(old_run, command):
    # fp32 alone: searching for the fastest int8 takes longest and knows nothing of names.
    for path in (old_run / "recipe.yaml", old_run.parent / "recipe.yaml"):
        text = path.read_text().replace("  - fp32\n  - int8\n", "  - fp32\n").replace("ship: int8", "ship: fp32")
        path.write_text(text)
    ledger = json.loads((old_run / "ledger.json").read_text())
    ledger["stages"] = ledger["stages"][:4]
    for model in ledger["models"]:
        model["test_accuracy"] = model["test_correct"] = None
    (old_run / "ledger.json").write_text(json.dumps(ledger))
    before = contents(old_run)
    for lost in ("deploy", "bundle", "samples"):
        shutil.rmtree(old_run / lost)
    (old_run / "bench.json").unlink()
    code, shown, error = command("run", "recipe.yaml", "--out", "run", "--resume")
    assert (code, error) == (0, "")
    assert shown.count("done before") == 4
    now = Ledger.read(old_run / "ledger.json")
    assert [stage.name for stage in now.stages] == STAGES
    assert [model.name for model in now.models] == ["teacher", "pruned", "student"]
    assert now.plan == ledger["plan"]
    pictures = sorted(path.name for path in Path("run/differing").glob("*"))
    assert pictures == [f"{place}.png" for place in range(min(8, now.differing.total))] != []
    assert Path("run/report.html").read_text().count('<img src="data:image/jpeg;base64,') == len(pictures)
    for model in now.models:
        each = [model.test_metrics[f"accuracy_{digit}"] for digit in range(10)]
        assert min(each) <= model.test_accuracy <= max(each)
    assert now.model("student").test_accuracy == pytest.approx(0.1317, abs=0.005)
    for name in ("student/model.safetensors", "teacher/model.json", "recipe.yaml"):
        assert (old_run / name).read_bytes() == before[name]
    manifest = json.loads((old_run / "bundle/manifest.json").read_text())
    assert manifest["provenance"]["model"] == "niwaki:cifar_resnet"
    records = json.loads((old_run / "bench.json").read_text())["records"]
    assert [record["name"] for record in records] == ["dense", "pruned", "distilled"]
    assert all(record["accuracy"] == now.model(record["model"]).test_accuracy for record in records)


def test_its_gate_passes_and_its_bundle_predicts(old_run, command):
    code, shown, error = command("gate", "run/bench.json", "--baseline", "run/bench.json")
    assert (code, error) == (0, "") and "passed" in shown
    images = sorted(Path("run/samples").iterdir())
    code, shown, error = command("predict", "run/bundle", *images, "--json")
    assert (code, error) == (0, "")
    found = json.loads(shown)
    assert [item["file"] for item in found] == [os.fspath(path) for path in images]
    assert all(item["class"] in "0123456789" and 0 < item["probability"] <= 1 for item in found)
