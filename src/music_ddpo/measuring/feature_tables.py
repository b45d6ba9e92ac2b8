"""What a study says of the music: the tables of features and diversity, their numbers, and their plot."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import vl_convert

from music_ddpo.measuring.diversity import DISTANCES
from music_ddpo.measuring.feature_study import FeatureStudy
from music_ddpo.measuring.features import FEATURES
from music_ddpo.measuring.statistics import Estimate

REAL = "real recordings"


def metrics(study: FeatureStudy) -> dict[str, Any]:
    """Every estimate, for metrics/features.json: {feature: {model: {emotion: numbers}}}; NaN is None."""
    result: dict[str, Any] = {}
    for feature in (*FEATURES, *DISTANCES):
        models: dict[str, Any] = {}
        for adapter in (None, *study.trained):
            entry: dict[str, Any] = {"undefined_clips": study.undefined(feature, adapter)}
            for emotion in study.emotions:
                estimate = study.estimate(feature, adapter, emotion)
                entry[emotion] = _numbers(estimate, "value") | {"clips": estimate.clips}
                if adapter is not None:
                    entry[emotion] |= _numbers(study.change(feature, adapter, emotion), "change")
            models["original" if adapter is None else f"trained_with_{adapter}"] = entry
        real = {emotion: study.real(feature, emotion) for emotion in study.emotions}
        known = {emotion: {"value": round(value, 4)} for emotion, value in real.items() if value is not None}
        result[feature] = models | ({"real_recordings": known} if known else {})
    return result


def _numbers(estimate: Estimate, name: str) -> dict[str, float | None]:
    numbers = {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    return {key: None if math.isnan(x) else round(x, 4) for key, x in numbers.items()}


def markdown(study: FeatureStudy) -> str:
    """The tables, to follow those of the scores."""
    level = f"{study.settings.confidence:.0%}"
    lines = [
        "",
        "## What changed in the music",
        "",
        "Means over the clips (docs/features.md). No network measures them, and no adapter is trained with them. A",
        f"change against the original is shown, with its {level} interval, if it is significant. With so many",
        "comparisons a few seem significant by chance.",
        "",
        *_table(study, FEATURES, [REAL]),
    ]
    gaps = [
        f"{kind.title} {study.undefined(feature, adapter)} ({adapter or 'original'})"
        for feature, kind in FEATURES.items()
        for adapter in (None, *study.trained)
        if study.undefined(feature, adapter)
    ]
    if gaps:
        lines += ["", f"Clips without a feature, which are left out: {', '.join(gaps)}."]
    lines += [
        "",
        "## Diversity: how far apart the clips of one prompt are",
        "",
        "Means over all pairs of clips of one prompt, with the jackknife's intervals: 1 - cosine similarity of the",
        "audio embeddings of the CLAP inside the generator, and the mean absolute difference of log-mels in dB. If",
        "they fall, the clips have become more alike.",
        "",
        *_table(study, DISTANCES, []),
    ]
    return "\n".join(lines) + "\n"


def _table(study: FeatureStudy, kinds: dict, before: list[str]) -> list[str]:
    head = ["", "emotion", *before, "original", *(f"trained with {a}" for a in study.trained)]
    lines = [_row(head), _row(["---"] * len(head))]
    for feature, kind in kinds.items():
        name = kind.title.removeprefix("diversity: ")
        for emotion in study.emotions:
            cells = [_text(study.real(feature, emotion), kind.decimals)] if before else []
            cells.append(_text(study.estimate(feature, None, emotion).value, kind.decimals))
            for adapter in study.trained:
                after = _text(study.estimate(feature, adapter, emotion).value, kind.decimals)
                cells.append(after + _significant(study.change(feature, adapter, emotion), kind.decimals))
            lines.append(_row([name, emotion, *cells]))
            name = ""
    return lines


def _text(value: float | None, decimals: int) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.{decimals}f}"


def _significant(change: Estimate, decimals: int) -> str:
    """A change with its interval, if that excludes 0."""
    if not (change.low > 0 or change.high < 0):  # so of NaN too
        return ""
    value, low, high = (f"{x:+.{decimals}f}" for x in (change.value, change.low, change.high))
    return f" (**{value}** [{low}, {high}])"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def plot(study: FeatureStudy) -> pd.DataFrame:
    """The data of the plot: one row for each feature, emotion and model, and for the real recordings."""
    rows: list[dict[str, object]] = []
    for feature, kind in (FEATURES | DISTANCES).items():
        for emotion in study.emotions:
            of: dict[str, object] = {"feature": kind.title, "emotion": emotion}
            real = study.real(feature, emotion)
            if real is not None:
                rows.append({**of, "model": REAL, "value": round(real, 4)})
            for adapter in (None, *study.trained):
                model = "original" if adapter is None else f"trained with {adapter}"
                e = study.estimate(feature, adapter, emotion)
                interval = {"low": round(e.low, 4), "high": round(e.high, 4)}
                rows.append({**of, "model": model, "value": round(e.value, 4), **interval})
    return pd.DataFrame(rows, columns=["feature", "emotion", "model", "value", "low", "high"])


def picture(data: pd.DataFrame) -> str:
    """The data of `plot` as SVG: a panel for each feature, points with intervals, a line for the real recordings."""
    models = [model for model in dict.fromkeys(data["model"]) if model != REAL]
    known = data[data["value"].notna()]
    y = {"type": "quantitative", "title": None, "scale": {"zero": False}}
    colour = {
        "field": "model",
        "type": "nominal",
        "sort": None,
        "title": None,
        "scale": {
            "domain": [REAL, *models],
            "range": ["#000000", "#9aa0a6", "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9"],
        },
        "legend": {"orient": "top", "columnPadding": 24},
    }
    offset = {"xOffset": {"field": "model", "type": "nominal", "sort": models}}
    spec = {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "data": {"values": known.astype(object).where(known.notna(), None).to_dict("records")},
        "facet": {"field": "feature", "type": "nominal", "sort": list(dict.fromkeys(data["feature"])), "title": None},
        "columns": 3,
        "spec": {
            "width": 260,
            "height": 140,
            "encoding": {
                "x": {"field": "emotion", "type": "nominal", "sort": None, "title": None, "axis": {"labelAngle": 0}},
                "y": {"field": "value"} | y,
                "color": colour,
            },
            "layer": [
                {
                    "transform": [{"filter": {"field": "model", "equal": REAL}}],
                    "mark": {"type": "tick", "thickness": 2, "size": 50},
                },
                {
                    "transform": [{"filter": {"field": "model", "oneOf": models}}],
                    "mark": {"type": "point", "filled": True, "size": 45, "opacity": 1},
                    "encoding": offset,
                },
                {
                    "transform": [{"filter": "datum.low != null"}],
                    "mark": {"type": "rule", "size": 1.5},
                    "encoding": offset | {"y": {"field": "low"} | y, "y2": {"field": "high"}},
                },
            ],
        },
        "resolve": {"scale": {"y": "independent"}},
        "config": {"background": "white"},
    }
    return vl_convert.vegalite_to_svg(spec)
