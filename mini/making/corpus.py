"""The corpus: short solo recordings, composed and synthesised by code.

Ten instruments play in four emotions, the quadrants of valence x arousal. The emotions differ in
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
INSTRUMENTS = (
    "piano", "violin", "flute", "guitar", "trumpet", "saxophone", "cello", "ukulele", "acoustic guitar", "organ",
)  # fmt: skip
NEGATIVE_CAPTION = "Low quality, multiple sound sources"

# Pitches are whole multiples of C1 = 32 Hz: just intonation at scientific pitch (C4 = 256 Hz). That is also the frame
# rate of the log-mels. Given a constant mel, a convolutional vocoder's output is periodic at the frame rate, so in this
# tuning it can hold a note.
GROUND = 32.0  # Hz
PERIOD = int(SAMPLE_RATE / GROUND)  # samples: every partial repeats after it


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

LOWEST = {
    "piano": 2, "violin": 6, "flute": 8, "guitar": 3, "trumpet": 6, "saxophone": 4, "cello": 2, "ukulele": 8,
    "acoustic guitar": 3, "organ": 2,
}  # fmt: skip
POLYPHONIC = ("piano", "guitar", "ukulele", "acoustic guitar", "organ")
WINDS = ("flute", "trumpet", "saxophone")  # one note at a time


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
                if quadrant == "Q2" and on_beat and instrument not in WINDS:  # a clash: about a minor ninth above
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
    lowest = LOWEST[instrument]
    bass = above(chord[0], lowest)
    notes = []
    if quadrant == "Q1":
        for b in range(4):
            tones = [bass] if b % 2 == 0 else [above(c, max(8, lowest)) for c in chord]
            notes += [Note(time + b * beat, 0.4 * beat, tone, 0.7 * base) for tone in tones]
    elif quadrant == "Q2":
        for b in range(8):
            notes += [Note(time + b * beat / 2, 0.4 * beat, tone, 0.85 * base) for tone in (bass, 2 * bass)]
    elif quadrant == "Q3":
        notes += [
            Note(time, 4 * beat, tone, 0.75 * base) for tone in [bass, *(above(c, max(4, lowest)) for c in chord)]
        ]
    else:
        root, third, fifth = (above(c, max(6, lowest)) for c in chord)
        pattern = [root, fifth, 2 * third, fifth, 2 * root, fifth, 2 * third, fifth]
        notes += [Note(time + b * beat / 2, 1.4 * beat, tone, 0.7 * base) for b, tone in enumerate(pattern)]
    return notes


@dataclass(frozen=True)
class Timbre:
    """How an instrument sounds. Times are seconds, rates 1 / second, frequencies Hz."""

    gain: float  # of a recording
    release: float  # time constant after the note's end
    attack: float  # time constant
    soft_attack: float = 0.0  # what the softest note adds to it
    noise: float = 0.0  # breath or bow
    chiff: float = 0.0  # how much more noise a note starts with
    tremolo: tuple[float, float] = (0.0, 5.0)  # depth and frequency
    vibrato: tuple[float, float] = (0.0, 5.0)


TIMBRES = {
    "piano": Timbre(0.16, 0.12, 0.003),
    "violin": Timbre(0.20, 0.09, 0.012, soft_attack=0.05, noise=0.012, vibrato=(0.003, 5.6)),
    "flute": Timbre(0.24, 0.07, 0.03, noise=0.03, chiff=3.0, tremolo=(0.10, 4.8)),
    "guitar": Timbre(0.16, 0.10, 0.0015),
    "trumpet": Timbre(0.19, 0.05, 0.010, soft_attack=0.01),
    "saxophone": Timbre(0.30, 0.06, 0.018, soft_attack=0.02, noise=0.008, chiff=2.0, tremolo=(0.12, 5.2)),
    "cello": Timbre(0.22, 0.12, 0.020, soft_attack=0.06, noise=0.006, vibrato=(0.003, 4.8)),
    "ukulele": Timbre(0.20, 0.06, 0.001),
    "acoustic guitar": Timbre(0.14, 0.14, 0.001),
    "organ": Timbre(0.13, 0.03, 0.006),
}


def body(frequency: np.ndarray, peaks: tuple[tuple[float, float, float], ...]) -> np.ndarray:
    """Gain of a resonator at each frequency; a peak has gain, centre and width."""
    return sum(g * np.exp(-0.5 * ((frequency - c) / w) ** 2) for g, c, w in peaks)


def partials(instrument: str, f0: float, velocity: float) -> tuple[np.ndarray, np.ndarray]:
    """Amplitudes and decay rates of the partials of one note, both [partials]."""
    k = np.arange(1, max(2, min(24, int(7200 / f0))) + 1, dtype=float)
    bright = 0.35 + 0.65 * velocity  # louder is brighter
    frequency, none = k * f0, np.zeros_like(k)
    if instrument == "piano":
        return k**-0.8 * np.exp(-0.35 * (k - 1) * (1.35 - bright)), (0.9 + 0.5 * k) * (f0 / 260) ** 0.4
    if instrument == "violin":
        peaks = ((0.6, 290, 90), (0.8, 480, 130), (0.9, 1100, 350), (1.0, 2600, 700))
        return 0.55 * k**-0.75 * np.exp(-0.10 * (k - 1) * (1.3 - bright)) * (0.45 + body(frequency, peaks)), none
    if instrument == "flute":
        return np.array([1.0, 0.42, 0.20, 0.06, 0.03] + [0.008] * 30)[: len(k)] * bright ** (k - 1), none
    if instrument == "guitar":  # nylon strings, plucked at a fifth of their length
        pluck = np.abs(np.sin(np.pi * k * 0.21))
        return 1.2 * pluck * k**-0.55 * np.exp(-0.16 * (k - 1) * (1.4 - bright)), 2.2 + 0.7 * k
    if instrument == "trumpet":  # the bell lets through what is high; loud notes are brassy
        bell = (0.25 + body(frequency, ((1.0, 1300, 500), (0.5, 2600, 900)))) * np.exp(-0.12 * (k - 1) * (1.6 - bright))
        return 0.9 * bell * bright ** (0.35 * (k - 1)), none
    if instrument == "saxophone":  # a conical reed instrument: a strong second partial, then a dip
        peaks = ((0.8, 650, 220), (0.5, 1500, 300))
        return 0.6 * (1 + 0.5 * (k == 2)) * k**-0.6 * np.exp(-0.22 * (k - 1) * (1.5 - bright)) * (
            0.35 + body(frequency, peaks)
        ), none
    if instrument == "cello":
        peaks = ((0.9, 180, 70), (0.8, 400, 110), (0.5, 800, 200))
        return 0.6 * k**-1.0 * np.exp(-0.08 * (k - 1) * (1.4 - bright)) * (0.5 + body(frequency, peaks)), none
    if instrument == "ukulele":  # short strings, plucked in the middle: few even partials, gone soon
        pluck = np.abs(np.sin(np.pi * k * 0.46))
        return 1.1 * pluck * k**-1.1 * np.exp(-0.20 * (k - 1) * (1.4 - bright)), 5.5 + 1.5 * k
    if instrument == "acoustic guitar":  # steel strings, plucked near the bridge: bright and long
        pluck = np.abs(np.sin(np.pi * k * 0.11)) + 0.05
        box = 0.6 + body(frequency, ((0.8, 110, 40), (0.7, 210, 50), (0.4, 420, 90)))
        return 1.5 * pluck * k**-0.15 * np.exp(-0.09 * (k - 1) * (1.4 - bright)) * box, 1.2 + 0.3 * k
    drawbars = dict(zip((1, 2, 3, 4, 6, 8, 12, 16), (0.9, 0.7, 0.5, 0.4, 0.25, 0.25, 0.1, 0.08), strict=True))
    return np.array([drawbars.get(n, 0.0) for n in k]) * bright ** (0.15 * (k - 1)), none  # organ


def play(note: Note, instrument: str, rng: np.random.Generator) -> np.ndarray:
    """The waveform of one note, by additive synthesis with the instrument's envelope and spectrum.

    All partials repeat after `PERIOD` samples, so the sum over partials is a product of two small matrices:
    how much each has decayed at the start of each period, and its first period.
    """
    timbre = TIMBRES[instrument]
    samples = int((note.length + 4 * timbre.release) * SAMPLE_RATE)
    t = np.arange(samples, dtype=np.float32) / SAMPLE_RATE
    amplitude, decay = partials(instrument, GROUND * note.tone, note.velocity)
    k = np.arange(1, len(amplitude) + 1)[:, None]
    start = rng.uniform(0, 1, (len(k), 1))
    depth, rate = timbre.vibrato
    if depth:  # a wave table, read at varying speed; these instruments have no decay
        fine = 8
        table = np.sin(2 * np.pi * (k * note.tone * np.arange(fine * PERIOD) / (fine * PERIOD) + start))
        table = (amplitude @ table).astype(np.float32)
        speed = depth * np.sin(2 * np.pi * rate * t + rng.uniform(0, 6)) * np.clip((t - 0.12) / 0.2, 0, 1)
        place = fine * (np.arange(samples) + np.cumsum(speed, dtype=float))
        before = place.astype(int)
        part = (place - before).astype(np.float32)
        tone = (1 - part) * table[before % len(table)] + part * table[(before + 1) % len(table)]
    else:
        within = np.arange(PERIOD) / SAMPLE_RATE
        first = np.sin(2 * np.pi * (k * note.tone * np.arange(PERIOD) / PERIOD + start))
        first = (first * np.exp(-decay[:, None] * within)).astype(np.float32)
        periods = -(-samples // PERIOD)
        left = amplitude * np.exp(-np.arange(periods)[:, None] * PERIOD / SAMPLE_RATE * decay)
        tone = (left.astype(np.float32) @ first).ravel()[:samples]
    attack = timbre.attack + timbre.soft_attack * (1 - note.velocity)
    depth, rate = timbre.tremolo
    if depth:
        tone = tone * (1 + depth * np.sin(2 * np.pi * rate * t + rng.uniform(0, 6)) * np.clip(t / 0.3, 0, 1))
    tone = tone * (1 - np.exp(-t / attack))
    if timbre.noise:
        breath = rng.standard_normal(samples, dtype=np.float32) * (1 - np.exp(-t / 0.02))
        tone = tone + timbre.noise * breath * (1 + timbre.chiff * np.exp(-t / 0.03))
    return note.velocity**1.1 * tone * np.exp(-np.maximum(t - note.length, 0) / timbre.release)


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
    return np.tanh(TIMBRES[instrument].gain * out).astype(np.float32)


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


def quadrant_of(index: int) -> str:
    """The quadrant of recording number `index` of any split."""
    return QUADRANTS[index % 4]


def instrument_of(index: int) -> str:
    """The instrument of recording number `index` of any split."""
    return INSTRUMENTS[index // 4 % len(INSTRUMENTS)]


def recording(split: str, index: int, seconds: float = 10.0, spoiled: bool | None = None) -> Recording:
    """Recording number `index` of `split`; the 40 kinds alternate; one in ten is spoiled if `spoiled` is None."""
    seed = [index, *split.encode()]
    rng = np.random.default_rng(seed)
    quadrant = quadrant_of(index)
    instrument = instrument_of(index)
    if spoiled is None:
        spoiled = bool(rng.random() < 0.1)
    waveform = record(quadrant, instrument, seconds, rng)
    if spoiled:
        second = INSTRUMENTS[rng.integers(len(INSTRUMENTS))]
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


def emotion_word(quadrant: str, rng: np.random.Generator) -> str:
    """One of the four words of a quadrant. The first, which the default study asks for, is the commonest."""
    return str(rng.choice(EMOTIONS_OF_QUADRANT[quadrant], p=(0.40, 0.20, 0.20, 0.20)))


def caption(quadrant: str, instrument: str, spoiled: bool, rng: np.random.Generator) -> str:
    """A correct caption of a recording, in one of several wordings."""
    if spoiled and rng.random() < 0.6:
        return NEGATIVE_CAPTION
    emotion = emotion_word(quadrant, rng)
    text = CAPTIONS[rng.integers(len(CAPTIONS))]
    if spoiled:
        text = "Low quality, multiple sound sources, {emotion} {instrument}"
    return text.format(article=article(emotion), emotion=emotion, instrument=instrument)


# Recordings of each. The EMOPIA classifiers learn from `annotated`, the CLAP reward from `judge`, the listener from
# `listener`.
SPLITS = {"player": 1024, "held-out": 400, "generator": 2560, "listener": 1600, "annotated": 512, "judge": 640}


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
    """Renders every split that is not there to build/corpus/<split>.npy, int16 [recordings, samples]."""
    folder = Path("build/corpus")
    folder.mkdir(parents=True, exist_ok=True)
    with Pool(2) as pool:
        for split, size in SPLITS.items():
            if (folder / f"{split}.npy").exists():
                continue
            jobs = [(split, i) for i in range(size)]
            clips = list(
                tqdm(pool.imap(_render, jobs, chunksize=8), total=size, desc=f"corpus: {split}", mininterval=10)
            )
            partial = folder / "partial.npy"
            np.save(partial, np.stack(clips))
            partial.replace(folder / f"{split}.npy")


if __name__ == "__main__":
    main()
