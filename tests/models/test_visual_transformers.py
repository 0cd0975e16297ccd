"""Visual Transformers match the paper's two descriptions, torchvision's ResNet and independently computed costs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgevit import create_model
from edgevit.errors import CheckpointError, UsageError
from edgevit.models import visual_transformers as vt
from edgevit.models.initialization import randomize
from edgevit.models.registry import list_models
from tests.helpers.macs import macs

# Parameters of torchvision's ResNets without layer4 and fc.
TRUNK_PARAMS = {
    "vt_resnet18": 11_689_512 - 8_393_728 - 513_000,
    "vt_resnet34": 21_797_672 - 13_114_368 - 513_000,
    "vt_resnet50": 25_557_032 - 14_964_736 - 2_049_000,
    "vt_resnet101": 44_549_160 - 14_964_736 - 2_049_000,
}
# Millions of parameters and billions of MACs at 224x224, computed independently of the code for each configuration.
# The computation counts some small terms differently, hence the tolerances of 0.01 M and 0.002 G.
COSTS: list[tuple[str, dict[str, Any], float, float]] = [
    ("vt_resnet18", {}, 10.44, 1.551),
    ("vt_resnet34", {}, 19.34, 3.231),
    ("vt_resnet50", {}, 25.76, 3.633),
    ("vt_resnet101", {}, 44.75, 7.346),
    ("vt_resnet18", {"kqv_groups": 4}, 10.96, 1.559),
    ("vt_resnet34", {"kqv_groups": 4}, 20.13, 3.244),
    ("vt_resnet50", {"kqv_groups": 4}, 26.55, 3.646),
    ("vt_resnet101", {"kqv_groups": 4}, 45.54, 7.359),
    ("vt_resnet18", {"width": 256}, 8.40, 1.482),
    ("vt_resnet34", {"width": 256}, 16.22, 3.140),
]
# Exact parameter counts of this implementation, so that no change goes unnoticed.
PARAMS = {
    "vt_resnet18": 10_441_865,
    "vt_resnet34": 19_348_540,
    "vt_resnet50": 25_766_716,
    "vt_resnet101": 44_758_844,
}
SMALL: dict[str, Any] = {"width": 32, "tokens": 4, "token_dim": 64}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def small_model(**options: Any) -> nn.Module:
    model = create_model("vt_resnet18", num_classes=10, **{**SMALL, **options})
    randomize(model, seed=3)
    return model


def randomized(module: nn.Module) -> Any:
    randomize(module, seed=4)
    return module.eval()


@pytest.mark.parametrize(("name", "options", "params_m", "macs_g"), COSTS)
def test_has_the_independently_computed_parameters_and_macs(
    name: str, options: dict[str, Any], params_m: float, macs_g: float
) -> None:
    model = create_model(name, **options)
    assert count(model) / 1e6 == pytest.approx(params_m, abs=0.01)
    assert macs(model, (1, 3, 224, 224)) / 1e9 == pytest.approx(macs_g, abs=0.002)


@pytest.mark.parametrize(("name", "params"), PARAMS.items())
def test_the_number_of_parameters_stays(name: str, params: int) -> None:
    assert count(create_model(name)) == params


def test_every_variant_has_figures() -> None:
    assert list_models("visual_transformers") == list(PARAMS)


# The trunk.


def resnet_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of a torchvision ResNet-18: a trunk with other values, a last stage and a classifier."""
    own = {key: value for key, value in model.state_dict().items() if key.startswith(vt.TRUNK)}
    state = {key: torch.rand_like(value) if value.ndim else value + 7 for key, value in own.items()}
    return {**state, "layer4.0.conv1.weight": torch.rand(512, 256, 3, 3), "fc.weight": torch.rand(1000, 512)}


@pytest.mark.parametrize(("name", "params"), TRUNK_PARAMS.items())
def test_trunk_has_as_many_parameters_as_torchvisions(name: str, params: int) -> None:
    model = create_model(name, **SMALL)
    assert sum(count(model.get_submodule(part)) for part in vt.TRUNK) == params


