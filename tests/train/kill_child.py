"""Trains a small network under checkpoints and writes its weights: what the kill test starts, kills and resumes."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from test_fit import net, split

from compress.data.images import ImageData
from compress.recipe.schema import TrainRecipe
from compress.train import Trainable, fit, make_fabric
from compress.train.checkpoint import Checkpoints

RECIPE = TrainRecipe(epochs=12, batch_size=16, lr=0.05, augment="affine", ema=0.9, workers=2)

if __name__ == "__main__":
    out = Path(sys.argv[1])
    torch.set_num_threads(1)
    data = ImageData(tuple("abcd"), {"train": split(64, 0), "val": split(40, 1)})
    (out / "started").touch()
    model = net()
    # Every step leaves its state, so that a kill falls into the writing too.
    fit(
        Trainable(model, data, 1.0, 5),
        RECIPE,
        make_fabric("cpu"),
        lambda done, total, text: (out / "steps").write_text(str(done)),
        checkpoints=Checkpoints(out / "state.safetensors", seconds=0),
    )
    save_file({n: t.contiguous() for n, t in model.state_dict().items()}, out / "weights.safetensors")
