"""Brings and verifies the weights of the generator and of every judge."""

from pathlib import Path

import beside  # noqa: F401
from music_ddpo.core.files import write_json
from music_ddpo.core.params import Params
from music_ddpo.machine.stage import stage
from music_ddpo.rewards import fetching


@stage
def fetch(params: Params) -> None:
    """Writes models/ and, to metrics/weights.json, where everything comes from."""
    came = fetching.fetch(params, Path("models"))
    write_json("metrics/weights.json", came)


if __name__ == "__main__":
    fetch()