def test_trunk_computes_resnet_18_with_torchvisions_keys() -> None:
    model = small_model()
    assert isinstance(model, vt.ResNetTrunk)
    state = model.state_dict()

    def convolve(x: Tensor, conv: str, norm: str, stride: int) -> Tensor:
        weight = state[f"{conv}.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2)
        mean, var, scale, shift = (state[f"{norm}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, mean, var, scale, shift)

    image = torch.randn(2, 3, 65, 96)
    x = F.max_pool2d(convolve(image, "conv1", "bn1", 2).relu(), 3, 2, 1)
    for name in ("layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0", "layer3.1"):
        stride = 2 if name in ("layer2.0", "layer3.0") else 1
        kept = convolve(x, f"{name}.downsample.0", f"{name}.downsample.1", stride) if stride == 2 else x
        y = convolve(x, f"{name}.conv1", f"{name}.bn1", stride).relu()
        x = (convolve(y, f"{name}.conv2", f"{name}.bn2", 1) + kept).relu()
    with torch.no_grad():
        torch.testing.assert_close(model.trunk(image), x)


def test_load_trunk_loads_the_trunk_of_a_resnet_and_nothing_else() -> None:
    model = small_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    given = resnet_state(model)
    vt.load_trunk(model, given)
    for key, value in model.state_dict().items():
        assert torch.equal(value, given[key] if key.startswith(vt.TRUNK) else before[key]), key


def test_load_trunk_accepts_a_state_dict_without_batch_counters() -> None:
    model = small_model()
    given = {key: value for key, value in resnet_state(model).items() if not key.endswith("num_batches_tracked")}
    vt.load_trunk(model, given)
    assert torch.equal(model.get_parameter("layer3.1.conv2.weight"), given["layer3.1.conv2.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer2.0.conv1.weight": None}, "1 missing in the checkpoint: layer2.0.conv1.weight"),
        ({"layer2.7.conv1.weight": torch.ones(1)}, "1 unexpected in the checkpoint: layer2.7.conv1.weight"),
        ({"layer5.0.conv1.weight": torch.ones(1)}, "1 unexpected in the checkpoint: layer5.0.conv1.weight"),
        ({"fc_norm.weight": torch.ones(1)}, "1 unexpected in the checkpoint: fc_norm.weight"),
        ({"bn1.bias": torch.ones(3)}, r"bn1.bias \(3,\) instead of \(64,\).* of the same depth"),
    ],
)
def test_load_trunk_rejects_another_trunk_and_changes_nothing(change: dict[str, Tensor | None], message: str) -> None:
    model = small_model()
    before = model.get_parameter("conv1.weight").clone()
    given = {key: value for key, value in {**resnet_state(model), **change}.items() if value is not None}
    with pytest.raises(CheckpointError, match=message):
        vt.load_trunk(model, given)
    assert torch.equal(model.get_parameter("conv1.weight"), before)


def test_load_trunk_rejects_another_network() -> None:
    with pytest.raises(UsageError, match="needs a vt_resnet model, not Linear"):
        vt.load_trunk(nn.Linear(1, 1), {})


def test_weights_of_a_plain_resnet_raise_an_error_that_names_load_trunk() -> None:
    with pytest.raises(CheckpointError, match="load_trunk"):
        create_model("vt_resnet18", resnet_state(small_model()))


def test_loads_its_own_state_dict() -> None:
    model = small_model()
    again = create_model("vt_resnet18", model.state_dict(), num_classes=10, **SMALL)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(image), model(image))


# The appendix's pseudo-code, written out on tokens (N, C_T, L) with einsum.


def grouped(x: Tensor, conv: nn.Module) -> Tensor:
    """Apply a grouped 1x1 convolution to (N, C, L), computed from its weights."""
    weight, bias = (conv.get_parameter(name) for name in ("weight", "bias"))
    groups = x.shape[1] // weight.shape[1]
    parts = zip(x.chunk(groups, 1), weight.flatten(1).chunk(groups), strict=True)
    return torch.cat([torch.einsum("ncl,oc->nol", part, rows) for part, rows in parts], 1) + bias[:, None]


def heads_of(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], 16, -1, x.shape[2])  # (N, h, C/h, L)


