"""A folder of generated clips: WAV files, and index.csv with the prompt of each clip."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import no_grad
from tqdm import tqdm

from music_ddpo.core import audio
from music_ddpo.core.errors import UserError
from music_ddpo.core.files import whole
from music_ddpo.core.params import Params
from music_ddpo.core.prompts import Prompt, make_prompts
from music_ddpo.core.randomness import random_generator
from music_ddpo.machine import processes
from music_ddpo.machine.batches import Execution, choose, full_memory_explained, portions
from music_ddpo.model import adapter
from music_ddpo.model.audioldm2 import Generator
from music_ddpo.model.policy import Policy
from music_ddpo.weights.manifests import check_duration

INDEX = "index.csv"


def evaluation_prompts(params: Params) -> list[Prompt]:
    """One prompt for each clip: `evaluation.clips_per_emotion` of each emotion; the instruments alternate."""
    prompts = make_prompts(params.prompts.template, params.prompts.emotions, params.prompts.instruments)
    emotions = len(params.prompts.emotions)
    return [prompts[i % len(prompts)] for i in range(params.evaluation.clips_per_emotion * emotions)]


def generate(
    params: Params, seed: int, models: Path, folder: Path, title: str, adapter_folder: Path | None = None
) -> None:
    """Generates the evaluation clips into `folder`, with an adapter if one is given.

    Clip i has the same noise with every adapter and without one, so that they can be compared in pairs. Each of several
    processes generates its part, and the first one writes.
    """
    execution = choose(params.compute)
    check_duration(params.judges, models, params.duration)
    generator = Generator.load(models / "pipeline", execution.device, execution.dtype)
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


def render(
    policy: Policy, clips: Sequence[int], prompt: dict[int, int], noise: dict[int, torch.Generator],
    execution: Execution, bar: tqdm,
) -> list[torch.Tensor]:  # fmt: skip
    """Samples and decodes clips in the batches of `execution`: one waveform [samples] for each.

    Parameters
    ----------
    prompt, noise
        The index of the prompt, and the generator, of each clip.
    """
    x_0 = []
    for part in portions(clips, execution.batch):
        with full_memory_explained("batch", len(part)):
            index = torch.tensor([prompt[i] for i in part])
            x_0.append(policy.sample(index, [noise[i] for i in part], bar.update, keep_path=False).x[:, -1])
    waveforms: list[torch.Tensor] = []
    for latents in torch.cat(x_0).split(execution.decode_batch) if x_0 else ():
        with full_memory_explained("decode_batch", len(latents)):
            waveforms += policy.decode(latents)
    return waveforms


def save(folder: Path, waveforms: Sequence[torch.Tensor], sample_rate: int, prompts: Sequence[Prompt]) -> None:
    """Writes the clips as 16-bit WAV files, and their index; the folder is written completely or not at all."""
    with whole(folder) as partial:
        partial.mkdir()
        rows = []
        for i, (waveform, prompt) in enumerate(zip(waveforms, prompts, strict=True)):
            name = f"{i:03d}-{prompt.emotion}-{prompt.instrument}.wav".replace(" ", "_").replace("/", "_")
            audio.write(partial / name, waveform, sample_rate)
            rows.append(
                {
                    "clip": name,
                    "emotion": prompt.emotion,
                    "instrument": prompt.instrument,
                    "quadrant": prompt.quadrant,
                    "prompt": prompt.text,
                }
            )
        pd.DataFrame(rows).to_csv(partial / INDEX, index=False)


def load(folder: Path, params: Params) -> tuple[pd.DataFrame, list[Prompt]]:
    """The index of a folder of clips, and each clip's prompt; `UserError` if it does not exist."""
    path = folder / INDEX
    if not path.is_file():
        raise UserError(f"{path}: not found; run `dvc repro`, which generates the clips.")
    index = pd.read_csv(path)
    by_text = {p.text: p for p in evaluation_prompts(params)}
    unknown = [text for text in index["prompt"] if text not in by_text]
    if unknown:
        raise UserError(f"{path}: has a prompt that is not in params.yaml ({unknown[0]!r}); run `dvc repro`.")
    return index, [by_text[text] for text in index["prompt"]]


def waveforms(folder: Path, names: Sequence[str], size: int) -> Iterator[tuple[Sequence[int], torch.Tensor, int]]:
    """Portions of the clips: their numbers, their waveforms [portion, samples], and the sample rate in Hz."""
    for part in portions(range(len(names)), size):
        read = [audio.read(folder / names[i]) for i in part]
        yield part, torch.stack([w for w, _ in read]), read[0][1]
