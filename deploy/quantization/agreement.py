"""Compare an int8 file with the fp32 file it was made from, on the images of the calibration and on others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deploy.engines import load_engine
from deploy.errors import DeployError
from deploy.onnx.wire import scan
from deploy.quantization.feeds import Feed

AGREEMENT, SNR = "niwaki.int8_agreement", "niwaki.int8_snr_db"
MIN_SNR_DB = 3.0
"""Below it the rounding is two thirds as large as what the network says, and no answer can be trusted."""
GOOD_SNR_DB = 20.0
"""From here on the rounding is a tenth of what the network says, or less."""
_MAX_GAP_DB = 10.0
MOST_IMAGES = 64
"""Images that an agreement is counted on, at most."""


def grade(snr_db: float) -> str:
    """Say in words what an int8 file of that signal to noise is."""
    if snr_db >= GOOD_SNR_DB:
        return "close to fp32"
    if snr_db >= 10.0:
        return f"far from fp32 (below {GOOD_SNR_DB:g} dB)"
    return "a poor copy of fp32 (below 10 dB)"


@dataclass(frozen=True)
class Agreement:
    """How much of an fp32 file's answers an int8 file gives.

    Attributes:
        agreement: the share of images, or of pixels, for which both name the same class, or, where an output is a
            single number, give the same sign; of several outputs the least.
        snr_db: signal to noise in decibels, the least of all outputs; 200 where both are equal.
    """

    agreement: float
    snr_db: float

    @classmethod
    def of(cls, fp32: Path, int8: Path, images: Sequence[np.ndarray | Feed]) -> Agreement:
        """Run both files on at most 64 of ``images``: arrays (1, C, H, W), or by the names of several inputs.

        Raises:
            DeployError: a file cannot be run.
        """
        with load_engine(fp32) as dense, load_engine(int8) as rounded:
            name = next(iter(dense.inputs))
            rows = []
            for image in images[:MOST_IMAGES]:
                feed = {name: image} if isinstance(image, np.ndarray) else image
                want, found = dense.run(feed), rounded.run(feed)
                rows.append([_compare(want[key], found[key]) for key in want])
        totals = np.asarray(rows, np.float64).sum(axis=0)  # (outputs, same, places, signal, noise)
        same = totals[:, 0] / totals[:, 1]
        noise = np.maximum(totals[:, 3], np.maximum(totals[:, 2] * 1e-20, 1e-300))
        snr = 10 * np.log10(np.maximum(totals[:, 2], 1e-300) / noise)
        return cls(round(float(same.min()), 4), round(float(snr.min()), 1))

    @classmethod
    def read(cls, path: Path) -> Agreement | None:
        """Return what the int8 file at ``path`` states of itself; None where it states nothing.

        Raises:
            DeployError: the file is missing, is not ONNX or states what is no number.
        """
        stated = scan(Path(path)).properties
        if AGREEMENT not in stated or SNR not in stated:
            return None
        try:
            return cls(float(stated[AGREEMENT]), float(stated[SNR]))
        except ValueError as error:
            raise DeployError(f"{path} states {error} as its agreement; quantise it again.") from error

    def properties(self) -> Mapping[str, str]:
        """Return it as properties of an ONNX file."""
        return {AGREEMENT: str(self.agreement), SNR: str(self.snr_db)}

    def check(self, src: Path, what: str, least: float | None) -> None:
        """Refuse an int8 file that is further from fp32 than ``least`` decibels; None refuses nothing.

        Raises:
            DeployError: it is.
        """
        if least is not None and self.snr_db < least:
            raise DeployError(
                f"int8 of {src} agrees with fp32 on {100 * self.agreement:.0f} % of {what} at {self.snr_db:.1f} dB, "
                f"below {least:g}; calibrate on images prepared as the network sees them, keep layers in fp32, train "
                "for int8, or pass a lower min_snr_db."
            )

    def check_fit(self, src: Path, calibrated: Agreement) -> None:
        """Refuse ranges that held-out images, of which this is the agreement, find 10 dB worse than the calibration.

        Raises:
            DeployError: they do, as they do when pixels of 0 to 255 calibrate what reads normalised ones.
        """
        if calibrated.snr_db - self.snr_db > _MAX_GAP_DB:
            raise DeployError(
                f"int8 of {src} is at {calibrated.snr_db:.1f} dB on its calibration and at {self.snr_db:.1f} dB on "
                "held-out images; prepare both alike, or pass min_snr_db=None."
            )


def _compare(want: np.ndarray, found: np.ndarray) -> tuple[float, float, float, float]:
    """Return the places where both name one class, all places, and the energies of the answer and of the error."""
    exact, rounded = want.astype(np.float64), found.astype(np.float64)
    if want.dtype.kind != "f":
        same = want == found
    elif want.ndim > 1 and want.shape[1] > 1:
        same = want.argmax(1) == found.argmax(1)
    else:  # a single number chooses by its sign alone
        same = np.asarray((want > 0) == (found > 0))
    return float(same.sum()), float(same.size), float((exact**2).sum()), float(((rounded - exact) ** 2).sum())
