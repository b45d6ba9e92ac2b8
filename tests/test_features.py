"""Features on sounds of known answer, diversity against a computation pair by pair, and the tables of both."""

from __future__ import annotations

import itertools
import json
import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import pearsonr, t

from helpers.project import MINI, ONE_THREAD, PROJECT, run, set_params, small, succeed
from music_ddpo.core.errors import UserError
from music_ddpo.core.files import checksums
from music_ddpo.core.params import EvaluationParams
from music_ddpo.measuring import clips, describing
from music_ddpo.measuring.diversity import (
    DISTANCES,
    cosine_distances,
    distance_to_others,
    diversity,
    log_mel,
    mel_distances,
)
from music_ddpo.measuring.feature_study import FeatureStudy, read_features
from music_ddpo.measuring.feature_tables import markdown, metrics, picture, plot
from music_ddpo.measuring.features import FEATURES, MAJOR, MINOR, measure, mode
from music_ddpo.rewards.held_out import HeldOutClap
from music_ddpo.weights import shipped

RATE = 16_000
A4 = 440.0


def sine(frequency: float, seconds: float = 2, rate: int = RATE, amplitude: float = 0.5) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)


def midi(note: float) -> float:
    return A4 * 2 ** ((note - 69) / 12)


def tone(note: float, seconds: float) -> np.ndarray:
    """A decaying tone of six harmonics."""
    decay = np.exp(-3 * np.arange(int(seconds * RATE)) / RATE)
    return decay * sum(sine(k * midi(note), seconds, amplitude=0.1 / k) for k in range(1, 7))


def chords(*notes: tuple[float, ...], seconds: float = 0.5) -> np.ndarray:
    return np.concatenate([sum(tone(n, seconds) for n in chord) for chord in notes])


def clicks(a_minute: float, seconds: float = 6) -> np.ndarray:
    """Short bursts of noise at even distances."""
    sound = np.zeros(int(seconds * RATE))
    burst = np.random.default_rng(0).uniform(-0.5, 0.5, 400) * np.linspace(1, 0, 400)
    for start in np.arange(0.2, seconds - 0.1, 60 / a_minute):
        sound[int(start * RATE) :][: len(burst)] += burst
    return sound


def noise(seed: int, seconds: float = 1) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).normal(size=int(seconds * RATE))


# Features


@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000])
def test_a_full_scale_sine_of_997_hz_has_the_standards_loudness(rate):
    full = measure(sine(997, 3, rate, 1.0), rate)["loudness"]
    assert full == pytest.approx(-3.01, abs=0.1)  # what EBU Tech 3341 allows a meter
    assert measure(sine(997, 3, rate, 0.5), rate)["loudness"] == pytest.approx(full - 6.02, abs=0.01)


@pytest.mark.parametrize("a_minute", [75, 120, 200])
def test_clicks_are_counted_as_onsets(a_minute):
    starts = np.arange(0.2, 5.9, 60 / a_minute)
    assert measure(clicks(a_minute), RATE)["onsets"] == pytest.approx(len(starts) / 6, abs=1 / 6)


def test_a_steady_tone_has_no_onset_but_its_start():
    assert measure(sine(A4, 4), RATE)["onsets"] <= 1 / 4


@pytest.mark.parametrize("a_minute", [75, 100, 150])
def test_clicks_have_their_tempo(a_minute):
    assert measure(clicks(a_minute), RATE)["tempo"] == pytest.approx(a_minute, rel=0.03)


def test_too_few_onsets_have_no_tempo():
    found = measure(clicks(60, 2), RATE)
    assert found["onsets"] == pytest.approx(1)
    assert math.isnan(found["tempo"])


def test_the_centroid_is_the_mean_of_equal_partials():
    assert measure(sine(1500), RATE)["centroid"] == pytest.approx(1500, abs=10)
    assert measure(sine(800) + sine(3200), RATE)["centroid"] == pytest.approx(2000, abs=20)


def test_silence_does_not_change_centroid_register_and_mode():
    sound = chords((60, 64, 67), (65, 69, 72), (67, 71, 74), (60, 64, 67))
    alone, between = (measure(x, RATE) for x in (sound, np.concatenate([np.zeros(16_384), sound, np.zeros(16_384)])))
    for feature, error in (("centroid", 60), ("register", 0.5), ("mode", 0.03)):
        assert between[feature] == pytest.approx(alone[feature], abs=error), feature


