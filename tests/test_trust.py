"""Code runs only where the user names its module: saved networks and recipes alone make nothing run."""

import json
import subprocess
import sys
import time

import pytest

import compress
from compress.artifact import Description, save
from compress.errors import DataError, ModelError, NiwakiError, RecipeError
from compress.models import factory
from compress.models.cifar_resnet import cifar_resnet
from compress.models.names import is_own_code
from compress.recipe.loading import load_recipe
from compress.trust import trusted_function, trusted_modules

OWN = {"depth": 8, "width": 4, "in_channels": 1}
NIWAKI = [sys.executable, "-c", "from compress.cli.app import main; main()"]


@pytest.fixture
def saved(tmp_path):
    """A saved network, beside a module that leaves a file where it is imported or called."""
    about = Description(factory="niwaki:cifar_resnet", arguments=OWN, classes=("a", "b"))
    folder = save(cifar_resnet(8, 4, 1, 2), tmp_path / "net", about)
    code = f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n"
    (tmp_path / "evil.py").write_text(f"{code}def make(num_classes, **rest):\n    {code.splitlines()[1]}\n")
    (folder / "hubconf.py").write_text(f"dependencies = []\n{code}def net(**rest):\n    pass\n")
    return folder


def rewrite(folder, **changes):
    about = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(about | changes))


ATTACKS = {
    "a factory that builds what its arguments name": (
        "compress.models:build",
        {"factory": "torch.hub:load", "arguments": {"repo_or_dir": "net", "model": "net", "source": "local"}},
    ),
    "the same under its name of today": (
        "compress.models.factory:build",
        {"factory": "torch.hub:load", "arguments": {"repo_or_dir": "net", "model": "net", "source": "local"}},
    ),
    "torch's hub": ("torch.hub:load", {"repo_or_dir": "net", "model": "net", "source": "local"}),
    "a module of this folder": ("evil:make", {}),
    "a shell": ("os:system", {"command": "touch ran"}),
    "an evaluation": ("builtins:eval", {}),
    "a test's helper": ("unittest.mock:Mock", {}),
    "a callable for torchvision": ("torchvision:resnet18", {"norm_layer": "torch.nn:BatchNorm2d"}),
    "weights for torchvision": ("torchvision:resnet18", {"weights": "DEFAULT"}),
    "weights of a detector's body": ("torchvision:retinanet_resnet50_fpn", {"weights_backbone": "DEFAULT"}),
    "a file for torchvision": ("torchvision:resnet18", {"progress": "hubconf.py"}),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_saved_network_runs_no_code(saved, attack, monkeypatch):
    name, arguments = ATTACKS[attack]
    rewrite(saved, factory=name, arguments=arguments)
    monkeypatch.chdir(saved.parent)
    monkeypatch.syspath_prepend(str(saved.parent))
    with pytest.raises(NiwakiError) as caught:
        compress.load(saved)
    assert "\n" not in str(caught.value)
    assert not (saved.parent / "ran").exists()


@pytest.mark.heavy
@pytest.mark.parametrize("attack", ["a factory that builds what its arguments name", "a module of this folder"])
def test_looking_at_a_saved_network_runs_no_code(saved, attack):
    name, arguments = ATTACKS[attack]
    rewrite(saved, factory=name, arguments=arguments)
    done = subprocess.run([*NIWAKI, "inspect", "net"], cwd=saved.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("niwaki: ") and done.stderr.count("\n") == 1
    assert not (saved.parent / "ran").exists()


def test_what_the_user_names_runs(saved, monkeypatch):
    monkeypatch.syspath_prepend(str(saved.parent))
    (saved.parent / "mine.py").write_text(
        "from compress.models.cifar_resnet import cifar_resnet\n"
        "def make(num_classes):\n    return cifar_resnet(8, 4, 1, num_classes)\n"
    )
    rewrite(saved, factory="mine:make", arguments={})
    with pytest.raises(ModelError, match="add --trust mine "):
        compress.load(saved)
    assert compress.load(saved, trusted=["mine"]).fc.out_features == 2
    rewrite(saved, factory="mine:cifar_resnet")
    with pytest.raises(ModelError, match="name one that you wrote"):
        compress.load(saved, trusted=["mine"])


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("niwaki:cifar_resnet", {"depth": 6_000_002}),
        ("niwaki:cifar_resnet", {"width": 10**30}),
        ("niwaki:cifar_resnet", {"depth": "20"}),
        ("niwaki:cifar_resnet", {"depth": True}),
        ("niwaki:mobilenet_v2_ssdlite", {"scales": [0.1] * 10_000}),
        ("niwaki:mobilenet_v2_deeplabv3", {"rates": [1] * 1000}),
        ("torchvision:mobilenet_v2", {"width_mult": 1e9}),
        ("torchvision:mobilenet_v2", {"width_mult": float("nan")}),
        ("torchvision:mobilenet_v2", {"inverted_residual_setting": [[1, 16, 10**6, 1]]}),
        ("torchvision:densenet121", {"growth_rate": 10**6}),
    ],
)
def test_an_argument_out_of_bounds_is_refused_at_once(name, arguments):
    start = time.process_time()
    with pytest.raises(ModelError, match="refuses") as caught:
        factory.build(name, arguments, 2)
    assert time.process_time() - start < 5
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_arguments_within_bounds_are_taken():
    rows = [[1, 16, 1, 1], [6, 24, 1, 2]]
    model = factory.build("torchvision:mobilenet_v2", {"width_mult": 0.5, "inverted_residual_setting": rows}, 3)
    assert model.classifier[-1].out_features == 3 and len(model.features) == 4


