"""Generates the evaluation clips with the untouched model."""

from pathlib import Path

import beside  # noqa: F401
from music_ddpo.core.files import read_seed
from music_ddpo.core.params import Params
from music_ddpo.machine.stage import parallel_stage
from music_ddpo.measuring.generating import generate


@parallel_stage
def baseline(params: Params) -> None:
    """Writes clips/baseline/."""
    generate(params, read_seed(), Path("models"), Path("clips/baseline"), "baseline clips")


if __name__ == "__main__":
    baseline()
