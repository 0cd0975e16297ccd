"""`edgevit export`: build, verify and measure the bundles of a model."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edgevit.cli import argument_types
from edgevit.cli.console import Console, OnStage, redirect_user_output
from edgevit.cli.export_output import report_parts, result_lines
from edgevit.cli.model_arguments import (
    add_model_arguments,
    add_preprocessing_arguments,
    load_model,
    require_current_folder,
)
from edgevit.cli.parser import (
    Arguments,
    Command,
    Group,
    add_images,
    add_int8_range,
    add_strict,
    add_threads,
    add_workspace,
)
from edgevit.cli.tables import notes
from edgevit.errors import MissingError, UsageError
from edgevit.export.garbage import rare_collection
from edgevit.files import message_line
from edgevit.formats import DEFAULT_TENSORRT, list_formats
from edgevit.memory import EXPORT_MB, require_address_space
from edgevit.precisions import list_policies
from edgevit.types import PRECISIONS

if TYPE_CHECKING:
    from edgevit.models.description import ModelDescription
    from edgevit.pipeline.config import ExportConfig
    from edgevit.pipeline.tuning.auto import TunedEngine
    from edgevit.runtimes.base import BuildOptions


AUTO = "auto"  # as a format: the engine that `edgevit tune` found on this machine


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `edgevit export`, in groups by subject."""
    parser.usage = "%(prog)s MODEL --fmt FMT[,FMT] [OPTION]..."
    add_model_arguments(parser)
    add_preprocessing_arguments(parser.add_argument_group("preprocessing", "each replaces the model's own setting"))
    _add_engine_arguments(parser.add_argument_group("engine"))
    _add_precision_arguments(parser.add_argument_group("lower precision"))
    _add_check_arguments(parser.add_argument_group("checks and measurements"))
    _add_tensorrt_arguments(parser.add_argument_group("TensorRT"))


def _add_engine_arguments(group: Group) -> None:
    group.add_argument(
        "--fmt",
        required=True,
        type=argument_types.names,
        metavar="FMT[,FMT]",
        help=f"{', '.join(entry.name for entry in list_formats())}, or an alias; auto: what edgevit tune found here",
    )
    group.add_argument("--batch", type=int, metavar="N", help="static batch size (default: 1)")
    group.add_argument(
        "--dynamic-batch",
        type=argument_types.batch_range,
        metavar="MIN:OPT:MAX",
        help="dynamic batch size, instead of --batch",
    )
    group.add_argument("--opset", type=int, metavar="N", help="ONNX opset (default: the best one for the format)")
    group.add_argument("--onnxsim", action="store_true", help="also simplify the graph with onnxsim, if that helps")
    add_threads(group)
    group.add_argument(
        "--out",
        type=argument_types.path,
        default=Path(),
        metavar="DIR",
        help="folder for the bundles (default: current folder)",
    )


def _add_precision_arguments(group: Group) -> None:
    group.add_argument(
        "--precision", action="append", choices=PRECISIONS, help="precision of the engine (default: fp32)"
    )
    for policy in list_policies():
        if policy.flags:
            same_as = f"same as --precision {policy.name}"
            group.add_argument(*policy.flags, dest="precision", action="append_const", const=policy.name, help=same_as)
    group.add_argument(
        "--calib",
        type=argument_types.path,
        metavar="DIR",
        help="calibration images for int8 and fp16; required for int8",
    )
    group.add_argument(
        "--eval",
        type=argument_types.path,
        metavar="DIR",
        help="labeled images, as for edgevit eval, on which a lower precision is compared with fp32",
    )
    group.add_argument(
        "--max-drop",
        type=argument_types.percentage,
        metavar="P%",
        help="largest loss of top-1, mAP or mIoU, such as 0.5%% (default: 1%% with --eval)",
    )
    group.add_argument(
        "--keep-float",
        type=argument_types.names,
        default=(),
        metavar="MODULE[,MODULE]",
        help="PyTorch modules that stay in float with fp16 or int8, such as blocks.3.attn",
    )
    add_int8_range(group, default=None, default_text=f"safe; with --fmt {AUTO}, as tuned")


def _add_check_arguments(group: Group) -> None:
    add_images(group)
    add_strict(group)
    group.add_argument(
        "--no-verify", dest="verify", action="store_false", help="skip the parity check; the manifest records it"
    )
    group.add_argument(
        "--no-explain",
        dest="explain",
        action="store_false",
        help="do not search for the first module that differs if parity fails (about 60 s)",
    )
    group.add_argument(
        "--latency-time",
        type=float,
        metavar="S",
        help="limit of the latency measurement in seconds (default: 120)",
    )
    group.add_argument("--no-latency", dest="latency", action="store_false", help="skip the latency measurement")


def _add_tensorrt_arguments(group: Group) -> None:
    ahead_of_time = " and ".join(entry.name for entry in list_formats() if entry.ahead_of_time)
    group.add_argument(
        "--sm",
        type=argument_types.compute_capabilities,
        metavar="N[,N]",
        help=f"compute capabilities for {ahead_of_time}, such as 86,89,120 (default: portable)",
    )
    group.add_argument(
        "--trt-version",
        metavar="V",
        help="TensorRT version on the device "
        f"(default: the installed one, or {DEFAULT_TENSORRT} if none can build here)",
    )
    add_workspace(group)


