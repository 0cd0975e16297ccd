"""Progress on stderr: a spinner and a line a stage on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console


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
