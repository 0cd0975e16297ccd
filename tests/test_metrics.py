"""Accuracy metrics: counts on known predictions, and intervals compared with published ones."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgevit import metrics
from edgevit.datasets import ImageDataset
from edgevit.errors import ImageError, UsageError
from edgevit.images import Preprocessing, read_batch
from edgevit.metrics import NO_PREDICTION, AccuracyReport, Drop, Evaluation, agreement, drop_points, evaluate, wilson
from edgevit.runtimes.base import Engine
from edgevit.runtimes.precision import ExecutedPrecision
from edgevit.types import Array, Feeds, Interval, TensorSpec

PLAIN = Preprocessing(input_size=(3, 4, 4), crop_pct=1.0, mean=(0, 0, 0), std=(1, 1, 1))
CLASSES = 10


def shades(folder: Path, count: int) -> ImageDataset:
    """Write images in ten shades of gray; the class is the shade."""
    labels = tuple(index * 7 % CLASSES for index in range(count))
    paths = tuple(folder / f"{index}.png" for index in range(count))
    for path, label in zip(paths, labels, strict=True):
        Image.new("RGB", (4, 4), (25 * label,) * 3).save(path)
    return ImageDataset(paths=paths, labels=labels, class_count=CLASSES, description="by shade")


def by_shade(feeds: Feeds) -> dict[str, Array]:
    """A perfect classifier of shades: the nearer the shade of a class, the larger its logit."""
    shade = feeds["images"].mean((1, 2, 3)) * 255 / 25  # (N,)
    return {"logits": (-np.abs(shade[:, None] - np.arange(CLASSES))).astype(np.float32)}


def changed(change: Callable[[Array], Array]) -> Callable[[Feeds], dict[str, Array]]:
    return lambda feeds: {"logits": change(by_shade(feeds)["logits"])}


def one(run: Any, images: ImageDataset, **options: Any) -> Evaluation:
    (found,) = evaluate({"it": run}, images, PLAIN, **options)
    return found


def evaluation(ranks: list[int], answers: list[int] | None = None, *, class_count: int = CLASSES) -> Evaluation:
    return Evaluation(
        name="it",
        precision="fp32",
        class_count=class_count,
        labels=(0,) * len(ranks),
        predictions=tuple(answers or [0 if rank == 0 else 1 for rank in ranks]),
        ranks=tuple(ranks),
    )


def paired(both: int, lost: int, won: int, neither: int) -> tuple[Evaluation, Evaluation]:
    """Return two evaluations, given the images correct in both, in the first only, in the second only, in neither."""
    first = [0] * both + [0] * lost + [1] * won + [1] * neither
    second = [0] * both + [1] * lost + [0] * won + [1] * neither
    return evaluation(first), evaluation(second)


@pytest.mark.parametrize("batch", [1, 4, 7, 20, 64])
def test_every_image_counts_once_for_any_batch_size(batch: int, tmp_path: Path) -> None:
    """An engine with a fixed batch gets exactly that many rows; the rows that fill the last batch do not count."""
    images, sizes = shades(tmp_path, 20), []

    def run(feeds: Feeds) -> dict[str, Array]:
        sizes.append(len(feeds["images"]))
        return by_shade(feeds)

    seen: list[tuple[int, int]] = []
    found = one(run, images, batch=batch, progress=lambda done, total: seen.append((done, total)))
    assert set(sizes) == {batch}
    assert len(sizes) == math.ceil(20 / batch)
    assert found.predictions == found.labels == images.labels
    assert found.top1 == found.top5 == 1
    assert seen[-1] == (20, 20)
    assert len(seen) == len(sizes)


def test_images_are_read_once_for_all_candidates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, read = shades(tmp_path, 10), []
    fed: dict[str, list[Array]] = {"a": [], "b": []}

    def reading(paths: Any, preprocessing: Preprocessing) -> Array:
        read.extend(paths)
        return read_batch(paths, preprocessing)

    def keeping(name: str) -> Callable[[Feeds], dict[str, Array]]:
        return lambda feeds: fed[name].append(feeds["images"]) or by_shade(feeds)  # type: ignore[func-returns-value]

    monkeypatch.setattr(metrics, "read_batch", reading)
    evaluate({"a": keeping("a"), "b": keeping("b")}, images, PLAIN, batch=4)
    assert tuple(read) == images.paths
    assert all(np.array_equal(x, y) for x, y in zip(fed["a"], fed["b"], strict=True))


@pytest.mark.parametrize(
    ("change", "top1", "top5"),
    [
        (lambda logits: logits, 1.0, 1.0),
        (lambda logits: logits[:, ::-1], 0.0, 0.2),  # only classes 4 and 5 stay near their position
        (lambda logits: np.roll(logits, 1, axis=1), 0.0, 0.9),  # class 0 has the logit of class 9
        (np.zeros_like, 0.1, 0.5),  # a constant prediction is correct as often as its class occurs
        (lambda logits: logits.astype(np.float16), 1.0, 1.0),
    ],
    ids=["right", "mirrored", "shifted by one", "constant", "fp16"],
)
def test_a_wrong_engine_has_a_lower_accuracy(change: Any, top1: float, top5: float, tmp_path: Path) -> None:
    found = one(changed(change), shades(tmp_path, 20), batch=4)
    assert found.top1 == pytest.approx(top1)
    assert found.top5 == pytest.approx(top5)


def test_rank_and_prediction_agree_on_ties() -> None:
    """Equal logits: the lower class comes first, for the rank as for NumPy's argmax."""
    logits = np.array([[1, 3, 3, 0], [2, 2, 2, 2], [0, 1, 2, 3]], np.float32)
    for labels, ranks in [([1, 0, 3], [0, 0, 0]), ([2, 1, 2], [1, 1, 1]), ([3, 3, 0], [3, 3, 3])]:
        predictions, found = metrics._predict(logits, np.array(labels))
        assert predictions.tolist() == [1, 0, 3]
        assert found.tolist() == ranks