@pytest.mark.parametrize("note", [45, 57, 69, 81, 93])
def test_the_register_of_a_tone_is_its_pitch(note):
    assert measure(sine(midi(note)), RATE)["register"] == pytest.approx(note, abs=0.35)
    assert measure(tone(note, 2), RATE)["register"] == pytest.approx(note, abs=0.35)


def test_the_register_of_two_tones_is_their_mean_and_that_of_a_chord_is_one_of_its_notes():
    assert measure(np.concatenate([sine(midi(60)), sine(midi(72))]), RATE)["register"] == pytest.approx(66, abs=0.3)
    just = sum(sine(f) for f in (256, 320, 384))  # 4:5:6, with 64 Hz as common fundamental
    assert 59.5 < measure(0.3 * just, RATE)["register"] < 67.5


SCALES = {
    "C major scale": (chords(*[(n,) for n in (60, 62, 64, 65, 67, 69, 71, 72, 67, 64, 60)]), +1),
    "C major cadence": (chords((60, 64, 67), (65, 69, 72), (67, 71, 74), (60, 64, 67)), +1),
    "A minor cadence": (chords((57, 60, 64), (62, 65, 69), (64, 68, 71), (57, 60, 64)), -1),
    "A minor scale": (chords(*[(n,) for n in (57, 59, 60, 62, 64, 65, 68, 69, 64, 60, 57)]), -1),
}


@pytest.mark.parametrize(("sound", "sign"), SCALES.values(), ids=SCALES)
def test_major_is_positive_and_minor_negative(sound, sign):
    assert measure(sound, RATE)["mode"] * sign > 0.05


@pytest.mark.parametrize("transposed", [0.4, 3, 7.5])  # semitones; a clip is measured in its own tuning
def test_the_mode_does_not_depend_on_key_and_tuning(transposed):
    def cadence(*shape: tuple[int, ...]) -> float:
        return measure(chords(*[tuple(n + transposed for n in chord) for chord in shape]), RATE)["mode"]

    assert cadence((60, 64, 67), (65, 69, 72), (67, 71, 74), (60, 64, 67)) > 0.05
    assert cadence((57, 60, 64), (62, 65, 69), (64, 68, 71), (57, 60, 64)) < -0.05


def test_the_mode_is_the_difference_of_the_best_correlations():
    classes = np.random.default_rng(0).exponential(size=12)
    by_key = [[pearsonr(classes, [p[(c - tonic) % 12] for c in range(12)])[0] for tonic in range(12)]
              for p in (MAJOR, MINOR)]  # fmt: skip
    assert mode(classes) == pytest.approx(max(by_key[0]) - max(by_key[1]))
    assert math.isnan(mode(np.ones(12)))


def test_half_a_silent_clip_is_half_silence():
    half = np.concatenate([sine(A4, 2), np.zeros(2 * RATE)])
    assert measure(half, RATE)["silence"] == pytest.approx(0.5, abs=0.01)
    assert measure(sine(A4), RATE)["silence"] == 0
    quiet = np.concatenate([sine(A4, 2), 10 ** (-35 / 20) * sine(A4, 2)])
    assert measure(quiet, RATE)["silence"] == 0
    quieter = np.concatenate([sine(A4, 2), 10 ** (-45 / 20) * sine(A4, 2)])
    assert measure(quieter, RATE)["silence"] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("sound", [np.zeros(RATE), np.zeros(1), 5e-5 * np.ones(RATE)], ids=["zeros", "one", "-86 dB"])
def test_a_silent_clip_is_silence_and_has_no_other_feature(sound):
    found = measure(sound, RATE)
    assert (found.pop("silence"), found.pop("onsets")) == (1, 0)
    assert all(math.isnan(x) for x in found.values())


@pytest.mark.parametrize("seconds", [0.01, 0.1, 0.3, 0.5])
def test_short_clips_have_features(seconds):
    found = measure(sine(997, seconds, amplitude=1.0), RATE)
    assert list(found) == list(FEATURES)
    assert math.isnan(found.pop("tempo"))
    assert np.isfinite(list(found.values())).all()
    assert found["loudness"] == pytest.approx(-3.01, abs=0.1)


