"""Names of graph nodes: the module they name, and the modules that contain it."""

from __future__ import annotations

import pytest

from edgevit.node_names import is_in_module, is_in_modules, module_of_name


@pytest.mark.parametrize(
    ("name", "module"),
    [("blocks.0.fc1/MatMul", "blocks.0.fc1"), ("/net/net.1/fc/Gemm", "/net/net.1/fc"), ("Reshape", ""), ("", "")],
)
def test_the_module_stands_before_the_last_slash(name: str, module: str) -> None:
    assert module_of_name(name) == module


def test_a_module_contains_itself_and_its_submodules() -> None:
    assert is_in_module("net.1", "net.1") and is_in_module("net.1.q", "net.1") and is_in_module("net", "")
    assert not is_in_module("net.10", "net.1") and not is_in_module("net", "net.1")


def test_a_node_is_part_of_any_of_the_modules() -> None:
    assert is_in_modules("net.1.q/MatMul", ["head", "net.1"])
    assert not is_in_modules("net.1.q/MatMul", ["head", "net.1.q.MatMul"]) and not is_in_modules("net.1.q/MatMul", [])
