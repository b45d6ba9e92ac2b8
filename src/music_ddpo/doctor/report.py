"""The rows that the checks return, shown as soon as they are known."""

from __future__ import annotations

import math
import sys
import textwrap
import warnings
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import click

from music_ddpo.core.errors import UserError, in_one_line

OK, LOOK, BROKEN = "ok", "look", "broken"  # LOOK: possible, but doubtful or incomplete
COLOURS = {OK: "green", LOOK: "yellow", BROKEN: "red"}
WIDTH, CHECK, STATE = 120, 24, 8  # columns of the table, and of its first two parts

PACKAGE = Path(__file__).parents[1]

T = TypeVar("T")
Check = Generator["Row", None, T]  # yields rows, and returns what later checks need


@dataclass(frozen=True)
class Row:
    """One line of the report.

    Attributes
    ----------
    check, state
        What was checked, and OK, LOOK or BROKEN.
    found, advice
        What was found, and what to do if it is not OK.
    numbers
        The same as numbers by name, for programs: seconds, bytes, scores.
    """

    check: str
    state: str
    found: str
    advice: str = ""
    numbers: dict[str, float | None] = field(default_factory=dict)

    def text(self) -> str:
        """The row in at most `WIDTH` columns."""
        lines = textwrap.wrap(self.found, WIDTH - CHECK - STATE) or [""]
        if self.advice:
            lines += textwrap.wrap(f"-> {self.advice}", WIDTH - CHECK - STATE, subsequent_indent="   ")
        state = click.style(f"{self.state:<{STATE}}", fg=COLOURS[self.state])
        first = f"{self.check:<{CHECK - 1}} {state}{lines[0]}"
        return "\n".join([first, *(" " * (CHECK + STATE) + line for line in lines[1:])])


class Report:
    """Runs checks; one that fails is a broken row, and the next one is run.

    Parameters
    ----------
    show
        Called with each row as soon as it is known.
    """

    def __init__(self, show: Callable[[Row], object]):
        self.show = show
        self.rows: list[Row] = []

    def add(self, row: Row) -> None:
        """Adds a row and shows it."""
        self.rows.append(row)
        self.show(row)

    def run(self, name: str, check: Check[T]) -> T | None:
        """Runs a check; returns what it returns, or None if it failed. Warnings of this package become rows."""
        result: T | None = None
        if sys.stderr.isatty():
            click.echo(f"checking {name}".ljust(WIDTH - 1) + "\r", err=True, nl=False)  # the row is written over it
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("ignore")
            warnings.simplefilter("default", UserWarning)
            try:
                while True:
                    self.add(next(check))
            except StopIteration as end:
                result = end.value
            except UserError as error:
                self.add(Row(name, BROKEN, str(error)))
            except Exception as error:  # the other checks are still worth running
                self.add(Row(name, BROKEN, f"{type(error).__name__}: {in_one_line(error)}"))
        for message, ours in {str(w.message): Path(w.filename).is_relative_to(PACKAGE) for w in told}.items():
            if ours:
                self.add(Row(name, LOOK, message))
            else:  # of a library, like in a stage
                click.echo(f"Warning: {message}", err=True)
        return result

    @property
    def broken(self) -> bool:
        """Whether a row is broken."""
        return any(row.state == BROKEN for row in self.rows)

    def content(self) -> dict[str, Any]:
        """The report as plain values, for JSON; a number that is not finite is None."""
        rows = [asdict(row) for row in self.rows]
        for row in rows:
            row["numbers"] = {k: x if x is not None and math.isfinite(x) else None for k, x in row["numbers"].items()}
        return {"broken": self.broken, "checks": rows}