def run(arguments: Arguments, console: Console) -> int:
    """Export a model to one or several formats."""
    start_s = time.perf_counter()
    options = _build_options(arguments)
    require_current_folder()
    require_address_space(EXPORT_MB, user="edgevit export")
    with rare_collection():
        from edgevit.pipeline import run as pipeline
        from edgevit.pipeline.source import source_of

    others = [name for name in arguments.fmt if name.lower() != AUTO]
    is_auto = len(others) < len(arguments.fmt)
    if is_auto and others:
        raise UsageError(
            f"--fmt {AUTO} cannot be combined with other formats; export {','.join(others)} in a separate command"
        )
    if not is_auto:
        _config(arguments, options)  # contradictions are reported before the model is loaded
    with rare_collection(), redirect_user_output():
        model = load_model(arguments)
        source_of(model)  # imports PyTorch's exporter
    if options.dynamic_batch is None:
        options = replace(options, batch=model.batch)  # an ONNX file may have one of its own
    with redirect_user_output(), console.stage_progress() as on_stage:
        if console.detailed:
            on_stage("import packages, create the model", time.perf_counter() - start_s)
        tuned = _find_tuned(arguments, model, on_stage) if is_auto else None
        config = _config(arguments, options, tuned)
        captured = tuned.captured if tuned else None
        report = pipeline.run(model, config, on_stage, captured=captured, watch_memory=console.detailed)
    if tuned is not None:
        console.result(tuned.sentence, *notes([tuned.note] if tuned.note else []))
    console.result(*result_lines(report))
    console.print(*report_parts(report, detailed=console.detailed))
    console.finish(report.to_json(), next_command=report.next_command)
    for bundle in report.unbuilt:
        print(f"edgevit: {message_line(bundle.missing)}", file=sys.stderr)
    return MissingError.exit_status if report.unbuilt else 0


def _build_options(arguments: Arguments) -> BuildOptions:
    from edgevit.runtimes.base import BatchRange, BuildOptions

    precisions = sorted(set(arguments.precision or ["fp32"]))
    if len(precisions) > 1:
        raise UsageError(f"{' and '.join(precisions)} were both requested; choose one precision")
    dynamic: BatchRange | None = BatchRange(*arguments.dynamic_batch) if arguments.dynamic_batch else None
    if dynamic and arguments.batch is not None:
        raise UsageError("--batch and --dynamic-batch exclude each other; give one of them")
    return BuildOptions(
        precision=precisions[0],
        batch=1 if arguments.batch is None else arguments.batch,
        dynamic_batch=dynamic,
        threads=arguments.threads,
        compute_capabilities=arguments.sm,
        workspace_mb=arguments.workspace,
    )


def _find_tuned(arguments: Arguments, model: ModelDescription, on_stage: OnStage) -> TunedEngine:
    """Return the engine that `edgevit tune` found for the model."""
    from edgevit.pipeline.tuning.auto import find_tuned

    if arguments.dynamic_batch:
        raise UsageError("--fmt auto needs a static batch, for which engines are tuned; leave --dynamic-batch out")
    return find_tuned(
        model,
        precision=arguments.precision[0] if arguments.precision else None,
        threads=arguments.threads,
        calibrated=arguments.calib is not None,
        int8_range=arguments.int8_range,
        progress=on_stage,
    )


def _config(arguments: Arguments, options: BuildOptions, tuned: TunedEngine | None = None) -> ExportConfig:
    """Return the options of the export; format, precision and settings are those of `tuned` if it is given."""
    from edgevit.formats import get_format
    from edgevit.pipeline.config import DEFAULT_LATENCY_TIME_S, ExportConfig

    of_any_engine = partial(
        ExportConfig,
        out=arguments.out,
        opset=arguments.opset,
        images=arguments.images,
        trt_version=arguments.trt_version,
        onnxsim=arguments.onnxsim,
        strict=arguments.strict,
        verify=arguments.verify,
        explain=arguments.explain,
        latency=arguments.latency,
        latency_time_s=DEFAULT_LATENCY_TIME_S if arguments.latency_time is None else arguments.latency_time,
    )
    calib, labeled, max_drop = arguments.calib, arguments.eval, arguments.max_drop
    if tuned is not None:
        return tuned.config(
            of_any_engine, options, calib=calib, labeled=labeled, max_drop=max_drop, keep_float=arguments.keep_float
        )
    return of_any_engine(
        formats=tuple(get_format(name).name for name in arguments.fmt),
        options=options,
        calib=calib,
        eval=labeled,
        max_drop=max_drop,
        int8_range=arguments.int8_range or "safe",
        keep_float=arguments.keep_float,
    )


COMMAND = Command(
    name="export", help="export a model: build, verify and measure its bundles", add_arguments=add_arguments, run=run
)
