"""Under a demanded key: nothing that the manifest does not name, no older bundle, engines that were signed here."""

import hashlib
import json
import os
import sys
from datetime import UTC, datetime, timedelta, timezone

import pytest
import tensorrt_facts
from fake_tensorrt import FakeApi, FakeCuda

import deploy
from compress.cli import app
from deploy.bundle import engines
from deploy.bundle.manifest import MANIFEST
from deploy.bundle.signed import SIGNATURE, signature_of_engine
from deploy.engines.sidecar import sidecar_of
from deploy.errors import DeployError

NEW_YEAR = datetime(2031, 1, 1, tzinfo=UTC)


@pytest.fixture
def signed(bundle_dir, keys):
    deploy.sign(bundle_dir, keys / "mine.pem")
    return bundle_dir


def both_ways(folder, keys, says, **asked):
    """Loading and verifying refuse it in the same sentence."""
    for refuse in (
        lambda: deploy.load(folder, trusted_key=keys / "mine.pub", **asked),
        lambda: deploy.verify(folder, keys / "mine.pub", **asked),
    ):
        with pytest.raises(DeployError, match=says) as caught:
            refuse()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["file", "link", "folder", "pipe", "engines that are a file"])
def test_what_the_manifest_does_not_name_is_refused_under_a_key(kind, signed, keys, tmp_path):
    name = "engines" if kind == "engines that are a file" else "w.bin"
    stranger = signed / name
    if kind == "folder":
        stranger.mkdir()
    elif kind == "link":
        stranger.symlink_to(tmp_path)
    elif kind == "pipe":
        os.mkfifo(stranger)
    else:
        stranger.write_bytes(b"x")
    both_ways(signed, keys, f"holds '{name}', which its manifest does not name")
    with pytest.raises(DeployError, match="which its manifest does not name"):
        deploy.sign(signed, keys / "mine.pem")
    if kind == "file":
        deploy.load(signed).close()


def test_an_older_bundle_does_not_pass_for_a_newer_one(signed, keys):
    both_ways(signed, keys, "states no version and 3 is the least", min_version=3)
    before = json.loads((signed / MANIFEST).read_text())
    deploy.sign(signed, keys / "mine.pem", version=2)
    assert json.loads((signed / MANIFEST).read_text()) == before | {"version": 2}
    both_ways(signed, keys, "is version 2 and 3 is the least", min_version=3)
    assert deploy.verify(signed, keys / "mine.pub", min_version=2).version == 2
    with deploy.load(signed, trusted_key=keys / "mine.pub", min_version=2) as bundle:
        assert bundle.manifest.version == 2
    edited = (signed / MANIFEST).read_text().replace('"version": 2', '"version": 9')
    (signed / MANIFEST).write_text(edited)
    both_ways(signed, keys, "is not what the owner of", min_version=3)
    with pytest.raises(DeployError, match="means nothing without a signature"):
        deploy.load(signed, min_version=3)


def test_an_expired_bundle_is_refused_by_the_clock_that_is_given(signed, keys):
    deploy.sign(signed, keys / "mine.pem", expires="2031-01-01")
    before = NEW_YEAR - timedelta(seconds=1)
    assert deploy.verify(signed, keys / "mine.pub", now=before).expires == NEW_YEAR
    deploy.load(signed, trusted_key=keys / "mine.pub", now=before).close()
    for late in (NEW_YEAR, NEW_YEAR.astimezone(timezone(timedelta(hours=9))), NEW_YEAR.replace(tzinfo=None)):
        both_ways(signed, keys, "expired on 2031-01-01 at 00:00 UTC; get a newer bundle", now=late)
    with pytest.raises(DeployError, match="expired on"):
        deploy.load(signed, now=NEW_YEAR)
    deploy.sign(signed, keys / "mine.pem", expires=NEW_YEAR + timedelta(days=1))
    deploy.load(signed, trusted_key=keys / "mine.pub", now=NEW_YEAR).close()


@pytest.mark.parametrize(
    ("said", "says"),
    [({"expires": "soon"}, "'soon' is not a date or time"), ({"version": -1}, "cannot say that .*version")],
)
def test_what_no_manifest_can_say_is_not_signed(said, says, signed, keys):
    held = [(signed / name).read_bytes() for name in (MANIFEST, SIGNATURE)]
    with pytest.raises(DeployError, match=says):
        deploy.sign(signed, keys / "mine.pem", **said)
    assert held == [(signed / name).read_bytes() for name in (MANIFEST, SIGNATURE)]


def test_an_expiry_without_a_zone_in_the_manifest_is_refused(bundle_dir):
    said = json.loads((bundle_dir / MANIFEST).read_text())
    (bundle_dir / MANIFEST).write_text(json.dumps(said | {"expires": "2031-01-01T00:00"}))
    with pytest.raises(DeployError, match="expires"):
        deploy.load(bundle_dir)


@pytest.fixture
def here(monkeypatch):
    """A TensorRT 10.16 and an sm86 that seem to be installed here."""
    monkeypatch.setitem(sys.modules, "tensorrt", FakeApi(tensorrt_facts.read()["tensorrt 10.16"]))
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", FakeCuda())
    monkeypatch.setattr("deploy.bundle.bundle._check_fit", lambda *_: None)  # the stand-in's network gives no classes


