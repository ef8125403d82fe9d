"""A recipe's ``sparse``, ``order``, scratch by epochs or computation, and another network's widths: `niwaki run`."""

import pytest
import torch
import yaml
from safetensors.torch import load_file
from test_failures import RECIPE

from compress import artifact, cost, sparse
from compress.errors import RecipeError
from compress.recipe.loading import load_recipe
from compress.run.ledger import Ledger
from deploy.onnx.zeros import count_zeros

pytestmark = pytest.mark.heavy
SHORT = {"epochs": 2, "batch_size": 16}
SPARSE = SHORT | {"lr": 0.01}
ONNX = {"precisions": ["fp32"], "rtx_targets": [], "rounds": 5}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("sparse")


@pytest.fixture
def ran(home, command):
    """Runs the short recipe with changes; gives the folder and the ledger."""

    def run(out, **change):
        short = RECIPE | {"transfer": SHORT, "distill": SHORT | {"compare": []}} | change
        (home / f"{out}.yaml").write_text(yaml.safe_dump(short))
        code, _, error = command("run", home / f"{out}.yaml", "--out", home / out, "--trust", "test_failures")
        assert (code, error) == (0, "")
        return home / out, Ledger.read(home / out / "ledger.json")

    return run


def obeyed(folder):
    """The masks of a run, which its sparse network obeys to the bit."""
    masks = sparse.Masks.load(folder / "sparse/masks.safetensors")
    network = artifact.load(folder / "checkpoints/sparse")
    assert masks.broken(network) == []
    state = sparse.load_sparse(folder / "sparse/network.safetensors")
    assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())
    return masks


def test_gsm_by_bytes_ends_in_a_file_within_them_and_an_onnx_file_whose_zeros_are_counted(ran):
    folder, ledger = ran("gsm", sparse=SPARSE | {"method": "gsm", "bytes": 30_000}, deploy=ONNX)
    masks, file = obeyed(folder), folder / "sparse/network.safetensors"
    assert file.stat().st_size <= 30_000
    entry = next(stage for stage in ledger.stages if stage.name == "sparse")
    assert entry.metrics["nonzeros"] == masks.nonzeros
    assert "no faster" in entry.notes[-1]
    zeros, numbers = count_zeros(folder / "deploy/sparse.fp32.onnx")
    assert numbers == masks.total and zeros >= numbers - masks.nonzeros
    assert entry.metrics["onnx_compressed_bytes"] < 0.6 * entry.metrics["onnx_bytes"]
    assert ledger.model("sparse").test_accuracy is not None
    trained = next(stage for stage in ledger.stages if stage.name == "transfer").training_flops
    assert ledger.model("sparse").training_flops == trained + entry.training_flops


@pytest.mark.parametrize(
    ("method", "ratio"),
    [
        ({"method": "magnitude", "ratio": 4, "layers": "conv"}, 4),
        ({"method": "random", "ratio": 4}, 4),
        ({"method": "gradual", "ratio": 4}, 4),
        ({"method": "iterative", "ratio": 4, "rounds": 2}, 4),
        ({"method": "lobs", "ratio": 2, "images": 16}, 2),
        ({"method": "ticket", "ratio": 4, "rounds": 2, "rewind_epochs": 1}, 4),
        ({"method": "ticket", "ratio": 4, "found_by": "gsm", "decay": 6}, 4),
        ({"method": "scratch", "ratio": 4}, 4),
        ({"method": "two_of_four", "of": "student"}, 2),
        ({"method": "han", "quality": [0.5, {"fc*": 0.2, "*": 1.0}]}, None),
        ({"method": "dns", "c": 0.5}, None),
    ],
    ids=lambda value: value["method"] + value.get("found_by", "") if isinstance(value, dict) else "",
)
def test_every_method_leaves_as_many_weights_as_it_was_told(ran, method, ratio):
    folder, ledger = ran(method["method"] + method.get("found_by", ""), sparse=SPARSE | method)
    masks = obeyed(folder)
    assert masks.nonzeros < masks.total
    if ratio is not None:
        assert masks.ratio == pytest.approx(ratio, rel=0.02)
    if method.get("layers") == "conv":
        assert "fc.weight" not in masks.kept
    assert ledger.model("sparse").params == ledger.model(method.get("of", "teacher")).params


def test_the_surgeon_takes_the_statistics_of_norms_anew(ran):
    asked = SPARSE | {"method": "lobs", "ratio": 2, "images": 16, "batchnorm": "frozen"}
    folder, _ = ran("norms", sparse=asked)
    # One pass over all images in one batch, after which retraining leaves them alone.
    assert artifact.load(folder / "checkpoints/sparse").bn1.num_batches_tracked == 1


