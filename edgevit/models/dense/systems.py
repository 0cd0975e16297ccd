"""The registered detectors and segmenters: each hierarchical backbone with three heads, and VT-FPN on ResNets.

No trained weights of these systems are published. Checkpoints that users trained with mmdet, mmseg or Detectron2 load
by their own keys.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from edgevit.images import Preprocessing
from edgevit.models import mobileformer, shiftvit, swin, vitaev2
from edgevit.models.dense.e2e_mobileformer import PLAN, E2EMobileFormer, E2EOutputs, Scale
from edgevit.models.dense.fpn import ExtraConvs
from edgevit.models.dense.retinanet import DetectorOutputs, RetinaNet, class_count
from edgevit.models.dense.segmenter import SegmenterOutputs
from edgevit.models.dense.semantic_fpn import SemanticFPN
from edgevit.models.dense.swin_names import from_openmmlab_swin
from edgevit.models.dense.upernet import UPerNet
from edgevit.models.dense.vt_fpn import fpn, from_detectron2, resnet_of, vt_fpn
from edgevit.models.features import Backbone
from edgevit.models.spec import ModelSpec, PaperFigures, StateDict

_LOG = logging.getLogger(__name__)

# In a checkpoint, but not part of the network that is exported: layers of training, and those of the classifier that
# a backbone was initialized from.
UNUSED = ("auxiliary_head.", *(f"backbone.{part}." for part in ("norm", "head", "local_global", "classifier")))
# The paper's detectors have a ReLU that depends on the pixel; the same weights fit both.
DENSE_OPTIONS: Mapping[str, Mapping[str, Any]] = {"mobileformer": {"spatial_relu": True}}
BACKBONES = (*mobileformer.SPECS, *vitaev2.SPECS, *shiftvit.SPECS, *swin.SPECS)
PREPROCESSING = Preprocessing(input_size=(3, 512, 512), interpolation="bilinear", resize="fit")
NO_FIGURES = PaperFigures(source="no figures: a composition of published parts")


def backbone_of(spec: ModelSpec, img_size: tuple[int, int], options: Mapping[str, Any] | None) -> Backbone:
    """Return the backbone of a registered classifier, for images of a size; `options` replace single ones of it."""
    assert spec.backbone is not None
    config = {**spec.options, **spec.backbone_options, **DENSE_OPTIONS.get(spec.family, {}), **(options or {})}
    if "pad_windows" in spec.backbone_options:  # its masks depend on the size
        config["img_size"] = img_size
    return spec.backbone(spec.factory(**config))


def retinanet(
    spec: ModelSpec,
    *,
    img_size: tuple[int, int],
    num_classes: int,
    head_width: int = 256,
    stacked_convs: int = 4,
    extra_convs: ExtraConvs = "on_input",
    topk: int | None = None,
    max_detections: int = 100,
    outputs: DetectorOutputs = "boxes",
    backbone_options: Mapping[str, Any] | None = None,
) -> RetinaNet:
    """Return RetinaNet on the backbone of a classifier; `backbone_options` are options of that."""
    return RetinaNet(
        backbone_of(spec, img_size, backbone_options),
        img_size=img_size,
        num_classes=num_classes,
        head_width=head_width,
        stacked_convs=stacked_convs,
        extra_convs=extra_convs,
        topk=topk,
        max_detections=max_detections,
        outputs=outputs,
    )


def semantic_fpn(
    spec: ModelSpec,
    *,
    img_size: tuple[int, int],
    num_classes: int,
    fpn_width: int = 256,
    head_width: int = 128,
    outputs: SegmenterOutputs = "logits",
    backbone_options: Mapping[str, Any] | None = None,
) -> SemanticFPN:
    """Return semantic FPN on the backbone of a classifier; `backbone_options` are options of that."""
    return SemanticFPN(
        backbone_of(spec, img_size, backbone_options),
        img_size=img_size,
        num_classes=num_classes,
        fpn_width=fpn_width,
        head_width=head_width,
        outputs=outputs,
    )


def upernet(
    spec: ModelSpec,
    *,
    img_size: tuple[int, int],
    num_classes: int,
    head_width: int = 512,
    outputs: SegmenterOutputs = "logits",
    backbone_options: Mapping[str, Any] | None = None,
) -> UPerNet:
    """Return UPerNet on the backbone of a classifier; `backbone_options` are options of that."""
    return UPerNet(
        backbone_of(spec, img_size, backbone_options),
        img_size=img_size,
        num_classes=num_classes,
        head_width=head_width,
        outputs=outputs,
    )


def e2e_mobileformer(
    spec: ModelSpec,
    *,
    img_size: tuple[int, int],
    num_classes: int,
    plan: tuple[Scale, ...] = PLAN,
    queries: int = 100,
    outputs: E2EOutputs = "boxes",
    backbone_options: Mapping[str, Any] | None = None,
) -> E2EMobileFormer:
    """Return the reconstruction of Mobile-Former's end-to-end detector on the backbone of a classifier."""
    return E2EMobileFormer(
        backbone_of(spec, img_size, backbone_options),
        img_size=img_size,
        num_classes=num_classes,
        plan=plan,
        queries=queries,
        outputs=outputs,
    )


