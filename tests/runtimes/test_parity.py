"""Parity of small fake engines: correct ones pass, and every kind of error is detected and named."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import numpy as np
import pytest

from edgevit.cli.tables import parity_table
from edgevit.errors import ParityError
from edgevit.runtimes.output_parity import OutputParity
from edgevit.runtimes.parity import ParityReport, compare
from edgevit.types import PRECISIONS, Array, Precision, Reference, Run

RANDOM = np.random.default_rng(0)
INPUTS = RANDOM.standard_normal((6, 12)).astype(np.float32)
WEIGHT = RANDOM.standard_normal((12, 50)).astype(np.float32)
REFERENCE = Reference(kind="photos", inputs={"x": INPUTS}, outputs={"y": INPUTS @ WEIGHT})
STD = float(REFERENCE.outputs["y"].std())


def engine(change: Callable[[Array], Array] = lambda y: y) -> Run:
    """Return an engine that computes the reference outputs and applies `change` to them."""

    def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": change(feeds["x"] @ WEIGHT)}

    return run


def parity(run: Run, precision: Precision = "fp32", batches: tuple[int, ...] = (1,)) -> ParityReport:
    return compare("engine", run, [REFERENCE], precision=precision, batches=batches)


def rounded(max_error: float) -> Callable[[Array], Array]:
    """Add noise of at most `max_error` standard deviations."""
    return lambda y: y + np.float32(max_error * STD) * np.sin(np.arange(y.size, dtype=np.float32)).reshape(y.shape)


def nan_in_one_value(y: Array) -> Array:
    y[..., 7] = np.nan
    return y


def infinity_in_one_value(y: Array) -> Array:
    y[..., 7] = np.inf
    return y


def swap_best_two(y: Array) -> Array:
    order = y.argsort(1)
    for row, (second, first) in zip(y, order[:, -2:], strict=True):
        row[[first, second]] = row[[second, first]]
    return y


@pytest.mark.parametrize("batches", [(1,), (4,), (1, 2, 16)])
def test_an_equal_engine_passes(batches: tuple[int, ...]) -> None:
    report = parity(engine(), batches=batches)
    report.require()
    assert report.first_failed_stage is None
    assert [result.batch for result in report.results] == list(batches)
    assert all(len(result.max_abs) == 6 for result in report.results)


@pytest.mark.parametrize(
    ("precision", "passes", "fails"), [("fp32", 5e-5, 2e-4), ("fp16", 5e-3, 5e-2), ("int8", 5e-2, 0.5)]
)
def test_each_precision_has_its_tolerance(precision: Precision, passes: float, fails: float) -> None:
    parity(engine(rounded(passes)), precision).require()
    with pytest.raises(ParityError):
        parity(engine(rounded(fails)), precision).require()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("wrong", [nan_in_one_value, infinity_in_one_value])
def test_nan_and_infinity_always_fail(wrong: Callable[[Array], Array], precision: Precision) -> None:
    with pytest.raises(ParityError, match="NaN or infinity"):
        parity(engine(wrong), precision).require()


def masked(value: float) -> tuple[Reference, Callable[[Array], Array]]:
    """Return a reference with `value` as the logit of two classes, and the change that makes an engine output it."""

    def mask(y: Array) -> Array:
        y[:, [3, 11]] = value
        return y

    return Reference(kind="photos", inputs={"x": INPUTS}, outputs={"y": mask(INPUTS @ WEIGHT)}), mask


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("value", [-np.inf, np.inf, np.nan])
def test_nan_and_infinity_that_pytorch_outputs_too_pass(value: float, precision: Precision) -> None:
    reference, mask = masked(value)
    report = compare("engine", engine(mask), [reference], precision=precision, batches=(1, 4))
    report.require()
    assert report.results[0].std == pytest.approx(STD, rel=0.05)
    json.dumps(report.to_json(), allow_nan=False)


@pytest.mark.parametrize("wrong", [0.0, -3.4e38, np.inf, np.nan])
def test_another_value_in_place_of_infinity_fails(wrong: float) -> None:
    reference, _ = masked(-np.inf)
    with pytest.raises(ParityError, match="NaN or infinity at other places"):
        compare("engine", engine(masked(wrong)[1]), [reference], precision="int8").require()


def test_finite_logits_beside_infinite_ones_are_compared() -> None:
    reference, mask = masked(-np.inf)
    with pytest.raises(ParityError, match="max error"):
        compare("engine", engine(lambda y: mask(rounded(2e-4)(y))), [reference], precision="fp32").require()


def test_another_top1_fails() -> None:
    with pytest.raises(ParityError, match="top-1 agreement"):
        parity(engine(swap_best_two)).require()


def close_call(kind: str, lead: float) -> OutputParity:
    """Compare in fp16 an engine that ranks the best two classes the other way; the best leads by `lead` std."""
    logits = RANDOM.standard_normal((2, 50)).astype(np.float32)
    logits[[0, 1], logits.argmax(1)] = np.sort(logits)[:, -2] + np.float32(lead * logits.std())
    reference = Reference(kind=kind, inputs={"x": logits}, outputs={"y": logits})
    (found,) = compare("engine", lambda feeds: {"y": swap_best_two(feeds["x"])}, [reference], precision="fp16").results
    return found


def test_the_top1_of_a_lead_that_fp16_can_reverse_is_not_judged() -> None:
    assert close_call("photos", lead=0.01).passed
    assert close_call("photos", lead=0.01).agreement is None
    assert close_call("photos", lead=0.1).failures[-1] == "top-1 agreement 0.0%, at least 99.5%"


def test_the_top1_of_noise_is_not_judged() -> None:
    assert not any("top-1" in failure for failure in close_call("noise", lead=0.1).failures)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows_of_one_batch_that_disagree_fail(precision: Precision) -> None:
    """Rows after the first are wrong, but only in larger batches."""

    def leak(y: Array) -> Array:
        y[1:] += np.float32(0.3 * STD)
        return y

    with pytest.raises(ParityError, match="rows of one batch differ"):
        parity(engine(leak), precision, batches=(1, 4)).require()


def test_the_first_stage_that_fails_is_named() -> None:
    report = (
        parity(engine())
        + compare("optimized", engine(rounded(1.0)), [REFERENCE], precision="fp32")
        + parity(engine(rounded(1.0)))
    )
    assert report.first_failed_stage == "optimized"
    with pytest.raises(ParityError, match="stage 'optimized'") as caught:
        report.require()
    assert caught.value.report is report


def test_an_empty_report_does_not_pass() -> None:
    assert not ParityReport(()).passed
    with pytest.raises(ParityError, match="nothing was compared"):
        ParityReport(()).require()


def test_another_shape_fails() -> None:
    with pytest.raises(ParityError, match="has the shape"):
        parity(engine(lambda y: y[:, :-1]))


def test_an_output_that_ignores_its_input_is_a_warning() -> None:
    constant = Reference(kind="photos", inputs={"x": INPUTS}, outputs={"y": np.tile(WEIGHT[:1], (6, 1))})

    def ignore_input(feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": np.tile(WEIGHT[:1], (len(feeds["x"]), 1))}

    report = compare("engine", ignore_input, [constant], precision="fp32")
    assert report.passed
    assert "hardly depends on the input" in report.warnings[0]
    assert parity(engine()).warnings == ()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_outputs_that_are_not_finite_fail_and_can_be_reported(value: float) -> None:
    """An engine that overflows fails parity; report and table still work."""
    expected = np.random.default_rng(0).standard_normal((2, 5)).astype(np.float32)
    broken = expected.copy()
    broken[1, 2] = value
    reference = Reference(kind="photos", inputs={"x": expected}, outputs={"y": expected})
    report = compare(
        "engine", lambda feeds: {"y": broken[: len(feeds["x"])]}, [reference], precision="int8", batches=(2,)
    )
    assert not report.passed and report.results[0].failures == (
        "it has NaN or infinity at other places than the reference",
    )
    assert not report.results[0].snr_db > 0
    json.dumps(report.to_json(), allow_nan=False)
    parity_table(report.results)


@pytest.mark.parametrize(("factor", "passes"), [(1 + 1e-6, True), (1 + 1e-3, False)])
def test_a_constant_output_is_judged_by_its_magnitude(factor: float, passes: bool) -> None:
    constant = np.full((2, 1), 14.2857, np.float32)
    reference = Reference(kind="noise", inputs={"x": INPUTS[:2]}, outputs={"y": constant})
    report = compare(
        "engine", lambda feeds: {"y": constant[: len(feeds["x"])] * np.float32(factor)}, [reference], precision="fp32"
    )
    assert report.passed is passes
