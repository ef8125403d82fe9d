"""The teacher's features on disk: computed once for every image and variant of it, then only read."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from compress.distill.registry import Features
from compress.errors import TrainingError
from compress.files import read_bytes, replacing


@dataclass(frozen=True)
class Cache:
    """Features in memory, one entry a variant: name -> tensor over all images of the split."""

    variants: tuple[Features, ...]

    def rows(self, variant: int, index: Tensor, device: torch.device) -> Features:
        """Return the teacher's features of the images at ``index`` (int64, shape (N,)) in one variant."""
        held = self.variants[variant % len(self.variants)]
        return {name: values[index.cpu()].to(device) for name, values in held.items()}


def size(features: Features, images: int, variants: int) -> int:
    """Estimate the bytes that a cache takes, on disk and in memory, from the features of a few images."""
    return images * variants * sum(t[:1].nbytes for t in features.values())


def key_of(**parts: Any) -> str:
    """Return one name for everything that the features depend on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def images_hash(images: Iterable[Tensor]) -> str:
    """Return the SHA-256 over the bytes of prepared images."""
    digest = hashlib.sha256()
    for batch in images:
        digest.update(f"{tuple(batch.shape)}".encode())
        digest.update(batch.contiguous().numpy().tobytes())
    return digest.hexdigest()


def fill(
    folder: Path,
    key: str,
    variants: int,
    images: Callable[[int], Iterator[Tensor]],
    compute: Callable[[Tensor], Features],
    progress: Callable[[int, int], None],
    limit: int,
) -> None:
    """Compute what ``folder`` lacks under ``key``, one file a variant; each appears whole. Other keys are removed.

    Args:
        folder: of all caches of the run.
        key: ``key_of`` all that the features depend on.
        variants: how many augmented variants each image has.
        images: a variant's images in the split's order, in batches (n, C, H, W).
        compute: the teacher's features of a batch.
        progress: told variants done and in all.
        limit: the most bytes that one file may have; a larger one is computed again.
    """
    for other in folder.iterdir() if folder.is_dir() else ():
        if other.name != key:
            shutil.rmtree(other)
    (folder / key).mkdir(parents=True, exist_ok=True)
    for variant in range(variants):
        if _read(folder, key, variant, limit) is None:
            gathered: dict[str, list[Tensor]] = {}
            for batch in images(variant):
                for name, value in compute(batch).items():
                    gathered.setdefault(name, []).append(value.cpu())
            with replacing(_file(folder, key, variant)) as temporary:
                save_file({n: torch.cat(values).contiguous() for n, values in gathered.items()}, temporary)
        progress(variant + 1, variants)


def read(folder: Path, key: str, variants: int, limit: int) -> Cache:
    """Read what ``fill`` left there, at most ``limit`` bytes a file; raise TrainingError where that cannot be had."""
    held = []
    for variant in range(variants):
        features = _read(folder, key, variant, limit)
        if features is None:
            raise TrainingError(
                f"{_file(folder, key, variant)} cannot be read back; check the disk, "
                "or set distill.teacher_cache_mb: 0."
            )
        held.append(features)
    return Cache(tuple(held))


def _file(folder: Path, key: str, variant: int) -> Path:
    return folder / key / f"{variant}.safetensors"


def _read(folder: Path, key: str, variant: int, limit: int) -> Features | None:
    try:
        # Read, not mapped: a mapped file that is cut short while training kills the process.
        return load(read_bytes(_file(folder, key, variant), limit))
    except (OSError, SafetensorError):
        # Missing or damaged: it is computed again.
        return None