def test_a_budget_of_milliseconds_is_met_by_nonzero_weights_alone(ran):
    folder, ledger = ran("ms", sparse=SPARSE | {"method": "magnitude", "milliseconds": 1000})
    masks = sparse.Masks.load(folder / "sparse/masks.safetensors")
    assert masks.nonzeros > 0.97 * masks.total  # a second is plenty
    assert "ms for one image" in ledger.stages[-2].notes[0]


def test_the_teacher_is_thinned_before_it_teaches(ran):
    asked = SPARSE | {"method": "iterative", "ratio": 4, "rounds": 2}
    distill = SHORT | {"compare": [], "teacher": "sparse", "temperature": 10.0, "logits": 0.95}
    folder, ledger = ran("eccv", sparse=asked, distill=distill, prune=RECIPE["prune"] | {"criterion": "l1"})
    assert [stage.name for stage in ledger.stages] == ["transfer", "thin", "prune", "distill", "test"]
    # The student is cut from the sparse teacher: its weights are a part of it.
    teacher, pruned = (artifact.load(folder / name) for name in ("checkpoints/sparse", "pruned"))
    kept = artifact.describe(folder / "pruned").plan.slots["layer1.0.conv1.weight:0"].kept
    other = artifact.describe(folder / "pruned").plan.slots.get("layer1.0.conv1.weight:1")
    expected = teacher.layer1[0].conv1.weight[list(kept)]
    expected = expected if other is None else expected[:, list(other.kept)]
    assert torch.equal(pruned.layer1[0].conv1.weight, expected)


def test_the_orders_cut_what_they_say(ran):
    source = {"data": {"kind": "function", "function": "test_failures:pictures"}, "train": SHORT}
    l1 = RECIPE["prune"] | {"criterion": "l1", "reconstruct": False}
    whole, first = ran("stpt", source=source, prune=l1)
    assert [stage.name for stage in first.stages] == ["pretrain", "transfer", "prune", "distill", "test"]
    stem = {}
    for order in ("S-P-T", "SP-T", "S-T-P"):
        folder, ledger = ran(order, source=source, prune=l1, order=order, sparse=SPARSE | {"method": "dsd", "ratio": 2})
        networks = {name: artifact.load(folder / name).state_dict() for name in ("teacher", "pruned", "student")}
        kept = artifact.describe(folder / "pruned").plan.slots["layer1.0.conv1.weight:0"].kept
        stem[order] = (networks, list(kept), ledger)
    name = "layer1.0.bn1.weight"
    pretrained = load_file(whole / "checkpoints/pretrained.safetensors")
    networks, kept, _ = stem["S-P-T"]
    assert torch.equal(networks["pruned"][name], pretrained[name][kept])
    assert not torch.equal(networks["pruned"][name], networks["teacher"][name][kept])
    networks, kept, ledger = stem["SP-T"]
    assert not torch.equal(networks["pruned"][name], pretrained[name][kept])
    assert ledger.model("pruned").training_flops > 0
    networks, kept, ledger = stem["S-T-P"]
    assert torch.equal(networks["pruned"][name], networks["teacher"][name][kept])
    assert all(torch.equal(tensor, networks["student"][key]) for key, tensor in networks["pruned"].items())
    assert ledger.model("student").training_flops == 0


def test_a_source_of_other_classes_lends_its_own_classifier_to_the_cut_network(ran):
    source = {"data": {"kind": "rendered_digits", "images": 100}, "train": SHORT}
    l1 = RECIPE["prune"] | {"criterion": "l1", "reconstruct": False}
    folder, ledger = ran("others", source=source, prune=l1, order="SP-T")
    pretrained = load_file(folder / "checkpoints/pretrained.safetensors")
    pruned, plan = artifact.load(folder / "pruned"), artifact.describe(folder / "pruned").plan
    assert (len(pretrained["fc.weight"]), pruned.fc.out_features) == (10, 2)
    kept = list(plan.slots["layer1.0.conv1.weight:0"].kept)
    # The trunk learned the source again; a network that was only cut would have these to the bit.
    assert not torch.equal(pruned.layer1[0].bn1.weight, pretrained["layer1.0.bn1.weight"][kept])
    assert ledger.model("pruned").training_flops > 0


