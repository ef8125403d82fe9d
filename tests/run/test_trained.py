"""A network that is trained already: ``transfer: null`` takes its weights as they are for the teacher."""

import pytest
import torch
import yaml
from safetensors.torch import load_file
from test_failures import RECIPE

from compress.errors import RecipeError
from compress.recipe.loading import load_recipe
from compress.run.ledger import Ledger
from compress.run.stages.distill import AS_CUT
from deploy.files import sha256

pytestmark = pytest.mark.heavy
SHORT = {"epochs": 1, "batch_size": 16}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("trained")


@pytest.fixture
def ran(home, command):
    """Writes a recipe with a change and runs it; gives the exit code, what was printed and the error."""

    def run(out, **change):
        short = RECIPE | {"transfer": SHORT, "distill": SHORT | {"compare": []}} | change
        (home / f"{out}.yaml").write_text(yaml.safe_dump(short))
        return command("run", home / f"{out}.yaml", "--out", home / out, "--trust", "test_failures")

    return run


def test_a_trained_network_is_the_teacher_as_it_is(home, ran):
    assert ran("before")[0] == 0
    teacher = home / "before/teacher"
    code, shown, error = ran("after", transfer=None, model=RECIPE["model"] | {"weights": str(teacher)})
    assert (code, error) == (0, "")
    assert "teacher, as it is" in shown
    same = [sha256(folder / "model.safetensors") for folder in (teacher, home / "after/teacher")]
    assert same[0] == same[1]
    ledger, before = (Ledger.read(home / name / "ledger.json") for name in ("after", "before"))
    assert [entry.name for entry in ledger.stages] == ["transfer", "prune", "distill", "test"]
    assert ledger.model("teacher").test_accuracy == before.model("teacher").test_accuracy
    assert ledger.model("teacher").training_flops == 0
    written = load_recipe(home / "after/recipe.yaml", trusted=["test_failures"])
    assert (written.transfer, written.twin) == (None, False)


def test_weights_of_another_number_of_classes_are_refused(home, ran):
    from compress.artifact import save
    from compress.models.factory import build

    arguments = RECIPE["model"]["arguments"]
    for outputs, said in ((3, "is for 3 classes"), (2, "give both the same classes")):
        saved = build("niwaki:cifar_resnet", arguments, outputs)
        name = f"other{outputs}"
        save(saved, home / name, classes=tuple("abc"[:outputs]))
        code, _, error = ran(f"run{outputs}", transfer=None, model=RECIPE["model"] | {"weights": str(home / name)})
        assert code == 2
        assert said in error
        file = home / name / "model.safetensors"
        code, _, error = ran(f"file{outputs}", transfer=None, model=RECIPE["model"] | {"weights": str(file)})
        lacking = "do not fit this network for 2 classes ('fc.weight' is the first of 2 differences)"
        assert (code, lacking in error) == ((2, True) if outputs == 3 else (0, False))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "model.weights has to name"),
        ({"twin": True, "model": {"weights": "x"}}, "give twin: false"),
        ({"source": {"data": {"kind": "rendered_digits"}, "train": SHORT}, "model": {"weights": "x"}}, "leave source"),
        (
            {"prune": RECIPE["prune"] | {"sparsify": {"kind": "soft", "epochs": 1}}, "model": {"weights": "x"}},
            "prune.sparsify trains",
        ),
    ],
)
def test_what_does_not_go_with_it_is_refused(tmp_path, change, said):
    given = {key: value for key, value in RECIPE.items() if key != "twin"} | {"transfer": None} | change
    given["model"] = RECIPE["model"] | change.get("model", {})
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(given))
    with pytest.raises(RecipeError, match=said):
        load_recipe(tmp_path / "r.yaml", trusted=["test_failures"])


def test_where_distilling_spoils_the_cut_network_the_student_is_that_network(home, ran):
    """A rate that is far too high, and a teacher whose answers alone are learned from."""
    spoiling = {**SHORT, "compare": [], "labels": 0.0, "lr": 3.0, "momentum": 0.0, "warmup": 0.0, "weight_decay": 0.0}
    code, said, error = ran("spoilt", distill=spoiling)
    assert (code, error) == (0, "")
    assert "that is the network as it was cut, since training came to nothing better" in said
    ledger = Ledger.read(home / "spoilt/ledger.json")
    assert AS_CUT in next(entry.notes for entry in ledger.stages if entry.name == "distill")
    pruned, student = (load_file(home / "spoilt" / name / "model.safetensors") for name in ("pruned", "student"))
    assert all(torch.equal(tensor, student[name]) for name, tensor in pruned.items())
    assert ledger.model("student").test_accuracy == ledger.model("pruned").test_accuracy
    assert ledger.model("student").training_flops > 0
