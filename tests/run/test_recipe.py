"""Recipes: what is refused is refused in one sentence that names the file and the key, before anything is written."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from compress.cli import app
from compress.errors import RecipeError
from compress.recipe.loading import load_recipe

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "recipes/digits.yaml"


def altered(path, change):
    """The digits recipe after `change`, written to `path`."""
    raw = yaml.safe_load(DIGITS.read_text(encoding="utf-8"))
    change(raw)
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return path


def put(*keys_and_value):
    *parents, last, value = keys_and_value

    def change(raw):
        for key in parents:
            raw = raw[key]
        raw[last] = value

    return change


def drop(*keys):
    def change(raw):
        for key in keys[:-1]:
            raw = raw[key]
        del raw[keys[-1]]

    return change


# what is wrong -> (how it is made, the key that the sentence has to name, another word of it)
FAULTS = {
    "unknown key": (put("prun", {}), "'prun'", "unknown"),
    "unknown inner key": (put("transfer", "epoch", 3), "'transfer.epoch'", "unknown"),
    "unknown budget": (put("prune", "budget", {"flops": 0.5}), "prune.budget.flops", "unknown"),
    "wrong type": (put("transfer", "batch_size", "many"), "transfer.batch_size", "'many'"),
    "list for a value": (put("seed", [1]), "seed", "integer"),
    "value for a group": (put("distill", 3), "distill", "3"),
    "missing key": (drop("target"), "'target'", "missing"),
    "missing inner key": (drop("model", "factory"), "'model.factory'", "missing"),
    "missing kind": (drop("target", "kind"), "target", "kind"),
    "unknown kind": (put("target", "kind", "video"), "target", "video"),
    "neither length": (drop("transfer", "epochs"), "transfer", "exactly one of epochs and training_flops"),
    "both lengths": (put("distill", "training_flops", 1e9), "distill", "exactly one of epochs and training_flops"),
    "neither budget": (put("prune", "budget", {}), "prune.budget", "at least one of macs, params"),
    "a latency of nothing": (put("prune", "budget", {"latency": "0 ms"}), "prune.budget", "more than 0 ms"),
    "budget over one": (put("prune", "budget", "macs", 1.5), "prune.budget.macs", "at most 1 is wanted"),
    "budget of zero": (put("prune", "budget", "macs", 0), "prune.budget.macs", "more than 0 is wanted"),
    "no number": (put("transfer", "lr", float("nan")), "transfer.lr", "nan"),
    "infinite": (put("transfer", "lr", float("inf")), "transfer.lr", "inf"),
    "negative": (put("distill", "logits", -1), "distill.logits", "-1"),
    "class means of mixed images": (put("distill", "mixup", 0.2), "distill", "mixed image"),
    "unknown criterion": (put("prune", "criterion", "magic"), "prune.criterion", "'magic'"),
    "unknown comparison": (put("distill", "compare", ["other"]), "distill.compare", "'other'"),
    "a name with a slash": (put("name", "../../up"), "name", "../../up"),
    "an empty name": (put("name", ""), "name", "''"),
    "a name that is a number": (put("name", 7), "name", "7"),
    "a latency that nobody times": (
        lambda raw: raw.update(deploy=None, prune={"budget": {"latency": 0.5}}),
        "the recipe",
        "prune.budget.latency",
    ),
    "no fp32": (put("deploy", "precisions", ["int8"]), "deploy", "fp32"),
    "ships what it does not make": (
        lambda raw: raw["deploy"].update(precisions=["fp32"], ship="int8"),
        "deploy",
        "ship",
    ),
    "a target that is none": (put("deploy", "rtx_targets", ["ampere"]), "deploy.rtx_targets", "ampere"),
    "an opset that is no number": (put("deploy", "opset", "highest"), "deploy.opset", "highest"),
    "a free size for TensorRT": (put("deploy", "dynamic_size", True), "deploy", "rtx_targets: []"),
    "a size of one side": (put("preprocessing", "size", [32]), "preprocessing.size", "missing"),
    "a size too small": (put("preprocessing", "size", [4, 32]), "preprocessing.size", "4"),
    "an unknown augmentation": (put("transfer", "augment", "mixup"), "transfer.augment", "'mixup'"),
}

# What is found only when the data and the model are looked at.
LATER = {
    "means that do not fit the mode": (put("preprocessing", "mean", [0.1, 0.2]), "preprocessing.mean"),
    "a source as the target": (put("target", {"kind": "rendered_digits"}), "rendered_digits has no test split"),
    "a missing source": (put("source", "data", {"kind": "folder", "path": "/gone"}), "no folder /gone"),
    "a source augmented as boxes are": (put("source", "train", "augment", "iou_crop_flip"), "source.train.augment"),
    "a missing folder": (put("target", {"kind": "folder", "path": "/nowhere"}), "/nowhere"),
    "a factory that is not there": (put("model", "factory", "niwaki:gpt"), "gpt"),
    "arguments it refuses": (put("model", "arguments", "depth", 9), "depth"),
    "a torchvision name that is not there": (put("model", {"factory": "torchvision:resnet19"}), "resnet19"),
    "an opset nobody writes": (put("deploy", "opset", 17), "The opset is 17, but the exporter writes 18 to 26"),
    "an opset TensorRT does not read": (put("deploy", "opset", 25), "tensorrt_rtx reads 9 to 24"),
    "an impossible budget": (put("prune", "budget", {"macs": 0.001}), "prune.budget.macs"),
    "all protected": (put("prune", "protect", ["*"]), "free to go"),
    "weights that are not there": (put("model", "weights", "nowhere.pth"), "nowhere.pth"),
    "a network for colour": (put("model", "arguments", "in_channels", 3), "shape"),
}


def run_cli(monkeypatch, capsys, *arguments):
    """Exit code, standard output and standard error of the command, in this process."""
    monkeypatch.setattr(sys, "argv", ["niwaki", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        app.main()
    shown = capsys.readouterr()
    return caught.value.code, shown.out, shown.err


def one_sentence(text):
    assert text.startswith("niwaki: ")
    assert text.count("\n") == 1
    assert text.endswith("\n")
    assert "Traceback" not in text
    assert all(c.isprintable() for c in text[:-1])


@pytest.mark.parametrize(("change", "key", "word"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_one_sentence_with_file_and_key(tmp_path, change, key, word):
    path = altered(tmp_path / "mine.yaml", change)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    message = str(caught.value)
    assert str(path) in message
    assert key in message
    assert word in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("change", "key"),
    [*((c, k) for c, k, _ in list(FAULTS.values())[:6]), *LATER.values()],
    ids=[*list(FAULTS)[:6], *LATER],
)
def test_a_fault_exits_two_and_writes_nothing(tmp_path, monkeypatch, capsys, change, key):
    path, out = altered(tmp_path / "mine.yaml", change), tmp_path / "out"
    code, shown, error = run_cli(monkeypatch, capsys, "run", path, "--out", out)
    assert code == 2
    assert shown == ""
    one_sentence(error)
    assert key in error
    assert not out.exists()


def test_a_gpu_that_nobody_builds_for_is_refused_before_any_training(tmp_path, monkeypatch, capsys):
    pytest.importorskip("tensorrt_rtx", reason="the package tensorrt_rtx is not installed")
    path = altered(tmp_path / "mine.yaml", put("deploy", "rtx_targets", ["sm90"]))
    code, _, error = run_cli(monkeypatch, capsys, "run", path, "--out", tmp_path / "out")
    assert code == 2 and "cannot build for sm90; name sm75, " in error
    assert not (tmp_path / "out").exists()


def bomb(inside: str) -> bytes:
    """Nine levels, each of which names the one before ten times."""
    levels = [inside % ", ".join([f"*a{k - 1}"] * 10) if k else "{x: y}" for k in range(9)]
    return "".join(f"a{k}: &a{k} {level}\n" for k, level in enumerate(levels)).encode()


TEXTS = {
    "a bomb": bomb("[%s]"),
    "a bomb of merges": bomb("{<<: [%s]}"),
    "not YAML": b"a: [1\nb: }",
    "a tab": b"name: x\n\tseed: 0\n",
    "a list": b"- a\n- b\n",
    "a word": b"digits",
    "empty": b"",
    "binary": bytes(range(128, 256)),
    "a python object": b"name: !!python/object/apply:os.system ['true']\n",
    "numbers for keys": b"1: 2\n",
    "a loop": b"name: &a [*a]\n",
    "a key twice": b"name: a\nseed: 0\nname: b\n",
    "a key twice inside": b"transfer: {lr: 0.1, lr: 0.2}\n",
    "digits without end": b"seed: 0x" + b"f" * 9999,
    "a megabyte": b"name: " + b"x" * 1_000_001,
    "a null byte": b"name: a\x00b\n",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_what_is_no_recipe_is_one_sentence(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_bytes(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    for path in (tmp_path / "nowhere.yaml", tmp_path):
        with pytest.raises(RecipeError, match="There is no recipe") as caught:
            load_recipe(path)
        assert str(path) in str(caught.value)


def test_an_environment_variable_is_expanded_or_asked_for(tmp_path, monkeypatch):
    path = altered(tmp_path / "mine.yaml", put("target", {"kind": "folder", "path": "${MY_IMAGES}/a"}))
    monkeypatch.delenv("MY_IMAGES", raising=False)
    with pytest.raises(RecipeError, match=r"uses \$\{MY_IMAGES\}, which is not set; export MY_IMAGES=") as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)
    monkeypatch.setenv("MY_IMAGES", "/images")
    assert load_recipe(path).target.path == "/images/a"


# --set ----------------------------------------------------------------------------------------------------


def test_a_deploy_of_null_survives_writing(tmp_path):
    recipe = load_recipe(DIGITS, ["deploy=null"])
    assert recipe.deploy is None
    (tmp_path / "written.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "written.yaml") == recipe


def test_set_changes_one_key():
    sets = ["prune.budget.macs=0.3", "seed=7", "distill.compare=[scratch]", "model.arguments.width=8", "twin=no"]
    recipe = load_recipe(DIGITS, sets)
    assert recipe.prune.budget.macs == 0.3
    assert recipe.seed == 7
    assert recipe.distill.compare == ("scratch",)
    assert recipe.model.arguments == {"depth": 20, "width": 8, "in_channels": 1}
    assert recipe.twin is False
    assert load_recipe(DIGITS).seed == 0


def test_set_makes_the_groups_it_needs(tmp_path):
    path = altered(tmp_path / "mine.yaml", drop("deploy"))
    assert load_recipe(path, ["deploy.threads=2"]).deploy.threads == 2


def test_a_wrong_indentation_is_found_at_its_line(tmp_path):
    path = tmp_path / "bent.yaml"
    path.write_text("name: bent\nseed: 0\n  model: {}\n")
    with pytest.raises(RecipeError, match=r"is not YAML \(line 3, column 8: mapping values are not allowed"):
        load_recipe(path)


def test_of_a_key_of_several_kinds_the_fault_is_that_of_the_kind_that_was_given(monkeypatch, tmp_path):
    monkeypatch.setenv("NIWAKI_DATA", str(tmp_path))
    with pytest.raises(RecipeError) as caught:
        load_recipe(DIGITS.with_name("hymenoptera.yaml"), ["target.val=1.5"])  # the name of a folder, or a share
    assert str(caught.value).startswith("--set target.val=1.5: target.val: less than 1 is wanted (given: 1.5)")


def test_a_fault_of_an_override_names_it_and_the_key_that_was_meant():
    for override, said in (
        ("transfer.epoch=3", "--set transfer.epoch=3: the key 'transfer.epoch' is unknown; did you mean 'epochs'?"),
        (
            "prune.bugdet.macs=0.4",
            "--set prune.bugdet.macs=0.4: the key 'prune.bugdet' is unknown; did you mean 'budget'?",
        ),
        (
            "prune.budget.macs=2",
            "--set prune.budget.macs=2: prune.budget.macs: at most 1 is wanted",
        ),
        (
            "distill.epochs=abc",
            "--set distill.epochs=abc: distill.epochs: an integer is wanted (given: 'abc'); change it",
        ),
        ("zzz=1", "--set zzz=1: the key 'zzz' is unknown; remove it or see niwaki docs recipes"),
    ):
        with pytest.raises(RecipeError) as caught:
            load_recipe(DIGITS, [override])
        assert str(caught.value).startswith(said)
        # Another override is not accused.
        with pytest.raises(RecipeError) as caught:
            load_recipe(DIGITS, ["seed=3", override])
        assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed", "--set seed is not KEY=VALUE"),
        ("=3", "--set =3 is not KEY=VALUE"),
        ("seed.more=3", "'seed' is a value, not a group of keys"),
        ("seed=[1", "'[1' is not a YAML value"),
        ("target={path: x}", "target: the key 'kind' is missing"),
        ("preprocessing.size=96", "this is a list, such as [96, 96] (given: 96)"),
        ("seeed=3", "'seeed' is unknown"),
        ("prune.budget.macs=", "prune.budget"),
        ("transfer.epochs=0", "transfer.epochs"),
        ("a..b=3", "a"),
    ],
)
def test_a_wrong_set_is_one_sentence(monkeypatch, capsys, tmp_path, override, words):
    code, _, error = run_cli(monkeypatch, capsys, "run", DIGITS, "--out", tmp_path / "out", "--set", override)
    assert code == 2
    one_sentence(error)
    assert words in error
    assert not (tmp_path / "out").exists()


# The recipes that are shipped -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.name)
def test_shipped_recipes_are_valid_and_survive_writing(path, tmp_path, monkeypatch):
    monkeypatch.setenv("NIWAKI_DATA", "/data")
    recipe = load_recipe(path)
    copy = tmp_path / "copy.yaml"
    copy.write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe(copy) == recipe
    assert load_recipe(copy).to_yaml() == recipe.to_yaml()


# The command line -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [["run"], ["run", DIGITS, "--nonsense"], ["nonsense"], ["gate", "a.json"], ["predict"]]
)
def test_wrong_usage_exits_two_with_a_hint(monkeypatch, capsys, arguments):
    code, _, error = run_cli(monkeypatch, capsys, *arguments)
    assert code == 2
    one_sentence(error)
    assert "niwaki --help" in error
    assert ("--set distill.epochs=5" in error) == ("--nonsense" in arguments)


def test_help_lists_the_commands(monkeypatch, capsys):
    code, shown, _ = run_cli(monkeypatch, capsys, "--help")
    assert code == 0
    for command in ("run", "predict", "gate", "bench", "report", "doctor"):
        assert command in shown


@pytest.mark.parametrize("held", ["file", "folder"])
def test_an_out_that_holds_something_else_is_left_alone(monkeypatch, capsys, tmp_path, held):
    out = tmp_path / "out"
    if held == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / "mine.txt").write_text("mine")
    for extra in ([], ["--resume"]):
        code, _, error = run_cli(monkeypatch, capsys, "run", DIGITS, "--out", out, *extra)
        assert code == 2
        one_sentence(error)
        assert str(out) in error
    assert (out if held == "file" else out / "mine.txt").read_text() == "mine"


def test_a_missing_bundle_record_or_image_is_one_sentence(monkeypatch, capsys, tmp_path):
    nowhere = tmp_path / "nowhere"
    for arguments in (
        ["predict", nowhere, "x.png"],
        ["gate", nowhere, "--baseline", nowhere],
        ["report", nowhere],
        ["bench", nowhere.with_suffix(".onnx")],
    ):
        code, shown, error = run_cli(monkeypatch, capsys, *arguments)
        assert code == 2, arguments
        assert shown == ""
        one_sentence(error)
        assert str(nowhere) in error


@pytest.mark.heavy
def test_in_its_own_process_the_command_says_one_line_and_exits_two(tmp_path):
    path = altered(tmp_path / "mine.yaml", put("transfer", "epoch", 3))
    command = [sys.executable, "-c", "from compress.cli.app import main; main()", "run", str(path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    one_sentence(done.stderr)
    assert str(path) in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["mine.yaml"]


def test_aliases_and_merges_within_reason_are_read(tmp_path):
    text = DIGITS.read_text(encoding="utf-8").replace("transfer:", "transfer: &t", 1) + "\n"
    raw = yaml.safe_load(text)
    assert "distill" in raw
    (tmp_path / "r.yaml").write_text(text.replace("distill:", "distill:\n  <<: *t", 1))
    assert load_recipe(tmp_path / "r.yaml").distill.batch_size


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("seed=18446744073709551616", "seed"),
        ("source.data.images=10000000000", "source.data.images"),
        ("transfer.lr=1e30", "transfer.lr"),
        ("transfer.epochs=1000000000", "transfer.epochs"),
        ("deploy.rtx_targets=[sm00]", "deploy.rtx_targets"),
        ("deploy.threads=100000", "deploy.threads"),
        ("deploy.accuracy_drop=1.5", "deploy.accuracy_drop"),
        ("deploy.qat.lr=0.1", "deploy.qat.epochs"),
        ("deploy.precisions=[fp32, fp32]", "precisions"),
        ("distill.compare=[scratch, scratch]", "compare"),
        ("preprocessing.size=[100000, 100000]", "preprocessing.size"),
        ("prune={budget: {latency: 0.5, macs: 0.5}, rounds: 3}", "rounds"),
        ("prune.round_to=1000000000000000000000000000000", "round_to"),
        ("name=" + "a" * 5000, "name"),
        ("transfer={lr: 1, lr: 2}", "not a YAML value"),
        ("seed=" + "9" * 5000, "not a YAML value"),
        ("seed=0x" + "f" * 5000, "seed"),
        ("[\x1b=1", "unknown"),
    ],
)
def test_values_out_of_bounds_are_named(override, key):
    with pytest.raises(RecipeError) as caught:
        load_recipe("recipes/digits.yaml", [override])
    assert key in str(caught.value) and len(str(caught.value)) < 500


def test_a_network_is_cut_as_studied_unless_its_recipe_says_otherwise(tmp_path):
    def cut(change):
        asked = load_recipe(altered(tmp_path / "recipe.yaml", change)).prune
        return asked.criterion, asked.reconstruct

    assert cut(drop("prune")) == ("kfac", True)
    assert cut(lambda raw: raw.update(prune={"criterion": "l1"})) == ("l1", True)
    assert cut(lambda raw: None) == ("l1", False)
    masks = {"kind": "masks", "path": ".", "train": {"images": "a", "masks": "b"}, "classes": ["c"]}
    masks["val"] = masks["test"] = masks["train"]
    assert cut(lambda raw: raw.update(prune={}, target=masks)) == ("kfac", True)
    assert cut(lambda raw: raw.update(prune={}, order="S-P-T")) == ("l1", False)
