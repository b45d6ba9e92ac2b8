"""Generates the evaluation clips with an adapter, from the same noise as the baseline."""

from pathlib import Path

import click

import beside  # noqa: F401
from music_ddpo.core.files import read_seed
from music_ddpo.core.params import Params
from music_ddpo.machine.stage import parallel_stage
from music_ddpo.measuring.generating import generate as generate_clips


@click.argument("reward")
@parallel_stage
def generate(params: Params, reward: str) -> None:
    """Writes clips/REWARD/."""
    models, title = Path("models"), f"clips trained with {reward}"
    generate_clips(params, read_seed(), models, Path("clips") / reward, title, models / "adapters" / reward)


if __name__ == "__main__":
    generate()
