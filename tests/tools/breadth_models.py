"""The architectures that `tests.tools.breadth` exports: of timm and three other packages, by random weights.

A name is `timm:NAME`, `torchvision:NAME`, `transformers:CLASS` or `smp:CLASS` (segmentation-models-pytorch). None of
the packages is a dependency.
"""

from __future__ import annotations

import functools
import importlib
import sys
from typing import Any

import torch
from torch import nn

# The smallest architecture of each module of timm 1.0.31 that is not there for timm's own tests, and one more of
# modules that hold several kinds; small ones come first. The last lines are further kinds of such modules.
TIMM = """
starnet_s050 vit_tiny_patch16_224 dla46x_c mobilevit_xxs edgenext_xx_small mobilenetv3_small_050 ese_vovnet19b_slim_dw
repghostnet_050 efficientvit_m0 ghostnet_050 regnetx_002 cspnext_tiny iformer_t xcit_nano_12_p8_224 cs3darknet_focus_s
efficientvit_b0 swiftformer_xs efficientformerv2_s0 pvt_v2_b0 fasternet_t0 fastvit_t8 lcnetv2_small inception_next_atto
rexnet_100 pit_ti_224 hardcorenas_b repvit_m1 vit_tiny_patch16_dinov3_qkvb coat_tiny convit_tiny
convnext_atto convnextv2_atto mobilenetv4_conv_small_050 mobilenetv4_conv_small mobilenetv2_050 mnasnet_small
efficientnet_b0 efficientnet_lite0 tinynet_e resnet10t resnet18 repvgg_a0 mobileone_s0 mambaout_femto nfnet_l0
coatnet_pico_rw_224 maxvit_pico_rw_256 vit_relpos_small_patch16_224 eva02_tiny_patch14_224 mixer_s32_224 resmlp_12_224
ghostnetv2_100 regnety_002 botnet26t_256 lambda_resnet26t bat_resnext26ts mobilevitv2_050 repvit_m0_9 resnetv2_50
deit_tiny_patch16_224 gmlp_ti16_224 hgnetv2_b0 shvit_s1 vit_tiny_r_s16_p8_224 cpubone_nano efficientvim_m1
crossvit_tiny_240 levit_128s densenet121 halonet_h1 dpn48b visformer_tiny resnest14d csatv2 resnetv2_18
legacy_seresnet18 poolformerv2_s12 cait_xxs24_224 skresnet18 gcvit_xxtiny tiny_vit_5m_224 efficientformer_l1
hrnet_w18_small lowformer_b0 nest_tiny convmixer_768_32 vitamin_small_224 legacy_xception tnt_s_legacy_patch16_224
inception_v3 rdnet_tiny twins_svt_small mvitv2_tiny res2next50 volo_d1_224 sam2_hiera_tiny xception41p sequencer2d_s
hiera_tiny_224 swin_tiny_patch4_window7_224 swinv2_cr_tiny_224 swinv2_tiny_window16_256 davit_tiny
focalnet_tiny_srf selecsls42 tresnet_m nextvit_small
inception_v4 inception_resnet_v2 mobilenetv5_base samvit_base_patch16_224 beit_base_patch16_224 qwen3_vit_88m
pnasnet5large nasnetalarge vgg11 naflexvit_base_patch16_parfac_gap
lcnet_050 mobilenetv1_100 mixnet_s fbnetc_100 spnasnet_100 semnasnet_075 resnet14t seresnext26ts gcresnext26ts
eca_resnext26ts regnetz_005 mobilenet_edgetpu_v2_xs convnext_zepto_rms levit_conv_128s tf_mobilenetv3_small_minimal_100
""".split()  # noqa: SIM905  # a list would have a line for each

TORCHVISION = """
squeezenet1_1 shufflenet_v2_x0_5 mobilenet_v2 mobilenet_v3_small mnasnet0_5 efficientnet_b0 regnet_x_400mf googlenet
resnet18 lraspp_mobilenet_v3_large deeplabv3_mobilenet_v3_large convnext_tiny swin_t swin_v2_t maxvit_t vit_b_16
""".split()  # noqa: SIM905  # a list would have a line for each

SMP = "Unet UnetPlusPlus MAnet".split()  # noqa: SIM905  # as the lists above

_SMALL: dict[str, Any] = {
    "hidden_size": 192,
    "num_hidden_layers": 6,
    "num_attention_heads": 3,
    "intermediate_size": 768,
}
_TOWER: dict[str, Any] = {"vision_config": _SMALL}

