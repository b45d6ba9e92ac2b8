"""A folder of generated clips: WAV files, and index.csv that says what each was asked to be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from music_ddpo import audio, parallel
from music_ddpo.ddim import make_schedule
from music_ddpo.errors import UserError
from music_ddpo.execution import Execution, portions
from music_ddpo.files import whole
from music_ddpo.generator import Generator
from music_ddpo.params import Params
from music_ddpo.prompts import Prompt, make_prompts
from music_ddpo.randomness import generator as random_generator
from music_ddpo.rollout import decode, sample

INDEX = "index.csv"


def evaluation_prompts(params: Params) -> list[Prompt]:
    """One prompt a clip: `evaluation.clips_per_emotion` of each emotion, instruments taking turns."""
    prompts = make_prompts(params.prompts.template, params.prompts.emotions, params.prompts.instruments)
    emotions = len(params.prompts.emotions)
    return [prompts[i % len(prompts)] for i in range(params.evaluation.clips_per_emotion * emotions)]


def generate(generator: Generator, params: Params, seed: int, execution: Execution, folder: Path, title: str) -> None:
    """Generates the evaluation clips into `folder`.

    Clip i has the same noise whatever adapter the generator carries, which pairs the comparison. Of several processes
    each generates its part, and the first one writes.
    """
    asked = evaluation_prompts(params)
    texts = list(dict.fromkeys(p.text for p in asked))
    conditioning = generator.encode(texts, params.prompts.negative)
    generator.forget_text_encoders()
    execution.fit(generator, conditioning, params.duration, params.guidance_scale)
    schedule = make_schedule(generator.scheduler, params.steps, params.evaluation.eta)
    mine = parallel.own(len(asked))
    prompt = torch.tensor([texts.index(asked[i].text) for i in mine]).long()
    noise = [random_generator(seed, "evaluate", 0, i) for i in mine]
    with tqdm(total=len(mine) * params.steps, unit="step", desc=title, disable=not parallel.is_main()) as bar:
        latents = sample(
            generator, conditioning, prompt, schedule, noise,
            params.duration, params.guidance_scale, execution, keep_path=False, progress=bar.update,
        )  # fmt: skip
    decoded = decode(generator, latents, params.duration, execution)
    waveforms = parallel.gather_to_main([waveform.clone() for waveform in decoded])  # a view would travel as the whole
    if parallel.is_main():
        save(folder, waveforms, generator.sample_rate, asked)
    parallel.broadcast(None)  # the others wait until the clips are there


def save(folder: Path, waveforms: Sequence[torch.Tensor], sample_rate: int, prompts: list[Prompt]) -> None:
    """Writes the clips, 16-bit WAV, and their index; the folder is there whole or not at all."""
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
    """The index of a folder of clips, and each clip's prompt; `UserError` if it is not there."""
    path = folder / INDEX
    if not path.is_file():
        raise UserError(f"{path}: not found; run `dvc repro` to generate the clips.")
    index = pd.read_csv(path)
    by_text = {p.text: p for p in evaluation_prompts(params)}
    strange = [text for text in index["prompt"] if text not in by_text]
    if strange:
        raise UserError(f"{path}: holds a prompt that params.yaml does not ask for ({strange[0]!r}); run `dvc repro`.")
    return index, [by_text[text] for text in index["prompt"]]


def waveforms(folder: Path, names: list[str], size: int = 32) -> Iterator[tuple[slice, torch.Tensor, int]]:
    """Portions of the clips: which, their waveforms [portion, samples], and the sample rate in Hz."""
    for part in portions(len(names), size):
        read = [audio.read(folder / name) for name in names[part]]
        yield part, torch.stack([w for w, _ in read]), read[0][1]
