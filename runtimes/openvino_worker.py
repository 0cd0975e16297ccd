"""The subprocess in which OpenVINO converts ONNX files."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from edgevit.runtimes import subprocess_build
from edgevit.runtimes.base import OnPhase
from edgevit.runtimes.openvino import OpenVino
from edgevit.runtimes.openvino_convert import convert
from edgevit.runtimes.subprocess_build import Json


def main(arguments: Sequence[str]) -> int:
    """Convert the file that the request in the folder `arguments[0]` names, and return the exit status."""
    return subprocess_build.serve(_work, arguments)


def _work(request: Json, _folder: Path, _on_phase: OnPhase) -> Json:
    scratch = Path()  # the current folder: no path with commas, which OpenVINO takes apart
    convert(OpenVino().load(), Path(request["model"]), Path(request["xml"]), scratch=scratch)
    return {}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
