"""Features of a clip that a musician would name: numbers that no network computes. docs/features.md explains them."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import librosa
import numpy as np
import pyloudnorm

SAMPLE_RATE = 16_000  # Hz; every clip is resampled to it, so that its features do not depend on its rate
FRAME, HOP = 1024, 256  # samples: frames for level, onsets and centroid
LONG_FRAME, LONG_HOP = 4096, 1024  # for pitches
BLOCK = 0.4  # seconds, of BS.1770
SILENT = 1e-4  # a clip whose peak is below -80 dBFS is silent
QUIET = 1e-2  # a frame whose level is more than 40 dB below that of the loudest frame is silence
FEWEST_ONSETS = 3  # that have a tempo
PITCHES = (60.0, 2100.0)  # Hz: about B1 to C7
HARMONICS = {1: 1.0, 2: 1 / 2, 3: 1 / 3, 4: 1 / 4}  # and their weights, for the salience of a pitch

# Probe-tone profiles of C major and C minor (Krumhansl and Kessler, 1982, Psychological Review 89:334).
MAJOR = (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88)
MINOR = (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17)


@dataclass(frozen=True)
class Kind:
    """How a feature is shown: its name with its unit, and its decimals."""

    title: str
    decimals: int


FEATURES = {
    "loudness": Kind("loudness (LUFS)", 1),
    "onsets": Kind("onsets a second", 2),
    "tempo": Kind("tempo (beats a minute)", 0),
    "centroid": Kind("spectral centroid (Hz)", 0),
    "register": Kind("register (MIDI note)", 1),
    "mode": Kind("mode (major > 0 > minor)", 2),
    "silence": Kind("silence (share of time)", 2),
}


def measure(waveform: np.ndarray, sample_rate: int) -> dict[str, float]:
    """The features of a clip, by the names in `FEATURES`.

    Parameters
    ----------
    waveform
        Float [samples] in [-1, 1], of any length above 0.
    sample_rate
        In Hz.

    Returns
    -------
    Numbers; NaN for a feature that this clip does not have: most of them if it is silent, the tempo if it has fewer
    than three onsets.
    """
    sound = np.asarray(waveform, dtype=np.float32)
    if sample_rate != SAMPLE_RATE:
        sound = librosa.resample(sound, orig_sr=sample_rate, target_sr=SAMPLE_RATE)
    if np.abs(sound).max(initial=0.0) < SILENT:
        return dict.fromkeys(FEATURES, math.nan) | {"onsets": 0.0, "silence": 1.0}
    with warnings.catch_warnings(action="ignore"):  # about clips that are shorter than a frame
        short = np.abs(librosa.stft(sound, n_fft=FRAME, hop_length=HOP))
        long = np.abs(librosa.stft(sound, n_fft=LONG_FRAME, hop_length=LONG_HOP))
        level = librosa.feature.rms(y=sound, frame_length=FRAME, hop_length=HOP)[0]
        sounding = level >= QUIET * level.max()
        onsets, tempo = onsets_and_tempo(sound)
        return {
            "loudness": loudness(sound),
            "onsets": onsets,
            "tempo": tempo,
            "centroid": float(librosa.feature.spectral_centroid(S=short, sr=SAMPLE_RATE)[0, sounding].mean()),
            "register": register(_sounding(long)),
            "mode": mode(chroma(_sounding(long))),
            "silence": float(1 - sounding.mean()),
        }


def loudness(sound: np.ndarray) -> float:
    """Integrated loudness in LUFS (ITU-R BS.1770-4); NaN below its gate of -70 LUFS.

    A clip that is shorter than a block of 0.4 s is one block.
    """
    meter = pyloudnorm.Meter(SAMPLE_RATE, block_size=min(BLOCK, len(sound) / SAMPLE_RATE))
    with np.errstate(all="ignore"):  # of no block above the gate
        found = float(meter.integrated_loudness(sound.astype(np.float64)))
    return found if math.isfinite(found) else math.nan


def onsets_and_tempo(sound: np.ndarray) -> tuple[float, float]:
    """Onsets a second, and the tempo in beats a minute; the latter is NaN if there are fewer than `FEWEST_ONSETS`.

    Onsets are peaks of the spectral flux (Böck, Krebs and Schedl, 2012). The tempo is the likeliest period of the flux,
    with a prior that is centred on 120 (Ellis, 2007).
    """
    flux = librosa.onset.onset_strength(y=sound, sr=SAMPLE_RATE, n_fft=FRAME, hop_length=HOP)
    found = librosa.onset.onset_detect(onset_envelope=flux, sr=SAMPLE_RATE, hop_length=HOP)
    if len(found) < FEWEST_ONSETS:
        tempo = math.nan
    else:
        tempo = float(librosa.feature.tempo(onset_envelope=flux, sr=SAMPLE_RATE, hop_length=HOP)[0])
    return len(found) * SAMPLE_RATE / len(sound), tempo


def register(spectrum: np.ndarray) -> float:
    """Mean over the frames of the most salient pitch, as a MIDI note number (69 is 440 Hz); NaN if there is none.

    The salience of a pitch is the weighted sum of the magnitudes of its first four harmonics (Salamon and Gomez, 2012).
    A period estimator (YIN) would find the common fundamental of a chord, which nobody plays.

    Parameters
    ----------
    spectrum
        Magnitudes [LONG_FRAME / 2 + 1, frames].
    """
    frequencies = librosa.fft_frequencies(sr=SAMPLE_RATE, n_fft=LONG_FRAME)
    harmonics, weights = list(HARMONICS), list(HARMONICS.values())
    salience = librosa.salience(spectrum, freqs=frequencies, harmonics=harmonics, weights=weights, fill_value=0.0)
    possible = (frequencies >= PITCHES[0]) & (frequencies <= PITCHES[1])
    salience = np.nan_to_num(salience[possible])
    found = salience.max(axis=0, initial=0.0) > 0
    if not found.any():
        return math.nan
    return float(librosa.hz_to_midi(frequencies[possible][salience[:, found].argmax(axis=0)]).mean())


def chroma(spectrum: np.ndarray) -> np.ndarray:
    """Mean power of the pitch classes C to B in the clip's own tuning, float [12]; `spectrum` as for `register`."""
    tuning = librosa.estimate_tuning(S=spectrum, sr=SAMPLE_RATE, n_fft=LONG_FRAME)
    power = spectrum**2
    return librosa.feature.chroma_stft(S=power, sr=SAMPLE_RATE, n_fft=LONG_FRAME, tuning=tuning, norm=None).mean(axis=1)


def mode(pitch_classes: np.ndarray) -> float:
    """How much more major than minor: the best major key's correlation less the best minor key's, in [-2, 2].

    Krumhansl and Schmuckler's algorithm (Krumhansl, 1990): the pitch classes, float [12], are correlated with the
    profile of each of the 24 keys. NaN if all twelve are equally strong.
    """
    if np.ptp(pitch_classes) <= 1e-9 * np.abs(pitch_classes).max():
        return math.nan

    def best(profile: tuple[float, ...]) -> float:
        return max(np.corrcoef(np.roll(profile, tonic), pitch_classes)[0, 1] for tonic in range(12))

    return float(best(MAJOR) - best(MINOR))


def _sounding(spectrum: np.ndarray) -> np.ndarray:
    """The frames of a spectrum that are no silence."""
    level = np.sqrt((spectrum**2).sum(axis=0))
    return spectrum[:, level >= QUIET * level.max()]
