"""What ``niwaki init`` writes: a commented recipe that fits a folder of data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import MappingProxyType

from PIL import Image

from compress.data.files import DAMAGED, FORMATS, is_image
from compress.data.layout import NAMES, named
from compress.errors import DataError

_LOOKED_AT = 2000
"""Images that are counted, and a fiftieth of which are opened: enough to choose a batch and a size by."""

_TEXT_KEYS = ("images", "annotations", "categories")


@dataclass(frozen=True)
class Found:
    """What a folder holds.

    Args:
        task: classification, detection or segmentation.
        target: the lines of the recipe's target, below ``kind``.
        kind: of the target.
        images: how many there are, at most 2000.
        side: the median of the images' shorter sides.
        said: what was found, one sentence.
    """

    task: str
    kind: str
    target: tuple[str, ...]
    images: int
    side: int
    said: str
    more: Mapping[str, str] = field(default_factory=dict)


def look(folder: Path) -> Found:
    """Find out what a folder holds: class folders, YOLO's, Pascal VOC's or COCO's boxes, or masks.

    Raises:
        DataError: it is no folder, or holds none of these.
    """
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}; name one with images.")
    for seen in (_yolo, _voc, _coco, _masks, _classes):
        found = seen(folder)
        if found is not None:
            return found
    raise DataError(
        f"{folder} holds no data set that is known: give a folder for each class (in train and test, or alone), a "
        "data.yaml of YOLO, Annotations and JPEGImages, a COCO JSON file, or images and masks of the same stems."
    )


def recipe_for(folder: Path, found: Found, name: str, weights: str | None = "DEFAULT") -> str:
    """Write the recipe as YAML with comments.

    Args:
        folder: the data.
        found: what ``look`` found in it.
        name: of the run.
        weights: what training starts from; None for nothing.
    """
    part = _PARTS[found.task]
    side = _size(found)
    size = f"[{side}, {side}]"
    batch = 16 if found.task != "classification" else 32 if found.images >= 200 else 16
    epochs = 12 if found.images >= 1000 else 24
    text = _TEMPLATE.format(
        said=found.said,
        name=name,
        factory=part["factory"],
        arguments=part["arguments"].format(size=size),
        weights="null # nothing; training starts from random weights" if weights is None else weights,
        kind=found.kind,
        path=json.dumps(str(folder)),
        target="".join(f"  {line}\n" for line in found.target),
        size=size,
        resize=part["resize"],
        batch=batch,
        epochs=epochs,
        distil=80 if found.task == "classification" and found.images < 1000 else 2 * epochs,
        augment=part["augment"],
        distilling="".join(f"  {line}\n" for line in part["distill"].splitlines()),
    )
    return text if weights is not None else text.replace("backbone_lr: 0.1", "backbone_lr: 1.0")


def _size(found: Found) -> int:
    """Height and width of the inputs: not larger than the images, in steps that every network halves."""
    most = {"classification": 224, "segmentation": 256, "detection": 320}[found.task]
    return max(32, min(most, found.side // 32 * 32))


_PARTS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "classification": {
            "factory": "torchvision:mobilenet_v2 # any classifier of torchvision, such as torchvision:resnet50",
            "arguments": "",
            "resize": "shorter_side_center_crop",
            "augment": "crop_flip",
            # Labels of few images are learnt by heart; the teacher's answers to the same images are not.
            "distill": "labels: 0.0 # from the teacher alone\nlogits: 1.0\nclass_means: 1.0\nreuse_classifier: true\n"
            "freeze_classifier: false # it begins as the repair solved it, and learns",
        },
        "detection": {
            "factory": "niwaki:mobilenet_v2_ssdlite",
            "arguments": "  arguments: {{size: {size}}}\n",
            "resize": "stretch",
            "augment": "iou_crop_flip",
            "distill": "head_classes: 1.0 # the teacher's raw outputs\nhead_boxes: 1.0",
        },
        "segmentation": {
            "factory": "niwaki:mobilenet_v2_lraspp",
            "arguments": "",
            "resize": "stretch",
            "augment": "scale_crop_flip",
            "distill": "pixels: 1.0 # the teacher's answer for each pixel",
        },
    }
)

_TEMPLATE = """\
# {said}
# Check it and run it: niwaki run THIS_FILE. All keys: niwaki docs recipes.
name: {name}
seed: 0
model:
  factory: {factory}
{arguments}  weights: {weights}
target:
  kind: {kind}
  path: {path}
{target}preprocessing:
  size: {size} # height and width; smaller is faster
  resize: {resize}
