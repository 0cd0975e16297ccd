"""The report of bundles: one session a run, each engine with its bundle, each machine with its own identity."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from edgevit.bundles import store
from edgevit.bundles.build_records import RuntimeRecord
from edgevit.bundles.bundle import Bundle
from edgevit.bundles.latency_file import bundle_details, keep_latency
from edgevit.bundles.report import kept_document, measured_document
from edgevit.errors import UsageError
from edgevit.latency.document.content import Document
from edgevit.latency.document.product import Accuracy, EngineParity
from edgevit.latency.report import LatencyReport
from tests.helpers import samples
from tests.helpers.bundles import sample_manifest


def make_bundle(folder: Path, *, engine: str = "engine", **changes: Any) -> Bundle:
    folder.mkdir(parents=True)
    for name, text in {"model.onnx": "graph", "model.xml": engine, "model.bin": "weights", "reference.npz": ""}.items():
        (folder / name).write_text(text)
    runtime = RuntimeRecord(fmt="openvino", name="OpenVINO", version="2026.4", engine_files=("model.xml", "model.bin"))
    store.write_manifest(folder, sample_manifest(**{"runtime": runtime, **changes}))
    return Bundle.open(folder)


def measured(bundle: Bundle, *, run: str = "one run", **changes: Any) -> LatencyReport:
    details = bundle_details(bundle, precision="fp32")
    report = samples.report([[2.0, 2.1]] * 9, name=bundle.name, run_id=run)
    return dataclasses.replace(report, **{"details": details, **changes})


def kept(*bundles: Bundle) -> Document:
    return kept_document([Bundle.open(bundle.path) for bundle in bundles], edgevit_version="0.1.0")


def owners(document: Document) -> list[list[str | None]]:
    """The paths of the bundles that the engines of each session belong to."""
    products = [[entry.product for entry in session.entries] for session in document.sessions]
    return [[None if product is None else product.path for product in each] for each in products]


def test_a_run_that_several_bundles_keep_is_one_session(tmp_path: Path) -> None:
    first, second = (make_bundle(tmp_path / name, engine=name) for name in ("a-fp32-openvino", "b-fp32-openvino"))
    torch = samples.report([[9.0, 9.0]] * 9, name="torch (CPU)", run_id="one run")
    reports = [measured(first), measured(second), torch]
    for bundle in (first, second):
        keep_latency(bundle, reports)
    expected = [[str(first.path), str(second.path), None]]
    assert (
        owners(kept(first, second))
        == owners(measured_document([first, second], reports, edgevit_version=""))
        == expected
    )
    assert owners(kept(second)) == [[None, str(second.path), None]]


def test_one_engine_on_two_machines_has_two_sessions_with_their_identities(tmp_path: Path) -> None:
    here, there = (make_bundle(tmp_path / machine / "vit-fp32-openvino") for machine in ("here", "there"))
    keep_latency(here, [measured(here)])
    other = dataclasses.replace(samples.BOARD, board="Another board", affinity=(0, 1))
    keep_latency(there, [measured(there, run="another run", environment=other, threads=None)])
    document = kept(here, there)
    assert [session.device for session in document.sessions] == ["A board, A processor", "Another board, A processor"]
    assert owners(document) == [[str(here.path)], [str(there.path)]]
    commands = [session.entries[0].product.tool_line for session in document.sessions if session.entries[0].product]
    assert ["-nthreads 1" in commands[0], "-nthreads 2" in commands[1]] == [True, True]  # as each was measured


def test_an_engine_belongs_to_the_bundle_beside_those_that_keep_its_run(tmp_path: Path) -> None:
    """The same two engines on two machines; on the second one, one was measured again, alone."""
    names = ("a-fp32-openvino", "b-fp32-openvino")
    here = [make_bundle(tmp_path / "here" / name, engine=name) for name in names]
    there = [make_bundle(tmp_path / "there" / name, engine=name) for name in names]
    for bundles, run in ((here, "one"), (there, "another")):
        for bundle in bundles:
            keep_latency(bundle, [measured(each, run=run) for each in bundles])
    keep_latency(there[0], [measured(there[0], run="alone")])
    assert owners(kept(*here, *there)) == [
        [str(bundle.path) for bundle in here],
        [str(there[0].path)],
        [str(bundle.path) for bundle in there],
    ]


def test_a_copy_that_keeps_another_run_is_not_in_this_one(tmp_path: Path) -> None:
    """The row of an engine that was measured elsewhere had the path of a copy whose own run was another."""
    names = ("a-fp32-openvino", "b-fp32-openvino")
    here = [make_bundle(tmp_path / "here" / name, engine=name) for name in names]
    there = [make_bundle(tmp_path / "there" / name, engine=name) for name in names]
    keep_latency(here[0], [measured(each, run="one") for each in here])
    keep_latency(there[1], [measured(there[1], run="another")])
    assert owners(kept(here[0], there[1])) == [[str(here[0].path), None], [str(there[1].path)]]
    assert owners(kept(here[0], here[1])) == [[str(each.path) for each in here]]  # kept by none, measured beside it


@pytest.mark.parametrize("names", [("vit-fp32-openvino", "twin"), ("here/vit-fp32-ort", "there/vit-fp32-ort")])
def test_a_copy_of_an_engine_in_the_same_run_keeps_its_own_name(names: tuple[str, str], tmp_path: Path) -> None:
    """Both rows had the name of the one bundle."""
    bundles = [make_bundle(tmp_path / name) for name in names]
    reports = [measured(bundle, name=name) for bundle, name in zip(bundles, names, strict=True)]
    for bundle in bundles:
        keep_latency(bundle, reports)
    first, second = bundles
    paths = [str(bundle.path) for bundle in bundles]
    for given, expected in (
        ([first], [paths[0], None]),
        ([second], [None, paths[1]]),
        ([first, second], paths),
        ([second, first], paths),
    ):
        document = kept(*given)
        assert owners(document) == [expected]
        titles = [entry.title for entry in document.sessions[0].entries]
        assert len(set(titles)) == 2, titles


def test_a_bundle_without_a_measurement_is_a_note_unless_it_is_the_only_one(tmp_path: Path) -> None:
    first, second = (make_bundle(tmp_path / name, engine=name) for name in ("a-fp32-openvino", "b-fp32-openvino"))
    with pytest.raises(UsageError, match=f"no bundle keeps a measurement; measure first: edgevit latency {first.path}"):
        kept(first)
    keep_latency(second, [measured(second)])
    assert kept(first, second).notes == (f"a-fp32-openvino was not measured: edgevit latency {first.path}",)


OTHERS: dict[str, dict[str, str]] = {"another": {"engine_sha256": "of another"}, "older": {}}


def test_a_measurement_of_another_engine_belongs_to_no_bundle(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "a-fp32-openvino")
    keep_latency(
        bundle,
        [measured(bundle, details={"engine_sha256": "of another"}), measured(bundle, name="no hash", details={})],
    )
    assert owners(kept(bundle)) == [[None, None]]


@pytest.mark.parametrize("content", ["[]x", "{}", "[1]", '[{"schema": 1}]', "3"])
def test_a_damaged_measurement_is_named(tmp_path: Path, content: str) -> None:
    bundle = make_bundle(tmp_path / "a-fp32-openvino")
    keep_latency(bundle, [measured(bundle)])
    (bundle.path / "latency.json").write_text(content)
    store.write_manifest(bundle.path, bundle.manifest)
    with pytest.raises(UsageError, match=r"latency.json is damaged|no bundle keeps a measurement"):
        kept(bundle)


def parity(*results: tuple[str, bool, float | None]) -> dict[str, Any]:
    return {"results": [{"stage": stage, "passed": passed, "snr_db": snr_db} for stage, passed, snr_db in results]}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (parity(("ONNX", True, 90.0)), None),
        (parity(("ONNX", False, 1.0), ("openvino: engine", True, 60.0)), EngineParity(passed=True, snr_db=60.0)),
        (parity(("openvino: engine", True, None)), EngineParity(passed=True, snr_db=None)),
        (parity(("a: engine", True, 60.0), ("a: engine", False, 20.0)), EngineParity(passed=False, snr_db=20.0)),
        ({"results": [{"stage": 1}]}, None),
        ({"results": "hostile"}, None),
        (None, None),
    ],
)
def test_the_parity_of_a_bundle_is_that_of_its_engine(
    tmp_path: Path, record: Any, expected: EngineParity | None
) -> None:
    bundle = make_bundle(tmp_path / "a-fp32-openvino", parity=record)
    product = measured_document([bundle], [measured(bundle)], edgevit_version="").sessions[0].entries[0].product
    assert product is not None and product.parity == expected


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"judged": "the engine", "top1": 0.75, "images": 100}, Accuracy(metric="top-1", value=0.75, images=100)),
        (
            {"judged": "the engine", "metric": "mIoU", "mIoU": 0.5, "images": 9},
            Accuracy(metric="mIoU", value=0.5, images=9),
        ),
        ({"judged": "the engine", "metric": "mAP", "top1": 0.75, "images": 100}, None),
        ({"judged": "the engine", "metric": "images", "images": 1}, None),
        ({"judged": "the ONNX graph", "top1": 0.75, "images": 100}, None),
        ({"judged": "the engine", "top1": None, "images": 0}, None),
        ({"top1": "high"}, None),
    ],
)
def test_the_accuracy_of_a_bundle_is_that_of_its_engine(
    tmp_path: Path, record: dict[str, Any], expected: Accuracy | None
) -> None:
    bundle = make_bundle(tmp_path / "a-fp32-openvino", comparison=record)
    product = measured_document([bundle], [measured(bundle)], edgevit_version="").sessions[0].entries[0].product
    assert product is not None and product.accuracy == expected
    assert product.engine_bytes == len("engine") + len("weights")
