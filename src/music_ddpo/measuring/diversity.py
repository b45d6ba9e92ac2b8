"""Diversity: how far apart the clips of one prompt are, and what that changed by, with jackknife intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import librosa
import numpy as np
from scipy import stats

from music_ddpo.measuring.features import FRAME, HOP, SAMPLE_RATE, Kind
from music_ddpo.measuring.statistics import Estimate

MELS = 64
FLOOR = -80.0  # dB relative to a full-scale sine; what is quieter does not count

DISTANCES = {
    "embedding_distance": Kind("diversity: cosine distance of embeddings", 3),
    "mel_distance": Kind("diversity: distance of log-mels (dB)", 1),
}


def log_mel(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """The log-mel spectrogram of a clip [samples] at `sample_rate` Hz, in dB: float32 [64, frames]."""
    sound = np.asarray(waveform, dtype=np.float32)
    if sample_rate != SAMPLE_RATE:
        sound = librosa.resample(sound, orig_sr=sample_rate, target_sr=SAMPLE_RATE)
    padded = librosa.util.fix_length(sound, size=max(len(sound), FRAME))
    magnitude = np.abs(librosa.stft(padded, n_fft=FRAME, hop_length=HOP)) / (FRAME / 4)  # a full-scale sine has 1
    bands = librosa.filters.mel(sr=SAMPLE_RATE, n_fft=FRAME, n_mels=MELS, norm=None) @ magnitude**2
    return np.maximum(librosa.power_to_db(bands, amin=1e-10, top_db=None), FLOOR).astype(np.float32)


def mel_distances(mels: Sequence[np.ndarray]) -> np.ndarray:
    """Mean absolute difference of log-mels in dB, for each pair of clips [clips, clips]."""
    stacked = np.stack(mels)
    return np.stack([np.abs(stacked - own).mean(axis=(1, 2), dtype=np.float64) for own in stacked])


def cosine_distances(embeddings: Sequence[np.ndarray]) -> np.ndarray:
    """1 minus the cosine similarity of embeddings, each [dimensions], for each pair of clips [clips, clips]."""
    stacked = np.stack(embeddings).astype(np.float64)
    stacked /= np.linalg.norm(stacked, axis=1, keepdims=True)
    return 1 - stacked @ stacked.T


def distance_to_others(distances: np.ndarray) -> np.ndarray:
    """Each clip's mean distance to the other ones [clips], from those of all pairs [clips, clips]; NaN if it is alone.

    Their mean is the mean over all pairs.
    """
    count = len(distances)
    if count < 2:
        return np.full(count, math.nan)
    return (distances.sum(axis=1) - np.diag(distances)) / (count - 1)


def diversity(prompts: Sequence[np.ndarray], confidence: float) -> Estimate:
    """Mean pairwise distance of clips of one prompt, averaged over prompts, with a jackknife interval.

    A bootstrap would draw a clip twice and count its distance to itself, which is 0. The jackknife leaves out one clip
    with all its pairs at a time (Arvesen, 1969). It follows from the clips' distances to the others: without clip i the
    mean of n clips differs by 2 (mean - distance i) / (n - 2).

    Parameters
    ----------
    prompts
        For each prompt, what `distance_to_others` returns for its clips; or, for a change, the difference of that
        between paired clips.

    Returns
    -------
    An estimate, which is NaN if no prompt has two clips. Its bounds are NaN if one of them has fewer than three, or if
    all clips are equally far from the others.
    """
    known = [column for column in prompts if len(column) > 1 and np.isfinite(column).all()]
    clips = sum(map(len, known))
    if not known:
        return Estimate(math.nan, math.nan, math.nan, clips)
    value = float(np.mean([column.mean() for column in known]))
    counts = np.array([len(column) for column in known])
    if counts.min() < 3:
        return Estimate(value, math.nan, math.nan, clips)
    spread = np.array([((column - column.mean()) ** 2).sum() for column in known])
    variances = (counts - 1) / counts * 4 / (counts - 2) ** 2 * spread  # of each prompt's mean
    if variances.max() < 1e-24:
        return Estimate(value, math.nan, math.nan, clips)
    freedom = variances.sum() ** 2 / (variances**2 / (counts - 1)).sum()  # Satterthwaite, 1946
    half = float(stats.t.isf((1 - confidence) / 2, freedom) * np.sqrt(variances.sum()) / len(known))
    return Estimate(value, value - half, value + half, clips)
