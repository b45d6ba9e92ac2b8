"""Writes the model card of one adapter, and its headline numbers."""

import click

import beside  # noqa: F401
from music_ddpo.core.files import read_json, read_seed, write_json, write_text
from music_ddpo.core.params import Params
from music_ddpo.machine.stage import stage
from music_ddpo.measuring import card as model_card


@click.argument("reward")
@stage
def card(params: Params, reward: str) -> None:
    """Writes models/adapters/REWARD/README.md and metrics/REWARD.json."""
    accuracy = read_json("metrics/accuracy.json")
    text = model_card.write(
        reward,
        params,
        read_seed(),
        weights=read_json("metrics/weights.json"),
        training=read_json(f"metrics/train/{reward}.json"),
        accuracy=accuracy,
    )
    write_text(f"models/adapters/{reward}/README.md", text)
    seconds = read_json(f"metrics/cost/train-{reward}.json").get("seconds", 0.0)
    write_json(f"metrics/{reward}.json", model_card.headline(reward, params, accuracy, seconds))


if __name__ == "__main__":
    card()
