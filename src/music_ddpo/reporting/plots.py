"""The plots of the page: those that stage `table` has drawn, and reward curves, confusion and transfer, as SVG."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import vl_convert

from music_ddpo.core.files import content_of, read_text
from music_ddpo.core.prompts import QUADRANTS
from music_ddpo.measuring.study import Study
from music_ddpo.reporting.players import word_of

SCHEMA = "https://vega.github.io/schema/vega-lite/v5.json"
# of Okabe and Ito, for the colour-blind; the mean over all clips is black
COLOURS = ("#000000", "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442")
DASHES = ([1, 0], [6, 2], [2, 2], [8, 2, 2, 2], [4, 4], [1, 3], [10, 3], [3, 1])


@dataclass(frozen=True)
class Plot:
    """A picture with the numbers behind it."""

    title: str
    text: str
    svg: str
    numbers: pd.DataFrame

    @property
    def file(self) -> str:
        """Its path beside the page."""
        return f"plots/{self.title.lower().replace(' ', '-')}.svg"


def all_plots(folder: Path, study: Study) -> list[Plot]:
    """The plots of a study, the accuracies first.

    Parameters
    ----------
    folder
        What the stages before have written to plots/.

    Raises
    ------
    UserError
        If a file is missing or damaged.
    """
    files = ["accuracy.csv", "transfer.csv", "features.csv", *(f"train/{adapter}.csv" for adapter in study.trained)]
    with content_of(*(folder / name for name in files)):
        accuracy, changes, features, *trainings = (pd.read_csv(folder / name) for name in files)
        curves = dict(zip(study.trained, trainings, strict=True))
        found = [
            Plot(
                "Accuracy",
                "How often each judge hears the emotion of the prompt, before and after training, with intervals. "
                "How often it is right on real recordings is its ceiling.",
                read_text(folder / "accuracy.svg"),
                accuracy,
            ),
            Plot(
                "Reward curves",
                "The mean reward of each round, with one standard deviation over all clips, and that of each emotion.",
                reward_curves(curves),
                pd.concat([curve.assign(adapter=adapter) for adapter, curve in curves.items()]),
            ),
            Plot(
                "Transfer",
                "Each adapter judged by every judge: the change against the untouched model, with its interval. The "
                "colours are relative to the largest change.",
                transfer(changes),
                changes,
            ),
            Plot(
                "Features and diversity",
                "What changed in the music, measured without a network. Diversity is the distance between the clips of "
                "a prompt.",
                read_text(folder / "features.svg"),
                features,
            ),
        ]
    heard = {
        (judge, f"trained with {adapter}" if adapter else "original"): table
        for judge in study.judges
        for adapter in (None, *study.trained)
        if (table := study.confusion(judge, adapter)) is not None
    }
    if heard:
        counts = confusion_counts(heard, {quadrant: word_of(quadrant, study.emotions) for quadrant in QUADRANTS})
        text = (
            "Numbers of clips, by the quadrant of the prompt's emotion and the quadrant that the judge hears. A "
            "quadrant is named by an emotion in it."
        )
        found.insert(2, Plot("Confusion", text, confusion(counts), counts))
    return found


def reward_curves(curves: Mapping[str, pd.DataFrame]) -> str:
    """A panel for each adapter, from the tables plots/train/<reward>.csv: all clips, and each emotion."""
    rows = pd.concat([curve.assign(adapter=f"trained with {adapter}") for adapter, curve in curves.items()])
    series = list(dict.fromkeys(rows["series"]))
    y: dict[str, Any] = {"type": "quantitative", "title": "mean reward of a round", "scale": {"zero": False}}
    domain = {"domain": series, "range": [COLOURS[i % len(COLOURS)] for i in range(len(series))]}
    dashes = {"domain": series, "range": [DASHES[i % len(DASHES)] for i in range(len(series))]}
    legend = {"title": None, "orient": "top", "columnPadding": 24}
    of = {"field": "series", "type": "nominal", "sort": None}
    return _svg(
        rows,
        {
            "facet": {"field": "adapter", "type": "nominal", "sort": None, "title": None},
            "columns": 2,
            "spec": {
                "width": 340,
                "height": 200,
                "encoding": {"x": {"field": "round", "type": "quantitative", "axis": {"tickMinStep": 1}}},
                "layer": [
                    {
                        "transform": [{"filter": "datum.low != null"}],
                        "mark": {"type": "area", "opacity": 0.12, "color": "#000000"},
                        "encoding": {"y": y | {"field": "low"}, "y2": {"field": "high"}},
                    },
                    {
                        "mark": {"type": "line", "strokeWidth": 2},
                        "encoding": {
                            "y": y | {"field": "reward"},
                            "color": of | {"scale": domain, "legend": legend},
                            "strokeDash": of | {"scale": dashes, "legend": legend},
                        },
                    },
                ],
            },
            "resolve": {"scale": {"y": "independent"}},
        },
    )


def confusion_counts(tables: Mapping[tuple[str, str], pd.DataFrame], words: Mapping[str, str]) -> pd.DataFrame:
    """Clips by judge, model, emotion of the prompt and emotion heard.

    Parameters
    ----------
    tables
        Those of `Study.confusion`, by judge and model.
    words
        The word for each quadrant.
    """
    order = {quadrant: i for i, quadrant in enumerate((*QUADRANTS, "none"))}
    parts = []
    for (judge, model), table in tables.items():
        counts = table.value_counts(["asked", "heard"]).rename("clips").reset_index()
        counts = counts.sort_values(["asked", "heard"], key=lambda column: column.map(order))
        parts.append(counts.assign(judge=judge, model=model))
    found = pd.concat(parts, ignore_index=True)
    for column in ("asked", "heard"):
        found[column] = found[column].map(lambda quadrant: words.get(quadrant, quadrant))
    return found[["judge", "model", "asked", "heard", "clips"]]


def confusion(counts: pd.DataFrame) -> str:
    """A grid of the counts of `confusion_counts`: a row for each judge, a column for each model."""
    heard, judges, models = (
        list(dict.fromkeys(x)) for x in ([*counts["asked"], *counts["heard"]], counts["judge"], counts["model"])
    )
    x = {"field": "heard", "type": "nominal", "sort": heard, "title": "heard", "axis": {"labelAngle": 0}}
    y = {"field": "asked", "type": "nominal", "sort": heard, "title": "asked for"}
    most = int(counts["clips"].max())
    colour = {"field": "clips", "type": "quantitative", "scale": {"scheme": "greys", "domain": [0, most]}}
    return _svg(
        counts,
        {
            "facet": {
                "row": {"field": "judge", "type": "nominal", "sort": judges, "title": "judged by"},
                "column": {"field": "model", "type": "nominal", "sort": models, "title": None},
            },
            "spec": {
                "width": 190,
                "height": 130,
                "encoding": {"x": x, "y": y},
                "layer": [
                    {"mark": "rect", "encoding": {"color": colour | {"legend": None}}},
                    {
                        "mark": "text",
                        "encoding": {
                            "text": {"field": "clips"},
                            "color": {
                                "condition": {"test": f"datum.clips > {most / 2}", "value": "white"},
                                "value": "black",
                            },
                        },
                    },
                ],
            },
        },
    )


def transfer(changes: pd.DataFrame) -> str:
    """The table plots/transfer.csv: each adapter judged by every judge, as points with the number beside them."""
    judges = list(dict.fromkeys(changes["judged by"]))
    most = float(changes["change"].abs().max()) or 1.0
    colour = {
        "field": "change", "type": "quantitative", "legend": None,
        "scale": {"domain": [-most, 0, most], "range": ["#e69f00", "#ffffff", "#56b4e9"]},
    }  # fmt: skip
    return _svg(
        changes,
        {
            "width": 150 * len(judges),
            "height": 60 * changes["trained with"].nunique(),
            "encoding": {
                "x": {
                    "field": "judged by",
                    "type": "nominal",
                    "sort": None,
                    "axis": {"labelAngle": 0, "orient": "top"},
                },
                "y": {"field": "trained with", "type": "nominal", "sort": None},
            },
            "layer": [
                {"mark": {"type": "rect", "stroke": "#767676"}, "encoding": {"color": colour}},
                {"mark": {"type": "text", "fontSize": 12}, "encoding": {"text": {"field": "label"}}},
            ],
        },
    )


def _svg(rows: pd.DataFrame, spec: dict[str, Any]) -> str:
    values = rows.astype(object).where(rows.notna(), None).to_dict("records")
    config = {"background": "white", "axis": {"labelFontSize": 11}, "header": {"labelFontSize": 12}}
    return vl_convert.vegalite_to_svg({"$schema": SCHEMA, "data": {"values": values}, "config": config} | spec)
