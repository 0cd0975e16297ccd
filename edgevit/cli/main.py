"""The command line: one short function a command. Results go to stdout, progress and errors to stderr."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import edgevit
from edgevit.errors import EdgevitError, MissingError, ParityError, UsageError, near_miss
from edgevit.formats import list_formats
from edgevit.precisions import list_policies
from edgevit.types import PRECISIONS

if TYPE_CHECKING:
    from rich.console import RenderableType

    from edgevit.models.loading import LoadedModel
    from edgevit.runtimes.base import BatchRange, BuildOptions

Arguments = argparse.Namespace
_ESCAPED = "edgevit.escaped"
_EXPORT_PACKAGES = frozenset({"torch", "onnx", "onnx_ir", "onnxscript", "safetensors"})  # the extra [export]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status (see errors.py)."""
    _prepare_streams()
    parsed = build_parser().parse_args(arguments)
    parsed.stop = stop = Stop()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)  # so that what is half-written is cleared away
    try:
        _require_place(parsed.json)
        command: Callable[[Arguments], int] = parsed.command
        status = command(parsed)
        sys.stdout.flush()  # here, where it can still be said that it did not go out
        return status
    except EdgevitError as error:
        stop.check()  # the error may be all that was left of it
        return _fail(error, parsed)
    except BrokenPipeError:  # whoever read our output has enough
        _close_stdout()
        return 128 + signal.SIGPIPE
    except OSError as error:
        _close_stdout()
        place = f" {error.filename}" if error.filename else ""
        return _fail(UsageError(f"cannot read or write{place}: {error.strerror or error}"), parsed)
    except (ModuleNotFoundError, MemoryError, RuntimeError) as error:
        meant = _lack(error)
        if meant is None:
            raise
        return _fail(meant, parsed)
    except KeyboardInterrupt:
        print("edgevit: interrupted; nothing is left behind", file=sys.stderr)
        return 130


def _lack(error: Exception) -> EdgevitError | None:
    """What this machine lacks, of a package or of memory, by an error of Python's or PyTorch's; None for others."""
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        missing = f"{package} is not installed here: pip install 'edgevit[export]'"
        return MissingError(missing) if package in _EXPORT_PACKAGES else None
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return UsageError("this machine has not the memory for it; ask for a smaller size or batch")
    return None


def _prepare_streams() -> None:
    """Three open streams, the first of them for any name of the user's, whatever the locale."""
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:  # in a closed stream's place, which a file would get else
        pass
    os.close(number)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  # stays
    codecs.register_error(_ESCAPED, _escaped)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=_ESCAPED)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of photos that it reads all the same


def _escaped(error: UnicodeError) -> tuple[str | bytes, int]:
    """What an encoding has no form for: the bytes of a file's name as they are, anything else escaped."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.backslashreplace_errors(error)


class Stop:
    """A signal that ends the run, by an exception, so that what is half-written is cleared away on its way out.

    Others' code may swallow the exception (a bare `except:`), so it is raised again at the next stage.
    """

    def __init__(self) -> None:
        self.number: int | None = None

    def __call__(self, number: int, _frame: object) -> NoReturn:
        if self.number is None:
            print(f"edgevit: stopped by {signal.Signals(number).name}; nothing is left behind", file=sys.stderr)
        self.number = number
        raise SystemExit(128 + number)

    def check(self) -> None:
        """Raises SystemExit where the signal came."""
        if self.number is not None:
            raise SystemExit(128 + self.number)


def _fail(error: EdgevitError, parsed: Arguments, *, found: dict[str, Any] | None = None) -> int:
    """Says what went wrong, to people and to machines; these get what was `found` as well."""
    _show_evidence(error)
    print(f"edgevit: {error}", file=sys.stderr)
    if parsed.json:
        result = {"error": str(error), "exit_status": error.exit_status, **_evidence(error), **(found or {})}
        with contextlib.suppress(UsageError):  # that the file cannot be written may be the very error
            _write_json(parsed.json, result)
    return error.exit_status


# The commands


def list_command(arguments: Arguments) -> int:
    """Prints the registered models with their papers' figures."""
    from edgevit.models import registry
    from edgevit.pipeline import report

    specs = [registry.get_spec(name) for name in registry.list_models(arguments.family)]
    _print(report.model_table(specs), arguments)
    _finish(arguments, {"models": [report.model_json(spec) for spec in specs]})
    return 0