# Each with the options of its configuration that differ from the defaults: plain transformers are made smaller.
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "MobileNetV1ForImageClassification": {},
    "MobileNetV2ForImageClassification": {},
    "MobileViTForImageClassification": {},
    "MobileViTV2ForImageClassification": {},
    "PvtForImageClassification": {},
    "PvtV2ForImageClassification": {},
    "SwiftFormerForImageClassification": {},
    "SegformerForSemanticSegmentation": {},
    "MobileViTForSemanticSegmentation": {},
    "ViTForImageClassification": _SMALL,
    "DeiTForImageClassification": _SMALL,
    "BeitForImageClassification": _SMALL,
    "Data2VecVisionForImageClassification": _SMALL,
    "Dinov2ForImageClassification": {**_SMALL, "image_size": 224},
    "ViTMSNForImageClassification": _SMALL,
    "YolosForObjectDetection": {**_SMALL, "image_size": [224, 224], "num_detection_tokens": 20},
    "CLIPForImageClassification": _TOWER,
    "SiglipForImageClassification": _TOWER,
    "LevitForImageClassification": {},
    "PoolFormerForImageClassification": {},
    "CvtForImageClassification": {},
    "ResNetForImageClassification": {},
    "RegNetForImageClassification": {},
    "BitForImageClassification": {},
    "ConvNextForImageClassification": {},
    "ConvNextV2ForImageClassification": {},
    "FocalNetForImageClassification": {},
    "HGNetV2ForImageClassification": {},
    "SwinForImageClassification": {},
    "Swinv2ForImageClassification": {},
    "DetrForObjectDetection": {"encoder_layers": 2, "decoder_layers": 2, "num_queries": 20},
    "DPTForDepthEstimation": {**_SMALL, "image_size": 224, "backbone_out_indices": [1, 2, 4, 5]},
    "GLPNForDepthEstimation": {},
}

# Causes of failures, as far as they are known.
CAUSES = {
    "timm:efficientvit_m0": "the random weights: PyTorch's own float32 is 2e-5 std off, 10 times as far as usual",
    "timm:repvit_m0_9": "the random weights: PyTorch's own float32 is 3e-5 std off, 20 times as far as usual",
}

_OPERATORS = ("nms", "qnms")  # of torchvision, registered by its extension


def default_names() -> list[str]:
    """Return the names of all architectures; those of the other packages between those of timm."""
    packages = {"torchvision": TORCHVISION, "transformers": TRANSFORMERS, "smp": SMP}
    others = [f"{package}:{name}" for package, names in packages.items() for name in names]
    timm = [f"timm:{name}" for name in TIMM]
    every = len(timm) // len(others)
    mixed = [name for index, other in enumerate(others) for name in (*timm[index * every : (index + 1) * every], other)]
    return mixed + timm[len(others) * every :]


def create(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """Return a model with the weights of its constructor, and the shape of one input image."""
    package, _, kind = name.partition(":")
    if package == "timm":
        module = import_timm().create_model(kind, pretrained=False)
        declared: tuple[int, ...] = module.pretrained_cfg["input_size"]
        return module, declared
    if package == "smp":
        return segmenter(kind), (3, 128, 128)
    if package == "torchvision":
        import_timm()
        models: Any = importlib.import_module("torchvision.models")
        kind_options = {"aux_logits": False, "init_weights": False} if kind == "googlenet" else {}
        find = getattr(models, kind, None) or getattr(models.segmentation, kind)
        options = {} if "3_large" not in kind else {"weights_backbone": None}
        return find(weights=None, **kind_options, **options), (3, 224, 224)
    return _create_transformers(kind)


def segmenter(kind: str) -> nn.Module:
    """Return a segmenter of segmentation-models-pytorch for four classes."""
    import_timm()
    create = getattr(importlib.import_module("segmentation_models_pytorch"), kind)
    module: nn.Module = create("resnet18", encoder_weights=None, classes=4)
    return module


def _create_transformers(kind: str) -> tuple[nn.Module, tuple[int, ...]]:
    transformers: Any = importlib.import_module("transformers")
    model_class = getattr(transformers, kind)
    config = model_class.config_class(**TRANSFORMERS[kind])
    size = getattr(getattr(config, "vision_config", config), "image_size", None) or 224
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return model_class(config), (3, height, width)


@functools.cache
def import_timm() -> Any:
    """Import timm, also beside a PyTorch without torchvision's operators.

    On a CPU build of PyTorch the public wheel of torchvision cannot be imported unless they are defined. They must not
    be where its own library defines them: a second definition ends the process.
    """
    library = None
    try:
        importlib.import_module("torchvision")
    except RuntimeError:  # operator torchvision::nms does not exist
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for operator in _OPERATORS:
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    timm: Any = importlib.import_module("timm")
    timm.torchvision_operators = library  # they last as long as the library object
    return timm
