"""Bundles of networks with several inputs: from the module to the answer, and what does not fit is refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import deploy
from compress.cli.app import app
from deploy.bundle.inputs import ImageInput, TensorInput
from deploy.bundle.writing import BundleSpec, write_bundle
from deploy.errors import DeployError
from deploy.exporting.torch_to_onnx import export_onnx
from deploy.processing.preprocess import Preprocessing

pytestmark = pytest.mark.heavy

CLASSES = list("abcd")
ABOUT = Preprocessing(size=(8, 8), mode="RGB", mean=(0.5,) * 3, std=(0.25,) * 3)
GREY = Preprocessing(size=(4, 6), mode="L", mean=(0.2,), std=(0.5,))


class Two(nn.Module):
    """A photo and a vector beside it, to classes and a single number."""

    def __init__(self):
        super().__init__()
        self.body, self.beside = nn.Conv2d(3, 8, 3), nn.Linear(5, 8)
        self.head, self.price = nn.Linear(16, 4), nn.Linear(8, 1)

    def forward(self, photo, facts):
        seen, known = self.body(photo).relu().mean((2, 3)), self.beside(facts).relu()
        return {"kind": 4 * self.head(torch.cat([seen, known], 1)), "price": self.price(known).flatten()}


class Stereo(nn.Module):
    """Two images, each prepared in its own way, tokens of any number and a scalar for the whole run."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 4, 3), nn.Conv2d(3, 4, 3)
        self.words = nn.Embedding(10, 4)

    def forward(self, tokens, depth, photo, scale):
        seen = self.left(depth).mean((2, 3)) + self.right(photo).mean((2, 3))
        return (seen + self.words(tokens).mean(1)) * scale


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for k in range(8):
        pixels = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")
    return folder


@pytest.fixture(scope="module")
def rows(pictures):
    facts = np.random.default_rng(1).standard_normal((8, 5)).astype(np.float32)
    return [{"photo": pictures / f"{k}.png", "facts": facts[k]} for k in range(8)]


@pytest.fixture(scope="module")
def two(tmp_path_factory, rows):
    torch.manual_seed(0)
    model = Two().eval()
    prepared = [{"photo": ABOUT(ABOUT.load(row["photo"])), "facts": row["facts"]} for row in rows]
    stacked = {name: np.stack([row[name] for row in prepared]) for name in ("photo", "facts")}
    folder = deploy.write_bundle(
        model, tmp_path_factory.mktemp("two") / "b", [stacked], classes=CLASSES, preprocessing=ABOUT,
        precisions=("fp32", "int8"), default="fp32",
    )  # fmt: skip
    with torch.no_grad():
        given = {name: torch.from_numpy(array) for name, array in stacked.items()}
        return folder, model(**given)["kind"].softmax(1).numpy()


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_number_11_a_bundle_of_several_inputs_answers_as_the_module_does(two, rows, runtime):
    folder, wanted = two
    with deploy.load(folder, runtime=runtime) as bundle:
        assert {name: one.kind for name, one in bundle.manifest.inputs.items()} == {"photo": "image", "facts": "tensor"}
        found = bundle.predict([{**row, "facts": row["facts"].tolist()} for row in rows], top=4)
        assert [row["file"] for row in found] == [str(row["photo"]) for row in rows]
        for row, want in zip(found, wanted, strict=True):
            got = [part["probability"] for part in sorted(row["top"], key=lambda part: part["index"])]
            np.testing.assert_allclose(got, want, atol=1e-5)
        assert len({row["class"] for row in found}) > 1
        swapped = bundle.predict([{**rows[0], "facts": rows[1]["facts"]}])[0]
        assert abs(swapped["probability"] - found[0]["probability"]) > 1e-3
    with deploy.load(folder, precision="int8", runtime=runtime) as bundle:
        assert bundle.precision == "int8"
        np.testing.assert_allclose([row["probability"] for row in bundle.predict(rows)], wanted.max(1), atol=0.1)


