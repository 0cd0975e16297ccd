"""Manifests are typed: each field is checked, each error is one short line, and older schemas are still read."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import edgevit
from edgevit.bundles.build_records import PrecisionRecord, RuntimeRecord
from edgevit.bundles.bundle import Bundle
from edgevit.bundles.manifest import FileRecord, Manifest, read_manifest
from edgevit.bundles.model_record import ModelRecord
from edgevit.cli.main import main
from edgevit.errors import BundleError
from edgevit.images import Preprocessing
from edgevit.runtimes.base import BatchRange
from edgevit.runtimes.precision import ExecutedPrecision
from tests.helpers.bundles import damage, manifest_json, sample_manifest, write_manifest_json
from tests.helpers.cifar10 import DATA

RECORDED = sorted((DATA / "manifests").glob("v*.json"))


@pytest.fixture
def own_ort(shared_bundle: Callable[[str], Bundle], tmp_path: Path) -> Bundle:
    """A copy to damage."""
    return Bundle.open(shutil.copytree(shared_bundle("ort").path, tmp_path / "own"))


def test_a_written_manifest_is_read_back_equal(shared_bundle: Callable[[str], Bundle]) -> None:
    manifest = shared_bundle("ort").manifest
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json()))) == manifest
    assert manifest_json(shared_bundle("ort").path) == json.loads(json.dumps(manifest.to_json()))


def test_the_first_record_of_an_engine_is_the_file_to_open() -> None:
    files = tuple(
        FileRecord(path=path, size_bytes=size, sha256=path) for size, path in enumerate(("m.bin", "m.onnx", "m.xml"))
    )
    manifest = sample_manifest(files=files, runtime=RuntimeRecord(fmt="openvino", engine_files=("m.xml", "m.bin")))
    assert manifest.engine_records == (files[2], files[0])
    assert sample_manifest(files=files).engine_records == ()


@pytest.mark.parametrize(
    "precision",
    [
        PrecisionRecord(requested="fp16"),
        PrecisionRecord(requested="fp16", executed=ExecutedPrecision()),
        PrecisionRecord(requested="int8", executed=ExecutedPrecision({"int8": 2, "fp32": 1}, {"int8": 9, "fp32": 1})),
    ],
)
def test_unmeasured_unreported_and_reported_precisions_are_read_back(precision: PrecisionRecord) -> None:
    manifest = sample_manifest(precision=precision)
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json()))) == manifest


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"crop_mode": "squash"},
        {"resize": "fit", "pad": (0.5, 0.0, -1.0), "pad_side": "center"},
        {"resize": "shorter_side", "edges": (100, 160)},
        {"resize": "stretch"},
    ],
)
def test_the_task_and_the_preprocessing_are_read_back(settings: dict[str, Any]) -> None:
    preprocessing = Preprocessing(input_size=(3, 128, 192), **settings)
    record = ModelRecord(
        name="model",
        source=None,
        weights="as given",
        task="detection",
        output_form="boxes",
        preprocessing=preprocessing,
        preprocessing_source="declared",
    )
    manifest = sample_manifest(model=record)
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json()))) == manifest


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda path: path.stem)
def test_recorded_manifests_of_every_schema_version_are_read(recorded: Path, tmp_path: Path) -> None:
    """Old versions of edgevit wrote these files; after reading, they are written with the same keys and values.

    Later keys have the values that the old versions assumed.
    """
    shutil.copy(recorded, tmp_path / "manifest.json")
    manifest = read_manifest(tmp_path)
    content = json.loads(recorded.read_text())
    written = json.loads(json.dumps(manifest.to_json()))
    assert content.pop("schema_version") <= written.pop("schema_version")
    assert written["model"].pop("preprocessing_source") is None
    assert written["model"]["preprocessing"].pop("crop_mode") == "center"
    assert (written["model"].pop("task"), written["model"].pop("output_form")) == ("classification", "logits")
    assert written == content


def test_a_recorded_version_1_manifest_has_the_values_it_was_written_with(tmp_path: Path) -> None:
    shutil.copy(DATA / "manifests" / "v1_fp32_ort.json", tmp_path / "manifest.json")
    manifest = read_manifest(tmp_path)
    assert manifest.model.source == "shiftvit_cifar10"
    assert manifest.model.preprocessing is not None
    assert manifest.model.preprocessing.input_size == (3, 32, 32)
    assert manifest.runtime.engine_files == ("model.onnx",)
    assert manifest.options.dynamic_batch == BatchRange(1, 2, 16)
    assert manifest.quantized_fraction is None
    assert manifest.precision.executed == ExecutedPrecision({"fp32": 23}, {"fp32": 28_096_128})
    assert [file.path for file in manifest.files] == ["classes.txt", "model.onnx", "reference.npz"]


def test_the_options_of_a_dynamic_batch_are_read_back(shared_bundle: Callable[[str], Bundle]) -> None:
    assert shared_bundle("ort").options.dynamic_batch == BatchRange(1, 2, 16)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "damaged"),
        ("{", "damaged"),
        ("[]", "damaged"),
        ("{}", "damaged"),
        ("\udcff", "damaged"),
        ('{"schema_version": NaN}', "damaged"),
        ('{"schema_version": "1"}', "damaged"),
        ("[" * 100_000, "nested too deeply"),
        ('{"schema_version": 99}', "schema version 99"),
        ('{"schema_version": 99, "edgevit_version": "9.9"}', r"the edgevit that wrote it \(9\.9\)"),
        ('{"schema_version": 1}', "is missing"),
    ],
)
def test_a_file_that_is_not_a_manifest_is_one_clear_error(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(BundleError, match=message) as raised:
        edgevit.load(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_manifest_without_permission_is_not_called_damaged(own_ort: Bundle) -> None:
    (own_ort.path / "manifest.json").chmod(0)
    with pytest.raises(BundleError, match=r"cannot read .*manifest\.json: Permission denied$"):
        Bundle.open(own_ort.path)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "link loop"])
def test_a_manifest_that_is_not_a_regular_file_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path)
    with pytest.raises(BundleError, match=r"cannot read .*manifest\.json: "):
        Bundle.open(tmp_path)


MISSING = [
    "model.name", "model.weights", "model.source", "model.options", "model.preprocessing",
    "model.preprocessing.mean", "model.preprocessing.input_size", "files.0.path", "files.0.sha256", "runtime.fmt",
    "runtime.engine_files", "precision.asked", "build.batch", "build.dynamic_batch", "inputs.0.shape", "outputs.0.name",
]  # fmt: skip
WRONG: list[tuple[str, Any]] = [
    *((name, None) for name in ("model", "files", "runtime", "precision", "build", "inputs", "outputs")),
    *((name, {}) for name in ("model", "runtime", "precision", "build", "runtime.engine_files")),
    ("build.batch", "x"),
    ("build.batch", 0),
    ("build.batch", 1.5),
    ("build.batch", True),
    ("build.batch", 2**63),
    ("build.dynamic_batch", [1, 2]),
    ("build.dynamic_batch", [4, 2, 1]),
    ("build.dynamic_batch", [1, 2, 2**40]),
    ("build.build_s", -1),
    ("build.notes", ["x" * 100_000]),
    ("build.compute_capabilities", [1, "x"]),
    ("build.compute_capabilities", [75]),  # with fp32
    ("files", [None]),
    ("files", "x" * 1000),
    ("files.0.path", 3),
    ("files.0.path", "\0"),
    ("files.0.path", "x" * 5000),
    ("files.0.size_bytes", "1"),
    ("files.0.size_bytes", -1),
    ("files.0.sha256", "x" * 5000),
    ("runtime.fmt", None),
    ("runtime.fmt", "x" * 5000),
    ("runtime.engine_files", "model.onnx"),
    ("runtime.engine_files", [None]),
    ("precision.asked", "fp99"),
    ("precision.asked", []),
    ("model.name", "x" * 5000),
    ("model.num_classes", 2**40),
    ("model.preprocessing", {}),
    ("model.preprocessing.mean", ["a", "b", "c"]),
    ("model.preprocessing.mean", [0.5]),
    ("model.preprocessing.std", 1),
    ("model.preprocessing.std", [0.0, 0.0, 0.0]),
    ("model.preprocessing.input_size", [3, 32]),
    ("model.preprocessing.input_size", [3, 30_000, 30_000]),
    ("model.preprocessing.crop_pct", 1e-9),
    ("model.preprocessing.interpolation", []),
    ("precision.layers", {"fp32": "x"}),
    ("precision.layers", {"x" * 5000: 1}),
    ("precision.multiply_adds", []),
    ("inputs.0.shape", [1] * 1000),
    ("inputs.0.shape", ["rows", 3]),
    ("exporter", []),
    ("exporter.passes", [{}]),
    ("typing", "x"),
    ("typing", {"share": "x"}),
    ("typing", {"share": 1.5}),
    ("work", []),
    ("work.macs", -1),
    ("work.batch", 0),
    ("work.node_macs", {"a": "x"}),
    ("parity", []),
    ("latency", {}),
    ("environment", None),
]


@pytest.mark.parametrize("place", MISSING)
def test_a_missing_field_is_named(place: str, own_ort: Bundle) -> None:
    damage(own_ort.path, place, drop=True)
    named = re.escape(re.sub(r"\.(\d+)", r"[\1]", place))
    with pytest.raises(BundleError, match=rf"manifest\.json is damaged: {named} is missing; export the bundle again$"):
        Bundle.open(own_ort.path)


@pytest.mark.parametrize(("place", "value"), WRONG)
def test_a_wrong_field_is_one_short_line(place: str, value: Any, own_ort: Bundle) -> None:
    damage(own_ort.path, place, value)
    with pytest.raises(BundleError) as raised:
        Bundle.open(own_ort.path)
    message = str(raised.value)
    assert message.endswith("export the bundle again")
    assert "\n" not in message
    assert len(message) < len(str(own_ort.path)) + 200


@pytest.mark.large  # tests/tools/test_fuzz.py damages some fields every day
def test_damage_to_any_field_ends_in_one_line_or_leaves_the_bundle_usable(own_ort: Bundle) -> None:
    """Every value of the manifest is replaced in turn by values of other types and sizes."""
    values: list[Any] = [None, True, -1, 2**70, 1e308, "x", "\0", "x" * 10_000, [], {}, [[]], {"a": {"b": []}}]
    content = manifest_json(own_ort.path)
    for place in _places(content):
        for value in values:
            write_manifest_json(own_ort.path, content)
            damage(own_ort.path, place, value)
            try:
                read_manifest(own_ort.path)
            except BundleError as error:
                assert "\n" not in str(error)
                assert len(str(error)) < len(str(own_ort.path)) + 250


def _places(value: Any, place: str = "") -> list[str]:
    if isinstance(value, dict):
        pairs = [(key, each) for key, each in value.items() if "." not in key]
    elif isinstance(value, list):
        pairs = [(str(index), each) for index, each in enumerate(value[:2])]
    else:
        return []
    return [
        name
        for key, each in pairs
        for name in (f"{place}.{key}".lstrip("."), *_places(each, f"{place}.{key}".lstrip(".")))
    ]


@pytest.mark.parametrize("command", ["verify", "run", "latency", "build", "eval", "plan"])
@pytest.mark.parametrize(
    ("place", "value"),
    [("runtime", {}), ("files", None), ("files", [{}]), ("build", {}), ("build.batch", "x"), ("model", None),
     ("model.preprocessing", {})],
)  # fmt: skip
def test_every_command_reports_a_damaged_manifest(
    command: str, place: str, value: Any, own_ort: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = Path(edgevit.__file__).parent / "data" / "photos"
    more = {"run": [str(photos)], "eval": ["--data", str(photos)]}
    damage(own_ort.path, place, value)
    assert main([command, str(own_ort.path), *more.get(command, [])]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{own_ort.path / 'manifest.json'} is damaged" in line


def test_options_that_contradict_each_other_are_damage(own_ort: Bundle) -> None:
    manifest = own_ort.manifest
    wrong = replace(manifest, build=replace(manifest.build, batch=7))  # with a dynamic batch of 1 to 16
    write_manifest_json(own_ort.path, wrong.to_json())
    with pytest.raises(BundleError, match="is damaged: .*batch"):
        Bundle.open(own_ort.path)
