"""Read an fp32 file and the images it is calibrated with, which every other precision is made from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from deploy.engines.base import TensorSpec
from deploy.errors import DeployError
from deploy.files import sha256
from deploy.onnx.file import PRECISION, SOURCE, properties, read, write
from deploy.onnx.metadata import Metadata
from deploy.onnx.precision import LOW, QUANTISED, precision_in
from deploy.quantization.converting import raised, without_defaults
from deploy.quantization.feeds import Feed, feeds_of, inputs_of

if TYPE_CHECKING:
    import onnx

_SLACK = 0.05  # of the range: resizing with a cubic kernel may overshoot
_INT8_OPSET = 13  # from here on quantisers have an axis, as int8 weights need
_NOTHING: Mapping[str, str] = MappingProxyType({})
KEPT = "niwaki.kept_fp32"
"""The property of a file that names the nodes left in fp32, separated by commas."""


@dataclass(frozen=True)
class Calibrated:
    """An fp32 file, its ``inputs``, and at most ``feeds.MAX_IMAGES`` feeds of them, each of one row (1, ...)."""

    path: Path
    model: onnx.ModelProto
    feeds: list[Feed]
    inputs: dict[str, TensorSpec]

    @classmethod
    def read(cls, src: Path, calibration: Iterable[Any], seed: int, precision: str) -> Calibrated:
        """Read ``src``, from which ``precision`` will be made, and check that the arrays fit it.

        Args:
            calibration: what ``deploy.quantization.feeds.feeds_of`` takes.
            seed: of the draw where there are more than ``feeds.MAX_IMAGES`` rows.

        Raises:
            DeployError: ``src`` is not an fp32 ONNX file with inputs, or the calibration does not fit it.
        """
        src = Path(src)
        model = read_fp32(src, precision)
        inputs = inputs_of(model)
        if not inputs:
            raise DeployError(f"{src} has 0 inputs, so nothing can calibrate it; export a model that reads something.")
        if precision == "int8":
            model = raised(model, src, _INT8_OPSET)
        feeds = feeds_of(calibration, inputs, seed)
        _check_range(src, feeds, inputs)
        return cls(src, model, feeds, inputs)

    def others(self, held_out: Iterable[Any], seed: int) -> list[Feed]:
        """Return the feeds of ``held_out``, checked as the calibration is; none where it is empty."""
        if isinstance(held_out, Sized) and not len(held_out):
            return []
        feeds = feeds_of(held_out, self.inputs, seed)
        _check_range(self.path, feeds, self.inputs)
        return feeds

    def write(
        self,
        model: onnx.ModelProto,
        dst: Path,
        precision: str,
        kept: Sequence[str],
        stated: Mapping[str, str] = _NOTHING,
    ) -> Path:
        """Write ``model``, made from this file, with the file's own metadata, its hash and what is ``stated``."""
        props = {**properties(self.model), PRECISION: precision, SOURCE: sha256(self.path), **stated}
        if kept:
            props[KEPT] = ",".join(kept)
        return write(model, Path(dst), props)


def read_fp32(src: Path, precision: str) -> onnx.ModelProto:
    """Read the fp32 model at ``src``, from which ``precision`` will be made.

    Raises:
        DeployError: it is missing, is not ONNX, or is not fp32, whatever its name says: it holds quantised operators
            or constants of half precision.
    """
    model = read(Path(src))
    stated = properties(model).get(PRECISION, "fp32")
    if stated != "fp32":
        raise DeployError(f"{src} is {stated}; make the {precision} file from the fp32 one.")
    found = precision_in(Path(src))
    if found == "int8":
        many = sum(node.op_type in QUANTISED or node.op_type.startswith("QLinear") for node in model.graph.node)
        where = f"{many} of its {len(model.graph.node)} nodes" if many else "nodes in a branch or a function"
        raise DeployError(
            f"{src} is quantised already ({where} quantise or compute in int8); use it as it is, or make the "
            f"{precision} file from the fp32 one."
        )
    if found in LOW.values():
        raise DeployError(f"{src} is {found}; make the {precision} file from the fp32 one.")
    return without_defaults(model)


def _check_range(src: Path, feeds: Sequence[Feed], inputs: Mapping[str, TensorSpec]) -> None:
    """Refuse images that the preprocessing which the file states cannot have made, such as pixels of 0 to 255.

    Of several inputs the preprocessing is that of the only one with its channels, where there is only one.
    """
    prepared = Metadata.from_file(src).preprocessing
    shapes = {name: feeds[0][name].shape for name in inputs}
    found = [name for name, shape in shapes.items() if len(shape) == 4 and prepared and shape[1] == prepared.shape[0]]
    pictures = list(inputs) if len(inputs) == 1 else found
    if prepared is None or len(pictures) != 1:
        return
    images = [feed[pictures[0]] for feed in feeds]
    ends = [(end - mean) / std for mean, std in zip(prepared.mean, prepared.std, strict=True) for end in (0.0, 1.0)]
    low, high = min(float(one.min()) for one in images), max(float(one.max()) for one in images)
    slack = _SLACK * (max(ends) - min(ends))
    if low < min(ends) - slack or high > max(ends) + slack:
        raise DeployError(
            f"The calibration lies between {low:.3g} and {high:.3g}, but {src} states a preprocessing that gives "
            f"{min(ends):.3g} to {max(ends):.3g}; prepare its images so."
        )
