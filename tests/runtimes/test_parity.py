"""Parity on made-up engines: what must pass passes, and every way to be wrong is caught and named."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import numpy as np
import pytest

from edgevit.cli.tables import parity_table
from edgevit.errors import ParityError
from edgevit.runtimes.parity import ParityReport, compare
from edgevit.types import PRECISIONS, Array, Precision, Reference, Run

RANDOM = np.random.default_rng(0)
INPUTS = RANDOM.standard_normal((6, 12)).astype(np.float32)
WEIGHT = RANDOM.standard_normal((12, 50)).astype(np.float32)
REFERENCE = Reference(kind="photos", inputs={"x": INPUTS}, outputs={"y": INPUTS @ WEIGHT})
STD = float(REFERENCE.outputs["y"].std())


def engine(change: Callable[[Array], Array] = lambda y: y) -> Run:
    """An engine that computes the reference, and then `change`s it."""

    def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": change(feeds["x"] @ WEIGHT)}

    return run


def judge(run: Run, precision: Precision = "fp32", batches: tuple[int, ...] = (1,)) -> ParityReport:
    return compare("engine", run, [REFERENCE], precision=precision, batches=batches)


def rounded(share: float) -> Callable[[Array], Array]:
    """Adds noise of `share` standard deviations at most."""
    return lambda y: y + np.float32(share * STD) * np.sin(np.arange(y.size, dtype=np.float32)).reshape(y.shape)


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
    report = judge(engine(), batches=batches)
    report.require()
    assert report.guilty_stage is None
    assert [result.batch for result in report.results] == list(batches)
    assert all(len(result.max_abs) == 6 for result in report.results)


@pytest.mark.parametrize(
    ("precision", "passes", "fails"), [("fp32", 5e-5, 2e-4), ("fp16", 5e-3, 5e-2), ("int8", 5e-2, 0.5)]
)
def test_each_precision_has_its_tolerance(precision: Precision, passes: float, fails: float) -> None:
    judge(engine(rounded(passes)), precision).require()
    with pytest.raises(ParityError):
        judge(engine(rounded(fails)), precision).require()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("wrong", [nan_in_one_value, infinity_in_one_value])
def test_nan_and_infinity_always_fail(wrong: Callable[[Array], Array], precision: Precision) -> None:
    with pytest.raises(ParityError, match="NaN or infinity"):
        judge(engine(wrong), precision).require()


def test_another_top1_fails() -> None:
    with pytest.raises(ParityError, match="top-1 agreement"):
        judge(engine(swap_best_two)).require()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows_of_one_batch_that_disagree_fail(precision: Precision) -> None:
    """Rows after the first are off, but only in larger batches: no comparison row by row would show it."""

    def leak(y: Array) -> Array:
        y[1:] += np.float32(0.3 * STD)
        return y

    with pytest.raises(ParityError, match="rows of one batch differ"):
        judge(engine(leak), precision, batches=(1, 4)).require()


def test_the_first_stage_that_fails_is_the_guilty_one() -> None:
    report = (
        judge(engine())
        + compare("optimised", engine(rounded(1.0)), [REFERENCE], precision="fp32")
        + judge(engine(rounded(1.0)))
    )
    assert report.guilty_stage == "optimised"
    with pytest.raises(ParityError, match="stage 'optimised'") as caught:
        report.require()
    assert caught.value.report is report


def test_nothing_compared_is_no_pass() -> None:
    assert not ParityReport(()).passed
    with pytest.raises(ParityError, match="nothing was compared"):
        ParityReport(()).require()


def test_another_shape_fails() -> None:
    with pytest.raises(ParityError, match="has the shape"):
        judge(engine(lambda y: y[:, :-1]))


def test_an_output_that_ignores_its_input_is_remarked_on() -> None:
    constant = Reference(kind="photos", inputs={"x": INPUTS}, outputs={"y": np.tile(WEIGHT[:1], (6, 1))})

    def ignore_input(feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": np.tile(WEIGHT[:1], (len(feeds["x"]), 1))}

    report = compare("engine", ignore_input, [constant], precision="fp32")
    assert report.passed
    assert "hardly depends on the input" in report.warnings[0]
    assert judge(engine()).warnings == ()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_fails_and_can_be_told(value: float) -> None:
    """An engine that overflows ends in a verdict and a table, not in a traceback."""
    wanted = np.random.default_rng(0).standard_normal((2, 5)).astype(np.float32)
    broken = wanted.copy()
    broken[1, 2] = value
    reference = Reference(kind="photos", inputs={"x": wanted}, outputs={"y": wanted})
    report = compare(
        "engine", lambda feeds: {"y": broken[: len(feeds["x"])]}, [reference], precision="int8", batches=(2,)
    )
    assert not report.passed and report.results[0].failures == ("it holds NaN or infinity",)
    assert not report.results[0].snr_db > 0
    json.dumps(report.to_json(), allow_nan=False)
    parity_table(report.results)
