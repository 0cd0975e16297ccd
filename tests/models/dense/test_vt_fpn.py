"""VT-FPN costs what the paper prints, and its tokens do what the paper says; no implementation was published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgevit import create_model
from edgevit.export.graph import OnnxGraph
from edgevit.models import loading
from edgevit.models.dense.vt_fpn import PYRAMID_WIDTH, TOKENS, TokenPyramid
from edgevit.models.features import Backbone
from edgevit.models.initialization import randomize
from edgevit.models.registry import get_spec
from edgevit.pipeline import run as pipeline
from tests.helpers.dense_models import SIZE, small_vt_fpn
from tests.helpers.graphs import unwanted_operators
from tests.helpers.macs import macs

SIZES = ((16, 24), (8, 12), (4, 6), (2, 3))


class NoBackbone(Backbone):
    channels = (256, 256, 256, 256)

    def feature_maps(self, x: Tensor) -> tuple[Tensor, ...]:
        height, width = x.shape[2:]
        return tuple(x.new_zeros(len(x), 256, -(-height >> level), -(-width >> level)) for level in range(2, 6))


def token_pyramid(mode: Any = "appendix", **options: Any) -> TokenPyramid:
    pyramid = TokenPyramid(NoBackbone(), **{"mode": mode, "value_conv": False, "position": False, **options})
    randomize(pyramid, seed=3)
    return pyramid.eval()


def laterals(batch: int = 2) -> list[Tensor]:
    return [torch.randn(batch, PYRAMID_WIDTH, *size) for size in SIZES]


@pytest.mark.parametrize(
    ("name", "params"),
    [("fpn_r50", 28_483_190), ("fpn_r101", 47_475_318), ("vt_fpn_r50", 30_614_166), ("vt_fpn_r101", 49_606_294)],
)
def test_has_the_parameters_of_its_parts(name: str, params: int) -> None:
    with torch.device("meta"):
        model = get_spec(name).factory(num_classes=54, img_size=(64, 64))
    assert sum(parameter.numel() for parameter in model.parameters()) == params


@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("vt_fpn_r50", 112.6),
        *(pytest.param(name, total, marks=pytest.mark.large)
          for name, total in {"fpn_r50": 159.1, "fpn_r101": 231.1, "vt_fpn_r101": 184.5}.items()),
    ],
)  # fmt: skip
def test_costs_what_the_paper_prints_at_800x1216(name: str, total: float) -> None:
    model = create_model(name, img_size=(800, 1216))
    assert macs(model, (1, 3, 800, 1216)) / 1e9 == pytest.approx(total, abs=0.06)


class _VtPart(nn.Module):
    """Laterals of ResNet's widths, whose cost is known, and the part that replaces the 3x3 convolutions."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.pyramid = token_pyramid(**options)

    def forward(self, x: Tensor) -> list[Tensor]:
        bottom_up = self.pyramid.bottom_up
        assert isinstance(bottom_up, Backbone)
        return self.pyramid.relate(list(bottom_up.feature_maps(x)))


@pytest.mark.parametrize(
    ("size", "value_conv", "expected"),
    [((800, 1216), False, 8.53), ((800, 1216), True, 8.86), ((473, 473), False, 2.06), ((473, 473), True, 2.13)],
)
def test_the_pyramid_costs_what_the_paper_prints(size: tuple[int, int], value_conv: bool, expected: float) -> None:
    pixels = sum(-(-size[0] >> level) * -(-size[1] >> level) * 2 ** (level + 6) for level in range(2, 6))
    lateral_macs = PYRAMID_WIDTH * pixels  # ResNet's maps have 256 to 2048 channels
    cost = macs(_VtPart(value_conv=value_conv), (1, 3, *size)) + lateral_macs
    assert cost / 1e9 == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("mode", ["appendix", "paper"])
def test_permuting_the_pixels_of_a_level_permutes_its_output_and_no_other(mode: Any) -> None:
    pyramid, maps = token_pyramid(mode), laterals()
    order = torch.randperm(SIZES[1][0] * SIZES[1][1])

    def permuted(x: Tensor) -> Tensor:
        return x.flatten(2)[:, :, order].reshape(x.shape)

    with torch.no_grad():
        before = pyramid.relate(maps)
        after = pyramid.relate([maps[0], permuted(maps[1]), *maps[2:]])
    torch.testing.assert_close(after[1], permuted(before[1]), rtol=1e-4, atol=1e-4)
    for level in (0, 2, 3):
        torch.testing.assert_close(after[level], before[level], rtol=1e-4, atol=1e-4)


