"""Brings the weights of the generator and of every reward, and verifies them."""

from music_ddpo.params import Params
from music_ddpo.rewards.registry import REWARDS
from music_ddpo.stage import MODELS, stage
from music_ddpo.weights import fetch as weights


@stage
def fetch(params: Params) -> None:
    """Writes models/pipeline, models/rewards and what belongs to them."""
    weights.fetch(params.model, list(REWARDS), MODELS)


if __name__ == "__main__":
    fetch()
