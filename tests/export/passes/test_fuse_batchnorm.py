"""Folding of BatchNormalization into the preceding layer."""

from __future__ import annotations

import pytest

from edgevit.export.passes.fuse_batchnorm import fuse_batchnorm
from edgevit.types import Array
from tests.helpers.graphs import HEADER, assert_same, batchnorm_parameters, noise, parse


@pytest.mark.parametrize(
    ("layer", "shapes", "weight"),
    [
        ("Conv <pads = [1, 1, 1, 1]> (x, w)", ("N, 4, 6, 6", "N, 6, 6, 6"), noise(6, 4, 3, 3)),
        ("Conv <group = 2> (x, w)", ("N, 4, 6, 6", "N, 6, 6, 6"), noise(6, 2, 1, 1)),
        ("Gemm (x, w)", ("N, 4", "N, 6"), noise(4, 6)),
        ("Gemm <transB = 1> (x, w)", ("N, 4", "N, 6"), noise(6, 4)),
    ],
)
@pytest.mark.parametrize("with_bias", [True, False])
def test_a_norm_after_a_layer_is_folded(layer: str, shapes: tuple[str, str], weight: Array, *, with_bias: bool) -> None:
    layer = layer.replace("w)", "w, b)") if with_bias else layer
    extra = {"b": noise(6, seed=9)} if with_bias else {}
    before = parse(
        f"""{HEADER} g (float[{shapes[0]}] x) => (float[{shapes[1]}] y) {{
            a = {layer}
            y = BatchNormalization <epsilon = 0.001> (a, scale, bias, mean, var)
        }}""",
        w=weight,
        **extra,
        **batchnorm_parameters(6),
    )
    after = before.apply("fuse_batchnorm", fuse_batchnorm)
    assert "BatchNormalization" not in after.operators
    assert after.node_count == 1
    assert_same(before, after)


def test_a_layer_with_other_consumers_stays() -> None:
    before = parse(
        f"""{HEADER} g (float[N, 4, 6, 6] x) => (float[N, 6, 6, 6] y, float[N, 6, 6, 6] z) {{
            a = Conv (x, w)
            y = BatchNormalization (a, scale, bias, mean, var)
            z = Relu (a)
        }}""",
        w=noise(6, 4, 1, 1),
        **batchnorm_parameters(6),
    )
    assert before.apply("fuse_batchnorm", fuse_batchnorm).operators["BatchNormalization"] == 1


def test_a_norm_by_the_statistics_of_its_input_stays() -> None:
    before = parse(
        f"""{HEADER} g (float[N, 4, 6, 6] x) => (float[N, 6, 6, 6] y) {{
            a = Conv (x, w)
            y, running_mean, running_var = BatchNormalization <training_mode = 1> (a, scale, bias, mean, var)
        }}""",
        w=noise(6, 4, 1, 1),
        **batchnorm_parameters(6),
    )
    after = before.apply("fuse_batchnorm", fuse_batchnorm)
    assert after.operators["BatchNormalization"] == 1
    assert_same(before, after)
