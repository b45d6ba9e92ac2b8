"""Writes paper/results.md and paper/curves.svg from what paper/runs/ has: python paper/results.py [MODEL]."""

from __future__ import annotations

import math
import re
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

import faults
import numpy as np
import vl_convert
from catalogue import MINI, PROJECT, Entry, entries
from records import read
from scipy import stats
from verdicts import ENOUGH, Result, group_of, result

from music_ddpo.core.errors import UserError
from music_ddpo.core.files import write_text
from music_ddpo.measuring.comparison import Group
from music_ddpo.measuring.experiments import Experiment
from music_ddpo.measuring.statistics import Estimate
from music_ddpo.measuring.summary import LISTENER

CONFIDENCE = 0.95
CORRECT, PUBLISHED = "correct code", "published faults"
COLUMNS = 4  # panels in a row
HEAD = """# The paper's experiments, run again

Written by `python paper/results.py` from `paper/runs/`; `make paper` runs what is missing, `python paper/faults.py` the
rows with faults. The model is {model}. {there} of {all} entries have results.

Entries that are in the paper have this project's defaults with the paper's emotion classifier, and none of the faults
of its published code (preset `paper` of `paper/catalogue.yaml`). On mini the defaults have a KL penalty and train the
first half of the steps; the paper's method has neither (rows of section 4).
{budget}

A change is trained minus original; brackets have 95% intervals over seeds and clips (seeds are resampled first, then
the clips of each; with Student's t for few seeds). A training **succeeds** if the interval of the change is above 0. It
**fails** if the interval contains 0 or less and excludes the smallest gain that the paper calls a success (0.10 of
accuracy, 0.03 of similarity). Otherwise it is undecided. No verdict is given for fewer than three seeds.
{judge}
"""
BUDGET = """On mini every entry but one has mini's learning rate ({rate:g}) and clip range ({clip:g}), chosen on the
default study, and the same budget of {trajectories} trajectories in {updates} updates. `published-clap` has the
published values (3e-4 and 1e-4), with 1,024 trajectories and as many updates."""
LISTENS = """`listener` took no part in any training and stands for people ([docs/mini.md](../docs/mini.md))."""


def table(results: Sequence[Result]) -> str:
    """A row for each entry."""
    lines = [
        "| where | tests | the paper | reward | seeds | number | original to trained | change | seeds that rose "
        "| listener | instrument | verdict |",
        "|---" * 12 + "|",
    ]
    for r in results:
        cells = [r.entry.where, r.entry.tests, r.entry.paper, r.entry.reward]
        lines.append(f"| {' | '.join([*cells, *_numbers(r.correct, r.entry), r.verdict])} |")
        if r.published is not None:
            cells = ["", "the same with all published faults", "", r.entry.reward]
            lines.append(f"| {' | '.join([*cells, *_numbers(r.published, r.entry), ''])} |")
    return "\n".join(lines) + "\n"


def _numbers(group: Group | None, entry: Entry) -> list[str]:
    if group is None:
        return ["0", *["-"] * 6]
    judge, emotion = entry.judge, entry.emotion
    pairs = [e.study.paired(judge, group.adapter, emotion) for e in group.experiments]
    rose = sum(after.mean() > before.mean() for before, after in pairs)
    kind = group.experiments[0].study.judges[judge]
    instrument = group.instrument()
    return [
        str(len(group.experiments)),
        f"{judge} {kind}" + (f", {emotion}" if emotion else ""),
        f"{group.original(judge, emotion).value:.2f} to {group.trained(judge, emotion).value:.2f}",
        group.change(judge, emotion).signed(),
        f"{rose} of {len(pairs)}",
        _heard(group, emotion),
        "-" if instrument is None else f"{instrument[0].value:.2f} to {instrument[1].value:.2f}",
    ]


def _heard(group: Group, emotion: str | None = None) -> str:
    judge = LISTENER if LISTENER in group.experiments[0].study.judges else "held_out"
    change: Estimate = group.change(judge, emotion)
    return f"**{change.signed()}**" + (" (hears less)" if change.high < 0 else "")


