"""Describing a folder of clips: the features of each clip, and its distance to the others of its prompt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from music_ddpo.core.files import write_text
from music_ddpo.core.params import Params
from music_ddpo.machine import processes
from music_ddpo.machine.batches import choose
from music_ddpo.measuring import clips
from music_ddpo.measuring.diversity import (
    DISTANCES,
    cosine_distances,
    distance_to_others,
    log_mel,
    mel_distances,
)
from music_ddpo.measuring.features import measure
from music_ddpo.rewards.held_out import HeldOutClap


def write(folder: Path, table: Path, params: Params, models: Path) -> None:
    """Describes a folder of clips and writes the table as CSV; an undefined feature is an empty cell."""
    described = describe(folder, params, HeldOutClap.load(models, choose(params.compute).device))
    if processes.is_main():
        write_text(table, described.to_csv(index=False))


def describe(folder: Path, params: Params, clap: HeldOutClap) -> pd.DataFrame:
    """The index of a folder of clips, with a column for each of `FEATURES` and of `DISTANCES`.

    Of several processes each describes its part, and all get the table.
    """
    index, _ = clips.load(folder, params)
    names = list(index["clip"])
    mine = [names[i] for i in processes.own(len(names))]
    rows, embeddings, mels = [], [], []
    with tqdm(total=len(mine), unit="clip", desc=f"features of {folder.name}", disable=not processes.is_main()) as bar:
        for _, (waveform,), sample_rate in clips.waveforms(folder, mine, 1, params.duration):
            rows.append(measure(waveform.numpy(), sample_rate))
            embeddings.append(embedding(clap, waveform, sample_rate))
            mels.append(log_mel(waveform.numpy(), sample_rate))
            bar.update()
    table = pd.concat([index.drop(columns="prompt"), pd.DataFrame(processes.gather(rows))], axis=1)
    table[list(DISTANCES)] = np.nan
    embeddings, mels = processes.gather(embeddings), processes.gather(mels)
    for own in index.groupby("prompt", sort=False).indices.values():
        apart = cosine_distances([embeddings[i] for i in own]), mel_distances([mels[i] for i in own])
        table.loc[own, list(DISTANCES)] = np.stack([distance_to_others(d) for d in apart], 1)
    return table.round(6)


def embedding(clap: HeldOutClap, waveform: torch.Tensor, sample_rate: int) -> np.ndarray:
    """CLAP's embedding of a clip [samples], the mean over its windows: float32 [dimensions]."""
    return clap.embed_audio(waveform.clamp(-1, 1), sample_rate).mean(0).numpy()
