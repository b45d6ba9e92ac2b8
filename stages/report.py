"""Writes the page of the study: its answer, its clips to listen to, its plots and tables."""

import warnings
from pathlib import Path

import click

import beside  # noqa: F401
from music_ddpo.blindtest import analysis
from music_ddpo.blindtest.pairs import on_these_clips
from music_ddpo.blindtest.votes import read
from music_ddpo.core.files import read_json, read_text, whole
from music_ddpo.core.params import Params
from music_ddpo.machine.stage import stage
from music_ddpo.measuring.results import read_music, read_study
from music_ddpo.reporting import page, players
from music_ddpo.reporting.plots import all_plots


@stage
def report(params: Params) -> None:
    """Writes report/index.html and all that it needs."""
    study = read_study(params)
    music = read_music(study)
    weights = read_json("metrics/weights.json", dict[str, str], ["model", "revision", "license"])
    pictures = all_plots(Path("plots"), study)
    levels = {name: list(table["loudness"]) for name, table in {"original": music.original, **music.trained}.items()}
    ballots = {path: read(path) for path in sorted(Path("votes").glob("*.jsonl"))}
    for path, ballot in ballots.items():
        if not on_these_clips(ballot.plan, params):
            warnings.warn(
                f"{path}: has votes on other clips than those of this study; they are left out.", stacklevel=1
            )
    votes = [analysis.markdown(b) for b in ballots.values() if on_these_clips(b.plan, params)]
    about = weights | {
        "seed": study.seed,
        "params": read_text("params.yaml"),
        "costs": page.costs(Path("metrics/cost")),
    }
    with whole("report") as folder:
        folder.mkdir()
        cards = players.write(folder, params, study, levels)
        page.write(folder, study, cards, pictures, read_text("metrics/table.md"), votes, about)
    click.echo("report/index.html is there; open it in a browser.")


if __name__ == "__main__":
    report()
