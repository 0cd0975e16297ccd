"""Kill a process that publishes bundles, at random moments; a reader must see a whole bundle all the time."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from random import Random
from unittest import mock

from edgevit.bundles import store
from edgevit.bundles.bundle import Bundle
from tests.helpers.bundles import sample_manifest

WAYS = ("exchange", "two renames")  # the latter on file systems that cannot exchange two folders


def cannot_exchange() -> contextlib.AbstractContextManager[object]:
    """Behave as on a file system that cannot exchange two folders."""
    return mock.patch.object(store, "exchange", return_value=False)


def small_bundle(folder: Path, content: str) -> None:
    """Write a bundle that `Bundle.open` accepts, with files of known content."""
    folder.mkdir()
    for name in ("model.onnx", "reference.npz"):
        (folder / name).write_text(content)
    store.write_manifest(folder, sample_manifest(edgevit_version=content))


def read_number(out: Path) -> int:
    """Open the bundle, with every hash checked, and return the number that it was published with."""
    return int(Bundle.open(out / "model").manifest.edgevit_version)


def publish_number(out: Path, number: int) -> None:
    with store.staging(out) as folder:
        small_bundle(folder / "model", str(number))
        store.publish({folder / "model": out / "model"})


def kill_once(out: Path, random: Random) -> str:
    """Publish numbers in a forked process, kill it, and return the reason if a reader saw anything but whole bundles.

    `out` holds a bundle already. The remains of the process stay, for the next to clean up.
    """
    newest = read_number(out)
    started, start = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            os.write(start, b".")
            for number in range(newest + 1, newest + 1_000_000):
                publish_number(out, number)
        finally:
            os._exit(1)
    os.read(started, 1)
    os.close(started)
    os.close(start)
    end = time.monotonic() + random.uniform(0, 0.03)
    try:
        while True:
            seen = read_number(out)
            if seen < newest:
                return f"the bundle went from {newest} back to {seen}"
            newest = seen
            if time.monotonic() > end:
                break
    except Exception as error:
        return f"a reader fails: {error}"
    finally:
        os.kill(process, signal.SIGKILL)
        status = os.waitpid(process, 0)[1]
    if status != signal.SIGKILL:
        return f"the publication ended by itself with {status}"
    try:
        seen = read_number(out)
    except Exception as error:
        return f"no whole bundle after the kill: {error}"
    return "" if seen >= newest else f"after the kill the bundle went from {newest} back to {seen}"
