"""A trained detector and a trained segmenter, small enough to come with edgevit: geometric shapes on textures.

RetinaNet and semantic FPN on a small ShiftViT. tests/tools/train_dense.py trains both on pictures that it draws
(tests/helpers/shapes.py). They show on a CPU, and in seconds, that an engine still finds what PyTorch finds.
"""

from __future__ import annotations

from edgevit.images import Preprocessing
from edgevit.models.dense.retinanet import DetectorOutputs, RetinaNet, class_count
from edgevit.models.dense.segmenter import SegmenterOutputs
from edgevit.models.dense.semantic_fpn import SemanticFPN
from edgevit.models.shiftvit import ShiftViT, ShiftViTBackbone
from edgevit.models.spec import ModelSpec, PaperFigures

PREPROCESSING = Preprocessing(input_size=(3, 64, 64), interpolation="bilinear", resize="fit")
OWN_FIGURES = PaperFigures(source="this project: see docs/dense.md")


def backbone() -> ShiftViTBackbone:
    """Return a ShiftViT of 0.4 M parameters, without its classifier."""
    return ShiftViTBackbone(ShiftViT(embed_dim=24, depths=(1, 1, 3, 1), mlp_ratio=2))


def retinanet(
    *,
    img_size: tuple[int, int],
    num_classes: int,
    topk: int | None = None,
    max_detections: int = 100,
    outputs: DetectorOutputs = "boxes",
) -> RetinaNet:
    """Return RetinaNet with a narrow head."""
    return RetinaNet(
        backbone(),
        img_size=img_size,
        num_classes=num_classes,
        head_width=48,
        stacked_convs=2,
        topk=topk,
        max_detections=max_detections,
        outputs=outputs,
    )


def semantic_fpn(*, img_size: tuple[int, int], num_classes: int, outputs: SegmenterOutputs = "logits") -> SemanticFPN:
    """Return semantic FPN with a narrow pyramid and head."""
    return SemanticFPN(
        backbone(), img_size=img_size, num_classes=num_classes, fpn_width=32, head_width=32, outputs=outputs
    )


SPECS = (
    ModelSpec(
        name="shiftvit_shapes_retinanet",
        family="shiftvit",
        task="detection",
        factory=retinanet,
        preprocessing=PREPROCESSING,
        num_classes=5,
        classes="shapes",
        class_count=class_count,
        paper=OWN_FIGURES,
        included_weights="shiftvit_shapes_retinanet.safetensors",
    ),
    ModelSpec(
        name="shiftvit_shapes_semfpn",
        family="shiftvit",
        task="segmentation",
        factory=semantic_fpn,
        preprocessing=PREPROCESSING,
        num_classes=6,
        classes="shapes_and_background",
        paper=OWN_FIGURES,
        included_weights="shiftvit_shapes_semfpn.safetensors",
    ),
)
