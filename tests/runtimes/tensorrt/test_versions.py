"""Supported TensorRT versions."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from edgevit.errors import MissingError
from edgevit.runtimes.tensorrt import versions
from edgevit.runtimes.tensorrt.versions import is_jetson, supported_line

PYPROJECT = Path(__file__).parents[3] / "pyproject.toml"


@pytest.mark.parametrize(
    ("version", "line"),
    [
        ("8.6.1", "8.6"),
        ("8.6.2.3", "8.6"),
        ("10.0.1", "10"),
        ("10.3.0.30", "10"),
        ("10.16.1.11", "10"),
        ("11.4.0", "11"),
    ],
)
def test_a_supported_version_has_a_line(version: str, line: str) -> None:
    assert supported_line(version) == line


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("8.5.2.2", "JetPack 5, with Python 3.8"),
        ("8.2.1", "install JetPack 6"),
        ("8.7.0", "not 8.7.0"),
        ("9.3.0", "not 9.3.0"),
        ("12.0.0", "upgrade edgevit"),
        ("unknown", "older system"),
    ],
)
def test_an_unsupported_version_is_an_error_with_the_version_to_install(version: str, words: str) -> None:
    with pytest.raises(MissingError, match=words):
        supported_line(version)


@pytest.mark.parametrize("version", ["8.7.0", "9.3.0", "12.0.0"])
def test_a_jetson_is_never_told_to_install_tensorrt_with_pip(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "is_jetson", lambda: True)
    with pytest.raises(MissingError, match="install JetPack 6 or 7 with its own TensorRT") as caught:
        supported_line(version)
    assert "pip" not in str(caught.value)


def test_a_jetson_is_known_by_its_release_or_its_device_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release, tree = tmp_path / "nv_tegra_release", tmp_path / "compatible"
    monkeypatch.setattr(versions, "_JETSON_RELEASE", release)
    monkeypatch.setattr(versions, "_JETSON_TREE", tree)
    assert not is_jetson()
    tree.write_bytes(b"raspberrypi,5-model-b\0brcm,bcm2712\0")
    assert not is_jetson()
    tree.write_bytes(b"nvidia,p3737-0000+p3701-0000\0nvidia,tegra234\0")  # a container without the release
    assert is_jetson()
    tree.unlink()
    release.touch()
    assert is_jetson()


def test_the_extra_takes_every_supported_version() -> None:
    (extra,) = re.findall(r'^trt = \["(.*?)"\]', PYPROJECT.read_text("utf-8"), re.MULTILINE)
    assert all(version in Requirement(extra).specifier for version in ("8.6.2", "10.3.0", "11.4.1"))
