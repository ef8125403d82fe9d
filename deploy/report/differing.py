"""Show the test images on which student and teacher differ most, as small pictures in the page itself."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from deploy.errors import DeployError
from deploy.files import read_bytes
from deploy.processing.pixels import load
from deploy.report import units
from deploy.report.markup import Markup, fill, join, part, section, small
from deploy.report.view import Facts, Results, mapping, rows

FOLDER = "differing"
_SHOWN, _SIDE, _QUALITY = 8, 96, 85
_MOST_BYTES = 1 << 17
_MOST_OF_RUNS = 120  # pictures on a page of several runs
_TITLE = "Where student and teacher differ"


def read_pictures(run_dir: Path, ledger: Facts) -> dict[int, str]:
    """Return the pictures of a run as JPEG in data URIs, by place; what cannot be read or is another is left out.

    Args:
        run_dir: the folder of the run, which holds ``differing/0.png`` and so on.
        ledger: says by its SHA-256 which picture belongs to which image.
    """
    found = {}
    for place, image in enumerate(_noted(ledger)):
        path = Path(run_dir, FOLDER, f"{place}.png")
        try:
            data = read_bytes(path, limit=_MOST_BYTES, follow=False)
            # By the hash it is the picture of this image, and of no other run.
            if hashlib.sha256(data).hexdigest() == image.get("picture"):
                found[place] = _uri(load(path))
        except (OSError, DeployError):
            continue  # the page says of how many images the picture cannot be read
    return found


def _uri(image: Image.Image) -> str:
    """Return an image as JPEG of at most 96 x 96 pixels; a tiny one is enlarged by a whole number."""
    image = image if image.mode == "L" else image.convert("RGB")
    image.thumbnail((_SIDE, _SIDE))
    if (times := _SIDE // max(image.size)) > 1:
        image = image.resize((times * image.width, times * image.height), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def render_differing(results: Results) -> Markup:
    """Render each image with its true class and both answers; nothing where the run noted none."""
    found = _said(results, _SHOWN)
    return section(_TITLE, *found) if found else Markup()


def render_differing_of_runs(runs: Sequence[tuple[str, Results]]) -> Markup:
    """Render the first of each run's images, under the run's name; nothing where no run noted any."""
    # Many runs show fewer images each: a page stays under 2 MB.
    most = max(1, min(_SHOWN // 2, _MOST_OF_RUNS // max(1, len(runs))))
    parts = [part(name, *said) for name, results in runs[:_MOST_OF_RUNS] if (said := _said(results, most))]
    return section(_TITLE, "", *parts) if parts else Markup()


def _said(results: Results, most: int) -> tuple[str, Markup] | None:
    """Return a sentence on the images that differ, and at most so many of them; None where the run noted none."""
    differing = mapping(results.ledger.get("differing"))
    total = units.number(differing.get("total"))
    if total is None or total < 0:
        return None
    images, tested = _noted(results.ledger)[:most], results.test_images()
    of = f" of the {tested:,} test images" if tested else " test images"
    if not total:
        return f"They give the same answer to all{of}.", Markup()
    lead = f"They answer {total:,.0f}{of} differently, as networks, before they are lowered."
    if images:
        lead += (
            f" {'These' if len(images) == total else f'The {len(images)} shown'} are ordered by how much less probable "
            "the student finds the teacher's answer. ✓ is right, ✗ is wrong."
        )
    if gone := len(images) - len([place for place in range(len(images)) if place in results.pictures]):
        lead += (
            f" The picture{'' if gone == 1 else 's'} of {gone} of them cannot be read from the run's folder "
            f"{FOLDER}/, or {'is' if gone == 1 else 'are'} not what the run wrote there."
        )
    lines = [_image(image, results.pictures.get(place)) for place, image in enumerate(images)]
    return lead, fill('<ul class="differing">{lines}</ul>', lines=join(lines)) if lines else Markup()


def _noted(ledger: Facts) -> list[Facts]:
    return rows(mapping(ledger.get("differing")).get("images"))[:_SHOWN]


def _image(image: Facts, uri: str | None) -> Markup:
    label, index = image.get("label"), units.number(image.get("index"))
    name = image.get("file") or (f"test image {units.NONE if index is None else f'{index:,.0f}'}")
    answers = [(who, image.get(who), units.percent(image.get(f"{who}_probability"))) for who in ("teacher", "student")]
    said = f"{name}: {label}; " + ", ".join(f"{who} says {answer} at {share}" for who, answer, share in answers)
    picture = (
        fill('<span class="gone" aria-hidden="true">no picture</span>')
        if uri is None
        else fill('<img src="{uri}" alt="{said}" width="96" height="96">', uri=uri, said=said)
    )
    lines = [
        fill(
            "<span>{who}: <b>{answer}</b> {mark}{space}{share}</span>",
            who=who,
            answer=answer,
            mark="✓" if answer == label else "✗",
            space=units.SPACE,
            share=share,
        )
        for who, answer, share in answers
    ]
    return fill(
        "<li>{picture}<div><span>true class: <b>{label}</b></span>{lines}{name}</div></li>",
        picture=picture,
        label=label,
        lines=join(lines),
        name=small(name),
    )
