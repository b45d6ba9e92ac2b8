"""Whether a training of the catalogue succeeds, and whether that is what the paper reports."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from catalogue import MINI, RUNS, Entry
from records import is_current, read, same

from music_ddpo.core.files import read_json
from music_ddpo.measuring.comparison import Group
from music_ddpo.measuring.experiments import Experiment

ENOUGH = 3  # seeds, for a verdict
# The smallest gain that the paper reports as a success (table 2). A training that may have gained more has not failed.
SUCCESS = {"accuracy": 0.10, "similarity": 0.03}


@dataclass(frozen=True)
class Result:
    """An entry with the runs that there are: with the correct code, and with all faults of the published one."""

    entry: Entry
    correct: Group | None
    published: Group | None

    @property
    def outcome(self) -> str | None:
        """With the correct code; None with fewer than `ENOUGH` seeds."""
        return outcome(self.correct, self.entry)

    @property
    def verdict(self) -> str:
        """In words; see the head of paper/results.md."""
        found = self.outcome
        if found is None:
            return "not run yet" if self.correct is None else f"fewer than {ENOUGH} seeds"
        if self.entry.trains is None or found == "undecided":
            return found
        if (found == "succeeds") == self.entry.trains:
            return "reproduced"
        if not self.entry.trains and outcome(self.published, self.entry) == "fails":
            return "reproduced only with the published faults"
        return "not reproduced"


def outcome(group: Group | None, entry: Entry) -> str | None:
    """Whether a training "succeeds", "fails" or is "undecided"; None with fewer than `ENOUGH` seeds."""
    if group is None or len(group.experiments) < ENOUGH:
        return None
    change = group.change(entry.judge, entry.emotion)
    low, high = (change.value if math.isnan(bound) else bound for bound in (change.low, change.high))
    if low > 0:
        return "succeeds"
    kind = group.experiments[0].study.judges[entry.judge]
    return "fails" if high < SUCCESS.get(kind, 0.0) or high <= 0 else "undecided"


def result(entry: Entry, model: str = MINI) -> Result:
    """What there is of an entry; runs with other params than the catalogue's are left out."""
    correct, published = [], []
    for run in (entry.run(seed, model) for seed in entry.seeds):
        params = run.params.model_dump(mode="json")
        if is_current(run.record, params, run.changes):
            correct.append(read(run.record))
        faulty = RUNS / f"{run.name}-published.json"
        if faulty.is_file() and same(read_json(faulty)["params"], params):
            published.append(read(faulty))
    return Result(entry, group_of(entry.name, entry.reward, correct), group_of(entry.name, entry.reward, published))


def group_of(name: str, reward: str, found: Sequence[Experiment]) -> Group | None:
    """The runs as a group; None if there are none."""
    return Group(name, reward, found) if found else None
