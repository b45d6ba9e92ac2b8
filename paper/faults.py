"""Switches the faults of the published code on, one by one and all together: python paper/faults.py --jobs 2.

Each setting is trained with each choice of faults and three seeds, by the code of the stages with the wrappers of
paper/published.py. And the entries of the catalogue whose training fails in the paper and succeeds here are trained
with all faults. Each result is kept in paper/runs/; what is there is not run again.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import published
from catalogue import PROJECT, RUNS, entries
from records import is_current, write
from verdicts import result

from music_ddpo.core.errors import UserError
from music_ddpo.core.params import Params
from music_ddpo.core.prompts import make_prompts
from music_ddpo.machine.batches import choose
from music_ddpo.measuring import generating, judging
from music_ddpo.measuring.experiments import Experiment
from music_ddpo.measuring.study import Study
from music_ddpo.model import adapter
from music_ddpo.model.audioldm2 import Generator
from music_ddpo.rewards import fetching
from music_ddpo.rewards.finding import load_reward
from music_ddpo.training import loop, setup
from music_ddpo.weights.manifests import check_pipeline

sys.path.append(str(PROJECT / "benchmarks"))
from trials import Job, in_processes

SEEDS = (777, 1, 2)
NONE, ALL = "none", "all"
EVERY = tuple(published.FAULTS)
# name: (reward, changes of params.yaml, choices of faults). All begin with the defaults, but for "clap-all-steps", the
# paper's method, which changes little on mini even without a fault. Each fault alone is
# tried with four prompts, and with other numbers of prompts those whose effect may depend on it. With one prompt
# "last prompt" is no fault, and emopia has no "speed". "seed" changes no training: what seeds do is in the entry
# 5-random-seeds.
ONE = {"prompts.emotions": ["sad"], "evaluation.clips_per_emotion": 100}
MANY = entries("turned-ten-instruments")[0].changes
SETTINGS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "clap-four-prompts": ("clap", {}, (NONE, "last prompt", "swapped", "speed", "prompts", ALL)),
    "emopia-four-prompts": ("emopia", {}, (NONE, "last prompt", "swapped", "prompts", ALL)),
    "clap-one-prompt": ("clap", ONE, (NONE, "swapped", ALL)),
    "clap-forty-prompts": ("clap", MANY, (NONE, "last prompt", "swapped", ALL)),
    # mini needs no guidance, and without it "swapped" has the negative prompt's states only
    "clap-guidance": ("clap", {"guidance_scale": 2.0}, (NONE, "swapped", ALL)),
    "clap-all-steps": ("clap", entries("method-clap")[0].changes, (NONE, "last prompt", "swapped")),
}
# What has no faults and no changes is in the catalogue.
SHARED = {
    "clap-four-prompts": "turned-clap",
    "emopia-four-prompts": "turned-emopia",
    "clap-all-steps": "method-clap",
}


@dataclass(frozen=True, eq=False)
class Faulty(Job):
    """A job with faults of `published.FAULTS`."""

    faults: tuple[str, ...] = ()

    @property
    def record(self) -> Path:
        """The file that keeps its result."""
        return RUNS / f"{self.setting.replace(' ', '-')}.json"


def name_of(setting: str, choice: str, seed: int) -> str:
    """Of a job, and of its file."""
    return f"fault-{setting}-{choice}-seed-{seed}"


def jobs_of_settings() -> list[Faulty]:
    """Each setting with each choice of faults and each seed."""
    found = []
    for setting, (reward, changes, choices) in SETTINGS.items():
        for choice in choices:
            if choice == NONE and setting in SHARED:
                continue
            faults = {NONE: (), ALL: EVERY}.get(choice, (choice,))
            found += [Faulty(name_of(setting, choice, s), reward, s, changes, faults=faults) for s in SEEDS]
    return found


def jobs_of_failures() -> list[Faulty]:
    """With all faults what fails in the paper and succeeds here.

    Where the right code fails too, what the faults do to it would explain nothing.
    """
    found: dict[str, Faulty] = {}  # by name: some entries share their experiments
    for entry in entries():
        if entry.trains is False and result(entry).outcome == "succeeds":
            for seed in entry.seeds[: len(SEEDS)]:
                name = f"{entry.run(seed).name}-published"
                found[name] = Faulty(name, entry.reward, seed, entry.changes, faults=EVERY)
    return list(found.values())


def train_and_judge(job: Faulty) -> Experiment:
    """What the stages do, with the faults of the job."""
    os.chdir(PROJECT)
    assert job.reward is not None
    with tempfile.TemporaryDirectory() as scratch, published.training(job.faults), published.evaluation(job.faults):
        folder = Path(scratch)
        models = folder / "models"
        params = published.prompts(job.params, job.faults, published.TRAINING_TEMPLATE)
        fetching.fetch(params, models)
        execution = choose(params.compute)
        reward = load_reward(job.reward, models, execution.device)
        if "speed" in job.faults and job.reward == "clap":
            published.at_speed(reward, published.TRAINING_SPEED)
        generator = Generator.load(check_pipeline(models), execution.device, execution.dtype)
        prompts = make_prompts(params.prompts.template, params.prompts.emotions, params.prompts.instruments)
        files = (folder / "checkpoint.pt", folder / "curve.csv")
        policy, run = setup.prepare(generator, job.reward, prompts, params, job.seed, execution, *files, {})
        policy = published.FaultyPolicy(policy, job.faults)
        loop.train(policy, reward, prompts, params, job.seed, execution, run)
        adapter.save(generator, folder / "adapter")
        params = published.prompts(job.params, job.faults, published.EVALUATION_TEMPLATE)
        other = job.seed + 1000 if "seed" in job.faults else job.seed  # of the noise of the clips after training
        original = _judged(params, job.seed, models, folder / "original", None)
        trained = _judged(params, other, models, folder / "trained", folder / "adapter")
    study = Study(original, {job.reward: trained}, {job.reward: [job.reward]}, {}, params.evaluation, job.seed)
    return Experiment(
        job.setting, job.params.model_dump(mode="json"), job.seed, study, {job.reward: [r.reward for r in run.rounds]}
    )


def _judged(params: Params, seed: int, models: Path, folder: Path, adapter_folder: Path | None) -> Any:
    generating.generate(params, seed, models, folder, folder.name, adapter_folder)
    return judging.judge(folder, params, models, choose(params.compute))


def main() -> None:
    """Runs what is missing."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # ends the trainings too, as Ctrl-C does
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only jobs whose name contains one of these")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, each with one thread")
    options = parser.parse_args()
    known = [*jobs_of_settings(), *jobs_of_failures()]
    chosen = [job for job in known if not options.names or any(name in job.setting for name in options.names)]
    todo = [job for job in chosen if not kept(job)]
    print(f"{len(chosen)} trainings, {len(todo)} to do, {options.jobs} at a time", flush=True)
    for _ in in_processes(todo, run, options.jobs):
        pass


def run(job: Faulty) -> None:
    """Trains and judges, and keeps the result."""
    write(job.record, train_and_judge(job), _settings(job))


def _settings(job: Faulty) -> dict[str, Any]:
    return job.changes | {"seed": job.seed, "faults": list(job.faults)}


def kept(job: Faulty) -> bool:
    """Whether its result is in paper/runs/."""
    return is_current(job.record, job.params.model_dump(mode="json"), _settings(job))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"Error: {error}")