def build(folder, **more):
    return deploy.build_engine(folder, precision="fp32", runtime="tensorrt", **more)


def test_under_a_key_an_engine_runs_only_if_a_local_key_signed_it(signed, keys, here):
    demanded = {"trusted_key": keys / "mine.pub", "engine_key": keys / "device.pub"}
    built = build(signed)
    assert not signature_of_engine(built).exists()
    with deploy.load(signed) as bundle:
        assert bundle.runtime == "tensorrt"
    with deploy.load(signed, **demanded) as bundle:
        assert bundle.runtime == "onnxruntime"
        assert f"engines/{built.name} (no key signed it: build it again with --key)" in bundle.why
    with pytest.raises(DeployError, match=r"holds no engine for tensorrt .*no key signed it"):
        deploy.load(signed, runtime="tensorrt", **demanded)
    assert build(signed, key=keys / "device.pem") == built
    with deploy.load(signed, **demanded) as bundle:
        assert (bundle.runtime, bundle.path) == ("tensorrt", built)
    with deploy.load(signed, trusted_key=keys / "mine.pub") as bundle:
        assert bundle.runtime == "onnxruntime" and "signed it, which is not trusted here" in bundle.why
    build(signed, key=keys / "mine.pem", trusted_key=keys / "mine.pub")
    with deploy.load(signed, trusted_key=keys / "mine.pub") as bundle:
        assert bundle.runtime == "tensorrt"
    build(signed)
    assert not signature_of_engine(built).exists()


def sidecar_altered(built):
    said = json.loads(sidecar_of(built).read_text())
    sidecar_of(built).write_text(json.dumps(said | {"precision": "int8"}))


def a_bundles_signature(built):
    signature_of_engine(built).write_bytes((built.parent.parent / SIGNATURE).read_bytes())


def signature_cut(built):
    signature_of_engine(built).write_text("{}")


@pytest.mark.parametrize(
    ("attack", "says"),
    [
        (sidecar_altered, "it was altered since it was signed"),
        (a_bundles_signature, "it was altered since it was signed"),
        (signature_cut, "no key signed it"),
    ],
)
def test_what_was_tampered_with_is_passed_over_and_the_signed_file_runs(attack, says, signed, keys, here):
    built = build(signed, key=keys / "mine.pem")
    attack(built)
    with deploy.load(signed, trusted_key=keys / "mine.pub") as bundle:
        assert bundle.runtime == "onnxruntime" and says in bundle.why


def test_an_engine_swapped_between_check_and_use_is_refused(signed, keys, here, monkeypatch):
    built = build(signed, key=keys / "mine.pem")
    detect = engines.detect_machine

    def meanwhile(found):
        content = built.read_bytes()[:-1] + b"!"
        built.write_bytes(content)
        said = json.loads(sidecar_of(built).read_text())
        fresh = hashlib.sha256(content).hexdigest()
        sidecar_of(built).write_text(json.dumps(said | {"engine_sha256": fresh}))
        return detect(found)

    monkeypatch.setattr(engines, "detect_machine", meanwhile)
    with pytest.raises(DeployError, match="its sidecar was replaced meanwhile"):
        deploy.load(signed, trusted_key=keys / "mine.pub")


def test_a_wrong_key_for_engines_is_one_sentence(signed, keys):
    with pytest.raises(DeployError, match="is not a public key in PEM"):
        deploy.load(signed, trusted_key=keys / "mine.pub", engine_key=keys / "device.pem")
    with pytest.raises(DeployError, match="give the trusted key too"):
        deploy.load(signed, engine_key=keys / "device.pub")
    with pytest.raises(DeployError, match="is not a private key"):
        build(signed, key=keys / "device.pub")


@pytest.fixture
def command(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["niwaki", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            app.main()
        shown = capsys.readouterr()
        return ended.value.code, shown.out, shown.err

    return run


def test_the_commands_sign_verify_and_predict(bundle_dir, keys, picture, command):
    options = ("--version", "4", "--expires", "2099-12-31")
    assert command("sign", bundle_dir, "--key", keys / "mine.pem", *options)[0] == 0
    code, shown, error = command("verify", bundle_dir, "--key", keys / "mine.pub", "--min-version", 4)
    assert (code, error) == (0, "")
    assert "2 files, version 4, expires 2099-12-31T00:00:00+00:00." in shown
    said = json.loads(command("verify", bundle_dir, "--key", keys / "mine.pub", "--json")[1])
    assert said["version"] == 4 and set(said["files"]) == {"model.fp32.onnx", "model.int8.onnx"}
    for asked in (("--key", keys / "other.pub"), ("--key", keys / "mine.pub", "--min-version", 5)):
        code, shown, error = command("verify", bundle_dir, *asked)
        assert (code, shown, error.count("\n")) == (2, "", 1)
    asked = ("--trusted-key", keys / "mine.pub", "--engine-key", keys / "device.pub", "--min-version")
    assert command("predict", bundle_dir, picture, *asked, 4)[0] == 0
    assert command("predict", bundle_dir, picture, *asked, 5)[0] == 2
