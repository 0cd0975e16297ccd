"""Load a model by registered name, `module:factory`, `file.py:factory`, or from an nn.Module."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgevit.errors import EdgevitError, ExportError, UsageError, unknown_name
from edgevit.files import class_and_first_line, first_line
from edgevit.images import Preprocessing
from edgevit.models import checkpoints, registry
from edgevit.models.downloads import OFFICIAL
from edgevit.models.initialization import randomize
from edgevit.models.spec import ModelInfo, ModelOrigin

SEED = 0  # for random weights and noise
_MODEL_FORMS = "a registered name, package.module:factory or file.py:factory"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A module with everything an export needs to know about it. `example` has one tensor per input, batch first."""

    name: str
    module: nn.Module
    example: tuple[torch.Tensor, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...] | None
    preprocessing: Preprocessing | None  # None if the input is no image
    classes: tuple[str, ...] | None
    origin: ModelOrigin

    @property
    def batch(self) -> int:
        """Number of rows in the example, the batch size of a static export."""
        return len(self.example[0])


def from_name(
    name: str,
    *,
    weights: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    batch: int = 1,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
) -> LoadedModel:
    """Load the MODEL of a command line: a registered name, `package.module:factory` or `file.py:factory`.

    A registered model without weights gets random ones that keep its activations alive; `weights` is described in
    `registry.create_model`. `img_size` is a side or (height, width). `input_shapes` gives a factory's inputs by name,
    batch included; without it the input is one RGB image (batch, 3, height, width).
    Raises UsageError, CheckpointError, MissingError, and ExportError if the user's code fails.
    """
    registry.require_positive("img_size", img_size)
    registry.require_positive("batch", batch)
    if ":" in name:
        if num_classes is not None:
            raise UsageError("--num-classes requires a registered model; set the number of classes in your factory")
        example = _example_of(input_shapes, img_size, batch)
        model = _from_factory(name, example=example, weights=weights)
        _require_size(model, img_size)
        return model
    if name.endswith(".py"):
        raise UsageError(_factories_in(Path(name)))
    if input_shapes:
        raise UsageError("--input-shape requires a factory, MODEL as file.py:factory; use --img-size")
    module = registry.create_model(name, weights, num_classes, img_size=img_size)
    draw_weights(module)
    return from_module(module, batch=batch)


def draw_weights(module: nn.Module) -> None:
    """Draw the weights of a registered model from SEED and record that, unless it has weights from a checkpoint."""
    info = _model_info(module)
    if info.weights == "random":
        randomize(module, seed=SEED)
        module.model_info = replace(info, weights=f"random (seed {SEED})")  # type: ignore[assignment]  # as in registry


def from_module(
    module: nn.Module,
    *,
    example_input: torch.Tensor | Sequence[torch.Tensor] | None = None,
    batch: int = 1,
    name: str | None = None,
) -> LoadedModel:
    """Wrap a module in memory. Raises UsageError if it is no nn.Module, or if its input is unknown."""
    if not isinstance(module, nn.Module):
        raise UsageError(f"a model is {_MODEL_FORMS}, or a torch.nn.Module, not a {type(module).__name__}")
    if isinstance(module, torch.jit.ScriptModule):
        raise UsageError("torch.export does not support TorchScript; pass the original nn.Module")
    registry.require_positive("batch", batch)
    if hasattr(module, "model_info") and isinstance(module.model_info, ModelInfo):
        return _from_model_info(module, module.model_info, example_input, batch)
    if example_input is None:
        raise UsageError(
            f"the input of {type(module).__name__} is unknown; pass example_input=torch.rand(1, 3, 224, 224)"
        )
    example = _examples(example_input, batch)
    return LoadedModel(
        name=name or _slug(type(module).__name__),
        module=in_eval_mode(module),
        example=example,
        input_names=tuple(forward_names(module, len(example))),
        output_names=None,
        preprocessing=_image_like(example),
        classes=None,
        origin=ModelOrigin(),
    )


def forward_names(module: nn.Module, count: int) -> list[str]:
    """Return the names of the first `count` parameters of `forward`. Raises UsageError if it has fewer."""
    parameters = inspect.signature(module.forward).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        names += [f"input_{index}" for index in range(len(names), count)]
    if len(names) < count:
        raise UsageError(f"{type(module).__name__}.forward takes {len(names)} inputs, but {count} were given")
    return names[:count]


def in_eval_mode(module: nn.Module) -> nn.Module:
    """Return the module in eval mode; an exported program (`torch.export`) has one mode and refuses `eval()`."""
    try:
        return module.eval()
    except NotImplementedError:
        return module


def describe_weights(origin: ModelOrigin) -> str | None:
    """Return the weights in one line: file, key, tensors, classes; None if no file was read."""
    if not origin.weights_tensors:
        return None
    key = f"key {origin.weights_key!r}, " if origin.weights_key else ""
    classes = f", {origin.num_classes} classes" if origin.num_classes else ""
    return f"weights: {origin.weights}, {key}{origin.weights_tensors} tensors{classes}"


