"""Generating the evaluation's clips. It is apart from what reads them, because importing diffusers takes seconds."""

from __future__ import annotations

import math
from pathlib import Path

from torch import no_grad
from tqdm import tqdm

from music_ddpo.core.params import Params
from music_ddpo.core.randomness import random_generator
from music_ddpo.machine import processes
from music_ddpo.machine.batches import choose
from music_ddpo.measuring.clips import evaluation_prompts, save
from music_ddpo.model import adapter
from music_ddpo.model.audioldm2 import Generator
from music_ddpo.model.policy import Policy
from music_ddpo.model.rendering import render
from music_ddpo.weights.manifests import check_duration, check_pipeline


def generate(
    params: Params, seed: int, models: Path, folder: Path, title: str, adapter_folder: Path | None = None
) -> None:
    """Generates the evaluation clips into `folder`, with an adapter if one is given.

    Clip i has the same noise with every adapter and without one, so that they can be compared in pairs. Each of several
    processes generates its part, and the first one writes.
    """
    execution = choose(params.compute)
    check_duration(params.judges, models, params.duration)
    generator = Generator.load(check_pipeline(models), execution.device, execution.dtype)
    if adapter_folder is not None:
        adapter.load(generator, adapter_folder)
    asked = evaluation_prompts(params)
    texts = list(dict.fromkeys(p.text for p in asked))
    policy = Policy(
        generator, texts, params.prompts.negative, params.steps, params.duration, params.guidance_scale,
        params.evaluation.eta,
    )  # fmt: skip
    execution.fit(no_grad()(policy.trial), max(1, math.ceil(len(asked) / processes.size())))
    mine = processes.own(len(asked))
    prompt = {i: texts.index(asked[i].text) for i in mine}
    noise = {i: random_generator(seed, "evaluate", 0, i) for i in mine}
    with tqdm(total=len(mine) * params.steps, unit="step", desc=title, disable=not processes.is_main()) as bar:
        decoded = render(policy, mine, prompt, noise, execution, bar)
    waveforms = processes.gather_to_main([waveform.clone() for waveform in decoded])  # not views of whole batches
    if processes.is_main():
        save(folder, waveforms, policy.sample_rate, asked)
    processes.broadcast(None)  # the others wait until the clips are written
