"""edgevit: efficient vision transformers from PyTorch to a proven engine on an edge device.

    bundle = edgevit.export("shiftvit_t", fmt="openvino", out="bundles")
    with edgevit.load(bundle) as engine:
        answer = engine.run({engine.inputs[0].name: images})

Importing this loads neither PyTorch nor a runtime.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    import torch
    from torch import nn

    from edgevit.bundles.bundle import Bundle
    from edgevit.models.downloads import OnDownload
    from edgevit.runtimes.base import BatchRange, Engine
    from edgevit.types import Array, Precision

__version__ = "0.1.0"
__all__ = ["create_model", "export", "list_models", "load"]


def list_models(family: str | None = None) -> list[str]:
    """The names of the registered models, of one family or of all. Raises UsageError for an unknown family."""
    from edgevit.models import registry

    return registry.list_models(family)


def create_model(
    name: str,
    weights: str | os.PathLike[str] | dict[str, torch.Tensor] | None = None,
    num_classes: int | None = None,
    *,
    img_size: int | tuple[int, int] | None = None,
    on_download: OnDownload | None = None,
    **options: Any,
) -> nn.Module:
    """A registered model in eval mode, which maps images (N, C, H, W) to logits (N, num_classes).

    `weights` is a checkpoint file or a state dict, in the authors' naming or ours; without it they are those that
    the registration includes (`shiftvit_cifar10`), or random. "official" fetches the authors' file, where it lies at
    a plain address, into ~/.cache/edgevit (or $EDGEVIT_CACHE), once; `on_download` is told the bytes that have come
    and the bytes there are. `num_classes` is 1000 where the registration says nothing else. `options` replace single
    values of the variant's configuration (`embed_dim`, `depths`, …).

    Raises UsageError for an unknown name or option, CheckpointError where the weights do not fit, MissingError where
    the authors' file cannot be had.
    """
    from edgevit.models import registry

    return registry.create_model(name, weights, num_classes, img_size=img_size, on_download=on_download, **options)


def export_model(
    model: str | nn.Module,
    *,
    fmt: str = "onnx",
    precision: Precision = "fp32",
    calib: str | os.PathLike[str] | Mapping[str, Array] | None = None,
    eval: str | os.PathLike[str] | None = None,  # noqa: A002  # as on the command line
    max_drop: float | None = None,
    out: str | os.PathLike[str] = ".",
    example_input: torch.Tensor | Sequence[torch.Tensor] | None = None,
    weights: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    img_size: int | None = None,
    batch: int = 1,
    dynamic_batch: BatchRange | tuple[int, int, int] | None = None,
    opset: int | None = None,
    images: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    sm: Sequence[int] | None = None,
    trt_version: str | None = None,
    verify: bool = True,
    latency: bool = False,
) -> Bundle:
    """`edgevit.export`: makes a bundle of a registered model, of `module:factory` or of any module, and proves it.

    `calib` is a folder of photos that int8 and fp16 are chosen by, or the inputs themselves by name, (rows, …) each;
    int8 needs it, fp16 makes do with edgevit's own two. `eval` is a folder of labelled images on which a lower
    precision is held against fp32, and `max_drop` the share of top-1 that it may lose there (0.01 where nothing else
    is said).
    `example_input` is needed for a module of the user's own: a tensor, or one an input, batch first. `images` is a
    folder of photos to judge parity on (edgevit carries two of its own). `sm` names the compute capabilities that
    TensorRT-RTX compiles for, such as (86, 89), and `trt_version` the TensorRT of the device, such as "10.3".

    A module of the user's own is exported in eval mode, and is in its own mode again afterwards.

    Raises an EdgevitError, whose `exit_status` says which stage failed; nothing is left behind then.
    """
    from collections.abc import Mapping
    from pathlib import Path

    from edgevit.bundles.bundle import Bundle
    from edgevit.errors import UsageError
    from edgevit.formats import get_format
    from edgevit.models import loading as subject
    from edgevit.pipeline import run as pipeline
    from edgevit.runtimes.base import BatchRange, BuildOptions

    if dynamic_batch is not None and not isinstance(dynamic_batch, BatchRange):
        dynamic_batch = BatchRange(*dynamic_batch)
    with subject.flags_restored(model):
        if isinstance(model, str):
            if example_input is not None:
                raise UsageError("example_input goes with a module; a model given by name is exported for img_size")
            made = subject.from_name(
                model,
                weights=weights,
                num_classes=num_classes,
                img_size=img_size,
                batch=batch,
            )
        else:
            if weights is not None or num_classes is not None or img_size is not None:
                raise UsageError(
                    "weights, num_classes and img_size go with a model given by name; set them on your module"
                )
            made = subject.from_module(model, example_input=example_input, batch=batch)
        recipe = pipeline.ExportConfig(
            formats=(get_format(fmt).name,),
            options=BuildOptions(
                precision=precision,
                batch=made.batch,
                dynamic_batch=dynamic_batch,
                threads=threads,
                compute_capabilities=None if sm is None else tuple(sm),
            ),
            out=Path(out),
            opset=opset,
            images=Path(images) if images is not None else None,
            calib=calib if calib is None or isinstance(calib, Mapping) else Path(calib),
            eval=Path(eval) if eval is not None else None,
            max_drop=max_drop,
            trt_version=trt_version,
            verify=verify,
            latency=latency,
        )
        report = pipeline.run(made, recipe)
    return Bundle.open(report.bundles[0].path)


export = export_model  # the package of that name calls it too: see export/__init__.py


def load(
    bundle: Bundle | str | os.PathLike[str],
    *,
    threads: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Engine:
    """The engine of a bundle, ready to run; needs no PyTorch. Use it in a `with` block.

    `cache_dir` is where a runtime that can keeps what it compiled, so that the next load is quicker (OpenVINO).
    Raises BundleError where a file of the bundle is missing or changed, MissingError where its runtime is missing.
    """
    from pathlib import Path

    from edgevit.bundles.bundle import Bundle
    from edgevit.bundles.engine import open_engine

    opened = Bundle.open(bundle.path if isinstance(bundle, Bundle) else bundle)
    return open_engine(opened, threads=threads, cache_dir=None if cache_dir is None else Path(cache_dir))
