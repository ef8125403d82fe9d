"""torchvision's detectors: cut in half, the raw heads and the boxes are those of the masked detector."""

import re
from functools import partial

import pytest
import torch
import torchvision
from prune_nets import Net, conv
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.models import detection
from torchvision.ops import FrozenBatchNorm2d
from zoo_parts import zoo

import compress
from compress import prune
from compress.artifact import Description
from compress.models import factory
from compress.models.cifar_resnet import cifar_resnet
from compress.models.detection import _pooled, _regions, example_input, raw_heads
from compress.models.meta import on_meta
from compress.prune.reference import KeptStatistics
from compress.prune.rules import tensors

pytestmark = pytest.mark.heavy

CLASSES = 5
KEYPOINTS = 17

# The layers whose outputs leave the network.
PREDICTORS = re.compile(
    r"(cls_logits|bbox_pred|cls_score|bbox_reg|bbox_ctrness|mask_fcn_logits|kps_score_lowres|module_list\.\d+(\.1)?)$"
)

# Those that torchvision has pretrained weights for with FrozenBatchNorm2d; the rest keeps its own norms.
FROZEN = {name for name in detection.__dict__ if name.endswith("resnet50_fpn")} - {"retinanet_resnet50_fpn"}
FROZEN |= {"fasterrcnn_mobilenet_v3_large_320_fpn"}
FAST = {"fasterrcnn_mobilenet_v3_large_320_fpn", "ssdlite320_mobilenet_v3_large"}
NAMES = torchvision.models.list_models(module=detection)
DETECTORS = [pytest.param(name, marks=() if name in FAST else zoo(name)) for name in NAMES]


def built(name, frozen):
    # Small images; every box counts, however unlikely.
    settings = {"frozen_norms": True} if frozen else {}
    if not name.startswith("ssd"):
        settings |= {"min_size": 96, "max_size": 160}
    if "rcnn" in name:
        settings |= {"box_score_thresh": 0.0, "box_detections_per_img": 30, "box_batch_size_per_image": 64}
        settings |= {"rpn_post_nms_top_n_test": 200, "rpn_post_nms_top_n_train": 200}
        settings |= {"rpn_nms_thresh": 0.9, "box_nms_thresh": 0.7}
    else:
        settings["score_thresh"] = 0.0
    return factory.build(f"torchvision:{name}", settings, CLASSES).double(), settings