def position_of(encoder: vt.PositionEncoder, coefficients: Tensor, height: int, width: int) -> Tensor:
    """Compute position encodings token by token, (N, h, HW, L) -> (N, 49, L)."""
    columns = []
    for token in coefficients.unbind(3):
        maps = token.reshape(*token.shape[:2], height, width)
        maps = encoder.merge(encoder.downsample(F.interpolate(maps, size=(14, 14))))
        columns.append(encoder.mix(maps.flatten(1)))
    return torch.stack(columns, 2)


@pytest.mark.parametrize("size", [(14, 14), (5, 16)])
def test_filter_tokenizer_matches_the_static_tokenizer_of_the_appendix(size: tuple[int, int]) -> None:
    tokenizer = randomized(vt.FilterTokenizer(32, 4, 64))
    x = torch.randn(2, 32, *size)
    coefficients = tokenizer.coefficients(x).flatten(2) / math.sqrt(32)
    coefficients = coefficients.transpose(1, 2).softmax(1)  # (N, HW, L), over HW
    seen = torch.einsum("ncp,npl->ncl", grouped(x.flatten(2), tokenizer.value), coefficients)
    both = torch.cat((seen, position_of(tokenizer.position, coefficients[:, None], *size)), 1)
    torch.testing.assert_close(tokenizer(x), tokenizer.token(both.transpose(1, 2)))


@pytest.mark.parametrize("size", [(14, 14), (5, 16)])
def test_recurrent_tokenizer_matches_the_dynamic_tokenizer_of_the_appendix(size: tuple[int, int]) -> None:
    tokenizer = randomized(vt.RecurrentTokenizer(32, 64))
    x, tokens = torch.randn(2, 32, *size), torch.randn(2, 6, 64)
    query = heads_of(tokenizer.query(tokens[:, :3]).transpose(1, 2))
    key, value = (heads_of(grouped(x.flatten(2), conv)) for conv in (tokenizer.key, tokenizer.value))
    coefficients = (torch.einsum("nhcp,nhcl->nhpl", key, query) / math.sqrt(32 / 16)).softmax(2)
    seen = torch.einsum("nhcp,nhpl->nhcl", value, coefficients).reshape(2, 32, 3)
    both = torch.cat((seen, position_of(tokenizer.position, coefficients, *size)), 1)
    expected = torch.cat((tokens[:, 3:], tokenizer.token(both.transpose(1, 2))), 1)
    torch.testing.assert_close(tokenizer(x, tokens), expected)


def test_transformer_matches_the_appendix() -> None:
    transformer = randomized(vt.Transformer(6, 64, groups=8))
    tokens = torch.randn(2, 6, 64)
    columns = tokens.transpose(1, 2)
    convs = (transformer.key, transformer.query, transformer.value)
    key, query, value = (heads_of(grouped(columns, conv)) for conv in convs)
    coefficients = (torch.einsum("nhck,nhcq->nhkq", key, query) / math.sqrt(6)).softmax(2)  # over the keys
    columns = columns + torch.einsum("nhck,nhkq->nhcq", value, coefficients).reshape(2, 64, 6)
    rows = columns.transpose(1, 2)
    torch.testing.assert_close(transformer(tokens), rows + transformer.feed_forward(rows))


def test_projector_matches_the_appendix() -> None:
    projector = randomized(vt.Projector(32, 64))
    x, tokens = torch.randn(2, 32, 5, 7), torch.randn(2, 6, 64)
    query = heads_of(grouped(x.flatten(2), projector.query))
    key, value = (heads_of(part(tokens).transpose(1, 2)) for part in (projector.key, projector.value))
    coefficients = (torch.einsum("nhcp,nhcl->nhpl", query, key) / math.sqrt(32 / 16)).softmax(3)  # over the tokens
    read = torch.einsum("nhcl,nhpl->nhcp", value, coefficients).reshape(2, 32, 5, 7)
    torch.testing.assert_close(projector(x, tokens), x + read)


# The paper's equations, in the paper's notation: X (HW, C), T (L, C_T), one image at a time.


def matrix(layer: nn.Module) -> Tensor:
    """Return the weights as a matrix (in, out) to multiply from the right."""
    return layer.get_parameter("weight").flatten(1).t()


