"""Experiments compared: grouped by what was changed, with the mean and an interval over their seeds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import vl_convert

from music_ddpo.measuring.experiments import Experiment
from music_ddpo.measuring.statistics import Estimate, over_runs
from music_ddpo.measuring.summary import LISTENER

ROUNDING = ("compute.device", "compute.processes", "compute.batch", "compute.decode_batch")
NOT_COMPARED = ("seed", "rewards", *ROUNDING, "weights", "auto", "evaluation.bootstrap", "evaluation.confidence")


@dataclass(frozen=True)
class Group:
    """The experiments with the same params except for the seed, and one of their adapters.

    Attributes
    ----------
    changed
        What distinguishes the group from the others, as `key=value, ...`.
    """

    changed: str
    adapter: str
    experiments: Sequence[Experiment]

    def change(self, judge: str, emotion: str | None = None) -> Estimate:
        """Trained minus original of a judge's headline number, over runs and clips."""
        return self._over_runs(judge, emotion, lambda before, after: after - before)

    def original(self, judge: str, emotion: str | None = None) -> Estimate:
        """The same of the untouched model."""
        return self._over_runs(judge, emotion, lambda before, after: before)

    def trained(self, judge: str, emotion: str | None = None) -> Estimate:
        """The same of the adapter."""
        return self._over_runs(judge, emotion, lambda before, after: after)

    @property
    def judges(self) -> list[str]:
        """Those that this adapter is judged by: its own rewards first, then those that took no part."""
        known = self.experiments[0].study.judges
        own = list(self.experiments[0].study.rewards[self.adapter])
        return [*own, *(judge for judge in (LISTENER, "held_out") if judge in known)]

    def instrument(self) -> tuple[Estimate, Estimate, Estimate] | None:
        """How often the listener hears the prompt's instrument: original, trained, change; None without a listener."""
        column, studies = f"{LISTENER}_instrument", [e.study for e in self.experiments]
        if not all(column in study.original for study in studies):
            return None
        runs = [tuple(s.table(model)[column].to_numpy(float) for model in (None, self.adapter)) for s in studies]
        original, trained = (self._estimate(runs, lambda *means, i=i: means[i]) for i in (0, 1))
        return original, trained, self._estimate(runs, lambda before, after: after - before)

    def _over_runs(self, judge: str, emotion: str | None, statistic: Any) -> Estimate:
        return self._estimate([e.study.paired(judge, self.adapter, emotion) for e in self.experiments], statistic)

    def _estimate(self, runs: Sequence[tuple[np.ndarray, ...]], statistic: Any) -> Estimate:
        settings = self.experiments[0].study.settings
        return over_runs(runs, statistic, settings.confidence, settings.bootstrap, seed=0)


def groups(experiments: Sequence[Experiment]) -> list[Group]:
    """One group for each adapter of each set of params, in the order of the experiments.

    Two experiments with the same params and the same seed are one result: only the first is used.
    """
    flat = [_flat(e.params) for e in experiments]
    differing = [key for key in dict.fromkeys(k for f in flat for k in f) if len({f.get(key) for f in flat}) > 1]
    found: dict[tuple[str, str], dict[int, Experiment]] = {}
    for experiment, values in zip(experiments, flat, strict=True):
        changed = ", ".join(f"{key}={json.loads(values[key])}" for key in differing if key in values)
        for adapter in experiment.study.trained:
            found.setdefault((changed or "the same params", adapter), {}).setdefault(experiment.seed, experiment)
    return [Group(changed, adapter, list(members.values())) for (changed, adapter), members in found.items()]


def table(compared: Sequence[Group]) -> str:
    """In Markdown: a row for each group and each judge of its adapter."""
    lines = [
        "| params | trained with | seeds | judged by | original | trained | change | each seed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for group in compared:
        rows = []
        for judge in group.judges:
            each = [e.study.paired(judge, group.adapter, None) for e in group.experiments]
            seeds = ", ".join(f"{after.mean() - before.mean():+.2f}" for before, after in each)
            name = f"{judge} {group.experiments[0].study.judges[judge]}"
            rows.append((name, group.original(judge), group.trained(judge), group.change(judge), seeds))
        if instrument := group.instrument():
            rows.append((f"{LISTENER}: instrument", *instrument, ""))
        first = [group.changed, group.adapter, str(len(group.experiments))]
        for name, original, trained, change, seeds in rows:
            cells = [*first, name, f"{original.value:.2f}", f"{trained.value:.2f}", change.signed(), seeds]
            lines.append(f"| {' | '.join(cells)} |")
            first = ["", "", ""]
    levels = sorted({g.experiments[0].study.settings.confidence for g in compared})
    lines += [
        "",
        f"Change: trained minus original, mean over the seeds; brackets have {' or '.join(f'{x:.0%}' for x in levels)} "
        "intervals over seeds and clips (seeds are resampled first, then the clips of each). With one seed they are "
        "over its clips only.",
    ]
    return "\n".join(lines) + "\n"


def picture(compared: Sequence[Group]) -> str:
    """As SVG: the change by each judge, with its interval, and a point for each seed."""
    rows: list[dict[str, Any]] = []
    for group in compared:
        name = f"{group.changed} ({group.adapter})"
        for judge in group.judges:
            change = group.change(judge)
            kind = "own reward" if judge in group.experiments[0].study.rewards[group.adapter] else "took no part"
            row = {"group": name, "judge": f"{judge} {group.experiments[0].study.judges[judge]}", "kind": kind}
            low, high = (None if np.isnan(x) else x for x in (change.low, change.high))
            rows.append(row | {"change": change.value, "low": low, "high": high})
            for e in group.experiments:
                before, after = e.study.paired(judge, group.adapter, None)
                rows.append(row | {"seed": float(after.mean() - before.mean())})
    y = {"field": "group", "type": "nominal", "sort": None, "title": None, "axis": {"labelLimit": 900}}
    x = {"type": "quantitative", "title": "trained minus original"}
    colour = {"field": "kind", "type": "nominal", "title": None, "scale": {"range": ["#0072b2", "#e69f00"]}}
    spec = {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "data": {"values": rows},
        "facet": {"column": {"field": "judge", "type": "nominal", "title": None, "sort": None}},
        "spec": {
            "width": 220,
            "encoding": {"y": y, "color": colour},
            "layer": [
                {
                    "mark": {"type": "rule", "color": "#9aa0a6"},
                    "encoding": {"x": {"datum": 0}, "y": None, "color": None},
                },
                {"mark": {"type": "rule", "size": 2}, "encoding": {"x": x | {"field": "low"}, "x2": {"field": "high"}}},
                {"mark": {"type": "point", "filled": True, "size": 90}, "encoding": {"x": x | {"field": "change"}}},
                {"mark": {"type": "tick", "thickness": 2, "size": 12}, "encoding": {"x": x | {"field": "seed"}}},
            ],
        },
        "config": {"background": "white"},
    }
    return vl_convert.vegalite_to_svg(spec)


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Each value as JSON, by dotted key, without what does not distinguish results."""
    flat: dict[str, str] = {}
    for key, value in content.items():
        name = prefix + key
        if name in NOT_COMPARED:
            continue
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: json.dumps(value)}
    return flat
