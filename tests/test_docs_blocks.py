"""Every shell, Python and YAML block of the pages: run in a small project, or checked for syntax where it is marked.

A comment before a block, ``<!-- needs: gpu -->``, says what it lacks here. The Python blocks of a page share names,
and begin with a small ``model``, ``images``, a ``loader``, an ``optimizer`` and an ``ema``.
"""

import copy
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from finished import unpack

pytestmark = pytest.mark.docs

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
NEEDS = {"gpu", "device", "cluster", "long", "data", "network"}
BLOCK = re.compile(
    r"(?:^<!-- needs: (?P<needs>[a-z, ]+) -->\n+)?^```(?P<kind>sh|python|yaml)\n(?P<text>.*?)^```", re.M | re.S
)
SHIM = "#!/bin/sh\nexec '{python}' -c 'from compress.cli.app import main; main()' \"$@\"\n"


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    kind: str
    needs: str | None
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text("utf-8")
    name = page.relative_to(ROOT).as_posix()
    return [
        Block(name, text[: m.start("kind")].count("\n") + 1, m["kind"], m["needs"], m["text"])
        for m in BLOCK.finditer(text)
    ]


FOUND = [block for page in PAGES for block in blocks(page)]
RUN_PYTHON = sorted({b.page for b in FOUND if b.kind == "python" and not b.needs})


@pytest.fixture(scope="session")
def project(tmp_path_factory):
    """A folder like a user's: photographs, recipes, a finished run."""
    import numpy as np
    from PIL import Image

    home = tmp_path_factory.mktemp("project")
    (home / "runs").mkdir()
    unpack(home).rename(home / "runs/digits")
    shutil.copytree(ROOT / "recipes", home / "recipes")
    draw = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 2)):
        for name in ("ant", "bee"):
            (home / "photos" / split / name).mkdir(parents=True)
            for k in range(count):
                pixels = draw.integers(0, 255, (64, 64, 3), np.uint8)
                Image.fromarray(pixels).save(home / "photos" / split / name / f"{k}.png")
    boxes_and_masks(home)
    shutil.copy(home / "runs/digits/samples/3.png", home / "digit.png")
    shim = home / "bin/niwaki"
    shim.parent.mkdir()
    shim.write_text(SHIM.format(python=sys.executable))
    shim.chmod(0o755)
    return home


def boxes_and_masks(home):
    """A folder of YOLO's layout, and one of images with masks."""
    from PIL import Image

    for split in ("train", "val"):
        for part in (f"blood/images/{split}", f"blood/labels/{split}", f"streets/{split}/images"):
            (home / part).mkdir(parents=True)
        (home / f"streets/{split}/masks").mkdir()
        for k in range(2):
            Image.new("RGB", (64, 64), (40 * k, 90, 120)).save(home / f"blood/images/{split}/{k}.png")
            (home / f"blood/labels/{split}/{k}.txt").write_text("0 0.5 0.5 0.25 0.25\n")
            Image.new("RGB", (64, 64), (40 * k, 90, 120)).save(home / f"streets/{split}/images/{k}.png")
            Image.new("L", (64, 64), k).save(home / f"streets/{split}/masks/{k}.png")
    (home / "blood/data.yaml").write_text("train: images/train\nval: images/val\nnames: {0: cell}\n")


@pytest.mark.parametrize("block", [b for b in FOUND if b.needs], ids=str)
def test_what_cannot_run_here_is_well_formed(block):
    assert {one.strip() for one in block.needs.split(",")} <= NEEDS
    well_formed(block)


@pytest.mark.parametrize("block", [b for b in FOUND if b.kind == "yaml" and not b.needs], ids=str)
def test_yaml_is_well_formed(block):
    well_formed(block)


@pytest.mark.parametrize("block", [b for b in FOUND if b.kind == "sh" and not b.needs], ids=str)
def test_shell_runs(block, project):
    path = f"{project / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.text],
        cwd=project,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-1500:]


@pytest.mark.parametrize("page", RUN_PYTHON)
def test_python_runs(page, project, monkeypatch):
    monkeypatch.chdir(project)
    names = given()
    for block in FOUND:
        if block.page == page and block.kind == "python" and not block.needs:
            exec(compile(block.text, str(block), "exec"), names)


def given() -> dict[str, object]:
    """What the Python blocks of a page begin with."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    import compress
    import deploy
    from compress import prune
    from compress.models.factory import build

    torch.manual_seed(0)
    model = build("niwaki:cifar_resnet", {"depth": 8, "width": 16}, 2).eval()
    images = torch.rand(8, 3, 32, 32)
    return {
        "__name__": "page",
        "torch": torch,
        "compress": compress,
        "deploy": deploy,
        "prune": prune,
        "model": model,
        "images": images,
        "loader": DataLoader(TensorDataset(images, torch.arange(8) % 2), 4),
        "optimizer": torch.optim.AdamW(model.parameters()),
        "ema": copy.deepcopy(model),
        "names": ("ant", "bee"),
        "size": (32, 32),
        "mean": (0.5, 0.5, 0.5),
        "std": (0.2, 0.2, 0.2),
    }


def well_formed(block: Block) -> None:
    if block.kind == "python":
        compile(block.text, str(block), "exec")
    elif block.kind == "yaml":
        import yaml

        assert yaml.safe_load(block.text) is not None
    else:
        done = subprocess.run(["bash", "-n", "-c", block.text], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_a_block_that_is_wrong_is_found(tmp_path):
    with pytest.raises(SyntaxError):
        well_formed(Block("page", 1, "python", "gpu", "def f(:\n"))
    with pytest.raises(AssertionError):
        well_formed(Block("page", 1, "sh", "gpu", "if true; then\n"))


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("material", reason="mkdocs-material is not installed")
    pytest.importorskip("mkdocstrings", reason="mkdocstrings is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "site/howto/cpp.html").is_file()