def test_the_order_of_a_tokenizers_tokens_does_not_matter() -> None:
    pyramid, maps = token_pyramid(), laterals()
    order = torch.randperm(TOKENS)
    with torch.no_grad():
        before = pyramid.relate(maps)
        for part in ("weight", "bias"):
            rows = pyramid.get_parameter(f"tokenizer3.coefficients.{part}")
            rows.copy_(rows[order].clone())
        after = pyramid.relate(maps)
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_every_level_sees_every_other_through_the_tokens() -> None:
    pyramid, maps = token_pyramid(), laterals(1)
    with torch.no_grad():
        before = pyramid.relate(maps)
        after = pyramid.relate([*maps[:3], maps[3] + 1])
    assert all((one - other).abs().max() > 1e-4 for one, other in zip(before, after, strict=True))


def test_without_projector_values_the_laterals_remain() -> None:
    pyramid, maps = token_pyramid(), laterals()
    with torch.no_grad():
        for level in (2, 3, 4, 5):
            pyramid.get_parameter(f"projector{level}.value.weight").zero_()
            pyramid.get_parameter(f"projector{level}.value.bias").zero_()
        found = pyramid.relate(maps)
    assert all(torch.equal(one, other) for one, other in zip(found, maps, strict=True))


def test_the_part_equals_a_second_implementation() -> None:
    """Loops in NumPy over levels, heads and pixels, written from the appendix's pseudo-code."""
    pyramid, maps = token_pyramid(), laterals(1)
    with torch.no_grad():
        found = [each[0].double().numpy() for each in pyramid.relate(maps)]
    weights = {key: value.double().numpy() for key, value in pyramid.state_dict().items()}
    expected = _relate([each[0].flatten(1).double().numpy() for each in maps], weights)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.reshape(other.shape), other, rtol=1e-4, atol=1e-4)


Array = NDArray[np.float64]


def _softmax(x: Array, axis: int) -> Array:
    powers: Array = np.exp(x - x.max(axis, keepdims=True))
    shares: Array = powers / powers.sum(axis, keepdims=True)
    return shares


def _grouped(weight: Array, bias: Array, x: Array, groups: int) -> Array:
    """A grouped 1x1 convolution of x (C, n)."""
    weight, parts = weight.reshape(weight.shape[0], -1), np.split(x, groups)
    return (
        np.concatenate([rows @ part for rows, part in zip(np.split(weight, groups), parts, strict=True)])
        + bias[:, None]
    )


def _relate(maps: list[Array], weights: dict[str, Array]) -> list[Array]:
    tokens = []
    for level, x in enumerate(maps, 2):
        get = {key.removeprefix(f"tokenizer{level}."): value for key, value in weights.items()}
        scores = get["coefficients.weight"].reshape(TOKENS, -1) @ x + get["coefficients.bias"][:, None]
        seen = _softmax(scores / np.sqrt(len(x)), 1) @ x.T
        tokens.append(seen @ get["token.weight"].T + get["token.bias"])
    t = np.concatenate(tokens)  # (32, 1024)
    get = {key.removeprefix("transformer."): value for key, value in weights.items()}
    q, k, v = (_grouped(get[f"{part}.weight"], get[f"{part}.bias"], t.T, 8) for part in ("query", "key", "value"))
    heads = zip(*(np.split(part, 16) for part in (q, k, v)), strict=True)
    t = t + np.concatenate([(_softmax(hq.T @ hk / np.sqrt(len(t)), 1) @ hv.T).T for hq, hk, hv in heads]).T
    t = t + t @ get["feed_forward.weight"].T + get["feed_forward.bias"]
    outputs = []
    for level, (x, own) in enumerate(zip(maps, np.split(t, len(maps)), strict=True), 2):
        get = {key.removeprefix(f"projector{level}."): value for key, value in weights.items()}
        q = _grouped(get["query.weight"], get["query.bias"], x, 16)
        k, v = ((own @ get[f"{part}.weight"].T + get[f"{part}.bias"]).T for part in ("key", "value"))
        heads = zip(*(np.split(part, 16) for part in (q, k, v)), strict=True)
        read = [hv @ _softmax(hk.T @ hq / np.sqrt(len(hq)), 0) for hq, hk, hv in heads]
        outputs.append(x + np.concatenate(read))
    return outputs


@pytest.mark.large
@pytest.mark.parametrize("options", [{"mode": "paper"}, {"value_conv": True, "position": True}, {"norm": "BN"}])
def test_the_options_build_networks_that_run(options: dict[str, Any]) -> None:
    model = create_model("vt_fpn_r50", img_size=(64, 96), num_classes=5, **options)
    with torch.no_grad():
        assert model(torch.randn(1, 3, 64, 96))["logits"].shape == (1, 5, 16, 24)


@pytest.mark.large
@pytest.mark.parametrize("mode", ["appendix", "paper"])
def test_an_export_is_proven(mode: str, tmp_path: Path) -> None:
    model = loading.from_module(small_vt_fpn(mode=mode), example_input=torch.zeros(1, 3, *SIZE))
    config = pipeline.ExportConfig(formats=("ort", "openvino"), out=tmp_path, latency=False)
    report = pipeline.run(model, config)
    assert report.parity.passed
    assert unwanted_operators(OnnxGraph.load(report.bundles[0].path / "model.onnx")) == {}
