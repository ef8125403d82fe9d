"""Training batches: in an order determined by seed and epoch, sharded over ranks, loaded by workers."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from compress.data.images import Batch, Split
from compress.data.seeds import hash_seed
from compress.errors import TrainingError


@dataclass(frozen=True)
class Feed:
    """What training batches are made of.

    Args:
        split: the images.
        batch_size: images of one optimizer step, over all ranks.
        augment: a name in AUGMENTATIONS.
        seed: the seed of order and augmentation.
        workers: processes that prepare batches; 0 for this process.
        variants: augmented variants of an image; None for a new one in each epoch.
        mixup: alpha of mixup (Zhang et al., 2018); 0 for none.
        cutmix: alpha of CutMix (Yun et al., 2019); 0 for none. With both, a batch takes one of the two.
        classes: number of classes, for mixing.
        rank: the part of each batch that is this process's.
        ranks: number of parts.
        pin: whether batches are in pinned memory, from which a GPU copies while the processor goes on.
    """

    split: Split
    batch_size: int
    augment: str
    seed: int
    workers: int = 0
    variants: int | None = None
    mixup: float = 0.0
    cutmix: float = 0.0
    classes: int = 0
    rank: int = 0
    ranks: int = 1
    pin: bool = False

    @property
    def size(self) -> int:
        """Images of one step: the batch size, or all there are."""
        return min(self.batch_size, len(self.split))

    @property
    def steps_an_epoch(self) -> int:
        """Steps of one epoch; the last images are left out if they do not fill a batch."""
        return len(self.split) // self.size

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """This rank's part of the batches of steps start..stop; it does not depend on the steps before.

        Raises:
            TrainingError: a worker died.
            Exception: whatever reading an image raises, in a worker too.
        """
        if self.workers:
            self.split.get_ready(self.augment)
        loader = DataLoader(
            _Steps(self),
            batch_size=None,
            sampler=_Counting(start, stop),
            num_workers=self.workers,
            pin_memory=self.pin,
            generator=torch.Generator().manual_seed(0),
        )
        for found in _fetched(loader):
            if isinstance(found, Exception):
                raise found
            yield found

    def order(self, epoch: int) -> Tensor:
        """The images of an epoch, int64."""
        return torch.randperm(len(self.split), generator=torch.Generator().manual_seed(hash_seed(self.seed, epoch)))

    def at(self, step: int) -> Batch:
        """This rank's part of the batch of a step."""
        epoch, place = divmod(step, self.steps_an_epoch)
        whole = self.order(epoch)[place * self.size : (place + 1) * self.size]
        own = whole[self.rank :: self.ranks]
        variant = epoch % self.variants if self.variants else epoch
        batch = self.split.batch(own, self.augment, self.seed, variant)
        return self._mixed(batch, hash_seed(self.seed, 11, step, self.rank))

    def _mixed(self, batch: Batch, seed: int) -> Batch:
        if not (self.mixup or self.cutmix) or len(batch) < 2:
            return batch
        from torchvision.transforms import v2

        kinds = [v2.MixUp(alpha=self.mixup, num_classes=self.classes)] if self.mixup else []
        kinds += [v2.CutMix(alpha=self.cutmix, num_classes=self.classes)] if self.cutmix else []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            chosen = kinds[int(torch.randint(len(kinds), ()))]
            images, soft = chosen(batch.images, batch.targets)
        return replace(batch, images=images, soft=soft)


def _fetched(loader: DataLoader) -> Iterator[Any]:
    """Yield the loader's batches; raise TrainingError when a worker dies."""
    steps = _quietly(loader)
    while True:
        try:
            found = next(steps)
        except StopIteration:
            return
        except (OSError, EOFError, RuntimeError) as error:
            # A worker that dies while sending breaks the connection before torch knows of its death.
            known = not isinstance(error, RuntimeError) or "DataLoader worker" in str(error)
            if not loader.num_workers or not known:
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
            raise TrainingError(
                f"A data worker died ({reason}); --resume continues from the last checkpoint, and fewer workers or a "
                "smaller batch_size need less memory."
            ) from None
        yield found


def _quietly(loader: DataLoader) -> Iterator[Any]:
    """The loader's iterator, which reports a worker's death where its data is awaited, some seconds later.

    Torch would also raise from the signal of a child's death, in whatever the process is doing at that moment, such as
    writing a checkpoint.
    """
    if threading.current_thread() is not threading.main_thread():
        return iter(loader)
    before = signal.getsignal(signal.SIGCHLD)
    found = iter(loader)
    signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
    return found


class _Steps(Dataset):
    """Maps a step to its batch; an exception is returned as it is, since a worker would wrap it."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed

    def __getitem__(self, step: int) -> Batch | Exception:
        try:
            return self.feed.at(step)
        except Exception as error:  # noqa: BLE001 - raised again where the batch is taken
            return error


class _Counting(Sampler[int]):
    def __init__(self, start: int, stop: int) -> None:
        self.steps = range(start, stop)

    def __iter__(self) -> Iterator[int]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)
