"""How long and by what a network is trained, as a recipe says it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from compress.recipe.data import Part

Rate = Annotated[float, Field(gt=0, le=100)]
Weight = Annotated[float, Field(ge=0, le=1e4)]
Epochs = Annotated[int, Field(ge=1, le=100_000)]
Augment = Literal[
    "none", "affine", "flip", "crop_flip", "crop_flip_colour", "trivial", "iou_crop_flip", "scale_crop_flip"
]


class TrainRecipe(Part):
    """One stage of training, by epochs or by training FLOPs."""

    epochs: Epochs | None = None
    training_flops: Annotated[float, Field(gt=0, le=1e24)] | None = None
    batch_size: Annotated[int, Field(ge=2, le=65_536)] = 64
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: Rate = 0.05
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Weight = 5e-4
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    augment: Augment = "none"
    augment_variants: Annotated[int, Field(ge=1, le=10_000)] | None = None
    mixup: Annotated[float, Field(ge=0, le=100)] = 0.0
    cutmix: Annotated[float, Field(ge=0, le=100)] = 0.0
    backbone_lr: Annotated[float, Field(ge=0, le=1)] = 1.0
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    freeze_epochs: Annotated[int, Field(ge=0, le=100_000)] = 0
    batchnorm: Literal["live", "frozen", "adapted"] = "live"
    accumulate: Annotated[int, Field(ge=1, le=65_536)] = 1
    clip: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    patience: Annotated[int, Field(ge=1, le=100_000)] | None = None
    evaluations: Annotated[int, Field(ge=1, le=100_000)] = 12
    workers: Annotated[int, Field(ge=0, le=256)] = 0
    channels_last: bool = True
    compile: bool = False

    @model_validator(mode="after")
    def _one_budget(self) -> TrainRecipe:
        if (self.epochs is None) == (self.training_flops is None):
            raise ValueError("give exactly one of epochs and training_flops")
        return self
