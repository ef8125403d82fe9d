"""Make a folder of photographs that no recipe was tuned for: eight classes of CIFAR-10 at 96 px.

python -m benchmarks.photo_folder OUT
python -m benchmarks.photo_folder OUT --judge RUN

OUT gets ``train/CLASS`` with 75 images each and ``test/CLASS`` with about 100, from ``NIWAKI_DATA/cifar10``: 600 to
train on, 779 to test. The test images are those of CIFAR-10's test split with exact pixels. ``--judge`` says how many
points the networks of a run on OUT lose to their teacher on 2,000 further images, 250 of each class, in neither.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.trained_small import cifar10

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "horse", "ship")
PER_CLASS, FURTHER, SIDE = 75, 250, 96
NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def make(out: Path, per_class: int = PER_CLASS) -> int:
    """Write the folder and return how many images it holds."""
    written = 0
    for split, first, most in (("train", 0, per_class), ("test", 0, 1000)):
        for name, index, photo in photos(split, first, most):
            folder = out / split / name
            folder.mkdir(parents=True, exist_ok=True)
            photo.save(folder / f"{index:05}.png")
            written += 1
    return written


def photos(split: str, first: int, most: int) -> Iterator[tuple[str, int, Image.Image]]:
    """Yield class, index in CIFAR-10 and image of ``most`` images of each class, from its ``first`` on."""
    images, labels = cifar10(split)
    for name in CLASSES:
        for index in np.flatnonzero(labels == NAMES.index(name))[first : first + most]:
            enlarged = Image.fromarray(images[index]).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            yield name, int(index), enlarged


def judge(run: Path) -> dict[str, tuple[float, float, float]]:
    """Return each network's accuracy, points lost to the teacher and their 95 % half width, paired over the images."""
    import torch

    import compress
    from deploy.processing.preprocess import Preprocessing

    right = {}
    for which in ("teacher", "pruned", "student"):
        net = compress.load(run / which).eval()
        said = compress.artifact.describe(run / which)
        prepare = Preprocessing(**said.preprocessing)
        rows = [(prepare(photo), said.classes.index(name)) for name, _, photo in photos("train", PER_CLASS, FURTHER)]
        answers = []
        with torch.no_grad():
            for start in range(0, len(rows), 100):
                batch = np.stack([one for one, _ in rows[start : start + 100]])
                answers.append(net(torch.from_numpy(batch)).argmax(1).numpy())
        right[which] = np.concatenate(answers) == np.asarray([label for _, label in rows])
    found = {}
    for which, mine in right.items():
        lost = 100.0 * (right["teacher"].astype(float) - mine)
        found[which] = (100.0 * float(mine.mean()), float(lost.mean()), 1.96 * float(lost.std()) / len(lost) ** 0.5)
    return found


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--judge", type=Path, metavar="RUN", help="the folder of a run on OUT")
    given = parser.parse_args()
    if given.judge is None:
        print(f"{make(given.out)} images in {given.out}")
        return
    for which, (accuracy, lost, width) in judge(given.judge).items():
        print(f"{which}: {accuracy:.1f} %, {lost:.1f} ± {width:.1f} points below its teacher")


if __name__ == "__main__":
    main()
