"""Trainings in one process, for benchmarks that compare settings: train an adapter, generate its clips, judge them.

Everything is done by the code of the stages `fetch`, `train`, `generate` and `evaluate`, without DVC and its files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from tqdm import tqdm

from music_ddpo.core.files import digest, read_json, write_json
from music_ddpo.core.params import Params
from music_ddpo.core.params_file import parse
from music_ddpo.core.prompts import make_prompts
from music_ddpo.machine.batches import choose
from music_ddpo.measuring import clips, generating, judging
from music_ddpo.measuring.diversity import distance_to_others, log_mel, mel_distances
from music_ddpo.measuring.diversity import diversity as spread
from music_ddpo.model import adapter
from music_ddpo.model.audioldm2 import Generator
from music_ddpo.rewards import fetching
from music_ddpo.rewards.finding import load_reward
from music_ddpo.training import loop, record, setup
from music_ddpo.training.checkpoint import Run
from music_ddpo.weights.manifests import check_pipeline, read_manifest, read_pipeline_manifest

PROJECT = Path(__file__).resolve().parent.parent
SCRATCH = Path(tempfile.gettempdir()) / "music-ddpo-trials"
HEARD_EVERY, HEARD_CLIPS = 2, 10  # with `hear_every`: after every second round, clips of each emotion


@dataclass(frozen=True, eq=False)
class Job:
    """A training with a seed, or none at all if `reward` is None: then the untouched model is heard."""

    setting: str
    reward: str | None
    seed: int
    changes: dict[str, Any] = field(default_factory=dict)  # of params.yaml, by dotted key
    hear_every: bool = False

    @property
    def params(self) -> Params:
        """`UserError` if they are wrong."""
        content = yaml.safe_load((PROJECT / "params.yaml").read_text())
        rewards = {} if self.reward is None else {"rewards": [self.reward]}
        for key, value in ({"seed": self.seed, "compute.device": "cpu"} | rewards | self.changes).items():
            *groups, last = key.split(".")
            group = content
            for name in groups:
                group = group[name]
            group[last] = value
        return parse(content)

    @property
    def key(self) -> str:
        """What the result depends on, except for code: two jobs with the same key have the same result."""
        content = self.params.model_dump(exclude={"compute", "auto", "weights"})
        content |= {"reward": self.reward, "every": self.hear_every}
        content["models"] = digest(PROJECT / "mini" / "models" / "manifest.json")
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def cost(self) -> float:
        """About how long it takes, in UNet calls: a trained step costs three, and a member one."""
        params = self.params
        ddpo, emopia = params.ddpo, params.emopia
        trained = params.steps_of_an_update * (4 if ddpo.kl else 3)
        each = params.steps + 4 + emopia.members  # of a clip that is sampled, decoded and heard
        heard = len(params.prompts.emotions) * params.evaluation.clips_per_emotion
        if self.reward is None:
            return heard * each
        if self.hear_every:
            heard += ddpo.rounds / HEARD_EVERY * len(params.prompts.emotions) * HEARD_CLIPS
        return ddpo.rounds * ddpo.trajectories_per_round * (each + trained) + heard * each


def trial(params_changes: dict[str, Any], reward: str | None, seed: int, hear_every: bool) -> dict[str, Any]:
    """Trains an adapter, generates the evaluation's clips and judges them with all `judges`.

    Parameters
    ----------
    params_changes
        Of params.yaml, by dotted key.
    reward
        Its name, or that of a mixture; None trains nothing.
    hear_every
        Whether fewer clips are also generated and judged before the first round and after every second one.

    Returns
    -------
    What `heard` returns, and: "seconds"; "training", the closing numbers; "unet_calls" of the training, clips times
    steps, each with and without the prompt; and with `hear_every` "curve", a list of {"round": rounds done, "reward":
    mean over the clips of the latest round} and what `heard` returns.
    """
    params = Job("", reward, seed, params_changes).params
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        models = folder / "models"
        fetching.fetch(params, models)
        if reward is None:
            result = heard(params, seed, models, None)
        else:
            result = _train(params, reward, seed, folder, hear_every)
            result |= heard(params, seed, models, folder / "adapter")
    return result | {"seconds": round(time.perf_counter() - started, 1)}


def _train(params: Params, reward: str, seed: int, folder: Path, hear_every: bool) -> dict[str, Any]:
    """Trains as the stage does; writes the adapter to `folder`."""
    models = folder / "models"
    execution = choose(params.compute)
    raised = load_reward(reward, models, execution.device)
    generator = Generator.load(check_pipeline(models), execution.device, execution.dtype)
    prompts = make_prompts(params.prompts.template, params.prompts.emotions, params.prompts.instruments)
    weights = {"pipeline": read_pipeline_manifest(models), "reward": read_manifest(reward, models)}
    files = (folder / "checkpoint.pt", folder / "curve.csv")
    policy, run = setup.prepare(generator, reward, prompts, params, seed, execution, *files, weights)
    calls = _counted(generator)
    curve = _heard_between_rounds(run, generator, params, seed, folder) if hear_every else []
    loop.train(policy, raised, prompts, params, seed, execution, run)
    adapter.save(generator, folder / "adapter")
    result: dict[str, Any] = {"training": record.summary(run.rounds, seed), "unet_calls": sum(calls)}
    return result | ({"curve": curve} if hear_every else {})


def _counted(generator: Generator) -> list[int]:
    """The number of clips of each call of the UNet from now on."""
    calls: list[int] = []
    predict = generator.predict_noise

    def predict_noise(x_t: torch.Tensor, *rest: Any) -> torch.Tensor:
        calls.append(len(x_t))
        return predict(x_t, *rest)

    generator.predict_noise = predict_noise  # type: ignore[method-assign]
    return calls


def _heard_between_rounds(
    run: Run, generator: Generator, params: Params, seed: int, folder: Path
) -> list[dict[str, Any]]:
    """The curve of `trial`: it has the untouched model, and grows while `run` finishes rounds."""
    few = params.evaluation.model_copy(update={"clips_per_emotion": HEARD_CLIPS})
    params = params.model_copy(update={"evaluation": few})
    curve = [{"round": 0, "reward": None} | heard(params, seed, folder / "models", None)]
    finish = run.finish

    def finish_and_hear(latest: record.Round) -> None:
        finish(latest)
        if run.rounds_done % HEARD_EVERY == 0:
            adapter.save(generator, folder / "now")
            point = {"round": run.rounds_done, "reward": round(latest.reward, 4)}
            curve.append(point | heard(params, seed, folder / "models", folder / "now"))

    run.finish = finish_and_hear  # type: ignore[method-assign]
    return curve


def heard(params: Params, seed: int, models: Path, adapter_folder: Path | None) -> dict[str, Any]:
    """Generates the evaluation's clips and judges them.

    Returns
    -------
    "judges": for each judge the mean "value"; if it predicts an emotion, the "accuracy" and "by_emotion", that of each
    emotion; of the listener also "instrument", how often it hears the one of the prompt. And "diversity", see there.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "clips"
        generating.generate(params, seed, models, folder, "clips", adapter_folder)
        execution = choose(params.compute)
        table = judging.judge(folder, params, models, execution)
        read = list(clips.waveforms(folder, list(table["clip"]), len(table), params.duration))
        (_, waveforms, sample_rate) = read[0]
    asked = list(zip(table["emotion"], table["instrument"], strict=True))
    return {"judges": scores(table), "diversity": round(diversity(waveforms, sample_rate, asked), 4)}


