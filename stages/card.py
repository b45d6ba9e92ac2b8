"""Writes the model card of one adapter, with what was measured of it."""

import click

from music_ddpo import card as model_card
from music_ddpo.files import write_text
from music_ddpo.params import Params
from music_ddpo.stage import MODELS, read_json, stage, study_seed


@click.argument("reward")
@stage
def card(params: Params, reward: str) -> None:
    """Writes models/adapters/REWARD/README.md."""
    text = model_card.write(
        reward,
        params,
        study_seed(),
        weights=read_json("metrics/weights.json"),
        training=read_json(f"metrics/train/{reward}.json"),
        accuracy=read_json("metrics/accuracy.json"),
    )
    write_text(MODELS / "adapters" / reward / "README.md", text)


if __name__ == "__main__":
    card()