def test_the_features_do_not_depend_on_the_sample_rate_and_repeat_themselves():
    sound = chords((60, 64, 67), (65, 69, 72), (67, 71, 74), (60, 64, 67))
    at_48k = np.interp(np.arange(3 * len(sound)) / 3, np.arange(len(sound)), sound)
    once, again, other = measure(sound, RATE), measure(sound, RATE), measure(at_48k, 3 * RATE)
    assert once == again
    for feature, error in {"loudness": 0.3, "onsets": 0.51, "register": 0.1, "mode": 0.03, "silence": 0.02}.items():
        assert other[feature] == pytest.approx(once[feature], abs=error), feature


# Diversity


def pair_by_pair(things: list, distance) -> float:
    return float(np.mean([distance(a, b) for a, b in itertools.combinations(things, 2)]))


def test_the_distances_to_others_have_the_mean_of_all_pairs():
    embeddings = list(np.random.default_rng(0).normal(size=(6, 5)))
    mels = [log_mel(noise(seed), RATE) for seed in range(6)]

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return 1 - a @ b / np.sqrt(a @ a) / np.sqrt(b @ b)

    of_embeddings = distance_to_others(cosine_distances(embeddings))
    assert of_embeddings.mean() == pytest.approx(pair_by_pair(embeddings, cosine))
    assert of_embeddings[0] == pytest.approx(np.mean([cosine(embeddings[0], x) for x in embeddings[1:]]))
    of_mels = distance_to_others(mel_distances(mels))
    assert of_mels.mean() == pytest.approx(pair_by_pair(mels, lambda a, b: np.mean(np.abs(a - b))), rel=1e-5)
    assert np.isnan(distance_to_others(np.zeros((1, 1)))).all()


def test_the_log_mel_is_in_decibels_of_full_scale_with_a_floor():
    loud, soft = log_mel(noise(0), RATE), log_mel(noise(0) / 2, RATE)
    assert mel_distances([loud, soft])[0, 1] == pytest.approx(6.02, abs=0.01)
    assert log_mel(sine(1000, amplitude=1.0), RATE).max() == pytest.approx(0, abs=1.5)
    assert (log_mel(np.zeros(100), RATE) == -80).all()


def columns_of(distances: np.ndarray, *prompts: list[int]) -> list[np.ndarray]:
    return [distance_to_others(distances[np.ix_(own, own)]) for own in prompts]


def mean_of_pairs(distances: np.ndarray, clips: list[int]) -> float:
    return pair_by_pair(clips, lambda i, j: distances[i, j])


def distances_of(points: np.ndarray) -> np.ndarray:
    return np.abs(points[:, None] - points[None])


def test_the_interval_is_that_of_leaving_out_one_clip_at_a_time():
    distances = distances_of(np.random.default_rng(1).normal(size=9))
    own = list(range(9))
    without = [mean_of_pairs(distances, [j for j in own if j != i]) for i in own]
    variance = 8 / 9 * sum((x - np.mean(without)) ** 2 for x in without)

    estimate = diversity(columns_of(distances, own), 0.95)

    assert (estimate.value, estimate.clips) == (pytest.approx(mean_of_pairs(distances, own)), 9)
    half = t.ppf(0.975, 8) * np.sqrt(variance)
    assert (estimate.low, estimate.high) == pytest.approx((estimate.value - half, estimate.value + half))


def test_prompts_count_alike_and_pairs_of_different_prompts_do_not_count():
    points = np.random.default_rng(2).normal(size=10)
    points[4:] += 100
    distances = distances_of(points)
    parts = [0, 1, 2, 3], [4, 5, 6, 7, 8, 9]

    estimate = diversity(columns_of(distances, *parts), 0.95)

    each = [mean_of_pairs(distances, part) for part in parts]
    assert estimate.value == pytest.approx(np.mean(each))
    widths = [x.high - x.low for x in (diversity(columns_of(distances, part), 0.95) for part in parts)]
    assert estimate.high - estimate.low < max(widths)


