"""What training says of each step: a CSV file of rows."""

from __future__ import annotations

import csv
from pathlib import Path


class Log:
    """Curves of one training.

    Args:
        folder: of the run's logs.
        name: of the training.
    """

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{name}.csv"

    def step(
        self, step: int, loss: float, lr: float, images_per_second: float, metrics: dict[str, float], evaluated: bool
    ) -> None:
        """Adds a row; metrics on `val` stand where they were measured. A resumed training's rows come again."""
        rows: dict[str, float] = {"loss": loss, "lr": lr, "images_per_second": images_per_second}
        if evaluated:
            rows |= {f"val_{name}": value for name, value in metrics.items()}
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if file.tell() == 0:
                writer.writerow(("step", "name", "value"))
            writer.writerows((step, name, f"{value:.8g}") for name, value in rows.items())
