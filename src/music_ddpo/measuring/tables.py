"""What a study says: metrics, the tables in Markdown, the data of the plots, and the picture of the accuracies."""

from __future__ import annotations

from typing import Any

import pandas as pd
import vl_convert

from music_ddpo.core.prompts import QUADRANTS
from music_ddpo.measuring import summary
from music_ddpo.measuring.study import Study

REAL = "real recordings"
COLOURS = ("#9aa0a6", "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9")  # of the models, the original first


def metrics(study: Study) -> dict[str, Any]:
    """Every estimate, for metrics/accuracy.json."""
    result: dict[str, Any] = {}
    for judge, headline in study.judges.items():
        judged: dict[str, Any] = {}
        for adapter in (None, *study.trained):
            entry: dict[str, Any] = _entry(study, judge, adapter, None)
            closed = study.gap_closed(judge, adapter) if adapter is not None else None
            if closed is not None:
                entry |= closed.as_dict("gap_closed")
            for emotion in study.emotions:
                entry[emotion] = _entry(study, judge, adapter, emotion)
            judged[_name(adapter)] = entry
        real = study.real(judge)
        if real is not None:
            judged["real_recordings"] = {headline: round(real, 4)}
        result[f"judged_by_{judge}"] = judged
    return result


def _entry(study: Study, judge: str, adapter: str | None, emotion: str | None) -> dict[str, float | None]:
    estimate = study.estimate(judge, adapter, emotion)
    entry = estimate.as_dict(study.judges[judge]) | {"clips": estimate.clips}
    return entry if adapter is None else entry | study.gain(judge, adapter, emotion).as_dict("gain")


def markdown(study: Study) -> str:
    """The tables, with the explanations that a newcomer needs."""
    level = f"{study.settings.confidence:.0%}"
    count = len(study.original)
    each = count // len(study.emotions)
    adapters = list(study.trained)
    lines = [
        "# What training did",
        "",
        *summary.in_words(study),
        "",
        f"The untouched model (original) and each adapter generated {count} clips from the same noise, {each} for each",
        f"emotion. Brackets contain {level} confidence intervals: Wilson's of an accuracy, Tango's of its change, the",
        "bootstrap's otherwise. A change is significant if its interval excludes 0. [?] means: no",
        "interval, because all clips have the same value.",
    ]
    accuracies = [j for j, headline in study.judges.items() if headline == "accuracy"]
    for judge in sorted(accuracies, key=lambda j: j != summary.LISTENER):
        lines += [
            "",
            f"## Table 1: share of clips in which {_strong(judge, judge)} hears the emotion of the prompt",
            "",
        ]
        if judge == summary.LISTENER:
            lines += [*summary.WHAT_THE_LISTENER_IS, ""]
        lines += [
            _row(["emotion", "original", *(f"trained with {a}" for a in adapters), "real recordings", "clips"]),
            _row(["---"] * (len(adapters) + 4)),
        ]
        for emotion in (*study.emotions, None):
            cells = [study.estimate(judge, a, emotion) for a in (None, *adapters)]
            real = study.real(judge, emotion)
            ceiling = "" if real is None else f"{real:.2f}"
            verdicts = [_strong(judge, str(cell)) for cell in cells]
            lines.append(_row([emotion or "**all**", *verdicts, ceiling, str(cells[0].clips)]))
    if any(study.real(judge) is not None for judge in accuracies):
        lines += [
            "",
            "Real recordings: how often this judge is right on recordings that no model was trained with. It is the",
            "judge's ceiling. An accuracy above it means that the clips please the judge more than music does.",
        ]
    lines += [
        "",
        "## Table 2: did the adapter raise the reward that it was trained with?",
        "",
        _row(["trained with", "measured", "original", "trained", "change", "real recordings", "gap closed"]),
        _row(["---"] * 7),
    ]
    for a in adapters:
        for reward in study.rewards[a]:
            real, closed = study.real(reward), study.gap_closed(reward, a)
            measured = f"{reward} {study.judges[reward]}"
            row = [a, measured, str(study.estimate(reward, None)), str(study.estimate(reward, a))]
            row += [study.gain(reward, a).signed(), "" if real is None else f"{real:.2f}", str(closed or "")]
            lines.append(_row(row))
    lines += [
        "",
        "The gap is the difference between the untouched model and real recordings of the right emotion.",
        "",
        "## Transfer: each adapter judged by every judge (change against the untouched model)",
        "",
        _row(["trained with", *(_strong(j, f"{j} {headline}") for j, headline in study.judges.items())]),
        _row(["---"] * (len(study.judges) + 1)),
    ]
    lines += [_row([a, *(_strong(j, study.gain(j, a).signed()) for j in study.judges)]) for a in adapters]
    if "held_out" in study.judges:
        lines += [
            "",
            "`held_out` is the CLAP inside the generator. No adapter is trained with it. If it falls while a reward "
            "rises,",
            "the adapter exploits the reward instead of improving the music. In AudioLDM 2 it is a sister checkpoint",
            "of the `clap` reward, so there it is no independent judge of that.",
        ]
    if "preference" in study.judges:
        lines += [
            "",
            "`preference` predicts which of two clips people would prefer, whatever the prompt: a to b with",
            "probability sigmoid(score of a - score of b). It uses the audio embeddings of the `clap` reward. mini's",
            "was trained on simulated votes, not on people's.",
        ]
    return "\n".join(lines) + "\n"


