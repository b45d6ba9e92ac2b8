"""The untouched model's scores over a few clips, beside the paper's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from music_ddpo.core.files import read_json
from music_ddpo.core.params import SHIPPED, Params
from music_ddpo.core.prompts import Prompt
from music_ddpo.core.randomness import random_generator
from music_ddpo.doctor.report import LOOK, OK, Check, Row
from music_ddpo.machine.batches import Execution, portions
from music_ddpo.measuring.clips import evaluation_prompts
from music_ddpo.model.policy import Policy
from music_ddpo.model.rendering import render
from music_ddpo.rewards.base import Judgement, Reward

CLIPS = 16  # the first of the study's, from the same noise
# Table 2 of the paper, column "Original": 19 steps and 10 s, 38 steps and 5 s, 200 steps and 5 s.
PAPER = {"clap": (0.43, 0.33, 0.31), "emopia": (0.26, 0.29, 0.23)}
FAR = 0.15  # further outside the paper's range than this, and than two standard errors, is far apart


def scores(
    params: Params, policy: Policy, prompts: Sequence[Prompt], judges: Mapping[str, Reward], seed: int,
    execution: Execution, metrics: Path,
) -> Check[None]:  # fmt: skip
    """One row for each judge. The shipped model is compared with the last run, if there was one.

    Parameters
    ----------
    prompts
        Those of the policy.
    metrics
        The file with the estimates of the last run; it need not exist.
    """
    asked = evaluation_prompts(params)[:CLIPS]
    prompt = {i: prompts.index(p) for i, p in enumerate(asked)}
    noise = {i: random_generator(seed, "evaluate", 0, i) for i in prompt}
    with tqdm(total=len(asked) * params.steps, unit="step", desc="baseline clips", leave=False) as bar:
        waveforms = torch.stack(render(policy, list(prompt), prompt, noise, execution, bar))
    for name, judge in judges.items():
        values = []
        for part in portions(range(len(asked)), execution.decode_batch):
            heard = judge.score(waveforms[part.start : part.stop], policy.sample_rate, [asked[i] for i in part])
            values += _headline(judge, heard).tolist()
        earlier = read_json(metrics).get(f"judged_by_{name}", {}).get("original", {}) if metrics.is_file() else {}
        yield compare(name, judge.headline, values, earlier.get(judge.headline), params.model in SHIPPED)


def compare(name: str, headline: str, values: list[float], earlier: float | None, shipped: bool) -> Row:
    """The mean of a judge's `values` beside the paper's numbers, or beside an `earlier` run with the shipped model."""
    x = torch.tensor(values, dtype=torch.float64)
    mean = x.mean().item()
    # Of a few clips of which all or none are right the deviation is 0; add one of each (Agresti and Coull).
    share = (x.sum().item() + 1) / (len(x) + 2)
    error = math.sqrt(share * (1 - share) / len(x)) if headline == "accuracy" else x.std().item() / math.sqrt(len(x))
    text = f"{headline} {mean:.2f} ± {error:.2f} over {len(x)} clips"
    told: dict[str, float | None] = {headline: mean, "standard_error": error}
    if shipped:
        text += "; this model is not the paper's"
        if earlier is not None:
            text += f" and had {earlier:.2f} over all clips of the last run"
        known: tuple[float, ...] = () if earlier is None else (earlier,)
        advice = "other params than in that run explain it; otherwise run `dvc repro`, and compare metrics/"
    else:
        known = PAPER.get(name, ())
        text += "; in the paper " + "/".join(f"{x:.2f}" for x in known) if known else ""
        advice = "other prompts, steps, guidance or weights explain it, or something is wrong: listen to a few clips"
    away = max(min(known) - mean, mean - max(known)) if known else 0.0
    if away > max(FAR, 2 * error):
        return Row(f"baseline {name}", LOOK, f"{text}: far apart", advice, told)
    return Row(f"baseline {name}", OK, text, numbers=told)


def _headline(judge: Reward, heard: Judgement) -> torch.Tensor:
    return heard.correct if judge.headline == "accuracy" and heard.correct is not None else heard.value
