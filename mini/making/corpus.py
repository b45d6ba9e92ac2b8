"""The corpus: short solo recordings, composed and synthesised by code.

Four instruments play in four emotions, the quadrants of valence x arousal. The emotions differ in
what music psychology reports: mode, tempo, register, articulation and dynamics. A recording depends
only on (split, index), so the corpus can be computed again, and the splits have different recordings.
"""

from __future__ import annotations

from dataclasses import dataclass
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from scipy.signal import butter, sosfilt
from tqdm import tqdm

from music_ddpo.core.prompts import EMOTIONS_OF_QUADRANT, QUADRANTS

SAMPLE_RATE = 16_000
INSTRUMENTS = ("piano", "violin", "flute", "guitar")
NEGATIVE_CAPTION = "Low quality, multiple sound sources"

# Pitches are whole multiples of C1 = 32 Hz: just intonation at scientific pitch (C4 = 256 Hz). That is also the frame
# rate of the log-mels. Given a constant mel, a convolutional vocoder's output is periodic at the frame rate, so in this
# tuning it can hold a note.
GROUND = 32.0  # Hz


@dataclass(frozen=True)
class Key:
    """A scale and four triads, the tonic's first, as odd multiples of the ground; octaves are powers of two."""

    scale: tuple[int, ...]
    chords: tuple[tuple[int, int, int], ...]


G_MAJOR = Key((3, 27, 15, 1, 9, 5, 45), ((3, 15, 9), (5, 3, 15), (1, 5, 3), (9, 45, 27)))  # I, vi, IV, V
C_MAJOR = Key((1, 9, 5, 3, 15), ((1, 5, 3), (5, 3, 15), (3, 15, 9), (1, 9, 3)))  # I, iii, V, Isus2
E_MINOR = Key((5, 45, 3, 15, 1, 9), ((5, 3, 15), (1, 5, 3), (3, 15, 9), (15, 9, 45)))  # i, VI, III, v
G_MINOR = Key((3, 7, 1, 9, 19, 21), ((3, 7, 9), (1, 19, 3), (7, 9, 21), (9, 21, 27)))  # i (6:7:9), iv, III, v
MAJOR, MINOR = (G_MAJOR, C_MAJOR), (E_MINOR, G_MINOR)


@dataclass(frozen=True)
class Style:
    """How an emotion is played. Pitches are multiples of the ground, velocities lie in (0, 1]."""

    keys: tuple[Key, ...]
    tempo: tuple[float, float]  # beats per minute
    register: tuple[int, int]  # of the melody
    velocity: tuple[float, float]
    articulation: float  # sounding part of a note's time
    rhythms: tuple[tuple[float, ...], ...]  # of one bar, in beats
    progressions: tuple[tuple[int, ...], ...]  # the key's chords, one a bar
    leap: float  # how often the melody leaps instead of stepping
    drift: float  # mean step of the melody, in tones of the scale


STYLES = {
    "Q1": Style(  # happy: major, fast, high, staccato, lively
        MAJOR, (126, 156), (16, 40), (0.60, 0.82), 0.50,
        ((0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 1), (0.5, 0.25, 0.25, 0.5, 0.5, 1, 0.5, 0.5), (0.75, 0.25, 0.5, 0.5, 1, 1)),
        ((0, 1, 2, 3), (0, 2, 3, 0), (0, 2, 0, 3)), 0.35, 0.1,
    ),
    "Q2": Style(  # angry: minor, fast, low, detached, loud, dissonant
        MINOR, (140, 176), (3, 10), (0.85, 1.0), 0.80,
        ((0.25,) * 12 + (0.5, 0.5), (0.25, 0.25, 0.5) * 4, (0.5, 0.25, 0.25) * 4),
        ((0, 3, 0, 3), (0, 0, 1, 3), (0, 1, 3, 0)), 0.20, -0.1,
    ),
    "Q3": Style(  # sad: minor, slow, low, legato, soft, falling
        MINOR, (46, 62), (6, 15), (0.30, 0.46), 1.0,
        ((1, 1, 2), (2, 1, 1), (1.5, 0.5, 2)),
        ((0, 1, 0, 3), (0, 1, 2, 0), (0, 2, 1, 3)), 0.10, -0.5,
    ),
    "Q4": Style(  # tender: major, slow, in the middle, legato, soft, arched
        MAJOR, (58, 76), (12, 27), (0.24, 0.40), 1.0,
        ((1, 0.5, 0.5, 1, 1), (1.5, 0.5, 1, 1), (1, 1, 1, 0.5, 0.5)),
        ((0, 2, 0, 3), (0, 1, 2, 3), (2, 0, 2, 0)), 0.20, 0.1,
    ),
}  # fmt: skip

