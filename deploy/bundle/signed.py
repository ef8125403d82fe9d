"""Sign and verify bundles: the signature covers the manifest, which holds the hash of every model file.

Engines that a device builds for itself are not covered by the signature.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from deploy.bundle.fitting import check_predictable
from deploy.bundle.manifest import Manifest, read_manifest
from deploy.bundle.signing import Signature, is_valid_signature, read_private_key, read_public_key, sign_bytes
from deploy.errors import DeployError
from deploy.files import read_bytes, write_text
from deploy.validation import explain

SIGNATURE = "manifest.json.sig"
# Signed bytes begin with this tag, so that no signature made for another kind of file passes for a bundle's.
_PURPOSE = b"niwaki-bundle-signature-1\n"


def sign(bundle: str | Path, key: str | Path) -> Path:
    """Sign the bundle at ``bundle`` with the private key in the PEM file ``key``; an older signature is replaced.

    Returns:
        The path of the signature, ``manifest.json.sig`` in the bundle.

    Raises:
        DeployError: the bundle is damaged or cannot predict, or the file holds no Ed25519 private key without a
            password.
        MissingDependency: the package cryptography is not installed.
    """
    folder = Path(bundle)
    private_key = read_private_key(Path(key))
    read: list[bytes] = []
    check_predictable(folder, read_manifest(folder, check=read.append))
    signature = sign_bytes(_PURPOSE + read[0], private_key)  # the bytes that were checked
    return write_text(folder / SIGNATURE, signature.model_dump_json(indent=2) + "\n")


def verify(bundle: str | Path, key: str | Path) -> Manifest:
    """Check the bundle at ``bundle`` against the public key in the PEM file ``key``, and every file against its hash.

    Returns:
        The manifest, as signed.

    Raises:
        DeployError: the bundle is unsigned, signed by another key, altered since or damaged, or the file holds no
            Ed25519 public key.
        MissingDependency: the package cryptography is not installed.
    """
    folder, key = Path(bundle), Path(key)
    return read_manifest(folder, check=lambda content: _check_signature(folder, content, key))


def read_trusted(bundle: Path, trusted_key: str | Path | None) -> Manifest:
    """Verify the bundle's files, and its signature where a key is given.

    Raises:
        DeployError, MissingDependency: as ``verify``.
    """
    return read_manifest(bundle) if trusted_key is None else verify(bundle, trusted_key)


def _check_signature(folder: Path, content: bytes, key: Path) -> None:
    """Refuse ``content``, the bytes of the manifest in ``folder``, unless the owner of ``key`` signed them."""
    public_key = read_public_key(key)
    path = folder / SIGNATURE
    try:
        signature = Signature.model_validate_json(read_bytes(path))
    except FileNotFoundError as error:
        raise DeployError(
            f"{folder} is not signed (it has no {SIGNATURE}); get it from who signs it, or leave out the trusted key."
        ) from error
    except OSError as error:
        raise DeployError(f"{path} cannot be read ({error.strerror}); copy the whole bundle again.") from error
    except ValidationError as error:
        raise DeployError(f"{path} is not a bundle's signature ({explain(error)}); sign the bundle again.") from error
    trusted = public_key.public_bytes_raw().hex()
    if signature.public_key != trusted:
        raise DeployError(
            f"{folder} is signed by the key {signature.public_key[:12]}... and {key} is {trusted[:12]}...; "
            "get the bundle, or the key, from who you trust."
        )
    if not is_valid_signature(signature, _PURPOSE + content, public_key):
        raise DeployError(
            f"{folder} is not what the owner of {key} signed (its manifest or its signature was altered); "
            "copy the whole bundle again, or have it signed again."
        )
