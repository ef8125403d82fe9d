"""Refuse calibrations from which no range can be taken, and those of which nobody can tell whether they fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from deploy.errors import DeployError
from deploy.onnx.metadata import Metadata
from deploy.quantization.calibration import Calibrated
from deploy.quantization.feeds import Feed

if TYPE_CHECKING:
    import onnx

MIN_IMAGES = 4
"""Fewer, with none held out, agree with themselves whatever their ranges are worth for others."""
_COLOURS = (1, 3, 4)
_PIXELS = (20.0, 255.5)  # between them lies the brightest of pixels that nothing scaled; scaled ones stay below
_SCALING = ("Sub", "Add", "Mul", "Div", "BatchNormalization", "InstanceNormalization", "LayerNormalization", "Cast")
_PASSING = ("Transpose", "Reshape", "Slice", "Resize", "Pad", "Identity", "Clip", "Gather", "Concat", "Split")


def check_sufficing(source: Calibrated, held_out: Sequence[Feed], least: float | None) -> None:
    """Hold a calibration for int8 against what can be known of it.

    Args:
        source: the file and its calibration.
        held_out: feeds that no range is taken from.
        least: the floor that int8 is held to; None refuses nothing here either.

    Raises:
        DeployError: every image is of one colour, or nothing is held out and the images are fewer than ``MIN_IMAGES``
            or look like pixels of 0 to 255 where neither the file nor its first operators say that it reads such.
    """
    if least is None:
        return
    pictures = [
        (name, [feed[name] for feed in source.feeds])
        for name, first in source.feeds[0].items()
        if first.ndim == 4 and first.dtype.kind == "f" and first[0, 0].size > 1
    ]
    if pictures and all((one == one[..., :1, :1]).all() for _, images in pictures for one in images):
        raise DeployError(
            f"Every image of the calibration of {source.path} ({len(source.feeds)}) is of one colour, from which no "
            "range can be taken; give images such as the network will see, or pass min_snr_db=None."
        )
    if held_out:
        return
    if len(source.feeds) < MIN_IMAGES:
        raise DeployError(
            f"The calibration of {source.path} holds {len(source.feeds)} image(s), whose ranges say nothing of others; "
            f"give {MIN_IMAGES} or more, better a hundred, or held_out ones to try them on, or pass min_snr_db=None."
        )
    if Metadata.from_file(source.path).preprocessing is not None:
        return  # against which the calibration was held
    for name, images in pictures:
        if images[0].shape[1] in _COLOURS and _unscaled(images) and not _scales(source.model.graph, name):
            high = max(float(one.max()) for one in images)
            raise DeployError(
                f"The calibration of {source.path} lies between 0 and {high:.0f}, as pixels do that nothing scaled, "
                "and the file does not say that it reads such; prepare them as the network sees them, or give held_out "
                "images that are so prepared, or pass min_snr_db=None."
            )


def _unscaled(images: Sequence[np.ndarray]) -> bool:
    low, high = min(float(one.min()) for one in images), max(float(one.max()) for one in images)
    return low >= 0 and _PIXELS[0] < high <= _PIXELS[1]


def _scales(graph: onnx.GraphProto, name: str) -> bool:
    """Tell whether what reads an input first scales it, as a network does that takes raw pixels."""
    same = {name}
    for node in graph.node:
        if not same & set(node.input):
            continue
        if node.op_type in _SCALING:
            return True
        if node.op_type in _PASSING:
            same |= set(node.output)
    return False