def test_scratch_by_epochs_and_by_computation_with_and_without_the_finetuning(ran):
    for counted in (False, True):
        compare = {"compare": ["scratch_e", "scratch_b"], "count_finetuning": counted}
        folder, ledger = ran(f"scratch{counted}", transfer={"epochs": 20, "batch_size": 16}, distill=SHORT | compare)
        large, small = ledger.model("teacher"), ledger.model("student")
        example = torch.zeros(2, 3, 8, 8)
        step = 16 * cost.training_flops(artifact.load(folder / "student"), example)
        more = small.training_flops if counted else 0
        share = small.macs / large.macs
        assert ledger.model("scratch_e").training_flops == pytest.approx(share * large.training_flops + more, abs=step)
        assert ledger.model("scratch_b").training_flops == pytest.approx(large.training_flops + more, abs=step)


def test_pacnet_and_widths_of_another_network(ran, home):
    source = {"data": {"kind": "function", "function": "test_failures:pictures"}, "train": SHORT}
    folder, ledger = ran("pacnet", source=source, sparse=SPARSE | {"method": "pacnet", "ratio": 2})
    assert not (folder / "sparse/network.safetensors").exists()
    assert ledger.stages[-2].training_flops > 0
    again, _ = ran("carried", prune={"criterion": "l1", "widths_from": str(folder / "pruned")}, seed=3)
    plans = [artifact.describe(home / out / "pruned").plan for out in ("pacnet", "carried")]
    assert [group.after for group in plans[0].groups] == [group.after for group in plans[1].groups]
    assert artifact.describe(again / "pruned").seed == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sparse": SPARSE | {"method": "gsm"}}, "give exactly one of ratio, bytes and milliseconds"),
        ({"sparse": SPARSE | {"method": "han", "ratio": 3}}, "finds by quality how many weights stay"),
        ({"sparse": SPARSE | {"method": "gsm", "ratio": 3, "optimizer": "adamw"}}, "gsm is an optimizer itself"),
        ({"sparse": SPARSE | {"method": "han", "decay": 3}}, "decay belongs to gsm; han has none"),
        ({"sparse": SPARSE | {"method": "gsm", "ratio": 3, "decay": 3, "weight_decay": 0.01}}, "leave one of them out"),
        ({"sparse": SPARSE | {"method": "pacnet", "ratio": 3}}, "which source has to name"),
        ({"sparse": SPARSE | {"method": "ticket", "ratio": 3, "of": "student"}}, "it is of the teacher"),
        ({"sparse": SPARSE | {"method": "random", "ratio": 3, "found_by": "gsm"}}, "found_by belongs to ticket"),
        ({"sparse": SPARSE | {"method": "ticket", "ratio": 3, "found_by": "gsm", "rounds": 2}}, "leave rounds out"),
        ({"distill": SHORT | {"teacher": "sparse"}}, "sparse has to say how the teacher is thinned"),
        ({"order": "S-T-P"}, "give compare"),
        ({"order": "SP-T"}, "give source, or take S-P-T"),
        ({"order": "S-P-T", "prune": {"criterion": "kfac"}}, "take a criterion of weights"),
        ({"prune": {"widths_from": "x", "ratio": 0.5}}, "leave out ratio"),
    ],
)
def test_what_contradicts_itself_is_refused_in_one_sentence(tmp_path, change, said):
    recipe = RECIPE | {"transfer": SHORT, "distill": SHORT} | change
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(RecipeError, match=said):
        load_recipe(tmp_path / "r.yaml", trusted=["test_failures"])


@pytest.mark.parametrize(
    ("strength", "bound", "share", "gone"),
    [(20.0, {"budget": {"macs": 0.6}}, 0.6, {"layer1.0": "Identity"}), (1e-3, {"ratio": 0.0}, 1.0, None)],
)
def test_blocks_whose_scale_ends_at_zero_go_whole_before_channels_do(ran, strength, bound, share, gone):
    sparsify = {"kind": "structures", "blocks": True, "epochs": 2, "strength": strength}
    cut = {"round_to": 4, "min_kept": 4, "criterion": "l1", "sparsify": sparsify, **bound}
    folder, ledger = ran(f"blocks-{strength:g}", prune=cut)
    assert share - 0.15 < ledger.plan["macs_after"] / ledger.plan["macs_before"] <= share
    assert ledger.plan.get("blocks") == gone
    said = next(stage.notes[0] for stage in ledger.stages if stage.name == "prune")
    count = "1 of 1 residual blocks have a scale of exactly zero and go whole: layer1.0." if gone else "0 of 1 residual"
    assert count in said
    student = artifact.load(folder / "student")
    assert [name for name, _ in student.layer1.named_parameters()] == [] or not gone
    page = (folder / "report.html").read_text()
    assert ("Residual blocks that went whole: layer1.0." in page) == bool(gone)
