"""Generates clips with an adapter, on the baseline's noise, and scores them with every reward."""

from pathlib import Path

import click

from music_ddpo import adapter, clips, execution, parallel, scores
from music_ddpo.files import write_json, write_text
from music_ddpo.generator import Generator
from music_ddpo.params import Params
from music_ddpo.stage import MODELS, parallel_stage, study_seed


@click.argument("reward")
@parallel_stage
def evaluate(params: Params, reward: str) -> None:
    """Writes clips/REWARD/, metrics/evaluate/REWARD.json and metrics/clips/REWARD.csv."""
    chosen = execution.choose(params.compute)
    generator = Generator.load(MODELS / "pipeline", chosen.device, chosen.dtype)
    adapter.load(generator, MODELS / "adapters" / reward)
    folder = Path("clips") / reward
    clips.generate(generator, params, study_seed(), chosen, folder, f"clips after training with {reward}")
    table = scores.score(folder, params, MODELS, chosen.device)
    if parallel.is_main():
        write_text(f"metrics/clips/{reward}.csv", table.to_csv(index=False))
        write_json(f"metrics/evaluate/{reward}.json", scores.summary(table))


if __name__ == "__main__":
    evaluate()