def export_command(arguments: Arguments) -> int:
    """Makes, proves and measures the bundles of a model."""
    options = _build_options(arguments)
    _require_current_folder()
    from edgevit.formats import get_format
    from edgevit.models import loading as subject
    from edgevit.pipeline import report
    from edgevit.pipeline import run as pipeline

    recipe = pipeline.ExportConfig(
        formats=tuple(get_format(name.strip()).name for name in arguments.fmt.split(",")),
        options=options,
        out=arguments.out,
        opset=arguments.opset,
        images=arguments.images,
        calib=arguments.calib,
        eval=arguments.eval,
        max_drop=arguments.max_drop,
        trt_version=arguments.trt_version,
        verify=arguments.verify,
        latency=arguments.latency,
    )
    with _own_code_aside(), _download_progress() as on_download:
        made = subject.from_name(
            arguments.model,
            weights=arguments.weights,
            num_classes=arguments.num_classes,
            img_size=arguments.img_size,
            batch=options.batch,
            on_download=on_download,
        )
    with _own_code_aside(), _progress(arguments) as progress:
        found = pipeline.run(made, recipe, progress)
    for part in report.run_parts(found):
        _print(part, arguments)
    _finish(arguments, found.to_json(), last_line=_as_called(found.next_command))
    for bundle in found.unbuilt:
        print(f"edgevit: {bundle.missing}", file=sys.stderr)
    return MissingError.exit_status if found.unbuilt else 0


def build_command(arguments: Arguments) -> int:
    """Builds a bundle's engine on this machine, and judges it; needs no PyTorch."""
    from edgevit.bundles.build import build
    from edgevit.bundles.bundle import Bundle
    from edgevit.pipeline import report

    with _progress(arguments) as progress:
        made, parity = build(
            Bundle.open(arguments.bundle),
            fmt=arguments.fmt,
            threads=arguments.threads,
            workspace_mb=arguments.workspace,
            on_phase=lambda phase, done: progress(f"{phase} {done:.0%}", None),
        )
    _print(report.parity_table(parity.results), arguments)
    result = {"path": str(made.path), "parity": parity.to_json()}
    _finish(arguments, result, last_line=_as_called(f"edgevit latency {shlex.quote(str(made.path))}"))
    return 0


def verify_command(arguments: Arguments) -> int:
    """Judges a bundle's engine again, from what the bundle carries; needs no PyTorch."""
    from edgevit.bundles.bundle import Bundle
    from edgevit.bundles.verify import verify
    from edgevit.pipeline import report

    parity = verify(Bundle.open(arguments.bundle), images=arguments.images, threads=arguments.threads)
    parity.require()
    _print(report.parity_table(parity.results), arguments)
    _finish(arguments, parity.to_json(), last_line=f"{arguments.bundle}: parity holds")
    return 0


def run_command(arguments: Arguments) -> int:
    """Answers what is on photos."""
    from edgevit.bundles.bundle import Bundle
    from edgevit.bundles.predict import classify
    from edgevit.pipeline import report

    answers = classify(Bundle.open(arguments.bundle), arguments.image, top=arguments.top, threads=arguments.threads)
    for part in report.answer_parts(answers):
        _print(part, arguments)
    _finish(arguments, {"answers": [answer.to_json() for answer in answers]})
    return 0


