"""Training that can be killed at any moment: each phase leaves a file, and a phase under way a checkpoint."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from benchmarks.papers.mnist import Digits
from compress.cost import training_flops
from compress.files import replacing
from compress.sparse.masks import Keep

CHECKPOINT_SECONDS = 30.0


class OutOfTimeError(Exception):
    """The slice is over; the checkpoint is written."""


class Follower(Protocol):
    """What accompanies an optimizer and must survive with it."""

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...


@dataclass(frozen=True)
class Schedule:
    """Epochs at each learning rate, of one optimizer."""

    steps: tuple[tuple[float, int], ...]
    momentum: float = 0.9
    weight_decay: float = 0.0
    nesterov: bool = False
    batch_size: int = 256

    @property
    def epochs(self) -> int:
        return sum(count for _, count in self.steps)

    def rate(self, epoch: int) -> float:
        for rate, count in self.steps:
            if epoch < count:
                return rate
            epoch -= count
        return self.steps[-1][0]

    def optimizer(self, model: nn.Module) -> Optimizer:
        return SGD(
            model.parameters(),
            lr=self.steps[0][0],
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
        )


@dataclass
class Desk:
    """Where one cell is worked on.

    A procedure is run from its beginning each time; what it trained already is read back, so that only the phase
    under way is trained.

    Args:
        folder: the cell's own, for phases and checkpoint.
        data: on the device of the training.
        seed: of this cell; the order of images is drawn from it, the phase and the epoch.
        deadline: ``time.monotonic()`` at which the slice ends.
        say: told one line now and then.
        flip: whether a half of the images, drawn anew in every epoch, is mirrored.
    """

    folder: Path
    data: Digits
    seed: int
    deadline: float = float("inf")
    say: Callable[[str], None] = print
    flip: bool = False
    flops: int = 0
    seconds: float = 0.0
    _phase: int = field(default=0, init=False)

    def train(
        self,
        model: nn.Module,
        schedule: Schedule,
        *,
        keep: Keep | None = None,
        optimizer: Optimizer | None = None,
        follower: Follower | None = None,
        after_epoch: Callable[[int], None] | None = None,
    ) -> None:
        """Train by the schedule, from the checkpoint if there is one; ``model`` holds the result.

        Args:
            model: changed.
            schedule: epochs and rates; SGD unless ``optimizer`` is given.
            keep: what the network is to keep, such as ``masks.hold``.
            optimizer: one of the procedure's own.
            follower: whose state goes into the checkpoint too; a module's output for the network, asked before every
                forward pass, is added to the loss.
            after_epoch: told the number of epochs done.

        Raises:
            OutOfTimeError: the slice is over.
        """
        self._phase += 1
        done = self.folder / f"phase-{self._phase}.safetensors"
        images = len(self.data.train_labels)
        self.flops += schedule.epochs * images * training_flops(model, self.data.train_images[:2])
        optimizer = optimizer or schedule.optimizer(model)
        run = _Run(model, optimizer, follower, self.folder / f"checkpoint-{self._phase}.safetensors")
        if done.is_file():
            self.seconds += run.restore(done)[1]
            return
        model.to(memory_format=torch.channels_last)  # LeNet-5 takes 58 ms a step instead of 92, on one thread
        handle = keep(model, optimizer) if keep is not None else None
        epoch, spent = run.restore(run.path) if run.path.is_file() else (0, 0.0)
        saved = started = time.monotonic()
        while epoch < schedule.epochs:
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate(epoch)
            loss = self._epoch(model, optimizer, epoch, schedule.batch_size, follower)
            epoch += 1
            if after_epoch is not None:
                after_epoch(epoch)
            now = time.monotonic()
            if epoch % 10 == 0 or epoch == schedule.epochs:
                self.say(f"{self.folder.name} phase {self._phase} epoch {epoch}/{schedule.epochs} loss {loss:.4f}")
            if epoch < schedule.epochs and (now - saved > CHECKPOINT_SECONDS or now > self.deadline):
                run.save(run.path, epoch, spent + now - started)
                saved = now
            if epoch < schedule.epochs and now > self.deadline:
                raise OutOfTimeError
        if handle is not None:
            handle.remove()
        model.to(memory_format=torch.contiguous_format)
        self.seconds += spent + time.monotonic() - started
        run.save(done, epoch, spent + time.monotonic() - started)
        run.path.unlink(missing_ok=True)

    def _epoch(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        epoch: int,
        batch_size: int,
        follower: Follower | None,
    ) -> float:
        images, labels = self.data.train_images, self.data.train_labels
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self._phase * 10_007 + epoch)
        order = torch.randperm(len(labels), generator=generator).to(labels.device)
        model.train()
        loss = torch.zeros(())
        for batch in order.split(batch_size):
            own = follower(model) if isinstance(follower, nn.Module) else 0.0
            seen = images[batch]
            if self.flip:
                mirrored = torch.rand(len(batch), generator=generator).to(seen.device) < 0.5
                seen = torch.where(mirrored[:, None, None, None], seen.flip(3), seen)
            loss = F.cross_entropy(model(seen), labels[batch]) + own
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        value = float(loss.detach())
        if value != value:
            raise FloatingPointError(f"{self.folder.name}: the loss is not a number in phase {self._phase}.")
        return value

    @torch.no_grad()
    def accuracy(self, model: nn.Module) -> float:
        """Percent of the test's images that are named right."""
        model.eval()
        pairs = zip(self.data.test_images.split(1000), self.data.test_labels.split(1000), strict=True)
        right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in pairs)
        return 100 * right / len(self.data.test_labels)


@dataclass
class _Run:
    model: nn.Module
    optimizer: Optimizer
    follower: Follower | None
    path: Path

    def save(self, path: Path, epoch: int, seconds: float) -> None:
        tensors = {f"model.{n}": t for n, t in self.model.state_dict().items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{k}": torch.as_tensor(v) for k, v in state.items() if v is not None}
        if self.follower is not None:
            tensors |= {f"follower.{n}": t for n, t in self.follower.state_dict().items()}
        flat = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        with replacing(path) as temporary:
            save_file(flat, temporary, {"papers": json.dumps({"epoch": epoch, "seconds": seconds})})

    def restore(self, path: Path) -> tuple[int, float]:
        with safe_open(path, "pt") as file:
            about: dict[str, Any] = json.loads(file.metadata()["papers"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping

        def part(name: str) -> dict[str, Tensor]:
            return {n.removeprefix(f"{name}."): t for n, t in tensors.items() if n.startswith(f"{name}.")}

        self.model.load_state_dict(part("model"))
        states: dict[int, dict[str, Tensor]] = {}
        for name, tensor in part("optimizer").items():
            number, key = name.split(".", 1)
            states.setdefault(int(number), {})[key] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": states})
        if self.follower is not None:
            self.follower.load_state_dict(part("follower"))
        return int(about["epoch"]), float(about["seconds"])
