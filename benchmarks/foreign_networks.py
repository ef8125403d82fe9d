"""Networks of other people's libraries by name, each with random weights and a small example."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

LIBRARIES = {
    "timm": "timm",
    "segmentation_models_pytorch": "segmentation-models-pytorch",
    "ultralytics": "ultralytics",
    "vit_pytorch": "vit-pytorch",
    "monai": "monai",
    "transformers": "transformers",
}
"""Import name -> distribution."""

_TIMM = """
bat_resnext26ts beit_base_patch16_224 beitv2_base_patch16_224 botnet26t_256 caformer_s18 cait_xxs24_224 coat_tiny
coatnet_0_rw_224 convformer_s18 convit_tiny convmixer_768_32 convnext_atto convnextv2_atto crossvit_tiny_240
cs3darknet_s csatv2 cspdarknet53 cspresnet50 darknet53 davit_tiny deit3_small_patch16_224 densenet121 dla34 dm_nfnet_f0
dpn68 eca_nfnet_l0 ecaresnet26t edgenext_xx_small efficientformer_l1 efficientformerv2_s0 efficientnet_b0
efficientvit_b0 efficientvit_m0 ese_vovnet19b_dw eva02_tiny_patch14_224 fasternet_t0 fastvit_t8 focalnet_tiny_srf
gcresnet33ts gcvit_xxtiny gernet_s ghostnet_100 ghostnetv2_100 ghostnetv3_100 gmlp_s16_224 halonet26t hardcorenas_a
hgnet_tiny hgnetv2_b0 hiera_tiny_224 hrnet_w18_small inception_next_atto inception_v3 inception_v4 lambda_resnet26t
lcnet_050 levit_128s levit_conv_128s mambaout_femto maxvit_rmlp_pico_rw_256 mixer_s32_224 mixnet_s mnasnet_small
mobilenet_edgetpu_v2_xs mobilenetv2_050 mobilenetv3_small_050 mobilenetv4_conv_small mobilenetv4_hybrid_medium
mobilenetv5_base mobileone_s0 mobilevit_xxs mobilevitv2_050 mvitv2_tiny naflexvit_base_patch16_gap nasnetalarge
nest_tiny nextvit_small nf_regnet_b0 nf_resnet26 pit_ti_224 pnasnet5large poolformer_s12 poolformerv2_s12 pvt_v2_b0
poolformer_s24 rdnet_tiny regnetv_040 regnetx_002 regnety_002 regnetz_b16 repghostnet_050 repvgg_a0 repvit_m0_9
res2net50_26w_4s resmlp_12_224 resnest14d resnet18 resnet26t resnet50d resnetaa34d resnetblur18 resnetrs50
resnetv2_50 resnetv2_50x1_bit resnext26ts rexnet_100 rexnetr_100 samvit_base_patch16 sebotnet33ts_256 sehalonet33ts
selecsls42b semnasnet_050 senet154 sequencer2d_s seresnet18 shvit_s1 skresnet18 skresnext50_32x4d spnasnet_100
starnet_s1 swiftformer_xs swin_s3_tiny_224 swin_tiny_patch4_window7_224 swinv2_cr_tiny_ns_224
swinv2_tiny_window8_256 tf_efficientnetv2_b0 tiny_vit_5m_224 tinynet_e tnt_s_patch16_224 tresnet_m twins_pcpvt_small
twins_svt_small vgg11_bn visformer_tiny vit_base_patch16_rope_reg1_gap_256 vit_relpos_small_patch16_224
vit_small_patch16_dinov3 vit_srelpos_small_patch16_224 vit_tiny_patch16_224 vit_wee_patch16_reg1_gap_256
vitamin_small_224 volo_d1_224 vovnet39a wide_resnet50_2 xception41 xcit_nano_12_p16_224
sam2_hiera_tiny efficientvit_b1 mobilenetv4_conv_medium convnext_femto regnety_004 edgenext_x_small pvt_v2_b1 rexnet_130
mobilevit_xs mobilevitv2_075 levit_128 pit_xs_224 tiny_vit_11m_224 crossvit_9_240 gcvit_xtiny nextvit_base shvit_s2
mixnet_m fasternet_t1 mambaout_kobe resnest26d mobilenetv3_large_100 convnext_pico convnextv2_femto efficientnet_lite0
fbnetc_100 hgnetv2_b1 mobileone_s1 repvgg_a1 resnet34 starnet_s2 swiftformer_s vit_small_patch14_dinov2 dla46_c
deit_tiny_patch16_224 skresnet34 lcnet_075 mobilenetv2_100 cs3darknet_m focalnet_small_srf
"""
_SMP = """
unet/resnet18 unet/mobilenet_v2 unet/timm-efficientnet-b0 unet/mit_b0 unet/vgg11_bn unet/densenet121
unetplusplus/resnet18 fpn/resnet18 fpn/se_resnet50 deeplabv3/resnet18 deeplabv3plus/resnet18 deeplabv3plus/resnet34
linknet/resnet18 manet/resnet18 pan/resnet18 pspnet/resnet18 segformer/mit_b0 upernet/resnet18
"""
_ULTRALYTICS = """
yolov3-tiny yolov5n yolov5n6 yolov6n yolov8n yolov8n-cls yolov8n-seg yolov8n-pose yolov8n-obb yolov8n-p2 yolov8n-ghost
yolov9t yolov10n yolo11n yolo11n-cls yolo11n-seg yolo11n-pose yolo11n-obb yolo12n rtdetr-l rtdetr-resnet50
"""
_VIT: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vit": ("vit", "ViT", {"mlp_dim": 96}),
    "simple_vit": ("simple_vit", "SimpleViT", {"mlp_dim": 96}),
    "simple_vit_qk_norm": ("simple_vit_with_qk_norm", "SimpleViT", {"mlp_dim": 96}),
    "simple_vit_registers": ("simple_vit_with_register_tokens", "SimpleViT", {"mlp_dim": 96}),
    "deepvit": ("deepvit", "DeepViT", {"mlp_dim": 96}),
    "cait": ("cait", "CaiT", {"mlp_dim": 96, "cls_depth": 1}),
    "parallel_vit": ("parallel_vit", "ViT", {"mlp_dim": 96}),
    "patch_merger": ("vit_with_patch_merger", "ViT", {"mlp_dim": 96}),
    "small_dataset": ("vit_for_small_dataset", "ViT", {"mlp_dim": 96}),
    "xcit": ("xcit", "XCiT", {"mlp_dim": 96, "cls_depth": 1}),
    "learnable_memory": ("learnable_memory_vit", "ViT", {"mlp_dim": 96}),
    "normalized_vit": ("normalized_vit", "nViT", {"mlp_dim": 96}),
}
_MONAI: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "unet2d": ("UNet", {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "channels": (8, 16, 32),
                        "strides": (2, 2), "num_res_units": 2}, (2, 1, 32, 32)),
    "unet3d": ("UNet", {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": (8, 16, 32),
                        "strides": (2, 2), "num_res_units": 2}, (2, 1, 16, 16, 16)),
    "basic_unet": ("BasicUNet", {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}, (2, 1, 32, 32)),
    "attention_unet": ("AttentionUnet", {"spatial_dims": 2, "in_channels": 1, "out_channels": 2,
                                         "channels": (8, 16, 32), "strides": (2, 2)}, (2, 1, 32, 32)),
    "segresnet": ("SegResNet", {"spatial_dims": 3, "init_filters": 16}, (2, 1, 16, 16, 16)),
    "dynunet": ("DynUNet", {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "kernel_size": [3, 3, 3],
                            "strides": [1, 2, 2], "upsample_kernel_size": [2, 2]}, (2, 1, 32, 32)),
    "vnet": ("VNet", {"spatial_dims": 3}, (2, 1, 32, 32, 32)),
    "highresnet": ("HighResNet", {"spatial_dims": 2}, (2, 1, 32, 32)),
    "unetr": ("UNETR", {"in_channels": 1, "out_channels": 2, "img_size": 32, "feature_size": 8, "hidden_size": 48,
                        "mlp_dim": 96, "num_heads": 4, "spatial_dims": 2}, (2, 1, 32, 32)),
    "swin_unetr": ("SwinUNETR", {"in_channels": 1, "out_channels": 2, "feature_size": 12, "spatial_dims": 2},
                   (2, 1, 64, 64)),
    "densenet121": ("DenseNet121", {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}, (2, 1, 64, 64)),
    "resnet18": ("resnet18", {"spatial_dims": 3, "n_input_channels": 1, "num_classes": 2}, (2, 1, 32, 32, 32)),
    "senet": ("SEResNet50", {"spatial_dims": 2, "in_channels": 1, "num_classes": 2}, (2, 1, 64, 64)),
    "efficientnet": ("EfficientNetBN", {"model_name": "efficientnet-b0", "pretrained": False, "spatial_dims": 2,
                                        "in_channels": 1, "num_classes": 2}, (2, 1, 64, 64)),
    "vit": ("ViT", {"in_channels": 1, "img_size": (32, 32), "patch_size": (8, 8), "hidden_size": 48, "mlp_dim": 96,
                    "num_layers": 2, "num_heads": 4, "spatial_dims": 2, "classification": True}, (2, 1, 32, 32)),
    "autoencoder_kl": ("AutoencoderKL", {"spatial_dims": 2, "channels": (16, 16), "num_res_blocks": 1,
                                         "attention_levels": (False, False), "latent_channels": 4,
                                         "norm_num_groups": 8}, (2, 1, 32, 32)),
}  # fmt: skip
_SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96,
          "image_size": 64, "patch_size": 16}  # fmt: skip
_TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "vit": ("ViTForImageClassification", "ViTConfig", _SMALL, 64),
    "deit": ("DeiTForImageClassification", "DeiTConfig", _SMALL, 64),
    "beit": ("BeitForImageClassification", "BeitConfig", _SMALL, 64),
    "dinov2": ("Dinov2ForImageClassification", "Dinov2Config", _SMALL, 64),
    "dinov3": ("DINOv3ViTModel", "DINOv3ViTConfig", _SMALL, 64),
    "clip": ("CLIPVisionModel", "CLIPVisionConfig", _SMALL, 64),
    "siglip": ("SiglipVisionModel", "SiglipVisionConfig", _SMALL, 64),
    "vit_mae": ("ViTMAEModel", "ViTMAEConfig", {**_SMALL, "mask_ratio": 0.0}, 64),
    "ijepa": ("IJepaModel", "IJepaConfig", _SMALL, 64),
    "segformer": ("SegformerForSemanticSegmentation", "SegformerConfig", {"hidden_sizes": [16, 32, 48, 64]}, 64),
    "swin": ("SwinForImageClassification", "SwinConfig",
             {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "image_size": 64, "window_size": 4}, 64),
    "swinv2": ("Swinv2ForImageClassification", "Swinv2Config",
               {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "image_size": 64, "window_size": 4}, 64),
    "convnext": ("ConvNextForImageClassification", "ConvNextConfig", {"hidden_sizes": [16, 32, 48, 64]}, 64),
    "convnextv2": ("ConvNextV2ForImageClassification", "ConvNextV2Config", {"hidden_sizes": [16, 32, 48, 64]}, 64),
    "pvt": ("PvtForImageClassification", "PvtConfig", {"image_size": 64, "hidden_sizes": [16, 32, 80, 64]}, 64),
    "pvt_v2": ("PvtV2ForImageClassification", "PvtV2Config", {"image_size": 64}, 64),
    "dpt": ("DPTForDepthEstimation", "DPTConfig", {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
                                                   "intermediate_size": 96, "image_size": 64,
                                                   "backbone_out_indices": [0, 1, 2, 3],
                                                   "neck_hidden_sizes": [16, 24, 32, 32], "fusion_hidden_size": 16},
            64),
    "glpn": ("GLPNForDepthEstimation", "GLPNConfig", {"hidden_sizes": [16, 32, 80, 64]}, 64),
    "resnet": ("ResNetForImageClassification", "ResNetConfig", {"hidden_sizes": [32, 64, 96, 128]}, 64),
    "regnet": ("RegNetForImageClassification", "RegNetConfig", {}, 64),
    "bit": ("BitForImageClassification", "BitConfig", {"hidden_sizes": [64, 128, 256, 512]}, 64),
    "mobilenet_v1": ("MobileNetV1ForImageClassification", "MobileNetV1Config", {}, 64),
    "mobilenet_v2": ("MobileNetV2ForImageClassification", "MobileNetV2Config", {}, 64),
    "mobilevit": ("MobileViTForImageClassification", "MobileViTConfig", {"image_size": 64}, 64),
    "mobilevitv2": ("MobileViTV2ForImageClassification", "MobileViTV2Config", {"image_size": 64}, 64),
    "levit": ("LevitForImageClassification", "LevitConfig", {}, 224),
    "poolformer": ("PoolFormerForImageClassification", "PoolFormerConfig", {}, 64),
    "focalnet": ("FocalNetForImageClassification", "FocalNetConfig", {"image_size": 64, "embed_dim": 24}, 64),
    "efficientnet": ("EfficientNetForImageClassification", "EfficientNetConfig", {"image_size": 64}, 64),
    "swiftformer": ("SwiftFormerForImageClassification", "SwiftFormerConfig", {}, 64),
    "hiera": ("HieraForImageClassification", "HieraConfig", {}, 224),
    "upernet": ("UperNetForSemanticSegmentation", "UperNetConfig", {}, 64),
    "mask2former": ("Mask2FormerForUniversalSegmentation", "Mask2FormerConfig", {}, 64),
    "detr": ("DetrForObjectDetection", "DetrConfig", {"use_timm_backbone": False, "use_pretrained_backbone": False},
             64),
    "rt_detr": ("RTDetrForObjectDetection", "RTDetrConfig", {}, 128),
}  # fmt: skip

_SIDES = {"samvit_base_patch16": 256}
"""Where the images of a network's own size would take tens of gigabytes in double precision."""

