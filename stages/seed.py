"""Settles the seed of the study: params.yaml's, or a new one if it says `random`."""

import secrets

import beside  # noqa: F401
from music_ddpo.core.files import write_json
from music_ddpo.core.params import Params
from music_ddpo.machine.stage import stage


@stage
def seed(params: Params) -> None:
    """Writes metrics/seed.json."""
    drawn = secrets.randbelow(2**31) if params.seed == "random" else params.seed
    write_json("metrics/seed.json", {"seed": drawn})


if __name__ == "__main__":
    seed()
