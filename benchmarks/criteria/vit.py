"""A small vision transformer trained on CIFAR-10, the study's third subject.

python -m benchmarks.criteria.vit --epochs 4

torchvision's VisionTransformer for 32 px: two convolutions of stride 2 before patches of 2 x 2 of what they give, four
blocks of width 64 with 4 heads. It learns from the first 28,000 training images; the last 2,000 are what the study
chooses by. Killed and started again it goes on at the epoch that was under way.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import VisionTransformer
from torchvision.models.vision_transformer import ConvStemConfig

from benchmarks.criteria import cifar
from compress.errors import DataError
from compress.files import replacing

FILE = Path("runs/criteria/vit.safetensors")
"""Where its weights are, from the folder that the study is started in."""

LEARNT = 28
"""Sheets of 1,000 images that it learns from."""

BATCH, RATE, DECAY, SMOOTHING, WARM = 128, 2e-3, 0.05, 0.1, 1.0


def vit() -> VisionTransformer:
    """Build it with random weights."""
    stem = [ConvStemConfig(32, 3, 2), ConvStemConfig(64, 3, 2)]
    return VisionTransformer(32, 4, 4, 4, 64, 128, num_classes=10, conv_stem_configs=stem)


def network(file: Path = FILE) -> nn.Module:
    """Return it as trained, in eval mode.

    Raises:
        DataError: it was not trained yet, or not to the end.
    """
    state, about = _read(file)
    if not state or about["done"] < about["epochs"]:
        raise DataError(
            f"{file} holds no vision transformer trained to the end; run python -m benchmarks.criteria.vit."
        )
    model = vit()
    model.load_state_dict({n.removeprefix("model."): t for n, t in state.items() if n.startswith("model.")})
    return model.eval()


def train(epochs: int, file: Path = FILE) -> nn.Module:
    """Train it: AdamW, one cycle of a cosine, shifts and flips; a checkpoint after each epoch.

    Raises:
        DataError: the file is of a training of another length.
    """
    torch.manual_seed(0)
    model = vit()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    state, about = _read(file)
    if state and about["epochs"] != epochs:
        raise DataError(f"{file} is of {about['epochs']} epochs, not {epochs}; remove it to start again.")
    done = int(about["done"]) if state else 0
    if state:
        _restore(model, optimizer, state)
    learnt = cifar.training(0, LEARNT)
    for epoch in range(done, epochs):
        started = time.process_time()
        loss = _epoch(model, optimizer, learnt, epoch, epochs)
        _write(file, model, optimizer, {"epochs": epochs, "done": epoch + 1})
        spent = time.process_time() - started
        print(f"epoch {epoch + 1}: loss {loss:.3f}, {spent:.0f} CPU s", flush=True)
    return model.eval()


def accuracy(model: nn.Module) -> float:
    """Share of right answers on the images that it did not learn from."""
    held = cifar.training(LEARNT, cifar.ALL)
    model.eval()
    with torch.no_grad():
        found = torch.cat([model(part).argmax(1) for part in held.images.split(250)])
    return float((found == held.labels).float().mean())


def _epoch(model: nn.Module, optimizer: torch.optim.Optimizer, learnt: cifar.Images, epoch: int, epochs: int) -> float:
    """One pass in an order and with shifts that the epoch alone decides; returns the mean loss."""
    model.train()
    loss_of = nn.CrossEntropyLoss(label_smoothing=SMOOTHING)
    random = torch.Generator().manual_seed(epoch)
    chunks = torch.randperm(len(learnt.labels), generator=random).split(BATCH)
    total = 0.0
    for step, chosen in enumerate(chunks):
        at = epoch + step / len(chunks)
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (at + 0.01) / WARM) * (0.5 + 0.5 * math.cos(math.pi * at / epochs))
        loss = loss_of(model(shifted(learnt.images[chosen], random)), learnt.labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        total += float(loss.detach()) * len(chosen)
    return total / len(learnt.labels)


def shifted(images: Tensor, random: torch.Generator) -> Tensor:
    """Shift a batch (N, C, 32, 32) by up to 4 pixels each way and flip half of its images."""
    padded = nn.functional.pad(images, (4, 4, 4, 4))
    top, left = torch.randint(0, 9, (2,), generator=random).tolist()
    cut = padded[..., top : top + 32, left : left + 32]
    flip = torch.rand(len(cut), generator=random) < 0.5
    return torch.where(flip[:, None, None, None], cut.flip(-1), cut)


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, int]]:
    if not file.is_file():
        return {}, {}
    with safe_open(file, "pt") as opened:
        about: dict[str, int] = json.loads(opened.metadata()["study"])
        return {name: opened.get_tensor(name) for name in opened.keys()}, about  # noqa: SIM118 - no mapping


def _write(file: Path, model: nn.Module, optimizer: torch.optim.Optimizer, about: dict[str, int]) -> None:
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for number, held in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": torch.as_tensor(value) for name, value in held.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        save_file(tensors, temporary, {"study": json.dumps(about)})


def _restore(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Tensor]) -> None:
    model.load_state_dict({n.removeprefix("model."): t for n, t in state.items() if n.startswith("model.")})
    held: dict[int, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        if name.startswith("optimizer."):
            _, number, key = name.split(".")
            held.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict(optimizer.state_dict() | {"state": held})


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--file", type=Path, default=FILE, help="its weights, a safetensors file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    os.nice(0 if os.nice(0) else 5)
    model = train(options.epochs, options.file)
    print(f"{100 * accuracy(model):.1f} % of the images that it did not learn from")
    return 0


if __name__ == "__main__":
    sys.exit(main())
