"""Ed25519 keys as PEM files."""

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def private_pem(key, password=None):
    how = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how)


def public_pem(key):
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, form)


def write_pair(folder, name, seed):
    """Write ``name``.pem and ``name``.pub."""
    key = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
    (folder / f"{name}.pem").write_bytes(private_pem(key))
    (folder / f"{name}.pub").write_bytes(public_pem(key))
