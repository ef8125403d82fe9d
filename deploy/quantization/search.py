"""Search for the fastest int8 file: what is slower in int8 on this machine stays in fp32."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.bench.timing import benchmark
from deploy.engines import load_engine
from deploy.quantization.agreement import MIN_SNR_DB
from deploy.quantization.calibration import Calibrated
from deploy.quantization.int8 import KINDS, int8_from_fp32, operators

_TRIAL_IMAGES = 4  # calibration sets ranges, which change no time: a few images do
_MIN_GAIN = 0.98


@dataclass(frozen=True)
class Int8Choice:
    """The result of a search.

    Attributes:
        path: the int8 file.
        kept: the kinds of operators left in fp32, keys of ``deploy.quantization.int8.KINDS``.
        ratio: milliseconds of the int8 file over those of the fp32 file in interleaved rounds, by best times or by
            medians, the larger.
        tried: that ratio for every set of kinds that was tried.
        runtime: what they were timed by; another one may find int8 faster, so this is no advice on what to ship.
    """

    path: Path
    kept: tuple[str, ...]
    ratio: float
    tried: dict[tuple[str, ...], float]
    runtime: str = "onnxruntime"

    def __str__(self) -> str:
        kept = f"{' and '.join(self.kept)} kept in fp32" if self.kept else "everything in int8"
        slower = "" if self.ratio <= 1 else f"; int8 is no faster than fp32 by {self.runtime} here"
        return f"{kept}, {self.ratio:.2f} of the time of fp32{slower}"


def fastest_int8(
    src: Path,
    dst: Path,
    calibration: Iterable[Any],
    *,
    seed: int = 0,
    threads: int = 1,
    runtime: str = "onnxruntime",
    rounds: int = 15,
    held_out: Iterable[Any] = (),
    min_snr_db: float | None = MIN_SNR_DB,
    tell: Callable[[str], None] = lambda doing: None,
) -> Int8Choice:
    """Quantise ``src`` to ``dst``, leaving in fp32 the kinds of operators that are faster so on this machine.

    A greedy search from everything in int8: it keeps in fp32 the kind that gains most, one at a time, while that gains
    two per cent. Each set is timed against the fp32 file in turn, on the first row of the calibration.

    Args:
        src, dst, calibration, seed, held_out, min_snr_db: as for ``int8_from_fp32``.
        threads, runtime: how the file will be run.
        rounds: of each comparison.
        tell: called with what is being done, as it begins.

    Raises:
        DeployError, MissingDependency: as ``int8_from_fp32``.
    """
    src = Path(src)
    source = Calibrated.read(src, calibration, seed, "int8")
    present = [kind for kind in KINDS if operators(source.model, kind)]
    tried: dict[tuple[str, ...], float] = {}
    kept: tuple[str, ...] = ()
    trial = source.feeds[:_TRIAL_IMAGES]
    with tempfile.TemporaryDirectory() as folder:

        def attempt(sets: list[tuple[str, ...]]) -> None:
            with ExitStack() as stack:
                dense = stack.enter_context(load_engine(src, threads=threads, runtime=runtime))
                dense.name = "fp32"
                engines = [dense]
                for kinds in sets:
                    tell(f"try with {' and '.join(kinds) or 'nothing'} in fp32")
                    path = Path(folder) / f"{'-'.join(kinds) or 'none'}.onnx"
                    int8_from_fp32(src, path, trial, seed=seed, keep_fp32=kinds, min_snr_db=None)
                    engines.append(stack.enter_context(load_engine(path, threads=threads, runtime=runtime)))
                rows = benchmark(engines, trial[0], rounds=rounds, warmup=3, runs_per_block=2)
                tried.update((kinds, row.share or 1.0) for kinds, row in zip(sets, rows[1:], strict=True))

        attempt([(), *((kind,) for kind in present)])
        while True:
            more = [tuple(k for k in KINDS if k in (*kept, kind)) for kind in present if kind not in kept]
            attempt([kinds for kinds in more if kinds not in tried])
            best = min(more, key=lambda kinds: tried[kinds], default=kept)
            if best == kept or tried[best] > tried[kept] * _MIN_GAIN:
                break
            kept = best
    tell("calibrate the fastest")
    how: dict[str, Any] = {"held_out": held_out, "min_snr_db": min_snr_db}
    int8_from_fp32(src, dst, source.feeds, seed=seed, keep_fp32=kept, **how)
    return Int8Choice(Path(dst), kept, tried[kept], tried, runtime)
