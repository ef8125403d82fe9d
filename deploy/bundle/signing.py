"""Sign bytes and check their signatures with Ed25519 (RFC 8032); knows keys and bytes, nothing of bundles.

Keys are PEM files, such as ``openssl genpkey -algorithm ed25519`` writes; the package ``cryptography`` does the
arithmetic.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from deploy.errors import DeployError, MissingDependency
from deploy.files import read_bytes


class Signature(BaseModel):
    """A signature and the public key that it claims, 64 and 32 bytes in hexadecimal.

    The key named here only tells which key to ask for; what counts is the key that the verifier trusts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["niwaki-signature-1"] = "niwaki-signature-1"
    algorithm: Literal["ed25519"] = "ed25519"
    public_key: str = Field(pattern=r"^[0-9a-f]{64}$")
    signature: str = Field(pattern=r"^[0-9a-f]{128}$")


def sign_bytes(content: bytes, private_key: Any) -> Signature:
    """Sign ``content`` with a key from ``read_private_key``."""
    return Signature(
        public_key=private_key.public_key().public_bytes_raw().hex(),
        signature=private_key.sign(content).hex(),
    )


def is_valid_signature(signature: Signature, content: bytes, public_key: Any) -> bool:
    """Return whether the owner of ``public_key``, from ``read_public_key``, signed ``content``."""
    from cryptography.exceptions import InvalidSignature

    try:
        public_key.verify(bytes.fromhex(signature.signature), content)
    except InvalidSignature:
        return False
    return True


def read_private_key(path: Path) -> Any:
    """Read an Ed25519 private key from the PEM file at ``path``.

    Raises:
        DeployError: the file cannot be read, holds another kind of key, or is protected by a password.
        MissingDependency: the package cryptography is not installed.
    """
    serialization = _import_serialization()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    try:
        key = serialization.load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:  # TypeError: protected by a password
        raise DeployError(
            f"{path} is not a private key in PEM without a password; make one with "
            "`openssl genpkey -algorithm ed25519 -out FILE`."
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise DeployError(f"{path} holds a key that is not Ed25519; `openssl genpkey -algorithm ed25519` makes one.")
    return key


def read_public_key(path: Path) -> Any:
    """Read an Ed25519 public key from the PEM file at ``path``.

    Raises:
        DeployError: the file cannot be read or holds another kind of key.
        MissingDependency: the package cryptography is not installed.
    """
    serialization = _import_serialization()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = serialization.load_pem_public_key(_read(path))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise DeployError(
            f"{path} is not a public key in PEM; take it from the private one with `openssl pkey -in FILE -pubout`."
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise DeployError(f"{path} holds a key that is not Ed25519; ask for the one that signs the bundle.")
    return key


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path)
    except OSError as error:
        raise DeployError(f"The key {path} cannot be read ({error.strerror}); check the path.") from error


def _import_serialization() -> Any:
    try:
        from cryptography.hazmat.primitives import serialization
    except ImportError as error:
        raise MissingDependency(
            "Signatures need the package cryptography, which cannot be imported here; get it with "
            "`uv sync --extra signing` or `pip install 'niwaki-vision[signing]'`."
        ) from error
    return serialization
