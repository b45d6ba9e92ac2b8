"""The catalogue of the paper's experiments: paper/catalogue.yaml, read and checked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from music_ddpo.core.errors import UserError
from music_ddpo.core.params import Params
from music_ddpo.core.params_file import parse

PROJECT = Path(__file__).resolve().parents[1]
CATALOGUE = PROJECT / "paper" / "catalogue.yaml"
RUNS = PROJECT / "paper" / "runs"  # what is kept of each finished experiment


@dataclass(frozen=True)
class Entry:
    """An experiment of the paper; the fields are those of paper/catalogue.yaml.

    Attributes
    ----------
    changes
        Of params.yaml, by dotted key: the preset's, then the entry's own.
    """

    name: str
    figure: str
    tests: str
    paper: str
    trains: bool | None
    reward: str
    preset: str
    changes: dict[str, Any]
    seeds: tuple[int, ...]

    def run(self, seed: int, model: str = "mini") -> Run:
        """The training with one of the seeds."""
        return Run(self, seed, model)


@dataclass(frozen=True)
class Run:
    """An entry with a seed: one DVC experiment."""

    entry: Entry
    seed: int
    model: str = "mini"

    @property
    def name(self) -> str:
        """The experiment's name."""
        model = "" if self.model == "mini" else "-" + self.model.replace("/", "-")
        return f"{self.entry.name}-seed-{self.seed}{model}"

    @property
    def changes(self) -> dict[str, Any]:
        """All changes of params.yaml, by dotted key."""
        return {"model": self.model, "seed": self.seed, "rewards": [self.entry.reward]} | self.entry.changes

    @property
    def options(self) -> list[str]:
        """The same as options of `dvc exp run`."""
        return [word for key, value in self.changes.items() for word in ("-S", f"{key}={json.dumps(value)}")]

    @property
    def params(self) -> Params:
        """`UserError` if they are wrong."""
        content = yaml.safe_load((PROJECT / "params.yaml").read_text(encoding="utf-8"))
        for key, value in self.changes.items():
            *groups, last = key.split(".")
            group = content
            for name in groups:
                group = group[name]
            group[last] = value
        return parse(content, self.name)

    @property
    def record(self) -> Path:
        """The file that keeps its results."""
        return RUNS / f"{self.name}.json"


def entries(figure: str | None = None) -> list[Entry]:
    """All entries, or those whose name is `figure` or begins with it and a hyphen.

    Raises
    ------
    UserError
        If there is none.
    """
    content = yaml.safe_load(CATALOGUE.read_text(encoding="utf-8"))
    found = []
    for name, entry in content["entries"].items():
        changes = content["presets"][entry["preset"]] | entry["set"]
        fields = {key: entry[key] for key in ("figure", "tests", "paper", "trains", "reward", "preset")}
        found.append(Entry(name=name, changes=changes, seeds=tuple(entry["seeds"]), **fields))
    if figure is None:
        return found
    chosen = [e for e in found if figure in (e.name, e.name.split("-")[0])]
    if not chosen:
        groups = ", ".join(dict.fromkeys(e.name.split("-")[0] for e in found))
        raise UserError(f"FIGURE: {figure!r} is not in paper/catalogue.yaml; use {groups}, or the name of an entry.")
    return chosen
