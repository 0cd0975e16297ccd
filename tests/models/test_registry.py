"""Every registered model goes the whole road: it builds, exports, computes what PyTorch computes, and leaves a clean
graph. The everyday suite takes two small ones (test_int8.py takes another); `make test-all` takes all,
and with a dynamic batch those that are not just deeper or wider than another."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import edgevit
from edgevit.errors import UsageError
from edgevit.export.graph import OnnxGraph
from edgevit.models import loading, registry
from edgevit.models.layers import DropPath
from edgevit.pipeline import run as pipeline
from edgevit.runtimes.base import BatchRange, BuildOptions
from edgevit.runtimes.parity import MIN_INPUT_SENSITIVITY
from tests.helpers.graphs import MAX_RANK, UNWANTED_OPERATORS, max_rank, unwanted_operators

EVERYDAY = {"shiftvit_t_light"}
BATCHES = {"static": BuildOptions(), "dynamic": BuildOptions(dynamic_batch=BatchRange(1, 1, 3))}
EVERYDAY_DYNAMIC = {"shuffle_deit_t"}
DYNAMIC = EVERYDAY | EVERYDAY_DYNAMIC | {"mobileformer_26m", "vitae_t", "vt_resnet18", "deit_t", "t2t_vit_7", "swin_xt",
                                         "vitaev2_s", "shuffle_t2t_7", "shuffle_swin_xt"}  # fmt: skip
CASES = [
    pytest.param(name, batch, marks=() if name in everyday else pytest.mark.large)
    for name in registry.list_models()
    if name != "shiftvit_cifar10"  # test_export.py has it
    for batch, everyday, names in (
        ("static", EVERYDAY, registry.list_models()),
        ("dynamic", EVERYDAY_DYNAMIC, DYNAMIC),
    )
    if name in names
]


@pytest.mark.parametrize(("name", "batch"), CASES)
def test_goes_the_whole_road(name: str, batch: str, tmp_path: Path) -> None:
    config = pipeline.ExportConfig(formats=("ort", "openvino"), options=BATCHES[batch], out=tmp_path, latency=False)
    report = pipeline.run(loading.from_name(name), config)
    assert report.parity.passed
    assert min(result.input_sensitivity for result in report.parity.results) > MIN_INPUT_SENSITIVITY
    for bundle in report.bundles:
        graph = OnnxGraph.load(bundle.path / "model.onnx")
        assert unwanted_operators(graph) == {}
        assert max_rank(graph) <= MAX_RANK
        assert "BatchNormalization" not in graph.operators


def test_a_dynamic_batch_is_tested_in_every_family() -> None:
    families = {registry.get_spec(name).family for name in DYNAMIC}
    assert families == {registry.get_spec(name).family for name in registry.list_models()}
    assert "ScatterND" in UNWANTED_OPERATORS


@pytest.mark.parametrize("name", registry.list_models())
def test_has_its_figures(name: str) -> None:
    spec = registry.get_spec(name)
    assert spec.name == name
    assert spec.paper.source
    assert spec.preprocessing.input_size[0] == 3


NO_SIZES = [
    ("shiftvit_t", {"patch_size": 0}),
    ("shiftvit_t", {"embed_dim": -96, "n_div": -12}),
    ("shiftvit_t", {"depths": (1, 0, 1, 1)}),
    ("shiftvit_t", {"depths": [1, 1, -1, 1]}),
    ("deit_t", {"depth": 0}),
    ("t2t_vit_7", {"token_dim": 0}),
    ("swin_t", {"window_size": -7}),
    ("vitae_t", {"groups": 0}),
    ("vitaev2_s", {"token_dims": (0, 1, 1, 1)}),
    ("vt_resnet18", {"width": 0}),
    ("mobileformer_26m", {"fc_dim": 0}),
]


@pytest.mark.parametrize(("name", "options"), NO_SIZES)
def test_sizes_below_one_are_refused(name: str, options: dict[str, Any]) -> None:
    option, value = next(iter(options.items()))
    with pytest.raises(UsageError, match=f"^{option} must be at least 1, not {re.escape(str(value))}$"):
        edgevit.create_model(name, **options)


def test_a_rate_of_zero_is_not_a_size() -> None:
    model = edgevit.create_model("shiftvit_t_light", drop_path_rate=0)
    rates = [module.rate for module in model.modules() if isinstance(module, DropPath)]
    assert rates and not any(rates)
