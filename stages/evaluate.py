"""Judges the clips of an adapter with every judge."""

from pathlib import Path

import click

import beside  # noqa: F401
from music_ddpo.core.params import Params
from music_ddpo.machine.stage import parallel_stage
from music_ddpo.measuring import judging


@click.argument("reward")
@parallel_stage
def evaluate(params: Params, reward: str) -> None:
    """Writes metrics/clips/REWARD.csv."""
    judging.write(Path("clips") / reward, Path(f"metrics/clips/{reward}.csv"), params, Path("models"))


if __name__ == "__main__":
    evaluate()
