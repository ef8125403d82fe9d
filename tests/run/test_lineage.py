"""A resumed stage was made from what lies there now: recipe, parents and files are held by their hashes."""

import json
import shutil

import pytest
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_failures import RECIPE

from compress.recipe.loading import load_recipe
from compress.recipe.schema import Recipe
from compress.run.ledger import Ledger, StageEntry
from compress.run.lineage import reader, recipe_hash
from compress.run.preflight import what_changed
from compress.run.stages import STAGES
from compress.run.standing import made, standing
from compress.run.workspace import Workspace
from compress.train.checkpoint import Checkpoints
from deploy.files import sha256

pytestmark = pytest.mark.heavy

SHORT = {"epochs": 1, "batch_size": 16}
TITLES = {stage.name: stage.title for stage in STAGES}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Recipes of two seeds."""
    folder = tmp_path_factory.mktemp("lineage")
    for seed in (0, 1):
        short = RECIPE | {"seed": seed, "transfer": SHORT, "distill": SHORT | {"compare": []}}
        (folder / f"recipe{seed}.yaml").write_text(yaml.safe_dump(short))
    return folder


@pytest.fixture
def started(home, command):
    """Runs the recipe of a seed in a folder, from the start or again; gives what was printed."""

    def run(seed, *more, out="run"):
        options = ("--out", home / f"{out}{seed}", "--trust", "test_failures", *more)
        code, shown, error = command("run", home / f"recipe{seed}.yaml", *options)
        assert (code, error) == (0, "")
        return shown

    return run


def test_a_network_of_another_run_is_not_taken_for_ones_own(home, started):
    """Transfer is done again to the same bits, and all that follows it."""
    for seed in (0, 1):
        started(seed)
    out, other = home / "run0", home / "run1"
    ledger = Ledger.read(out / "ledger.json")
    assert [entry.name for entry in ledger.stages] == ["transfer", "prune", "distill", "test"]
    assert {name for entry in ledger.stages for name in entry.made.outputs} == {
        f"{network}/{file}"
        for network in ("teacher", "pruned", "student")
        for file in ("model.json", "model.safetensors")
    }
    assert started(0, "--resume").count("done before") == 4
    shutil.copy(other / "teacher/model.safetensors", out / "teacher/model.safetensors")
    shown = started(0, "--resume")
    said = "teacher/model.safetensors is not what the stage transfer left there"
    assert f"{said}: '{TITLES['transfer']}' and what follows it are repeated." in shown
    assert "done before" not in shown
    now = Ledger.read(out / "ledger.json")
    assert [entry.made for entry in now.stages] == [entry.made for entry in ledger.stages]
    assert sha256(out / "student/model.safetensors") == ledger.stages[2].made.outputs["student/model.safetensors"]
    events = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert next(event["why"] for event in events if event["event"] == "again").startswith(said)


@pytest.fixture
def hashed(old_run):
    """A finished run whose ledger holds what each stage was made from."""
    recipe, ledger = load_recipe(old_run / "recipe.yaml"), Ledger.read(old_run / "ledger.json")
    todo = [stage for stage in STAGES if stage.wanted(recipe)]
    work = Workspace(recipe, old_run, None, None, ledger.first(0))
    for entry, stage in zip(ledger.stages, todo, strict=True):
        fresh = entry.model_copy(update={"made": made(work, stage)})
        work.ledger = work.ledger.model_copy(update={"stages": (*work.ledger.stages, fresh)})
    return work, todo


def test_each_file_that_a_later_stage_reads_is_held_by_its_hash(hashed):
    work, todo = hashed
    assert standing(work, todo) == (8, None)
    for entry, expected in ((entry, count) for count, entry in enumerate(work.ledger.stages[:-1])):
        for name in entry.made.outputs:
            path = work.out / name
            before = path.read_bytes()
            path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
            count, why = standing(work, todo)
            path.write_bytes(before)
            assert (count, why.split(":")[0]) == (expected, f"{name} is not what the stage {entry.name} left there")
    assert "deploy/student.int8.trt.onnx" in work.ledger.stages[4].made.outputs


def test_what_the_last_stage_left_may_be_signed(hashed):
    work, todo = hashed
    (work.out / "bundle/manifest.json").write_text("{}")
    assert standing(work, todo) == (8, None)
    (work.out / "bundle/manifest.json").unlink()
    assert standing(work, todo)[0] == 7


@pytest.mark.parametrize(
    ("field", "says"),
    [
        ("recipe", "The stage prune was made by another recipe"),
        ("parents", "The stage prune was made from other files than the stages before it left"),
    ],
)
def test_a_stage_of_another_recipe_or_of_other_parents_stands_no_longer(field, says, hashed):
    work, todo = hashed

    def swapped(entry: StageEntry) -> StageEntry:
        change = {"made": entry.made.model_copy(update={field: "0" * 64})} if entry.name == "prune" else {}
        return entry.model_copy(update=change)

    work.ledger = work.ledger.model_copy(update={"stages": tuple(map(swapped, work.ledger.stages))})
    count, why = standing(work, todo)
    assert (count, why) == (2, f"{says}: '{TITLES['prune']}' and what follows it are repeated.")


def test_a_stage_is_bound_to_the_keys_that_are_read_up_to_it(kept):
    recipe = load_recipe(kept / "recipe.yaml")
    place = {stage.name: k for k, stage in enumerate(STAGES)}

    def bound(change):
        """The names of the stages for which a change counts."""
        other = Recipe.model_validate({**recipe.model_dump(), **change})
        return [s.name for s in STAGES if recipe_hash(recipe, STAGES, s) != recipe_hash(other, STAGES, s)]

    def after(name):
        return [stage.name for stage in STAGES[place[name] :]]

    def part(key, **values):
        return {key: {**recipe.model_dump()[key], **values}}

    assert bound({"seed": recipe.seed + 1}) == after("pretrain")
    assert bound(part("transfer", lr=0.5)) == after("transfer")
    assert bound(part("prune", min_kept=2)) == after("prune")
    assert bound(part("distill", lr=0.5)) == after("distill")
    assert bound(part("distill", reuse_classifier=False)) == after("prune")
    assert bound(part("deploy", rounds=9)) == after("bench")
    assert bound(part("deploy", threads=2)) == after("export")
    assert bound({"deploy": None}) == after("export")
    assert bound({"name": "other"}) == after("bundle")
    assert bound(part("distill", compare=())) == []
    rounds = recipe.model_copy(update={"prune": recipe.prune.model_copy(update={"rounds": 2})})
    assert reader(rounds, STAGES, "distill.lr") == place["prune"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("distill.lr=0.5", ("distill.lr", "distill")),
        ("prune.min_kept=2", ("prune.min_kept", "prune")),
        ("deploy.rounds=9", ("deploy.rounds", "bench")),
        ("tensorboard=true", ("tensorboard", None)),
        ("twin=true", ("twin", "twin")),
    ],
)
def test_a_changed_key_is_named_and_the_first_stage_that_it_touches(kept, change, expected):
    was, now = load_recipe(kept / "recipe.yaml"), load_recipe(kept / "recipe.yaml", [change])
    key, stage = expected
    again = "nothing is repeated" if stage is None else f"it continues from '{TITLES[stage]}'"
    assert what_changed(was, now) == f"The recipe of this run differs in {key}: {again}."


def test_a_resumed_run_goes_on_from_the_first_stage_that_a_changed_key_touches(home, started, tmp_path):
    started(0, out="first")
    out = home / "changed0"
    shutil.copytree(home / "first0", out)
    before = {name: sha256(out / name / "model.safetensors") for name in ("teacher", "pruned", "student")}
    shown = started(0, "--resume", "--set", "distill.lr=0.001", out="changed")
    assert f"differs in distill.lr: it continues from '{TITLES['distill']}'" in shown
    assert shown.count("done before") == 2
    after = {name: sha256(out / name / "model.safetensors") for name in before}
    assert [name for name in before if before[name] != after[name]] == ["student"]
    assert load_recipe(out / "recipe.yaml", trusted=["test_failures"]).distill.lr == 0.001
    assert started(0, "--resume", "--set", "distill.lr=0.001", out="changed").count("done before") == 4


def test_the_state_of_a_training_is_bound_to_what_it_begins_from(home, started, monkeypatch, command):
    """One that another recipe left, or that began from other networks, is refused with the way out."""
    save = Checkpoints.save

    def killed(self, state):
        save(self, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "save", killed)
        command("run", home / "recipe0.yaml", "--out", home / "killed0", "--trust", "test_failures")
    state = home / "killed0/checkpoints/transfer.training.safetensors"
    with safe_open(state, "pt") as file:
        about = json.loads(file.metadata()["niwaki"])
    assert len(about["made_from"]) == 2 * 64 + 1
    save_file(load_file(state), state, {"niwaki": json.dumps(about | {"made_from": "another"})})
    options = ("--out", home / "killed0", "--trust", "test_failures", "--resume")
    code, _, error = command("run", home / "recipe0.yaml", *options)
    assert code == 2 and error.count("\n") == 1
    assert "(it was made by another recipe or from other networks); remove it, and this stage starts again" in error
    state.unlink()
    assert "[1/4]" in started(0, "--resume", out="killed").replace("[ ", "[")