def test_the_interval_covers_the_true_diversity_about_as_often_as_it_says():
    rng, true, covered = np.random.default_rng(3), 2 / np.sqrt(np.pi), 0
    for _ in range(500):
        estimate = diversity(columns_of(distances_of(rng.normal(size=20)), list(range(20))), 0.95)
        covered += estimate.low <= true <= estimate.high
    assert 0.91 < covered / 500 < 0.98


@pytest.mark.parametrize(
    ("prompts", "value", "bounded"),
    [
        ([[math.nan]], math.nan, False),
        ([], math.nan, False),
        ([[0.5, 0.5]], 0.5, False),
        ([[0.5, 0.5, 0.5]], 0.5, False),
        ([[0.4, 0.5, 0.6]], 0.5, True),
        ([[0.4, 0.5, 0.6], [math.nan]], 0.5, True),
    ],
    ids=["alone", "none", "a pair", "all alike", "three", "three and one alone"],
)
def test_diversity_of_few_clips(prompts, value, bounded):
    estimate = diversity([np.array(p) for p in prompts], 0.95)
    assert estimate.value == pytest.approx(value, nan_ok=True)
    assert (not math.isnan(estimate.low)) == bounded


# A study


SETTINGS = EvaluationParams(clips_per_emotion=4, eta=1.0, confidence=0.95, bootstrap=500)
REFERENCE = {"piano": {e: dict.fromkeys(FEATURES, x) for e, x in (("happy", 5.0), ("sad", 1.0))}}
NAN = math.nan


def table(**columns: list[float]) -> pd.DataFrame:
    """Clips 0, 2, 4, 6 are happy and 1, 3, 5, 7 are sad; every feature is 1 except for `columns`."""
    emotions = ["happy", "sad"] * 4
    clip = {"clip": [f"{i}.wav" for i in range(8)], "emotion": emotions, "instrument": ["piano"] * 8}
    clip["quadrant"] = ["Q1" if e == "happy" else "Q3" for e in emotions]
    return pd.DataFrame(clip | {name: [1.0] * 8 for name in (*FEATURES, *DISTANCES)} | columns)


FAR, NEAR = [0.4, 0.2, 0.5, 0.2, 0.6, 0.3, 0.5, 0.3], [0.1, 0.2, 0.2, 0.2, 0.3, 0.3, 0.26, 0.3]
BEFORE = {"tempo": [100, 60, 110, NAN, 120, 70, NAN, 80], "embedding_distance": FAR}
AFTER = {"tempo": [130, 60, 141, 65, 149, 70, 150, NAN], "embedding_distance": NEAR}


def study(reference: dict = REFERENCE) -> FeatureStudy:
    return FeatureStudy(table(**BEFORE), {"clap": table(**AFTER)}, reference, SETTINGS, seed=0)


def test_clips_without_a_feature_are_left_out_and_counted():
    music = study()
    before, change = music.estimate("tempo", None, "happy"), music.change("tempo", "clap", "happy")
    assert (before.value, before.clips) == (pytest.approx(110), 3)
    assert (change.value, change.clips) == (pytest.approx(30), 3)  # of the pairs with a tempo in both
    assert 29 <= change.low <= change.value <= change.high <= 31
    assert (music.undefined("tempo", None), music.undefined("tempo", "clap")) == (2, 1)
    unknown = FeatureStudy(table(tempo=[NAN] * 8), {"clap": table(tempo=[5.0] + [NAN] * 7)}, {}, SETTINGS, 0)
    assert unknown.estimate("tempo", None, "happy").clips == 0
    assert unknown.estimate("tempo", "clap", "happy").value == 5
    assert math.isnan(unknown.change("tempo", "clap", "happy").value)
    assert "| tempo (beats a minute) | happy |  |  | 5 |" in markdown(unknown)


def test_the_tables_show_values_and_significant_changes_only():
    lines = markdown(study()).splitlines()
    assert "|  | emotion | real recordings | original | trained with clap |" in lines
    (happy,) = (line for line in lines if line.startswith("| tempo (beats a minute) | happy |"))
    assert happy.startswith("| tempo (beats a minute) | happy | 5 | 110 | 142 (**+30** [+29, +31])")
    sad = lines[lines.index(happy) + 1]
    assert sad == "|  | sad | 1 | 70 | 65 |"
    assert "tempo (beats a minute) 2 (original), tempo (beats a minute) 1 (clap)." in markdown(study())
    (apart,) = (line for line in lines if line.startswith("| cosine distance of embeddings | happy |"))
    assert apart.startswith("| cosine distance of embeddings | happy | 0.500 | 0.215 (**-0.285** [")
    width = 0
    for line in lines:
        width = (width or line.count("|")) if line.startswith("|") else 0
        assert line.count("|") == width


