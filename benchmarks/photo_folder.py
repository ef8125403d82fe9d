"""Make a folder of photographs that no recipe was tuned for: eight classes of CIFAR-10 at 96 px.

python -m benchmarks.photo_folder OUT

OUT gets ``train/CLASS`` with 75 images each and ``test/CLASS`` with about 100, from ``NIWAKI_DATA/cifar10``: 600 to
train on, 779 to test. The test images are those of CIFAR-10's test split with exact pixels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.trained_small import cifar10

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "horse", "ship")
PER_CLASS, SIDE = 75, 96
NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def make(out: Path, per_class: int = PER_CLASS) -> int:
    """Write the folder and return how many images it holds."""
    written = 0
    for split, most in (("train", per_class), ("test", 1000)):
        images, labels = cifar10(split)
        for name in CLASSES:
            folder = out / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for index in np.flatnonzero(labels == NAMES.index(name))[:most]:
                photo = Image.fromarray(images[index]).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
                photo.save(folder / f"{index:05}.png")
                written += 1
    return written


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    print(f"{make(out)} images in {out}")


if __name__ == "__main__":
    main()
