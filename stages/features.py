"""Measures the music in a folder of clips: loudness, onsets, tempo and more, and how far apart its clips are."""

from pathlib import Path

import click

import beside  # noqa: F401
from music_ddpo.core.errors import UserError, quoted
from music_ddpo.core.params import Params
from music_ddpo.machine.stage import parallel_stage
from music_ddpo.measuring import describing


@click.argument("clips")
@parallel_stage
def features(params: Params, clips: str) -> None:
    """Writes metrics/features/CLIPS.csv, of clips/CLIPS: `baseline` or a reward."""
    if clips not in ("baseline", *params.rewards):
        known = ", ".join(params.rewards)
        raise UserError(f"{quoted(clips)} is neither 'baseline' nor among `rewards` ({known}) in params.yaml.")
    describing.write(Path("clips") / clips, Path(f"metrics/features/{clips}.csv"), params, Path("models"))


if __name__ == "__main__":
    features()
