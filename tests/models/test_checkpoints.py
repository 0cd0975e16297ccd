"""Check that checkpoints load strictly from every container that authors use, and that no code in a file runs."""

from __future__ import annotations

import argparse
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from edgevit import create_model
from edgevit.errors import CheckpointError, UsageError
from edgevit.models import checkpoints

SMALL: dict[str, Any] = {"embed_dim": 24, "depths": (1, 1, 1, 1)}


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return create_model("shiftvit_t", **SMALL).state_dict()


def load(weights: Any) -> torch.nn.Module:
    return create_model("shiftvit_t", weights, **SMALL)


CONTAINERS: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
    "the authors' (model)": lambda state: {"model": state},
    "plain": lambda state: state,
    "timm (state_dict)": lambda state: {"state_dict": state, "epoch": 3, "arch": "shiftvit"},
    "averaged": lambda state: {"state_dict": {}, "state_dict_ema": state},
    "model_state_dict": lambda state: {"model_state_dict": state, "epoch": 3},
    "Lightning": lambda state: {"state_dict": {f"model.{key}": value for key, value in state.items()}, "epoch": 3},
    "DataParallel": lambda state: {"model": {f"module.{key}": value for key, value in state.items()}},
    "compiled and parallel": lambda state: {f"module._orig_mod.{key}": value for key, value in state.items()},
    "a whole training run": lambda state: {
        "model": state,
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        "args": argparse.Namespace(lr=0.1),
    },
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_loads_every_container(container: str, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(CONTAINERS[container](state), tmp_path / "weights.pth")
    loaded = load(tmp_path / "weights.pth").state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


def test_loads_safetensors_and_state_dicts(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file(state, tmp_path / "weights.safetensors")
    for weights in (tmp_path / "weights.safetensors", state, {"model": state}):
        loaded = load(weights).state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in state.items())


def test_missing_and_unexpected_keys_and_other_shapes_are_named(state: dict[str, torch.Tensor]) -> None:
    changed = {key: value for key, value in state.items() if key != "head.bias"}
    with pytest.raises(CheckpointError, match="1 missing in the checkpoint: head.bias"):
        load(changed)
    with pytest.raises(CheckpointError, match="1 unexpected in the checkpoint: extra"):
        load({**state, "extra": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"head.bias \(10,\) instead of \(1000,\)"):
        create_model("shiftvit_t", {**state, "head.bias": torch.zeros(10)}, 1000, **SMALL)


def test_averaged_weights_come_first_and_a_key_chooses_others(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    other = {key: value + 1 for key, value in state.items()}
    path = tmp_path / "weights.pth"
    torch.save({"model": other, "model_ema": state}, path)
    assert torch.equal(load(path).state_dict()["head.bias"], state["head.bias"])
    assert load(path).model_info.weights_key == "model_ema"  # type: ignore[union-attr]
    assert load(path).model_info.weights_tensors == len(state)  # type: ignore[union-attr]
    assert torch.equal(load(f"{path}:model").state_dict()["head.bias"], other["head.bias"])
    with pytest.raises(CheckpointError, match="no state dict 'ema'; it has model, model_ema"):
        load(f"{path}:ema")


def test_the_number_of_classes_is_that_of_the_checkpoint(state: dict[str, torch.Tensor]) -> None:
    ten = {key: value[:10] if key.startswith("head.") else value for key, value in state.items()}
    assert load(ten)(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert load(ten).model_info.classes is None  # type: ignore[union-attr]
    with pytest.raises(CheckpointError, match="of another shape"):
        load({**ten, "head.bias": torch.zeros(11)})


class Head(torch.nn.Module):
    """A network whose only submodule has the name that PyTorch's wrappers use."""

    def __init__(self) -> None:
        super().__init__()
        self.module = torch.nn.Linear(3, 4)


@pytest.mark.parametrize("wrappers", [0, 1])
def test_a_prefix_that_belongs_to_the_module_is_kept(wrappers: int) -> None:
    saved, loaded = Head(), Head()
    state = {"module." * wrappers + key: value for key, value in saved.state_dict().items()}
    checkpoints.load_into(loaded, checkpoints.from_state_dict(state).tensors, source="the state dict")
    assert torch.equal(loaded.module.weight, saved.module.weight)


def test_a_prefix_that_some_keys_lack_is_kept() -> None:
    state = {"module.weight": torch.zeros(4, 3), "bias": torch.zeros(4)}
    with pytest.raises(CheckpointError, match="1 missing in the checkpoint: weight; 1 unexpected .*: module.weight"):
        tensors = checkpoints.from_state_dict(state).tensors
        checkpoints.load_into(torch.nn.Linear(3, 4), tensors, source="the state dict")


UNCOPYABLE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "on the meta device": lambda tensor: tensor.to("meta"),
    "quantized": lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
    "sparse": lambda tensor: tensor.to_sparse(),
    "complex": lambda tensor: tensor.to(torch.complex64),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("form", ["file", "state dict"])
@pytest.mark.parametrize("kind", UNCOPYABLE)
def test_a_tensor_that_cannot_be_copied_is_named(
    kind: str, form: str, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    changed = {**state, "head.bias": UNCOPYABLE[kind](state["head.bias"])}
    torch.save(changed, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=f"head.bias in .* is {kind}"):
        load(tmp_path / "weights.pth" if form == "file" else changed)


def test_a_parameter_without_its_own_memory_is_named() -> None:
    module = torch.nn.Linear(3, 4)
    module.bias = torch.nn.Parameter(torch.zeros(1).expand(4))  # four elements in the memory of one
    with pytest.raises(CheckpointError, match='cannot be copied into Linear: .* parameter named "bias"'):
        checkpoints.load_into(module, torch.nn.Linear(3, 4).state_dict(), source="the state dict")


@pytest.mark.parametrize("weights", [3, b"weights.pth", [torch.zeros(1)]])
def test_weights_must_be_a_file_or_a_state_dict(weights: Any) -> None:
    with pytest.raises(CheckpointError, match=f"not a {type(weights).__name__}"):
        load(weights)


class Hostile:
    """An object that runs a shell command when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch hostile-code-ran",)


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_a_hostile_pickle_runs_nothing(
    form: str, state: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "hostile.pth"
    if form == "torch":
        torch.save({"model": state, "args": Hostile()}, path)
    else:
        path.write_bytes(pickle.dumps({"model": Hostile()}))
    with pytest.raises(CheckpointError, match="was not loaded: it holds") as caught:
        load(path)
    assert "weights_only" not in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "hostile-code-ran").exists()


def _save_script(path: Path) -> None:
    script: Any = torch.jit.script(torch.nn.Linear(2, 2))
    script.save(str(path))


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "code": (lambda path: torch.save(Hostile(), path), rf"it holds {os.system.__module__}.system, which"),
    "a module": (lambda path: torch.save(torch.nn.Linear(2, 2), path), r"it holds torch\.nn\.\S*Linear, which"),
    "TorchScript": (_save_script, "it is a TorchScript archive"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", REFUSED)
def test_a_refusal_says_what_the_file_holds_and_never_how_to_load_it_unsafely(kind: str, tmp_path: Path) -> None:
    save, message = REFUSED[kind]
    save(tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=f"was not loaded: {message}") as caught:
        load(tmp_path / "weights.pth")
    assert str(caught.value).endswith("Save the state dict alone: torch.save(model.state_dict(), FILE)")
    assert "weights_only" not in str(caught.value) and "safe_globals" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_one_clear_error(
    suffix: str, fraction: float, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"model": state}, path)
    else:
        save_file(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(fraction * len(content))])
    with pytest.raises(CheckpointError, match=str(path)):
        load(path)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80",  # truncated instruction
        b"\x80\x02a.",  # appends to nothing
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NK\x00K\x01\x85K\x01\x85\x89NtR.",  # a tensor without storage
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_damaged_pickle_is_one_clear_error(content: bytes, packed: bool, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    if packed:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", content)
            archive.writestr("archive/version", "3")
    else:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=str(path)):
        load(path)


def test_the_suffix_safetensors_is_case_insensitive(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file(state, tmp_path / "WEIGHTS.SAFETENSORS")
    loaded = load(tmp_path / "WEIGHTS.SAFETENSORS").state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2], {"model": {"weight": "text"}}])
def test_a_file_without_weights_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="holds"):
        load(tmp_path / "other.pth")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weights file at"):
        load(tmp_path / "nowhere.pth")


def test_the_same_weights_have_the_same_hash(state: dict[str, torch.Tensor]) -> None:
    again = {key: value.clone() for key, value in state.items()}
    assert checkpoints.from_state_dict(state).sha256 == checkpoints.from_state_dict(again).sha256
    again["head.bias"][0] += 1
    assert checkpoints.from_state_dict(state).sha256 != checkpoints.from_state_dict(again).sha256


def test_own_configurations_and_refusals() -> None:
    model = create_model("shiftvit_t", embed_dim=36, depths=(1, 2, 4, 2), patch_size=2, img_size=32, num_classes=10)
    model.load_state_dict(create_model("shiftvit_cifar10").state_dict())
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    with pytest.raises(UsageError, match="Did you mean 'depths'"):
        create_model("shiftvit_t", depth=(1, 1, 1, 1))
    with pytest.raises(UsageError, match="n_div must lie"):
        create_model("shiftvit_t", n_div=2)
    with pytest.raises(UsageError, match="num_classes"):
        create_model("shiftvit_t", num_classes=0)
    with pytest.raises(UsageError, match=r"img_size must be at least 1, not \(32, 0\)"):
        create_model("shiftvit_t", img_size=(32, 0))
    with pytest.raises(UsageError, match="Did you mean 'shiftvit_t'"):
        create_model("shiftvit-t")
