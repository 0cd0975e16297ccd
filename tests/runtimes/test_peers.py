"""Engines made of a module by the shortest way compute what it computes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from edgevit.errors import ExportError, MissingError
from edgevit.runtimes import peers
from edgevit.runtimes.openvino import OpenVino
from edgevit.runtimes.peers import PEERS, build_peer, open_peer, require_peer
from edgevit.types import TensorSpec

INPUTS, OUTPUTS = [TensorSpec("x", "float32", (2, 3))], [TensorSpec("y", "float32", (2, 4))]


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_computes_what_the_module_computes(name: str, tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU())
    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    model = build_peer(name, module, {"x": x}, OUTPUTS, tmp_path)
    with open_peer(name, model, INPUTS, OUTPUTS, threads=1) as engine:
        outputs = engine.run({"x": x})
        default = "bf16" if PEERS[name] == OpenVino.fmt and OpenVino().runs_precision("bf16") else "fp32"
        assert dict(engine.executed_precision().layers) == {default: 1}
    expected = module(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(outputs["y"], expected, atol=1e-6 if default == "fp32" else 0.05)


def test_openvino_runs_in_fp32_if_it_is_told_to() -> None:
    model = build_peer(
        peers.DIRECT_OPENVINO, torch.nn.Linear(3, 4), {"x": np.ones((2, 3), np.float32)}, OUTPUTS, Path()
    )
    with peers.DirectOpenVinoEngine(model, INPUTS, OUTPUTS, threads=1, inference_precision="f32") as engine:
        assert engine.threads == 1
        assert dict(engine.executed_precision().layers) == {"fp32": 1}


class _Breaks(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no way\nout")


def test_a_model_that_a_peer_cannot_take_is_an_export_error_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match="^ov-direct cannot be built of this model .*leave it out of --against$"
    ) as raised:
        build_peer(peers.DIRECT_OPENVINO, _Breaks(), {"x": np.ones((2, 3), np.float32)}, OUTPUTS, tmp_path)
    assert "\n" not in str(raised.value)


def test_a_missing_package_is_named_with_its_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingError, match=r"naive-onnx needs onnx and onnxscript; .*edgevit\[export\]"):
        require_peer(peers.NAIVE_ONNX)
