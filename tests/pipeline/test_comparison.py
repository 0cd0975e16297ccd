"""PrecisionComparison: its summary contains only measured facts."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from edgevit.cli.export_output import result_lines
from edgevit.errors import ParityError
from edgevit.latency.statistics import Ratio
from edgevit.metrics import Evaluation
from edgevit.pipeline.comparison import PrecisionComparison
from edgevit.runtimes.output_parity import OutputParity
from edgevit.runtimes.parity import compare
from edgevit.types import Interval, Reference
from tests.helpers.reports import bundle_report, export_report

IMAGES = 1000
FASTER = Ratio(0.476, Interval(0.45, 0.5), 64)
SLOWER = Ratio(1.3, Interval(1.2, 1.4), 64)
CLOSE = Ratio(0.98, Interval(0.95, 1.02), 64)
DISTURBED = Ratio(0.5, Interval(0.4, 0.6), 64, "another process took the core")


def evaluation(wrong: int, *, first: int = 0) -> Evaluation:
    """1000 images of class 0, of which `wrong` are predicted as class 1, from image `first` on."""
    missed = [first <= index < first + wrong for index in range(IMAGES)]
    return Evaluation(
        name="",
        precision="int8",
        class_count=10,
        labels=(0,) * IMAGES,
        predictions=tuple(int(miss) for miss in missed),
        ranks=tuple(int(miss) for miss in missed),
    )


def parity(got_scale: float = 1.05, *, rows: int = 4) -> tuple[OutputParity, ...]:
    want = np.random.default_rng(0).standard_normal((rows, 10)).astype(np.float32)
    reference = Reference(kind="photos", inputs={"x": want}, outputs={"y": want})
    return compare("engine", lambda feeds: {"y": got_scale * feeds["x"]}, [reference], precision="int8").results


def comparison(
    time: Ratio | None = FASTER, drop: int | None = 4, *, size_bytes: int | None = 10, precision: str = "int8"
) -> PrecisionComparison:
    """A comparison with `drop` more wrong images than fp32; None: without labeled images."""
    return PrecisionComparison(
        fmt="ort",
        precision=precision,  # type: ignore[arg-type]
        measured_on="the engine",
        parity=parity(),
        fp32_evaluation=None if drop is None else evaluation(200),
        evaluation=None if drop is None else evaluation(200 + drop),
        time_ratio=time,
        size_bytes=size_bytes,
        fp32_size_bytes=36,
    )


UNSURE = "int8: no clear difference in speed (time / fp32"
UNMEASURED = "accuracy not measured (--eval DIR)"
SENTENCES = [
    (FASTER, 4, "int8: 2.1x faster, 0.4 points worse on 1000 images, 3.6x smaller", True),
    (FASTER, -4, "int8: 2.1x faster, 0.4 points better on 1000 images, 3.6x smaller", True),
    (FASTER, 0, "int8: 2.1x faster, no accuracy lost on 1000 images, 3.6x smaller", True),
    (FASTER, None, f"int8: 2.1x faster, {UNMEASURED}, 3.6x smaller", None),
    (SLOWER, 4, "int8 is 1.30x slower than fp32 here: not recommended (0.4 points worse on 1000 images, 3.6x smaller)",
     False),
    (SLOWER, None, f"int8 is 1.30x slower than fp32 here: not recommended ({UNMEASURED}, 3.6x smaller)", False),
    (CLOSE, 4, f"{UNSURE} 0.98), 0.4 points worse on 1000 images, 3.6x smaller", None),
    (DISTURBED, 0, f"{UNSURE} 0.50, another process took the core), no accuracy lost on 1000 images, 3.6x smaller",
     None),
    (CLOSE, None, f"{UNSURE} 0.98), {UNMEASURED}, 3.6x smaller", None),
    (None, 4, "int8: speed not measured here, 0.4 points worse on 1000 images, 3.6x smaller", None),
    (None, None, f"int8: speed not measured here, {UNMEASURED}, 3.6x smaller", None),
]  # fmt: skip


@pytest.mark.parametrize(("time", "drop", "sentence", "recommended"), SENTENCES)
def test_the_sentence_and_the_recommendation(
    time: Ratio | None, drop: int | None, sentence: str, recommended: bool | None
) -> None:
    result = comparison(time, drop)
    assert (result.sentence, result.recommended) == (sentence, recommended)


def test_the_result_of_an_export_says_that_int8_is_slower() -> None:
    bundle = replace(bundle_report("ort", "ONNX Runtime"), requested_precision="int8", comparison=comparison(SLOWER))
    _, line = result_lines(replace(export_report(), bundles=(bundle,)))
    sentence = "int8 is 1.30x slower than fp32 here: not recommended (0.4 points worse on 1000 images, 3.6x smaller)"
    assert line == f"{bundle.path}: {sentence}"


def test_losing_more_than_allowed_is_not_recommended() -> None:
    """The manifest once recommended a model that had lost half of its accuracy."""
    result = replace(comparison(FASTER, 400), allowed_drop=0.01)
    assert result.recommended is False
    assert result.sentence == (
        "int8 loses more accuracy than allowed: not recommended "
        "(2.1x faster, 40.0 points worse on 1000 images, 3.6x smaller)"
    )
    assert replace(result, time_ratio=None).recommended is False
    assert replace(result, allowed_drop=0.4).recommended is True


def test_a_model_that_guesses_is_not_recommended() -> None:
    """Random weights: accuracy that comes from chance cannot be lost."""
    result = replace(comparison(), fp32_evaluation=evaluation(895), evaluation=evaluation(895))
    assert result.recommended is None
    unknown = "accuracy unknown (fp32 itself may be guessing: top-1 10.5% on 1000 images)"
    assert result.sentence == f"int8: 2.1x faster, {unknown}, 3.6x smaller"


def test_a_small_loss_is_not_rounded_to_zero() -> None:
    many = {"labels": (0,) * 10_000, "predictions": (0,) * 10_000, "ranks": (0,) * 10_000}
    fp32 = replace(evaluation(0), **many)  # type: ignore[arg-type]
    wrong = {"predictions": (1, *many["predictions"][1:]), "ranks": (1, *many["ranks"][1:])}
    lost = replace(fp32, **wrong)  # type: ignore[arg-type]
    result = replace(comparison(Ratio(0.97, Interval(0.96, 0.98), 64)), fp32_evaluation=fp32, evaluation=lost)
    assert result.sentence == "int8: 1.03x faster, 0.010 points worse on 10000 images, 3.6x smaller"


def test_the_sentence_names_the_graph_if_no_engine_has_run() -> None:
    result = replace(comparison(None, precision="fp16", size_bytes=None), measured_on="the ONNX graph")
    assert result.sentence == (
        "fp16: speed not measured here, 0.4 points worse on 1000 images (the ONNX graph; no engine has run)"
    )


def test_the_sentence_names_no_size_if_that_of_fp32_stays() -> None:
    result = comparison(precision="bf16", size_bytes=36)
    assert result.sentence == "bf16: 2.1x faster, 0.4 points worse on 1000 images"


def test_the_sentence_names_its_precision() -> None:
    assert comparison(precision="fp16").sentence.startswith("fp16: 2.1x faster")
    assert comparison(SLOWER, precision="fp16").sentence.startswith("fp16 is 1.30x slower")


@pytest.mark.parametrize("size", [None, 0])
def test_an_unknown_size_is_left_out(size: int | None) -> None:
    result = comparison(size_bytes=size)
    assert result.sentence == "int8: 2.1x faster, 0.4 points worse on 1000 images"
    assert result.size_reduction is None


def test_agreement_is_on_the_labeled_images() -> None:
    """Two engines with the same accuracy need not agree."""
    result = replace(comparison(), fp32_evaluation=evaluation(100), evaluation=evaluation(100, first=500))
    assert result.agreement == 0.8
    assert result.drop is not None
    assert result.drop.points == 0
    assert result.sentence == "int8: 2.1x faster, no accuracy lost on 1000 images, 3.6x smaller"


def test_without_labels_agreement_is_on_the_parity_rows() -> None:
    result = comparison(drop=None)
    assert result.agreement == 1
    assert replace(result, parity=parity(-1)).agreement == 0
    assert replace(result, parity=()).agreement is None


def test_parity_figures_are_those_of_the_worst_output() -> None:
    result = replace(comparison(), parity=parity(1.05) + parity(1.5) + parity(1.01))
    assert result.snr_db == pytest.approx(-20 * math.log10(0.5), abs=1e-4)
    assert result.cosine == pytest.approx(1)
    assert (replace(result, parity=()).snr_db, replace(result, parity=()).cosine) == (None, None)


# Bound on the drop


@pytest.mark.parametrize(
    ("drop", "allowed", "raises"),
    [
        (10, 0.01, False),  # exactly the allowed loss
        (11, 0.01, True),
        (0, 0.0, False),
        (1, 0.0, True),
        (-5, 0.0, False),
        (5, 0.005, False),
        (6, 0.005, True),
        (290, 29.0 / 100, False),  # 100 * 0.29 is less than 29
        (600, None, False),
        (None, 0.0, False),  # not measured
    ],
)
def test_losing_more_than_allowed_raises(drop: int | None, allowed: float | None, raises: bool) -> None:
    result = replace(comparison(drop=drop), allowed_drop=allowed)
    if not raises:
        result.require_accuracy()
        return
    assert drop is not None and allowed is not None
    with pytest.raises(ParityError, match=f"ort in int8 .the engine. loses {drop / 10:.2f} ") as caught:
        result.require_accuracy()
    assert f"points of top-1, and {100 * allowed:g} are allowed" in str(caught.value)
    assert caught.value.exit_status == 6


# JSON


@pytest.mark.parametrize("time", [FASTER, SLOWER, CLOSE, Ratio(0.9, None, 3, "an interval needs 8 rounds"), None])
@pytest.mark.parametrize("drop", [4, None])
@pytest.mark.parametrize("rows", [parity(), parity(1.0), parity(math.nan), parity(0), ()])
def test_to_json_is_strict_json(time: Ratio | None, drop: int | None, rows: tuple[OutputParity, ...]) -> None:
    """Also for an infinite SNR (outputs equal to PyTorch's) and for NaN."""
    result = replace(comparison(time, drop), parity=rows)
    content = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert content["sentence"] == result.sentence
    assert content["recommended"] is result.recommended


def test_to_json_has_all_figures() -> None:
    result = comparison()
    content = result.to_json()
    assert content["images"] == IMAGES
    assert (content["top1"], content["top1_fp32"], content["drop_points"]) == (0.796, 0.8, pytest.approx(0.4))
    assert content["drop_points_interval"][0] < 0.4 < content["drop_points_interval"][1]
    assert (content["time_ratio"], content["time_ratio_interval"]) == (0.476, [0.45, 0.5])
    assert content["time_verdict"] == "faster"
    assert (content["size_bytes"], content["size_bytes_fp32"]) == (10, 36)
    assert content["agreement"] == 0.996
    assert content["snr_db"] == pytest.approx(26.0, abs=0.1)
    assert content["judged"] == "the engine"


def test_unmeasured_figures_are_null() -> None:
    content = replace(comparison(None, None), parity=()).to_json()
    assert content["images"] == 0
    result = {"sentence", "recommended", "judged", "images", "size_bytes", "size_bytes_fp32"}
    assert {name for name, value in content.items() if value is not None} == result - {"recommended"}
