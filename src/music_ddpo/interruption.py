"""SIGTERM and SIGUSR1: what a scheduler sends before it takes the machine away."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Interrupted(Exception):  # noqa: N818 (nothing is wrong)
    """A signal asks to stop. What has to be kept is kept."""

    def __init__(self, number: int, kept: str = ""):
        self.number = number
        self.kept = kept
        super().__init__(f"stopped by {signal.Signals(number).name}; {kept or 'nothing half-done is left'}")


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
