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


# Lower precisions, about the mean

LOWER: tuple[Precision, ...] = ("fp16", "bf16", "int8")


def compared(expected: Array, actual: Array, precision: Precision, *, kind: str = "photos") -> OutputParity:
    """Compare an engine with the outputs `actual` with a reference with the outputs `expected`."""
    rows = np.arange(len(expected), dtype=np.int64)[:, None]
    reference = Reference(kind=kind, inputs={"x": rows}, outputs={"y": expected})
    report = compare("engine", lambda feeds: {"y": actual[feeds["x"][:, 0]]}, [reference], precision=precision)
    return report.results[0]


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("precision", LOWER)
def test_a_constant_offset_hides_no_error(precision: Precision) -> None:
    """A depth map around 100, of which the engine gets only the offset right."""
    maps, other = normal(2, 1, 16, 16), normal(2, 1, 16, 16, seed=1)
    assert not compared(100 + maps, 100 + other, precision).passed
    result = compared(100 + maps, 100 + maps + 0.005 * other, precision)
    assert result.passed and result.snr_db == pytest.approx(46, abs=1)


@pytest.mark.parametrize("precision", LOWER)
def test_a_missing_offset_fails(precision: Precision) -> None:
    maps = normal(2, 1, 16, 16)
    assert not compared(100 + maps, maps, precision).passed


@pytest.mark.parametrize("precision", LOWER)
def test_rows_without_spread_of_their_own_are_judged_by_that_of_the_output(precision: Precision) -> None:
    """One photo gives a constant map, another one nearly so."""
    maps = normal(3, 1, 16, 16)
    maps[0], maps[1] = 3.0, 3.0 + 1e-4 * maps[1]
    noise = 2e-3 * normal(3, 1, 16, 16, seed=1)
    assert compared(maps, maps + noise, precision).passed
    assert not compared(maps, maps + 300 * noise, precision).passed


@pytest.mark.parametrize("precision", LOWER)
@pytest.mark.parametrize("values", [[5.0, 5.001], [-3.0, 2.0]])
def test_a_single_score_has_no_cosine_about_its_mean(values: list[float], precision: Precision) -> None:
    scores = np.array(values, np.float32)[:, None]
    result = compared(scores, scores * np.float32(1 + 1e-6), precision)
    assert result.passed and min(result.cosine) == pytest.approx(1)


@pytest.mark.parametrize("precision", LOWER)
def test_an_output_that_differs_by_rounding_alone_is_judged_by_its_magnitude(precision: Precision) -> None:
    expected = np.float32(100) + np.float32(1e-5) * normal(2, 64).round()
    assert compared(expected, expected + np.float32(1e-4) * normal(2, 64, seed=1), precision).passed


@pytest.mark.parametrize("precision", LOWER)
def test_rows_of_few_values_are_judged_about_zero(precision: Precision) -> None:
    """The scores of the coarsest map of a detector, where no photo has an object."""
    scores = 0.05 * normal(3, 45, 1, 1) - 5
    assert compared(scores, scores + 0.01 * normal(3, 45, 1, 1, seed=1), precision).passed


def test_the_cosine_of_fp32_stays_about_zero() -> None:
    maps = normal(2, 1, 16, 16)
    assert min(compared(1000 + maps, 1000 + 0.5 * maps, "fp32").cosine) > 0.999


# Channels


def joined(score_error: float, *, lost: int = 20, seed: int = 2) -> tuple[Array, Array]:
    """Return a detector's joined output, 4 channels of boxes and 20 of scores, and it with `lost` of these wrong."""
    boxes, scores = 300 * np.abs(normal(2, 4, 400)), np.abs(normal(2, 20, 400, seed=1)) / 10
    errors = np.zeros_like(scores)
    errors[:, :lost] = score_error * scores.std() * normal(2, lost, 400, seed=seed)
    return np.concatenate([boxes, scores], 1), np.concatenate([boxes, scores + errors], 1)


@pytest.mark.parametrize("precision", LOWER)
def test_scores_that_are_lost_beside_boxes_fail(precision: Precision) -> None:
    assert compared(*joined(0.2), precision).passed
    (failure,) = compared(*joined(1.5), precision).failures
    assert failure.startswith("20 of 24 channels lose their signal (SNR down to -")
    assert compared(*joined(1.5), precision, kind="noise").passed


def test_few_lost_channels_are_a_warning_in_plain_words() -> None:
    result = compared(*joined(1.5, lost=5), "int8")
    (warning,) = ParityReport((result,)).warnings
    assert result.passed and warning.startswith("output y of 'engine': 5 of 24 channels lose their signal (SNR down")
    assert "channels" not in ParityReport((result,)).to_json()["results"][0]


def test_dead_channels_are_none_that_are_lost() -> None:
    expected = normal(2, 32, 8, 8)
    expected[:, 4:] *= 1e-6
    result = compared(expected, expected + 1e-2 * normal(2, 32, 8, 8, seed=1), "int8")
    assert result.channels is not None and (result.channels.channels, result.channels.lost) == (4, 0)
    assert result.passed


@pytest.mark.parametrize("shape", [(2, 300, 20), (2, 64, 4, 4), (2, 50)])
def test_an_axis_with_more_entries_than_positions_has_no_channels(shape: tuple[int, ...]) -> None:
    assert compared(normal(*shape), normal(*shape), "int8").channels is None


# Outputs that float32 does not determine


def test_an_output_that_float32_does_not_determine_is_a_warning() -> None:
    def report(float32_error: float) -> ParityReport:
        reference = Reference(
            kind="photos", inputs={"x": INPUTS}, outputs=REFERENCE.outputs, float32_error={"y": float32_error * STD}
        )
        return compare("engine", engine(), [reference], precision="fp32")

    assert report(1e-3).warnings == ()
    (warning,) = report(0.8).warnings
    assert warning == (
        "float32 does not determine output y, so that its parity in fp32 proves little: "
        "the model's own float32 error is 8.0e-01 std"
    )
