"""What is not a regular file, or larger than any of its kind, is refused before a byte of it is read."""

import hashlib
import json
import os
import struct
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from compress import artifact
from compress import files as training
from compress.data.formats.masks import load_mask
from compress.distill import cache
from compress.errors import ImageError, NiwakiError, TrainingError
from compress.recipe.loading import load_recipe
from compress.run.ledger import Ledger
from compress.run.stages.measure import _built_records
from compress.run.summary import summary
from compress.run.variants import ENGINES
from deploy import files as running
from deploy.bench.records import Bench
from deploy.bundle.manifest import read_manifest
from deploy.bundle.signing import read_public_key
from deploy.engines.sidecar import load_sidecar
from deploy.errors import DeployError
from deploy.processing import preprocess
from deploy.report import write_report

READERS = {
    "ledger.json": lambda folder: Ledger.read(folder / "ledger.json"),
    "model.json": artifact.describe,
    "recipe.yaml": lambda folder: load_recipe(folder / "recipe.yaml"),
    "bench.json": lambda folder: Bench.from_file(folder / "bench.json"),
    "manifest.json": read_manifest,
    "key.pub": lambda folder: read_public_key(folder / "key.pub"),
    "x.engine.json": lambda folder: load_sidecar(folder / "x.engine"),
    "photo.png": lambda folder: preprocess.load(folder / "photo.png"),
}


@pytest.mark.parametrize("kind", ["pipe", "zeros", "folder"])
@pytest.mark.parametrize("name", READERS)
def test_no_reader_waits_for_a_pipe_or_reads_a_device(name, kind, tmp_path):
    (tmp_path / "x.engine").write_bytes(b"x")
    path = tmp_path / name
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "zeros":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises((NiwakiError, DeployError)) as caught:
        READERS[name](tmp_path)
    assert any(said in str(caught.value) for said in (name, str(tmp_path)))
    assert "\n" not in str(caught.value)


def test_a_report_of_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "ledger.json")
    with pytest.raises(DeployError, match="cannot be read"):
        write_report(tmp_path)


@pytest.mark.parametrize("read_bytes", [training.read_bytes, running.read_bytes])
def test_the_readers_keep_their_limit(read_bytes, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_bytes(path, 5) == b"12345"
    for refused, says in (
        ((path, 4), "5 bytes and 4 are the limit"),
        ((Path("a\0b"),), "NUL"),
        ((tmp_path,), "regular"),
    ):
        with pytest.raises(OSError, match=says):
            read_bytes(*refused)
    (tmp_path / "link").symlink_to(path)
    assert read_bytes(tmp_path / "link") == b"12345"
    with pytest.raises(OSError, match=r"."):
        read_bytes(tmp_path / "link", follow=False)


def test_a_report_of_too_many_records_is_refused(tmp_path):
    (tmp_path / "ledger.json").write_text(json.dumps({"format": "niwaki-ledger-1"}))
    (tmp_path / "recipe.yaml").write_text("name: a\n")
    records = [{"name": str(n), "status": "measured"} for n in range(201)]
    (tmp_path / "bench.json").write_text(json.dumps({"format": "niwaki-bench-1", "records": records}))
    with pytest.raises(DeployError, match="holds 201 records and a report shows 200"):
        write_report(tmp_path)


def test_the_pixels_of_an_image_are_counted_before_it_is_decoded(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    path = tmp_path / "bomb.png"
    header = struct.pack(">IIBBBBB", 13_000, 13_000, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"not decoded") + chunk(b"IEND", b"")
    )
    for load, error in ((preprocess.load, DeployError), (load_mask, ImageError)):
        with pytest.raises(error, match="13000 x 13000 pixels, which is too large"):
            load(path)


def test_a_mask_of_half_a_megabyte_does_not_take_gigabytes(tmp_path):
    """Every pixel of a mask becomes eight bytes."""
    path = tmp_path / "mask.png"
    Image.new("L", (8000, 8000)).save(path, optimize=True)
    assert path.stat().st_size < 1 << 19
    with pytest.raises(ImageError, match="8000 x 8000 pixels, which is too large"):
        load_mask(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ImageError, match="it is not a regular file"):
        load_mask(path)


@pytest.mark.parametrize("name", ["ledger.json", "bench.json"])
def test_the_summary_of_a_run_waits_for_no_pipe(name, tmp_path):
    (tmp_path / "ledger.json").write_text('{"models": []}')
    (tmp_path / "bench.json").write_text('{"records": []}')
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises((OSError, NiwakiError), match=r"regular file|lacks what the run wrote"):
        summary(tmp_path)


def test_what_a_run_measured_and_stored_is_read_within_a_limit(tmp_path):
    (tmp_path / "key").mkdir()
    (tmp_path / "key/0.safetensors").symlink_to("/dev/zero")
    with pytest.raises(TrainingError, match="cannot be read back"):
        cache.read(tmp_path, "key", 1, 1 << 20)
    (tmp_path / "deploy").mkdir()
    (tmp_path / ENGINES).symlink_to("/dev/zero")
    assert list(_built_records(tmp_path)) == []
    (tmp_path / ENGINES).unlink()
    (tmp_path / ENGINES).write_bytes(b"[" * (65 << 20))
    with pytest.raises(OSError, match="are the limit"):
        list(_built_records(tmp_path))


def test_the_weights_that_were_hashed_are_the_weights_that_are_used(tmp_path, monkeypatch):
    """Swapped between the hash and the use, they are those of before."""
    save_file({"w": torch.zeros(3)}, tmp_path / artifact.WEIGHTS)
    digest = hashlib.sha256((tmp_path / artifact.WEIGHTS).read_bytes()).hexdigest()
    real = artifact.read_tensors

    def swapped(content):
        save_file({"w": torch.ones(3)}, tmp_path / artifact.WEIGHTS)
        return real(content)

    monkeypatch.setattr(artifact, "read_tensors", swapped)
    about = artifact.Description.model_construct(weights_sha256=digest)
    assert artifact.weights(tmp_path, about)["w"].tolist() == [0.0, 0.0, 0.0]
    with pytest.raises(NiwakiError, match="does not have the hash"):
        artifact.weights(tmp_path, about)
