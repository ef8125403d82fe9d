"""Recipes of data: one class for each ``kind``, validated and frozen."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(gt=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]
Label = Annotated[int, Field(ge=0, le=65_535)]
Names = Annotated[tuple[Text, ...], Field(min_length=1)]


class Part(BaseModel):
    """A part of a recipe: frozen, without keys that nobody reads and without numbers that are not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class RenderedDigits(Part):
    """Digits drawn from fonts and warped."""

    kind: Literal["rendered_digits"]
    images: Annotated[int, Field(ge=100, le=1_000_000)] = 4000


class HandwrittenDigits(Part):
    """scikit-learn's digits; what neither split takes is the test."""

    kind: Literal["handwritten_digits"]
    train_per_class: Annotated[int, Field(ge=1, le=100)] = 20
    val_per_class: Annotated[int, Field(ge=1, le=50)] = 20
    unlabelled: Annotated[int, Field(ge=0, le=1_000)] = 0


class FolderData(Part):
    """An ImageFolder tree. ``val`` and ``test`` are folders, or shares of the training images that are held out.

    A folder that is missing is looked for under the other usual names (``compress.data.layout``).
    ``unlabelled`` is a folder of images, at any depth, whose classes nobody knows.
    """

    kind: Literal["folder"]
    path: str
    train: str = "train"
    val: str | Share = 0.2
    test: str | Share = "test"
    unlabelled: Text | None = None
    unreadable: Annotated[int, Field(ge=0)] = 0


class CsvData(Part):
    """A CSV file a split, with a column of image paths (relative to the file) and one of class names."""

    kind: Literal["csv"]
    path: str = "."
    train: str = "train.csv"
    val: str | Share = 0.2
    test: str = "test.csv"
    image_column: Text = "path"
    label_column: Text = "label"
    unreadable: Annotated[int, Field(ge=0)] = 0


class VocData(Part):
    """Boxes in one VOC XML file an image; a list of names a split, in ``lists``."""

    kind: Literal["voc"]
    path: str
    annotations: str = "Annotations"
    images: str = "JPEGImages"
    lists: str | None = None
    train: str = "train"
    val: str | Share = "val"
    test: str = "test"
    classes: Names | None = None
    unreadable: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _classes_once(self) -> VocData:
        _once(self.classes)
        return self


class CocoSplit(Part):
    """A folder of images and the JSON file that says what is in them."""

    images: str
    annotations: str


class CocoData(Part):
    """Boxes in one COCO JSON file a split."""

    kind: Literal["coco"]
    path: str = "."
    train: CocoSplit
    val: CocoSplit | Share
    test: CocoSplit
    unreadable: Annotated[int, Field(ge=0)] = 0


class MaskSplit(Part):
    """A folder of images and one of masks with the same stems."""

    images: str
    masks: str


class MasksData(Part):
    """A mask of labels an image; ``classes`` are names, or a text file with one name a line.

    ``ids`` says which label in the files is which class, several may be one; without it a label is the class's index.
    ``ignore`` are labels that are not learned; ``ignore_index`` is one more.
    """

    kind: Literal["masks"]
    path: str = "."
    train: MaskSplit
    val: MaskSplit | Share
    test: MaskSplit
    classes: Names | Text | None = None
    ids: Annotated[dict[Label, Text], Field(min_length=1)] | None = None
    ignore: Label | tuple[Label, ...] = ()
    ignore_index: Label = 255
    unreadable: Annotated[int, Field(ge=0)] = 0

    @property
    def ignored(self) -> tuple[int, ...]:
        """All labels that are not learned."""
        more = (self.ignore,) if isinstance(self.ignore, int) else self.ignore
        return (*more, self.ignore_index)

    @model_validator(mode="after")
    def _classes_once(self) -> MasksData:
        _once(None if isinstance(self.classes, str) else self.classes)
        if self.classes is None and self.ids is None:
            raise ValueError("give classes, or ids with the name of each label")
        if both := sorted({*(self.ids or {})} & {*self.ignored}):
            raise ValueError(f"ids names label {both[0]}, which is also ignored; remove it from one of the two")
        return self


class YoloData(Part):
    """Boxes in one text file an image, as YOLO has them; ``path`` is a ``data.yaml`` or the folder that holds one.

    ``train``, ``val`` and ``test`` are folders of images, or lists of them, in the place of the file's.
    """

    kind: Literal["yolo"]
    path: str
    train: Text | None = None
    val: Text | Share | None = None
    test: Text | Share | None = None
    classes: Names | None = None
    unreadable: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _classes_once(self) -> YoloData:
        _once(self.classes)
        return self


class FunctionData(Part):
    """Whatever ``module:function`` gives for ``arguments``: see ``compress.data.formats.function``."""

    kind: Literal["function"]
    function: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
    arguments: dict[str, Any] = {}
    classes: Names | None = None
    unreadable: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _classes_once(self) -> FunctionData:
        _once(self.classes)
        return self


def _once(classes: tuple[str, ...] | None) -> None:
    if classes and len(set(classes)) != len(classes):
        raise ValueError("classes names something twice")


# One kind a class; KINDS below are their tags.
DataRecipe = Annotated[
    RenderedDigits
    | HandwrittenDigits
    | FolderData
    | CsvData
    | VocData
    | CocoData
    | YoloData
    | MasksData
    | FunctionData,
    Field(discriminator="kind"),
]
KINDS = {
    "rendered_digits",
    "handwritten_digits",
    "folder",
    "csv",
    "voc",
    "coco",
    "yolo",
    "masks",
    "function",
}
"""What ``kind`` may be."""
