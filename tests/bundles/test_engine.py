"""Every command that opens a bundle checks that the requested precision runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import edgevit
from edgevit.bundles.bundle import Bundle
from edgevit.cli.main import main
from edgevit.errors import PrecisionError, UsageError
from edgevit.runtimes import registry
from edgevit.runtimes.base import Engine
from edgevit.runtimes.precision import ExecutedPrecision
from edgevit.types import Array
from tests.helpers.bundles import damage

PHOTO = Path(edgevit.__file__).parent / "data" / "photos" / "chelsea.png"


def change_precision(bundle: Bundle, **fields: Any) -> None:
    """Change fields of the precision in the manifest."""
    for name, value in fields.items():
        damage(bundle.path, f"precision.{name}", value)


@pytest.fixture
def labeled(tmp_path: Path) -> Path:
    (tmp_path / "data" / "cat").mkdir(parents=True)
    shutil.copy(PHOTO, tmp_path / "data" / "cat")
    return tmp_path / "data"


def arguments(command: str, bundle: Bundle, labeled: Path) -> list[str]:
    more = {"run": [str(PHOTO)], "eval": ["--data", str(labeled)], "latency": ["--duration", "0.2"]}
    return [command, str(bundle.path), *more.get(command, []), "--threads", "1"]


@pytest.mark.parametrize("command", ["verify", "run", "latency", "eval"])
def test_a_manifest_with_another_executed_precision_is_status_9(
    command: str, own_bundle: Bundle, labeled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(command, own_bundle, labeled)) == 0
    capsys.readouterr()
    change_precision(own_bundle, asked="fp16")
    assert main(arguments(command, own_bundle, labeled)) == 9
    assert "requested fp16" in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(PrecisionError):
        edgevit.load(own_bundle)


def test_more_threads_than_are_of_use_are_refused(
    own_bundle: Bundle, labeled: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand threads on two cores kept the machine busy for minutes."""
    monkeypatch.setattr("edgevit.runtimes.base.available_cores", lambda: 2)
    for command in ("verify", "run", "latency", "eval"):
        assert main([*arguments(command, own_bundle, labeled)[:-1], "9"]) == 2
        assert "9 threads are too many for 2 usable cores; give at most 8" in capsys.readouterr().err.splitlines()[-1]
    damage(own_bundle.path, "build.threads", 9)  # as a bundle that was tuned on a larger machine
    for threads in (None, 8, 9):
        edgevit.load(own_bundle, threads=threads).close()


@pytest.mark.parametrize("threads", [2.5, "2", True, 0, -1, 1025])
def test_threads_are_a_whole_number(threads: Any, own_bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="the number of threads must be at least 1 and at most 1024, not"):
        edgevit.load(own_bundle, threads=threads)


@pytest.mark.parametrize("fmt", ["ort", "openvino"])
@pytest.mark.parametrize("command", ["verify", "run", "latency", "eval"])
def test_an_engine_with_another_precision_than_its_manifest_is_status_9(
    command: str,
    fmt: str,
    shared_bundle: Callable[[str], Bundle],
    tmp_path: Path,
    labeled: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = Bundle.open(shutil.copytree(shared_bundle(fmt).path, tmp_path / "own"))
    change_precision(own, asked="int8", found="int8", layers={"int8": 23}, multiply_adds={"int8": 1})
    damage(own.path, "typing", {"needs_vnni": False})  # its absence would be refused on a processor without VNNI
    assert main(arguments(command, own, labeled)) == 9
    assert "requested int8" in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(PrecisionError, match="requested int8"):
        edgevit.load(own)


class Fp16Engine(Engine):
    """An engine that runs in fp16."""

    def __init__(self) -> None:
        self.closed = False

    def _infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        raise NotImplementedError

    def executed_precision(self) -> ExecutedPrecision:
        return ExecutedPrecision({"fp16": 23})

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("fmt", ["trt", "trt-rtx"])
def test_an_engine_of_a_gpu_is_not_opened_in_another_precision(
    fmt: str, shared_bundle: Callable[[str], Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither runtime runs without a GPU, so a fake engine replaces theirs."""
    engine = Fp16Engine()
    monkeypatch.setattr(type(registry.get_runtime(fmt)), "open", lambda *_: engine)
    own = Bundle.open(shutil.copytree(shared_bundle("ort").path, tmp_path / "own"))
    damage(own.path, "runtime.fmt", fmt)
    with pytest.raises(PrecisionError, match="requested fp32"):
        edgevit.load(own)
    assert engine.closed
    change_precision(own, asked="fp16", layers={"fp16": 23}, multiply_adds={})
    assert edgevit.load(own) is engine
