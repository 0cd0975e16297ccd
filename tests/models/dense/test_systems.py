"""Every kind of detector and segmenter is exported, and its engines output what PyTorch outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import edgevit
from edgevit.errors import UsageError
from edgevit.export.graph import OnnxGraph
from edgevit.models import loading, registry
from edgevit.models.registry import OutputChoice
from edgevit.pipeline import run as pipeline
from edgevit.pipeline.report import ExportReport
from edgevit.runtimes.base import BatchRange, BuildOptions
from tests.helpers.graphs import unwanted_operators

SMALL: dict[str, Any] = {"img_size": (64, 96), "num_classes": 3, "head_width": 32}
BACKBONE = {"embed_dim": 24, "depths": (1, 1, 1, 1)}  # of a ShiftViT
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "boxes": ("shiftvit_t_light_retinanet", {"stacked_convs": 1, "topk": 40}),
    "nms": ("shiftvit_t_light_retinanet", {"stacked_convs": 1, "max_detections": 4, "num_classes": 80}),
    "classes": ("shiftvit_t_light_semfpn", {"fpn_width": 32}),
    "raw": ("shiftvit_t_light_retinanet", {"stacked_convs": 1}),
    "logits": ("shiftvit_t_light_semfpn", {"fpn_width": 32}),
    "upernet": ("shiftvit_t_light_upernet", {}),
}


def small_model(name: str, **options: Any) -> loading.LoadedModel:
    module = edgevit.create_model(name, **{**SMALL, "backbone_options": BACKBONE, **options})
    loading.draw_weights(module)
    return loading.from_module(module)


@pytest.mark.parametrize("kind", ["boxes", "upernet"])
def test_an_export_is_proven(kind: str, tmp_path: Path) -> None:
    _, operators = proven_export(kind, tmp_path, None)
    assert not {"Shape", "NonMaxSuppression", "NonZero"} & operators


@pytest.mark.large
@pytest.mark.parametrize("kind", ["nms", "classes", "raw", "logits"])
def test_an_export_with_a_dynamic_batch_is_proven_at_every_batch(kind: str, tmp_path: Path) -> None:
    report, operators = proven_export(kind, tmp_path, BatchRange(1, 2, 3))
    assert {result.batch for result in report.parity.results} == {1, 2, 3}
    assert not {"NonMaxSuppression", "NonZero"} & operators


def proven_export(kind: str, out: Path, batch: BatchRange | None) -> tuple[ExportReport, set[str]]:
    """Export a kind to both runtimes. Returns the report and the operators of the graph."""
    name, options = KINDS[kind]
    outputs = {} if kind in ("upernet", "logits") else {"outputs": kind}
    config = pipeline.ExportConfig(
        formats=("ort", "openvino"), options=BuildOptions(dynamic_batch=batch), out=out, latency=False
    )
    report = pipeline.run(small_model(name, **options, **outputs), config)
    assert report.parity.passed
    graph = OnnxGraph.load(report.bundles[0].path / "model.onnx")
    assert set(unwanted_operators(graph)) <= {"Shape"}  # of a dynamic batch
    return report, set(graph.operators)


def test_a_classifier_outputs_its_features_and_nothing_that_it_does_not_have() -> None:
    assert registry.output_options("shiftvit_t", "features") == OutputChoice(features=True)
    assert registry.output_options("shiftvit_t", "logits") == OutputChoice()
    assert registry.output_options("shiftvit_t", None) == OutputChoice()
    with pytest.raises(UsageError, match="shiftvit_t is a classifier; it outputs logits or features, not boxes"):
        registry.output_options("shiftvit_t", "boxes")


def test_the_description_says_task_outputs_and_classes() -> None:
    detector = small_model("shiftvit_t_light_retinanet", outputs="raw")
    assert (detector.origin.task, detector.origin.output_form) == ("detection", "raw")
    segmenter = small_model("shiftvit_t_light_semfpn", num_classes=150)
    assert (segmenter.origin.task, segmenter.origin.output_form) == ("segmentation", "logits")
    assert segmenter.classes is not None
    assert (len(segmenter.classes), segmenter.classes[0], segmenter.classes[-1]) == (150, "wall", "flag")
    assert small_model("shiftvit_t_light_semfpn").classes is None


def test_the_names_of_coco_are_in_the_order_of_mmdets_classes() -> None:
    names = loading.class_names("coco")
    assert (len(names), len(set(names)), names[0], names[79]) == (80, 80, "person", "toothbrush")


def test_every_backbone_has_three_systems_and_no_size_but_its_own_is_the_default() -> None:
    detectors, segmenters = (
        [name for name in registry.list_models(task=task) if not name.startswith("shiftvit_shapes")]
        for task in ("detection", "segmentation")
    )
    names = {name.removesuffix("_retinanet") for name in detectors if name.endswith("_retinanet")}
    assert {f"{name}_{head}" for name in names for head in ("semfpn", "upernet")} <= set(segmenters)
    assert {"mobileformer_508m", "vitaev2_s", "shiftvit_t", "swin_t", "shuffle_swin_xt"} <= names
    assert "shiftvit_cifar10" not in names
    for name in (*detectors, *segmenters):
        assert registry.get_spec(name).preprocessing.input_size == (3, 512, 512)
