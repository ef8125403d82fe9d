"""CONTRIBUTING's recipes: short, true to the tree, and followed with toys (a stage and a command: test_stages.py)."""

import re
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from compress import data, prune
from compress.data.images import ImageData, ImageReader, Split
from compress.prune.criteria import CRITERIA, Criterion
from compress.recipe.data import Part
from compress.recipe.schema import PruneRecipe

ROOT = Path(__file__).resolve().parents[1]
WANTED = (
    "an operator rule", "a criterion", "a file reader", "an engine", "a task", "a data format", "a stage",
    "a command",
)  # fmt: skip


def recipes():
    parts = re.split(r"^## ", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), flags=re.M)
    return {
        title.removeprefix("Add "): body
        for title, _, body in (part.partition("\n") for part in parts)
        if title.startswith("Add ")
    }


@pytest.mark.parametrize("what", WANTED)
def test_a_recipe_is_short_and_names_what_is_there(what):
    body = recipes()[what].strip()
    assert len(body.splitlines()) < 20
    named = re.findall(r"\]\(([^)#]+)\)", body)
    assert named and all((ROOT / path).exists() for path in named)


def test_a_criterion_is_added(monkeypatch):
    def widest(given):
        """The units of whatever was made last stay."""
        return torch.arange(given.trace.units, dtype=torch.float64)

    monkeypatch.setitem(CRITERIA, "last", Criterion(widest, "weights", "none: a toy", "none", "none"))
    assert PruneRecipe(criterion="last").criterion == "last"
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    example = torch.randn(2, 3, 8, 8)
    trace = prune.trace(net, example)
    plan = prune.plan(trace, prune.score(trace, net, "last"), ratio=0.5)
    assert plan.slots["0.weight:0"].kept == (4, 5, 6, 7)
    assert prune.check(net, plan, example).worst < 1e-8


def test_a_data_format_is_added(monkeypatch):
    class Stripes(Part):
        kind: Literal["stripes"]
        width: int = 2

    def stripes(recipe, reader, seed):
        """Upright and level stripes."""
        upright = np.kron(np.indices((8, 8))[1] // recipe.width % 2, np.ones((2, 2))) * 255
        images = [Image.fromarray(a.astype("uint8")) for a in (upright, upright.T)]
        return ImageData(("upright", "level"), {name: Split(images, torch.arange(2), reader) for name in data_splits})

    data_splits = ("train", "val", "test")
    monkeypatch.setitem(data.MAKERS, Stripes, stripes)
    reader = ImageReader(Image.open, lambda image: np.asarray(image, dtype=np.float32)[None])
    found = data.load(Stripes(kind="stripes"), reader, 0)
    assert found.classes == ("upright", "level") and found.notes == ()
    first, second = found.splits["test"].inputs(0, 2)
    assert torch.equal(first, second.transpose(1, 2)) and not torch.equal(first, second)