@pytest.mark.parametrize(
    ("value", "where"),
    [
        *((value, where) for value in (np.nan, np.inf) for where in ("the true class", "another class", "all")),
        (-np.inf, "all"),
    ],
)
def test_a_prediction_that_is_not_finite_is_wrong_and_counted(value: float, where: str, tmp_path: Path) -> None:
    images = shades(tmp_path, 20)

    def spoil(logits: Array) -> Array:
        """Replace logits of every image of class 3."""
        rows = logits.argmax(1) == 3
        columns = {"the true class": [3], "another class": [8], "all": list(range(CLASSES))}[where]
        logits[np.ix_(rows, columns)] = value
        return logits

    found = one(changed(spoil), images, batch=4)
    assert found.not_finite == images.labels.count(3) == 2
    assert found.top1 == found.top5 == 0.9
    assert found.predictions.count(NO_PREDICTION) == 2
    assert agreement(found, found) == 0.9


def test_minus_infinity_excludes_a_class() -> None:
    logits = np.array([[-np.inf, 3, 1], [-np.inf, 3, 1], [2, -np.inf, -np.inf]], np.float32)
    predictions, ranks = metrics._predict(logits, np.array([1, 0, 0]))
    assert predictions.tolist() == [1, 1, 0]
    assert ranks.tolist() == [0, 2, 0]


@pytest.mark.parametrize("shape", [(4,), (4, 11), (3, 10), (4, 10, 1)])
def test_outputs_other_than_one_row_per_image_are_a_usage_error(shape: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"it returned shape .* for 4 images; accuracy needs logits \[4, 10\]"):
        one(lambda _: {"logits": np.zeros(shape, np.float32)}, shades(tmp_path, 4), batch=4)


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    images = shades(tmp_path, 8)
    images.paths[5].write_bytes(images.paths[5].read_bytes()[:40])
    with pytest.raises(ImageError, match=r"5\.png"):
        one(by_shade, images, batch=4)


def test_accuracy_without_images_is_a_usage_error() -> None:
    nothing = ImageDataset(paths=(), labels=(), class_count=CLASSES, description="")
    with pytest.raises(UsageError, match="needs images"):
        one(by_shade, nothing)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("L", ".png"),
        ("L", ".jpg"),
        ("P", ".png"),
        ("CMYK", ".jpg"),
        ("RGBA", ".webp"),
        ("I;16", ".png"),
    ],
)
def test_photos_of_every_mode_are_evaluated(mode: str, suffix: str, tmp_path: Path) -> None:
    paths = []
    for label in range(CLASSES):
        paths.append(tmp_path / f"{label}{suffix}")
        if mode == "I;16":
            Image.fromarray(np.full((8, 8), 25 * label * 257, np.uint16)).save(paths[-1])
        else:
            Image.new("RGB", (8, 8), (25 * label,) * 3).convert(mode).save(paths[-1])
    images = ImageDataset(paths=tuple(paths), labels=tuple(range(CLASSES)), class_count=CLASSES, description="")
    assert one(by_shade, images, batch=4).top1 == 1


