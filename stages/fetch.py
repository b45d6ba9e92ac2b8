"""Brings the weights of the generator and of every reward, and verifies them."""

from music_ddpo.files import write_json
from music_ddpo.params import Params
from music_ddpo.rewards.registry import REWARDS
from music_ddpo.stage import MODELS, stage
from music_ddpo.weights import fetch as weights


@stage
def fetch(params: Params) -> None:
    """Writes models/pipeline, models/rewards and, to metrics/weights.json, where they came from."""
    write_json("metrics/weights.json", weights.fetch(params.model, params.weights, list(REWARDS), MODELS))


if __name__ == "__main__":
    fetch()
