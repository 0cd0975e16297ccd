"""The defaults that are there for speed are those of the tables in docs/forms.md, which have the measurements."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

from edgevit import cpu
from edgevit.export.forms import FORMS, STANDARD
from edgevit.export.passes import FORMAT_PASSES, PASSES, PassTarget
from edgevit.export.quantization.linear_as_conv import faster_ranks
from edgevit.export.quantization.speed_rule import SpeedRule
from edgevit.formats import FOR_SPEED, Format, Int8Scheme, get_format
from edgevit.runtimes.openvino import OpenVino
from edgevit.runtimes.registry import get_runtime
from edgevit.types import Precision

PAGE = Path(__file__).parents[1] / "docs" / "forms.md"
COLUMNS = ["form", "model", "precision", "runtime", "processor", "instructions", "ratio", "use"]
X86 = ("avx2", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx")
INSTRUCTIONS = frozenset({*X86, "avx512"})
RUNTIMES = {"ONNX Runtime": "ort", "OpenVINO": "openvino"}
# The flags of processors, and the instructions of the tables that stand for them; None: no x86 processor.
PROCESSORS = {
    "avx2": "avx2",
    "avx2 avx_vnni": "avx_vnni",
    "avx2 avx512f": "avx512_vnni",
    "avx2 avx512f avx512_vnni": "avx512_vnni",
    "avx2 avx512f avx512_vnni avx512_bf16": "avx512_bf16",
    "avx2 avx512f avx512_vnni avx_vnni amx_tile amx_int8 amx_bf16": "amx",
    "asimd asimddp": None,  # Cortex-A76, Cortex-A78AE
    "asimd asimddp i8mm bf16": None,  # Neoverse, Apple
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A measurement: of which forms, in which runtime, on which instructions, and where they are the default."""

    forms: tuple[str, ...]  # their names in the code; none if the code does not have them
    fmt: str
    instructions: str
    ratio: float
    use: str

    def is_default(self, instructions: str | None, precision: Precision) -> bool:
        """Whether the forms are the default on these instructions (None: other than x86) in this precision."""
        kind, _, scope = self.use.partition(":")
        if kind != "default":
            return False
        sets, _, precisions = f" {scope.strip()} ".partition(" in ")
        wider = "avx512_vnni" if instructions == "avx512_bf16" else instructions
        in_scope = not sets.strip() or not {instructions, wider}.isdisjoint(_words(sets))
        return in_scope and (not precisions.strip() or precision in _words(precisions))


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


def rows() -> Iterator[Row]:
    """The rows of all tables of processors; an empty first cell stands for the one above it."""
    forms: tuple[str, ...] = ()
    in_table = False
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|") or cells == COLUMNS:
            in_table = cells == COLUMNS
        elif in_table and not line.startswith("|---"):
            form, _, _, runtime, _, instructions, ratio, use = cells
            if form:
                forms = _names(form)
            number = re.match(r"\d\.\d\d", ratio)
            assert number is not None, line
            fmt = RUNTIMES[runtime.rpartition(" ")[0]]
            yield Row(forms=forms, fmt=fmt, instructions=instructions, ratio=float(number[0]), use=use.strip("`"))


def _names(form: str) -> tuple[str, ...]:
    """The names in backticks with which the cell begins: "`fold_scale`, `hard_sigmoid_to_clip`: factors of queries"."""
    match = re.match(r"(`[\w-]+`(, )?)+(?=[:,]|$)", form)
    return tuple(re.findall(r"`([\w-]+)`", match[0])) if match else ()


def defaults(entry: Format, precision: Precision) -> frozenset[str]:
    """The names of all that the code chooses for speed on this processor."""
    target = PassTarget(entry, precision, entry.opset)
    used = {
        item.rewrite.__name__
        for item in FORMAT_PASSES[entry.passes]
        if item.purpose == "speed" and item.applies(target)
    }
    used.add(f"{entry.group_norm}-norm")
    if precision == "int8":
        used |= _int8_defaults(entry.require_int8())
        used |= {name for name, _ in get_runtime(entry.name).int8_session().chosen}
    return frozenset(used)


def _int8_defaults(scheme: Int8Scheme) -> set[str]:
    here = {
        "linear_as_conv": bool(faster_ranks()),
        "min_group_inputs_with_avx_vnni": SpeedRule.of(scheme).min_group_inputs is not None,
        "min_conversion_macs_with_avx2": SpeedRule.of(scheme).min_conversion_macs > 0,
    }
    names = [field.name for field in fields(Int8Scheme) if field.metadata == FOR_SPEED]
    return {name for name in names if getattr(scheme, name) and here.get(name, True)}


def pretend(monkeypatch: pytest.MonkeyPatch, flags: str) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64" if "asimd" in flags else "x86_64")
    monkeypatch.setattr(cpu, "cpu_flags", lambda: frozenset(flags.split()))
    monkeypatch.setattr(OpenVino, "usable_values", lambda _, setting: setting.values)


@pytest.mark.parametrize("fmt", RUNTIMES.values())
@pytest.mark.parametrize("flags", PROCESSORS)
def test_the_defaults_are_those_of_the_tables(flags: str, fmt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, flags)
    entry, instructions = get_format(fmt), PROCESSORS[flags]
    precisions = [name for name in entry.precisions if name != "bf16" or "bf16" in flags]
    for precision in precisions:
        listed = {
            form for row in rows() if row.fmt == fmt and row.is_default(instructions, precision) for form in row.forms
        }
        assert defaults(entry, precision) == listed, precision


def test_a_default_was_measured_to_be_faster() -> None:
    for row in rows():
        if row.use.startswith("default"):
            assert row.forms, row
            assert row.ratio > 1, row
        assert row.instructions in INSTRUCTIONS, row


def test_a_default_for_some_instructions_was_measured_on_one_of_them() -> None:
    for row in rows():
        scope = [name for name in X86 if row.is_default(name, "int8") or row.is_default(name, "fp32")]
        if scope:
            of_float = {"avx512_vnni", "amx"} if row.instructions == "avx512" else set()
            assert {row.instructions, *of_float} & set(scope), row


def test_each_row_says_where_its_form_is_used() -> None:
    uses = {row.use.partition(":")[0] for row in rows()}
    assert uses == {"default", "all formats", "tune", "not used", "the model's form", "all of these"}


def test_a_form_of_all_formats_is_one_of_their_passes() -> None:
    forms = {form for row in rows() if row.use == "all formats" for form in row.forms}
    assert forms and forms <= {rewrite.__name__ for rewrite in PASSES}
    assert all(row.forms and row.ratio > 1 for row in rows() if row.use == "all formats")


@pytest.mark.parametrize("fmt", RUNTIMES.values())
@pytest.mark.parametrize("form", [form for form in FORMS if form != STANDARD])
def test_each_form_that_tune_tries_was_measured(form: str, fmt: str) -> None:
    uses = {row.use.partition(":")[0] for row in rows() if form in row.forms and row.fmt == fmt}
    assert uses & {"tune", "default"}, "tune tries it: add a row"


def test_the_page_names_each_pass_that_is_there_for_tensorrts_speed() -> None:
    section = PAGE.read_text().partition("## TensorRT: kernels")[2]
    for item in FORMAT_PASSES["tensorrt"]:
        if item.purpose == "speed":
            assert f"`{item.rewrite.__name__}`" in section