def eval_command(arguments: Arguments) -> int:
    """Measures top-1 and top-5 on labelled images: of bundles, of PyTorch, side by side."""
    from edgevit.bundles.bundle import Bundle
    from edgevit.bundles.evaluate import evaluate_bundles
    from edgevit.pipeline import report

    names = [name for name in arguments.bundle if _is_model(name)]
    with _image_progress() as on_progress:
        found = evaluate_bundles(
            [Bundle.open(path) for path in arguments.bundle if not _is_model(path)],
            models=_models(names, arguments.weights),
            data=arguments.data,
            against=[name.strip() for name in arguments.against.split(",") if name.strip()],
            threads=arguments.threads,
            limit=arguments.limit,
            on_progress=on_progress,
        )
    for part in report.accuracy_parts(found):
        _print(part, arguments)
    _finish(arguments, found.to_json())
    return 0


def latency_command(arguments: Arguments) -> int:
    """Measures bundles, and what they are to be held against, side by side in one process."""
    from edgevit.bundles.benchmark import measure_bundles
    from edgevit.bundles.bundle import Bundle, display_names
    from edgevit.latency import baseline, compare
    from edgevit.pipeline import report

    if arguments.max_slowdown is not None and arguments.baseline is None:
        raise UsageError("--max-slowdown is what --baseline FILE allows; give that too")
    slowdown = 0.1 if arguments.max_slowdown is None else arguments.max_slowdown
    compare.require_allowance(slowdown)
    bundles = [Bundle.open(path) for path in arguments.bundle]
    names = display_names(bundles)
    stored = baseline.read_baseline(arguments.baseline, names) if arguments.baseline else {}
    found = measure_bundles(
        bundles,
        against=[name.strip() for name in arguments.against.split(",") if name.strip()],
        threads=arguments.threads,
        duration_s=arguments.duration,
    )
    held = baseline.check_baseline(found, stored, max_slowdown=slowdown)
    for part in (*report.latency_parts(found), *report.lines(each.sentence for each in held)):
        _print(part, arguments)
    result = {"latency": report.latency_json(found), "baseline": [each.to_json() for each in held]}
    failure = baseline.first_failure(held)
    if failure is not None:
        return _fail(failure, arguments, found=result)
    _finish(arguments, result)
    return 0


def lint_command(arguments: Arguments) -> int:
    """Says what will hurt a target before a long build. Status 1 where something will fail."""
    from edgevit.bundles.bundle import model_file
    from edgevit.cli import lint_report
    from edgevit.export.graph import OnnxGraph
    from edgevit.export.lint.findings import has_errors
    from edgevit.export.lint.rules import lint
    from edgevit.export.lint.targets import parse_target

    target = parse_target(arguments.target)
    findings = lint(OnnxGraph.read(model_file(arguments.file)), target)
    for part in lint_report.lint_parts(findings, target):
        _print(part, arguments)
    _finish(arguments, lint_report.lint_json(findings, target))
    return 1 if has_errors(findings) else 0


def plan_command(arguments: Arguments) -> int:
    """Shows the kernels that NVIDIA's compiler makes of a graph, with no GPU."""
    from edgevit.bundles.bundle import model_file
    from edgevit.cli import plan_report
    from edgevit.runtimes.tensorrt_rtx.kernels import plan

    files = [model_file(path) for path in (arguments.file, arguments.compare) if path is not None]
    first, *others = (plan(file, compute_capability=arguments.sm, batch=arguments.batch) for file in files)
    parts = plan_report.comparison_parts(first, others[0]) if others else plan_report.plan_parts(first)
    for part in parts:
        _print(part, arguments)
    _finish(arguments, first.compare(others[0]).to_json() if others else first.to_json())
    return 0


