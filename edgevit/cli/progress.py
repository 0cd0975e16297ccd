"""Progress on stderr: a spinner and bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from edgevit.metrics import OnImages
from edgevit.models.downloads import OnDownload

_WEIGHTS = "official weights"
_IMAGES = "images"
_BYTES_PER_LINE = 10_000_000  # if the size of the download is unknown


@contextmanager
def show_stages() -> Iterator[Callable[[str, float | None], None]]:
    """Yield a function to call with None when a stage starts, and with its seconds when it ends."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _print_stage
        return
    with console.status("starting") as status:

        def on_stage(name: str, elapsed_s: float | None) -> None:
            status.update(name)
            if elapsed_s is not None:
                console.print(f"  [green]done[/green] {name} [dim]{elapsed_s:.1f} s[/dim]", highlight=False)

        yield on_stage


def _print_stage(name: str, elapsed_s: float | None) -> None:
    if elapsed_s is not None:
        print(f"  {name}: {elapsed_s:.1f} s", file=sys.stderr, flush=True)


@contextmanager
def show_download() -> Iterator[OnDownload]:
    """Yield a function to call with the bytes received and the total, which may be None. Silent until called."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _download_lines()
        return
    with _bar(console, _WEIGHTS, DownloadColumn(), TransferSpeedColumn()) as on_download:
        yield on_download


@contextmanager
def show_images() -> Iterator[OnImages]:
    """Yield a function to call with the number of processed images and the total. Silent until called."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _image_lines()
        return
    with _bar(console, _IMAGES, MofNCompleteColumn()) as on_images:
        yield on_images


@contextmanager
def _bar(console: Console, title: str, *columns: ProgressColumn) -> Iterator[Callable[[int, int | None], None]]:
    """Yield a function that draws a bar; nothing is drawn before its first call."""
    bar = Progress(TextColumn(title), BarColumn(), *columns, TimeRemainingColumn(), console=console)
    task = bar.add_task(title, total=None)

    def on_progress(done: int, total: int | None) -> None:
        bar.start()
        bar.update(task, completed=done, total=total)

    try:
        yield on_progress
    finally:
        bar.stop()


def _download_lines() -> OnDownload:
    """Return a function that prints a line for each tenth of a download."""
    printed = -1

    def on_download(done: int, total: int | None) -> None:
        nonlocal printed
        step = done * 10 // total if total else done // _BYTES_PER_LINE
        if step == printed:
            return
        printed = step
        amount = f"{step * 10} % of {total / 1e6:.1f} MB" if total else f"{done / 1e6:.1f} MB"
        print(f"  {_WEIGHTS}: {amount}", file=sys.stderr, flush=True)

    return on_download


def _image_lines() -> OnImages:
    """Return a function that prints a line for each tenth of the images."""
    printed = 0

    def on_images(done: int, total: int) -> None:
        nonlocal printed
        tenth = done * 10 // total
        if tenth > printed:
            printed = tenth
            print(f"  {_IMAGES}: {done} of {total}", file=sys.stderr, flush=True)

    return on_images
