"""Small detectors and segmenters on a tiny backbone, for tests of what is made of them."""

from __future__ import annotations

from typing import Any

from edgevit.models.dense.retinanet import RetinaNet
from edgevit.models.dense.semantic_fpn import SemanticFPN
from edgevit.models.dense.upernet import UPerNet
from edgevit.models.dense.vt_fpn import FPNSegmenter, TokenPyramid
from edgevit.models.initialization import randomize
from tests.helpers.backbones import TinyBackbone

SIZE = (64, 96)
CLASSES = 3


def small_retinanet(**options: Any) -> RetinaNet:
    """RetinaNet with one convolution in each stack of its head."""
    small = {"num_classes": CLASSES, "head_width": 16, "stacked_convs": 1}
    model = RetinaNet(TinyBackbone(), img_size=SIZE, **{**small, **options}).eval()
    randomize(model, seed=2)
    return model


def small_semantic_fpn(**options: Any) -> SemanticFPN:
    small = {"num_classes": CLASSES, "fpn_width": 16, "head_width": 16}
    model = SemanticFPN(TinyBackbone(), img_size=SIZE, **{**small, **options}).eval()
    randomize(model, seed=2)
    return model


def small_upernet(**options: Any) -> UPerNet:
    small = {"num_classes": CLASSES, "head_width": 16}
    model = UPerNet(TinyBackbone(), img_size=SIZE, **{**small, **options}).eval()
    randomize(model, seed=2)
    return model


def small_vt_fpn(**options: Any) -> FPNSegmenter:
    """VT-FPN, whose pyramid and branch have one width, on a tiny backbone."""
    pyramid = TokenPyramid(TinyBackbone(), **{"mode": "appendix", "value_conv": False, "position": False, **options})
    model = FPNSegmenter(pyramid, img_size=SIZE, num_classes=CLASSES, norm="GN", outputs="logits").eval()
    randomize(model, seed=2)
    return model
