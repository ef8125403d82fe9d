"""torchvision's classifiers and segmenters with random weights, and the images that each is tried on."""

import ctypes
import gc
import importlib.util
import math
import sys
from pathlib import Path

import torch
from prune_nets import image
from torch import nn

from compress import prune
from compress.models import torchvision

ROOT = Path(__file__).resolve().parents[2]


def _benchmark(name):
    """A module of benchmarks/, which is no package of this distribution."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


prune_zoo = _benchmark("prune_zoo")

CLASSES = 10
TASKS = torchvision.names()
# More than 300 million parameters: they come last, when nothing else is held, and in bfloat16, which is less to hold.
LARGE = ("vit_l_16", "vit_l_32", "vit_h_14", "regnet_y_128gf")
NAMES = [name for name, task in TASKS.items() if task != "detection" and name not in LARGE] + list(LARGE)
SAMPLE = {
    "convnext_tiny",
    "efficientnet_b0",
    "googlenet",
    "lraspp_mobilenet_v3_large",
    "mobilenet_v3_small",
    "resnet18",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_v2_t",
    "vit_b_32",
}


def sizes(name):
    """Side and number of the images, and what the network has to be told of them."""
    if name.startswith("vit"):
        # Four by four patches.
        side = 4 * int(name.rpartition("_")[2])
        return side, 2, {"image_size": side}
    if name == "maxvit_t":
        return 224, 1, {}
    if name == "inception_v3":
        # A BatchNorm of its auxiliary head then sees four by four pixels.
        return 443, 1, {}
    if name.startswith("deeplabv3"):
        # A BatchNorm of its pyramid sees one pixel of each image.
        return 24, 16, {}
    if TASKS[name] == "segmentation":
        return 32, 4, {}
    return 64, 4, {}


def filled(name, seed=0):
    """The network in eval mode: every weight, head and statistic drawn, none near what it starts with."""
    model = prune_zoo.unmade(name, CLASSES, **sizes(name)[2])
    dtype = torch.bfloat16 if name in LARGE else torch.float32
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    # Layers keep the size of what passes. With more than that, drawn statistics let residual sums grow over a hundred
    # layers, until gates (sigmoids) amplify rounding: such a network says nothing about a cut.
    gain = 1 if norms else math.sqrt(2)
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[key] = nn.Parameter(_drawn(key, parameter.shape, gain, generator).to(dtype))
    for norm in norms:
        norm.running_mean.uniform_(-0.2, 0.2, generator=generator)
        norm.running_var.uniform_(0.5, 1.5, generator=generator)
        # Not every CPU's BatchNorm takes statistics of another type than its weights.
        norm.to(dtype)
    return model


def give_back():
    """Hands freed memory back to the system; glibc would keep gigabytes of it between the blocks in use."""
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None:
        trim(0)


def free_gigabytes():
    """Memory that is free now, in GB; without end where the system does not say."""
    told = Path("/proc/meminfo")
    lines = told.read_text().splitlines() if told.exists() else []
    free = [int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("MemAvailable")]
    return free[0] if free else math.inf


def _drawn(key, shape, gain, generator):
    if max(shape) == shape.numel() or shape[0] == 1:
        low, high = (0.5, 1.5) if key == "weight" else (-0.5, 0.5)
    else:
        high = gain * math.sqrt(3 / (shape.numel() / shape[0]))
        low = -high
    return torch.empty(shape).uniform_(low, high, generator=generator)


class Case:
    """One network and a plan that takes half of each free group."""

    def __init__(self, name):
        self.name = name
        self.model = filled(name)
        side, batch, _ = sizes(name)
        self.images = image(batch, side)
        self.dtype = next(self.model.parameters()).dtype
        self.trace = prune.trace(self.model, self.images.to(self.dtype))
        scores = prune.score(self.trace, self.model, "l1")
        self.plan = prune.plan(self.trace, scores, ratio=0.5, scope="group")

    def cut(self):
        return prune.apply(self.model, self.plan)
