"""Two domains of digits that need no download: rendered from fonts (source), handwritten (target)."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from compress.data.augment import warp
from compress.data.images import ImageData, ImageReader, Split
from compress.data.seeds import hash_seed
from compress.errors import DataError
from compress.recipe.data import HandwrittenDigits, RenderedDigits

CLASSES = tuple(str(d) for d in range(10))
CANVAS = 64
LEAST_TESTED = 100


class PixelImages:
    """Grey images held as a uint8 array (N, H, W)."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])


def rendered_digits(recipe: RenderedDigits, reader: ImageReader, seed: int) -> ImageData:
    """Draw digits from the fonts that matplotlib ships, warp them, ink them unevenly and scan them at 8x8."""
    validation = max(200, recipe.images // 10)
    return ImageData(
        CLASSES,
        {
            "train": _rendered_split(recipe.images, reader, hash_seed(seed, 1)),
            "val": _rendered_split(validation, reader, hash_seed(seed, 2)),
        },
    )


def _rendered_split(count: int, reader: ImageReader, seed: int) -> Split:
    generator = torch.Generator().manual_seed(seed)
    glyphs = _glyphs()
    labels = torch.arange(count) % 10
    faces = torch.randint(glyphs.shape[1], (count,), generator=generator)
    parts = []
    for start in range(0, count, 1000):
        chosen = glyphs[labels[start : start + 1000], faces[start : start + 1000]][:, None]
        parts.append(_scan(chosen, generator))
    return Split(PixelImages(torch.cat(parts).numpy()), labels, reader)


def _scan(glyphs: Tensor, generator: torch.Generator) -> Tensor:
    """Warp (N, 1, 64, 64) glyphs and sample them at 8x8 in 17 grey levels, like scikit-learn's digits."""
    n = len(glyphs)
    drawn = warp(glyphs, generator, turn=0.22, scale=0.12, shear=0.3, shift=0.12)
    # A smooth random displacement bends the strokes.
    coarse = 0.16 * (2 * torch.rand(n, 2, 4, 4, generator=generator) - 1)
    bend = F.interpolate(coarse, size=(CANVAS, CANVAS), mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
    identity = torch.eye(2, 3).expand(n, 2, 3)
    grid = F.affine_grid(identity, [n, 1, CANVAS, CANVAS], align_corners=False) + bend
    drawn = F.grid_sample(drawn, grid, align_corners=False)
    ink = 1.0 + 1.2 * torch.rand(n, 1, 1, 1, generator=generator)
    small = F.avg_pool2d(drawn, CANVAS // 8) * ink + 0.02 * torch.randn(n, 1, 8, 8, generator=generator)
    levels = (small.clamp(0, 1) * 16).round() * (255 / 16)
    return levels.round().to(torch.uint8)[:, 0]


@lru_cache(maxsize=1)
def _glyphs() -> Tensor:
    """White digits on black, float32 of shape (10, faces, 64, 64)."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    faces = sorted(p for p in folder.glob("*.ttf") if p.stem.startswith(("DejaVu", "STIXGeneral", "cm")))
    faces = [p for p in faces if "Display" not in p.stem and p.stem not in {"cmsy10", "cmex10", "cmmi10"}]
    if not faces:
        raise DataError(f"matplotlib's fonts are missing from {folder}; reinstall matplotlib.")
    return torch.stack([torch.stack([_draw(digit, face) for face in faces]) for digit in CLASSES])


def _draw(digit: str, face: Path) -> Tensor:
    """Draw one glyph and stretch it over the canvas, as the handwritten ones fill theirs."""
    font = ImageFont.truetype(str(face), 4 * CANVAS)
    box = font.getbbox(digit)
    glyph = Image.new("L", (int(box[2] - box[0]), int(box[3] - box[1])))
    ImageDraw.Draw(glyph).text((-box[0], -box[1]), digit, fill=255, font=font)
    # Closer to the shape of the canvas than the font is, but a 1 stays slim.
    width = round((CANVAS * 0.72 * glyph.width / glyph.height * 1.5) ** 0.5 * (CANVAS * 0.72) ** 0.5)
    width = min(width, CANVAS - 16)
    canvas = Image.new("L", (CANVAS, CANVAS))
    canvas.paste(glyph.resize((width, CANVAS - 2)), ((CANVAS - width) // 2, 1))
    return torch.from_numpy(np.asarray(canvas, dtype=np.float32) / 255)


def handwritten_digits(recipe: HandwrittenDigits, reader: ImageReader, seed: int) -> ImageData:
    """Read scikit-learn's 1,797 handwritten digits; the splits are the same for every seed."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    pixels = np.rint(raw.images * (255 / 16)).astype(np.uint8)
    labels = raw.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(labels))
    taken: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for digit in range(10):
        own = [int(i) for i in order if labels[i] == digit]
        first, second = recipe.train_per_class, recipe.train_per_class + recipe.val_per_class
        taken["train"] += own[:first]
        taken["val"] += own[first:second]
        taken["test"] += own[second:]
    if recipe.unlabelled:
        # As they come, not so many of each class: nobody has looked at them.
        rest = set(taken["test"])
        left = [int(i) for i in order if int(i) in rest]
        if len(left) - recipe.unlabelled < LEAST_TESTED:
            raise DataError(
                f"target.unlabelled: {recipe.unlabelled} of the {len(left)} digits that are left for the test are too "
                f"many; ask for at most {len(left) - LEAST_TESTED}, or for fewer with labels."
            )
        taken["unlabelled"] = left[: recipe.unlabelled]
        rest -= set(taken["unlabelled"])
        taken["test"] = [i for i in taken["test"] if i in rest]
        labels = labels.copy()
        labels[taken["unlabelled"]] = -1
    return ImageData(
        CLASSES,
        {
            name: Split(PixelImages(pixels[index]), torch.from_numpy(labels[index]), reader)
            for name, index in taken.items()
        },
    )
