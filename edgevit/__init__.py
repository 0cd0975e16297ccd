"""edgevit: export efficient vision models from PyTorch to engines for edge devices, and verify the result.

    bundle = edgevit.export("shiftvit_t", fmt="openvino", out="bundles")
    with edgevit.load(bundle) as engine:
        outputs = engine.run({engine.inputs[0].name: images})

Importing edgevit imports neither PyTorch nor a runtime.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import TypedDict

    import torch
    from torch import nn
    from typing_extensions import Unpack

    from edgevit.bundles.bundle import Bundle
    from edgevit.formats import Int8Range
    from edgevit.models.loading import LoadedModel
    from edgevit.pipeline.explain.explanation import Explanation
    from edgevit.pipeline.tuning.report import TuningReport
    from edgevit.runtimes.base import BatchRange, Engine
    from edgevit.types import Array, OutputForm, Precision

    class _ExportOptions(TypedDict, total=False):
        """The options of `export_model` that its result does not depend on."""

        name: str | None
        precision: Precision
        calib: str | os.PathLike[str] | Mapping[str, Array] | None
        eval: str | os.PathLike[str] | None
        int8_range: Int8Range
        keep_float: Sequence[str]
        max_drop: float | None
        out: str | os.PathLike[str]
        example_input: torch.Tensor | Sequence[torch.Tensor] | None
        weights: str | os.PathLike[str] | None
        num_classes: int | None
        img_size: int | tuple[int, int] | None
        outputs: OutputForm | None
        batch: int
        dynamic_batch: BatchRange | tuple[int, int, int] | None
        opset: int | None
        images: str | os.PathLike[str] | None
        preprocessing: object
        classes: str | os.PathLike[str] | None
        threads: int | None
        sm: Sequence[int] | None
        trt_version: str | None
        onnxsim: bool
        strict: bool
        verify: bool
        explain: bool
        latency: bool


# ONNX Runtime's wheels report their use to Microsoft unless this is set before their first import, by edgevit or by
# onnxsim, which imports them too. Subprocesses inherit it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
__all__ = ["create_model", "explain", "export", "list_models", "load", "tune"]


def list_models(family: str | None = None, *, task: str | None = "classification") -> list[str]:
    """Return the names of the registered models of a task, of one family or all.

    Tasks are "classification", "detection" and "segmentation"; None stands for all. Raises UsageError for an unknown
    family or task, MissingError if PyTorch is not installed.
    """
    _require_torch()
    from edgevit.models import registry

    return registry.list_models(family, task=task)


def _require_torch() -> None:
    """Raise MissingError without PyTorch, of which the registered models are modules."""
    from edgevit.runtimes.pytorch import load_torch

    load_torch()


def create_model(
    name: str,
    weights: str | os.PathLike[str] | dict[str, torch.Tensor] | None = None,
    num_classes: int | None = None,
    *,
    img_size: int | tuple[int, int] | None = None,
    features: bool = False,
    **options: Any,
) -> nn.Module:
    """Return a registered model in eval mode, which maps images (N, C, H, W) to logits (N, num_classes).

    Args:
        name: a name from `list_models`.
        weights: a checkpoint file or a state dict, with the authors' parameter names or with edgevit's. "official"
            downloads the authors' checkpoint once, into `$EDGEVIT_CACHE` or `~/.cache/edgevit`, if it has a plain
            URL. None means the included weights (`shiftvit_cifar10`) or random ones.
        num_classes: the number of logits; by default that of the registered model, usually 1000.
        img_size: height and width of the input, or both as a tuple.
        features: return the model's backbone, which maps images to the feature maps "c2" to "c5" (N, C, H/s, W/s) at
            strides 4 to 32. Images are padded to multiples of 32.
        options: replace single values of the model's configuration, such as `embed_dim` or `depths`.

    Raises UsageError for an unknown name or option, CheckpointError if the weights do not fit the model, and
    MissingError if the authors' checkpoint cannot be downloaded or PyTorch is not installed.
    """
    _require_torch()
    from edgevit.models import registry

    return registry.create_model(name, weights, num_classes, img_size=img_size, features=features, options=options)


@overload
def export_model(model: str | nn.Module, *, fmt: str = "onnx", **options: Unpack[_ExportOptions]) -> Bundle: ...
@overload
def export_model(
    model: str | nn.Module, *, fmt: list[str] | tuple[str, ...], **options: Unpack[_ExportOptions]
) -> tuple[Bundle, ...]: ...
def export_model(
    model: str | nn.Module,
    *,
    fmt: str | list[str] | tuple[str, ...] = "onnx",
    name: str | None = None,
    precision: Precision = "fp32",
    calib: str | os.PathLike[str] | Mapping[str, Array] | None = None,
    eval: str | os.PathLike[str] | None = None,  # noqa: A002  # as on the command line
    int8_range: Int8Range = "safe",
    keep_float: Sequence[str] = (),
    max_drop: float | None = None,
    out: str | os.PathLike[str] = ".",
    example_input: torch.Tensor | Sequence[torch.Tensor] | None = None,
    weights: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    outputs: OutputForm | None = None,
    batch: int = 1,
    dynamic_batch: BatchRange | tuple[int, int, int] | None = None,
    opset: int | None = None,
    images: str | os.PathLike[str] | None = None,
    preprocessing: object = None,
    classes: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    sm: Sequence[int] | None = None,
    trt_version: str | None = None,
    onnxsim: bool = False,
    strict: bool = False,
    verify: bool = True,
    explain: bool = True,
    latency: bool = False,
) -> Bundle | tuple[Bundle, ...]:
    """Export a model as a bundle and compare its outputs with PyTorch's; available as `edgevit.export`.

    Returns the bundle, or one for each format if `fmt` is a list or tuple of formats.

    Args:
        model: a registered name, "package.module:factory", "file.py:factory", an ONNX file ("model.onnx") or a module.
            A module is exported in eval mode and is returned to its previous mode. An ONNX file needs no PyTorch: it is
            compared with its own run in ONNX Runtime, without optimizations.
        fmt: a format or an alias, such as "onnx", "ort", "openvino", "trt" or "trt-rtx"; or several formats.
        name: the name of the model, with which the bundle's name begins. By default that of a registered model, of a
            function, or of the module's class, which is numbered if `out` has bundles of another module of that class.
        precision: "fp32", "fp16", "int8", or "bf16" for OpenVINO on processors with bf16 arithmetic.
        calib: calibration data for fp16 and int8: a folder of images, or arrays (rows, ...) by input name. int8
            requires it; fp16 uses two included photos by default.
        eval: a folder of labeled images on which a lower precision is compared with fp32.
        int8_range: "safe", or "full" for int8 weights that x86 processors need VNNI for.
        keep_float: paths of PyTorch modules that stay in float with fp16 and int8, such as "blocks.3.attn".
        max_drop: the largest allowed loss of top-1 on `eval`, as a fraction (default: 0.01).
        out: the folder in which the bundle is created.
        example_input: a tensor with the batch first, or one for each input. Required for a module.
        weights, num_classes, img_size: as for `create_model`; only for a model given by name.
        outputs: what a registered model outputs, as `--outputs`: "logits" or "features"; "boxes", "raw" or "nms" of a
            detector; "classes" of a segmenter.
        batch: the static batch size.
        dynamic_batch: (minimum, optimum, maximum), instead of `batch`.
        opset: the ONNX opset; by default the best one for the format.
        images: a folder of images for the parity check (default: two included photos).
        preprocessing: how images become the input, instead of what the model declares: an
            `edgevit.images.Preprocessing`, a timm `pretrained_cfg`, a Hugging Face image processor, or the
            `transforms()` of a torchvision weights entry.
        classes: a file of class names, one a line in the order of the logits.
        threads: CPU threads of the runtime (default: all cores).
        sm: compute capabilities that TensorRT-RTX compiles for, such as (86, 89).
        trt_version: the TensorRT version of the device, such as "10.3".
        onnxsim: also simplify the graph with onnxsim, if that removes nodes.
        strict: raise ImageError for an image that cannot be read, instead of leaving it out with a warning.
        verify: compare the outputs with PyTorch's.
        explain: if they differ, search for the first module that does, for about 60 s; `ParityError.explanation` is
            the result, and the failing part of the graph is saved in `out`/explain.
        latency: measure the latency.

    Raises an EdgevitError; its `exit_status` identifies the failed stage. No partial bundle remains.
    """
    from pathlib import Path

    from edgevit.bundles.bundle import Bundle
    from edgevit.files import as_path
    from edgevit.formats import get_format
    from edgevit.pipeline import run as pipeline
    from edgevit.pipeline.config import require_calibration
    from edgevit.pipeline.load_model import ModelOptions, restored_state
    from edgevit.runtimes.base import BatchRange, BuildOptions

    options = ModelOptions(
        name=name,
        example_input=example_input,
        weights=weights,
        num_classes=num_classes,
        img_size=img_size,
        outputs=outputs,
        batch=None if batch == 1 else batch,
        preprocessing=preprocessing,
        classes=as_path(classes),
    )
    if dynamic_batch is not None and not isinstance(dynamic_batch, BatchRange):
        dynamic_batch = BatchRange(*dynamic_batch)
    with restored_state(model):
        loaded = options.load(model, Path(out))
        config = pipeline.ExportConfig(
            formats=tuple(get_format(each).name for each in ([fmt] if isinstance(fmt, str) else fmt)),
            options=BuildOptions(
                precision=precision,
                batch=loaded.batch,
                dynamic_batch=dynamic_batch,
                threads=threads,
                compute_capabilities=None if sm is None else tuple(sm),
            ),
            out=Path(out),
            opset=opset,
            images=as_path(images),
            calib=require_calibration(calib),
            eval=as_path(eval),
            int8_range=int8_range,
            keep_float=tuple(keep_float),
            max_drop=max_drop,
            trt_version=trt_version,
            onnxsim=onnxsim,
            strict=strict,
            verify=verify,
            explain=explain,
            latency=latency,
        )
        report = pipeline.run(loaded, config)
    bundles = tuple(Bundle.open(each.path) for each in report.bundles)
    return bundles[0] if isinstance(fmt, str) else bundles


def tune(
    model: str | nn.Module,
    *,
    time_s: float = 600.0,
    fmt: Sequence[str] = (),
    threads: Sequence[int] = (),
    calib: str | os.PathLike[str] | Mapping[str, Array] | None = None,
    eval: str | os.PathLike[str] | None = None,  # noqa: A002  # as on the command line
    max_drop: float | None = None,
    int8_range: Int8Range | None = None,
    out: str | os.PathLike[str] = ".",
    name: str | None = None,
    example_input: torch.Tensor | Sequence[torch.Tensor] | None = None,
    weights: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    outputs: OutputForm | None = None,
    batch: int = 1,
    images: str | os.PathLike[str] | None = None,
    preprocessing: object = None,
    classes: str | os.PathLike[str] | None = None,
    strict: bool = False,
    throughput: bool = False,
    fresh: bool = False,
) -> TuningReport:
    """Find the fastest engine of a model on this machine by measuring, and write its bundle.

    Returns the report; `report.bundle` is the recommended bundle, which `load` opens with the settings that won.

    Args:
        time_s: the limit of the whole search in seconds.
        fmt: the formats to try (default: all whose runtime is installed).
        threads: numbers of CPU threads to try (default: all cores, and half of them).
        calib: calibration data; without it, int8 is not tried.
        eval: a folder of labeled images on which top-1 is measured.
        max_drop: the largest allowed loss of top-1, as a fraction (default: 0.01 with `eval`).
        throughput: find the most images per second, with several inferences at once and larger batches, not the lowest
            latency.
        fresh: discard what an unfinished search has left, instead of going on from there.
        int8_range: "safe" or "full" (default: "full" if this processor computes it correctly).
        model, out, name, example_input, weights, num_classes, img_size, outputs, batch, images, preprocessing,
            classes, strict: as for `export_model`.

    Raises an EdgevitError, such as ParityError if no engine passes its checks, and MeasureError if `time_s` is too
    short for one.
    """
    from pathlib import Path

    from edgevit.files import as_path
    from edgevit.pipeline.config import require_calibration
    from edgevit.pipeline.load_model import ModelOptions, restored_state
    from edgevit.pipeline.tuning.config import TuneConfig
    from edgevit.pipeline.tuning.tune import tune as find_fastest

    config = TuneConfig(
        formats=tuple(fmt),
        threads=tuple(threads),
        limit_s=time_s,
        calib=require_calibration(calib),
        eval=as_path(eval),
        max_drop=max_drop,
        int8_range=int8_range,
        images=as_path(images),
        strict=strict,
        out=Path(out),
        throughput=throughput,
        fresh=fresh,
    )
    options = ModelOptions(
        name=name,
        example_input=example_input,
        weights=weights,
        num_classes=num_classes,
        img_size=img_size,
        outputs=outputs,
        batch=None if batch == 1 else batch,
        preprocessing=preprocessing,
        classes=as_path(classes),
    )
    with restored_state(model):
        return find_fastest(options.load(model, Path(out)), config)


export = export_model  # the package edgevit.export is callable too: see export/__init__.py


def load(
    bundle: Bundle | str | os.PathLike[str],
    *,
    threads: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Engine:
    """Open the engine of a bundle; PyTorch is not needed. Use it in a `with` block.

    Args:
        bundle: a Bundle or its folder.
        threads: CPU threads of the runtime (default: all cores).
        cache_dir: a folder for compiled models, which make the next load faster (OpenVINO, ONNX Runtime).

    Raises BundleError if a file of the bundle is missing or was modified, and MissingError if its runtime is not
    installed.
    """
    from edgevit.bundles.bundle import Bundle
    from edgevit.bundles.engine import open_engine
    from edgevit.files import as_path

    opened = Bundle.open(bundle.path if isinstance(bundle, Bundle) else bundle)
    return open_engine(opened, threads=threads, cache_dir=as_path(cache_dir))


def explain(
    bundle: Bundle | str | os.PathLike[str],
    model: str | nn.Module | None = None,
    *,
    weights: str | os.PathLike[str] | None = None,
    images: str | os.PathLike[str] | None = None,
    limit_s: float = 60.0,
) -> Explanation | None:
    """Find the first PyTorch module whose outputs differ in a bundle's engine; None if the bundle passes parity.

    Args:
        bundle: a Bundle or its folder.
        model: the model that it was exported from, as for `export`, or the module itself; by default the registered
            model that the bundle names.
        weights: the checkpoint file of that model, if it is given by name.
        images: a folder of images to compare on (default: the bundle's reference inputs).
        limit_s: time for the search; a step that has begun is finished.

    The part of the graph that fails is saved in the folder `explain` beside the bundle. Raises UsageError if the model
    has to be named, or is another one than the bundle was exported from, and MissingError if PyTorch is not installed.
    """
    _require_torch()
    from functools import cache

    from torch import nn

    from edgevit.bundles.bundle import Bundle
    from edgevit.bundles.source_model import PytorchSource, recreate_model, references_on
    from edgevit.bundles.verify import verify
    from edgevit.files import as_path
    from edgevit.pipeline.explain.bundles import explain_bundle, match_module
    from edgevit.pipeline.load_model import restored_state

    opened = Bundle.open(bundle.path if isinstance(bundle, Bundle) else bundle)

    @cache
    def load_source() -> LoadedModel:
        if isinstance(model, nn.Module):
            return match_module(opened, model)
        return recreate_model(opened, PytorchSource(model=model, weights=weights))

    with restored_state(model):
        references = references_on(as_path(images), opened, load_source)
        report = verify(opened, references)
        if report.passed:
            return None
        return explain_bundle(opened, report, model=load_source(), references=references, limit_s=limit_s)
