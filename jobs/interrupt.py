"""Ctrl-C that cannot get lost: not in a callback that swallows exceptions, nor where a shell had it ignored."""

import signal
import threading
from types import FrameType
from typing import Any


class Interrupt:
    """While the block runs, remembers that Ctrl-C was pressed; `check` raises it again where it was swallowed."""

    def __init__(self) -> None:
        self._pressed = False
        self._before: Any = None

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _handle(self, _signal: int, _frame: FrameType | None) -> None:
        self._pressed = True
        raise KeyboardInterrupt

    def check(self) -> None:
        """KeyboardInterrupt if Ctrl-C was pressed; only on the main thread, where it can end the command."""
        if self._pressed and threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
