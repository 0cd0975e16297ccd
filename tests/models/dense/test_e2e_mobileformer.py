"""The reconstruction of E2E-MF does what is known of it; there is no implementation to compare it with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgevit.errors import UsageError
from edgevit.models import loading
from edgevit.models.dense.e2e_mobileformer import Block, E2EMobileFormer, sine_positions
from edgevit.models.initialization import randomize
from edgevit.models.registry import get_spec
from edgevit.pipeline import run as pipeline
from tests import oracles
from tests.helpers.backbones import TinyBackbone

SIZE = (64, 96)


def small_model(**options: Any) -> E2EMobileFormer:
    small = {"queries": 7, "width": 32, "encoder_hidden": 64, "former_hidden": 32, "num_classes": 3}
    model = E2EMobileFormer(TinyBackbone(), img_size=SIZE, **{**small, **options}).eval()
    randomize(model, seed=2)
    return model


def test_the_position_embedding_is_detrs() -> None:
    expected = oracles.load_stored("detr__position_embedding_sine")["sine_9x13"]
    own = sine_positions(9, 13, 256).double().numpy().reshape(-1)
    error = abs(own[oracles.positions("sine_9x13", own.size)] - expected).max()
    assert error < 1e-5


def test_it_says_that_it_is_a_reconstruction() -> None:
    assert "reconstruction" in get_spec("e2e_mf_508m").paper.source
    assert get_spec("e2e_mf_508m").paper.params_m is None


def test_has_nine_blocks_and_the_parameters_that_the_documentation_gives() -> None:
    with torch.device("meta"):
        model = get_spec("e2e_mf_508m").factory(num_classes=80, img_size=SIZE)
    assert sum(isinstance(each, Block) for each in model.modules()) == 9
    assert sum(parameter.numel() for parameter in model.parameters()) == 25_911_325


def test_permuting_the_queries_permutes_the_detections() -> None:
    model, images = small_model(), torch.randn(2, 3, *SIZE)
    order = torch.randperm(7)
    with torch.no_grad():
        before = model(images)
        model.query_feat.copy_(model.query_feat[order].clone())
        model.query_pos.copy_(model.query_pos[order].clone())
        after = model(images)
    for name in ("boxes", "scores"):
        torch.testing.assert_close(after[name], before[name][:, order], rtol=1e-4, atol=1e-4)


def test_boxes_are_corners_in_pixels_and_scores_leave_out_no_object() -> None:
    model, images = small_model(), torch.randn(1, 3, *SIZE)
    with torch.no_grad():
        found = model(images)
        model.outputs = "raw"
        raw = model(images)
    assert raw["logits"].shape == (1, 7, 4)
    torch.testing.assert_close(found["scores"], raw["logits"].softmax(-1)[..., :3])
    x, y, width, height = raw["boxes"].unbind(-1)
    corners = torch.stack((x - width / 2, y - height / 2, x + width / 2, y + height / 2), -1)
    torch.testing.assert_close(found["boxes"], corners * torch.tensor([96.0, 64, 96, 64]), rtol=1e-4, atol=1e-4)


def test_the_position_of_a_query_is_adapted_by_each_block() -> None:
    block = Block(16, "lite", encoder_hidden=16, former_hidden=16).eval()
    randomize(block, seed=1)
    qf, qp, x = torch.randn(1, 5, 16), torch.randn(1, 5, 16), torch.randn(1, 16, 4, 6)
    with torch.no_grad():
        _, new_qf, new_qp = block(x, qf, qp, torch.zeros(1, 24, 16))
        torch.testing.assert_close(new_qp, qp + block.adapt(new_qf))


def test_a_block_equals_a_second_implementation() -> None:
    """NumPy with a loop over the heads, of the pixels-to-queries attention and the two that follow."""
    block = Block(16, "encoder", encoder_hidden=24, former_hidden=20).eval()
    randomize(block, seed=4)
    x, qf, qp, position = (torch.randn(shape) for shape in ((1, 16, 2, 3), (1, 5, 16), (1, 5, 16), (1, 6, 16)))
    with torch.no_grad():
        found = [each[0].double().numpy() for each in block(x, qf, qp, position)]
    w = {key: value.double().numpy() for key, value in block.state_dict().items()}

    def linear(name: str, v: Any) -> Any:
        return v @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name: str, v: Any) -> Any:
        v = (v - v.mean(1, keepdims=True)) / np.sqrt(v.var(1, keepdims=True) + 1e-5)
        return v * w[f"{name}.weight"] + w[f"{name}.bias"]

    def attention(q: Any, k: Any, v: Any) -> Any:
        columns = []
        for head in range(8):
            part = slice(2 * head, 2 * head + 2)
            scores = np.exp(q[:, part] @ k[:, part].T / np.sqrt(2))
            columns.append(scores / scores.sum(1, keepdims=True) @ v[:, part])
        return np.concatenate(columns, 1)

    def feed_forward(name: str, v: Any) -> Any:
        return norm(f"{name}.norm", v + linear(f"{name}.linear2", np.maximum(linear(f"{name}.linear1", v), 0)))

    p, f, e = x[0].flatten(1).T.double().numpy(), qf[0].double().numpy(), qp[0].double().numpy()
    s = position[0].double().numpy()
    f = norm("cross_norm", f + linear("cross_proj", attention(linear("cross_q", f + e), p + s, p)))
    f = norm("self_norm", f + linear("self_proj", attention(linear("self_q", f + e), f + e, f)))
    f = feed_forward("ffn", f)
    q, k, v = linear("mobile.q", p + s), linear("mobile.k", p + s), linear("mobile.v", p)
    p = feed_forward("mobile.ffn", norm("mobile.norm", p + linear("mobile.proj", attention(q, k, v))))
    p = p + attention(p, linear("back_k", f), linear("back_v", f))
    np.testing.assert_allclose(found[0].reshape(16, 6).T, p, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found[1], f, rtol=1e-4, atol=1e-4)


PLANS: list[Any] = [(), ((8, 1, "lite"), (16, 1, "lite")), ((64, 1, "lite"),), ((32, 0, "lite"),), ((32, 1, "conv"),)]


@pytest.mark.parametrize("plan", PLANS)
def test_a_wrong_plan_is_refused(plan: Any) -> None:
    with pytest.raises(UsageError, match="plan"):
        small_model(plan=plan)


@pytest.mark.large
def test_an_export_is_proven(tmp_path: Path) -> None:
    config = pipeline.ExportConfig(formats=("ort", "openvino"), out=tmp_path, latency=False)
    model = loading.from_module(small_model(), example_input=torch.zeros(1, 3, *SIZE))
    assert pipeline.run(model, config).parity.passed
