"""Check that every block of the README runs as pasted, in order, and that its tables follow from the registries."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools import readme

ROOT = readme.README.parent
TEXT = readme.README.read_text("utf-8")
BLOCKS = re.findall(r"```(sh|python)\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with the files of a clone and a .venv, in which blocks may write."""
    for path in ROOT.iterdir():
        if path.name not in (".git", ".venv", "demo", "bundles"):
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    return tmp_path


def test_tables_follow_from_the_registries() -> None:
    assert readme.updated(TEXT) == TEXT, "regenerate them: make docs"


@pytest.mark.large  # four exports and their measurements
def test_every_block_runs_as_pasted_in_order(clone: Path) -> None:
    assert [language for language, _ in BLOCKS].count("sh") >= 3
    script = "set -eux\n" + "".join(
        block if language == "sh" else f"python - <<'PYTHON'\n{block}PYTHON\n" for language, block in BLOCKS
    )
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=clone,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "cat" in done.stdout
