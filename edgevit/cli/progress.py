"""Progress on stderr: a spinner and a line a stage on a terminal, plain lines elsewhere."""

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
_STEP = 10_000_000  # bytes a line, where nobody knows how many there are


@contextmanager
def show() -> Iterator[Callable[[str, float | None], None]]:
    """A function to call as a stage starts, with None, and as it ends, with its seconds."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _print_line
        return
    with console.status("starting") as status:

        def on_stage(name: str, elapsed_s: float | None) -> None:
            status.update(name)
            if elapsed_s is not None:
                console.print(f"  [green]done[/green] {name} [dim]{elapsed_s:.1f} s[/dim]", highlight=False)

        yield on_stage


def _print_line(name: str, elapsed_s: float | None) -> None:
    if elapsed_s is not None:
        print(f"  {name}: {elapsed_s:.1f} s", file=sys.stderr, flush=True)


@contextmanager
def show_download() -> Iterator[OnDownload]:
    """A function to call with the bytes that have come and the bytes there are; shows nothing until it is called."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _print_tenths()
        return
    with _bar(console, _WEIGHTS, DownloadColumn(), TransferSpeedColumn()) as on_download:
        yield on_download


@contextmanager
def _bar(console: Console, what: str, *columns: ProgressColumn) -> Iterator[Callable[[int, int | None], None]]:
    """A bar that is told what is done and what there is, and shows nothing until then."""
    bar = Progress(TextColumn(what), BarColumn(), *columns, TimeRemainingColumn(), console=console)
    task = bar.add_task(what, total=None)

    def on_progress(done: int, total: int | None) -> None:
        bar.start()
        bar.update(task, completed=done, total=total)

    try:
        yield on_progress
    finally:
        bar.stop()


def _print_tenths() -> OnDownload:
    shown = -1

    def on_download(done: int, total: int | None) -> None:
        nonlocal shown
        tenth = done * 10 // total if total else done // _STEP
        if tenth == shown:
            return
        shown = tenth
        far = f"{tenth * 10} % of {total / 1e6:.1f} MB" if total else f"{done / 1e6:.1f} MB"
        print(f"  {_WEIGHTS}: {far}", file=sys.stderr, flush=True)

    return on_download


@contextmanager
def show_images() -> Iterator[OnImages]:
    """A function to call with the images that are done and the images there are; shows nothing until it is called."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _print_image_tenths()
        return
    with _bar(console, _IMAGES, MofNCompleteColumn()) as on_images:
        yield on_images


def _print_image_tenths() -> OnImages:
    shown = 0

    def on_images(done: int, total: int) -> None:
        nonlocal shown
        tenth = done * 10 // total
        if tenth > shown:
            shown = tenth
            print(f"  {_IMAGES}: {done} of {total}", file=sys.stderr, flush=True)

    return on_images