def doctor_command(arguments: Arguments) -> int:
    """Tells what this machine has and what it lacks."""
    from edgevit.formats import list_formats
    from edgevit.latency.environment import Environment
    from edgevit.pipeline import report
    from edgevit.runtimes.build import usable_version
    from edgevit.runtimes.registry import get_runtime

    environment = Environment.capture()
    versions = [
        (runtime, *usable_version(runtime)) for runtime in (get_runtime(entry.name) for entry in list_formats())
    ]
    _print(report.doctor_table(environment, versions), arguments)
    _finish(
        arguments,
        {
            "environment": environment.to_json(),
            "runtimes": {runtime.fmt: version for runtime, version, _ in versions},
            "unusable": {runtime.fmt: why for runtime, version, why in versions if version is None},
        },
    )
    return 0


# The arguments


class Parser(argparse.ArgumentParser):
    """argparse, with one line for an error and near misses for a wrong word."""

    def error(self, message: str) -> NoReturn:
        print(f"edgevit: {message}.{self._hint(message)} See: {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)

    def _hint(self, message: str) -> str:
        if "unrecognized arguments: " in message:
            wrong = message.rpartition("unrecognized arguments: ")[2].split(" ")[0]
            return near_miss(wrong, self._options())
        found = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        return near_miss(found[1], re.findall(r"[\w-]+", found[2])) if found else ""

    def _options(self) -> list[str]:
        """The options of this parser and of its commands: argparse leaves unknown ones to the outermost."""
        commands = [action for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        parsers = [self, *(parser for action in commands for parser in action.choices.values())]
        return sorted({option for parser in parsers for action in parser._actions for option in action.option_strings})


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = Parser(
        prog="edgevit",
        description="Takes an efficient vision transformer from PyTorch to a proven engine on an edge device.",
        epilog="Exit status: 0 done, 1 lint found errors, 2 usage, 3 a package or device is missing, 4 export failed, "
        "5 build failed, 6 parity failed, 7 not measurable, 8 slower than the baseline allows, 9 another precision "
        "runs than was asked for, 10 a remote device failed.",
    )
    parser.add_argument("--version", action="version", version=f"edgevit {edgevit.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Command)
    _add_list(commands)
    _add_export(commands)
    _add_build(commands)
    _add_verify(commands)
    _add_run(commands)
    _add_eval(commands)
    _add_latency(commands)
    _add_lint(commands)
    _add_plan(commands)
    _add_doctor(commands)
    return parser


class _Command(Parser):
    """A command's own parser; every command can write JSON."""

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("description", settings.get("help"))
        super().__init__(**settings)
        self.add_argument("--json", metavar="PATH", help="write the result as JSON; - for stdout, without the tables")


def _add_list(commands: Any) -> None:
    parser = commands.add_parser("list", help="the registered models and their papers' figures")
    parser.add_argument("--family", metavar="F", help="only this family")
    parser.set_defaults(command=list_command)


def _add_export(commands: Any) -> None:
    parser = commands.add_parser("export", help="make, prove and measure bundles of a model")
    parser.add_argument("model", metavar="MODEL", help="a registered name, package.module:factory or file.py:factory")
    parser.add_argument(
        "--fmt",
        required=True,
        metavar="FMT[,FMT]",
        help=f"{', '.join(entry.name for entry in list_formats())} (or an alias)",
    )
    parser.add_argument("--precision", action="append", choices=PRECISIONS, default=None)
    for policy in list_policies():
        for flag in policy.flags:
            parser.add_argument(
                flag, dest="precision", action="append_const", const=policy.name, help=f"--precision {policy.name}"
            )
    parser.add_argument(
        "--weights", metavar="FILE", help="a checkpoint; or the word official, which fetches the authors' own"
    )
    parser.add_argument("--num-classes", type=int, metavar="N")
    parser.add_argument("--img-size", type=int, metavar="N", help="height and width of the input")
    parser.add_argument("--batch", type=int, default=None, metavar="N", help="a static batch (default 1)")
    parser.add_argument("--dynamic-batch", type=_batch_range, metavar="MIN:OPT:MAX", help="a dynamic batch instead")
    parser.add_argument("--calib", type=_path, metavar="DIR", help="photos that int8 and fp16 are chosen by")
    parser.add_argument(
        "--eval", type=_path, metavar="DIR", help="labelled images that a lower precision is held against fp32 on"
    )
    parser.add_argument(
        "--max-drop", type=_share, metavar="P%", help="top-1 that it may lose: 0.5%% (default 1%% with --eval)"
    )
    parser.add_argument("--opset", type=int, metavar="N", help="instead of the one that the runtime likes best")
    parser.add_argument(
        "--images", type=_path, metavar="DIR", help="photos to judge parity on (default: two of our own)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="processor threads (default: all cores)")
    parser.add_argument(
        "--sm", type=_capabilities, metavar="N[,N]", help="GPUs for trt-rtx: 86,89,120 (default: portable)"
    )
    parser.add_argument(
        "--trt-version",
        metavar="V",
        help="TensorRT on the device (default: this machine's, or 10.3 where it builds none)",
    )
    parser.add_argument("--workspace", type=int, metavar="MB", help="memory that a TensorRT builder may use")
    parser.add_argument("--out", type=_path, default=Path(), metavar="DIR", help="where the bundles go (default: here)")
    parser.add_argument(
        "--no-verify", dest="verify", action="store_false", help="leave parity out; the manifest says so"
    )
    parser.add_argument("--no-latency", dest="latency", action="store_false", help="leave the measurement out")
    parser.set_defaults(command=export_command)


def _add_build(commands: Any) -> None:
    parser = commands.add_parser("build", help="build a bundle's engine on this machine, from its ONNX file")
    parser.add_argument("bundle", type=_path, metavar="BUNDLE")
    parser.add_argument("--fmt", metavar="FMT", help="for another runtime than the bundle's own")
    parser.add_argument("--threads", type=int, metavar="N")
    parser.add_argument("--workspace", type=int, metavar="MB", help="memory that TensorRT's builder may use")
    parser.set_defaults(command=build_command)


def _add_verify(commands: Any) -> None:
    parser = commands.add_parser("verify", help="judge a bundle's engine against PyTorch's answers; needs no PyTorch")
    parser.add_argument("bundle", type=_path, metavar="BUNDLE")
    parser.add_argument(
        "--images", type=_path, metavar="DIR", help="photos to compare with PyTorch itself, if it is here"
    )
    parser.add_argument("--threads", type=int, metavar="N")
    parser.set_defaults(command=verify_command)


def _add_run(commands: Any) -> None:
    parser = commands.add_parser("run", help="answer what is on photos")
    parser.add_argument("bundle", type=_path, metavar="BUNDLE")
    parser.add_argument("image", type=_path, nargs="+", metavar="IMAGE")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="answers a photo (default 5)")
    parser.add_argument("--threads", type=int, metavar="N")
    parser.set_defaults(command=run_command)


def _add_eval(commands: Any) -> None:
    parser = commands.add_parser("eval", help="measure top-1 and top-5 on labelled images")
    parser.add_argument("bundle", nargs="+", metavar="BUNDLE", help="a bundle, or a MODEL as export takes it: PyTorch")
    parser.add_argument(
        "--data", type=_path, required=True, metavar="DIR", help="a subfolder of images a class; or labels.txt in it"
    )
    parser.add_argument("--against", default="", metavar="NAMES", help="torch: the module that the bundle was made of")
    parser.add_argument("--weights", metavar="FILE", help="a checkpoint for MODEL")
    parser.add_argument("--limit", type=int, metavar="N", help="so many images, spread over the classes")
    parser.add_argument("--threads", type=int, metavar="N", help="processor threads (default: all cores)")
    parser.set_defaults(command=eval_command)


def _add_latency(commands: Any) -> None:
    parser = commands.add_parser("latency", help="measure bundles side by side")
    parser.add_argument("bundle", type=_path, nargs="+", metavar="BUNDLE")
    parser.add_argument("--threads", type=int, metavar="N", help="processor threads (default: all cores)")
    parser.add_argument("--duration", type=float, default=3.0, metavar="S", help="seconds each, at least (default 3)")
    parser.add_argument("--against", default="", metavar="NAMES", help="torch, or other formats, comma-separated")
    parser.add_argument("--baseline", type=_path, metavar="FILE", help="what --json of an earlier run here wrote")
    parser.add_argument(
        "--max-slowdown", type=_share, metavar="P%", help="more time than the baseline's that passes (default 10%%)"
    )
    parser.set_defaults(command=latency_command)


def _add_lint(commands: Any) -> None:
    parser = commands.add_parser("lint", help="what will hurt a target, before a long build")
    parser.add_argument("file", type=_path, metavar="FILE.onnx|BUNDLE")
    parser.add_argument("--target", required=True, metavar="TARGET", help="trt, trt:10.3 (a version), openvino or ort")
    parser.set_defaults(command=lint_command)


def _add_plan(commands: Any) -> None:
    parser = commands.add_parser("plan", help="the kernels that TensorRT-RTX's compiler makes; a proxy, needs no GPU")
    parser.add_argument("file", type=_path, metavar="FILE.onnx|BUNDLE")
    parser.add_argument("--sm", type=int, default=86, metavar="N", help="compute capability (default 86)")
    parser.add_argument(
        "--batch", type=int, default=1, metavar="N", help="what a dynamic batch is taken as (default 1)"
    )
    parser.add_argument("--compare", type=_path, metavar="OTHER", help="another file or bundle, side by side")
    parser.set_defaults(command=plan_command)


def _add_doctor(commands: Any) -> None:
    parser = commands.add_parser("doctor", help="what this machine has, and what it lacks")
    parser.set_defaults(command=doctor_command)


def _path(text: str) -> Path:
    if not text:  # as of a shell's variable that is not set; it would be the current folder
        raise argparse.ArgumentTypeError("a path is not empty")
    return Path(text)


def _batch_range(text: str) -> tuple[int, int, int]:
    parts = text.split(":")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not MIN:OPT:MAX, such as 1:4:8")
    return int(parts[0]), int(parts[1]), int(parts[2])


def _share(text: str) -> float:
    try:
        return float(text.removesuffix("%")) / 100
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a percentage, such as 0.5%") from None


def _capabilities(text: str) -> tuple[int, ...]:
    if not all(part.isdecimal() for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of compute capabilities, such as 86,89")
    return tuple(int(part) for part in text.split(","))


def _build_options(arguments: Arguments) -> BuildOptions:
    from edgevit.runtimes.base import BatchRange, BuildOptions

    asked = sorted(set(arguments.precision or ["fp32"]))
    if len(asked) > 1:
        raise UsageError(f"two precisions were asked for, {' and '.join(asked)}; choose one")
    dynamic: BatchRange | None = BatchRange(*arguments.dynamic_batch) if arguments.dynamic_batch else None
    if dynamic and arguments.batch is not None:
        raise UsageError("give either --batch or --dynamic-batch, not both")
    return BuildOptions(
        precision=asked[0],
        batch=1 if arguments.batch is None else arguments.batch,
        dynamic_batch=dynamic,
        threads=arguments.threads,
        compute_capabilities=arguments.sm,
        workspace_mb=arguments.workspace,
    )


def _is_model(text: str) -> bool:
    """Whether `text` names a model rather than a bundle, whose folder need not exist."""
    return not Path(text).exists() and (":" in text or text.isidentifier())


def _models(names: Sequence[str], weights: str | None) -> list[LoadedModel]:
    """The models of these names, in PyTorch."""
    if weights is not None and len(names) != 1:
        raise UsageError("--weights is for one model by its name; a bundle has its weights with it")
    if not names:
        return []
    from edgevit.models import loading as subject
    from edgevit.models import registry

    known = registry.list_models()
    for name in names:
        if ":" not in name and name not in known:
            raise UsageError(f"no bundle at {name}, and no model of that name.{near_miss(name, known)}")
    with _download_progress() as on_download:
        return [subject.from_name(name, weights=weights, on_download=on_download) for name in names]


# What is printed


def _print(part: RenderableType, arguments: Arguments) -> None:
    """Prints for people, unless stdout is for the machine."""
    if arguments.json == "-":
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(markup=False, emoji=False)  # brackets and colons stand in paths and names
    if not console.is_terminal:
        console = Console(width=140, markup=False, emoji=False)
    console.print(part, soft_wrap=isinstance(part, Text))  # a command in a line of text is whole when it is copied


def _finish(arguments: Arguments, result: dict[str, Any], *, last_line: str | None = None) -> None:
    if arguments.json:
        _write_json(arguments.json, result)
    if last_line is not None and arguments.json != "-":
        print(last_line)


def _as_called(command: str) -> str:
    """The command by the name that started this one, where `edgevit` alone is not found."""
    program = sys.argv[0]
    if Path(program).name != "edgevit" or shutil.which("edgevit") is not None:
        return command
    return f"{shlex.quote(program)}{command.removeprefix('edgevit')}"


def _own_code_aside() -> contextlib.AbstractContextManager[object]:
    """What the user's own code prints goes to stderr: stdout is for results, which a machine may read."""
    return contextlib.redirect_stdout(sys.stderr)


def _require_current_folder() -> None:
    """Raises UsageError where it has been deleted: PyTorch's libraries end the process then."""
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise UsageError("the current folder has been deleted; go to another one first (cd)") from error


def _require_place(path: str | None) -> None:
    """Raises UsageError where a file could not be put at `path`: before the long work, not after it."""
    if path is None or path == "-":
        return
    folder = Path(path).absolute().parent
    if Path(path).is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UsageError(f"cannot write {path}: no folder that can be written to; name another file with --json")


def _write_json(path: str, result: dict[str, Any]) -> None:
    text = json.dumps(result, indent=2, allow_nan=False) + "\n"
    if path == "-":
        sys.stdout.write(text)
        return
    place, part = Path(path), Path(f"{path}.part")
    try:
        if place.exists() and not place.is_file():  # a pipe, a device
            place.write_text(text, "utf-8")
            return
        part.write_text(text, "utf-8")
        part.replace(place)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise UsageError(f"cannot write {path}: {error.strerror}; name another file with --json") from error


def _close_stdout() -> None:
    """Lets Python's own last flush go nowhere: it would fail again."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def _progress(arguments: Arguments) -> Iterator[Callable[[str, float | None], None]]:
    from edgevit.cli import progress

    with progress.show() as tell:

        def told(what: str, seconds: float | None) -> None:
            arguments.stop.check()
            tell(what, seconds)

        yield told


def _download_progress() -> Any:
    from edgevit.cli import progress

    return progress.show_download()


def _image_progress() -> Any:
    from edgevit.cli import progress

    return progress.show_images()


def _evidence(error: EdgevitError) -> dict[str, Any]:
    from edgevit.runtimes.parity import ParityReport

    report = error.report if isinstance(error, ParityError) else None
    return {"parity": report.to_json()} if isinstance(report, ParityReport) else {}


def _show_evidence(error: EdgevitError) -> None:
    """The measures behind a failed parity, so that the user sees by how much and where."""
    if not isinstance(error, ParityError) or error.report is None:
        return
    from rich.console import Console

    from edgevit.pipeline import report
    from edgevit.runtimes.parity import ParityReport

    assert isinstance(error.report, ParityReport)
    Console(stderr=True, width=140, markup=False, emoji=False).print(report.parity_table(error.report.results))


if __name__ == "__main__":
    sys.exit(main())