@contextmanager
def preserve_training_mode(model: object) -> Iterator[None]:
    """Restore the training flag of a module and its submodules on exit; do nothing for anything else."""
    parts = tuple(model.modules()) if isinstance(model, nn.Module) else ()
    flags = [part.training for part in parts]
    try:
        yield
    finally:
        for part, flag in zip(parts, flags, strict=True):
            part.training = flag


def class_names(dataset: str) -> tuple[str, ...]:
    """Return the class names of a dataset in the order of the logits."""
    path = resources.files("edgevit") / "data" / f"{dataset}_classes.tsv"
    return tuple(line.split("\t")[-1] for line in path.read_text("utf-8").splitlines())


def _from_model_info(
    module: nn.Module, info: ModelInfo, example_input: torch.Tensor | Sequence[torch.Tensor] | None, batch: int
) -> LoadedModel:
    preprocessing: Preprocessing | None = info.preprocessing
    if example_input is None:
        example: tuple[torch.Tensor, ...] = (torch.zeros(batch, *info.preprocessing.input_size),)
    else:
        example = _examples(example_input, batch)
        if tuple(example[0].shape[1:]) != info.preprocessing.input_size:
            preprocessing = _image_like(example)
    return LoadedModel(
        name=info.name,
        module=in_eval_mode(module),
        example=example,
        input_names=("images",),
        output_names=("logits",),
        preprocessing=preprocessing,
        classes=class_names(info.classes) if info.classes else None,
        origin=ModelOrigin(
            family=info.family,
            source=info.name,
            options=dict(info.options),
            num_classes=info.num_classes,
            weights="random (create_model)" if info.weights == "random" else info.weights,  # no seed draws these again
            weights_key=info.weights_key,
            weights_tensors=info.weights_tensors,
            weights_sha256=info.weights_sha256,
        ),
    )


def _example_of(
    input_shapes: Mapping[str, Sequence[int]] | None, img_size: int | tuple[int, int] | None, batch: int
) -> Mapping[str, torch.Tensor] | torch.Tensor:
    """Return zeros for each named input, or for one RGB image if no shapes are given."""
    if not input_shapes:
        height, width = (img_size or 224,) * 2 if not isinstance(img_size, tuple) else img_size
        return torch.zeros(batch, 3, height, width, device="cpu")
    if img_size is not None:
        raise UsageError("--img-size and --input-shape exclude each other; the shape includes the size")
    for name, shape in input_shapes.items():
        registry.require_positive(f"--input-shape {name}", tuple(shape))
        if shape[0] != batch:
            raise UsageError(f"--input-shape {name} starts with a batch of {shape[0]}, but --batch is {batch}")
    return {name: torch.zeros(*shape, device="cpu") for name, shape in input_shapes.items()}


def _from_factory(
    name: str, *, example: Mapping[str, torch.Tensor] | torch.Tensor, weights: str | os.PathLike[str] | None
) -> LoadedModel:
    if weights == OFFICIAL:
        raise UsageError(f"--weights official requires a registered model; pass the weights of {name} as a file")
    with _restore_cwd():
        module = _call(_find_factory(name), name)
    read = None if weights is None else checkpoints.read(weights)
    if read is not None:
        checkpoints.load_into(module, read.tensors, source=str(weights))
    if isinstance(getattr(module, "model_info", None), ModelInfo):
        batch = len(example) if isinstance(example, torch.Tensor) else len(next(iter(example.values())))
        model = from_module(module, batch=batch)
    else:
        place, _, attribute = name.rpartition(":")
        stem = Path(place).stem if place.endswith(".py") else place.rpartition(".")[2]
        inputs = _ordered(module, example) if isinstance(example, Mapping) else example
        model = from_module(module, example_input=inputs, name=_slug(f"{stem}_{attribute}"))
        model = replace(model, origin=replace(model.origin, source=name))
    if read is None:
        return model
    origin = replace(
        model.origin,
        weights=str(weights),
        weights_key=read.key,
        weights_tensors=len(read.tensors),
        weights_sha256=read.sha256,
    )
    return replace(model, origin=origin)