def plots(study: Study) -> dict[str, pd.DataFrame]:
    """The data of the plots, by file name in plots/."""
    bars, transfer = [], []
    for adapter in (None, *study.trained):
        for judge, headline in study.judges.items():
            for emotion in (*study.emotions, None):
                e = study.estimate(judge, adapter, emotion)
                row = {
                    "model": _name(adapter).replace("_", " "),
                    "judge": f"{judge} {headline}",
                    "emotion": emotion or "all",
                }
                bars.append(row | {"value": round(e.value, 4), "low": round(e.low, 4), "high": round(e.high, 4)})
            if adapter is not None:
                gain = study.gain(judge, adapter)
                row = {"trained with": adapter, "judged by": f"{judge} {headline}"}
                transfer.append(row | {"change": round(gain.value, 4), "label": gain.signed()})
    for judge, headline in study.judges.items():
        for emotion in (*study.emotions, None):
            real = study.real(judge, emotion)
            if real is not None:
                row = {"model": REAL, "judge": f"{judge} {headline}", "emotion": emotion or "all"}
                bars.append(row | {"value": round(real, 4)})
    result = {"accuracy.csv": pd.DataFrame(bars), "transfer.csv": pd.DataFrame(transfer)}
    for adapter in (None, *study.trained):
        for judge in study.judges:
            confusion = study.confusion(judge, adapter)
            if confusion is not None:
                result[f"confusion/{_name(adapter)}-by-{judge}.csv"] = _in_order(confusion)
    if len(result) == 2:  # no judge predicts a quadrant; DVC needs the folder
        result["confusion/none.csv"] = pd.DataFrame(columns=["asked", "heard"])
    return result


def picture(accuracy: pd.DataFrame) -> str:
    """The bars of plots/accuracy.csv as SVG: of the judges that measure an accuracy, or of all if none does."""
    accuracies = accuracy["judge"].str.endswith(" accuracy")
    bars = accuracy[accuracies] if accuracies.any() else accuracy
    models = list(dict.fromkeys(bars["model"]))
    colours = {m: "#000000" if m == REAL else COLOURS[i % len(COLOURS)] for i, m in enumerate(models)}
    judges = sorted(dict.fromkeys(bars["judge"]), key=lambda judge: not judge.startswith(summary.LISTENER))
    x: dict[str, Any] = {"field": "emotion", "type": "nominal", "sort": None, "title": None, "axis": {"labelAngle": 0}}
    offset = {"field": "model", "type": "nominal", "sort": models}
    percent: dict[str, Any] = {"title": "score"}
    if accuracies.any():
        percent = {"title": "share of clips judged right", "scale": {"domain": [0, 1]}, "axis": {"format": "%"}}
    colour = {
        "field": "model",
        "type": "nominal",
        "sort": models,
        "title": None,
        "scale": {"domain": models, "range": list(colours.values())},
        "legend": {"orient": "top", "columnPadding": 24},
    }
    spec = {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "data": {"values": bars.astype(object).where(bars.notna(), None).to_dict("records")},
        "facet": {"row": {"field": "judge", "type": "nominal", "title": None, "sort": judges}},
        "spec": {
            "width": 560,
            "height": 200,
            "encoding": {"x": x, "xOffset": offset},
            "layer": [
                {
                    "mark": "bar",
                    "encoding": {"y": {"field": "value", "type": "quantitative"} | percent, "color": colour},
                },
                {
                    "mark": {"type": "rule", "size": 1.5},
                    "encoding": {"y": {"field": "low", "type": "quantitative"}, "y2": {"field": "high"}},
                },
            ],
        },
        "config": {"background": "white"},
    }
    return vl_convert.vegalite_to_svg(spec)


def _in_order(confusion: pd.DataFrame) -> pd.DataFrame:
    order = {q: i for i, q in enumerate((*QUADRANTS, "none"))}
    return confusion.sort_values(["asked", "heard"], key=lambda column: column.map(order), ignore_index=True)


def _name(adapter: str | None) -> str:
    return "original" if adapter is None else f"trained_with_{adapter}"


def _strong(judge: str, text: str) -> str:
    """The text, in bold if it is the listener's verdict."""
    return f"**{text}**" if judge == summary.LISTENER else text


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