def recipe(tmp_path, **changes):
    plain = {
        "name": "r",
        "model": {"factory": "niwaki:cifar_resnet"},
        "target": {"kind": "handwritten_digits"},
        "preprocessing": {"size": [16, 16], "mode": "L", "mean": [0.5], "std": [0.5]},
        "transfer": {"epochs": 1},
        "distill": {"epochs": 1},
    }
    path = tmp_path / "r.yaml"
    path.write_text(json.dumps(plain | changes))
    return path


SHELL = {"target": {"kind": "function", "function": "os:system", "arguments": {"command": "touch ran"}}}


@pytest.mark.heavy
@pytest.mark.parametrize("trusted", [[], ["os"]])
def test_a_recipe_runs_no_shell(tmp_path, trusted):
    with pytest.raises(RecipeError, match="not a function of your own"):
        load_recipe(recipe(tmp_path, **SHELL), trusted=trusted)
    flags = [part for module in trusted for part in ("--trust", module)]
    command = [*NIWAKI, "run", "r.yaml", *flags]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]


@pytest.mark.parametrize("key", ["target", "source", "model"])
def test_a_recipe_names_own_code_only_with_trust(tmp_path, key):
    own = {"kind": "function", "function": "mine:make"}
    changes = {
        "target": {"target": own},
        "source": {"source": {"data": own, "train": {"epochs": 1}}},
        "model": {"model": {"factory": "mine:make"}},
    }[key]
    path = recipe(tmp_path, **changes)
    with pytest.raises(RecipeError, match=r"mine:make' is code .* add --trust mine "):
        load_recipe(path)
    assert load_recipe(path, trusted=["mine"]).functions()
    assert load_recipe(path, trusted=["mine.inner", "mine"]).functions()
    with pytest.raises(RecipeError, match="trust"):
        load_recipe(path, trusted=["min", "mine.inner"])


def test_the_environment_names_modules_for_pipelines(monkeypatch):
    monkeypatch.setenv("NIWAKI_TRUST", "one, two.three,,")
    assert trusted_modules(["zero", "one"]) == ("zero", "one", "two.three")
    monkeypatch.delenv("NIWAKI_TRUST")
    assert trusted_modules() == ()


def test_what_only_sounds_trusted_is_not():
    with pytest.raises(DataError, match="add --trust minefield"):
        trusted_function("minefield:make", ["mine"], "data function", DataError)
    for name in ("os:system", "os.path:join", "builtins:eval", "torch.hub:load", "compress.models.factory:build"):
        with pytest.raises(DataError, match="not a function of your own"):
            trusted_function(name, [name.partition(":")[0]], "data function", DataError)


def test_names_of_before_are_ours():
    for name in ("compress.models:cifar_resnet", "niwaki:cifar_resnet", "torchvision:resnet18"):
        assert not is_own_code(name)
    assert is_own_code("compress.models:build") and is_own_code("mine:make")
    built = factory.build("compress.models:cifar_resnet", OWN, 2)
    assert built.fc.out_features == 2
