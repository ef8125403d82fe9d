"""Compare what two engines answer to the same images: how often they agree, how far apart they are, and where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from deploy.engines.base import Engine
from deploy.errors import DeployError

_EQUAL_DB = 200.0


class Parting(BaseModel):
    """An image for which two engines name other classes.

    Attributes:
        file: the image.
        first, second: what each of the two names, with the lead of its class over the next one in its own scores.
        first_lead, second_lead: that lead; near zero the answer was a toss-up.
    """

    model_config = ConfigDict(frozen=True)
    file: str
    first: str
    second: str
    first_lead: float
    second_lead: float


class Comparison(BaseModel):
    """What two engines answer to the same images.

    Attributes:
        first, second: their names.
        images: how many were compared.
        agreement: the share of images, or of pixels, for which both name one class; None where outputs are no classes.
        snr_db: signal to noise of each output of the second against the first, in decibels; 200 where both are equal.
        max_relative_error: the largest difference over the largest magnitude of the first's output.
        worst: the image with the least signal to noise, and that figure.
        parted: images for which they name other classes, the clearest for the first engine first.
        confused: how often the two name one pair of classes, most first.
    """

    model_config = ConfigDict(frozen=True)
    first: str
    second: str
    images: int
    agreement: float | None
    snr_db: dict[str, float]
    max_relative_error: float
    worst: tuple[str, float]
    parted: tuple[Parting, ...] = ()
    confused: tuple[tuple[str, str, int], ...] = ()


def compare(
    first: Engine,
    second: Engine,
    images: Iterable[tuple[str | Path, np.ndarray, np.ndarray]],
    classes: Sequence[str] = (),
) -> Comparison:
    """Run both engines on each image and hold the second's outputs against the first's.

    Args:
        first, second: open engines with one input each and as many outputs as each other.
        images: a name and what each of the two is fed, float32 (C, H, W).
        classes: their names, in the order of the outputs; numbers where there are none.

    Raises:
        DeployError: there is no image, or outputs differ in number or shape.
    """
    names = list(first.outputs)
    if len(names) != len(second.outputs):
        raise DeployError(
            f"{first.name} gives {len(names)} outputs and {second.name} {len(second.outputs)}; compare two engines of "
            "one kind."
        )
    totals = np.zeros((len(names), 4))  # signal, noise, largest difference, largest magnitude
    same, places = 0, 0
    parted: list[Parting] = []
    worst = ("", np.inf)
    count = 0
    for file, own, other in images:
        count += 1
        rows = [
            _energies(a, b, first.name, second.name)
            for a, b in zip(_outputs(first, own), _outputs(second, other), strict=True)
        ]
        energies = np.array([row[:4] for row in rows])
        totals[:, :2] += energies[:, :2]
        totals[:, 2:] = np.maximum(totals[:, 2:], energies[:, 2:])
        least = float(_decibels(energies[:, 0], energies[:, 1]).min())
        worst = min(worst, (str(file), least), key=lambda one: one[1])
        a, b = rows[0][4]
        if len(names) > 1 or a is None or b is None:
            continue
        same += int((a.argmax(0) == b.argmax(0)).sum()) if a.ndim else int(a == b)
        places += int(np.prod(a.shape[1:])) if a.ndim else 1
        if a.ndim == 1 and a.argmax() != b.argmax():
            parted.append(_parting(str(file), a, b, classes))
    if not count:
        raise DeployError("There are 0 images to compare on; name some, or a folder of them.")
    pairs = Counter((one.first, one.second) for one in parted)
    return Comparison(
        first=first.name,
        second=second.name,
        images=count,
        agreement=round(same / places, 6) if places else None,
        snr_db=dict(zip(names, (round(v, 2) for v in _decibels(totals[:, 0], totals[:, 1]).tolist()), strict=True)),
        max_relative_error=float((totals[:, 2] / np.maximum(totals[:, 3], 1e-300)).max()),
        worst=(worst[0], round(worst[1], 2)),
        parted=tuple(sorted(parted, key=lambda one: -one.first_lead)),
        confused=tuple((*pair, n) for pair, n in sorted(pairs.items(), key=lambda item: (-item[1], item[0]))),
    )


def _outputs(engine: Engine, image: np.ndarray) -> list[np.ndarray]:
    (name,) = engine.inputs
    return [value[0] for value in engine.run({name: image[None]}).values()]


def _energies(
    a: np.ndarray, b: np.ndarray, first: str, second: str
) -> tuple[float, float, float, float, tuple[np.ndarray | None, np.ndarray | None]]:
    """Signal, noise, largest difference and magnitude of one output; the scores too, where they are those of classes.

    Raises:
        DeployError: the shapes differ, or one is not finite where the other is.
    """
    if a.shape != b.shape:
        way = "compare files of networks with the same classes and the same size of images"
        if a.ndim == 2:  # boxes
            way += ", without suppression of boxes in the graph"
        raise DeployError(f"{first} gives {list(a.shape)} and {second} {list(b.shape)} for one image; {way}.")
    if not np.array_equal(np.isfinite(a), np.isfinite(b)):
        raise DeployError(
            f"One of {first} and {second} gives NaN or infinity where the other does not; correct that one."
        )
    finite = np.isfinite(a)
    x, y = a.astype(np.float64)[finite], b.astype(np.float64)[finite]
    difference = y - x
    scored = a.dtype.kind == "f" and a.ndim in (1, 3) and a.shape[0] > 1
    return (
        float((x**2).sum()),
        float((difference**2).sum()),
        float(np.abs(difference).max(initial=0.0)),
        float(np.abs(x).max(initial=0.0)),
        (a, b) if scored else (None, None),
    )


def _decibels(signal: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Signal to noise; at most 200, which is beyond what float32 resolves."""
    floor = np.maximum(signal * 10 ** (-_EQUAL_DB / 10), 1e-300)
    return 10 * np.log10(np.maximum(signal, 1e-300) / np.maximum(noise, floor))


def _parting(file: str, a: np.ndarray, b: np.ndarray, classes: Sequence[str]) -> Parting:
    def named(index: int) -> str:
        return classes[index] if index < len(classes) else str(index)

    def lead(scores: np.ndarray) -> float:
        two = np.sort(scores.astype(np.float64))[-2:]
        return float(two[1] - two[0])

    return Parting(
        file=file,
        first=named(int(a.argmax())),
        second=named(int(b.argmax())),
        first_lead=lead(a),
        second_lead=lead(b),
    )