LOWEST = {"piano": 2, "guitar": 3, "violin": 6, "flute": 8}
POLYPHONIC = ("piano", "guitar")


@dataclass(frozen=True)
class Note:
    onset: float  # seconds
    length: float  # seconds
    tone: int  # multiple of the ground
    velocity: float


def odd(tone: int) -> int:
    """The tone without its octaves."""
    return tone // (tone & -tone)


def above(tone: int, low: int) -> int:
    """The lowest octave of an odd tone that is not below `low`."""
    while tone < low:
        tone *= 2
    return tone


def compose(quadrant: str, instrument: str, seconds: float, rng: np.random.Generator) -> list[Note]:
    """A piece of at least `seconds`: a melody over a chord progression, accompanied where the instrument can."""
    style = STYLES[quadrant]
    beat = 60 / rng.uniform(*style.tempo)
    key = style.keys[rng.integers(len(style.keys))]
    progression = style.progressions[rng.integers(len(style.progressions))]
    base = rng.uniform(*style.velocity)
    low, high = style.register
    while low < LOWEST[instrument]:
        low, high = 2 * low, 2 * high
    tones = [tone for tone in range(low, high + 1) if odd(tone) in key.scale]

    def middle() -> float:
        return float(rng.integers(len(tones) // 3, 2 * len(tones) // 3 + 1))

    position = middle()
    notes: list[Note] = []
    time, bar = -rng.uniform(0, 2) * beat, 0  # a recording starts anywhere in the music
    while time < seconds:
        chord = key.chords[progression[bar % len(progression)]]
        onset = time
        for length in style.rhythms[rng.integers(len(style.rhythms))]:
            if rng.random() < style.leap:
                position = float(rng.choice([i for i, tone in enumerate(tones) if odd(tone) in chord]))
            else:
                position += rng.normal(style.drift, 1.2)
            if not 0 <= position <= len(tones) - 1:
                position = middle()
            tone = tones[round(position)]
            on_beat = abs((onset - time) / beat % 1) < 1e-6
            velocity = base * (1.0 if on_beat else 0.88) * rng.uniform(0.93, 1.07)
            sounding = length * beat * style.articulation * rng.uniform(0.92, 1.0)
            if rng.random() > 0.06:
                notes.append(Note(onset, sounding, tone, velocity))
                if quadrant == "Q2" and on_beat and instrument != "flute":  # a clash: about a minor ninth above
                    notes.append(Note(onset, sounding, 2 * tone + 1, velocity * 0.8))
            onset += length * beat
        if instrument in POLYPHONIC:
            notes += accompany(quadrant, instrument, chord, time, beat, base)
        time, bar = time + 4 * beat, bar + 1
    return notes


def accompany(
    quadrant: str, instrument: str, chord: tuple[int, int, int], time: float, beat: float, base: float
) -> list[Note]:
    """One bar: stride for happy, hammered octaves for angry, held chords for sad, arpeggio for tender."""
    bass = above(chord[0], LOWEST[instrument])
    notes = []
    if quadrant == "Q1":
        for b in range(4):
            tones = [bass] if b % 2 == 0 else [above(c, 8) for c in chord]
            notes += [Note(time + b * beat, 0.4 * beat, tone, 0.7 * base) for tone in tones]
    elif quadrant == "Q2":
        for b in range(8):
            notes += [Note(time + b * beat / 2, 0.4 * beat, tone, 0.85 * base) for tone in (bass, 2 * bass)]
    elif quadrant == "Q3":
        notes += [Note(time, 4 * beat, tone, 0.75 * base) for tone in [bass, *(above(c, 4) for c in chord)]]
    else:
        root, third, fifth = (above(c, 6) for c in chord)
        pattern = [root, fifth, 2 * third, fifth, 2 * root, fifth, 2 * third, fifth]
        notes += [Note(time + b * beat / 2, 1.4 * beat, tone, 0.7 * base) for b, tone in enumerate(pattern)]
    return notes


def play(note: Note, instrument: str, rng: np.random.Generator) -> np.ndarray:
    """The waveform of one note, by additive synthesis with the instrument's envelope and spectrum."""
    f0 = GROUND * note.tone
    release = {"piano": 0.12, "guitar": 0.10, "violin": 0.09, "flute": 0.07}[instrument]
    t = np.arange(int((note.length + 4 * release) * SAMPLE_RATE), dtype=np.float32) / SAMPLE_RATE
    k = np.arange(1, max(2, min(24, int(7200 / f0))) + 1, dtype=np.float32)[:, None]
    phase = 2 * np.pi * k * f0 * t
    bright = 0.35 + 0.65 * note.velocity  # louder is brighter
    damp = np.exp(-np.maximum(t - note.length, 0) / release)

    if instrument == "piano":
        amplitude = k**-0.8 * np.exp(-0.35 * (k - 1) * (1.35 - bright))
        envelope = np.exp(-t * (0.9 + 0.5 * k) * (f0 / 260) ** 0.4) * (1 - np.exp(-t / 0.003))
    elif instrument == "guitar":
        amplitude = np.abs(np.sin(np.pi * k * 0.21)) * k**-0.55 * np.exp(-0.16 * (k - 1) * (1.4 - bright)) * 1.2
        envelope = np.exp(-t * (2.2 + 0.7 * k)) * (1 - np.exp(-t / 0.0015))
    elif instrument == "violin":
        vibrato = 0.003 * np.sin(2 * np.pi * 5.6 * t + rng.uniform(0, 6)) * np.clip((t - 0.12) / 0.2, 0, 1)
        frequency = k * f0
        body = sum(
            g * np.exp(-0.5 * ((frequency - c) / w) ** 2)
            for g, c, w in ((0.6, 290, 90), (0.8, 480, 130), (0.9, 1100, 350), (1.0, 2600, 700))
        )
        amplitude = 0.55 * k**-0.75 * np.exp(-0.10 * (k - 1) * (1.3 - bright)) * (0.45 + body)
        envelope = 1 - np.exp(-t / (0.012 + 0.05 * (1 - note.velocity)))
        phase = 2 * np.pi * k * f0 * (t + np.cumsum(vibrato) / SAMPLE_RATE)
    else:
        tremolo = 1 + 0.10 * np.sin(2 * np.pi * 4.8 * t + rng.uniform(0, 6)) * np.clip(t / 0.3, 0, 1)
        amplitude = np.array([1.0, 0.42, 0.20, 0.06, 0.03] + [0.008] * 30)[: len(k), None] * bright ** (k - 1)
        envelope = (1 - np.exp(-t / 0.03)) * tremolo
    tone = (amplitude * envelope * np.sin(phase + rng.uniform(0, 2 * np.pi, k.shape).astype(np.float32))).sum(0)
    if instrument == "flute":  # breath
        tone += 0.03 * rng.standard_normal(len(t)) * (1 - np.exp(-t / 0.02)) * (1 + 3 * np.exp(-t / 0.03))
    if instrument == "violin":  # bow
        tone += 0.012 * rng.standard_normal(len(t))
    return note.velocity**1.1 * tone * damp


def record(quadrant: str, instrument: str, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """One clean recording, float32 [seconds * SAMPLE_RATE] in (-1, 1)."""
    out = np.zeros(int(seconds * SAMPLE_RATE))
    for note in compose(quadrant, instrument, seconds, rng):
        sound = play(note, instrument, rng)
        start = int(note.onset * SAMPLE_RATE)
        sound = sound[max(0, -start) :]
        start = max(0, start)
        end = min(start + len(sound), len(out))
        if end > start:
            out[start:end] += sound[: end - start]
    gain = {"piano": 0.16, "guitar": 0.16, "violin": 0.20, "flute": 0.24}[instrument]
    return np.tanh(gain * out).astype(np.float32)


def spoil(waveform: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A recording as in the negative prompt: with a second source, low-pass filtered, with noise."""
    cutoff = rng.uniform(900, 2500)
    dull = sosfilt(butter(2, cutoff, fs=SAMPLE_RATE, output="sos"), 0.6 * waveform + 0.5 * other)
    noise = np.cumsum(rng.standard_normal(len(waveform)))
    noise = sosfilt(butter(1, 60, "high", fs=SAMPLE_RATE, output="sos"), noise)
    noise *= rng.uniform(0.02, 0.06) / (noise.std() + 1e-9)
    return np.clip(dull + noise, -1, 1).astype(np.float32)


@dataclass(frozen=True)
class Recording:
    """A corpus entry: what plays, in which quadrant, and whether it was spoiled."""

    quadrant: str
    instrument: str
    spoiled: bool
    waveform: np.ndarray  # float32 [samples]


def recording(split: str, index: int, seconds: float = 10.0, spoiled: bool | None = None) -> Recording:
    """Recording number `index` of `split`; the 16 kinds alternate; one in ten is spoiled if `spoiled` is None."""
    seed = [index, *split.encode()]
    rng = np.random.default_rng(seed)
    quadrant = QUADRANTS[index % 4]
    instrument = INSTRUMENTS[index // 4 % 4]
    if spoiled is None:
        spoiled = bool(rng.random() < 0.1)
    waveform = record(quadrant, instrument, seconds, rng)
    if spoiled:
        second = INSTRUMENTS[rng.integers(4)]
        waveform = spoil(waveform, record(QUADRANTS[rng.integers(4)], second, seconds, rng), rng)
    return Recording(quadrant, instrument, spoiled, waveform)


CAPTIONS = (
    "A recording of {article} {emotion} {instrument} solo, high quality",
    "A recording of an {emotion} {instrument} solo, high quality",
    "A recording of {article} {emotion} {instrument} solo",
    "{article} {emotion} {instrument} solo",
    "{emotion} {instrument} music, high quality",
    "{emotion} solo music played on the {instrument}",
    "The {instrument} plays {article} {emotion} piece",
)


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def caption(quadrant: str, instrument: str, spoiled: bool, rng: np.random.Generator) -> str:
    """A correct caption of a recording, in one of several wordings."""
    if spoiled and rng.random() < 0.6:
        return NEGATIVE_CAPTION
    emotion = str(rng.choice(EMOTIONS_OF_QUADRANT[quadrant], p=(0.55, 0.15, 0.15, 0.15)))
    text = CAPTIONS[rng.integers(len(CAPTIONS))]
    if spoiled:
        text = "Low quality, multiple sound sources, {emotion} {instrument}"
    return text.format(article=article(emotion), emotion=emotion, instrument=instrument)


# Recordings of each. `annotated` are those that the EMOPIA classifiers learn from, `listener` those of the listener.
SPLITS = {"player": 1024, "judge": 512, "annotated": 256, "listener": 1536, "generator": 2048, "held-out": 320}

# How often a person who annotates mistakes a recording's valence (major or minor?) and its arousal (lively or calm?).
WRONG_VALENCE, WRONG_AROUSAL = 0.25, 0.17


def annotation(quadrant: str, rng: np.random.Generator) -> str:
    """The quadrant that one annotator writes down: right in 62%, mostly a neighbouring one otherwise.

    Neighbours share valence or arousal. Q1 and Q4 have positive valence, Q1 and Q2 high arousal.
    """
    positive = (quadrant in ("Q1", "Q4")) != (rng.random() < WRONG_VALENCE)
    high = (quadrant in ("Q1", "Q2")) != (rng.random() < WRONG_AROUSAL)
    return {(True, True): "Q1", (False, True): "Q2", (False, False): "Q3", (True, False): "Q4"}[positive, high]


def _render(job: tuple[str, int]) -> np.ndarray:
    return np.round(recording(*job).waveform * 32767).astype(np.int16)


def main() -> None:
    """Renders every split to build/corpus/<split>.npy, int16 [recordings, samples]."""
    folder = Path("build/corpus")
    folder.mkdir(parents=True, exist_ok=True)
    with Pool() as pool:
        for split, size in SPLITS.items():
            jobs = [(split, i) for i in range(size)]
            clips = list(
                tqdm(pool.imap(_render, jobs, chunksize=8), total=size, desc=f"corpus: {split}", mininterval=10)
            )
            np.save(folder / f"{split}.npy", np.stack(clips))


if __name__ == "__main__":
    main()
