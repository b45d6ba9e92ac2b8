"""All checks, in the order in which a study needs what they check."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from music_ddpo.core.files import read_seed
from music_ddpo.core.params import Params
from music_ddpo.core.params_file import load
from music_ddpo.core.prompts import Prompt, make_prompts
from music_ddpo.doctor import baseline, costs, environment, listening, rising, update
from music_ddpo.doctor.costs import Costs, Part
from music_ddpo.doctor.report import LOOK, OK, Check, Report, Row
from music_ddpo.machine.batches import Execution
from music_ddpo.machine.memory import PeakMemory, in_use
from music_ddpo.model.audioldm2 import Generator
from music_ddpo.model.policy import Policy
from music_ddpo.rewards.base import Reward
from music_ddpo.rewards.finding import load_reward
from music_ddpo.training import setup
from music_ddpo.training.checkpoint import Run

MODELS = Path("models")
AGAIN = "correct what the lines above say, and run again"


@dataclass
class Prepared:
    """The untouched model as a training begins with it."""

    seed: int
    prompts: list[Prompt]
    policy: Policy
    run: Run


def examine(report: Report, train: bool = False) -> None:
    """Runs the checks in the project's folder. Only temporary files are written.

    Parameters
    ----------
    train
        Whether to train with loudness as the reward too, which takes minutes.
    """
    start = time.time() - psutil.Process().create_time()  # as long as a stage needs until it begins
    report.run("versions", environment.versions())
    params = report.run("params.yaml", _params())
    if params is None:
        return
    execution = report.run("device", environment.device(params))
    report.run("disk", environment.disk())
    usable = report.run("weights", environment.fetched(params, MODELS))
    if execution is None or usable is None or not (MODELS / "manifest.json").is_file():
        report.add(Row("sound, update, cost", LOOK, "not checked: they need a device and fetched weights", AGAIN))
        return
    measured = Costs(start=start, base=in_use(execution.device), weights=environment.bytes_in(MODELS))
    loaded = {name: report.run(f"judge {name}", _judge(name, execution, measured)) for name in usable}
    judges = {name: judge for name, judge in loaded.items() if judge is not None}
    with tempfile.TemporaryDirectory() as scratch:
        ready = report.run("model", _model(params, execution, Path(scratch), measured))
        if ready is None:
            report.add(Row("sound, update, cost", LOOK, "not checked: they need the model", AGAIN))
            return
        _use(ready, judges, params, execution, measured, report)
        if train:
            check = rising.rises(
                ready.policy, ready.run, ready.prompts, params, ready.seed, execution, Path(scratch)
            )  # fmt: skip
            report.run("training", check)


def _use(
    ready: Prepared, judges: dict[str, Reward], params: Params, execution: Execution, measured: Costs, report: Report
) -> None:
    """The checks of a model that is loaded, and what the study will take."""
    policy, asked, trained = ready.policy, ready.prompts[:1], params.trained_steps
    paths = report.run("clip", listening.clips(policy, ready.seed))
    if paths:
        waveforms = policy.decode(paths[0].x[:, -1])
        report.run("judges", listening.judgements(judges, waveforms, policy.sample_rate, asked))
        report.run("sample rate", listening.sample_rates(judges, policy, waveforms, asked))
        costs.measure_judges(judges, waveforms[0], policy.sample_rate, asked[0], execution, measured)
        some = trained[:: max(1, len(trained) // 3)][:3]
        report.run("conditions", update.conditions(policy, paths, some))
        measured.exact = report.run("ratio", update.ratio(policy, paths, some, params.ddpo)) is not False
    last_run = Path("metrics/accuracy.json")
    report.run("baseline", baseline.scores(params, policy, ready.prompts, judges, ready.seed, execution, last_run))
    missing = {part for r in params.rewards for part in params.mixtures.get(r, [r])}
    missing = (missing | set(params.judges)) - set(judges)
    if missing:
        report.add(Row("dvc repro", LOOK, f"not estimated without {', '.join(sorted(missing))}"))
    else:
        report.run("dvc repro", costs.rows(params, measured, execution))


def _params() -> Check[Params]:
    params = load()
    yield Row(
        "params.yaml", OK,
        f"{params.model}, {params.duration:g} s in {params.steps} steps, {params.ddpo.rounds} rounds of "
        f"{params.ddpo.trajectories_per_round} clips for each of {', '.join(params.rewards)}",
    )  # fmt: skip
    return params


def _judge(name: str, execution: Execution, measured: Costs) -> Check[Reward]:
    """Loads a judge; what it does is checked later."""
    started = time.perf_counter()
    with PeakMemory(execution.device) as memory:
        judge = load_reward(name, MODELS, execution.device)
    measured.judges[name] = Part(time.perf_counter() - started, 0.0, memory.needed, memory.kept)
    yield from ()
    return judge


def _model(params: Params, execution: Execution, scratch: Path, measured: Costs) -> Check[Prepared]:
    """Loads the generator, and prepares it like a training does."""
    prompts = make_prompts(params.prompts.template, params.prompts.emotions, params.prompts.instruments)
    settled = Path("metrics/seed.json").is_file()
    seed = read_seed() if settled else params.seed if isinstance(params.seed, int) else 0
    started = time.perf_counter()
    with PeakMemory(execution.device) as loading:
        generator = Generator.load(MODELS / "pipeline", execution.device, execution.dtype)
    with PeakMemory(execution.device) as preparing:
        checkpoint, curve = scratch / "doctor.pt", scratch / "doctor.csv"
        policy, run = setup.prepare(generator, "doctor", prompts, params, seed, execution, checkpoint, curve, {})
    seconds = time.perf_counter() - started
    measured.generator = Part(seconds, 0.0, loading.needed, max(0, loading.kept + preparing.kept))
    costs.measure_generator(policy, execution, params, measured)
    unet, adapter = _millions(generator.unet.parameters()), _millions(run.parameters)
    yield Row(
        "model", OK,
        f"ready in {seconds:.1f} s; UNet of {unet - adapter:.1f} M parameters, adapter of {adapter:.2f} M; "
        f"{execution.batch} clips are sampled and trained together, {execution.decode_batch} decoded",
    )  # fmt: skip
    return Prepared(seed, prompts, policy, run)


def _millions(parameters) -> float:
    return sum(p.numel() for p in parameters) / 1e6
