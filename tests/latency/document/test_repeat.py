"""The command that repeats a measurement names all that was measured, in the words that the command line takes."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

from edgevit.bundles.source_model import FROM_MANIFEST, PytorchSource
from edgevit.cli.main import command_line
from edgevit.cli.parser import pytorch_source
from edgevit.latency.document.content import session_of
from edgevit.latency.document.repeat import certifying_command, left_out, repeat_command
from edgevit.latency.plan import MeasurePlan
from edgevit.latency.sustained import SustainedRun
from edgevit.latency.throughput import Throughput, ThroughputPoint
from edgevit.runtimes.layer_profile import LayerProfile, LayerTime
from tests.helpers import samples
from tests.helpers.documents import NAMES, product, report, session

LAYERS = LayerProfile(layers=(LayerTime(name="a", kind="Conv", module="a", ms=1.0),), runs=1, profiled_ms=1.0)
POINT = ThroughputPoint(batch=1, streams=2, images_per_s=9.5, inferences=19, elapsed_s=2.0)


def commands(
    *, peers: tuple[str, ...] = (), source: PytorchSource = FROM_MANIFEST, **studies: Any
) -> tuple[str, str | None]:
    """The commands of a run of 3 s of one bundle, with studies, beside peers."""
    plan = MeasurePlan(min_duration_s=3.0)
    own = report(NAMES[0], plan=plan, **studies)
    others = [dataclasses.replace(report(NAMES[0], plan=plan), name=name, details=source.details) for name in peers]
    one = session_of([own, *others], {NAMES[0]: product()})
    command = repeat_command(one)
    assert command is not None
    return command, certifying_command(one)


def test_the_command_names_engines_threads_and_time() -> None:
    command, longer = commands(peers=("torch (CPU)", "naive-onnx"))
    assert command == "edgevit latency bundles/vit-fp32-ort --against torch,naive-onnx --threads 1 --duration 3"
    assert longer == command.replace("--duration 3", "--duration 60")
    assert repeat_command(session_of([report()], {})) is None  # no bundle
    assert certifying_command(session()) is None  # long enough


def test_the_command_names_the_pytorch_model_that_the_user_named() -> None:
    source = PytorchSource(
        model="my model.py:make",
        weights=Path("my weights.safetensors"),
        arguments={"depth": 3, "kind": "it's a", "w": 0.5},
    )
    command, longer = commands(peers=("torch (CPU)",), source=source)
    given = command_line().parse_args(shlex.split(command)[1:])
    assert given.against == ("torch",)
    assert pytorch_source(given) == dataclasses.replace(source, weights="my weights.safetensors")
    assert longer == command.replace("--duration 3", "--duration 60")
    assert "--model" not in commands(peers=("torch (CPU)",))[0]


def test_the_command_names_the_pytorch_model_as_the_bundle_records_it() -> None:
    """An export of the user's code suggested `--against torch` alone, which is refused."""
    reports = [report(), dataclasses.replace(report(), name="torch (CPU)", details={})]
    recorded = product(torch_options="--model mods.py:small --weights small.pt")
    command = repeat_command(session_of(reports, {NAMES[0]: recorded}))
    assert command is not None
    assert " --against torch --model mods.py:small --weights small.pt " in command
    alone = repeat_command(session_of(reports[:1], {NAMES[0]: recorded}))
    assert alone is not None
    assert "--model" not in alone


def test_engines_that_no_command_names_are_left_out_and_listed() -> None:
    """The command named one of two bundles, under the words "the same engines again"."""
    unknown, own = session_of([report(NAMES[0]), report(NAMES[1])], {NAMES[1]: product(NAMES[1])}).entries
    assert unknown.product is None
    two = session_of([unknown.report, own.report], {NAMES[1]: product(NAMES[1])})
    assert left_out(two) == (unknown.title,)
    in_memory = [report(), dataclasses.replace(report(), name="torch (CPU)", details={})]
    one = session_of(in_memory, {NAMES[0]: product(torch_options=None)})
    command = repeat_command(one)
    assert command is not None
    assert "--against" not in command
    assert left_out(one) == ("torch (CPU)",)
    assert left_out(session()) == ()


def test_the_command_makes_the_same_studies() -> None:
    command, _ = commands(
        roofline=samples.ROOFLINE,
        layers=LAYERS,
        throughput=Throughput(points=(POINT,)),
        sustained=SustainedRun(batch=1, images_per_s=(9.0,) * 60),
    )
    assert command.endswith(" --duration 3 --roofline --layers --throughput --sustained 60s")
    given = command_line().parse_args(shlex.split(command)[1:])
    assert (given.roofline, given.layers, given.throughput, given.sustained) == (True, True, True, 60.0)
    assert "--layers" not in commands(roofline=samples.ROOFLINE)[0]
    problems = {"throughput": "no memory", "roofline": "cuBLAS was not found"}  # asked for as well
    assert commands(study_problems=problems)[0].endswith(" --roofline --throughput")
