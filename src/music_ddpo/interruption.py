"""SIGTERM and SIGUSR1, which a scheduler sends before it takes the machine away, and Ctrl-C."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Interrupted(BaseException):
    """A signal asks to stop. As `KeyboardInterrupt`, it is no error that somebody on the way might handle."""

    def __init__(self, number: int, kept: str = ""):
        self.number = number
        name = signal.Signals(number).name
        super().__init__(f"stopped by {name}; {kept or 'nothing half-done is left'}")


_noted: int | None = None
_deferred = False


def _handle(number: int, frame: object) -> None:
    global _noted
    if _noted is None:  # they may come several times: from the scheduler, and from the process that started this one
        _noted = number
        if not _deferred:
            raise Interrupted(number)


def watch() -> None:
    """From now on the signals raise `Interrupted`, once."""
    for number in SIGNALS:
        signal.signal(number, _handle)


def ignore() -> None:
    """From now on the signals do nothing: the work is done, or has failed, and the process is about to end."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def deferred() -> Iterator[None]:
    """While it lasts, a signal is only noted: the work in it asks `noted` where it can stop."""
    global _deferred
    _deferred = True
    try:
        yield
    finally:
        _deferred = False


def noted() -> int | None:
    """The signal that has come, if one has."""
    return _noted
