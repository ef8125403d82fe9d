"""Boxes in Pascal VOC's layout: an XML file for each image, a list of names for each split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

from compress.data.files import Unreadable, by_stem, existing, held_out
from compress.data.formats.boxes import LeftOut, Scene, with_boxes
from compress.data.images import ImageData, ImageReader
from compress.errors import DataError
from compress.files import LIST_BYTES, read_bytes
from compress.recipe.data import VocData


@dataclass(frozen=True)
class _Object:
    name: str
    box: tuple[float, float, float, float]
    difficult: bool


def voc_boxes(recipe: VocData, reader: ImageReader, seed: int) -> ImageData:
    """Read lists of names, ``ANNOTATIONS/NAME.xml`` and ``IMAGES/NAME.*``.

    VOC counts pixels from 1 and both ends of a box are inside it (Everingham et al., the PASCAL VOC challenge, 2010),
    so x1 and y1 are one less here. Objects marked difficult are left out of every split: VOC's own evaluation ignores
    them, here a detection of one counts as wrong.

    Raises:
        DataError: a list, an annotation or an image is missing or damaged, or a class is unknown.
    """
    root = Path(recipe.path)
    lists, annotations = _lists(root, recipe.lists), existing(root / recipe.annotations, "annotations")
    images = by_stem(existing(root / recipe.images, "images"))
    names = {"train": _listed(lists / f"{recipe.train}.txt"), "test": _listed(lists / f"{recipe.test}.txt")}
    if isinstance(recipe.val, str):
        names["val"] = _listed(lists / f"{recipe.val}.txt")
    else:
        train = names["train"]
        file = lists / f"{recipe.train}.txt"
        names["train"], names["val"] = held_out(train, [0] * len(train), [file], recipe.val)
    found = {
        split: [(name, *_parsed(annotations / f"{name}.xml")) for name in listed] for split, listed in names.items()
    }
    seen = {o.name for _, _, objects in found["train"] for o in objects}
    classes = recipe.classes or tuple(sorted(seen))
    index = {name: k for k, name in enumerate(classes)}
    left_out = LeftOut()
    scenes: dict[str, list[Scene]] = {}
    for split, rows in found.items():
        scenes[split] = []
        for name, size, objects in rows:
            where = str(annotations / f"{name}.xml")
            if unknown := next((o.name for o in objects if o.name not in index), None):
                raise DataError(
                    f"{where} has an object of the class '{unknown}', which is not one of {', '.join(classes)}; "
                    "correct it, or name all classes in the recipe."
                )
            left_out.difficult += sum(o.difficult for o in objects)
            plain = [o for o in objects if not o.difficult]
            path = images.get(name, root / recipe.images / f"{name}.jpg")
            scenes[split].append(Scene(path, where, size, [o.box for o in plain], [index[o.name] for o in plain]))
    return with_boxes(classes, scenes, reader, Unreadable(recipe.unreadable, root), left_out)


def _lists(root: Path, asked: str | None) -> Path:
    """The folder of the lists: the one asked for, or VOC's own, or the one above it."""
    if asked is None:
        asked = "ImageSets/Main" if (root / "ImageSets/Main").is_dir() else "ImageSets"
    return existing(root / asked, "path and lists")


def _listed(path: Path) -> list[str]:
    """The names in a list, each once, in its order."""
    try:
        lines = read_bytes(path, LIST_BYTES).decode().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The list {path} cannot be read ({error}); check lists and the splits.") from None
    names = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not names:
        raise DataError(f"The list {path} is empty; name the split's images in it, one per line.")
    return names


def _parsed(path: Path) -> tuple[tuple[int, int] | None, list[_Object]]:
    """Size and objects of one annotation."""
    try:
        raw = read_bytes(path)
        _refuse_doctype(raw, path)
        root = ElementTree.fromstring(raw)
        size = tuple(int(float(_text(root, f"size/{side}", "0"))) for side in ("width", "height"))
        objects = [_object(item) for item in root.iterfind("object")]
    except FileNotFoundError:
        raise DataError(f"There is no annotation {path}; add it, or remove its name from the list.") from None
    except (ElementTree.ParseError, expat.ExpatError, ValueError, OverflowError, LookupError, OSError) as error:
        raise DataError(f"{path} is not a VOC annotation ({error}); correct it.") from None
    return (size[0], size[1]) if min(size) > 0 else None, objects


def _refuse_doctype(raw: bytes, path: Path) -> None:
    """Refuse a document type: an annotation needs none, and it may declare entities that expand without end."""

    def refuse(*_: object) -> None:
        raise DataError(f"{path} declares a document type, which may hold entities; remove the DOCTYPE line.")

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.Parse(raw, True)


def _object(item: ElementTree.Element) -> _Object:
    x1, y1, x2, y2 = (float(_text(item, f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax"))
    # A box without area by its own numbers stays one, although both ends count.
    box = (x1, y1, x2, y2) if x1 >= x2 or y1 >= y2 else (x1 - 1, y1 - 1, x2, y2)
    return _Object(_text(item, "name"), box, _text(item, "difficult", "0") not in ("0", ""))


def _text(element: ElementTree.Element, path: str, default: str | None = None) -> str:
    text = element.findtext(path, default)
    if text is None:
        raise ValueError(f"no <{path}> in <{element.tag}>")
    return text.strip()
