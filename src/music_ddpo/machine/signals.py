"""SIGTERM and SIGUSR1, which a scheduler sends before it takes the machine away, and Ctrl-C."""

from __future__ import annotations

import signal

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Interrupted(BaseException):
    """A signal stops the process. Like `KeyboardInterrupt` it is not an `Exception`, so no handler catches it."""

    def __init__(self, number: int):
        self.number = number
        super().__init__(
            f"stopped by {signal.Signals(number).name}; finished work is kept and nothing half-written remains: "
            "run again to continue"
        )


def _handle(number: int, frame: object) -> None:
    ignore()  # the signal may come twice: from the scheduler, and from the process that started this one
    raise Interrupted(number)


def watch() -> None:
    """From now on the first of the signals raises `Interrupted`."""
    for number in SIGNALS:
        signal.signal(number, _handle)


def ignore() -> None:
    """From now on the signals do nothing: the work is done or has failed, and the process is about to end."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
