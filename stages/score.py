"""Scores the untouched model's clips with every reward."""

from pathlib import Path

from music_ddpo import execution, parallel, scores
from music_ddpo.files import write_json, write_text
from music_ddpo.params import Params
from music_ddpo.stage import MODELS, parallel_stage


@parallel_stage
def score(params: Params) -> None:
    """Writes metrics/baseline.json and metrics/clips/baseline.csv."""
    device = execution.choose(params.compute).device
    table = scores.score(Path("clips/baseline"), params, MODELS, device)
    if parallel.is_main():
        write_text("metrics/clips/baseline.csv", table.to_csv(index=False))
        write_json("metrics/baseline.json", scores.summary(table))


if __name__ == "__main__":
    score()
