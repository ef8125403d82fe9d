"""``niwaki doctor BUNDLE --sbom FILE``: what a bundle carries, what runs it, and under which licences."""

import json
import shutil
import sys
from importlib import metadata

import pytest
from finished import unpack

from compress.cli.app import main
from deploy.bundle.manifest import read_manifest
from deploy.bundle.sbom import licence_of, sbom


@pytest.fixture
def bundle(tmp_path):
    return unpack(tmp_path) / "bundle"


def stated(bundle, **fields):
    path = bundle / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return sbom(bundle, read_manifest(bundle))


def said(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["niwaki", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code, capsys.readouterr()


def test_every_file_stands_in_it_with_its_hash_and_the_licence_of_its_weights(bundle):
    bill = stated(bundle, licence="CC-BY-4.0", version=7)
    manifest = read_manifest(bundle)
    files = {one["name"]: one for one in bill["components"] if one["type"] == "machine-learning-model"}
    assert {name: one["hashes"][0]["content"] for name, one in files.items()} == {
        item.file: item.sha256 for item in manifest.files
    }
    assert all(one["licenses"] == [{"license": {"name": "CC-BY-4.0"}}] for one in files.values())
    assert bill["metadata"]["component"]["version"] == "7"
    (origin,) = (one for one in bill["components"] if one["type"] == "data")
    assert origin["name"] == "pretrained on rendered_digits"


def test_what_runs_it_here_is_named_with_version_and_licence_files(bundle):
    bill = stated(bundle)
    packages = {one["name"]: one for one in bill["components"] if one["type"] == "library"}
    assert {"niwaki-vision", "numpy", "onnxruntime", "pillow"} <= set(packages)
    assert "torch" not in packages, "what trains is none of its parts"
    numpy = packages["numpy"]
    assert numpy["purl"] == f"pkg:pypi/numpy@{metadata.version('numpy')}"
    assert "BSD" in numpy["licenses"][0]["license"]["name"]
    texts = [one["value"] for one in packages["onnxruntime"]["properties"]]
    assert {"onnxruntime/LICENSE", "onnxruntime/ThirdPartyNotices.txt"} <= set(texts)


def test_the_same_manifest_has_the_same_number_and_references_hold(bundle):
    first, again, other = stated(bundle), stated(bundle), stated(bundle, version=8)
    assert first["serialNumber"] == again["serialNumber"] != other["serialNumber"]
    known = {one["bom-ref"] for one in first["components"]} | {"bundle"}
    assert len(known) == len(first["components"]) + 1
    for line in first["dependencies"]:
        assert {line["ref"], *line["dependsOn"]} <= known


def test_a_licence_that_is_a_whole_text_is_its_first_line(tmp_path):
    folder = tmp_path / "x-1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: x\nVersion: 1\nLicense: MIT\n        All of it\n")
    assert licence_of(metadata.PathDistribution(folder)) == "MIT"


def test_the_command_writes_it_beside_the_bundle_and_never_into_it(bundle, monkeypatch, capsys, tmp_path):
    code, _ = said(monkeypatch, capsys, "doctor", bundle, "--sbom", tmp_path / "bom.cdx.json")
    assert code == 0
    assert json.loads((tmp_path / "bom.cdx.json").read_text())["bomFormat"] == "CycloneDX"
    code, shown = said(monkeypatch, capsys, "doctor", bundle, "--sbom", bundle / "bom.cdx.json")
    assert code == 2 and "write it elsewhere" in shown.err
    assert not (bundle / "bom.cdx.json").exists()


def test_without_a_bundle_there_is_nothing_to_list(monkeypatch, capsys, tmp_path):
    code, shown = said(monkeypatch, capsys, "doctor", "--sbom", tmp_path / "bom.json")
    assert code == 2 and "name the bundle too" in shown.err


def test_a_damaged_bundle_gets_none(bundle, monkeypatch, capsys, tmp_path):
    shutil.copy(bundle / "model.fp32.onnx", bundle / "model.int8.onnx")
    code, _ = said(monkeypatch, capsys, "doctor", bundle, "--sbom", tmp_path / "bom.json")
    assert code == 2 and not (tmp_path / "bom.json").exists()
