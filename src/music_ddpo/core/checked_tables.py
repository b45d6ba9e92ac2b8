"""CSV files of earlier stages, read and checked."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from music_ddpo.core.errors import UserError, in_one_line
from music_ddpo.core.files import AGAIN, read_text


@dataclass(frozen=True)
class Text:
    """A column of words: of these, or any; not empty."""

    words: Collection[str] = ()


@dataclass(frozen=True)
class Number:
    """A column of numbers: of these, or any up to +- 1e12; an empty cell is NaN if `gaps`, else wrong."""

    values: Collection[float] = ()
    gaps: bool = False


def read_table(path: Path | str, columns: Mapping[str, Text | Number]) -> pd.DataFrame:
    """A CSV file with at least these columns; every cell has the type of its column and, without `gaps`, is filled.

    Raises
    ------
    UserError
        If it is missing or damaged; names the column and the row, counted from 1.
    """

    def damaged(what: str) -> UserError:
        return UserError(f"{path}: is damaged: {what}; {AGAIN}.")

    text = read_text(path)
    try:  # as text: an instrument may have a name like "nan"
        table = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False, na_values=[""])
    except (ValueError, OverflowError) as error:  # of pandas too
        raise damaged(in_one_line(error, 100)) from None
    if not isinstance(table.index, pd.RangeIndex) or not len(table):
        raise damaged("it has no rows" if not len(table) else "a row has more cells than the header")
    for name, kind in columns.items():
        if name not in table:
            raise damaged(f"it has no column {name!r}")
        cells = table[name]
        if isinstance(kind, Number):
            cells = pd.to_numeric(cells, errors="coerce").astype(float)
            wrong = ~(np.abs(cells) <= 1e12) & ~(kind.gaps & table[name].isna())
            allowed: Collection[float] | Collection[str] = kind.values
        else:
            wrong, allowed = cells.isna(), kind.words
        if allowed:
            wrong |= ~cells.isin(list(allowed))
        if wrong.any():
            row = int(wrong.to_numpy().argmax())
            raise damaged(f"column {name!r} has {str(table[name][row])[:50]!r} in row {row + 1}")
        table[name] = cells
    return table


def require_equal(path: Path | str, found: pd.DataFrame, expected: pd.DataFrame, source: Path | str) -> None:
    """`UserError` if a table has other rows than `expected`, which comes from `source`; other columns do not matter."""
    if len(found) != len(expected):
        raise UserError(f"{path}: has {len(found)} rows, but {source} has {len(expected)} clips; {AGAIN}.")
    for name in expected:
        differ = (found[name] != expected[name]).to_numpy()
        if differ.any():
            row = int(differ.argmax())
            raise UserError(
                f"{path}: column {name!r} has {found[name][row]!r} in row {row + 1}, where {expected[name][row]!r} "
                f"follows from {source}; {AGAIN}."
            )