WHOLE_WAY: dict[str, tuple[str, dict[str, Any], int]] = {
    "ultralytics:yolov8n": ("ultralytics:yolov8n.yaml", {}, 64),
    "ultralytics:yolo11n": ("ultralytics:yolo11n.yaml", {}, 64),
    "ultralytics:rtdetr-l": ("ultralytics:rtdetr-l.yaml", {}, 128),
    "transformers:segformer": (
        "transformers:SegformerConfig",
        {"config": {"hidden_sizes": [16, 32, 48, 64]}, "head": "semantic_segmentation"},
        64,
    ),
    "transformers:dinov3": ("transformers:DINOv3ViTConfig", {"config": dict(_SMALL), "head": "none"}, 64),
    "timm:swin_tiny_patch4_window7_224": ("timm:swin_tiny_patch4_window7_224", {}, 224),
}
"""Networks that are saved, loaded and exported too: the factory, its arguments and the images' side."""

_SLOW = """
timm:csatv2 timm:nasnetalarge timm:pnasnet5large timm:mobilenetv5_base timm:coat_tiny timm:cait_xxs24_224
timm:gcvit_xxtiny timm:gcvit_xtiny timm:efficientvit_m0 timm:tiny_vit_11m_224 timm:senet154 ultralytics:yolo12n
transformers:mask2former transformers:levit
"""
"""Networks of minutes rather than seconds."""


