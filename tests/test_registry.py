"""Every registered model goes the whole road: it builds, exports, computes what PyTorch computes, and leaves a clean
graph. The everyday suite takes the smallest of each architecture, `make test-all` takes all."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgevit import pipeline, subject
from edgevit.export.check import HOSTILE, LARGEST_RANK, hostile_operators, largest_rank
from edgevit.export.graph import OnnxGraph
from edgevit.models import registry
from edgevit.runtimes.base import BatchRange, BuildOptions
from edgevit.runtimes.parity import LEAST_DEPENDENCE

EVERYDAY = {"shiftvit_t_light", "mobileformer_26m", "vitae_t", "vitaev2_s", "shuffle_deit_t", "shuffle_t2t_7",
            "shuffle_swin_xt", "vt_resnet18"}  # fmt: skip
MODELS = [
    pytest.param(name, marks=() if name in EVERYDAY else pytest.mark.large)
    for name in registry.list_models()
    if name != "shiftvit_cifar10"  # test_export.py has it
]
BATCHES = {"static": BuildOptions(), "dynamic": BuildOptions(dynamic_batch=BatchRange(1, 1, 3))}


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", MODELS)
def test_goes_the_whole_road(name: str, batch: str, tmp_path: Path) -> None:
    recipe = pipeline.Recipe(formats=("ort", "openvino"), options=BATCHES[batch], out=tmp_path, latency=False)
    report = pipeline.run(subject.from_name(name), recipe)
    assert report.parity.passed
    assert min(result.dependence for result in report.parity.results) > LEAST_DEPENDENCE
    for bundle in report.bundles:
        graph = OnnxGraph.load(bundle.path / "model.onnx")
        assert hostile_operators(graph) == {}
        assert largest_rank(graph) <= LARGEST_RANK
        assert "BatchNormalization" not in graph.operators


def test_everyday_models_cover_every_architecture() -> None:
    factories = {registry.get_spec(name).family for name in EVERYDAY}
    assert factories == {registry.get_spec(name).family for name in registry.list_models()}
    assert "ScatterND" in HOSTILE


@pytest.mark.parametrize("name", registry.list_models())
def test_has_its_figures(name: str) -> None:
    spec = registry.get_spec(name)
    assert spec.name == name
    assert spec.paper.source
    assert spec.preprocessing.input_size[0] == 3
