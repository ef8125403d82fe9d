"""List what a bundle carries, and what runs it on this machine, as CycloneDX: files, hashes, versions, licences."""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deploy.bundle.manifest import MANIFEST, Manifest
from deploy.files import read_bytes

DISTRIBUTION = "niwaki-vision"
_RUNTIMES = ("onnxruntime", "openvino", "tensorrt", "tensorrt-rtx-cu13")
_LICENCE = re.compile(r"^[^.]*(licen[cs]e|notice|copying|third[-_]?party)[^.]*(\.(txt|md|rst|apache|bsd))?$", re.I)
_SPACE = uuid.UUID("8a6c1d9e-0a0b-5f0e-9a51-6e6977616b69")  # so that the same manifest always has the same number


def sbom(folder: str | Path, manifest: Manifest) -> dict[str, Any]:
    """Return the bill of materials of a verified bundle, CycloneDX 1.6 (ECMA-424), as JSON values.

    Its components are the model files with their hashes and the licence of their weights, where training began from,
    and the installed packages that run it here with their licences and the licence files that they carry.

    Args:
        folder: the bundle.
        manifest: what ``read_manifest`` or ``read_trusted`` returned for it.

    Raises:
        OSError: the manifest is gone since.
    """
    path = Path(folder)
    content = read_bytes(path / MANIFEST)
    licence = _licences(manifest.licence)
    whole = {
        "type": "machine-learning-model",
        "bom-ref": "bundle",
        "name": path.resolve().name,
        "hashes": [_sha256(hashlib.sha256(content).hexdigest())],
        **licence,
    }
    if manifest.version is not None:
        whole["version"] = str(manifest.version)
    files = [
        {
            "type": "machine-learning-model",
            "bom-ref": item.file,
            "name": item.file,
            "hashes": [_sha256(item.sha256)],
            "properties": [{"name": "niwaki:bytes", "value": str(item.bytes)}],
            **licence,
        }
        for item in manifest.files
    ]
    origin = []
    if manifest.weights is not None:
        known = {} if manifest.weights.sha256 is None else {"hashes": [_sha256(manifest.weights.sha256)]}
        origin = [{"type": "data", "bom-ref": "weights", "name": manifest.weights.source, **known, **licence}]
    packages = [_package(one) for one in sorted(_needed(), key=lambda one: one.name.lower())]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_SPACE, content.hex())}",
        "version": 1,
        "metadata": {"component": whole},
        "components": [*files, *origin, *packages],
        "dependencies": [
            {"ref": "bundle", "dependsOn": [one["bom-ref"] for one in files]},
            *({"ref": one["bom-ref"], "dependsOn": [part["bom-ref"] for part in origin]} for one in files),
        ],
    }


def _needed() -> Iterator[importlib.metadata.Distribution]:
    """Yield what is installed of Niwaki, of the runtimes, and of all that these need without an extra."""
    waiting, seen = [DISTRIBUTION, *_RUNTIMES], set()
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in seen:
            continue
        seen.add(name)
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # a runtime that is not here, or a need of another platform
        yield found
        plain = (line for line in found.requires or () if not re.search(r";.*\bextra\s*==", line))
        waiting += [re.split(r"[^\w.-]", line.strip(), maxsplit=1)[0] for line in plain]


def _package(found: importlib.metadata.Distribution) -> dict[str, Any]:
    name, version = found.name, found.version
    bare = re.sub(r"[-_.]+", "-", name).lower()
    texts = sorted(str(path) for path in found.files or () if _LICENCE.search(path.name))
    properties = [{"name": "niwaki:licence-file", "value": text} for text in texts]
    return {
        "type": "library",
        "bom-ref": f"pkg:pypi/{bare}@{version}",
        "name": name,
        "version": version,
        "purl": f"pkg:pypi/{bare}@{version}",
        **_licences(licence_of(found)),
        **({"properties": properties} if properties else {}),
    }


def licence_of(found: importlib.metadata.Distribution) -> str | None:
    """Return the licence that a package states: its expression, else its classifiers, else its first line of text."""
    said = found.metadata
    for expression in said.get_all("License-Expression") or []:
        return str(expression)
    names = [one.rpartition(" :: ")[2] for one in said.get_all("Classifier") or [] if one.startswith("License ::")]
    if names:
        return " and ".join(dict.fromkeys(names))
    text = "".join(said.get_all("License") or []).strip()
    return text.splitlines()[0][:100] if text else None


def _licences(said: str | None) -> dict[str, Any]:
    """Return CycloneDX's ``licenses``: words, which need not be of SPDX's list; nothing where nobody stated any."""
    return {} if said is None else {"licenses": [{"license": {"name": said}}]}


def _sha256(content: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": content}
