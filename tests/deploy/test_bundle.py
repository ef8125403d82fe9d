"""Bundles: what is written is what is read, and nothing altered is used."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import deploy
from deploy.bundle.bundle import Bundle
from deploy.bundle.manifest import MANIFEST
from deploy.bundle.writing import BundleSpec, write_bundle
from deploy.engines import load_engine
from deploy.engines.base import Engine
from deploy.errors import DeployError


def edit(folder, change):
    path = folder / MANIFEST
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def test_it_runs_as_the_engine_it_holds(bundle_dir, files, images):
    with deploy.load(bundle_dir) as bundle, load_engine(files["int8"]) as engine:
        assert isinstance(bundle, Engine)
        assert (bundle.name, bundle.runtime, bundle.precision) == ("bundle", "onnxruntime", "int8")
        assert (bundle.inputs, bundle.outputs) == (engine.inputs, engine.outputs)
        feed = {"image": images}
        np.testing.assert_array_equal(bundle.run(feed)["logits"], engine.run(feed)["logits"])
    assert bundle.classes == ("a", "b", "c", "d", "e")
    with pytest.raises(DeployError, match="closed"):
        bundle.run(feed)


def test_another_precision_can_be_chosen(bundle_dir):
    with Bundle.load(bundle_dir, precision="fp32") as bundle:
        assert bundle.precision == "fp32"
    with pytest.raises(DeployError, match="no fp16 model; it has fp32, int8"):
        Bundle.load(bundle_dir, precision="fp16")


def test_prediction_is_the_softmax_of_the_network_on_the_prepared_image(bundle_dir, picture, preprocessing, files):
    image = Image.open(picture)
    with load_engine(files["int8"]) as engine:
        logits = engine.run({"image": preprocessing(image)[None]})["logits"][0].astype(np.float64)
    want = np.exp(logits) / np.exp(logits).sum()
    with deploy.load(bundle_dir) as bundle:
        (found,) = bundle.predict([picture])
        again = bundle.predict([image, image.convert("RGBA"), str(picture)], top=2)
    assert found["file"] == str(picture)
    assert [row["index"] for row in found["top"]] == np.argsort(-want).tolist()
    np.testing.assert_allclose([row["probability"] for row in found["top"]], np.sort(want)[::-1], rtol=1e-6)
    assert found["class"] == "abcde"[found["index"]] == found["top"][0]["class"]
    assert [row["file"] for row in again] == [str(picture), None, str(picture)]
    for row in again:  # another batch size rounds otherwise, so the last digits may differ
        assert [one["class"] for one in row["top"]] == [one["class"] for one in found["top"][:2]]
        assert row["probability"] == pytest.approx(found["probability"], rel=1e-5)
    json.dumps(found)


def test_many_images_are_predicted_in_order(bundle_dir):
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)) for _ in range(70)]
    with deploy.load(bundle_dir, precision="fp32") as bundle:
        together, alone = bundle.predict(pictures), [bundle.predict([p])[0] for p in pictures]
        assert bundle.predict([]) == []
    likeliest = [row["probability"] for row in together]
    assert likeliest == pytest.approx([row["probability"] for row in alone], rel=1e-5)
    assert len(set(likeliest)) == len(pictures)


def test_a_bad_image_is_one_sentence(bundle_dir, tmp_path, picture):
    (tmp_path / "text.png").write_text("hello")
    with deploy.load(bundle_dir) as bundle:
        with pytest.raises(DeployError, match=r"text\.png is not an image"):
            bundle.predict([picture, tmp_path / "text.png"])
        for one in (picture, str(picture), Image.open(picture)):
            with pytest.raises(DeployError, match="predict takes a list of images"):
                bundle.predict(one)
        with pytest.raises(DeployError, match="top is 0"):
            bundle.predict([picture], top=0)


def test_an_altered_byte_is_seen(bundle_dir):
    path = bundle_dir / "model.fp32.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DeployError, match=r"model\.fp32\.onnx was altered"):
        deploy.load(bundle_dir)  # even though int8 is what would be loaded


def test_a_missing_cut_or_linked_file_is_seen(bundle_dir, tmp_path):
    path = bundle_dir / "model.int8.onnx"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(DeployError, match=f"has {len(content) - 1} bytes instead of {len(content)}"):
        deploy.load(bundle_dir)
    path.unlink()
    with pytest.raises(DeployError, match=r"lacks the file model\.int8\.onnx"):
        deploy.load(bundle_dir)
    (tmp_path / "elsewhere").write_bytes(content)
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DeployError, match="lacks the file"):
        deploy.load(bundle_dir)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_network_that_gives_no_numbers_is_one_sentence(value, bundle_dir, picture, monkeypatch):
    with deploy.load(bundle_dir) as bundle:
        (name,) = bundle.outputs
        monkeypatch.setattr(bundle, "_run", lambda feeds: {name: np.full((1, len(bundle.classes)), value, np.float32)})
        with pytest.raises(DeployError, match=r"gives (NaN|infinity)"):
            bundle.predict([picture])


@pytest.mark.parametrize("name", ["../secret.onnx", "/etc/passwd", "a/b.onnx", "..", "a\\b.onnx", "", ".hidden", "a\n"])
def test_a_name_that_leaves_the_folder_is_refused(name, bundle_dir):
    def change(data):
        data["models"]["fp32"]["file"] = name
        return data

    edit(bundle_dir, change)
    with pytest.raises(DeployError, match=r"models\.fp32\.file") as caught:
        deploy.load(bundle_dir)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data | {"format": "niwaki-bundle-2"}, "format: .*'niwaki-bundle-2'"),
        (lambda data: data | {"default": "fp16"}, "default 'fp16' is not among"),
        (lambda data: data | {"code": "import os"}, "code"),
        (lambda data: data | {"models": {}}, "models"),
        (lambda data: data | {"classes": ["a", "b"]}, "names 2 classes but its network gives"),
        (
            lambda data: data | {"preprocessing": {"size": [8, 8], "mode": "L"}},
            r"\[1, 8, 8\] but its network",
        ),
        (lambda data: data | {"preprocessing": {"size": [16, 16], "mode": "RGB"}}, r"\[3, 16, 16\] but its"),
        (lambda data: [data], "object"),
        (lambda data: data | {"task": "poetry"}, "task: Input should be 'classification', .* not 'poetry'"),
        (lambda data: data | {"postprocessing": {"kind": "segmentation"}}, "'classification' has no postprocessing"),
        (
            lambda data: data | {"task": "segmentation", "postprocessing": {"kind": "segmentation"}},
            "is for segmentation and names . classes but its network gives",
        ),
    ],
)
def test_a_manifest_that_does_not_fit_is_one_sentence(change, says, bundle_dir):
    edit(bundle_dir, change)
    with pytest.raises(DeployError, match=says) as caught:
        deploy.load(bundle_dir)
    assert "\n" not in str(caught.value)


def test_a_pipe_for_a_manifest_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / MANIFEST)
    with pytest.raises(DeployError, match="is not a regular file"):
        deploy.load(tmp_path)


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(DeployError, match="is not a bundle"):
            deploy.load(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_manifest_is_an_error_or_the_same_bundle(data, bundle_dir):
    path = bundle_dir / MANIFEST
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole) - 3))
    junk = data.draw(st.binary(max_size=4))
    try:
        path.write_bytes(whole[:cut] + junk)
        with pytest.raises(DeployError):
            deploy.load(bundle_dir)
    finally:
        path.write_bytes(whole)


def write(folder, files, preprocessing, **change):
    options = {
        "models": {"fp32": files["fp32"]},
        "default": "fp32",
        "preprocessing": preprocessing,
        "classes": list("abcde"),
        "metrics": {},
        "latency": {},
        "provenance": {},
    }
    return write_bundle(folder, BundleSpec(**{**options, **change}))


def test_an_older_bundle_is_replaced_and_nothing_else_ever(bundle_dir, files, preprocessing, tmp_path):
    write(bundle_dir, files, preprocessing, metrics={"accuracy": 0.5})
    assert sorted(path.name for path in bundle_dir.iterdir()) == [MANIFEST, "model.fp32.onnx"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]
    with deploy.load(bundle_dir) as bundle:
        assert bundle.manifest.metrics == {"accuracy": 0.5}
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("dear")
    with pytest.raises(DeployError, match="is not a bundle"):
        write(other, files, preprocessing)
    assert (other / "thesis.txt").read_text() == "dear"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"default": "int8"}, "default 'int8'"),
        ({"models": {"fp32": "none.onnx"}}, "no fp32 model at none.onnx"),
        ({"metrics": {"accuracy": float("nan")}}, "JSON"),
        ({"metrics": {"accuracy": object()}}, "JSON"),
        ({"classes": []}, "classes"),
    ],
)
def test_a_bundle_that_cannot_be_written_leaves_the_old_one(change, says, bundle_dir, files, preprocessing):
    before = (bundle_dir / MANIFEST).read_bytes()
    with pytest.raises(DeployError, match=says):
        write(bundle_dir, files, preprocessing, **change)
    assert (bundle_dir / MANIFEST).read_bytes() == before
    assert [path.name for path in bundle_dir.parent.glob(".*")] == []


def test_a_folder_that_cannot_be_made_is_one_sentence(files, preprocessing, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DeployError, match=r"Cannot write .*Not a directory|Cannot write .*File exists"):
        write(tmp_path / "file" / "bundle", files, preprocessing)


def test_a_precision_that_leaves_the_folder_is_refused(files, preprocessing, tmp_path):
    with pytest.raises(DeployError, match=r"precision is '\.\./x'"):
        write(tmp_path / "b", files, preprocessing, models={"../x": files["fp32"]}, default="../x")


def test_prediction_needs_neither_torch_nor_onnx(bundle_dir, picture):
    code = (
        "import sys, deploy, numpy; b = deploy.load(sys.argv[1]); print(len(b.predict([sys.argv[2]])));"
        "deploy.benchmark([b], {'image': numpy.zeros((1, 1, 16, 16), 'float32')}, rounds=2, min_seconds=0);"
        "deploy.gate; heavy = 'torch', 'onnx', 'nncf', 'openvino', 'compress', 'cpp_ext';"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, bundle_dir, picture], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["1", "[]"]
