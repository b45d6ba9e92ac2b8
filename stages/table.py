"""Puts the scores together: accuracy per emotion, original against trained, transfer between rewards."""

from pathlib import Path

import click
import pandas as pd

import beside  # noqa: F401
from music_ddpo.core.files import existing, read_json, read_seed, write_json, write_text
from music_ddpo.core.params import Params
from music_ddpo.machine.stage import stage
from music_ddpo.measuring import leftovers, tables
from music_ddpo.measuring.study import Study


@stage
def table(params: Params) -> None:
    """Writes metrics/accuracy.json, metrics/table.md, and the plots."""
    for reward, folder in leftovers.put_away(Path(), params.rewards).items():
        click.echo(f"{reward} is no longer in `rewards`: its adapter, clips and metrics are now in {folder}/.")
    study = Study(
        original=pd.read_csv(existing("metrics/clips/baseline.csv")),
        trained={reward: pd.read_csv(existing(f"metrics/clips/{reward}.csv")) for reward in params.rewards},
        rewards={reward: list(params.mixtures.get(reward, [reward])) for reward in params.rewards},
        reference=read_json("models/reference.json"),
        settings=params.evaluation,
        seed=read_seed(),
    )
    write_json("metrics/accuracy.json", tables.metrics(study))
    plots = tables.plots(study)
    for name, data in plots.items():
        write_text(f"plots/{name}", data.to_csv(index=False))
    write_text("plots/accuracy.svg", tables.picture(plots["accuracy.csv"]))
    text = tables.markdown(study)
    write_text("metrics/table.md", text)
    click.echo(text)


if __name__ == "__main__":
    table()
