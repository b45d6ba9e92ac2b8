"""Trains one adapter with DDPO to raise one reward."""

import click

from music_ddpo import adapter, ddpo, execution, interruption, parallel, report
from music_ddpo.files import write_json, write_text
from music_ddpo.generator import Generator
from music_ddpo.params import Params
from music_ddpo.prompts import make_prompts
from music_ddpo.rewards.base import check_duration, load_reward
from music_ddpo.stage import CHECKPOINTS, MODELS, earlier, parallel_stage, study_seed


@click.argument("reward")
@parallel_stage
def train(params: Params, reward: str) -> None:
    """Writes models/adapters/REWARD, metrics/train/REWARD.json and plots/train/REWARD.csv."""
    chosen = execution.choose(params.compute)
    check_duration([reward], MODELS, params.duration)
    generator = Generator.load(MODELS / "pipeline", chosen.device, chosen.dtype)
    judge = load_reward(reward, MODELS, chosen.device)
    prompts = make_prompts(params.prompts.template, params.prompts.emotions, params.prompts.instruments)
    checkpoint = CHECKPOINTS / f"train-{reward}.pt"
    weights = earlier(MODELS / "manifest.json").read_text()
    epochs = ddpo.train(generator, judge, prompts, params, study_seed(), chosen, checkpoint, weights)
    if parallel.is_main():
        adapter.save(generator, MODELS / "adapters" / reward)
        write_text(f"plots/train/{reward}.csv", report.reward_curve(epochs).to_csv(index=False))
        write_json(f"metrics/train/{reward}.json", report.training(epochs, study_seed()))
        interruption.ignore()  # nothing may come between: without the checkpoint all would have to be done again
        checkpoint.unlink(missing_ok=True)


if __name__ == "__main__":
    train()
