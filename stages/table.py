"""Puts scores and features together: accuracy per emotion, original against trained, transfer, what changed."""

from pathlib import Path

import click

import beside  # noqa: F401
from music_ddpo.core.files import content_of, write_json, write_text
from music_ddpo.core.params import Params
from music_ddpo.machine.stage import stage
from music_ddpo.measuring import feature_tables, leftovers, tables
from music_ddpo.measuring.results import read_music, read_study


@stage
def table(params: Params) -> None:
    """Writes metrics/accuracy.json, metrics/features.json, metrics/table.md, and the plots."""
    study = read_study(params)
    music = read_music(study)
    with content_of(*[f"metrics/clips/{name}.csv" for name in ("baseline", *params.rewards)]):
        metrics, plots, text = tables.metrics(study), tables.plots(study), tables.markdown(study)
        picture = tables.picture(plots["accuracy.csv"])
    with content_of(
        "models/features.json", *[f"metrics/features/{name}.csv" for name in ("baseline", *params.rewards)]
    ):
        features, points = feature_tables.metrics(music), feature_tables.plot(music)
        plots["features.csv"], text = points, text + feature_tables.markdown(music)
        panels = feature_tables.picture(points)
    for reward, folder in leftovers.put_away(Path(), params.rewards).items():
        click.echo(f"{reward} is no longer in `rewards`: its adapter, clips and metrics are now in {folder}/.")
    write_json("metrics/accuracy.json", metrics)
    write_json("metrics/features.json", features)
    for name, data in plots.items():
        write_text(f"plots/{name}", data.to_csv(index=False))
    write_text("plots/accuracy.svg", picture)
    write_text("plots/features.svg", panels)
    write_text("metrics/table.md", text)
    click.echo(text)


if __name__ == "__main__":
    table()