transfer: # the teacher; null if model.weights are already trained for these classes
  epochs: {epochs}
  batch_size: {batch}
  optimizer: adamw
  lr: 0.001
  backbone_lr: 0.1 # of lr: pretrained layers learn more slowly
  weight_decay: 0.01
  augment: {augment}
twin: false # true also trains the same network without the weights, for comparison
prune:
  criterion: kfac # niwaki criteria lists them
  reconstruct: true # what is left is solved again on a few images
  budget: {{macs: 0.5}} # the share of multiply-accumulates that may stay
  scope: global
  round_to: 16 # widths that suit int8 kernels
distill: # the small network learns from the teacher
  epochs: {distil}
  batch_size: {batch}
  optimizer: adamw
  lr: 0.0005
  weight_decay: 0.01
  augment: {augment}
{distilling}  compare: [] # [finetuned, scratch] also trains it without a teacher, and from scratch
deploy:
  precisions: [fp32, fp16, int8]
  rtx_targets: [] # such as [sm86] where TensorRT-RTX is installed
  ship: auto
"""


def _classes(folder: Path) -> Found | None:
    """Class folders in the folders of the splits, or alone."""
    train = named(folder, "train")
    root = train or folder
    classes = [one for one in _folders(root) if any(is_image(path) for path in islice(one.rglob("*"), _LOOKED_AT))]
    if len(classes) == 1 and any(is_image(path) for path in classes[0].iterdir()):
        raise DataError(f"{root} has one class alone, {classes[0].name}; a classifier tells at least two apart.")
    if len(classes) < 2:
        return None
    places = {split: named(folder, split) if train else None for split in ("val", "test")}
    target = [f"train: {train.name}" if train else "train: train # absent: the class folders are the training images"]
    if places["val"] is not None and places["test"] is not None:
        target.append(f"val: {places['val'].name}")
    else:
        target.append("val: 0.2 # the share of the training images that is held out")
    tested = places["test"] or places["val"]
    target.append(f"test: {tested.name}" if tested else "test: 0.2 # a share too; a separate test folder is better")
    count, side = _measured(root)
    said = f"{count} training images of {len(classes)} classes: {', '.join(one.name for one in classes[:5])}"
    return Found("classification", "folder", tuple(target), count, side, f"{said}{' ...' if len(classes) > 5 else '.'}")


def _yolo(folder: Path) -> Found | None:
    if not any((folder / name).is_file() for name in ("data.yaml", "data.yml", "dataset.yaml")):
        return None
    count, side = _measured(folder)
    said = f"{count} images with YOLO's boxes."
    return Found("detection", "yolo", ("# train, val and test are those of its data.yaml",), count, side, said)


def _voc(folder: Path) -> Found | None:
    if not (folder / "Annotations").is_dir() or not (folder / "JPEGImages").is_dir():
        return None
    lists = next((one for one in (folder / "ImageSets/Main", folder / "ImageSets") if one.is_dir()), None)
    if lists is None:
        return None
    have = {path.stem for path in lists.glob("*.txt")}
    val = "val: val" if {"val", "test"} <= have else "val: 0.2 # the share of the training images that is held out"
    test = "test: test" if "test" in have else "test: val"
    count, side = _measured(folder / "JPEGImages")
    return Found("detection", "voc", ("train: train", val, test), count, side, f"{count} images with VOC's boxes.")


def _coco(folder: Path) -> Found | None:
    """JSON files that are COCO's, each with the folder of images that its name speaks of."""
    files: dict[str, Path] = {}
    for path in sorted([*folder.glob("*.json"), *folder.glob("*/*.json")]):
        head = path.read_bytes()[: 1 << 16].decode("utf-8", "replace") if path.is_file() else ""
        if not any(f'"{key}"' in head for key in _TEXT_KEYS):
            continue
        place = f"{path.parent.name}/{path.stem}".lower()
        split = next((name for name, usual in NAMES.items() if any(word in place for word in usual)), None)
        if split is not None:
            files.setdefault(split, path)
    if "train" not in files or len(files) < 2:
        return None
    parts = {
        name: f"{{images: {_images_of(folder, p, name)}, annotations: {p.relative_to(folder)}}}"
        for name, p in files.items()
    }
    target = [
        f"train: {parts['train']}",
        f"val: {parts['val']}" if len(files) == 3 else "val: 0.2 # the share of the training images that is held out",
        f"test: {parts.get('test') or parts['val']}",
    ]
    count, side = _measured(folder)
    return Found("detection", "coco", tuple(target), count, side, f"{count} images with COCO's boxes.")