def names() -> Iterator[str]:
    """Every network, as ``library:name``."""
    yield from (f"timm:{name}" for name in _TIMM.split())
    yield from (f"segmentation_models_pytorch:{name}" for name in _SMP.split())
    yield from (f"ultralytics:{name}" for name in _ULTRALYTICS.split())
    yield from (f"vit_pytorch:{name}" for name in _VIT)
    yield from (f"monai:{name}" for name in _MONAI)
    yield from (f"transformers:{name}" for name in _TRANSFORMERS)


def in_order(todo: Iterable[str]) -> list[str]:
    """Put the networks that go the whole way first and the slow ones last."""
    slow = frozenset(_SLOW.split())
    return sorted(todo, key=lambda name: (name in slow, name not in WHOLE_WAY))


def build(name: str) -> tuple[nn.Module, tuple[Any, ...]]:
    """Make a network and what it is fed: two images, small where it takes any size."""
    library, _, what = name.partition(":")
    return {
        "timm": _timm, "segmentation_models_pytorch": _smp, "ultralytics": _ultralytics, "vit_pytorch": _vit,
        "monai": _monai, "transformers": _transformers,
    }[library](what)  # fmt: skip


def _timm(what: str) -> tuple[nn.Module, tuple[Any, ...]]:
    timm = importlib.import_module("timm")
    side = _SIDES.get(what)
    model = timm.create_model(what, pretrained=False, num_classes=10, **({"img_size": side} if side else {}))
    shape = (3, side, side) if side else model.default_cfg.get("input_size", (3, 224, 224))
    return model, (torch.randn(2, *shape),)