@torch.no_grad()
def restless(name):
    """A detector in float64 whose norms have been through images, with heads that do not start at zero."""
    torch.manual_seed(0)
    model, settings = built(name, False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(std=0.2)
        if isinstance(module, nn.BatchNorm2d):
            # The statistics of these images alone, without a trace of the initial ones.
            module.momentum = 1.0
    raw_heads(model)(model.train(), example_input(model, None if name.startswith("ssd") else 64, batch=2))
    for path, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
            module.running_mean += 0.1 * torch.randn_like(module.running_mean)
            module.running_var *= 0.5 + torch.rand_like(module.running_var)
        if predicts(path, module):
            module.weight.normal_()
    level(model.eval())
    if name in FROZEN:
        state = model.state_dict()
        model, settings = built(name, True)
        model.load_state_dict(state)
    return model.eval(), settings


def predicts(path, module):
    return bool(PREDICTORS.search(path)) and hasattr(module, "weight")


@torch.no_grad()
def level(model):
    """Shifts and scales the predictors: on some images what they give is about zero, and small for boxes."""
    done = set()

    def levelled(module, inputs, output, wanted):
        if module in done:
            return None  # the coarser maps of a pyramid have too few values
        done.add(module)
        centre = output.mean([d for d in range(output.dim()) if d != 1])
        size = (output - centre.reshape(1, -1, *[1] * (output.dim() - 2))).std() / wanted + 1e-3
        module.weight /= size
        module.bias.copy_((module.bias - centre) / size + 0.2 * wanted * torch.randn_like(centre))
        return module.forward(*inputs)

    hooks = [
        module.register_forward_hook(partial(levelled, wanted=0.3 if "bbox" in path else 1.0))
        for path, module in model.named_modules()
        if predicts(path, module)
    ]
    model(photographs())
    for hook in hooks:
        hook.remove()


class Case:
    """One detector, its trace and a plan that takes half of each free group."""

    def __init__(self, name):
        self.name = name
        self.model, self.settings = restless(name)
        self.heads = raw_heads(self.model)
        # Sides as small as the network takes; BatchNorms want 16 values a channel, on a map of one pixel from images.
        side = {"ssd300_vgg16": None, "ssdlite320_mobilenet_v3_large": 96}.get(name, 64)
        batch = 16 if name.startswith("ssdlite") else 2 if name in FROZEN or name.startswith("ssd") else 4
        self.images = example_input(self.model, side, batch)
        self.trace = prune.trace(self.model, self.images[:1], forward=self.heads)
        scores = prune.score(self.trace, self.model, "l1")
        self.plan = prune.plan(self.trace, scores, ratio=0.5, scope="group")
        # With half of the channels gone one class would win everywhere: the heads are fitted to what is left.
        masked = prune.mask(self.model, self.plan)
        level(masked)
        for path, module in self.model.named_modules():
            if predicts(path, module):
                module.load_state_dict(masked.get_submodule(path).state_dict())

    def cut(self):
        return prune.apply(self.model, self.plan).eval()

    def free(self, role):
        """Paths of the parameters that lose channels in one role."""
        roles = self.trace.roles
        return {slot[0] for group in self.trace.groups for slot in group.slots if roles[slot] == role}


@pytest.fixture(scope="module", params=DETECTORS)
def case(request):
    return Case(request.param)


def photographs(count=2):
    generator = torch.Generator().manual_seed(1)
    sides = [(96, 128), (112, 96)]
    return [torch.rand(3, *sides[i % 2], generator=generator, dtype=torch.float64) for i in range(count)]


def targets(images):
    """Two objects an image: one small, one large."""
    found = []
    for image in images:
        height, width = image.shape[-2:]
        boxes = torch.tensor([[8.0, 10.0, 40.0, 44.0], [5.0, 4.0, width - 6.0, height - 8.0]], dtype=image.dtype)
        keypoints = torch.ones(2, KEYPOINTS, 3)
        keypoints[..., :2] = ((boxes[:, None, :2] + boxes[:, None, 2:]) / 2).float()
        masks = torch.zeros(2, height, width, dtype=torch.uint8)
        masks[:, 12:40, 10:36] = 1
        found.append({"boxes": boxes, "labels": torch.tensor([1, 2]), "masks": masks, "keypoints": keypoints})
    return found


# The cut detector ----------------------------------------------------------------------------------------


def test_body_and_heads_are_free_and_outputs_are_not(case):
    assert case.trace.unknown_ops == ()
    produced = case.free("producer")
    # The head of ssd300 is one layer on each feature map.
    parts = ["backbone."] if case.name.startswith("ssd300") else ["backbone.", "head."]
    if "rcnn" in case.name:
        parts = ["backbone.body.", "backbone.fpn.", "rpn.head.", "roi_heads.box_head."]
    for part in parts:
        assert any(name.startswith(part) for name in produced), part
    assert ("maskrcnn" in case.name) == any("mask_head" in name for name in produced)
    assert ("keypoint" in case.name) == any("keypoint_head" in name for name in produced)
    predictors = [(path, m) for path, m in case.model.named_modules() if predicts(path, m)]
    assert len(predictors) >= 2
    for path, layer in predictors:
        dim = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
        assert f"{path}.weight:{dim}" not in case.plan.slots
    assert case.plan.costs["macs_after"] < 0.6 * case.plan.costs["macs_before"]


def test_the_raw_heads_of_the_cut_are_those_of_the_mask(case):
    proof = prune.check(case.model, case.plan, case.images, forward=case.heads)
    assert proof.eval_forward <= 1e-10
    assert max(proof.train_forward, proof.train_gradient) <= 1e-8


@torch.no_grad()
def test_the_cut_detector_finds_what_the_masked_one_finds(case):
    found = case.cut()(photographs())
    masked = prune.mask(case.model, case.plan).eval()
    # A group norm that loses part of a group takes its statistics over what is left of it.
    with KeptStatistics(masked, case.plan):
        expected = masked(photographs())
    assert [len(f["boxes"]) for f in found] == [len(e["boxes"]) for e in expected]
    for got, want in zip(found, expected, strict=True):
        assert len(want["boxes"]) >= 20
        assert len(want["scores"].unique()) >= 20, "ties could be told apart by rounding alone"
        assert got.keys() == want.keys()
        for name, value in want.items():
            torch.testing.assert_close(got[name], value, rtol=1e-8, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")


def test_the_cut_detector_trains(case):
    small = case.cut().float().train()
    images = [image.float() for image in photographs()]
    wanted = [{**t, "boxes": t["boxes"].float()} for t in targets(images)]
    optimizer = torch.optim.SGD(small.parameters(), lr=1e-5)
    for _ in range(2):
        losses = small(images, wanted)
        assert len(losses) >= 2
        assert all(bool(torch.isfinite(loss)) for loss in losses.values()), losses
        optimizer.zero_grad()
        sum(losses.values()).backward()
        assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in small.parameters())
        optimizer.step()


@torch.no_grad()
def test_the_cut_detector_is_saved_and_loaded(case, tmp_path):
    about = Description(
        factory=f"torchvision:{case.name}",
        arguments=case.settings,
        task="detection",
        classes=("background", "a", "b", "c", "d"),
        plan=case.plan,
    )
    small = case.cut()
    back = compress.load(compress.save(small, tmp_path / "detector", about))
    for got, want in zip(back(photographs(1)), small(photographs(1)), strict=True):
        assert got.keys() == want.keys()
        for name, value in want.items():
            torch.testing.assert_close(got[name], value, rtol=1e-8, atol=1e-8)


# The raw heads -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("training", [True, False])
def test_raw_heads_run_on_meta_tensors_for_any_batch(name, training):
    with on_meta():
        model = factory.build(f"torchvision:{name}", {}, CLASSES).train(training)
    heads = raw_heads(model)
    # In training a BatchNorm on a map of one pixel takes no single image.
    for batch in (2, 3) if training else (1, 3):
        outputs = tensors(heads(model, example_input(model, batch=batch)))
        assert outputs
        assert all(out.is_meta and out.shape[0] % batch == 0 and out.numel() for out in outputs)


@pytest.mark.parametrize("name", DETECTORS)
def test_raw_heads_run_on_fake_tensors_and_reach_every_parameter(name):
    model = built(name, name in FROZEN)[0].train()
    heads, x = raw_heads(model), example_input(model, None if name.startswith("ssd") else 64, batch=2)
    real = tensors(heads(model, x))
    assert all(out.dtype == torch.float64 for out in real)
    sum((out**2).sum() for out in real).backward()
    untouched = [n for n, p in model.named_parameters() if p.grad is None]
    assert untouched == []
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = {n: mode.from_tensor(t.detach()) for n, t in model.state_dict().items()}
        wrapped = Net(lambda net, images: heads(net.model, images), model=model)
        fake = torch.func.functional_call(wrapped, {f"model.{n}": t for n, t in fakes.items()}, mode.from_tensor(x))
    assert [out.shape for out in tensors(fake)] == [out.shape for out in real]


@torch.no_grad()
@pytest.mark.parametrize("name", DETECTORS)
def test_raw_heads_are_those_of_the_detector(name):
    """On the detector's own prepared images; regions of interest are fixed, so only what comes before them."""
    model = restless(name)[0]
    prepared = model.transform(photographs(1))[0].tensors
    seen = []
    layer = model.rpn.head if "rcnn" in name else model.head
    handle = layer.register_forward_hook(lambda _, __, out: seen.append(out))
    model(photographs(1))
    handle.remove()
    outputs = raw_heads(model)(model, prepared)
    for got, want in zip(tensors(outputs), tensors(seen[0]), strict=False):
        torch.testing.assert_close(got, want)


def test_the_images_of_a_batch_do_not_mix():
    model = restless("fasterrcnn_mobilenet_v3_large_320_fpn")[0]
    heads, x = raw_heads(model), example_input(model, 64, batch=3)
    whole, alone = heads(model, x), heads(model, x[1:2])
    torch.testing.assert_close(whole["rpn_deltas"][0][1:2], alone["rpn_deltas"][0])
    levels = len(model.roi_heads.box_roi_pool.featmap_names)
    rows = whole["class_logits"].reshape(-1, 3, 2, CLASSES)
    assert rows.shape[0] <= levels
    torch.testing.assert_close(rows[:, 1], alone["class_logits"].reshape(-1, 2, CLASSES))


def test_pyramid_levels_pool_the_same_region():
    """A map of x coordinates gives the same mean on each level, whatever its resolution."""
    pool = torchvision.ops.MultiScaleRoIAlign(["0", "1"], 2, 2)
    images = torch.zeros(2, 3, 64, 96)
    maps = {str(k): ((torch.arange(96 // s) + 0.5) * s).expand(2, 1, 64 // s, 96 // s) for k, s in enumerate((4, 8))}
    regions = _regions(images)
    pooled = _pooled(pool, maps, regions, images).mean((1, 2, 3)).reshape(2, -1)
    centres = (regions[:, 1] + regions[:, 3]) / 2
    assert float((pooled[0] - centres).abs().max()) < 4.5
    assert float((pooled[1] - centres).abs().max()) < 8.5


@pytest.mark.parametrize("make", [torchvision.models.resnet18, lambda: nn.Linear(2, 2)])
def test_other_networks_have_no_raw_heads(make):
    assert raw_heads(make()) is None


def test_a_pooler_of_the_users_own_is_not_guessed():
    with on_meta():
        model = factory.build("torchvision:fasterrcnn_mobilenet_v3_large_320_fpn", {}, CLASSES)
    model.roi_heads.box_roi_pool = nn.Identity()
    assert raw_heads(model) is None


def test_example_inputs_suit_the_network():
    with on_meta():
        made = {
            name: factory.build(f"torchvision:{name}", {}, CLASSES)
            for name in ("ssd300_vgg16", "ssdlite320_mobilenet_v3_large", "fcos_resnet50_fpn", "resnet18", "vit_b_32")
        }
    shapes = {name: tuple(example_input(model).shape) for name, model in made.items()}
    sides = dict(zip(made, (300, 320, 128, 224, 224), strict=True))
    assert shapes == {name: (1, 3, side, side) for name, side in sides.items()}
    assert example_input(made["resnet18"], 64, 2).shape == (2, 3, 64, 64)
    assert example_input(made["resnet18"]).is_meta
    assert example_input(cifar_resnet(8, in_channels=1).double()).shape == (1, 1, 32, 32)
    assert example_input(Net(None, a=conv(4, 2)).double()).dtype == torch.float64


def test_frozen_norms_are_among_what_is_tested():
    kinds = {type(m) for m in built("fasterrcnn_mobilenet_v3_large_320_fpn", True)[0].modules()}
    assert FrozenBatchNorm2d in kinds
    assert nn.BatchNorm2d not in kinds