def _images_of(folder: Path, file: Path, split: str) -> str:
    """The folder of images beside a JSON file: the file's own, or that of the split."""
    if any(is_image(path) for path in islice(file.parent.iterdir(), 200)):
        return str(file.parent.relative_to(folder))
    for one in _folders(folder):
        if any(one.name.lower().startswith(word) for word in NAMES[split]):
            return one.name
    return "images" if (folder / "images").is_dir() else "."


def _masks(folder: Path) -> Found | None:
    """Images and masks of the same stems in each split."""
    pairs = {}
    for split in NAMES:
        own = named(folder, split)
        if own and (own / "images").is_dir() and (own / "masks").is_dir():
            pairs[split] = f"{{images: {own.name}/images, masks: {own.name}/masks}}"
    if "train" not in pairs or len(pairs) < 2:
        return None
    labels = _labels(folder / pairs["train"].split("masks: ")[1].rstrip("}"))
    names = ", ".join(f"{label}: class_{label}" for label in labels if label != 255)
    target = (
        f"train: {pairs['train']}",
        f"val: {pairs['val']}" if len(pairs) == 3 else "val: 0.2 # the share of the training images that is held out",
        f"test: {pairs.get('test') or pairs['val']}",
        f"ids: {{{names}}} # put the name of each label here",
        "ignore_index: 255 # ignore: 0 leaves label 0 out too",
    )
    count, side = _measured(folder / "train" / "images") if (folder / "train").is_dir() else _measured(folder)
    return Found("segmentation", "masks", target, count, side, f"{count} images with masks of labels {labels}.")


def _labels(masks: Path) -> list[int]:
    """The labels in the first masks."""
    found: set[int] = set()
    for path in islice(sorted(p for p in masks.iterdir() if is_image(p)), 40):
        try:
            with Image.open(path, formats=FORMATS) as image:
                # A mask of grey values or of palette indices has few colours.
                colours = image.getcolors(1 << 16) if image.mode in ("1", "L", "P") else None
        except DAMAGED as error:
            raise DataError(f"The mask {path} is missing or damaged ({error}); replace the file.") from None
        if colours is None:
            raise DataError(
                f"The mask {path} has pixels of mode {image.mode}, not labels; save a greyscale or palette PNG."
            )
        found |= {value for _, value in colours if isinstance(value, int)}
    return sorted(found)


def _measured(folder: Path) -> tuple[int, int]:
    """How many images there are, and the median of the shorter sides of some of them."""
    images = list(islice((path for path in sorted(folder.rglob("*")) if is_image(path)), _LOOKED_AT))
    sides = []
    for path in images[:: max(1, len(images) // 40)]:
        try:
            with Image.open(path, formats=FORMATS) as image:
                sides.append(min(image.size))
        except DAMAGED:
            continue  # the run names it when it reads it
    if not sides:
        raise DataError(f"{folder} holds no image that can be opened; name a folder with images.")
    return len(images), sorted(sides)[len(sides) // 2]


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
