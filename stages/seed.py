"""Settles the seed of the study: params.yaml's, or one drawn when it says `random`."""

import secrets

from music_ddpo.files import write_json
from music_ddpo.params import Params
from music_ddpo.stage import stage


@stage
def seed(params: Params) -> None:
    """Writes metrics/seed.json."""
    drawn = secrets.randbelow(2**31) if params.seed == "random" else params.seed
    write_json("metrics/seed.json", {"seed": drawn})


if __name__ == "__main__":
    seed()