def each_seed(results: Sequence[Result]) -> str:
    """A row for each run."""
    lines = ["| run | own number | listener | each emotion, by the reward or else the listener |", "|---|---|---|---|"]
    for r in results:
        if r.entry.shares != r.entry.name:
            continue
        for group, suffix in ((r.correct, ""), (r.published, ", published faults")):
            for e in group.experiments if group else ():
                one = Group(r.entry.name, r.entry.reward, [e])
                own, heard = r.entry.reward, LISTENER if LISTENER in e.study.judges else "held_out"
                judge = own if e.study.judges[own] == "accuracy" else heard
                words = ", ".join(f"{word} {_moved(one, judge, word)}" for word in e.study.emotions)
                cells = [f"{r.entry.name}, seed {e.seed}{suffix}", _moved(one, own), _moved(one, heard), words]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _moved(group: Group, judge: str, emotion: str | None = None) -> str:
    return f"{group.original(judge, emotion).value:.2f} to {group.trained(judge, emotion).value:.2f}"


def fault_table() -> str:
    """A row for each setting and each choice of faults that has been run."""
    lines = [
        "| setting | faults | seeds | own number | change | seeds that rose | listener | against none | instrument |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    known = faults.jobs_of_settings()
    for setting, (reward, _, choices) in faults.SETTINGS.items():
        entry = next(e for e in entries() if e.reward == reward and e.judge == reward and e.emotion is None)
        without: Group | None = None
        for choice in choices:
            if choice == faults.NONE and setting in faults.SHARED:
                group = result(entries(faults.SHARED[setting])[0]).correct
            else:
                jobs = [job for job in known if job.setting in _names(setting, choice)]
                group = group_of(setting, reward, [read(job.record) for job in jobs if faults.kept(job)])
            without = group if choice == faults.NONE else without
            if group is not None:
                less = "-" if without in (None, group) else difference(without, group)
                seeds, _, moved, change, rose, heard, instrument = _numbers(group, entry)
                cells = [setting, choice, seeds, moved, change, rose, heard, less, instrument]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def difference(without: Group | None, group: Group) -> str:
    """The listener's change with a fault less that without, paired by seed: its mean and 95% interval (Student's t)."""
    assert without is not None
    right, faulty = ({e.seed: _gain(e, g.adapter) for e in g.experiments} for g in (without, group))
    apart = np.array([faulty[seed] - right[seed] for seed in faulty if seed in right])
    if len(apart) < ENOUGH:
        return "-"
    half = stats.t.isf((1 - CONFIDENCE) / 2, len(apart) - 1) * apart.std(ddof=1) / math.sqrt(len(apart))
    return Estimate(apart.mean(), apart.mean() - half, apart.mean() + half, len(apart)).signed()


def _gain(experiment: Experiment, adapter: str) -> float:
    before, after = experiment.study.paired(LISTENER, adapter, None)
    return float(after.mean() - before.mean())


def _names(setting: str, choice: str) -> set[str]:
    return {faults.name_of(setting, choice, seed) for seed in faults.SEEDS}


def curves(results: Sequence[Result]) -> str:
    """The reward curves as SVG, a row for each figure of the paper and one or two for the other groups of entries.

    A thin line is a seed; the thick one their mean, with a band of one standard deviation.
    """
    rows: dict[str, dict[str, Result]] = {}
    for r in results:
        if r.entry.shares in (r.entry.name, "5-random-seeds"):  # those that only judge by another number have no own
            for row, panel in panels(r.entry):
                rows.setdefault(row, {})[panel] = r
    lines = []
    for found in rows.values():  # in the order of the catalogue, which is that of the paper
        drawn = [_panel(panel, found[panel]) for panel in sorted(found)]
        lines += [{"hconcat": drawn[i : i + COLUMNS]} for i in range(0, len(drawn), COLUMNS)]
    spec = {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "vconcat": lines,
        "config": {
            "background": "white",
            "legend": {"orient": "top"},
            "title": {"anchor": "start", "fontSize": 11, "subtitleFontSize": 10},
        },
    }
    return vl_convert.vegalite_to_svg(spec)


def panels(entry: Entry) -> list[tuple[str, str]]:
    """Where its curves are drawn: for each place the row, and the title of the panel."""
    group = entry.name.split("-")[0]
    found = re.findall(r"\b(\d) ([a-d])\b", entry.where) if group.isdigit() else []
    letters: dict[str, list[str]] = {}
    for figure, letter in found:
        letters.setdefault(figure, []).append(letter)
    return [(figure, f"{figure} {', '.join(own)}") for figure, own in letters.items()] or [(group, entry.name)]


def _panel(title: str, r: Result) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for group, kind in ((r.correct, CORRECT), (r.published, PUBLISHED)):
        for e in group.experiments if group else ():
            points = enumerate(e.curves[r.entry.reward], 1)
            rows += [{"kind": kind, "seed": e.seed, "round": n, "reward": x} for n, x in points]
    reported = {True: "trains", False: "fails", None: r.entry.paper}[r.entry.trains]
    y: dict[str, Any] = {"type": "quantitative", "title": f"{r.entry.reward} reward", "scale": {"zero": False}}
    mean = y | {"field": "reward", "aggregate": "mean"}
    colour = {"scale": {"domain": [CORRECT, PUBLISHED], "range": ["#0072b2", "#e69f00"]}, "title": None}
    return {
        "width": 190,
        "height": 110,
        "title": {
            "text": textwrap.wrap(f"{title}: {r.entry.tests}", 36),
            "subtitle": [*textwrap.wrap(f"the paper: {reported}", 40), *textwrap.wrap(f"here: {r.verdict}", 40)],
        },
        "data": {"values": rows},
        "encoding": {
            "x": {"field": "round", "type": "quantitative", "title": "round"},
            "color": {"field": "kind", "type": "nominal", **colour},
        },
        "layer": [
            {
                "mark": {"type": "line", "strokeWidth": 1, "opacity": 0.4},
                "encoding": {"y": y | {"field": "reward"}, "detail": {"field": "seed"}},
            },
            {
                "mark": {"type": "errorband", "extent": "stdev", "opacity": 0.15},
                "encoding": {"y": y | {"field": "reward"}},
            },
            {"mark": {"type": "line", "strokeWidth": 3}, "encoding": {"y": mean}},
        ],
    }


def main() -> None:
    """Writes both files."""
    model = sys.argv[1] if len(sys.argv) > 1 else MINI
    suffix = "" if model == MINI else f"-{model.replace('/', '-')}"
    results = [result(entry, model) for entry in entries()]
    there = [r for r in results if r.correct is not None]
    d = entries("6-piano")[0].run(777).params.ddpo
    budget = BUDGET.format(
        rate=d.learning_rate, clip=d.clip_range, trajectories=d.rounds * d.trajectories_per_round,
        updates=d.rounds * d.updates_per_round,
    )  # fmt: skip
    on_mini = model == MINI
    numbers = {"there": len(there), "all": len(results)}
    head = HEAD.format(model=model, **numbers, budget=budget if on_mini else "", judge=LISTENS if on_mini else "")
    text = [head, table(results)]
    if there:
        write_text(PROJECT / "paper" / f"curves{suffix}.svg", curves(results))
        text += [f"![Reward curves](curves{suffix}.svg)\n", "## Each run\n", each_seed(there)]
    if on_mini:
        text += [
            "## The faults of the published code, one by one\n",
            "See `paper/published.py`. *Against none*: the listener's change minus its change without the fault, in\n"
            "pairs of the same seed, with Student's t.\n",
            fault_table(),
        ]
    write_text(PROJECT / "paper" / f"results{suffix}.md", "\n".join(text))
    print(f"paper/results{suffix}.md: {len(there)} of {len(results)} entries have results")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"Error: {error}")