def scores(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """The means of each judge, from a table of `judging.judge`."""
    result: dict[str, dict[str, Any]] = {}
    for name in (column.removesuffix("_headline") for column in table if column.endswith("_headline")):
        result[name] = {"value": round(float(table[f"{name}_value"].mean()), 4)}
        if f"{name}_correct" in table:
            correct = table[f"{name}_correct"]
            by_emotion = correct.groupby(table["emotion"], sort=False).mean().round(4)
            result[name] |= {"accuracy": round(float(correct.mean()), 4), "by_emotion": by_emotion.to_dict()}
        if f"{name}_instrument" in table:
            result[name]["instrument"] = round(float(table[f"{name}_instrument"].mean()), 4)
    return result


def diversity(waveforms: torch.Tensor, sample_rate: int, prompts: Sequence[tuple[str, str]]) -> float:
    """The mean distance of the log-mels of clips [clips, samples] of the same prompt, in dB, as the tables have it."""
    own: dict[tuple[str, str], list[np.ndarray]] = {}
    for waveform, prompt in zip(waveforms.numpy(), prompts, strict=True):
        own.setdefault(prompt, []).append(log_mel(waveform, sample_rate))
    return spread([distance_to_others(mel_distances(mels)) for mels in own.values()], confidence=0.95).value


# Many trials


def run(
    jobs: Sequence[Job], path: Path, processes: int, work: Callable[[Job], dict[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """Does the jobs whose results `path` does not have yet, the longest first, each with one thread.

    Each result is written as soon as it is there, so an interrupted run goes on where it was. A result that was
    measured with other params or other weights is not used, but one of other code is: move the file away first. What
    the trainings print is in the temporary folder.

    Returns
    -------
    A result for each job, in their order, as `trial` returns it, with "setting", "reward", "seed" and "key". A job that
    failed is left out, and its error printed.
    """
    results = read_json(path)["results"] if path.exists() else []
    known = {result["key"]: result for result in results}
    keys = {job: job.key for job in jobs}
    missing = {keys[job]: job for job in reversed(jobs) if keys[job] not in known}
    print(f"{len(missing)} of {len(jobs)} jobs to do, {processes} at a time", flush=True)
    for job, result in in_processes(list(missing.values()), work or _work, processes):
        entry = {"setting": job.setting, "reward": job.reward, "seed": job.seed, "key": keys[job]}
        known[keys[job]] = entry | {"changes": job.changes} | result
        write_json(path, {"results": list(known.values())})
    return [known[keys[job]] | {"setting": job.setting} for job in jobs if keys[job] in known]


def in_processes(todo: Sequence[Job], work: Callable[[Job], Any], processes: int) -> Iterator[tuple[Job, Any]]:
    """Each job with its result, as it is finished; begins with the longest, and prints what is left.

    A job that failed is left out, and its error printed. `work` must be a function of a module.
    """
    todo = sorted(todo, key=lambda job: -job.cost)
    total = sum(job.cost for job in todo)
    SCRATCH.mkdir(exist_ok=True)
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    started, done = time.perf_counter(), 0.0
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _begin) as pool:
        running = {pool.submit(work, job): job for job in todo}
        try:
            for i, future in enumerate(as_completed(running), 1):
                job = running[future]
                done += job.cost
                left = (time.perf_counter() - started) * (total - done) / done
                told = f"[{i}/{len(todo)}] {job.setting}, seed {job.seed}: "
                try:
                    result = future.result()
                except Exception:
                    told += "failed\n" + traceback.format_exc()
                else:
                    yield job, result
                    told += "finished"
                print(f"{told}, left: {tqdm.format_interval(left)}", flush=True)
        except BaseException:  # Ctrl-C, too: what is finished has been yielded
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _begin() -> None:
    """Of a process: one thread, and its output in a file of its own."""
    torch.set_num_threads(1)
    log = os.open(SCRATCH / f"{os.getpid()}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())


def _work(job: Job) -> dict[str, Any]:
    os.chdir(PROJECT)  # the place of the embedded models is relative to it
    return trial(job.changes, job.reward, job.seed, job.hear_every)


def parser_of(about: str | None, seeds: Sequence[int], path: Path) -> argparse.ArgumentParser:
    """The options of a benchmark that runs trials. From now on SIGTERM ends it, and its trials, as Ctrl-C does."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=seeds, metavar="SEED")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, each with one thread")
    parser.add_argument("--results", type=Path, default=path, help="the file with the results")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="changes of params.yaml in each job")
    return parser


def changes_of(options: Sequence[str]) -> dict[str, Any]:
    """The changes that `--set` names, by dotted key."""
    return {key: yaml.safe_load(value) for key, _, value in (option.partition("=") for option in options)}


def row(cells: Sequence[str]) -> str:
    """A row of a table in Markdown."""
    return "| " + " | ".join(cells) + " |"
