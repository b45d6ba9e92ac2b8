"""A folder of generated clips: WAV files, and index.csv with the prompt of each clip."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import torch

from music_ddpo.core import audio
from music_ddpo.core.checked_tables import Text, read_table, require_equal
from music_ddpo.core.errors import UserError
from music_ddpo.core.files import whole
from music_ddpo.core.params import Params
from music_ddpo.core.prompts import Prompt, make_prompts
from music_ddpo.machine.batches import portions

INDEX = "index.csv"
LENGTH_ERROR = 0.1  # seconds; a clip is cut to whole mel frames


def evaluation_prompts(params: Params) -> list[Prompt]:
    """One prompt for each clip: `evaluation.clips_per_emotion` of each emotion; the instruments alternate."""
    prompts = make_prompts(params.prompts.template, params.prompts.emotions, params.prompts.instruments)
    emotions = len(params.prompts.emotions)
    return [prompts[i % len(prompts)] for i in range(params.evaluation.clips_per_emotion * emotions)]


def save(folder: Path, waveforms: Sequence[torch.Tensor], sample_rate: int, prompts: Sequence[Prompt]) -> None:
    """Writes the clips as 16-bit WAV files, and their index; the folder is written completely or not at all."""
    with whole(folder) as partial:
        partial.mkdir()
        index = index_of(prompts)
        for name, waveform in zip(index["clip"], waveforms, strict=True):
            audio.write(partial / name, waveform, sample_rate)
        index.to_csv(partial / INDEX, index=False)


def index_of(prompts: Sequence[Prompt]) -> pd.DataFrame:
    """The index of a folder with a clip of each of these prompts."""
    rows = []
    for i, prompt in enumerate(prompts):
        name = f"{i:03d}-{prompt.emotion}-{prompt.instrument}.wav".replace(" ", "_").replace("/", "_")
        row = {"clip": name, "emotion": prompt.emotion, "instrument": prompt.instrument}
        rows.append(row | {"quadrant": prompt.quadrant, "prompt": prompt.text})
    return pd.DataFrame(rows)


def load(folder: Path, params: Params) -> tuple[pd.DataFrame, list[Prompt]]:
    """The index of a folder of clips, and each clip's prompt.

    Raises
    ------
    UserError
        If it is missing or damaged, or not that of the clips that params.yaml asks for.
    """
    prompts = evaluation_prompts(params)
    expected = index_of(prompts)
    index = read_table(folder / INDEX, dict.fromkeys(expected, Text()))
    require_equal(folder / INDEX, index, expected, "params.yaml")
    return index, prompts


def waveforms(
    folder: Path, names: Sequence[str], size: int, duration: float
) -> Iterator[tuple[Sequence[int], torch.Tensor, int]]:
    """Portions of the clips: their numbers, their waveforms [portion, samples], and the sample rate in Hz.

    Raises
    ------
    UserError
        If a clip is damaged, or has another length than `duration` seconds or another sample rate than the first.
    """
    first: tuple[int, int] | None = None
    for part in portions(range(len(names)), size):
        read = [audio.read(folder / names[i]) for i in part]
        for i, (waveform, sample_rate) in zip(part, read, strict=True):
            found = (len(waveform), sample_rate)
            first = first or found
            if found != first or abs(len(waveform) / sample_rate - duration) > LENGTH_ERROR:
                raise UserError(
                    f"{folder / names[i]}: has {len(waveform)} samples at {sample_rate} Hz; {duration:g} s at the rate "
                    f"of the other clips was expected. {audio.WAY_OUT.capitalize()}."
                )
        yield part, torch.stack([w for w, _ in read]), read[0][1]
