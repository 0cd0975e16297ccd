"""GroupNormalization as InstanceNormalization."""

from __future__ import annotations

from edgevit.export.passes.decompose_group_norm import decompose_group_norm
from tests.helpers.graphs import HEADER, assert_same, noise, parse


def test_group_norm_becomes_instance_norm_with_scale_and_bias() -> None:
    before = parse(
        f"""{HEADER} g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) {{
            y = GroupNormalization <num_groups = 2, epsilon = 0.01> (x, scale, bias)
        }}""",
        scale=noise(4, offset=1),
        bias=noise(4, seed=2),
    )
    after = before.apply("decompose_group_norm", decompose_group_norm)
    assert dict(after.operators) == {"Reshape": 2, "InstanceNormalization": 1, "Mul": 1, "Add": 1}
    assert_same(before, after)
