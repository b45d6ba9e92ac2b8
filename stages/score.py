"""Scores the untouched model's clips with every judge."""

from pathlib import Path

import beside  # noqa: F401
from music_ddpo.core.params import Params
from music_ddpo.machine.stage import parallel_stage
from music_ddpo.measuring import judging


@parallel_stage
def score(params: Params) -> None:
    """Writes metrics/clips/baseline.csv."""
    judging.write(Path("clips/baseline"), Path("metrics/clips/baseline.csv"), params, Path("models"))


if __name__ == "__main__":
    score()
