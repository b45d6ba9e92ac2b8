"""Writes paper/results.md and paper/curves.svg from what paper/runs/ has: python paper/report.py [MODEL]."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import vl_convert
from catalogue import PROJECT, RUNS, Entry, entries
from records import read

from music_ddpo.core.files import write_text
from music_ddpo.measuring.comparison import Group
from music_ddpo.measuring.summary import LISTENER

ENOUGH = 3  # seeds, for a verdict
HEAD = """# The paper's experiments, run again

Written by `python paper/report.py` from `paper/runs/`; `make paper` runs what is missing. "Setting of the paper" means
the method as the paper describes it, without the faults of its published code: one classifier, no KL penalty, all steps
trained (preset `paper` of `paper/catalogue.yaml`). {budget}

A change is trained minus original, in the same clips; brackets have 95% intervals over seeds and clips (seeds are
resampled first, then the clips of each). *Trained* means that the reward's own number rises and the interval excludes
0. No verdict is given for fewer than three seeds. {judge}
"""
ON_MINI = """The model is mini. Every entry has mini's learning rate (0.0075) and clip range
(1e-3), chosen once on the default study, and the same budget of 704 trajectories in 44 updates, because the published
values (3e-4 and 1e-4) change nothing in a budget of minutes; the entry `published-clap` has the published ones."""
LISTENS = """`listener` took no part in any training and stands for people
([docs/mini.md](../docs/mini.md))."""


@dataclass(frozen=True)
class Result:
    """An entry with the runs that there are: with the correct code, and with all faults of the published one."""

    entry: Entry
    correct: Group | None
    published: Group | None

    @property
    def verdict(self) -> str:
        """In words; see `HEAD`."""
        if self.correct is None or len(self.correct.experiments) < ENOUGH:
            return "not run yet" if self.correct is None else f"fewer than {ENOUGH} seeds"
        trained = rises(self.correct)
        if self.entry.trains is None:
            return "trained" if trained else "not trained"
        if trained == self.entry.trains:
            return "reproduced"
        if not self.entry.trains and self.published and len(self.published.experiments) >= ENOUGH:
            return "not reproduced" if rises(self.published) else "reproduced only with the published faults"
        return "not reproduced"


def rises(group: Group) -> bool:
    """Whether the number of the reward's own judge rises significantly."""
    return group.change(group.adapter).low > 0


def result(entry: Entry, model: str = "mini") -> Result:
    """What there is of an entry."""

    def group(suffix: str) -> Group | None:
        paths = [RUNS / f"{entry.run(seed, model).name}{suffix}.json" for seed in entry.seeds]
        found = [read(path) for path in paths if path.is_file()]
        return Group(entry.name, entry.reward, found) if found else None

    return Result(entry, group(""), group("-published"))


def table(results: Sequence[Result]) -> str:
    """A row for each entry."""
    lines = [
        "| figure | tests | the paper | reward | seeds | own number | change | listener | instrument | verdict |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        cells = [r.entry.figure, r.entry.tests, r.entry.paper, r.entry.reward]
        lines.append(f"| {' | '.join([*cells, *_numbers(r.correct), r.verdict])} |")
        if r.published is not None:
            faulty = ["", "the same with all published faults", "", r.entry.reward]
            lines.append(f"| {' | '.join([*faulty, *_numbers(r.published), ''])} |")
    return "\n".join(lines) + "\n"


def each_seed(results: Sequence[Result]) -> str:
    """A row for each run."""
    lines = [
        "| run | own number, original | trained | listener, original | trained | each emotion, trained |",
        "|---|---|---|---|---|---|",
    ]
    for r in results:
        for group, suffix in ((r.correct, ""), (r.published, ", published faults")):
            for e in group.experiments if group else ():
                one = Group(r.entry.name, r.entry.reward, [e])
                own, heard = r.entry.reward, LISTENER if LISTENER in e.study.judges else "held_out"
                words = ", ".join(f"{emotion} {one.trained(heard, emotion).value:.2f}" for emotion in e.study.emotions)
                numbers = [f"{f(judge).value:.2f}" for judge in (own, heard) for f in (one.original, one.trained)]
                lines.append(f"| {r.entry.name}, seed {e.seed}{suffix} | {' | '.join([*numbers, words])} |")
    return "\n".join(lines) + "\n"


def curves(results: Sequence[Result]) -> str:
    """The reward curves as SVG, a panel for each entry; a thin line for each seed, their mean thick."""
    rows: list[dict[str, Any]] = []
    for r in results:
        for group, kind in ((r.correct, "correct code"), (r.published, "published faults")):
            for e in group.experiments if group else ():
                title = f"{r.entry.name} ({r.entry.reward})"
                points = enumerate(e.curves[r.entry.reward], 1)
                rows += [{"entry": title, "kind": kind, "seed": e.seed, "round": n, "reward": x} for n, x in points]
    x = {"field": "round", "type": "quantitative", "title": "round"}
    y: dict[str, Any] = {"type": "quantitative", "title": "reward", "scale": {"zero": False}}
    colour = {"field": "kind", "type": "nominal", "title": None, "scale": {"range": ["#0072b2", "#e69f00"]}}
    thin = {"type": "line", "strokeWidth": 1, "opacity": 0.4}
    band = {"type": "errorband", "extent": "stdev", "opacity": 0.15}
    mean = y | {"field": "reward", "aggregate": "mean"}
    spec = {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "data": {"values": rows},
        "facet": {"field": "entry", "type": "nominal", "sort": None, "title": None},
        "columns": 4,
        "spec": {
            "width": 190,
            "height": 120,
            "encoding": {"x": x, "color": colour | {"legend": {"orient": "top"}}},
            "layer": [
                {"mark": thin, "encoding": {"y": y | {"field": "reward"}, "detail": {"field": "seed"}}},
                {"mark": band, "encoding": {"y": y | {"field": "reward"}}},
                {"mark": {"type": "line", "strokeWidth": 3}, "encoding": {"y": mean}},
            ],
        },
        "resolve": {"scale": {"y": "independent", "x": "independent"}},
        "config": {"background": "white"},
    }
    return vl_convert.vegalite_to_svg(spec)


def _numbers(group: Group | None) -> list[str]:
    if group is None:
        return ["0", "-", "-", "-", "-"]
    own = group.adapter
    judge = LISTENER if LISTENER in group.experiments[0].study.judges else "held_out"
    instrument = group.instrument()
    return [
        str(len(group.experiments)),
        f"{group.original(own).value:.2f} to {group.trained(own).value:.2f}",
        group.change(own).signed(),
        f"**{group.change(judge).signed()}**",
        "-" if instrument is None else f"{instrument[0].value:.2f} to {instrument[1].value:.2f}",
    ]


def main() -> None:
    """Writes both files."""
    model = sys.argv[1] if len(sys.argv) > 1 else "mini"
    suffix = "" if model == "mini" else f"-{model.replace('/', '-')}"
    results = [result(entry, model) for entry in entries()]
    there = [r for r in results if r.correct is not None]
    head = HEAD.format(
        budget=ON_MINI if model == "mini" else f"The model is {model}.", judge=LISTENS if model == "mini" else ""
    )
    picture = f"![Reward curves](curves{suffix}.svg)\n"
    text = [head, table(results), *([picture] if there else []), "## Each run\n", each_seed(there)]
    write_text(PROJECT / "paper" / f"results{suffix}.md", "\n".join(text))
    if there:
        write_text(PROJECT / "paper" / f"curves{suffix}.svg", curves(there))
    print(f"paper/results{suffix}.md: {len(there)} of {len(results)} entries have results")


if __name__ == "__main__":
    main()
