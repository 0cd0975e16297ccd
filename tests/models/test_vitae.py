"""ViTAE and ViTAEv2 match their authors' implementations and their definitions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgevit import create_model
from edgevit.errors import CheckpointError, UsageError
from edgevit.models.initialization import randomize
from edgevit.models.layers import Attention, to_map
from edgevit.models.vitae import ClassTokenCell, PatchEmbedding, convolutions
from edgevit.models.vitaev2 import attend_in_windows
from tests import oracles
from tests.helpers.macs import macs

# Parameters, and 10^9 MACs at 224x224, of the authors' code: of its HEAD, which registers vitae_13m with mlp_ratio 2,
# and of its vitae_s of December 2021, with token_dims (64, 64).
COUNTS: list[tuple[str, dict[str, Any], int, float]] = [
    ("vitae_t", {}, 4_886_888, 1.757),
    ("vitae_6m", {}, 6_614_120, 2.152),
    ("vitae_13m", {}, 13_418_408, 3.540),
    ("vitae_13m", {"mlp_ratio": 2}, 10_834_728, 3.036),
    ("vitae_s", {}, 24_032_136, 6.180),
    ("vitae_s", {"token_dims": (64, 64)}, 23_191_528, 5.576),
    ("vitae_b", {}, 89_341_672, 18.084),
    ("vitaev2_s", {}, 19_355_688, 5.753),
    ("vitaev2_48m", {}, 48_674_632, 13.341),
    ("vitaev2_b", {}, 89_693_352, 24.373),
]

SMALL: dict[str, dict[str, Any]] = {
    "vitae_t": {"depth": 2},
    "vitae_b": {"embed_dim": 48, "depth": 2, "heads": 3, "groups": 12},
    "vitaev2_s": {
        "embed_dims": (8, 16, 32, 64),
        "token_dims": (16, 32, 64, 128),
        "depths": (1, 1, 1, 1),
        "groups": (1, 4, 8, 16),
        "reduction_groups": (1, 4, 8, 16),
    },
}
SIZE = (64, 96)  # the windows of v2 work on 16x24 and 8x12 tokens: no side is a multiple of 7


def small(name: str, **options: Any) -> nn.Module:
    """Return a narrow and shallow network with random weights, none of which is without effect."""
    model = create_model(name, num_classes=10, **{"img_size": SIZE, **SMALL[name], **options})
    randomize(model, seed=3)
    return model


@pytest.mark.parametrize(
    ("name", "oracle"),
    [
        ("vitae_t", "vitae__ViTAE_basic_Tiny"),
        ("vitae_s", "vitae__ViTAE_basic_Small"),
        ("vitaev2_s", "vitaev2__ViTAEv2_S"),
    ],
)
def test_matches_the_authors_implementation(name: str, oracle: str) -> None:
    expected = oracles.load(oracle)
    model = create_model(name, expected.weights)
    with torch.no_grad():
        logits = model(expected.images).double().numpy()
    assert sum(parameter.numel() for parameter in model.parameters()) == expected.params
    assert abs(logits - expected.logits).max() <= 1e-4 * expected.logits.std()


@pytest.mark.parametrize(
    ("name", "options", "params", "macs_g"),
    [pytest.param(*count, marks=pytest.mark.large if count[2] > 20e6 else ()) for count in COUNTS],
)
def test_has_the_parameters_and_macs_of_the_authors_code(
    name: str, options: dict[str, Any], params: int, macs_g: float
) -> None:
    model = create_model(name, **options)
    assert sum(parameter.numel() for parameter in model.parameters()) == params
    assert macs(model, (1, 3, 224, 224)) / 1e9 == pytest.approx(macs_g, abs=5e-4)


@pytest.mark.parametrize("widths", [(64, 64), (96, 192)])
def test_vitae_s_reads_token_dims_from_the_weights(widths: tuple[int, int]) -> None:
    weights = create_model("vitae_s", token_dims=widths, depth=1).state_dict()
    model = create_model("vitae_s", weights, depth=1)
    assert model.model_info.options["token_dims"] == widths  # type: ignore[union-attr, index]
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_vitae_s_rejects_the_weights_of_another_network() -> None:
    with pytest.raises(CheckpointError, match="missing in the checkpoint"):
        create_model("vitae_s", create_model("vitae_t").state_dict())
    with pytest.raises(CheckpointError, match="unexpected in the checkpoint"):
        create_model("vitae_s", small("vitaev2_s").state_dict())


@pytest.mark.parametrize("name", SMALL)
def test_loads_the_averaged_weights_of_a_training_checkpoint(name: str, tmp_path: Path) -> None:
    expected = small(name)
    averaged = {f"module.{key}": value for key, value in expected.state_dict().items()}
    if name == "vitaev2_s":
        averaged["module.layers.0.NC.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.int64)
    content = {"state_dict": create_model("vitae_t").state_dict(), "state_dict_ema": averaged, "epoch": 300}
    torch.save(content, tmp_path / "official.pth.tar")
    model = create_model(name, tmp_path / "official.pth.tar", 10, img_size=SIZE, **SMALL[name])
    images = torch.randn(2, 3, *SIZE)
    assert torch.equal(model(images), expected(images))


@pytest.mark.parametrize("name", SMALL)
def test_height_and_width_are_not_swapped(name: str) -> None:
    """The transposed network returns the same logits for the transposed image."""
    upright, lying = small(name), small(name, img_size=SIZE[::-1])
    weights = upright.state_dict()
    for key, value in weights.items():
        if value.ndim == 4:
            weights[key] = value.transpose(2, 3)
        if key.endswith("pos_embed"):
            table = to_map(value[:, 1:], SIZE[0] // 16, SIZE[1] // 16)
            weights[key] = torch.cat((value[:, :1], table.transpose(2, 3).flatten(2).transpose(1, 2)), dim=1)
    lying.load_state_dict(weights)
    images = torch.randn(2, 3, *SIZE)
    with torch.no_grad():
        expected, logits = upright(images), lying(images.transpose(2, 3))
    assert (logits - expected).abs().max() <= 1e-4 * expected.std()
    assert (expected[0] - expected[1]).abs().max() > 0.1 * expected.std()  # the logits depend on the image


def attend_in_windows_of_rank_6(attention: nn.Module, x: Tensor, height: int, width: int) -> Tensor:
    """Attend as in the definition: pad with zeros, more of them below and right, then permute axes to form windows."""
    batch, _, channels = x.shape
    below, right = -height % 7, -width % 7
    top, left = below // 2, right // 2
    padded = torch.zeros(batch, height + below, width + right, channels)
    padded[:, top : top + height, left : left + width] = x.view(batch, height, width, channels)
    rows, columns = padded.shape[1] // 7, padded.shape[2] // 7
    windows = padded.view(batch, rows, 7, columns, 7, channels).permute(0, 1, 3, 2, 4, 5)
    attended = attention(windows.reshape(-1, 49, channels)).view(batch, rows, columns, 7, 7, -1)
    merged = attended.permute(0, 1, 3, 2, 4, 5).reshape(batch, 7 * rows, 7 * columns, -1)
    cropped: Tensor = merged[:, top : top + height, left : left + width]
    return cropped.reshape(batch, height * width, -1)


@pytest.mark.parametrize(("height", "width"), [(7, 14), (8, 12), (16, 7), (3, 20)])
def test_windows_are_padded_on_all_sides_and_attend_to_the_padding(height: int, width: int) -> None:
    attention, x = Attention(6, 2, out=4), torch.randn(2, height * width, 6)
    randomize(attention, seed=1)
    with torch.no_grad():
        expected = attend_in_windows_of_rank_6(attention, x, height, width)
        torch.testing.assert_close(attend_in_windows(attention, x, height, width), expected)


def test_convolutions_skip_the_class_token() -> None:
    """The authors' cell adds the convolved map in place to all tokens but the first."""
    cell = ClassTokenCell(8, 2, mlp_ratio=4, convolutions=convolutions(8, 32, 8, groups=2), drop_path=0).eval()
    randomize(cell, seed=1)
    x = torch.randn(2, 1 + 3 * 5, 8)
    with torch.no_grad():
        expected = x + cell.attn(cell.norm1(x))
        expected[:, 1:] += cell.PCM(x[:, 1:].transpose(1, 2).reshape(2, 8, 3, 5)).flatten(2).transpose(1, 2)
        expected += cell.mlp(cell.norm2(expected))
        torch.testing.assert_close(cell(x, 3, 5), expected)


