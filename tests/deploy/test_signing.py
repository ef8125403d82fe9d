"""Signed bundles: golden bytes, and everything that an attacker may try."""

import json
import subprocess
import sys

import pytest

import deploy
from deploy.bundle.manifest import MANIFEST
from deploy.bundle.signed import SIGNATURE
from deploy.errors import DeployError, MissingDependency

ed25519 = pytest.importorskip(
    "cryptography.hazmat.primitives.asymmetric.ed25519", reason="the package cryptography is not installed"
)
from cryptography.hazmat.primitives import serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec  # noqa: E402
from pems import private_pem, public_pem  # noqa: E402

GOLDEN_MANIFEST = """{
  "format": "niwaki-bundle-1", "task": "classification", "default": "fp32",
  "models": {"fp32": {"file": "model.fp32.onnx", "bytes": 2,
    "sha256": "7648eb81c4e9fef7b51879c6fcd6fb4b8863eea0cb2a978c508711dc52c80041"}},
  "preprocessing": {"size": [8, 8], "mode": "L"}, "classes": ["a"]
}
"""
GOLDEN_SIGNATURE = """{
  "format": "niwaki-signature-1",
  "algorithm": "ed25519",
  "public_key": "8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c",
  "signature": "\
5f1ce32c109d41531866fa109d35dc81dc0c6a8dbe72c49d67f963be0f985d1d\
841a2bd98069c2e94584435a45a1aee40aaa10b83f59a6f188d862deea0cce02"
}
"""


# secp112r1, which the package cryptography does not know.
ODD_CURVE = b"""-----BEGIN PUBLIC KEY-----
MDIwEAYHKoZIzj0CAQYFK4EEAAYDHgAEKqrsw9vROFwnZ5/HL9o1coPJ9TJfW6k1
8B0ewA==
-----END PUBLIC KEY-----
"""


