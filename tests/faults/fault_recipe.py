"""A miniature run of every stage but those of int8: its recipe, its pictures, what two runs of it have in common."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import processes
import yaml
from PIL import Image

SCRIPT = Path(__file__).with_name("faulty_niwaki.py")
TRAIN = {"epochs": 2, "batch_size": 8, "augment": "flip", "evaluations": 2, "workers": 1}
PICTURES = {"kind": "function", "function": "fault_recipe:pictures"}
RECIPE: dict[str, Any] = {
    "name": "faults",
    "model": {"factory": "niwaki:cifar_resnet", "arguments": {"depth": 8, "width": 8}},
    "source": {"data": {**PICTURES, "arguments": {"seed": 1}}, "train": {**TRAIN, "workers": 0, "epochs": 1}},
    "target": PICTURES,
    "preprocessing": {"size": [8, 8], "resize": "stretch"},
    "transfer": TRAIN,
    "prune": {"budget": {"macs": 0.6}, "round_to": 4, "min_kept": 4},
    "distill": {**TRAIN, "workers": 0, "compare": ["finetuned", "scratch"]},
    # What is fastest in int8 is found by the clock and may differ between two runs.
    "deploy": {"precisions": ["fp32", "fp16"], "ship": "fp16", "rtx_targets": [], "rounds": 5},
}
STAGES = (
    "pretrain", "transfer", "twin", "prune", "distill", "finetuned", "scratch", "export", "test", "bench", "bundle",
)  # fmt: skip


class Pictures:
    """Noise around a bright row, which is the class."""

    def __init__(self, seed: int, count: int) -> None:
        rng = np.random.default_rng(seed)
        self.pixels = rng.integers(0, 90, (count, 8, 8, 3), dtype=np.uint8)
        self.labels = (np.arange(count) % 2).tolist()
        for pixels, label in zip(self.pixels, self.labels, strict=True):
            pixels[4 * label] += 120

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.pixels[index]), self.labels[index]


def pictures(seed: int = 0) -> dict[str, Pictures]:
    return {name: Pictures(10 * seed + k, 32) for k, name in enumerate(("train", "val", "test"))}


def start(home: Path, fault: str, *arguments: object, out: Path | str = "out"):
    """``niwaki run --resume`` with something that goes wrong in it, at work in a process of its own."""
    recipe = home / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    command = [fault, *arguments, "--", "run", recipe, "--out", out, "--resume", "--trust", "fault_recipe", "--quiet"]
    return processes.started(*command, cwd=home, script=SCRIPT, env=processes.ENVIRONMENT)


def ended(home: Path, fault: str, *arguments: object, **options: Any):
    """The same, when it is over."""
    return processes.finished(start(home, fault, *arguments, **options), timeout=3600)


def result(out: Path) -> dict[str, Any]:
    """What a run came to but for what it took: two runs of one recipe agree in it to the bit."""
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]
    ledger = json.loads((out / "ledger.json").read_text())
    assert [stage["name"] for stage in ledger["stages"]] == [*STAGES]
    assert all(stage["seconds"] >= 0 for stage in ledger["stages"])
    files = [*out.rglob("*.safetensors"), *out.glob("*/model.json"), *out.rglob("*.onnx"), *out.glob("logs/*.csv")]
    held = {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    curves = {name: _values(out / name) for name in held if name.endswith(".csv")}
    lasting = [s for s in ledger["stages"] if s["name"] not in ("bench", "bundle")]
    figures = {s["name"]: (s["metrics"], s["training_flops"]) for s in lasting}
    return {"files": held | curves, "models": ledger["models"], "figures": figures, "plan": _lasting(ledger["plan"])}


def _values(path: Path) -> list[str]:
    """The rows of a curve but for how fast it was."""
    return [row for row in path.read_text().splitlines() if ",images_per_second," not in row]


def _lasting(plan: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in plan.items() if "seconds" not in key}


def one_sentence(said: str) -> None:
    assert said.startswith("niwaki: ") and said.count("\n") == 1, said