def test_class_token_precedes_the_patches_and_all_tokens_have_positions() -> None:
    embedding = PatchEmbedding(8, 4, patches=6)
    randomize(embedding, seed=1)
    images = torch.randn(3, 3, 8, 12)
    with torch.no_grad():
        patches = F.conv2d(images, embedding.PRM.proj.weight, embedding.PRM.proj.bias, stride=4).flatten(2)
        expected = torch.cat((embedding.cls_token.expand(3, -1, -1), patches.transpose(1, 2)), dim=1)
        torch.testing.assert_close(embedding(images), expected + embedding.pos_embed)


@pytest.mark.parametrize(
    ("name", "size", "next_size"),
    [("vitae_t", (224, 230), "224x240"), ("vitae_t", (8, 32), "16x32"), ("vitaev2_s", (240, 256), "256x256")],
)
def test_rejects_other_sizes_and_names_the_next_valid_one(name: str, size: tuple[int, int], next_size: str) -> None:
    with pytest.raises(UsageError, match=f"got {size[0]}x{size[1]}; the next valid size is {next_size}"):
        small(name)(torch.randn(1, 3, *size))


def test_base_model_rejects_other_image_sizes() -> None:
    with pytest.raises(UsageError, match="the next valid size is 224x240"):
        small("vitae_b", img_size=(224, 230))
    with pytest.raises(UsageError, match=r"img_size=\(96, 64\)"):
        small("vitae_b")(torch.randn(1, 3, 96, 64))


def test_head_of_the_base_model_reads_the_norm_of_the_mean_of_the_patches() -> None:
    model, outputs = small("vitae_b"), []
    model.get_submodule("layers.2").register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    with torch.no_grad():
        logits = model(torch.randn(2, 3, *SIZE))
        patches = outputs[0][:, 1:]
        norm, head = model.get_submodule("fc_norm"), model.get_submodule("head")
        torch.testing.assert_close(logits, head(norm(patches.mean(1))))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vitae_t", {"heads": 3}, "not divisible by 3 heads"),
        ("vitae_t", {"groups": 3}, "groups"),
        ("vitae_t", {"token_dims": (64, 64, 256)}, "token_dims needs 2 values, one per stage, got 3"),
        ("vitaev2_s", {"heads": (1, 3, 1, 1)}, "not divisible by 3 heads"),
        ("vitaev2_s", {"reduction_heads": (1, 3, 1, 1)}, "not divisible by 3 heads"),
        ("vitaev2_s", {"depths": (1, 1, 1)}, "depths needs 4 values, one per stage, got 3"),
    ],
)
def test_rejects_inconsistent_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        small(name, **options)
