"""Trains one adapter with DDPO to raise one reward."""

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

import beside  # noqa: F401
from music_ddpo.core.files import read_seed, write_json
from music_ddpo.core.params import Params
from music_ddpo.core.prompts import make_prompts
from music_ddpo.machine import batches, processes, signals
from music_ddpo.machine.stage import parallel_stage
from music_ddpo.model import adapter
from music_ddpo.model.audioldm2 import Generator
from music_ddpo.rewards.finding import check_form, load_reward
from music_ddpo.training import checkpoint, estimate, loop, record, setup
from music_ddpo.weights.manifests import check_duration, check_pipeline, read_manifest, read_pipeline_manifest

MODELS = Path("models")


def checkpoint_of(reward: str, folder: Path, experiment: str | None) -> Path:
    """Where the checkpoint is: not an output, because DVC removes those before a stage runs.

    A queued experiment runs in a copy of the project in .dvc/tmp/exps/, which is removed if it is interrupted. So its
    checkpoint is in the project itself, under the name of the experiment.
    """
    if experiment and folder.parent.parts[-3:] == (".dvc", "tmp", "exps"):
        return folder.parents[3] / ".checkpoints" / f"{experiment}-train-{reward}.pt"
    return Path(".checkpoints") / f"train-{reward}.pt"


@click.argument("reward")
@parallel_stage
def train(params: Params, reward: str) -> None:
    """Writes models/adapters/REWARD, metrics/train/REWARD.json and plots/train/REWARD.csv."""
    execution = batches.choose(params.compute)
    path = checkpoint_of(reward, Path.cwd(), os.environ.get("DVC_EXP_NAME"))
    with checkpoint.alone(path, reward) if processes.is_main() else nullcontext():
        check_duration([reward], MODELS, params.duration)
        raised = load_reward(reward, MODELS, execution.device)
        check_form(raised, params.reward_form)
        generator = Generator.load(check_pipeline(MODELS), execution.device, execution.dtype)
        prompts = make_prompts(params.prompts.template, params.prompts.emotions, params.prompts.instruments)
        weights: dict[str, Any] = {"pipeline": read_pipeline_manifest(MODELS), "reward": read_manifest(reward, MODELS)}
        curve = Path(f"plots/train/{reward}.csv")
        policy, run = setup.prepare(
            generator, reward, prompts, params, read_seed(), execution, path, curve, weights
        )  # fmt: skip
        if run.rounds_done < params.ddpo.rounds:
            expected = estimate.announcement(policy, raised, prompts, params, execution, run.rounds_done)
            if processes.is_main():
                click.echo(expected)
        loop.train(policy, raised, prompts, params, read_seed(), execution, run)
        signals.ignore()  # from here on only files are written
        processes.gather([None])  # all processes have come here
        if processes.is_main():
            adapter.save(generator, MODELS / "adapters" / reward)
            write_json(f"metrics/train/{reward}.json", record.summary(run.rounds, read_seed()))
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    train()
