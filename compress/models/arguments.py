"""What a recipe or a saved network may hand our factories and torchvision's: numbers within bounds.

No field takes a callable, a file or an address, and none lets a file of a few bytes ask for a network of any size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError

from compress.errors import ModelError

Width = Annotated[int, Field(ge=1, le=8192)]
Count = Annotated[int, Field(ge=1, le=100_000)]
Pixels = Annotated[int, Field(ge=16, le=8192)]
Share = Annotated[float, Field(ge=0, le=1)]
Channel = Annotated[float, Field(ge=-1e4, le=1e4)]
Channels = Annotated[list[Channel], Field(min_length=1, max_length=4)]
Bottlenecks = Annotated[
    tuple[
        Annotated[int, Field(ge=1, le=16)],
        Annotated[int, Field(ge=1, le=4096)],
        Annotated[int, Field(ge=1, le=64)],
        Annotated[int, Field(ge=1, le=4)],
    ],
    Strict(False),  # a list of JSON or YAML
]
"""Expansion, width, repeats and stride of one row of MobileNetV2's table."""


class Arguments(BaseModel):
    """Base of every schema: unknown names are refused, a truth value is no number, a number in quotes neither."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class CifarResNetArguments(Arguments):
    """Arguments of ``compress.models.cifar_resnet.cifar_resnet``."""

    depth: Annotated[int, Field(ge=8, le=1202)] = 20
    width: Annotated[int, Field(ge=1, le=1024)] = 16
    in_channels: Annotated[int, Field(ge=1, le=1024)] = 3
    shortcut: Literal["projection", "pad"] = "projection"


class LeNetArguments(Arguments):
    """Arguments of ``compress.models.lenet.lenet300`` and ``lenet5``."""

    in_channels: Annotated[int, Field(ge=1, le=1024)] = 1


class SsdliteArguments(Arguments):
    """Arguments of ``compress.models.mobilenet.mobilenet_v2_ssdlite``."""

    size: Annotated[list[Annotated[int, Field(ge=1, le=8192)]], Field(min_length=2, max_length=2)] = [320, 320]
    scales: Annotated[list[Annotated[float, Field(ge=-10, le=10)]], Field(max_length=16)] = []
    finest: Annotated[int, Field(ge=1, le=64)] = 16
    score_thresh: Share = 0.01
    nms_thresh: Share = 0.45
    detections_per_img: Count = 200


class LrasppArguments(Arguments):
    """Arguments of ``compress.models.mobilenet.mobilenet_v2_lraspp``."""

    inter_channels: Width = 128


class DeepLabArguments(Arguments):
    """Arguments of ``compress.models.mobilenet.mobilenet_v2_deeplabv3``."""

    channels: Width = 128
    rates: Annotated[list[Annotated[int, Field(ge=1, le=256)]], Field(min_length=1, max_length=8)] = [6, 12, 18]
    dropout: Share = 0.5


class TorchvisionArguments(Arguments):
    """What torchvision's builders take, all families together; a builder itself refuses what it does not know."""

    # any network
    dropout: Share = 0.0
    attention_dropout: Share = 0.0
    stochastic_depth_prob: Share = 0.0
    drop_rate: Share = 0.0
    init_weights: bool = False
    progress: bool = False
    transform_input: bool = False
    memory_efficient: bool = False
    zero_init_residual: bool = False
    aux_logits: bool = False
    aux_loss: bool | None = None
    # widths
    width_mult: Annotated[float, Field(gt=0, le=4)] = 1.0
    groups: Annotated[int, Field(ge=1, le=1024)] = 1
    width_per_group: Annotated[int, Field(ge=1, le=1024)] = 64
    growth_rate: Annotated[int, Field(ge=1, le=512)] = 32
    num_init_features: Annotated[int, Field(ge=1, le=1024)] = 64
    bn_size: Annotated[int, Field(ge=1, le=64)] = 4
    last_channel: Width | None = None
    representation_size: Width | None = None
    inverted_residual_setting: Annotated[list[Bottlenecks], Field(max_length=16)] | None = None
    replace_stride_with_dilation: Annotated[list[bool], Field(min_length=3, max_length=3)] | None = None
    image_size: Annotated[int, Field(ge=16, le=2048)] = 224
    # detectors and segmenters
    frozen_norms: bool = False
    trainable_backbone_layers: Annotated[int, Field(ge=0, le=6)] | None = None
    min_size: Pixels | Annotated[list[Pixels], Field(min_length=1, max_length=64)] = 800
    max_size: Pixels = 1333
    image_mean: Channels | None = None
    image_std: Channels | None = None
    num_keypoints: Annotated[int, Field(ge=1, le=1000)] | None = None
    score_thresh: Share = 0.05
    nms_thresh: Share = 0.5
    fg_iou_thresh: Share = 0.5
    bg_iou_thresh: Share = 0.4
    iou_thresh: Share = 0.5
    detections_per_img: Count = 100
    topk_candidates: Count = 1000
    positive_fraction: Share = 0.25
    center_sampling_radius: Annotated[float, Field(ge=0, le=100)] = 1.5
    rpn_pre_nms_top_n_train: Count = 2000
    rpn_pre_nms_top_n_test: Count = 1000
    rpn_post_nms_top_n_train: Count = 2000
    rpn_post_nms_top_n_test: Count = 1000
    rpn_nms_thresh: Share = 0.7
    rpn_fg_iou_thresh: Share = 0.7
    rpn_bg_iou_thresh: Share = 0.3
    rpn_batch_size_per_image: Count = 256
    rpn_positive_fraction: Share = 0.5
    rpn_score_thresh: Share = 0.0
    box_score_thresh: Share = 0.05
    box_nms_thresh: Share = 0.5
    box_detections_per_img: Count = 100
    box_fg_iou_thresh: Share = 0.5
    box_bg_iou_thresh: Share = 0.5
    box_batch_size_per_image: Count = 512
    box_positive_fraction: Share = 0.25


def checked(schema: type[Arguments], arguments: Mapping[str, Any], factory: str) -> dict[str, Any]:
    """Return the arguments that are given, each held against the schema.

    Args:
        schema: names, types and bounds.
        arguments: what a recipe or a saved network says.
        factory: what to call the factory in an error.

    Raises:
        ModelError: an argument is unknown, of another type or out of bounds.
    """
    # Tuples are as good as lists here; JSON and YAML have lists alone.
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in arguments.items()}
    try:
        return schema.model_validate(plain).model_dump(exclude_unset=True)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
    name, given = str(fault["loc"][0])[:80], _shown(fault["input"])
    if fault["type"] == "extra_forbidden":
        raise ModelError(
            f"The factory '{factory}' refuses the argument '{name}', which no recipe and no saved network may give; "
            "leave it out, or name a factory of your own as module:function."
        )
    said = f"{fault['msg'][:1].lower()}{fault['msg'][1:]}"
    raise ModelError(f"The factory '{factory}' refuses {name} = {given}: {said}; change that argument.")


def _shown(value: object) -> str:
    """A value as an error shows it; Python refuses to write a number of thousands of digits."""
    try:
        return repr(value)[:80]
    except ValueError:
        return "a number of thousands of digits"