def test_number_11_the_commands_take_a_bundle_of_several_inputs(two, rows, pictures, tmp_path):
    folder, wanted = two
    lines = [json.dumps({"photo": row["photo"].name, "facts": row["facts"].tolist()}) for row in rows[:3]]
    lines[1] = json.dumps({"photo": "gone.png", "facts": rows[1]["facts"].tolist()})
    (pictures / "rows.jsonl").write_text("\n\n".join(lines))
    run = CliRunner()
    said = run.invoke(app, ["predict", str(folder), "--rows", str(pictures / "rows.jsonl"), "--json"])
    assert isinstance(said.exception, DeployError) and str(said.exception).startswith("row 2 could not be predicted")
    found = json.loads(said.output)
    assert [row["index"] for row in found] == [int(wanted[k].argmax()) for k in (0, 2)]
    timed = run.invoke(app, ["bench", str(folder), "--batch", "3", "--rounds", "5", "--json"])
    assert json.loads(timed.output)["records"][0]["batch"] == 3
    about = run.invoke(app, ["doctor", str(folder), "--json"])
    assert json.loads(about.output)["inputs"] == ["photo (image)", "facts (tensor)"]
    for given, say in (
        ([str(pictures / "0.png")], r"reads photo, facts; give --rows FILE"),
        ([], "Give images, or --rows FILE"),
        ([str(pictures / "0.png"), "--rows", "x"], "and not both"),
    ):
        refused = run.invoke(app, ["predict", str(folder), *given])
        assert isinstance(refused.exception, DeployError) and say in str(refused.exception)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{\n", "Line 1 of .* is not JSON"),
        (b"[1]", "Line 1 of .* is a list"),
        (b"\xff", "is not UTF-8"),
        (b"\n", "holds 0 rows"),
        (b"[" * 100_000, "Line 1 of .* is not JSON"),
    ],
)
def test_number_11_rows_that_are_none_are_one_sentence(two, content, said, tmp_path):
    (tmp_path / "rows").write_bytes(content)
    found = CliRunner().invoke(app, ["predict", str(two[0]), "--rows", str(tmp_path / "rows")])
    with pytest.raises(DeployError, match=said):
        raise found.exception


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda row: row["photo"], r"A row is a \w*Path, and the network reads photo, facts; give a mapping"),
        (lambda row: {"photo": row["photo"]}, r"names photo, and the network reads photo, facts"),
        (lambda row: {**row, "price": 1}, r"names photo, facts, price, and"),
        (lambda row: {**row, "photo": row["facts"]}, r"'photo' was given a ndarray; give an image"),
        (lambda row: {**row, "facts": row["facts"][:4]}, r"'facts' was given the shape \[4\]; give float32\[5\]"),
        (lambda row: {**row, "facts": [row["facts"].tolist()]}, r"the shape \[1, 5\]"),
        (lambda row: {**row, "facts": [[1, 2], [3]]}, "rows of different lengths"),
        (lambda row: {**row, "facts": "red"}, r"was given 'red'; give float32"),
        (lambda row: {**row, "facts": [None] * 5}, "was given 'object'"),
        (lambda row: {**row, "facts": [True] * 5}, "was given 'bool'"),
        (lambda row: {**row, "facts": [1, 2, 3, 4, float("nan")]}, "not finite in float32"),
        (lambda row: {**row, "facts": [1, 2, 3, 4, 1e300]}, "not finite in float32"),
    ],
)
def test_number_11_a_row_that_does_not_fit_is_one_sentence(two, rows, change, said):
    with deploy.load(two[0]) as bundle, pytest.raises(DeployError, match=said) as caught:
        bundle.predict([change(rows[0])])
    assert "\n" not in str(caught.value)


def test_number_11_two_images_tokens_and_a_scalar_each_have_their_own(pictures, tmp_path):
    torch.manual_seed(0)
    model, tokens = Stereo().eval(), torch.tensor([[1, 2, 3], [4, 5, 6]])
    example = {
        "tokens": tokens, "depth": torch.randn(2, 1, 4, 6), "photo": torch.randn(2, 3, 8, 8),
        "scale": torch.tensor(1.0),
    }  # fmt: skip
    path = export_onnx(model, example, tmp_path / "stereo.onnx")
    inputs = {
        "photo": ImageInput(),
        "depth": ImageInput(preprocessing=GREY),
        "tokens": TensorInput(dtype="int64", shape=(3,)),
        "scale": TensorInput(dtype="float32", shape=(), batch=False),
    }
    spec = BundleSpec({"fp32": path}, "fp32", ABOUT, CLASSES, inputs=inputs)
    folder = write_bundle(tmp_path / "b", spec)
    rows = [
        {"tokens": [k, 0, 9], "depth": pictures / f"{k + 1}.png", "photo": pictures / f"{k}.png", "scale": 1.0 + k}
        for k in range(3)
    ]
    with deploy.load(folder) as bundle:
        found = bundle.predict(rows, top=4)
        with pytest.raises(DeployError, match=r"'tokens' was given 'float64'; give int64\[3\]"):
            bundle.predict([{**rows[0], "tokens": [1.0, 2.0, 3.5]}])
    for k, row in enumerate(rows):
        given = {
            "tokens": torch.tensor([row["tokens"]]),
            "depth": torch.from_numpy(GREY(GREY.load(row["depth"])))[None],
            "photo": torch.from_numpy(ABOUT(ABOUT.load(row["photo"])))[None],
            "scale": torch.tensor(row["scale"]),
        }
        with torch.no_grad():
            want = model(**given).softmax(1)[0].numpy()
        got = [part["probability"] for part in sorted(found[k]["top"], key=lambda part: part["index"])]
        np.testing.assert_allclose(got, want, atol=1e-5)
        assert found[k]["file"] == str(row["photo"])
    with pytest.raises(DeployError, match=r"has 4 inputs \(tokens, depth, photo, scale\), of which 0 take the image"):
        write_bundle(tmp_path / "c", BundleSpec({"fp32": path}, "fp32", Preprocessing(size=(9, 9)), CLASSES))