def _smp(what: str) -> tuple[nn.Module, tuple[Any, ...]]:
    architecture, encoder = what.split("/")
    smp = importlib.import_module("segmentation_models_pytorch")
    side = 128 if architecture == "pan" else 64
    return smp.create_model(architecture, encoder, encoder_weights=None, classes=3), (torch.randn(2, 3, side, side),)


def _ultralytics(what: str) -> tuple[nn.Module, tuple[Any, ...]]:
    tasks = importlib.import_module("ultralytics.nn.tasks")
    kinds = {
        "-cls": "ClassificationModel", "-seg": "SegmentationModel", "-pose": "PoseModel", "-obb": "OBBModel",
        "rtdetr": "RTDETRDetectionModel",
    }  # fmt: skip
    kind = next((kind for part, kind in kinds.items() if part in what), "DetectionModel")
    side = 128 if "rtdetr" in what else 64
    return getattr(tasks, kind)(f"{what}.yaml", verbose=False), (torch.randn(2, 3, side, side),)


def _vit(what: str) -> tuple[nn.Module, tuple[Any, ...]]:
    module, kind, more = _VIT[what]
    settings = {"image_size": 32, "patch_size": 8, "num_classes": 10, "dim": 48, "depth": 2, "heads": 4} | more
    return getattr(importlib.import_module(f"vit_pytorch.{module}"), kind)(**settings), (torch.randn(2, 3, 32, 32),)


def _monai(what: str) -> tuple[nn.Module, tuple[Any, ...]]:
    kind, settings, shape = _MONAI[what]
    return getattr(importlib.import_module("monai.networks.nets"), kind)(**settings), (torch.randn(shape),)


def _transformers(what: str) -> tuple[nn.Module, tuple[Any, ...]]:
    kind, config, settings, side = _TRANSFORMERS[what]
    library = importlib.import_module("transformers")
    return getattr(library, kind)(getattr(library, config)(**settings)), (torch.randn(2, 3, side, side),)