class Fixed(Engine):
    """The classifier of shades as an engine with its own names and a fixed batch."""

    fmt = "fixed"

    def __init__(self, batch: int, classes: tuple[Any, ...] = (CLASSES,)) -> None:
        self.inputs = (TensorSpec("pixels", "float32", (batch, 3, 4, 4)),)
        self.outputs = (TensorSpec("scores", "float32", (batch, *classes)),)

    def _infer(self, feeds: Feeds) -> dict[str, Array]:
        return {"scores": by_shade({"images": feeds["pixels"]})["logits"]}

    def executed_precision(self) -> ExecutedPrecision:
        return ExecutedPrecision()


class TwoOutputs(Fixed):
    """The classifier of shades with an embedding before its logits."""

    def __init__(self, batch: int) -> None:
        super().__init__(batch)
        self.outputs = (
            TensorSpec("embedding", "float32", (batch, 3)),
            TensorSpec("logits", "float32", (batch, CLASSES)),
        )

    def _infer(self, feeds: Feeds) -> dict[str, Array]:
        logits = by_shade({"images": feeds["pixels"]})["logits"]
        return {"embedding": np.zeros((len(logits), 3), np.float32), "logits": logits}


def test_engines_with_different_batches_and_names_are_evaluated_side_by_side(tmp_path: Path) -> None:
    runs = {str(batch): metrics.in_own_batches(Fixed(batch), batch) for batch in (1, 3, 8)}
    found = evaluate(runs, shades(tmp_path, 19), PLAIN, batch=8)
    assert [one.top1 for one in found] == [1, 1, 1]


@pytest.mark.parametrize("classes", [(), (1,), (10, 7, 7), ("batch",)])
def test_an_engine_without_logits_is_a_usage_error(classes: tuple[Any, ...]) -> None:
    with pytest.raises(UsageError, match="accuracy needs one image input and logits"):
        metrics.class_count(Fixed(4, classes))


OUTPUTS = {
    "features": TensorSpec("features", "float32", ("batch", 8)),
    "indices": TensorSpec("indices", "int64", ("batch", 5)),
    "map": TensorSpec("map", "float32", ("batch", 8, 7, 7)),
    "score": TensorSpec("score", "float32", ("batch", 1)),
    "half": TensorSpec("half", "float16", ("batch", 10)),
    "logits": TensorSpec("logits", "float32", ("batch", 10)),
}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("features logits", "logits"),
        ("features half", "features"),
        ("indices score map half features", "half"),
        ("indices score map", None),
        ("", None),
    ],
)
def test_the_logits_are_found_among_several_outputs(names: str, expected: str | None) -> None:
    found = metrics.find_logits([OUTPUTS[name] for name in names.split()])
    assert (found and found.name) == expected


def test_an_engine_with_another_output_first_is_evaluated_by_its_logits(tmp_path: Path) -> None:
    engine = TwoOutputs(3)
    assert metrics.class_count(engine) == CLASSES
    (found,) = evaluate({"engine": metrics.in_own_batches(engine, 3)}, shades(tmp_path, 5), PLAIN, batch=3)
    assert found.top1 == 1


@pytest.mark.parametrize(
    ("right", "images", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_intervals_equal_published_ones(right: int, images: int, low: float, high: float) -> None:
    """Newcombe, Statistics in Medicine 17 (1998), 857-872, table I, method 3."""
    found = wilson(right, images)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)
    mirrored = wilson(images - right, images)
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("right", "images"), [(0, 1), (1, 1), (50_000, 50_000), (0, 50_000)])
def test_wilson_intervals_of_0_and_1(right: int, images: int) -> None:
    found = wilson(right, images)
    assert 0 <= found.low < found.high <= 1
    assert right / images in found


@pytest.mark.parametrize("true", [0.05, 0.5, 0.762, 0.95])
def test_wilson_intervals_have_their_stated_coverage(true: float) -> None:
    """The exact binomial probability that the interval contains the true fraction."""
    images = 200
    chances = [math.comb(images, k) * true**k * (1 - true) ** (images - k) for k in range(images + 1)]
    assert sum(chance for k, chance in enumerate(chances) if true in wilson(k, images)) > 0.93


