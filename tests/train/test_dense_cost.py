"""Detectors and segmenters: MACs by hand, and training at three forward passes."""

import pytest
import torch
from torch import nn

from compress import cost
from compress.models import factory as models
from compress.models.detection import raw_heads

pytestmark = pytest.mark.heavy

DETECTOR = {"size": [64, 96], "scales": [0.1, 0.2, 0.4, 0.8], "finest": 8}


def by_hooks(model, images, run):
    """Output elements times weights that each meets, of every convolution."""
    total = []

    def count(module, _, output):
        total.append(output[0].numel() * module.weight[0].numel())

    handles = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        run(model.eval(), images)
    for handle in handles:
        handle.remove()
    return sum(total)


def test_a_detector_costs_its_body_and_raw_heads():
    model = models.build("niwaki:mobilenet_v2_ssdlite", DETECTOR, 4)
    images = torch.rand(1, 3, 64, 96)
    heads = raw_heads(model)
    assert cost.macs(model, images) == by_hooks(model, images, heads)


def test_a_segmenter_costs_its_head_too():
    model = models.build("niwaki:mobilenet_v2_lraspp", {}, 5)
    images = torch.rand(1, 3, 64, 96)
    assert cost.macs(model, images) == by_hooks(model, images, lambda m, x: m(x))


def test_training_is_forward_and_both_gradients():
    """Three products a layer, but that the first needs no gradient of its input."""
    for factory, arguments in (("ssdlite", DETECTOR), ("lraspp", {}), ("deeplabv3", {"channels": 16})):
        model = models.build(f"niwaki:mobilenet_v2_{factory}", arguments, 4)
        images = torch.rand(1, 3, 64, 96)
        first = 32 * 27 * 32 * 48
        assert cost.training_flops(model, images) == 6 * cost.macs(model, images) - 2 * first
