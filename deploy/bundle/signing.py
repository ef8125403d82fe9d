"""Signed bundles: an Ed25519 signature (RFC 8032) of the manifest, which holds the hash of every model file.

The keys are PEM files, such as ``openssl genpkey -algorithm ed25519`` makes; the arithmetic is the package
``cryptography``'s. Engines that a device builds for itself lie outside the signature.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deploy.bench.records import explain
from deploy.errors import DeployError, MissingDependency
from deploy.files import write_text

if TYPE_CHECKING:
    from deploy.bundle.manifest import Manifest

SIGNATURE = "manifest.json.sig"
# What is signed begins with these bytes, so that no signature of another kind of file passes for a bundle's.
_PURPOSE = b"niwaki-bundle-signature-1\n"


class Signature(BaseModel):
    """What ``manifest.json.sig`` says: the signature and the public key that it claims, 64 and 32 bytes in hexadecimal.

    The key named here only tells which key to ask for; what counts is the key that the verifier trusts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["niwaki-signature-1"] = "niwaki-signature-1"
    algorithm: Literal["ed25519"] = "ed25519"
    public_key: str = Field(pattern=r"^[0-9a-f]{64}$")
    signature: str = Field(pattern=r"^[0-9a-f]{128}$")


def sign(bundle: str | Path, key: str | Path) -> Path:
    """Sign the bundle at ``bundle`` with the private key in the PEM file ``key``; an older signature is replaced.

    Returns:
        The signature's file, ``manifest.json.sig`` in the bundle.

    Raises:
        DeployError: the bundle is damaged, or the file holds no Ed25519 private key without a password.
        MissingDependency: the package cryptography is not installed.
    """
    from deploy.bundle.manifest import MANIFEST, read_manifest

    folder = Path(bundle)
    private = _private(Path(key))
    read_manifest(folder)
    said = Signature(
        public_key=private.public_key().public_bytes_raw().hex(),
        signature=private.sign(_PURPOSE + (folder / MANIFEST).read_bytes()).hex(),
    )
    return write_text(folder / SIGNATURE, said.model_dump_json(indent=2) + "\n")


def verify(bundle: str | Path, key: str | Path) -> Manifest:
    """Hold the bundle at ``bundle`` against the public key in the PEM file ``key``, and every file against its hash.

    Returns:
        The manifest, as signed.

    Raises:
        DeployError: the bundle is unsigned, signed by another key, altered since or damaged, or the file holds no
            Ed25519 public key.
        MissingDependency: the package cryptography is not installed.
    """
    from deploy.bundle.manifest import read_manifest

    return read_manifest(Path(bundle), trusted_key=Path(key))


def check(folder: Path, manifest: bytes, key: Path) -> None:
    """Refuse ``manifest``, the bytes of the manifest in ``folder``, unless the owner of ``key`` signed them.

    Raises:
        DeployError, MissingDependency: as :func:`verify`.
    """
    public = _public(key)
    from cryptography.exceptions import InvalidSignature

    path = folder / SIGNATURE
    try:
        said = Signature.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise DeployError(
            f"{folder} is not signed (it has no {SIGNATURE}); get it from who signs it, or leave out the trusted key."
        ) from error
    except OSError as error:
        raise DeployError(f"{path} cannot be read ({error.strerror}); copy the whole bundle again.") from error
    except ValidationError as error:
        raise DeployError(f"{path} is not a bundle's signature ({explain(error)}); sign the bundle again.") from error
    mine = public.public_bytes_raw().hex()
    if said.public_key != mine:
        raise DeployError(
            f"{folder} is signed by the key {said.public_key[:12]}... and {key} is {mine[:12]}...; "
            "get the bundle, or the key, from who you trust."
        )
    try:
        public.verify(bytes.fromhex(said.signature), _PURPOSE + manifest)
    except InvalidSignature as error:
        raise DeployError(
            f"{folder} is not what the owner of {key} signed (its manifest or its signature was altered); "
            "copy the whole bundle again, or have it signed again."
        ) from error


def _private(path: Path) -> Any:
    serialization = _cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    try:
        key = serialization.load_pem_private_key(_bytes(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:  # no key of a known kind; one behind a password
        raise DeployError(
            f"{path} is no private key in PEM without a password; make one with "
            "`openssl genpkey -algorithm ed25519 -out FILE`."
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise DeployError(f"{path} holds a key that is not Ed25519; `openssl genpkey -algorithm ed25519` makes one.")
    return key


def _public(path: Path) -> Any:
    serialization = _cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = serialization.load_pem_public_key(_bytes(path))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise DeployError(
            f"{path} is no public key in PEM; take it from the private one with `openssl pkey -in FILE -pubout`."
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise DeployError(f"{path} holds a key that is not Ed25519; ask for the one that signs the bundle.")
    return key


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DeployError(f"The key {path} cannot be read ({error.strerror}); check the path.") from error


def _cryptography() -> Any:
    try:
        from cryptography.hazmat.primitives import serialization
    except ImportError as error:
        raise MissingDependency(
            "Signatures need the package cryptography, which cannot be imported here; get it with "
            "`uv sync --extra signing` or `pip install 'niwaki[signing]'`."
        ) from error
    return serialization
