"""Queries on the nodes of a linted graph."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from edgevit.export.lint.context import module_path


@pytest.mark.parametrize(
    ("name", "metadata", "module"),
    [
        ("layers.0.blocks.1.mlp.fc1/Conv_2", {}, "layers.0.blocks.1.mlp.fc1"),
        ("/layers/layers.0/blocks/blocks.1/fc1/Conv", {}, "layers.0.blocks.1.fc1"),
        ("node_conv2d_3", {"pkg.torch.onnx.name_scopes": "['', 'stem', 'stem.conv', 'conv2d']"}, "stem.conv"),
        ("node_conv2d_3", {"pkg.torch.onnx.name_scopes": "not a list"}, ""),
        ("Conv_17", {}, ""),
        ("", {}, ""),
    ],
)
def test_the_module_path_is_read_from_node_names_and_metadata(name: str, metadata: dict[str, str], module: str) -> None:
    node = ir.node("Conv", [ir.Value(name="x"), ir.Value(name="w")], name=name)
    node.metadata_props.update(metadata)
    assert module_path(node) == module
