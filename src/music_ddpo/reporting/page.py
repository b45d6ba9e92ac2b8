"""The page: index.html with all it needs beside it. It works from the file system and from any static host."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt

from music_ddpo.core.files import read_json, write_text
from music_ddpo.measuring.study import Study
from music_ddpo.measuring.summary import LISTENER
from music_ddpo.reporting.players import TARGET, Card, judge_that_counts
from music_ddpo.reporting.plots import Plot

ASSETS = ("page.css", "page.js")
PACKAGES = ("torch", "diffusers", "transformers", "peft", "laion-clap", "dvc")


def answer(study: Study) -> list[str]:
    """What training did: a sentence for each adapter, and one on the instrument if the judge that counts hears it."""
    judge = judge_that_counts(study)
    accuracy = study.judges[judge] == "accuracy"
    told = []
    for adapter in study.trained:
        before, after, gain = study.estimate(judge, None), study.estimate(judge, adapter), study.gain(judge, adapter)
        if accuracy:
            what = f"{called(judge)} hears the emotion of the prompt in {after.value:.0%} of the clips"
            told.append(f"Trained with {adapter}, {what}, untrained in {before.value:.0%} (change: {gain.signed()}).")
        else:
            what = f"the mean {judge} {study.judges[judge]} of the clips is {after.value:.2f}"
            told.append(f"Trained with {adapter}, {what}, untrained {before.value:.2f} (change: {gain.signed()}).")
    original = study.instrument(judge, None)
    if original is not None:
        trained = {adapter: study.instrument(judge, adapter) for adapter in study.trained}
        shares = ", ".join(f"{share.value:.0%} with {adapter}" for adapter, share in trained.items() if share)
        told.append(f"It hears the instrument of the prompt in {shares}, and untrained in {original.value:.0%}.")
    return told


def called(judge: str) -> str:
    """How a sentence names a judge."""
    return "the listener" if judge == LISTENER else f"the judge {judge}"


def write(
    folder: Path, study: Study, cards: Sequence[Card], plots: Sequence[Plot], tables: str, votes: Sequence[str],
    about: Mapping[str, Any],
) -> None:  # fmt: skip
    """Writes the page and its plots to `folder`, in which the clips are already.

    Parameters
    ----------
    tables, votes
        In Markdown; `votes` of each listening test.
    about
        "params", the text of params.yaml; "seed"; "model", with its revision and licence; "costs", seconds and memory
        of each stage.
    """
    for plot in plots:
        write_text(folder / plot.file, plot.svg)
    for name in ASSETS:
        shutil.copyfile(Path(__file__).with_name(name), folder / name)
    environment = Environment(
        loader=PackageLoader("music_ddpo.reporting", "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    counts = judge_that_counts(study)
    first, *others = plots
    text = environment.get_template("page.html").render(
        answer=answer(study),
        first=first,
        plots=others,
        cards=cards,
        models={"original": "original"} | {adapter: f"trained with {adapter}" for adapter in study.trained},
        adapters=list(study.trained),
        emotions=study.emotions,
        instruments=list(dict.fromkeys(study.original["instrument"])),
        judges=study.judges,
        counts=counts,
        called=called(counts),
        has_listener=LISTENER in study.judges,
        target=TARGET,
        tables=as_html(re.sub(r"^# .*\n", "", tables)),
        votes=[as_html(text) for text in votes],
        versions={name: version(name) for name in PACKAGES},
        about=about,
    )
    write_text(folder / "index.html", text)


def as_html(markdown: str) -> str:
    """Markdown with tables as HTML, its headings two levels lower at most: # is h3, ## is h3 or h4."""
    lower = re.sub(r"^## ", "#### " if markdown.startswith("# ") else "### ", markdown, flags=re.MULTILINE)
    return MarkdownIt("commonmark", {"html": False}).enable("table").render(re.sub(r"^# ", "### ", lower))


def costs(folder: Path) -> pd.DataFrame:
    """Seconds and memory of each stage, from metrics/cost; but of the page itself, which is not written yet."""
    rows = [{"stage": path.stem} | read_json(path) for path in sorted(folder.glob("*.json")) if path.stem != "report"]
    return pd.DataFrame(rows).rename(columns={"peak_memory_gb": "peak memory (GB)", "peak_gpu_memory_gb": "GPU (GB)"})
