"""The verdict on a lower precision: one sentence that claims what was measured and nothing else."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from edgevit.errors import ParityError
from edgevit.latency.statistics import Ratio
from edgevit.metrics import Evaluation
from edgevit.pipeline.comparison import PrecisionComparison
from edgevit.runtimes.parity import OutputParity, compare
from edgevit.types import Interval, Reference

IMAGES = 1000
FASTER = Ratio(0.476, Interval(0.45, 0.5), 64)
SLOWER = Ratio(1.3, Interval(1.2, 1.4), 64)
CLOSE = Ratio(0.98, Interval(0.95, 1.02), 64)
DISTURBED = Ratio(0.5, Interval(0.4, 0.6), 64, "another process took the core")


def evaluation(wrong: int, *, first: int = 0) -> Evaluation:
    """Of a thousand images of class 0, so many are taken for class 1, from image `first` on."""
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


def verdict(
    time: Ratio | None = FASTER, drop: int | None = 4, *, size_bytes: int | None = 10, precision: str = "int8"
) -> PrecisionComparison:
    """With so many more images wrong in the lower precision; None: without labelled images."""
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
    told = verdict(time, drop)
    assert (told.sentence, told.recommended) == (sentence, recommended)


def test_what_loses_more_than_is_allowed_is_not_recommended() -> None:
    """--no-verify lets it pass, and the manifest recommended a model that had forgotten half of what it knew."""
    told = replace(verdict(FASTER, 400), allowed_drop=0.01)
    assert told.recommended is False
    assert told.sentence == (
        "int8 loses more accuracy than allowed: not recommended "
        "(2.1x faster, 40.0 points worse on 1000 images, 3.6x smaller)"
    )
    assert replace(told, time_ratio=None).recommended is False
    assert replace(told, allowed_drop=0.4).recommended is True


def test_a_model_that_guesses_shows_nothing_and_is_not_recommended() -> None:
    """Of random weights: what is right by chance alone cannot be lost."""
    told = replace(verdict(), fp32_evaluation=evaluation(895), evaluation=evaluation(895))
    assert told.recommended is None
    unknown = "accuracy unknown (fp32 itself classifies 10.5% of 1000 images, as a guess may)"
    assert told.sentence == f"int8: 2.1x faster, {unknown}, 3.6x smaller"


def test_little_is_not_told_as_nothing() -> None:
    many = {"labels": (0,) * 10_000, "answers": (0,) * 10_000, "ranks": (0,) * 10_000}
    fp32 = replace(evaluation(0), **many)  # type: ignore[arg-type]
    lost = replace(evaluation(0), **{**many, "answers": (1, *many["answers"][1:]), "ranks": (1, *many["ranks"][1:])})  # type: ignore[arg-type]
    told = replace(verdict(Ratio(0.97, Interval(0.96, 0.98), 64)), fp32_evaluation=fp32, evaluation=lost)
    assert told.sentence == "int8: 1.03x faster, 0.010 points worse on 10000 images, 3.6x smaller"


def test_it_does_not_speak_of_an_engine_that_has_not_run() -> None:
    told = replace(verdict(None, precision="fp16", size_bytes=None), measured_on="the ONNX graph")
    assert told.sentence == (
        "fp16: speed not measured here, 0.4 points worse on 1000 images (the ONNX graph; no engine has run)"
    )


def test_it_speaks_of_its_own_precision() -> None:
    assert verdict(precision="fp16").sentence.startswith("fp16: 2.1x faster")
    assert verdict(SLOWER, precision="fp16").sentence.startswith("fp16 is 1.30x slower")


@pytest.mark.parametrize("size", [None, 0])
def test_a_size_that_is_not_known_is_not_told(size: int | None) -> None:
    told = verdict(size_bytes=size)
    assert told.sentence == "int8: 2.1x faster, 0.4 points worse on 1000 images"
    assert told.size_reduction is None


def test_agreement_is_of_labelled_images_where_there_are_any() -> None:
    """Two contestants that are equally often right need not agree."""
    told = replace(verdict(), fp32_evaluation=evaluation(100), evaluation=evaluation(100, first=500))
    assert told.agreement == 0.8
    assert told.drop is not None
    assert told.drop.points == 0
    assert told.sentence == "int8: 2.1x faster, no accuracy lost on 1000 images, 3.6x smaller"


def test_agreement_is_of_the_parity_rows_without_them() -> None:
    told = verdict(drop=None)
    assert told.agreement == 1
    assert replace(told, parity=parity(-1)).agreement == 0
    assert replace(told, parity=()).agreement is None


def test_the_parity_is_that_of_the_worst_output() -> None:
    told = replace(verdict(), parity=parity(1.05) + parity(1.5) + parity(1.01))
    assert told.snr_db == pytest.approx(-20 * math.log10(0.5), abs=1e-4)
    assert told.cosine == pytest.approx(1)
    assert (replace(told, parity=()).snr_db, replace(told, parity=()).cosine) == (None, None)


# The bound


@pytest.mark.parametrize(
    ("drop", "allowed", "raises"),
    [
        (10, 0.01, False),  # as much as is allowed
        (11, 0.01, True),
        (0, 0.0, False),
        (1, 0.0, True),
        (-5, 0.0, False),
        (5, 0.005, False),
        (6, 0.005, True),
        (290, 29.0 / 100, False),  # 100 * 0.29 is less than 29
        (600, None, False),
        (None, 0.0, False),  # nothing tells it
    ],
)
def test_more_than_is_allowed_is_refused(drop: int | None, allowed: float | None, raises: bool) -> None:
    told = replace(verdict(drop=drop), allowed_drop=allowed)
    if not raises:
        told.require_accuracy()
        return
    assert drop is not None and allowed is not None
    with pytest.raises(ParityError, match=f"ort in int8 .the engine. loses {drop / 10:.2f} ") as caught:
        told.require_accuracy()
    assert f"points of top-1, and {100 * allowed:g} are allowed" in str(caught.value)
    assert caught.value.exit_status == 6


# For machines


@pytest.mark.parametrize("time", [FASTER, SLOWER, CLOSE, Ratio(0.9, None, 3, "an interval needs 8 rounds"), None])
@pytest.mark.parametrize("drop", [4, None])
@pytest.mark.parametrize("rows", [parity(), parity(1.0), parity(math.nan), parity(0), ()])
def test_it_is_json(time: Ratio | None, drop: int | None, rows: tuple[OutputParity, ...]) -> None:
    """Also where an engine answers exactly what PyTorch does (an SNR without end), or no number at all."""
    told = replace(verdict(time, drop), parity=rows)
    content = json.loads(json.dumps(told.to_json(), allow_nan=False))
    assert content["sentence"] == told.sentence
    assert content["recommended"] is told.recommended


def test_every_figure_is_there() -> None:
    told = verdict()
    content = told.to_json()
    assert content["images"] == IMAGES
    assert (content["top1"], content["top1_fp32"], content["drop_points"]) == (0.796, 0.8, pytest.approx(0.4))
    assert content["drop_points_interval"][0] < 0.4 < content["drop_points_interval"][1]
    assert (content["time_ratio"], content["time_ratio_interval"]) == (0.476, [0.45, 0.5])
    assert content["time_verdict"] == "faster"
    assert (content["size_bytes"], content["size_bytes_fp32"]) == (10, 36)
    assert content["agreement"] == 0.996
    assert content["snr_db"] == pytest.approx(26.0, abs=0.1)
    assert content["judged"] == "the engine"


def test_what_was_not_measured_is_null() -> None:
    content = replace(verdict(None, None), parity=()).to_json()
    assert content["images"] == 0
    told = {"sentence", "recommended", "judged", "images", "size_bytes", "size_bytes_fp32"}
    assert {name for name, value in content.items() if value is not None} == told - {"recommended"}
