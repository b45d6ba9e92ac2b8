"""Measures the embedded models, writes what real recordings score, and the manifest that `fetch` verifies."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from corpus import INSTRUMENTS, SAMPLE_RATE
from mel import load, log_mel
from music_ddpo.core import audio
from music_ddpo.core.files import checksums, write_json
from music_ddpo.core.params_file import load as load_params
from music_ddpo.core.prompts import EMOTIONS_OF_QUADRANT, QUADRANTS, Prompt, fill, make_prompts
from music_ddpo.core.randomness import random_generator
from music_ddpo.machine.batches import choose
from music_ddpo.measuring import features
from music_ddpo.model.audioldm2 import Generator
from music_ddpo.model.policy import Policy
from music_ddpo.model.rendering import render
from music_ddpo.rewards.base import Reward
from music_ddpo.rewards.clap import Clap
from music_ddpo.rewards.emopia import Emopia
from music_ddpo.rewards.held_out import HeldOutClap
from music_ddpo.rewards.listener import Listener
from music_ddpo.rewards.preference import Preference
from music_ddpo.weights.shipped import FEATURES, MANIFEST, REFERENCE
from train_clap import recording_is_spoiled
from train_emopia import MEMBERS, WINDOW

MODELS = Path("build/models")
EMOTIONS = [EMOTIONS_OF_QUADRANT[q][0] for q in QUADRANTS]
SECONDS = 5


def score(judge: Reward, waveforms: torch.Tensor, prompts: list[Prompt]):
    return judge.score(waveforms, SAMPLE_RATE, prompts)


def hears_instrument(clap: Clap, waveforms: torch.Tensor, prompts: list[Prompt], template: str) -> float:
    """How often the prompt with the right instrument is nearer than those with the others."""
    right = []
    for waveform, prompt in zip(waveforms, prompts, strict=True):
        texts = torch.stack([clap.embed_text(fill(template, prompt.emotion, i)) for i in INSTRUMENTS])
        heard = (texts @ clap.embed_audio(waveform, SAMPLE_RATE).T).mean(1).argmax()
        right.append(INSTRUMENTS[heard] == prompt.instrument)
    return float(np.mean(right))


def errors(emopia: Emopia, clap: Clap, sound: torch.Tensor, asked: list[Prompt]) -> dict[str, float]:
    """How the first classifier errs, and whether `clap` errs on the same recordings."""
    heard = score(emopia, sound, asked)
    scores = torch.stack([heard.details[f"score_{q}"] for q in QUADRANTS], 1)
    steps = np.array([QUADRANTS.index(a) for a in heard.predicted]) - np.array(
        [QUADRANTS.index(p.quadrant) for p in asked]
    )
    wrong = heard.correct == 0
    return {
        "emopia_member_1_mean_highest_score": float(scores.amax(1).mean()),
        "emopia_member_1_hears_a_neighbouring_quadrant": float((steps % 2 == 1).mean()),
        "emopia_member_1_hears_the_opposite_quadrant": float((steps % 4 == 2).mean()),
        "clap_wrong_where_emopia_member_1_is_wrong": float(1 - score(clap, sound, asked).correct[wrong].mean()),
        "clap_wrong": float(1 - score(clap, sound, asked).correct.mean()),
    }


def of_generator(listener: Listener, sound: torch.Tensor, asked: list[Prompt]) -> dict[str, float]:
    """What the listener hears in generated clips: the emotion with the piano, and the instruments."""
    judged = score(listener, sound, asked)
    table = pd.DataFrame(
        {
            "emotion": [p.emotion for p in asked],
            "instrument": [p.instrument for p in asked],
            "right": judged.correct,
            "plays": judged.details["instrument"],
            "heard": judged.predicted,
        }
    )
    default = table[table.emotion.isin(EMOTIONS)]
    piano = default[default.instrument == "piano"]
    plays = default.groupby("instrument", sort=False).plays.mean()
    emotions = piano.groupby("emotion", sort=False).right
    return {
        "generated_listener_accuracy": piano.right.mean(),
        **{f"generated_listener_accuracy_{e}": mean for e, mean in emotions.mean().items()},
        **{f"generated_best_of_32_{e}": best for e, best in emotions.max().items()},
        "generated_share_of_the_commonest_quadrant": piano.heard.value_counts(normalize=True).max(),
        "generated_listener_accuracy_other_instruments": default[default.instrument != "piano"].right.mean(),
        "generated_listener_accuracy_other_words": table[~table.emotion.isin(EMOTIONS)].right.mean(),
        "generated_instrument_accuracy": plays.mean(),
        **{f"generated_instrument_accuracy_{name}": mean for name, mean in plays.items()},
    }


def means_of_features(waveforms: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> dict:
    """{instrument: {emotion: {feature: mean}}} of recordings [samples], over those that have the feature."""
    rows = [
        features.measure(x, SAMPLE_RATE)
        for x in tqdm(waveforms, desc="features of held-out recordings", mininterval=10)
    ]
    of = {"instrument": [p.instrument for p in prompts], "emotion": [p.emotion for p in prompts]}
    means = pd.DataFrame(rows).groupby([of["instrument"], of["emotion"]]).mean().round(4)
    result: dict = {}
    for prompt in dict.fromkeys(prompts):
        known = means.loc[(prompt.instrument, prompt.emotion)].dropna()
        result.setdefault(prompt.instrument, {})[prompt.emotion] = known.to_dict()
    return result


@torch.no_grad()
def main() -> None:
    torch.manual_seed(8)
    params = load_params("../../params.yaml")
    execution = choose(params.compute)
    template = params.prompts.template
    prompts = make_prompts(template, EMOTIONS, list(INSTRUMENTS))
    generator = Generator.load(MODELS / "pipeline", torch.device("cpu"))
    cpu = torch.device("cpu")
    networks = Emopia.of_folder(MODELS / "rewards" / "emopia", cpu, params.emopia.windows, MEMBERS).networks
    members = [Emopia([n], SAMPLE_RATE, WINDOW, cpu, params.emopia.windows) for n in networks]
    emopia = Emopia.of_folder(MODELS / "rewards" / "emopia", cpu, **params.emopia.model_dump())
    listener = Listener.of_folder(MODELS / "rewards" / "listener", cpu)
    clap, preference = (kind.load(MODELS, cpu) for kind in (Clap, Preference))
    player = HeldOutClap.of_pipeline(MODELS / "pipeline", cpu)
    metrics: dict[str, float] = {}
    for part in ("sound", "preference"):
        metrics |= json.loads(Path(f"build/{part}.json").read_text())

    # Held-out recordings, as they are and after VAE and vocoder.
    clips = load("held-out")
    clean = [i for i in range(len(clips)) if not recording_is_spoiled("held-out", i)]
    real = torch.from_numpy(clips[clean, : SECONDS * SAMPLE_RATE].astype(np.float32) / 32767)
    asked = [prompts[i % len(prompts)] for i in clean]  # prompts and recordings alternate in the same order
    mel = log_mel(real)
    decoded = torch.cat(
        [generator.vocoder(generator.vae.decode(generator.vae.encode(m[:, None]).latent_dist.sample()).sample[:, 0])
         for m in tqdm(mel.split(16), desc="decode held-out recordings")]
    )  # fmt: skip
    heard = {"recordings": real, "decoded": decoded}
    for name, sound in heard.items():
        for i, member in enumerate(members):
            metrics[f"emopia_member_{i + 1}_accuracy_{name}"] = float(score(member, sound, asked).correct.mean())
        metrics[f"emopia_accuracy_{name}"] = float(score(emopia, sound, asked).correct.mean())
        judged = score(clap, sound, asked)
        metrics[f"clap_emotion_accuracy_{name}"] = float(judged.correct.mean())
        metrics[f"clap_instrument_accuracy_{name}"] = hears_instrument(clap, sound, asked, template)
        metrics[f"clap_similarity_{name}"] = float(judged.value.mean())
        metrics[f"player_clap_emotion_accuracy_{name}"] = float(score(player, sound, asked).correct.mean())
        judged = score(listener, sound, asked)
        metrics[f"listener_accuracy_{name}"] = float(judged.correct.mean())
        metrics[f"listener_instrument_accuracy_{name}"] = float(judged.details["instrument"].mean())
    metrics |= errors(members[0], clap, real, asked)
    metrics["recordings"] = len(clean)

    # What real recordings score, for the tables: the upper end of the gap in `gap_closed`.
    reference: dict = {}
    headlines = (
        (emopia, "correct"), (clap, "value"), (player, "value"), (preference, "value"), (listener, "correct"),
    )  # fmt: skip
    for judge, column in headlines:
        values = getattr(score(judge, real, asked), column)
        for instrument in INSTRUMENTS:
            for emotion in EMOTIONS:
                rows = [p.instrument == instrument and p.emotion == emotion for p in asked]
                mean = round(float(values[rows].mean()), 4)
                reference.setdefault(judge.name, {}).setdefault(instrument, {})[emotion] = mean
    write_json(MODELS / REFERENCE, reference)
    write_json(MODELS / FEATURES, means_of_features(real.numpy(), asked))

    # The generator: 32 clips for each prompt of the default study, 8 for each with another instrument or another word.
    words = [w for q in QUADRANTS for w in EMOTIONS_OF_QUADRANT[q]]
    others = [p for p in make_prompts(template, words, ["piano"]) if p.emotion not in EMOTIONS]
    every = [*prompts, *others]
    policy = Policy(
        generator, [p.text for p in every], params.prompts.negative, params.steps, SECONDS, params.guidance_scale,
        params.evaluation.eta,
    )  # fmt: skip
    index = [i for i in range(len(every)) for _ in range(32 if i < len(EMOTIONS) else 8)]
    noise = {i: random_generator(8, "measure", 0, i) for i in range(len(index))}
    with tqdm(total=len(index) * params.steps, unit="step", desc="generate") as bar:
        sound = torch.stack(render(policy, range(len(index)), dict(enumerate(index)), noise, execution, bar))
    metrics |= {k: float(v) for k, v in of_generator(listener, sound, [every[i] for i in index]).items()}
    default = [i for i, kind in enumerate(index) if kind < len(EMOTIONS)]
    values = score(clap, sound[default], [every[index[i]] for i in default]).value
    metrics["generated_clap_similarity"] = float(values.mean())

    samples = Path("build/samples")
    samples.mkdir(exist_ok=True)
    for number, instrument in enumerate(INSTRUMENTS):
        for emotion in EMOTIONS if instrument == "piano" else [EMOTIONS[number % len(EMOTIONS)]]:
            kind = next(i for i, p in enumerate(prompts) if (p.emotion, p.instrument) == (emotion, instrument))
            first = asked.index(prompts[kind])
            sounds = {"recording": real[first], "decoded": decoded[first], "generated": sound[index.index(kind)]}
            for name, waveform in sounds.items():
                audio.write(samples / f"{name}-{emotion}-{instrument.replace(' ', '-')}.wav", waveform, SAMPLE_RATE)

    (MODELS / MANIFEST).unlink(missing_ok=True)
    write_json(MODELS / MANIFEST, checksums(MODELS))
    metrics["megabytes"] = sum(f.stat().st_size for f in MODELS.rglob("*") if f.is_file()) / 1e6
    write_json("build/metrics.json", {key: round(value, 4) for key, value in metrics.items()})
    print(json.dumps(metrics, indent=2))


if __name__ == "__main__":
    main()
