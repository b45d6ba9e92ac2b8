"""Puts the scores together: accuracy per emotion, original against trained, transfer between rewards."""

import click
import pandas as pd

from music_ddpo import evaluation
from music_ddpo.files import write_json, write_text
from music_ddpo.params import Params
from music_ddpo.stage import MODELS, earlier, read_json, stage, study_seed


@stage
def table(params: Params) -> None:
    """Writes metrics/accuracy.json, metrics/table.md and the data of the plots."""
    study = evaluation.Study(
        original=pd.read_csv(earlier("metrics/clips/baseline.csv")),
        trained={reward: pd.read_csv(earlier(f"metrics/clips/{reward}.csv")) for reward in params.rewards},
        reference=read_json(MODELS / "reference.json"),
        settings=params.evaluation,
        seed=study_seed(),
    )
    write_json("metrics/accuracy.json", evaluation.metrics(study))
    for name, data in evaluation.plots(study).items():
        write_text(f"plots/{name}", data.to_csv(index=False))
    text = evaluation.markdown(study)
    write_text("metrics/table.md", text)
    click.echo(text)


if __name__ == "__main__":
    table()