def _ordered(module: nn.Module, example: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Return the examples in the order of `forward`'s parameters. Raises UsageError if a name is none of them."""
    names = forward_names(module, len(example))
    for name in example:
        if name not in names:
            raise unknown_name(f"input of {type(module).__name__}.forward", name, names)
    return tuple(example[name] for name in names)


@contextmanager
def _restore_cwd() -> Iterator[None]:
    """Restore the current folder on exit: a user's script may change it, and other relative paths depend on it."""
    folder = Path.cwd()
    try:
        yield
    finally:
        os.chdir(folder)


def _require_size(model: LoadedModel, img_size: int | tuple[int, int] | None) -> None:
    """Raise UsageError if a factory returned a registered model built for another size."""
    size = (img_size, img_size) if isinstance(img_size, int) else img_size
    own = tuple(model.example[0].shape[2:])
    if size is not None and model.origin.family is not None and own != size:
        raise UsageError(
            f"your factory built {model.name} for images of {own[0]} x {own[1]}, not --img-size {size[0]}x{size[1]}; "
            "pass img_size to create_model there"
        )


def _find_factory(name: str) -> Callable[[], Any]:
    place, _, attribute = name.rpartition(":")
    if not place.strip(". "):
        raise UsageError(f"MODEL is {_MODEL_FORMS}, not {name!r}")
    if not attribute:
        raise UsageError(_factories_in(Path(place)) if place.endswith(".py") else f"MODEL is {_MODEL_FORMS}")
    module = _import_file(Path(place)) if place.endswith(".py") else _import_module(place)
    factory = getattr(module, attribute, None)
    if not callable(factory):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UsageError(f"{place} has no function {attribute!r}; it has {', '.join(public) or 'none'}")
    return factory


def _factories_in(path: Path) -> str:
    """Return the error for a file without a factory; its functions are read without running it."""
    message = f"name the function that returns the model: {path}:FUNCTION"
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return message
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return f"{message}; {path.name} has {', '.join(names) or 'none'}"


def _import_file(path: Path) -> Any:
    if not path.is_file():
        raise UsageError(f"no file {path}; MODEL is {_MODEL_FORMS}")
    name = path.stem if path.stem not in sys.modules else f"_users_{path.stem}"  # a file may be called torch.py
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a module up by name
    sys.path.insert(0, str(path.parent.resolve()))  # imports of its neighbours work as when it runs as a script
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # user code may raise anything, or exit
        raise ExportError(f"importing {path} failed: {_reason(error, path)}") from error
    return module


def _import_module(place: str) -> Any:
    sys.path.insert(0, "")  # the current folder, as with `python -m`
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"no Python module {place!r} ({first_line(error)}); for a file write file.py:factory"
        ) from error
    except (Exception, SystemExit) as error:  # user code may raise anything, or exit
        raise ExportError(f"importing {place} failed: {class_and_first_line(error)}") from error


def _call(factory: Callable[[], Any], name: str) -> nn.Module:
    try:
        module = factory()
    except EdgevitError:
        raise
    except (Exception, SystemExit) as error:  # user code may raise anything, or exit
        raise ExportError(f"{name}() failed: {_reason(error, _source_file(factory))}") from error
    if not isinstance(module, nn.Module):
        raise UsageError(f"{name}() returned a {type(module).__name__}, not a torch.nn.Module")
    return in_eval_mode(module)


def _source_file(factory: Callable[[], Any]) -> Path | None:
    try:
        return Path(inspect.getsourcefile(factory) or "")
    except TypeError:
        return None


def _reason(error: BaseException, path: Path | None) -> str:
    """Return an exception of the user's code in one line, with the last line of `path` that it passed through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if path and Path(frame.filename) == path]
    place = f" ({frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line})" if frames else ""
    return f"{class_and_first_line(error)}{place}"


def _examples(example_input: torch.Tensor | Sequence[torch.Tensor], batch: int) -> tuple[torch.Tensor, ...]:
    """Return the example as a tuple of tensors with `batch` rows; an example with several rows keeps its own number."""
    example = (example_input,) if isinstance(example_input, torch.Tensor) else tuple(example_input)
    if not example or not all(isinstance(tensor, torch.Tensor) and tensor.ndim > 0 for tensor in example):
        raise UsageError("example_input must be a tensor or a sequence of tensors, with the batch as the first axis")
    for tensor in example:
        if tensor.is_complex() or (tensor.is_floating_point() and tensor.dtype != torch.float32):
            raise UsageError(
                f"example_input is {str(tensor.dtype).removeprefix('torch.')}; convert module and input to float32 "
                "(module.float()) and request a lower precision with precision="
            )
    if len({len(tensor) for tensor in example}) != 1:
        raise UsageError("the examples have different batch sizes; every input needs the batch as its first axis")
    if batch > 1 and len(example[0]) == 1:
        example = tuple(tensor.repeat(batch, *([1] * (tensor.ndim - 1))) for tensor in example)
    return tuple(tensor.detach().cpu().contiguous() for tensor in example)


def _image_like(example: tuple[torch.Tensor, ...]) -> Preprocessing | None:
    """Return ImageNet's preprocessing if the only input looks like a batch of RGB photos."""
    first = example[0]
    if len(example) == 1 and first.ndim == 4 and first.shape[1] == 3 and first.dtype == torch.float32:
        return Preprocessing(input_size=(3, first.shape[2], first.shape[3]))
    return None


def _model_info(module: nn.Module) -> ModelInfo:
    assert isinstance(module.model_info, ModelInfo)
    return module.model_info


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "model"
