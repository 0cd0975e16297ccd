"""Signals that end a run: clean up, report the signal, exit with 128 plus its number."""

from __future__ import annotations

import signal
import sys
from typing import NoReturn

_HANDLED = (signal.SIGTERM, signal.SIGHUP)


class Stop:
    """Signal handler that raises SystemExit, so that `with` blocks remove partial output on the way out.

    Code of others may swallow the exception with a bare `except:`. `check` raises it again; the progress display
    calls it at every stage.
    """

    def __init__(self, remains: str = "nothing is left behind") -> None:
        """`remains` says what is left behind, for the end of the message."""
        self._remains = remains
        self.number: int | None = None

    def install(self) -> None:
        """Handle SIGTERM and SIGHUP. A signal that is ignored, as SIGHUP is under `nohup`, stays ignored."""
        for number in _HANDLED:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self)

    def __call__(self, number: int, _frame: object) -> NoReturn:
        if self.number is None:
            print(f"edgevit: stopped by {signal.Signals(number).name}; {self._remains}", file=sys.stderr)
        self.number = number
        raise SystemExit(128 + number)

    def check(self) -> None:
        """Raise SystemExit if a signal has arrived."""
        if self.number is not None:
            raise SystemExit(128 + self.number)
