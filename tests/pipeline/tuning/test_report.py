"""The Pareto front and the recommendation, from recorded times."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgevit.bundles.labeled import DenseEvaluation
from edgevit.dense.bootstrap import Estimate
from edgevit.latency.compare import side_by_side
from edgevit.latency.statistics import Ratio
from edgevit.metrics import Evaluation, drop_points
from edgevit.pipeline.tuning import report as tuning_report
from edgevit.pipeline.tuning.device_cache import choose
from edgevit.pipeline.tuning.report import Row, decides, pareto_front, recommended
from edgevit.pipeline.tuning.space import EQUAL_TIME
from edgevit.types import Precision
from tests.helpers.samples import noisy, report
from tests.helpers.tuning_reports import tuned
from tests.helpers.tuning_rows import row, verified


def names(rows: tuple[Row, ...]) -> set[str]:
    return {each.configuration.variant.name for each in rows}


@pytest.mark.parametrize(
    ("options", "words"),
    [("", " --against torch"), ("--model 'my code.py:f'", " --against torch --model 'my code.py:f'"), (None, "")],
)
def test_the_next_command_names_the_pytorch_model_if_an_option_can(options: str | None, words: str) -> None:
    report = replace(tuned([row("ort", 2.0)]), torch_options=options)
    assert report.next_command == f"edgevit latency m-fp32-ort{words}"


def test_memory_that_was_not_measured_beats_nothing() -> None:
    """It counted as none at all, which no other engine beats."""
    small, large = row("ort", 10.0, size=1000), row("openvino", 10.0, size=2000)
    large = replace(large, latency=replace(large.latency, peak_memory_mb=None))
    assert names(pareto_front([small, large])) == {"fp32-ort"}


def changed(time_ms: float) -> Row:
    """Return an engine that is opened with another setting than the default."""
    default = row("ort", time_ms)
    configuration = default.configuration.with_setting("arena", "off")
    return replace(default, configuration=configuration, latency=replace(default.latency, name=configuration.name))


def noisily(of: Row, median_ms: float, *, seed: int) -> Row:
    """Return an engine whose times vary widely around a median."""
    latency = report(noisy(median_ms, seed=seed, noise=0.8), name=of.name)
    return replace(of, latency=replace(latency, peak_memory_mb=50.0))


def ratio_of(one: Row, other: Row) -> Ratio:
    """Return the time of `other` over that of `one`."""
    (_, compared) = side_by_side([one.latency, other.latency])
    assert compared.ratio is not None
    return compared.ratio


def test_the_front_leaves_out_what_another_engine_beats_in_everything() -> None:
    rows = [
        row("ort", 10.0),
        row("openvino", 12.0),
        row("ort", 6.0, precision="int8", size=3, found=verified(0.05)),
        row("openvino", 7.0, precision="int8", size=2, found=verified(0.05)),
    ]
    assert names(pareto_front(rows)) == {"fp32-ort", "int8-ort", "int8-openvino"}


def test_an_engine_that_failed_is_on_no_front_and_not_recommended() -> None:
    rows = [row("ort", 10.0), row("openvino", 2.0, found=verified(5.0, failure="parity failed"))]
    assert names(pareto_front(rows)) == {"fp32-ort"}
    assert recommended(rows) is rows[0]
    assert recommended(rows[1:]) is None
    unchecked = replace(rows[1], verification=None)
    assert recommended([rows[0], unchecked]) is rows[0]


def test_the_fastest_is_recommended() -> None:
    rows = [row("ort", 10.0), row("openvino", 8.0)]
    assert recommended(rows) is rows[1]


def test_a_lower_precision_has_to_be_shown_to_be_faster() -> None:
    exact, int8 = row("ort", 10.0), row("ort", 9.9, precision="int8", found=verified(0.05))
    assert recommended([exact, int8]) is exact
    faster = row("ort", 8.0, precision="int8", found=verified(0.05))
    assert recommended([exact, faster]) is faster


@pytest.mark.parametrize(
    ("precision", "time_ms", "expected"),
    [("fp32", 10.1, True), ("fp32", 20.0, False), ("bf16", 10.1, False), ("int8", 10.1, False)],
)
def test_a_recommendation_depends_on_engines_of_higher_precision_that_are_not_slower(
    precision: Precision, time_ms: float, *, expected: bool
) -> None:
    fastest = row("openvino", 10.0, precision="bf16", found=verified(0.01))
    other = replace(row("ort", time_ms, precision=precision), verification=None)
    assert decides(other, [fastest, other]) is expected
    assert decides(other, [replace(fastest, verification=verified(1.0, failure="parity failed")), other])


def test_of_equally_fast_engines_the_plainest_is_recommended() -> None:
    plain = row("ort", 10.0)
    assert recommended([plain, changed(9.95)]) is plain


@pytest.mark.parametrize(("slower", "is_equal"), [(1.02, True), (1.06, False)])
def test_noise_makes_no_slow_engine_equal_to_a_fast_one(slower: float, is_equal: bool) -> None:
    fast, other = noisily(changed(10.0), 10.0, seed=1), noisily(row("openvino", 10.0), 10.0, seed=2)
    plain = noisily(other, 10.0 * slower / ratio_of(fast, other).value, seed=2)
    assert ratio_of(fast, plain).verdict == "cannot tell"
    assert ratio_of(fast, plain).value == pytest.approx(slower)
    assert recommended([fast, plain]) is (plain if is_equal else fast)


@pytest.mark.parametrize(("size", "on_front"), [(1015, True), (1030, False)])
def test_sizes_within_two_percent_are_equal_on_the_front(size: int, on_front: bool) -> None:
    found = pareto_front([row("ort", 10.0, size=1000), row("openvino", 10.0, size=size)])
    assert ("fp32-openvino" in names(found)) is on_front


def test_the_page_states_when_engines_are_equal() -> None:
    page = (Path(__file__).parents[3] / "docs" / "tuning.md").read_text("utf-8")
    assert f"within {100 * EQUAL_TIME:g} % of its time" in page
    assert f"Times, sizes and memory within {100 * tuning_report._EQUAL:g} % of one another count as equal" in page


@pytest.mark.parametrize(("correct", "text"), [(90, "top-1 90.0 % on 100 images"), (None, "SNR 26 dB")])
def test_accuracy_is_top1_if_there_are_labeled_images(correct: int | None, text: str) -> None:
    assert row("ort", 10.0, found=verified(0.05, correct=correct)).accuracy_text.startswith(text)


def test_accuracy_is_stored_under_the_name_of_its_measure() -> None:
    estimates = {"mIoU": Estimate(0.6, np.array([0.5, 0.7])), "pixel accuracy": Estimate(0.9, np.array([0.9, 0.9]))}
    dense = DenseEvaluation(name="a", images=40, figures=estimates, details={}, chance=0.1)
    written = row("ort", 10.0, found=replace(verified(0.05), evaluation=dense)).to_json()
    assert (written["metric"], written["accuracy"], written["images"]) == ("mIoU", 0.6, 40)
    assert not [key for key in written if "top1" in key]
    classified = row("ort", 10.0, found=verified(0.05, correct=90)).to_json()
    assert (classified["metric"], classified["accuracy"]) == ("top-1", 0.9)
    assert row("ort", 10.0).to_json()["metric"] is None


def test_the_sentence_says_why() -> None:
    faster = tuned([row("ort", 10.0), row("ort", 5.0, precision="int8", found=verified(0.05))])
    assert "int8-ort: 1 thread: 4.99 ms" in faster.sentence
    assert "2.00x faster than fp32-ort at default settings" in faster.sentence
    assert "no other engine was shown to be faster" in tuned([row("ort", 10.0), row("openvino", 20.0)]).sentence
    assert "ms, the only engine that was measured, " in tuned([row("ort", 10.0)]).sentence
    close = tuned([row("ort", 10.0), row("ort", 9.9, precision="int8", found=verified(0.05))])
    assert "not told apart from int8-ort: 1 thread" in close.sentence


@pytest.mark.parametrize(
    ("images", "lost", "text"),
    [
        (3, 0, "top-1 100.0 % on 3 images (the same as the original; loss of -39.20 to 39.20 points at 95 %)"),
        (100, 2, "top-1 98.0 % on 100 images (2.00 points below the original; loss of -1.35 to 5.27 points at 95 %)"),
    ],
)
def test_the_sentence_says_how_far_the_accuracy_is_known(images: int, lost: int, text: str) -> None:
    def evaluated(correct: int) -> Evaluation:
        ranks = tuple(int(index >= correct) for index in range(images))
        return Evaluation(name="a", class_count=10, labels=(0,) * images, predictions=ranks, ranks=ranks)

    original, own = evaluated(images), evaluated(images - lost)
    found = replace(verified(0.05), evaluation=own, drop=drop_points(original, own))
    assert tuned([row("ort", 10.0, found=found)]).sentence.endswith(text)


def test_only_engines_that_passed_are_kept_for_auto() -> None:
    found = tuned([row("ort", 10.0), row("openvino", 2.0, found=verified(5.0, failure="parity failed"))])
    assert [choice.configuration.variant.fmt for choice in found.choices()] == ["ort"]


def test_an_int8_engine_is_kept_with_the_range_of_its_weights() -> None:
    found = replace(tuned([row("ort", 10.0), row("ort", 2.0, precision="int8")]), int8_range="full")
    ranges = {choice.configuration.variant.precision: choice.int8_range for choice in found.choices()}
    assert ranges == {"fp32": "safe", "int8": "full"}


def test_an_engine_in_int8_that_is_slower_than_fp32_is_not_chosen() -> None:
    """mobileformer_26m in ONNX Runtime: `tune` recommends fp32, and `--fmt auto` takes it, also with --calib."""
    fp32, int8 = row("ort", 10.0), row("ort", 11.0, precision="int8", size=3, found=verified(0.05))
    assert recommended([fp32, int8]) is fp32
    choices = tuned([fp32, int8]).choices()
    found, note = choose(choices, precision=None, threads=None, calibrated=True)
    assert found is not None and found.configuration.variant.precision == "fp32"
    assert note == ""
