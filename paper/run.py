"""Runs the paper's experiments as DVC experiments: make paper [FIGURE=5] [JOBS=2] [MODEL=audioldm2-music].

What has finished is kept in paper/runs/ and is not run again. An interrupted run goes on: finished stages come from
DVC's cache, a training from its checkpoint.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
from catalogue import PROJECT, Run, entries
from dvc.repo import Repo
from records import is_current, same, write
from torch import no_grad
from tqdm import tqdm

from music_ddpo.core.errors import UserError
from music_ddpo.core.files import read_json
from music_ddpo.machine import batches
from music_ddpo.measuring import experiments
from music_ddpo.model.audioldm2 import Generator
from music_ddpo.model.policy import Policy
from music_ddpo.training import estimate
from music_ddpo.weights.manifests import check_pipeline

MODELS = Path("models")
POLL = 5  # seconds
IDLE = 6  # polls without a worker: they take a while to start


@click.command(help=__doc__)
@click.option("--figure", metavar="NAME", help="Only this figure, table or entry of paper/catalogue.yaml.")
@click.option("--model", default="mini", show_default=True, help="The value of `model` in params.yaml.")
@click.option("--jobs", type=click.IntRange(1, 64), default=1, show_default=True, help="Experiments at a time.")
@click.option("--seeds", type=click.IntRange(min=1), help="Only the first seeds of each entry.")
@click.option("--dry", is_flag=True, help="Only say what would run, and how long it takes.")
def main(figure: str | None, model: str, jobs: int, seeds: int | None, dry: bool) -> None:
    """Queues what is missing, works it off, and keeps what has finished."""
    os.chdir(PROJECT)
    try:
        runs = [entry.run(seed, model) for entry in entries(figure or None) for seed in entry.seeds[:seeds]]
        runs = list({run.name: run for run in runs}.values())  # some entries share their experiments
        collect(runs)
        todo = [run for run in runs if not kept(run)]
        click.echo(f"{len(runs)} experiments, {len(runs) - len(todo)} have finished")
        if not todo:
            return
        if (Path("metrics") / "weights.json").is_file() and read_json("metrics/weights.json")["model"] == model:
            each = seconds(todo, jobs)
            total = f"about {estimate.duration(sum(each.values()) / jobs)} on this machine"
        else:
            each = {run.name: 1.0 for run in todo}
            total = f"how long is not known before the weights of {model} are there: `music-ddpo doctor` estimates one"
        click.echo(f"{len(todo)} to run, {jobs} at a time: {total}")
        for run in todo:
            click.echo(f"  {run.name}: {run.entry.tests}")
        if not dry:
            work_off(todo, each, jobs)
    except UserError as error:
        sys.exit(f"Error: {error}")


def kept(run: Run) -> bool:
    """Whether its results are in paper/runs/."""
    return is_current(run.record, run.params.model_dump(mode="json"), run.changes)


def collect(runs: Sequence[Run]) -> list[Run]:
    """Keeps the results of the DVC experiments that have finished since; returns them."""
    finished, new = experiments.known(), []
    for run in runs:
        if run.name in finished and not kept(run) and (experiment := _finished(run)) is not None:
            write(run.record, experiment, run.changes)
            new.append(run)
    return new


def _finished(run: Run) -> experiments.Experiment | None:
    """Its experiment; None if one of that name has other params, from an earlier catalogue, or cannot be read."""
    try:
        (experiment,) = experiments.read([run.name])
    except UserError:
        return None
    return experiment if same(experiment.params, run.params.model_dump(mode="json")) else None


def seconds(runs: Sequence[Run], jobs: int) -> dict[str, float]:
    """How long each experiment takes with its share of the cores, from the speed of one step, measured now.

    The time of a step is taken as proportional to the duration, and to the number of passes that guidance needs.
    """
    base = runs[0].params
    execution = batches.choose(base.compute)
    pipeline = check_pipeline(MODELS)
    generator = Generator.load(pipeline, execution.device, execution.dtype)
    policy = Policy(generator, ["music"], "", 2, base.duration, base.guidance_scale)
    execution.fit(no_grad()(policy.trial), 8)
    step, decode = (f(policy, execution.batch) for f in (estimate.denoise_seconds, estimate.decode_seconds))
    heard = decode * max(1, len(base.judges))
    started = time.perf_counter()
    subprocess.run([sys.executable, "stages/check.py"], check=True, capture_output=True)
    start = (time.perf_counter() - started) * 13  # stages of a study with one reward
    passes = 1 if base.guidance_scale == 1 else 2
    found = {}
    for run in runs:
        params = run.params
        longer = params.duration / base.duration
        one = step * longer * (1 if params.guidance_scale == 1 else 2) / passes
        speed = estimate.Speed(one, 3 * one, decode * longer)
        clips = 2 * len(params.prompts.emotions) * params.evaluation.clips_per_emotion
        judged = clips * (params.steps * one + (decode + heard) * longer)
        found[run.name] = start + (estimate.seconds(params, speed, decode * longer) + judged) * _slower(jobs, execution)
    return found


def _slower(jobs: int, execution: Any) -> float:
    """By how much a single experiment is slower beside others: on a CPU they share the cores."""
    return jobs if execution.device.type == "cpu" else 1


def work_off(todo: Sequence[Run], each: dict[str, float], jobs: int) -> None:
    """Queues the experiments, starts the workers, and follows them to the end."""
    repo: Any = Repo()
    queue = repo.experiments.celery_queue
    busy = bool(queue.worker_status())
    tasks = {task["name"]: task["status"] for task in queue.status()}
    # without a worker a task that was interrupted will never end
    waiting = {name for name, status in tasks.items() if status in (("Queued", "Running") if busy else ("Queued",))}
    missing = [run for run in todo if run.name not in waiting]
    for run in missing:
        for command in (["queue", "remove"], ["exp", "remove"]):  # what has failed, or belongs to other params
            subprocess.run(["dvc", *command, run.name], check=False, capture_output=True)
    for run in tqdm(missing, desc="queue", unit="experiment"):
        command = ["dvc", "exp", "run", "--queue", "--name", run.name, *run.options]
        queued = subprocess.run(command, check=False, capture_output=True, text=True)
        if queued.returncode:
            raise UserError(f"{run.name}: cannot be queued: {queued.stderr.strip() or queued.stdout.strip()}")
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))} if jobs > 1 else {}
    silence: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(["dvc", "queue", "start", "-j", str(jobs)], check=True, env=os.environ | threads, **silence)
    click.echo("They run in the background: Ctrl-C leaves them running, `dvc queue stop --kill` ends them.")
    follow(queue, todo, each)


def follow(queue: Any, todo: Sequence[Run], each: dict[str, float]) -> None:
    """Keeps what finishes, and says so, until nothing is left."""
    left, failed = list(todo), 0
    started, total, done, idle = time.perf_counter(), sum(each.values()), 0.0, 0
    while left:
        time.sleep(POLL)
        ended = {run.name: "finished" for run in collect(left)}
        for task in queue.status():
            if task["status"] == "Failed":
                ended[task["name"]] = f"failed: `dvc queue logs {task['name']}` says why"
        for run in [run for run in left if run.name in ended]:
            left.remove(run)
            failed += ended[run.name] != "finished"
            done += each[run.name]
            took = tqdm.format_interval((time.perf_counter() - started) / done * (total - done))
            click.echo(f"[{len(todo) - len(left)}/{len(todo)}] {run.name} {ended[run.name]}, left: {took}")
        idle = 0 if queue.worker_status() else idle + 1
        if left and idle > IDLE:
            raise UserError(f"the workers have ended with {len(left)} experiments left; run `make paper` again.")
    if failed:
        raise UserError(f"{failed} experiments failed; the others are kept. `make paper` repeats them.")


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
