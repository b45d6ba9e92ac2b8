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
MINI = "mini"


@dataclass(frozen=True, eq=False)
class Entry:
    """An experiment of the paper; the fields are those of paper/catalogue.yaml.

    Attributes
    ----------
    shares
        The entry whose experiments these are too; its own name if they are its own.
    judge, emotion
        Whose number decides, of all clips or of those of one emotion.
    changes, on_mini, elsewhere
        Of params.yaml, by dotted key: the preset's, then the entry's own; and further ones for mini, or for all other
        models.
    """

    name: str
    shares: str
    where: str
    tests: str
    paper: str
    trains: bool | None
    reward: str
    judge: str
    emotion: str | None
    preset: str
    seeds: tuple[int, ...]
    changes: dict[str, Any]
    on_mini: dict[str, Any]
    elsewhere: dict[str, Any]

    def run(self, seed: int, model: str = MINI) -> Run:
        """The training with one of the seeds."""
        return Run(self, seed, model)


@dataclass(frozen=True, eq=False)
class Run:
    """An entry with a seed: one DVC experiment."""

    entry: Entry
    seed: int
    model: str = MINI

    @property
    def name(self) -> str:
        """The experiment's name."""
        model = "" if self.model == MINI else "-" + self.model.replace("/", "-")
        return f"{self.entry.shares}-seed-{self.seed}{model}"

    @property
    def changes(self) -> dict[str, Any]:
        """All changes of params.yaml, by dotted key."""
        entry = self.entry
        changes = {"model": self.model, "seed": self.seed, "rewards": [entry.reward]} | entry.changes
        return changes | (entry.on_mini if self.model == MINI else entry.elsewhere)

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
        preset = content["presets"][entry["preset"]]
        fields = {key: entry[key] for key in ("where", "tests", "paper", "trains", "reward", "preset")}
        found.append(
            Entry(
                name=name,
                shares=entry.get("shares", name),
                judge=entry.get("judge", entry["reward"]),
                emotion=entry.get("emotion"),
                seeds=tuple(entry["seeds"]),
                changes=preset["set"] | entry["set"],
                on_mini=preset.get("on mini", {}) | entry.get("on mini", {}),
                elsewhere=preset.get("elsewhere", {}),
                **fields,
            )
        )
    if figure is None:
        return found
    chosen = [e for e in found if figure in (e.name, e.name.split("-")[0])]
    if not chosen:
        groups = ", ".join(dict.fromkeys(e.name.split("-")[0] for e in found))
        raise UserError(f"FIGURE: {figure!r} is not in paper/catalogue.yaml; use {groups}, or the name of an entry.")
    return chosen