@pytest.mark.parametrize(
    ("cells", "points", "low", "high"),
    [
        # b = 8, c = 2, n = 100: 6/102 -+ 1.96 sqrt(11 - 36/102) / 102
        ((70, 8, 2, 20), 6.0, -0.3876, 12.1523),
        ((70, 2, 8, 20), -6.0, -12.1523, 0.3876),
        # no difference in 200 images: -+ 1.96 / 202; narrower in 2,000
        ((150, 0, 0, 50), 0.0, -0.9703, 0.9703),
        ((1500, 0, 0, 500), 0.0, -0.0979, 0.0979),
        # everything is lost: 3/5 -+ 1.96 sqrt(4 - 9/5) / 5, cut at 100
        ((0, 3, 0, 0), 100.0, 1.8581, 100.0),
    ],
)
def test_drops_equal_results_by_hand(cells: tuple[int, int, int, int], points: float, low: float, high: float) -> None:
    """The formula of Agresti and Min (2005), "Wald+2", computed by hand."""
    found = drop_points(*paired(*cells))
    assert found.points == pytest.approx(points)
    assert (found.interval.low, found.interval.high) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize(("lost", "won"), [(0.01, 0.01), (0.05, 0.02), (0.2, 0.1), (0.005, 0.0)])
def test_drop_intervals_have_their_stated_coverage(lost: float, won: float) -> None:
    """The exact probability over the trinomial distribution, at 100 images."""
    images, covered = 100, 0.0
    for b in range(60):
        for c in range(40):
            rest = images - b - c
            if rest < 0:
                continue
            chance = math.comb(images, b) * math.comb(images - b, c) * lost**b * won**c * (1 - lost - won) ** rest
            if chance > 1e-9 and 100 * (lost - won) in drop_points(*paired(rest, b, c, 0)).interval:
                covered += chance
    assert covered > 0.93


@pytest.mark.parametrize("percent", range(1, 100))
def test_a_drop_of_just_the_allowed_fraction_does_not_exceed_it(percent: int) -> None:
    """Whether or not the fraction was computed from percentages, which rounds: 0.07 * 100 is above 7, 0.29 below 29."""
    drop = Drop(float(percent), Interval(0.0, 100.0))
    assert not drop.exceeds(percent / 100)
    assert drop.exceeds((percent - 0.01) / 100)


@pytest.mark.parametrize(
    ("points", "phrase"),
    [(1.2, "1.20 points below fp32"), (-0.5, "0.50 points above fp32"), (0.0, "the same as fp32")],
)
def test_a_drop_is_put_in_words(points: float, phrase: str) -> None:
    assert Drop(points, Interval(-2.0, 2.0)).phrase("fp32") == phrase


def test_agreement_counts_equal_predictions_whether_correct_or_not() -> None:
    first, second = evaluation([0, 1, 1, 2], [0, 4, 5, 6]), evaluation([0, 1, 0, 2], [0, 4, 0, 6])
    assert agreement(first, second) == 0.75
    assert drop_points(first, second).points == -25


def test_evaluations_on_different_images_do_not_compare() -> None:
    for compare in (agreement, drop_points):
        with pytest.raises(UsageError, match="different images"):
            compare(evaluation([0, 1]), evaluation([0, 1, 0]))


@pytest.mark.parametrize(("class_count", "expected"), [(5, None), (6, 0.5)])
def test_top5_needs_six_classes(class_count: int, expected: float | None) -> None:
    found = evaluation([0, 5], class_count=class_count)
    assert found.top5 == expected
    assert (found.top5_interval is None) == (expected is None)


def test_json_contains_every_figure() -> None:
    first, second = paired(6, 2, 1, 1)
    report = AccuracyReport(
        paths=tuple(Path(f"{i}.png") for i in range(10)), description="so", evaluations=(first, second)
    )
    read = json.loads(json.dumps(report.to_json(), allow_nan=False))
    reference, other = read["accuracy"]
    assert reference["agreement"] is reference["drop_points"] is None
    assert other["top1"] == 0.7
    assert other["agreement"] == 0.7
    assert other["drop_points"] == pytest.approx(10)
    assert other["drop_points_interval"]["low"] < 10 < other["drop_points_interval"]["high"]
    assert len(read["paths"]) == len(other["evidence"]["ranks"]) == 10
