"""Plans of exact widths: the architectures of "Rethinking the Value of Network Pruning" by their published counts."""

import pytest
import torch

from benchmarks.papers.architectures import RETHINKING, VGG16_A, vgg16
from compress import prune
from compress.cost import macs, parameters
from compress.errors import PlanError
from compress.models.factory import build
from compress.prune.widths import carried, plan_of_widths, uniform

IMAGE = torch.zeros(2, 3, 32, 32)


def resnet(depth, width=16):
    torch.manual_seed(0)
    return build("niwaki:cifar_resnet", {"depth": depth, "width": width, "shortcut": "pad"}, 10).eval()


@pytest.mark.parametrize("name", ["R56-A", "R56-B", pytest.param("R110-A", marks=pytest.mark.heavy), "R110-B"])
def test_the_resnets_of_rethinking_have_their_published_counts(name):
    about = RETHINKING[name]
    model = resnet(about.depth)
    trace = prune.trace(model, IMAGE)
    plan = plan_of_widths(trace, prune.score(trace, model, "l1"), about.widths())
    small = prune.apply(model, plan)
    assert parameters(small) == about.parameters
    assert round(1 - macs(small, IMAGE) / macs(model, IMAGE), 3) == about.less
    if about.macs is not None:
        assert round(macs(small, IMAGE) / 1e6, 2) == about.macs
    # What stays has the largest filters, as the paper takes them.
    block = model.layer1[0].conv1.weight
    norms = block.detach().abs().flatten(1).sum(1)
    best = norms.topk(about.widths()["layer1.0.conv1"]).indices.sort().values
    assert torch.equal(small.layer1[0].conv1.weight, block[best])


def test_vgg16_a_has_its_published_counts():
    whole = vgg16()
    assert parameters(whole) == 14_987_722
    trace = prune.trace(whole.eval(), IMAGE)
    names = [group.name for group in trace.groups if isinstance(whole.get_submodule(group.name), torch.nn.Conv2d)]
    widths = dict(zip(names, VGG16_A, strict=True))
    small = prune.apply(whole, plan_of_widths(trace, prune.score(trace, whole, "l1"), widths))
    assert parameters(small) == parameters(vgg16(VGG16_A)) == 5_397_034
    assert round(1 - macs(small, IMAGE) / macs(whole, IMAGE), 3) == 0.342


def test_a_width_that_cannot_be_is_refused():
    model = resnet(8)
    trace = prune.trace(model, IMAGE)
    scores = prune.score(trace, model, "l1")
    for widths, said in (({"layer1.*": 99}, "99 cannot stay"), ({"conv9": 3}, "No free group matches 'conv9'")):
        with pytest.raises(PlanError, match=said):
            plan_of_widths(trace, scores, widths)


def test_widths_go_to_a_deeper_and_wider_network_stage_by_stage():
    model = resnet(8)
    trace = prune.trace(model, IMAGE)
    widths = {"layer1.0.conv1": 4, "layer2.0.conv1": 16, "layer3.0.conv1": 64}
    plan = plan_of_widths(trace, prune.score(trace, model, "l1"), widths)
    other = resnet(14, width=32)
    deep = prune.trace(other, IMAGE)
    found = carried(plan, deep)
    # Named alike: the same share. A block that the first network lacks: the mean of its stage.
    assert (found["layer1.0.conv1"], found["layer2.0.conv1"], found["layer3.0.conv1"]) == (8, 32, 128)
    stage = [group.after / group.before for group in plan.groups if group.name.startswith("layer2.")]
    assert found["layer2.1.conv1"] == round(64 * sum(stage) / len(stage))
    small = prune.apply(other, plan_of_widths(deep, prune.score(deep, other, "l1"), found))
    assert small.layer1[0].conv1.weight.shape[0] == 8
    assert set(uniform(deep, 0.5).values()) == {len(g.units) // 2 for g in deep.groups}
