"""The clips of the page: loudness-matched audio, spectrograms, and what each judge says of each clip."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
from PIL import Image
from tqdm import tqdm

from music_ddpo.core.params import Params
from music_ddpo.core.prompts import EMOTIONS_OF_QUADRANT, quadrant_of
from music_ddpo.measuring import clips
from music_ddpo.measuring.diversity import log_mel
from music_ddpo.measuring.study import Study
from music_ddpo.measuring.summary import LISTENER

TARGET = -23.0  # LUFS, the programme loudness of EBU R 128
DEPTH = 80.0  # dB between white and black in a spectrogram


@dataclass(frozen=True)
class Track:
    """A clip of one model.

    Attributes
    ----------
    model
        "original" or the adapter's name.
    sound, picture
        Relative paths of the MP3 file and of the spectrogram.
    gain
        In dB, which the file has been amplified by.
    verdicts
        Of each judge: its number, the word that it hears (None if it names none), and whether that is right.
    """

    model: str
    sound: str
    picture: str
    gain: float
    verdicts: dict[str, tuple[float, str | None, bool | None]]


@dataclass(frozen=True)
class Card:
    """The clips of all models from the same noise.

    Attributes
    ----------
    states
        For each adapter whether the judge that counts was right before and after: "kept", "gained", "lost" or
        "missed"; empty if that judge names no emotion.
    changes
        For each adapter the change of that judge's number.
    """

    number: int
    emotion: str
    instrument: str
    prompt: str
    seconds: float
    tracks: list[Track]
    states: dict[str, str]
    changes: dict[str, float]


def judge_that_counts(study: Study) -> str:
    """The listener if there is one, else the held-out judge, else the first one."""
    return next((judge for judge in (LISTENER, "held_out") if judge in study.judges), next(iter(study.judges)))


def write(folder: Path, params: Params, study: Study, levels: Mapping[str, Sequence[float]]) -> list[Card]:
    """Writes the audio and the spectrograms of all clips to `folder`/clips.

    Parameters
    ----------
    levels
        The loudness of each clip in LUFS, by model: "original" and each adapter.

    Returns
    -------
    A card for each row of the study's tables.

    Raises
    ------
    UserError
        If a clip is missing or damaged.
    """
    models = {"original": "baseline", **{adapter: adapter for adapter in study.trained}}
    tracks: dict[str, list[Track]] = {}
    index, _ = clips.load(Path("clips/baseline"), params)
    seconds = params.duration
    with tqdm(total=len(models) * len(index), unit="clip", desc="report") as bar:
        for model, source in models.items():
            own, _ = clips.load(Path("clips") / source, params)
            table = study.table(None if model == "original" else model)
            tracks[model] = []
            names = list(own["clip"])
            for (i,), (waveform,), sample_rate in clips.waveforms(Path("clips") / source, names, 1, params.duration):
                stem = f"clips/{model}/{Path(names[i]).stem}"
                gain = _write_clip(folder / stem, waveform.numpy(), sample_rate, levels[model][i])
                said = verdicts(study, table.iloc[i])
                tracks[model].append(Track(model, f"{stem}.mp3", f"{stem}.png", gain, said))
                seconds = len(waveform) / sample_rate
                bar.update()
    counts = judge_that_counts(study)
    return [
        Card(
            number=i,
            emotion=row["emotion"],
            instrument=row["instrument"],
            prompt=row["prompt"],
            seconds=seconds,
            tracks=[own[i] for own in tracks.values()],
            states=states(study, counts, i),
            changes={
                adapter: tracks[adapter][i].verdicts[counts][0] - tracks["original"][i].verdicts[counts][0]
                for adapter in study.trained
            },
        )
        for i, row in index.iterrows()
    ]


def gain_to_target(waveform: np.ndarray, level: float) -> float:
    """The gain in dB that brings a clip [samples] of `level` LUFS to `TARGET`; less if it would exceed full scale.

    0 if the clip is silent, and so has no level (NaN).
    """
    peak = float(np.abs(waveform).max(initial=0.0))
    if not math.isfinite(level) or peak == 0:
        return 0.0
    return round(min(TARGET - level, -20 * math.log10(peak)), 2)


def spectrogram(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """The log-mel spectrogram of a clip [samples], uint8 [64, frames]: high pitches first, and loud is dark."""
    mel = log_mel(waveform, sample_rate)[::-1]
    return np.clip((mel.max() - mel) / DEPTH * 255, 0, 255).astype(np.uint8)


def verdicts(study: Study, row: pd.Series) -> dict[str, tuple[float, str | None, bool | None]]:
    """What each judge says of the clip of this row; see `Track`."""
    said = {}
    for judge in study.judges:
        heard = row.get(f"{judge}_predicted")
        right = None if heard is None else bool(row[f"{judge}_correct"])
        said[judge] = (float(row[f"{judge}_value"]), None if heard is None else word_of(heard, study.emotions), right)
    return said


def states(study: Study, judge: str, i: int) -> dict[str, str]:
    """Whether a judge was right about clip i before and after training; see `Card`."""
    if f"{judge}_predicted" not in study.original:
        return {}
    words = {(1, 1): "kept", (0, 1): "gained", (1, 0): "lost", (0, 0): "missed"}
    before = int(study.original[f"{judge}_correct"].iloc[i])
    return {a: words[before, int(table[f"{judge}_correct"].iloc[i])] for a, table in study.trained.items()}


def word_of(quadrant: str, emotions: Sequence[str]) -> str:
    """The first emotion of the study in a quadrant, or else the first one that mini knows."""
    own = [emotion for emotion in emotions if quadrant_of(emotion) == quadrant]
    return (own or list(EMOTIONS_OF_QUADRANT.get(quadrant, ("none of them",))))[0]


def _write_clip(path: Path, waveform: np.ndarray, sample_rate: int, level: float) -> float:
    path.parent.mkdir(parents=True, exist_ok=True)
    gain = gain_to_target(waveform, level)
    amplified = waveform * 10 ** (gain / 20)
    best = {"format": "MP3", "bitrate_mode": "VARIABLE", "compression_level": 0.0}
    soundfile.write(path.with_suffix(".mp3"), amplified, sample_rate, **best)
    Image.fromarray(spectrogram(waveform, sample_rate)).save(path.with_suffix(".png"), optimize=True)
    return gain
