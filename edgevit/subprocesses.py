"""Start Python subprocesses that import the same modules as this process, and nothing from the current folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

# Code for a subprocess. PR_SET_PDEATHSIG (1) with SIGKILL (9) ends it with its parent: a parent that is killed cannot
# do it.
DIE_WITH_PARENT = """
import ctypes
libc = ctypes.CDLL(None)
if hasattr(libc, "prctl"):
    libc.prctl(1, 9)
"""

# Runs first in the subprocess. `-I` keeps the current folder out of sys.path (Python 3.10 has no `-P`), and also
# PYTHONPATH and the user's site-packages, so the parent's sys.path replaces it.
_BOOTSTRAP = f"""
import json, os, sys
path, parent, kind, target = json.loads(sys.argv[1])
sys.path[:] = path
del sys.argv[1]
{DIE_WITH_PARENT}
if hasattr(libc, "prctl") and parent not in (0, os.getppid()):
    sys.exit("the parent process has ended")
if kind == "module":
    import runpy
    runpy.run_module(target, run_name="__main__", alter_sys=True)
else:
    sys.argv[0] = "-c"
    exec(compile(target, "<string>", "exec"), {{"__name__": "__main__"}})
"""


def python_command(
    *arguments: str, module: str | None = None, code: str | None = None, is_child: bool = True
) -> list[str]:
    """Return the command that runs a module, or code, in a Python subprocess with `arguments` in sys.argv[1:].

    The subprocess imports from the same places as this process, but not from the current folder, unless edgevit itself
    was imported from it. It dies with its parent process. `is_child` is False if another process will start it.
    """
    kind, target = ("module", module) if module is not None else ("code", code)
    request = json.dumps([_import_path(), os.getpid() if is_child else 0, kind, target])
    return [sys.executable, "-I", "-c", _BOOTSTRAP, request, *arguments]


def run_python(
    *arguments: str, module: str | None = None, code: str | None = None, timeout_s: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a module, or code, as `python_command` describes, and return its exit status, stdout and stderr.

    Raises subprocess.TimeoutExpired after `timeout_s`, and OSError if the process cannot be started.
    """
    return subprocess.run(
        python_command(*arguments, module=module, code=code),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout_s,
        check=False,
    )


def last_line(text: str) -> str:
    """Return the last line of a process's output that is not blank, or "" if there is none."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _import_path() -> list[str]:
    """Return this process's sys.path with absolute paths, without the current folder unless edgevit is in it."""
    root = Path(__file__).resolve().parent.parent
    folders = [str(Path(entry).resolve()) for entry in sys.path]
    here = str(Path.cwd())
    kept = [folder for folder in folders if folder != here or folder == str(root)]
    return list(dict.fromkeys([*kept, str(root)]))
