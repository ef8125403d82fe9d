"""The verbs export, quantize and compare, prediction of a folder, the version and the shell's completion."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

import deploy
from compress.cli import app
from deploy.bench.comparing import compare
from deploy.errors import DeployError
from deploy.onnx.metadata import Metadata

pytestmark = pytest.mark.heavy

CLASSES = tuple("abcde")
PREPARED = {"size": (16, 16), "mode": "L", "mean": (0.5,), "std": (0.25,)}
OPTIONS = ("--size", "16", "--mean", "0.5", "--std", "0.25")


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs ``niwaki`` in this process; gives its exit code, standard output and standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["niwaki", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            app.main()
        shown = capsys.readouterr()
        return ended.value.code, shown.out, shown.err

    return run


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twelve images in two folders, and what is no image."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for k in range(12):
        place = folder / ("a", "b/c")[k % 2]
        place.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4), dtype=np.uint8))
        coarse.resize((20, 16), Image.Resampling.NEAREST).save(place / f"{k}.png")
    (folder / "notes.txt").write_text("no image")
    (folder / ".thumbs").mkdir()
    (folder / ".thumbs/x.png").write_bytes(b"hidden")
    return folder


@pytest.fixture(scope="module")
def stated(tmp_path_factory, resnet, images):
    """The residual network as a file that says how images are prepared."""
    path = tmp_path_factory.mktemp("stated") / "net.fp32.onnx"
    return deploy.export(resnet, images, path, classes=CLASSES, preprocessing=PREPARED)


def test_quantize_writes_int8_beside_the_file_and_says_how_far_it_is(command, stated, photos):
    code, out, _ = command("quantize", stated, photos, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["file"] == str(stated.with_name("net.int8.onnx"))
    assert (found["calibration_images"], found["held_out_images"]) == (9, 3)
    assert found["bytes"] < found["fp32_bytes"]
    assert found["snr_db"] > 3
    assert Metadata.from_file(stated.with_name("net.int8.onnx")).classes == CLASSES
    code, _, said = command("quantize", stated, photos)
    assert code == 2
    assert "net.int8.onnx is there already; name another file by --out, or add --force to replace it" in said
    before = stated.read_bytes()
    code, _, said = command("quantize", stated, photos, "--out", stated, "--force")
    assert code == 2
    assert "would be replaced by what is made of it" in said
    assert stated.read_bytes() == before
    code, out, _ = command("quantize", stated, photos, "--force")
    assert code == 0
    assert "of 3 held-out images or of 9 images of the calibration, whichever are worse, at" in out
    stated.with_name("net.int8.onnx").unlink()  # other tests write it by default too
    code, out, _ = command("quantize", stated, photos, "--precision", "fp16")
    assert code == 0
    assert "net.fp16.onnx" in out


def test_quantize_takes_the_preprocessing_from_options_where_the_file_has_none(command, files, photos, tmp_path):
    out = tmp_path / "q.onnx"
    code, _, said = command("quantize", files["fp32"], photos, "--out", out)
    assert code == 2
    assert "does not state how images are prepared; give --size" in said
    assert command("quantize", files["fp32"], photos, "--out", out, *OPTIONS)[0] == 0
    assert out.is_file()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--precision", "int4"), "quantise to int8 or fp16"),
        (("--keep", "odd"), "no kind of operators 'odd'"),
        (("--fastest", "--keep", "first"), "leave out --keep"),
        (("--size", "16"), "only some are given"),
        (("--size", "16", "--mean", "a", "--std", "1"), "are not numbers"),
        (("--size", "32", "--mean", "0.5", "--std", "0.25"), "states its preprocessing itself"),
    ],
)
def test_a_quantisation_that_cannot_be_is_a_sentence(command, stated, photos, more, said):
    code, out, err = command("quantize", stated, photos, *more)
    assert (code, out) == (2, "")
    assert said in err
    assert "Traceback" not in err


def test_compare_tells_agreement_and_noise(command, stated, photos, tmp_path):
    fp16 = deploy.quantize(stated, tmp_path / "m.fp16.onnx", np.zeros((1, 1, 16, 16), np.float32), precision="fp16")
    code, out, _ = command("compare", stated, fp16, photos, "--json", "--least-agreement", "1")
    found = json.loads(out)
    assert code == 0
    assert (found["images"], found["agreement"], found["parted"]) == (12, 1.0, [])
    assert 40 < found["snr_db"]["logits"] < 120
    assert command("compare", stated, fp16, photos, "--least-snr", "150")[0] == 1
    assert "100.00 % agree on 12 images" in command("compare", stated, fp16, photos)[1]


def test_compare_shows_where_two_networks_part(command, stated, cnn, images, photos, tmp_path):
    other = deploy.export(cnn, images, tmp_path / "o.onnx", classes=CLASSES)
    code, out, _ = command("compare", stated, other, photos, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["agreement"] < 1
    assert len(found["parted"]) == round(12 * (1 - found["agreement"]))
    assert {p["first"] for p in found["parted"]} <= set(CLASSES)
    assert sum(n for *_, n in found["confused"]) == len(found["parted"])
    assert all(p["first"] != p["second"] for p in found["parted"])
    assert "Where they differ" in command("compare", stated, other, photos)[1]
    assert command("compare", stated, other, photos, "--least-agreement", "1")[0] == 1


def test_compare_takes_bundles_and_refuses_what_states_nothing(command, bundle_dir, files, photos):
    assert command("compare", bundle_dir, files["fp32"], photos)[0] == 0
    code, _, said = command("compare", files["fp32"], files["int8"], photos)
    assert code == 2
    assert "Neither" in said
    assert "give --size, --mean and --std" in said


def test_compare_refuses_classes_in_another_order(command, stated, cnn, images, photos, tmp_path):
    other = deploy.export(cnn, images, tmp_path / "o.onnx", classes=tuple(reversed(CLASSES)))
    code, out, said = command("compare", stated, other, photos)
    assert (code, out) == (2, "")
    assert f"Class 0 is {CLASSES[0]!r} in {stated} and {CLASSES[-1]!r} in" in said
    assert "compare networks of the same classes in the same order" in said


def test_compare_refuses_other_shapes(files):
    class Short:
        name, inputs, outputs = "short", {"image": None}, {"logits": None}

        def run(self, feeds):
            return {"logits": np.zeros((1, 3), np.float32)}

    row = np.zeros((1, 16, 16), np.float32)
    with (
        deploy.load_engine(files["fp32"]) as engine,
        pytest.raises(
            DeployError, match=r"gives \[5\] and short \[3\] for one image; compare files of networks with the s"
        ),
    ):
        compare(engine, Short(), [("x", row, row)])


def test_predict_goes_through_a_folder(command, bundle_dir, photos, tmp_path):
    code, out, _ = command("predict", bundle_dir, photos, "--json")
    found = json.loads(out)
    assert code == 0
    assert [one["file"] for one in found] == sorted(map(str, photos.rglob("[0-9]*.png")))
    (tmp_path / "empty").mkdir()
    code, _, said = command("predict", bundle_dir, tmp_path / "empty")
    assert code == 2
    assert "holds no image" in said


def test_export_writes_a_network_by_name_and_proves_it(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, said = command("export", "niwaki:lenet5", "--size", "28", "--json")
    found = json.loads(out)
    assert code == 0
    assert "niwaki:lenet5 has random weights" in said
    assert found["file"] == "lenet5.fp32.onnx"
    assert found["max_relative_error"] < 1e-4
    assert (found["opset"], found["task"]) == (18, "classification")
    assert (tmp_path / "lenet5.fp32.onnx").stat().st_size == found["bytes"]


def test_no_file_of_another_kind_is_replaced(command, stated, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = stated.read_bytes()
    code, out, said = command("export", "niwaki:lenet5", "--size", "28", "--out", stated)
    assert (code, out) == (2, "")
    assert "is there already; name another file by --out, or add --force" in said
    code, out, said = command("bench", stated, "--rounds", "5", "--seconds", "0", "--out", stated)
    assert (code, out) == (2, "")
    assert "is there already and is no .json file; name another one" in said
    assert "is a folder; name a file in it" in command("bench", stated, "--out", tmp_path)[2]
    assert stated.read_bytes() == before


def test_export_of_a_saved_network_states_its_classes_and_preprocessing(command, tmp_path):
    from compress.artifact import Description, save
    from compress.models.factory import build

    about = Description(factory="niwaki:lenet300", classes=CLASSES, preprocessing={**PREPARED, "size": (28, 28)})
    save(build(about.factory, {}, 5), tmp_path / "saved", about)
    code, out, said = command("export", tmp_path / "saved", "--out", tmp_path / "s.onnx")
    assert code == 0, said
    assert "torch = ONNX Runtime within" in out
    stated = Metadata.from_file(tmp_path / "s.onnx")
    assert (stated.classes, stated.preprocessing.size) == (CLASSES, (28, 28))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("niwaki:lenet9",), "no model 'lenet9'"),
        (("niwaki:lenet5", "--size", "28", "--weights", "none.pth"), "no weight file none.pth"),
        (("niwaki:lenet5", "--size", "28", "--task", "detection"), "not a detector"),
        (("niwaki:lenet5", "--size", "28", "--for", "abacus"), "abacus"),
    ],
)
def test_an_export_that_cannot_be_is_a_sentence(command, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    code, _, err = command("export", *arguments)
    assert code == 2
    assert said in err
    assert not list(tmp_path.iterdir())


def test_the_version_is_told(command):
    code, out, _ = command("--version")
    assert code == 0
    assert out.startswith("niwaki 0.")


def test_the_shell_can_complete_commands(command, monkeypatch):
    assert "--install-completion" in command("--help")[1]
    monkeypatch.setenv("_NIWAKI_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "niwaki qu")
    monkeypatch.setenv("COMP_CWORD", "1")
    _, out, _ = command()
    assert out.split() == ["quantize"]