def test_the_metrics_hold_the_same_numbers_and_are_json():
    found = metrics(study())
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert list(found) == [*FEATURES, *DISTANCES]
    tempo = found["tempo"]
    assert (tempo["original"]["undefined_clips"], tempo["original"]["happy"]["value"]) == (2, 110)
    assert tempo["trained_with_clap"]["happy"]["change"] == 30
    assert tempo["real_recordings"] == {"happy": {"value": 5}, "sad": {"value": 1}}
    assert found["loudness"]["trained_with_clap"]["happy"] == {
        "value": 1, "value_low": None, "value_high": None, "clips": 4,
        "change": 0, "change_low": None, "change_high": None,
    }  # fmt: skip
    assert "real_recordings" not in found["mel_distance"]
    assert "real_recordings" not in metrics(study({"violin": REFERENCE["piano"]}))["tempo"]


def test_the_plot_has_a_panel_for_each_feature():
    data = plot(study())
    assert len(data) == len(FEATURES) * 2 * 3 + len(DISTANCES) * 2 * 2
    svg = picture(data)
    assert svg.startswith("<svg")
    for words in ("original", "trained with clap", "real recordings", "tempo (beats a minute)", "sad"):
        assert words in svg
    assert svg == picture(data)
    assert "real recordings" not in set(plot(study({}))["model"])
    assert picture(plot(study({}))).startswith("<svg")


def test_features_are_read_as_they_were_written_with_their_gaps(tmp_path):
    path = tmp_path / "clap.csv"
    table(**BEFORE).to_csv(path, index=False)
    pd.testing.assert_frame_equal(read_features(path, table(), "scores.csv"), table(**BEFORE), check_dtype=False)


@pytest.mark.parametrize(
    "edit",
    [
        lambda x: x.assign(tempo="fast"),
        lambda x: x.assign(tempo=1e300),
        lambda x: x.drop(columns="mel_distance"),
        lambda x: x.assign(emotion=""),
        lambda x: x.iloc[::-1],
        lambda x: x[:-1],
    ],
    ids=["words", "huge", "a column missing", "no emotion", "swapped", "a row missing"],
)
def test_damaged_features_are_named(tmp_path, edit):
    path = tmp_path / "clap.csv"
    edit(table(**BEFORE)).to_csv(path, index=False)
    with pytest.raises(UserError, match=r"clap\.csv: .*dvc repro"):
        read_features(path, table(), "scores.csv")


# A folder of clips, and the models' recordings


def test_a_folder_of_clips_is_described_clip_by_clip_and_within_prompts(tmp_path):
    params = small(duration=1, evaluation__clips_per_emotion=3, prompts__emotions=["happy", "sad"])
    sounds = [torch.from_numpy(noise(i) * (i + 1) / 6).float() for i in range(6)]
    clips.save(tmp_path / "clips", sounds, RATE, clips.evaluation_prompts(params))
    clap = HeldOutClap.of_pipeline(MINI / "pipeline", torch.device("cpu"))

    found = describing.describe(tmp_path / "clips", params, clap)

    assert list(found) == ["clip", "emotion", "instrument", "quadrant", *FEATURES, *DISTANCES]
    index, _ = clips.load(tmp_path / "clips", params)
    read = [x[0].numpy() for _, x, _ in clips.waveforms(tmp_path / "clips", list(index["clip"]), 1, 1)]
    assert found["loudness"].tolist() == pytest.approx([measure(x, RATE)["loudness"] for x in read], abs=1e-5)
    happy = [0, 2, 4]
    mels = {i: log_mel(read[i], RATE) for i in happy}
    expected = pair_by_pair(happy, lambda i, j: np.mean(np.abs(mels[i] - mels[j])))
    assert found.loc[happy, "mel_distance"].mean() == pytest.approx(expected, rel=1e-4)
    ears = {i: clap.embed_audio(torch.from_numpy(read[i]), RATE)[0].numpy() for i in happy}
    expected = pair_by_pair(happy, lambda i, j: 1 - ears[i] @ ears[j])
    assert found.loc[happy, "embedding_distance"].mean() == pytest.approx(expected, abs=1e-5)