def niwaki(*arguments):
    command = [sys.executable, "-c", "from compress.cli.app import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_bytes_are_these(keys, tmp_path, monkeypatch):
    # Its model is a placeholder of two bytes, which no runtime loads.
    monkeypatch.setattr("deploy.bundle.signed.check_predictable", lambda folder, manifest: None)
    folder = tmp_path / "golden"
    folder.mkdir()
    (folder / "model.fp32.onnx").write_bytes(b"\x3a\x00")  # a model whose graph is empty
    (folder / MANIFEST).write_text(GOLDEN_MANIFEST)
    path = deploy.sign(folder, keys / "mine.pem")
    assert (path, path.read_text()) == (folder / SIGNATURE, GOLDEN_SIGNATURE)
    assert deploy.verify(folder, keys / "mine.pub").classes == ("a",)


@pytest.mark.heavy
def test_a_signed_bundle_loads_and_predicts_where_its_key_is_trusted(bundle_dir, keys, picture):
    done = niwaki("sign", bundle_dir, "--key", keys / "mine.pem")
    assert (done.returncode, done.stdout.strip()) == (0, str(bundle_dir / SIGNATURE))
    with deploy.load(bundle_dir, trusted_key=keys / "mine.pub") as bundle:
        assert bundle.predict([picture])
    done = niwaki("predict", bundle_dir, picture, "--trusted-key", keys / "mine.pub")
    assert done.returncode == 0, done.stderr
    for command in (["predict", bundle_dir, picture], ["build", bundle_dir]):
        done = niwaki(*command, "--trusted-key", keys / "other.pub")
        assert (done.returncode, done.stdout) == (2, "")
        assert "is signed by the key" in done.stderr
        assert done.stderr.count("\n") == 1


def edit(path, change):
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def unsigned(folder, keys):
    (folder / SIGNATURE).unlink()


def another_manifest(folder, keys):
    edit(folder / MANIFEST, lambda said: said | {"classes": ["e", "d", "c", "b", "a"]})


def a_space_more(folder, keys):
    with (folder / MANIFEST).open("a") as file:
        file.write(" ")


def another_model(folder, keys):
    content = bytearray((folder / "model.int8.onnx").read_bytes())
    content[100] ^= 1
    (folder / "model.int8.onnx").write_bytes(content)


def signed_by_another(folder, keys):
    deploy.sign(folder, keys / "other.pem")


def another_with_my_name(folder, keys):
    mine = json.loads((folder / SIGNATURE).read_text())["public_key"]
    deploy.sign(folder, keys / "other.pem")
    edit(folder / SIGNATURE, lambda said: said | {"public_key": mine})


def one_bit(folder, keys):
    def flip(said):
        first = f"{int(said['signature'][0], 16) ^ 1:x}"
        return said | {"signature": first + said["signature"][1:]}

    edit(folder / SIGNATURE, flip)


def all_zero(folder, keys):
    edit(folder / SIGNATURE, lambda said: said | {"signature": "0" * 128})


def another_algorithm(folder, keys):
    edit(folder / SIGNATURE, lambda said: said | {"algorithm": "none"})


def cut_short(folder, keys):
    path = folder / SIGNATURE
    path.write_bytes(path.read_bytes()[:-10])


def a_signature_of_the_bare_bytes(folder, keys):
    key = serialization.load_pem_private_key((keys / "mine.pem").read_bytes(), None)
    bare = key.sign((folder / MANIFEST).read_bytes()).hex()
    edit(folder / SIGNATURE, lambda said: said | {"signature": bare})


@pytest.mark.parametrize(
    ("attack", "says"),
    [
        (unsigned, "is not signed"),
        (another_manifest, "is not what the owner of"),
        (a_space_more, "is not what the owner of"),
        (another_model, r"model\.int8\.onnx was altered"),
        (signed_by_another, "is signed by the key"),
        (another_with_my_name, "is not what the owner of"),
        (one_bit, "is not what the owner of"),
        (all_zero, "is not what the owner of"),
        (another_algorithm, "is not a bundle's signature .*algorithm"),
        (cut_short, "is not a bundle's signature"),
        (a_signature_of_the_bare_bytes, "is not what the owner of"),
    ],
)
def test_what_was_tampered_with_is_refused_in_a_sentence(attack, says, bundle_dir, keys):
    deploy.sign(bundle_dir, keys / "mine.pem")
    attack(bundle_dir, keys)
    for refuse in (deploy.verify, lambda folder, key: deploy.load(folder, trusted_key=key)):
        with pytest.raises(DeployError, match=says) as caught:
            refuse(bundle_dir, keys / "mine.pub")
        assert "\n" not in str(caught.value)


def test_a_damaged_bundle_is_not_signed(bundle_dir, keys):
    another_model(bundle_dir, keys)
    with pytest.raises(DeployError, match="was altered"):
        deploy.sign(bundle_dir, keys / "mine.pem")
    assert not (bundle_dir / SIGNATURE).exists()


def test_what_is_no_key_is_one_sentence(bundle_dir, keys, tmp_path):
    bad = tmp_path / "bad"
    mine = ed25519.Ed25519PrivateKey.generate()
    elliptic = ec.generate_private_key(ec.SECP256R1())
    for content, says in (
        (b"hello", "is not a private key in PEM without a password"),
        (private_pem(mine, b"secret"), "is not a private key in PEM without a password"),
        (public_pem(mine), "is not a private key"),
        (private_pem(elliptic), "not Ed25519"),
        (ODD_CURVE, "is not a private key"),
    ):
        bad.write_bytes(content)
        with pytest.raises(DeployError, match=says):
            deploy.sign(bundle_dir, bad)
    deploy.sign(bundle_dir, keys / "mine.pem")
    for content, says in (
        (private_pem(mine), "is not a public key in PEM"),
        (public_pem(elliptic), "not Ed25519"),
        (ODD_CURVE, "not a public"),
    ):
        bad.write_bytes(content)
        with pytest.raises(DeployError, match=says):
            deploy.load(bundle_dir, trusted_key=bad)
    for use in (deploy.sign, deploy.verify):
        with pytest.raises(DeployError, match=r"The key .* cannot be read"):
            use(bundle_dir, tmp_path / "none")


def test_without_cryptography_it_says_how_to_get_it(bundle_dir, keys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives", None)
    with pytest.raises(MissingDependency, match=r"pip install 'niwaki-vision\[signing\]'"):
        deploy.load(bundle_dir, trusted_key=keys / "mine.pub")
    deploy.load(bundle_dir).close()
