"""Small detectors of torchvision's classes, made for the tests of their lowering."""

import torch
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator

CLASSES = ("a", "b", "c")
SIDE = 96


class Body(torch.nn.Module):
    """Three maps of one width, which is all that a detector asks of its backbone."""

    out_channels = 32

    def __init__(self):
        super().__init__()
        self.steps = torch.nn.ModuleList(
            torch.nn.Conv2d(c, 32, s, s) for c, s in zip((3, 32, 32), (8, 2, 2), strict=True)
        )

    def forward(self, images):
        maps = {}
        for k, step in enumerate(self.steps):
            images = step(images).tanh()
            maps[str(k)] = images
        return maps


def made(kind):
    """A small detector of torchvision's class, with heads that find much, and no resizing."""
    torch.manual_seed(3)
    plain = {"min_size": SIDE, "max_size": SIDE, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    anchors = AnchorGenerator(((16, 24), (32, 40), (56,)), ((0.5, 1.0, 2.0),) * 3)
    if kind == "RetinaNet":
        anchors = AnchorGenerator(((16, 24), (32, 40), (56, 70)), ((0.5, 1.0, 2.0),) * 3)
        model = detection.RetinaNet(Body(), 4, anchor_generator=anchors, topk_candidates=100, **plain)
    elif kind == "SSD":
        boxes = DefaultBoxGenerator([[2], [2, 3], [2]], scales=[0.15, 0.3, 0.5, 0.7])
        head = detection.ssd.SSDHead([32] * 3, boxes.num_anchors_per_location(), 4)
        rest = {"topk_candidates": 60, "detections_per_img": 100, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
        model = detection.ssd.SSD(Body(), boxes, (SIDE, SIDE), 4, head=head, **rest)
    elif kind == "FCOS":
        squares = AnchorGenerator(((8,), (16,), (32,)), ((1.0,),) * 3)
        model = detection.FCOS(Body(), 4, anchor_generator=squares, topk_candidates=40, **plain)
    else:
        one = AnchorGenerator(((16,), (32,), (56,)), ((0.5, 1.0, 2.0),) * 3)
        pool = detection.faster_rcnn.MultiScaleRoIAlign(["0", "1", "2"], 3, 2, canonical_scale=40)
        tops = {"rpn_pre_nms_top_n_test": 60, "rpn_post_nms_top_n_test": 50, "rpn_score_thresh": 0.1}
        head = detection.faster_rcnn.TwoMLPHead(32 * 9, 32)
        boxes = {"box_head": head, "box_predictor": detection.faster_rcnn.FastRCNNPredictor(32, 4)}
        model = detection.FasterRCNN(Body(), rpn_anchor_generator=one, box_roi_pool=pool, **boxes, **tops, **plain)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            box = "bbox" in name
            torch.nn.init.normal_(module.weight, 0, (0.3 if box else 1.5) / module.weight[0].numel() ** 0.5)
            torch.nn.init.zeros_(module.bias)
    for name, value in model.named_parameters():
        # Nothing learns that the background is there: its column has to stay out of what is compared.
        if name.endswith("classification_head.cls_logits.bias"):
            value.data.view(-1, 4)[:, 0] = -50
    return model.eval()