def widen(x: Tensor, layer: nn.Module) -> Tensor:
    return x if isinstance(layer, nn.Identity) else x @ matrix(layer)


@pytest.mark.parametrize("token_dim", [24, 40])  # W_V exists only if C and C_T differ
def test_paper_mode_matches_equations_1_to_5(token_dim: int) -> None:
    first = randomized(vt.PaperFilterTokenizer(24, 6, token_dim))
    later = randomized(vt.PaperRecurrentTokenizer(24, token_dim))
    transformer = randomized(vt.PaperTransformer(token_dim))
    projector = randomized(vt.PaperProjector(24, token_dim))
    x, tokens = torch.randn(1, 24, 5, 7), torch.randn(1, 6, token_dim)
    assert isinstance(first.value, nn.Identity) == (token_dim == 24)
    pixels, rows = x[0].flatten(1).t(), tokens[0]

    expected = widen((pixels @ matrix(first.coefficients)).softmax(0).t() @ pixels, first.value)
    torch.testing.assert_close(first(x)[0], expected)
    expected = widen((pixels @ (rows @ matrix(later.query)).t()).softmax(0).t() @ pixels, later.value)
    torch.testing.assert_close(later(x, tokens)[0], expected)
    key, query, f1, f2 = (matrix(getattr(transformer, name)) for name in ("key", "query", "first", "second"))
    related = rows + ((rows @ key) @ (rows @ query).t()).softmax(1) @ rows
    torch.testing.assert_close(transformer(tokens)[0], related + (related @ f1).relu() @ f2)
    weights = ((pixels @ matrix(projector.query)) @ (rows @ matrix(projector.key)).t()).softmax(1)
    expected = pixels + weights @ widen(rows, projector.value)
    torch.testing.assert_close(projector(x, tokens)[0].flatten(1).t(), expected)


# The network.


@pytest.mark.parametrize("mode", vt.MODES)
@pytest.mark.parametrize("size", [(32, 32), (33, 65), (256, 320)])
def test_accepts_any_size(size: tuple[int, int], mode: str) -> None:
    assert small_model(mode=mode)(torch.randn(1, 3, *size)).shape == (1, 10)


@pytest.mark.parametrize("mode", vt.MODES)
def test_logits_do_not_depend_on_the_batch(mode: str) -> None:
    model = small_model(mode=mode)
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            model(images), torch.cat([model(image[None]) for image in images]), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("mode", vt.MODES)
def test_classifies_the_mean_of_the_last_tokens_and_does_not_need_the_last_projector(mode: str) -> None:
    model, leaner = (
        small_model(mode=mode),
        create_model("vt_resnet18", num_classes=10, mode=mode, last_projector=False, **SMALL),
    )
    state = model.state_dict()
    unused = {key for key in state if key.startswith("vt.1.projector.")}
    assert unused and leaner.state_dict().keys() == state.keys() - unused
    leaner.load_state_dict({key: value for key, value in state.items() if key not in unused})
    image = torch.randn(2, 3, 64, 96)
    assert isinstance(model, vt.VTResNet)
    with torch.no_grad():
        pixels, tokens = model.forward_features(image)
        assert pixels.shape == (2, 32, 4, 6) and tokens.shape == (2, 4, 64)
        assert torch.equal(model(image), model.fc(tokens.mean(1)))
        torch.testing.assert_close(leaner(image), model(image))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "equations"}, "unknown mode 'equations'; choose from appendix, paper"),
        ({"block": "wide"}, "unknown residual block 'wide'"),
        ({"mode": "paper", "kqv_groups": 4}, "kqv_groups is not supported with mode='paper'; remove it"),
        ({"modules": 0}, "at least 1"),
        ({"tokens": 5}, "tokens must be even"),
        ({"width": 40}, "width must be a multiple of 16"),
        ({"token_dim": 48}, "half of token_dim"),
        ({"kqv_groups": 5}, r"kqv_groups \(5\)"),
    ],
)
def test_rejects_inconsistent_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        create_model("vt_resnet18", **{**SMALL, **options})
