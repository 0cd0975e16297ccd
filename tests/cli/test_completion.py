"""`edgevit completion`."""

from __future__ import annotations

import shlex
import shutil
import subprocess

import pytest

from tests.helpers.cli import status

BASH = """
{script}
COMP_WORDS=({words})
COMP_CWORD=$(({count} - 1))
_edgevit
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def completions(script: str, *words: str) -> list[str]:
    """Return the words that bash offers for the last of `words`."""
    quoted = " ".join(map(shlex.quote, words))
    code = BASH.format(script=script, words=quoted, count=len(words))
    done = subprocess.run(["bash", "--norc", "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("edgevit", "ex"), ["export"]),
        (("edgevit", "l"), ["list", "latency", "lint"]),
        (("edgevit", "export", "vit", "--dyn"), ["--dynamic-batch"]),
        (("edgevit", "export", "vit", "--precision", "fp"), ["fp32", "fp16"]),
        (("edgevit", "eval", "b", "--wei"), ["--weights"]),
        (("edgevit", "doctor", "--dyn"), []),
        (("edgevit", "run", "bun"), []),  # file names are left to bash
    ],
)
def test_bash_completes(words: tuple[str, ...], expected: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert status("completion", "bash") == 0
    assert completions(capsys.readouterr().out, *words) == expected


def test_the_zsh_script_is_valid(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("completion", "zsh") == 0
    script = capsys.readouterr().out
    assert "bashcompinit" in script and "mapfile" not in script
    if shutil.which("zsh"):
        subprocess.run(["zsh", "-n", "-c", script], check=True)


def test_an_unknown_shell_is_a_usage_error() -> None:
    assert status("completion", "fsh") == 2
