"""A Swin of mmdet or mmseg loads into the same network under the authors' names."""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn.functional as F

from edgevit import create_model
from edgevit.models.dense.swin_names import from_openmmlab_swin
from edgevit.models.swin import PatchMerging

SMALL: dict[str, Any] = {
    "img_size": (64, 96),
    "num_classes": 3,
    "head_width": 32,
    "backbone_options": {"embed_dim": 24, "depths": (1, 1, 1, 1)},
}
NAMES = (
    (r"^backbone\.layers\.", "backbone.stages."),
    (r"\.attn\.", ".attn.w_msa."),
    (r"\.mlp\.fc1\.", ".ffn.layers.0.0."),
    (r"\.mlp\.fc2\.", ".ffn.layers.1."),
    (r"\.patch_embed\.proj\.", ".patch_embed.projection."),
)


def openmmlabs_name(key: str) -> str:
    for pattern, name in NAMES:
        key = re.sub(pattern, name, key)
    return key


def test_patch_merging_in_unfolds_order_computes_the_same() -> None:
    x, norm, weight = torch.randn(2, 8, 4, 6), torch.randn(32), torch.randn(16, 32)
    unfolded = F.unfold(x, 2, stride=2).transpose(1, 2)  # mmdet's PatchMerging
    expected = F.layer_norm(unfolded, (32,), norm) @ weight.t()
    prefix = "backbone.stages.0.downsample"
    found = from_openmmlab_swin({f"{prefix}.norm.weight": norm, f"{prefix}.reduction.weight": weight})
    merging = PatchMerging(8)
    torch.nn.init.zeros_(merging.norm.bias)
    with torch.no_grad():
        merging.norm.weight.copy_(found["backbone.layers.0.downsample.norm.weight"])
        merging.reduction.weight.copy_(found["backbone.layers.0.downsample.reduction.weight"])
        actual = merging(x.permute(0, 2, 3, 1)).flatten(1, 2)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_a_checkpoint_with_openmmlabs_names_loads() -> None:
    own = create_model("swin_t_semfpn", **SMALL).state_dict()
    model = create_model("swin_t_semfpn", {openmmlabs_name(key): value for key, value in own.items()}, **SMALL)
    loaded = model.state_dict()
    assert all(torch.equal(loaded[key], own[key]) for key in own if ".downsample." not in key)
