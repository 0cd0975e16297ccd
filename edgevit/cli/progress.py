"""Progress on stderr: a spinner and bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from edgevit.metrics import OnImages

_IMAGES = "images"


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
