"""Writes the model card of one adapter, and its headline numbers."""

import click

import beside  # noqa: F401
from music_ddpo.core.files import content_of, read_json, read_seed, write_json, write_text
from music_ddpo.core.params import Params
from music_ddpo.machine.stage import stage
from music_ddpo.measuring import card as model_card


@click.argument("reward")
@stage
def card(params: Params, reward: str) -> None:
    """Writes models/adapters/REWARD/README.md and metrics/REWARD.json."""
    places = ("metrics/accuracy.json", "metrics/weights.json", f"metrics/train/{reward}.json")
    accuracy = read_json(places[0], dict[str, dict[str, dict[str, float | dict[str, float | None] | None]]])
    weights = read_json(places[1], dict[str, str], ["model", "revision", "license"])
    training = read_json(places[2], dict[str, float], ["reward_first", "reward_last"])
    seconds = read_json(f"metrics/cost/train-{reward}.json", dict[str, float], ["seconds"])["seconds"]
    with content_of(*places):
        text = model_card.write(reward, params, read_seed(), weights, training, accuracy)
        headline = model_card.headline(reward, params, accuracy, seconds)
    write_text(f"models/adapters/{reward}/README.md", text)
    write_json(f"metrics/{reward}.json", headline)


if __name__ == "__main__":
    card()
