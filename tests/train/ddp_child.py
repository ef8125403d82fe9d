"""Twenty steps in float64, as one process or as a rank of two, and the weights that came of them."""

import sys

import torch
from safetensors.torch import save_file
from test_fit import split
from torch import nn

from compress.data.images import ImageData
from compress.recipe.schema import TrainRecipe
from compress.train import Trainable, fit, make_fabric

RECIPE = TrainRecipe(epochs=5, batch_size=16, lr=0.05, augment="affine", ema=0.9, evaluations=3)


def network(kind):
    torch.manual_seed(0)
    norm = nn.GroupNorm(2, 8) if kind == "group" else nn.BatchNorm2d(8)
    return nn.Sequential(nn.Conv2d(1, 8, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).double()


def main(out, kind):
    torch.set_num_threads(1)
    data = ImageData(tuple("abcd"), {"train": split(64, 0), "val": split(39, 1)})
    recipe = RECIPE.model_copy(update={"batchnorm": "frozen" if kind == "frozen" else "live"})
    fabric, model = make_fabric("cpu", "64-true"), network(kind)
    result = fit(Trainable(model, data, 1.0, 5), recipe, fabric, lambda *_: None)
    assert result.steps == 20
    metrics = torch.tensor([result.metrics[name] for name in sorted(result.metrics)], dtype=torch.float64)
    save_file({**model.state_dict(), "metrics": metrics}, f"{out}.{fabric.global_rank}.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
