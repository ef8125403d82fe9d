"""Detectors and segmenters on MobileNetV2, whose classification weights load into their backbones.

Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, 2018. The heads are torchvision's. A detector
here takes its input unchanged: it is normalised and of the right size already, as a bundle's preprocessing leaves it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise

from torch import Tensor, nn
from torchvision.models import mobilenet_v2
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.models.segmentation import LRASPP, DeepLabV3
from torchvision.models.segmentation.deeplabv3 import ASPP
from torchvision.ops.misc import Conv2dNormActivation

from compress.models.detection import take_prepared

# Blocks of torchvision's ``features`` whose expansion is the last map of a stride: 8, 16. The last layer has stride 32.
_EXPANSIONS = {8: 7, 16: 14}


class Pyramid(nn.Module):
    """MobileNetV2 and the extra layers of SSDlite: feature maps, each half the size of the one before.

    Maps of strides up to 16 are the expansions of the block that halves the map next, as in the paper; the others come
    from inverted bottlenecks of 512, 256, 256, 128, ... channels.

    Args:
        levels: number of maps.
        finest: stride of the first map, 8 or 16.
    """

    def __init__(self, levels: int, finest: int) -> None:
        super().__init__()
        self.features = mobilenet_v2(weights=None).features
        self.taps = [block for stride, block in _EXPANSIONS.items() if stride >= finest]
        channels = [self.features[block].conv[0][0].out_channels for block in self.taps]
        channels.append(self.features[-1][0].out_channels)
        self.extra = nn.ModuleList()
        for width in ([512, 256, 256] + [128] * levels)[: levels - len(channels)]:
            self.extra.append(_bottleneck(channels[-1], width))
            channels.append(width)
        self.out_channels = channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map (N, 3, H, W) to feature maps by level; ``"0"`` is the finest."""
        maps = []
        for position, layer in enumerate(self.features):
            if position not in self.taps:
                x = layer(x)
                continue
            expand, *rest = layer.conv
            x = expand(x)
            maps.append(x)
            # A block that halves the map has no skip connection.
            for part in rest:
                x = part(x)
        maps.append(x)
        for block in self.extra:
            maps.append(block(maps[-1]))
        return OrderedDict((str(level), found) for level, found in enumerate(maps))


def _bottleneck(channels_in: int, channels_out: int) -> nn.Sequential:
    """Half the width, a depthwise convolution of stride 2, the full width."""
    half = channels_out // 2
    layer = partial(Conv2dNormActivation, norm_layer=nn.BatchNorm2d, activation_layer=nn.ReLU6)
    return nn.Sequential(
        layer(channels_in, half, kernel_size=1),
        layer(half, half, kernel_size=3, stride=2, groups=half),
        layer(half, channels_out, kernel_size=1),
    )


class Dilated(nn.Module):
    """MobileNetV2 at stride 16: the last stage is dilated instead of halving the map once more.

    Args:
        taps: name of a map -> the block of ``features`` that makes it.
    """

    def __init__(self, taps: Mapping[str, int]) -> None:
        super().__init__()
        self.features = mobilenet_v2(weights=None).features[: max(taps.values()) + 1]
        self.taps = dict(taps)
        self.out_channels = {name: self.features[position].out_channels for name, position in taps.items()}
        start = _EXPANSIONS[16]
        for position in range(start, len(self.features)):
            for layer in self.features[position].modules():
                if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
                    layer.stride = (1, 1)
                    # The layer that halved the map still reads neighbours; those after it read every second value.
                    spread = 1 if position == start else 2
                    layer.dilation = layer.padding = (spread, spread)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for position, layer in enumerate(self.features):
            x = layer(x)
            found |= {name: x for name, wanted in self.taps.items() if wanted == position}
        return found


def mobilenet_v2_ssdlite(
    num_classes: int,
    size: Sequence[int] = (320, 320),
    scales: Sequence[float] = (0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.0),
    finest: int = 16,
    score_thresh: float = 0.01,
    nms_thresh: float = 0.45,
    detections_per_img: int = 200,
) -> nn.Module:
    """SSDlite (MobileNetV2, section 6.2) on MobileNetV2.

    Args:
        num_classes: number of classes, the background included.
        size: height and width of the input, in pixels.
        scales: size of the anchors of each map as a share of the image, and one more: there are len(scales) - 1 maps.
        finest: stride of the first map, 8 or 16; 8 for small objects.
        score_thresh: boxes with a lower score are dropped.
        nms_thresh: of boxes of one class that overlap by more (IoU) only the best is kept.
        detections_per_img: the largest number of boxes.

    Raises:
        ValueError: an impossible stride, size or list of scales.
    """
    levels = len(scales) - 1
    maps = 2 if finest == 16 else 3
    if finest not in _EXPANSIONS:
        raise ValueError(f"finest is {finest}; it can be 8 or 16")
    if len(size) != 2 or min(size) < 32:
        raise ValueError(f"size is {list(size)}; give height and width, 32 pixels or more each")
    if levels < maps or any(b <= a for a, b in pairwise(scales)) or scales[0] <= 0:
        raise ValueError(f"scales is {list(scales)}; give {maps + 1} or more rising shares of the image")
    height, width = size
    backbone = Pyramid(levels, finest)
    anchors = DefaultBoxGenerator([[2, 3]] * levels, scales=list(scales))
    per_place = anchors.num_anchors_per_location()
    model = SSD(
        backbone,
        anchors,
        (width, height),
        num_classes,
        head=SSDLiteHead(backbone.out_channels, per_place, num_classes, nn.BatchNorm2d),
        score_thresh=score_thresh,
        nms_thresh=nms_thresh,
        detections_per_img=detections_per_img,
    )
    take_prepared(model, size)
    return model


def mobilenet_v2_lraspp(num_classes: int, inter_channels: int = 128) -> nn.Module:
    """LR-ASPP (Howard et al., Searching for MobileNetV3, 2019) on MobileNetV2: maps of stride 8 and 16.

    Args:
        num_classes: number of classes of a pixel.
        inter_channels: width of the head.
    """
    backbone = Dilated({"low": 6, "high": 18})
    return LRASPP(backbone, *backbone.out_channels.values(), num_classes, inter_channels)


def mobilenet_v2_deeplabv3(
    num_classes: int, channels: int = 128, rates: Sequence[int] = (6, 12, 18), dropout: float = 0.5
) -> nn.Module:
    """DeepLabV3 (Chen et al., Rethinking Atrous Convolution, 2017) on MobileNetV2 at stride 16.

    Args:
        num_classes: number of classes of a pixel.
        channels: width of the head.
        rates: dilations of its branches.
        dropout: dropout probability of the head.
    """
    backbone = Dilated({"out": 17})
    pooled = ASPP(backbone.out_channels["out"], rates, channels)
    pooled.project[3] = nn.Dropout(dropout)
    head = nn.Sequential(
        pooled,
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, num_classes, 1),
    )
    return DeepLabV3(backbone, head)
