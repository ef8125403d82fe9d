"""Sign and verify bundles: the signature covers the manifest, which holds the hash of every model file.

An engine that a device builds for itself has a signature of its own, by a key of that device.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from deploy.bundle.fitting import check_predictable
from deploy.bundle.manifest import ENGINES_FOLDER, MANIFEST, Manifest, read_manifest
from deploy.bundle.signing import Signature, is_valid_signature, read_private_key, read_public_key, sign_bytes
from deploy.engines.sidecar import sidecar_of
from deploy.errors import DeployError
from deploy.files import read_bytes, write_text
from deploy.validation import explain

SIGNATURE = "manifest.json.sig"
# Signed bytes begin with a tag, so that no signature made for one kind of file passes for that of another.
_BUNDLE = b"niwaki-bundle-signature-1\n"
_ENGINE = b"niwaki-engine-signature-1\n"


def sign(
    bundle: str | Path, key: str | Path, *, version: int | None = None, expires: str | datetime | None = None
) -> Path:
    """Sign the bundle at ``bundle`` with the private key in the PEM file ``key``; an older signature is replaced.

    Args:
        bundle: the folder.
        key: the private key.
        version: written into the manifest before it is signed; ``min_version`` of ``load`` refuses lower ones.
        expires: from when on the bundle is refused, written into the manifest too: a time with its zone, or text such
            as ``2027-12-31`` or ``2027-12-31T18:00+01:00``, UTC where it names no zone.

    Returns:
        The path of the signature, ``manifest.json.sig`` in the bundle.

    Raises:
        DeployError: the bundle is damaged, cannot predict or holds files that its manifest does not name, or the file
            holds no Ed25519 private key without a password.
        MissingDependency: the package cryptography is not installed.
    """
    folder = Path(bundle)
    private_key = read_private_key(Path(key))
    read: list[bytes] = []
    manifest = read_manifest(folder, check=read.append)
    _check_strangers(folder, manifest)
    check_predictable(folder, manifest)
    (content,) = read  # the bytes that were checked
    if version is not None or expires is not None:
        content = _stamped(content, version, expires)
        write_text(folder / MANIFEST, content.decode())
    signature = sign_bytes(_BUNDLE + content, private_key)
    return write_text(folder / SIGNATURE, signature.model_dump_json(indent=2) + "\n")


def verify(
    bundle: str | Path, key: str | Path, *, min_version: int | None = None, now: datetime | None = None
) -> Manifest:
    """Check the bundle at ``bundle`` against the public key in the PEM file ``key``, and every file against its hash.

    Args:
        bundle: the folder.
        key: the public key.
        min_version: the least version that the manifest must state, so that no older bundle passes for a newer one.
        now: the time that expiry is held against; by default that of this machine's clock.

    Returns:
        The manifest, as signed.

    Raises:
        DeployError: the bundle is unsigned, signed by another key, altered since, damaged, expired or too old, holds
            files that its manifest does not name, or the file holds no Ed25519 public key.
        MissingDependency: the package cryptography is not installed.
    """
    folder, key = Path(bundle), Path(key)
    manifest = read_manifest(folder, check=lambda content: _check_signature(folder, content, key))
    _check_strangers(folder, manifest)
    _check_expiry(folder, manifest, now)
    if min_version is not None and (manifest.version is None or manifest.version < min_version):
        stated = "states no version" if manifest.version is None else f"is version {manifest.version}"
        raise DeployError(f"{folder} {stated} and {min_version} is the least accepted; get a newer bundle.")
    return manifest


@dataclass(frozen=True)
class Trust:
    """Whose signature a bundle needs, and what else it must state.

    Attributes:
        trusted_key: a PEM file with the Ed25519 public key whose owner must have signed the bundle; None for nobody.
        engine_key: beside ``trusted_key``, another such key: engines run that its owner signed when they were built on
            this device, or that the owner of ``trusted_key`` signed, and no others.
        min_version: the least version that a signed bundle must state.
        now: the time that expiry is held against; by default that of this machine's clock.
    """

    trusted_key: str | Path | None = None
    engine_key: str | Path | None = None
    min_version: int | None = None
    now: datetime | None = None

    def engine_keys(self) -> list[Any]:
        """Return the keys one of which must have signed an engine; none where no key is demanded."""
        return [read_public_key(Path(key)) for key in (self.engine_key, self.trusted_key) if key is not None]


def read_trusted(bundle: Path, trust: Trust) -> Manifest:
    """Verify the bundle's files and expiry, and its signature, version and whole folder where a key is given.

    Raises:
        DeployError, MissingDependency: as ``verify``; something is asked for that means nothing without a key, for
            whoever altered the bundle may have altered that too.
    """
    if trust.trusted_key is not None:
        return verify(bundle, trust.trusted_key, min_version=trust.min_version, now=trust.now)
    if trust.min_version is not None:
        raise DeployError("A minimum version means nothing without a signature; give the trusted key too.")
    if trust.engine_key is not None:
        raise DeployError("A key for engines means nothing where the bundle needs none; give the trusted key too.")
    manifest = read_manifest(bundle)
    _check_expiry(bundle, manifest, trust.now)
    return manifest


def signature_of_engine(path: Path) -> Path:
    """Return where the signature of the engine at ``path`` lies."""
    beside = sidecar_of(path)
    return beside.with_name(beside.name + ".sig")


def sign_engine(path: Path, private_key: Any) -> Path:
    """Sign the sidecar, which holds the hash of the engine at ``path``, with a key from ``read_private_key``."""
    signature = sign_bytes(_ENGINE + read_bytes(sidecar_of(path)), private_key)
    return write_text(signature_of_engine(path), signature.model_dump_json(indent=2) + "\n")


def check_engine_signature(path: Path, content: bytes, keys: Sequence[Any]) -> None:
    """Refuse ``content``, the sidecar of the engine at ``path``, unless the owner of one of ``keys`` signed it.

    Raises:
        DeployError: nobody did, another did, or it was altered since.
    """
    try:
        signature = Signature.model_validate_json(read_bytes(signature_of_engine(path)))
    except (OSError, ValidationError):
        raise DeployError("no key signed it: build it again with --key") from None
    for key in keys:
        if key.public_bytes_raw().hex() == signature.public_key:
            if is_valid_signature(signature, _ENGINE + content, key):
                return
            raise DeployError("it was altered since it was signed: build it again with --key")
    raise DeployError(f"the key {signature.public_key[:12]}... signed it, which is not trusted here")


def _stamped(content: bytes, version: int | None, expires: str | datetime | None) -> bytes:
    """Write a version and an expiry into the bytes of a manifest."""
    said: dict[str, Any] = json.loads(content)
    said |= {} if version is None else {"version": version}
    said |= {} if expires is None else {"expires": _moment(expires).isoformat()}
    stamped = (json.dumps(said, indent=2, allow_nan=False) + "\n").encode()
    try:
        Manifest.model_validate_json(stamped)
    except ValidationError as error:
        raise DeployError(f"The manifest cannot say that ({explain(error)}); give other values.") from error
    return stamped


def _moment(given: str | datetime) -> datetime:
    try:
        moment = datetime.fromisoformat(given) if isinstance(given, str) else given
    except ValueError:
        raise DeployError(
            f"The expiry {given!r} is not a date or time; write it as 2027-12-31 or 2027-12-31T18:00."
        ) from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _check_expiry(folder: Path, manifest: Manifest, now: datetime | None) -> None:
    if manifest.expires is not None and manifest.expires <= _moment(now or datetime.now(UTC)):
        when = manifest.expires.astimezone(UTC)
        raise DeployError(
            f"{folder} expired on {when:%Y-%m-%d at %H:%M} UTC; get a newer bundle, or have it signed again."
        )


def _check_strangers(folder: Path, manifest: Manifest) -> None:
    """Refuse a folder that holds more than its manifest names, but for engines, which are built after it."""
    named = {MANIFEST, SIGNATURE, *(item.file for item in manifest.files)}
    with os.scandir(folder) as entries:
        for entry in entries:
            engines = entry.name == ENGINES_FOLDER and entry.is_dir(follow_symlinks=False)
            if entry.name not in named and not engines:
                raise DeployError(
                    f"{folder} holds {entry.name[:100]!r}, which its manifest does not name; remove it, or copy the "
                    "whole bundle again."
                )


def _check_signature(folder: Path, content: bytes, key: Path) -> None:
    """Refuse ``content``, the bytes of the manifest in ``folder``, unless the owner of ``key`` signed them."""
    public_key = read_public_key(key)
    path = folder / SIGNATURE
    try:
        signature = Signature.model_validate_json(read_bytes(path))
    except FileNotFoundError as error:
        raise DeployError(
            f"{folder} is not signed (it has no {SIGNATURE}); get it from its signer, or leave out the trusted key."
        ) from error
    except OSError as error:
        raise DeployError(f"{path} cannot be read ({error.strerror}); copy the whole bundle again.") from error
    except ValidationError as error:
        raise DeployError(f"{path} is not a bundle's signature ({explain(error)}); sign the bundle again.") from error
    trusted = public_key.public_bytes_raw().hex()
    if signature.public_key != trusted:
        raise DeployError(
            f"{folder} is signed by the key {signature.public_key[:12]}... and {key} is {trusted[:12]}...; "
            "get the bundle, or the key, from someone you trust."
        )
    if not is_valid_signature(signature, _BUNDLE + content, public_key):
        raise DeployError(
            f"{folder} is not what the owner of {key} signed (its manifest or its signature was altered); "
            "copy the whole bundle again, or have it signed again."
        )