def _with_inputs(folder, tmp_path, change):
    """Copy a bundle and change what its manifest states of its inputs."""
    copy = tmp_path / "changed"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((copy / "manifest.json").read_text())
    change(manifest["inputs"])
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda said: said.pop("facts"), r"states the inputs photo but its network takes photo, facts"),
        (lambda said: said.clear(), r"prepares images as float32 .* but its network takes float32"),
        (
            lambda said: said["facts"].update(dtype="int64"),
            r"feeds 'facts' int64\[any, 5\] but its network takes float32",
        ),
        (lambda said: said["facts"].update(shape=[6]), r"feeds 'facts' float32\[any, 6\]"),
        (lambda said: said["facts"].update(batch=False), r"feeds 'facts' float32\[5\]"),
        (
            lambda said: said["photo"].update(preprocessing=GREY.model_dump()),
            r"feeds 'photo' images as float32 \[1, 4, 6\]",
        ),
        (lambda said: said.update(photo=said["facts"]), "none of the inputs photo, facts is an image"),
        (lambda said: said["facts"].update(kind="code"), r"inputs\.facts"),
        (lambda said: said["facts"].update(shape=[1 << 30]), r"inputs\.facts"),
        (lambda said: said["facts"].update(shape=[4096, 8192]), "one row holds at most"),
        (lambda said: said["facts"].update(shape=[1] * 9), r"inputs\.facts"),
        (lambda said: said["facts"].update(default=[0]), r"inputs\.facts"),
        (lambda said: said.update({"a\u0007b": said["facts"]}), r"inputs"),
        (lambda said: said.update({f"x{k}": said["facts"] for k in range(64)}), r"inputs"),
    ],
)
def test_number_11_a_manifest_whose_inputs_do_not_fit_is_refused(two, change, said, tmp_path):
    folder = _with_inputs(two[0], tmp_path, change)
    with pytest.raises(DeployError, match=said) as caught:
        deploy.load(folder)
    assert "\n" not in str(caught.value)


def test_number_11_inputs_are_signed_with_the_manifest_and_checked_before(two, tmp_path):
    cryptography = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    from cryptography.hazmat.primitives import serialization as form

    key = cryptography.Ed25519PrivateKey.generate()
    private = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    public = key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "k").write_bytes(private)
    (tmp_path / "k.pub").write_bytes(public)
    folder = _with_inputs(two[0], tmp_path, lambda said: None)
    deploy.sign(folder, tmp_path / "k")
    deploy.load(folder, trusted_key=tmp_path / "k.pub").close()
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["inputs"]["facts"]["shape"] = [None]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DeployError, match=r"altered|signature|signed"):
        deploy.load(folder, trusted_key=tmp_path / "k.pub")
    (tmp_path / "other").mkdir()
    broken = _with_inputs(two[0], tmp_path / "other", lambda said: said["facts"].update(shape=[6]))
    with pytest.raises(DeployError, match=r"feeds 'facts'"):
        deploy.sign(broken, tmp_path / "k")


def test_number_11_a_bundle_of_one_image_takes_no_row(bundle_dir):
    with deploy.load(bundle_dir) as bundle, pytest.raises(DeployError, match="reads one image and was given a row"):
        bundle.predict([{"image": "x.png"}])