def from_openmmlab(spec: ModelSpec, tensors: StateDict) -> StateDict:
    """Return the tensors of an mmdet or mmseg checkpoint that the network uses; a warning names the others."""
    left_out = Counter(prefix for key in tensors for prefix in UNUSED if key.startswith(prefix))
    if left_out:
        parts = ", ".join(f"{prefix}* ({count})" for prefix, count in sorted(left_out.items()))
        _LOG.warning("edgevit: tensors of the checkpoint that the exported network does not use: %s", parts)
    used = {key: value for key, value in tensors.items() if not key.startswith(UNUSED)}
    used = from_openmmlab_swin(used)
    return spec.convert_state_dict(used) if spec.convert_state_dict else used


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    """A kind of head: the parts that all systems with it share."""

    suffix: str
    factory: Callable[..., nn.Module]
    task: Any
    num_classes: int
    classes: str
    class_count: Callable[[StateDict], int | None] | None = None


_HEADS = (
    _Head(suffix="retinanet", factory=retinanet, task="detection", num_classes=80, classes="coco",
          class_count=class_count),
    _Head(suffix="semfpn", factory=semantic_fpn, task="segmentation", num_classes=150, classes="ade20k"),
    _Head(suffix="upernet", factory=upernet, task="segmentation", num_classes=150, classes="ade20k"),
)  # fmt: skip


def _on_backbone(spec: ModelSpec, head: _Head) -> ModelSpec:
    return ModelSpec(
        name=f"{spec.name}_{head.suffix}",
        family=spec.family,
        task=head.task,
        factory=partial(head.factory, spec),
        preprocessing=PREPROCESSING,
        num_classes=head.num_classes,
        classes=head.classes,
        class_count=head.class_count,
        paper=NO_FIGURES,
        convert_state_dict=partial(from_openmmlab, spec),
    )


_MOBILEFORMER_508M = next(spec for spec in mobileformer.SPECS if spec.name == "mobileformer_508m")
_PAPER = "arXiv 2006.03677, table on COCO-stuff, MACs at 800x1216"


def _on_resnet(name: str, factory: Callable[..., nn.Module], depth: int, macs_g: float) -> ModelSpec:
    return ModelSpec(
        name=name,
        family="visual_transformers",
        task="segmentation",
        factory=partial(factory, depth),
        preprocessing=PREPROCESSING,
        num_classes=54,
        paper=PaperFigures(macs_g=macs_g, source=_PAPER),
        convert_state_dict=from_detectron2,
        backbone=resnet_of,
    )


SPECS = (
    *(
        _on_backbone(spec, head)
        for head in _HEADS
        for spec in BACKBONES
        if spec.backbone is not None and spec.name != "shiftvit_cifar10"  # its maps have other strides
    ),
    ModelSpec(
        name="e2e_mf_508m",
        family="mobileformer",
        task="detection",
        factory=partial(e2e_mobileformer, _MOBILEFORMER_508M),
        preprocessing=PREPROCESSING,
        num_classes=80,
        classes="coco",
        paper=PaperFigures(source="none: a reconstruction; the authors published neither code nor the head's layout"),
        convert_state_dict=partial(from_openmmlab, _MOBILEFORMER_508M),
    ),
    _on_resnet("fpn_r50", fpn, 50, 159),
    _on_resnet("fpn_r101", fpn, 101, 231),
    _on_resnet("vt_fpn_r50", vt_fpn, 50, 113),
    _on_resnet("vt_fpn_r101", vt_fpn, 101, 185),
)