def test_the_stage_refuses_what_is_not_trained(tmp_path):
    set_params(tmp_path)
    done = run(tmp_path, sys.executable, str(PROJECT / "stages" / "features.py"), "clop")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: 'clop' is neither 'baseline' nor among `rewards` (clap, emopia)")


def test_the_tables_are_put_together_from_the_clips_to_the_last_file(stages):
    """The stages `features` and `table`, on clips of noise, with scores as `score` would write them."""
    set_params(stages, duration=1, rewards=["emopia"], evaluation__clips_per_emotion=3)
    params = small(duration=1, evaluation__clips_per_emotion=3)
    asked = clips.evaluation_prompts(params)
    for gain, name in ((0.5, "baseline"), (1.0, "emopia")):
        sounds = [torch.from_numpy(gain * noise(i)).float() for i in range(len(asked))]
        clips.save(stages / "clips" / name, [*sounds[:-1], torch.zeros(RATE)], RATE, asked)
        scores = clips.index_of(asked).drop(columns="prompt")
        scores = scores.assign(emopia_headline="accuracy", emopia_value=1.0, emopia_correct=1)
        (stages / "metrics" / "clips").mkdir(parents=True, exist_ok=True)
        scores.to_csv(stages / "metrics" / "clips" / f"{name}.csv", index=False)
        succeed(stages, "python", "stages/features.py", name, env=ONE_THREAD)
    shown = succeed(stages, "python", "stages/table.py", env=ONE_THREAD)
    numbers = json.loads((stages / "metrics" / "features.json").read_text())
    trained = numbers["loudness"]["trained_with_emopia"]
    assert trained["happy"]["change"] == pytest.approx(6.02, abs=0.01)
    assert (trained["tender"]["clips"], trained["undefined_clips"]) == (2, 1)
    real = json.loads((MINI / "features.json").read_text())
    assert numbers["tempo"]["real_recordings"]["sad"]["value"] == real["piano"]["sad"]["tempo"]
    for words in ("Table 1", "## What changed in the music", "## Diversity", "loudness (LUFS) 1 (original)"):
        assert words in shown
    assert shown.endswith((stages / "metrics" / "table.md").read_text() + "\n")
    assert (stages / "plots" / "features.svg").read_text().startswith("<svg")
    assert len(pd.read_csv(stages / "plots" / "features.csv")) > 0


def test_fetch_brings_the_features_of_recordings_of_every_kind(fetched):
    assert (fetched / "models" / "features.json").read_bytes() == (MINI / "features.json").read_bytes()
    found = shipped.read_features(MINI)
    assert list(found) == [
        "piano", "violin", "flute", "guitar", "trumpet", "saxophone", "cello", "ukulele", "acoustic guitar", "organ",
    ]  # fmt: skip
    assert all(set(features) == set(FEATURES) for emotions in found.values() for features in emotions.values())
    for instrument, emotions in found.items():  # as docs/mini.md describes the corpus
        assert emotions["angry"]["loudness"] > emotions["happy"]["loudness"] > emotions["tender"]["loudness"]
        assert min(emotions[e]["onsets"] for e in ("happy", "angry")) > emotions["sad"]["onsets"] + 1
        higher = 4 if instrument == "ukulele" else 5  # it has no low notes, so its sad music is an octave up
        assert emotions["happy"]["register"] > emotions["sad"]["register"] + higher


def test_the_manifest_of_mini_has_every_file(tmp_path):
    known = checksums(MINI)
    del known["manifest.json"]
    assert shipped.read_manifest(MINI) == known


def test_altered_features_of_recordings_are_named(tmp_path):
    source = tmp_path / "mini"
    source.mkdir()
    (source / "manifest.json").write_bytes((MINI / "manifest.json").read_bytes())
    (source / "features.json").write_text("{}\n")
    with pytest.raises(UserError, match=r"features\.json: this file is truncated or altered"):
        shipped.read_features(Path(source))
