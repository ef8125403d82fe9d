"""Log every step of a training to a CSV file and, if asked for, to TensorBoard."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from compress.errors import ArtifactError, MissingError
from compress.files import LIST_BYTES, read_bytes, replacing

COLUMNS = ("step", "name", "value")


def check_tensorboard(wanted: bool) -> None:
    """Raise MissingError if TensorBoard is wanted and not installed."""
    if not wanted:
        return
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        raise MissingError(
            "tensorboard: true, but TensorBoard is not installed; pip install 'niwaki-vision[tensorboard]', or set "
            "tensorboard: false (logs/ has the same curves as CSV)."
        ) from None


class Log:
    """The curves of one training; each step is in them once, however often the training was killed and resumed.

    Args:
        folder: the folder of the run's logs.
        name: the training's name: NAME.csv, and NAME/ for TensorBoard's events.
        tensorboard: whether events are written too.
    """

    def __init__(self, folder: Path, name: str, *, tensorboard: bool = False) -> None:
        check_tensorboard(tensorboard)
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.events = folder / f"{name}.csv", folder / name if tensorboard else None
        self._writer: Any = None

    def begin(self, done: int) -> None:
        """Go on after ``done`` steps: remove the rows of later ones, which a killed process left."""
        if self.path.is_file():
            self._drop_rows_after(done)
        if self.events is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(self.events, purge_step=done + 1 if done else 0)

    def start(self, metrics: dict[str, float]) -> None:
        """Add the metrics on ``val`` of the weights that training begins with, as step 0."""
        self._add(0, {f"val_{name}": value for name, value in metrics.items()})

    def step(
        self, step: int, loss: float, lr: float, images_per_second: float, metrics: dict[str, float], evaluated: bool
    ) -> None:
        """Add a step's rows; metrics on ``val`` only if they were measured at this step."""
        rows: dict[str, float] = {"loss": loss, "lr": lr, "images_per_second": images_per_second}
        if evaluated:
            rows |= {f"val_{name}": value for name, value in metrics.items()}
        self._add(step, rows)

    def flush(self) -> None:
        """Write to disk what a checkpoint is about to rely on."""
        if self._writer is not None:
            self._writer.flush()

    def end(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _add(self, step: int, rows: dict[str, float]) -> None:
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if file.tell() == 0:
                writer.writerow(COLUMNS)
            writer.writerows((step, name, f"{value:.8g}") for name, value in rows.items())
        if self._writer is not None:
            for name, value in rows.items():
                self._writer.add_scalar(name, value, step)

    def _drop_rows_after(self, done: int) -> None:
        try:
            with io.StringIO(read_bytes(self.path, LIST_BYTES).decode(), newline="") as file:
                held = list(csv.reader(file))
            # The last row of a killed process may be half a row.
            read = [(int(row[0]), row) for row in held[1:] if len(row) == len(COLUMNS)]
            # A training that starts again begins with step 0, whose rows are then written anew.
            kept = [row for step, row in read if done and step <= done]
        except (OSError, ValueError, csv.Error):
            raise ArtifactError(f"{self.path} is not a log of this version; remove it and start again.") from None
        with replacing(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([COLUMNS, *kept])
