"""Measures VAE and vocoder on held-out recordings, and what they and the rewards cost beside the present ones."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from transformers import SpeechT5HifiGan

from corpus import INSTRUMENTS, SAMPLE_RATE, compose, instrument_of, quadrant_of, recording
from mel import SCALE, load, log_mel
from music_ddpo.core.files import write_json
from music_ddpo.core.params_file import load as load_params
from music_ddpo.core.prompts import EMOTIONS_OF_QUADRANT, QUADRANTS, make_prompts
from music_ddpo.machine.batches import choose
from music_ddpo.rewards.clap import Clap
from music_ddpo.rewards.emopia import Emopia

PRESENT = Path("../models")
SECONDS = 5
SPLIT = "held-out"


def distance(sound: torch.Tensor, target: torch.Tensor) -> np.ndarray:
    """Mean absolute difference of the log-mels in dB, one for each clip."""
    return ((log_mel(sound) - log_mel(target)).abs().mean((1, 2)) * SCALE * 20 / np.log(10)).numpy()


def onsets(index: int) -> list[float]:
    """When the notes of a clean recording start, in seconds, without those that start with another."""
    rng = np.random.default_rng([index, *SPLIT.encode()])
    rng.random()  # whether it is spoiled
    notes = compose(quadrant_of(index), instrument_of(index), 10.0, rng)
    times = sorted({round(n.onset, 3) for n in notes if 0.1 < n.onset < SECONDS - 0.1})
    return [t for before, t in zip([-1.0, *times], times, strict=False) if t - before > 0.03]


def rises(sound: torch.Tensor, times: list[float]) -> np.ndarray:
    """The steepest rise of the level within 10 ms, around each onset, in dB."""
    hop = SAMPLE_RATE // 200  # 5 ms
    frames = sound[: len(sound) // hop * hop].unfold(0, 2 * hop, hop).square().mean(1)
    level = 10 * torch.log10(frames + 1e-6)
    rise = (level[2:] - level[:-2]).numpy()
    return np.array([rise[int(t * 200) - 8 : int(t * 200) + 8].max() for t in times])


def cost(jobs: dict[str, Callable[[], object]], clips: int, repeats: int = 9) -> dict[str, float]:
    """Milliseconds of processor time a clip: the median of `repeats`, in turn, so that all meet the same load."""
    spent: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(repeats + 1):
        for name, job in jobs.items():
            start = time.process_time()
            job()
            spent[name].append(1000 * (time.process_time() - start) / clips)
    return {name: round(statistics.median(values[1:]), 1) for name, values in spent.items()}


@torch.no_grad()
def main() -> None:
    torch.manual_seed(8)
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    params = load_params("../../params.yaml")
    batch = choose(params.compute).decode_batch
    vae, vocoder = (
        kind.from_pretrained(folder).eval()
        for kind, folder in ((AutoencoderKL, "build/sound/vae"), (SpeechT5HifiGan, "build/sound/vocoder"))
    )
    clips = load(SPLIT)
    clean = [i for i in range(len(clips)) if not recording(SPLIT, i, seconds=0.1).spoiled]
    real = torch.from_numpy(clips[clean, : SECONDS * SAMPLE_RATE].astype(np.float32) / 32767)
    mels = log_mel(real)
    vocoded = torch.cat([vocoder(part) for part in mels.split(8)])
    through = torch.cat([vae.decode(vae.encode(m[:, None]).latent_dist.sample()).sample[:, 0] for m in mels.split(8)])
    decoded = torch.cat([vocoder(part) for part in through.split(8)])

    decibels = SCALE * 20 / np.log(10)
    vae_alone = ((through - mels).abs().mean((1, 2)) * decibels).numpy()
    both, alone = distance(decoded, real), distance(vocoded, real)
    metrics: dict[str, object] = {
        "recordings": len(clean),
        "vae_log_mel_distance_db": float(vae_alone.mean()),
        "vocoder_log_mel_distance_db": float(alone.mean()),
        "vae_and_vocoder_log_mel_distance_db": float(both.mean()),
        "by_instrument_db": {
            name: float(both[[instrument_of(i) == name for i in clean]].mean()) for name in INSTRUMENTS
        },
        "by_quadrant_db": {q: float(both[[quadrant_of(i) == q for i in clean]].mean()) for q in QUADRANTS},
        "level_decoded_minus_recording_db": float(
            10 * torch.log10(decoded.square().mean(1) / real.square().mean(1)).mean()
        ),
    }
    pairs = [
        (rises(r, times), rises(d, times))
        for i, r, d in zip(clean, real, decoded, strict=True)
        if len(times := onsets(i))
    ]
    before, after = (np.concatenate(part) for part in zip(*pairs, strict=True))
    sharp = before > 6
    metrics["attacks"] = {
        "onsets": int(sharp.sum()),
        "rise_recordings_db": float(before[sharp].mean()),
        "rise_decoded_db": float(after[sharp].mean()),
    }

    old_vae = AutoencoderKL.from_pretrained(PRESENT / "pipeline/vae").eval()
    old_vocoder = SpeechT5HifiGan.from_pretrained(PRESENT / "pipeline/vocoder").eval()
    clap = Clap.load(PRESENT, cpu)
    emopia = Emopia.of_folder(PRESENT / "rewards/emopia", cpu, params.emopia.windows)
    emotions = [EMOTIONS_OF_QUADRANT[q][0] for q in QUADRANTS]
    prompts = make_prompts(params.prompts.template, emotions, ["piano"])[:batch]
    latents, mel, sound = torch.randn(batch, 8, 20, 8), mels[:batch], real[:batch]
    milliseconds = cost(
        {
            "old vae": lambda: old_vae.decode(latents),
            "old vocoder": lambda: old_vocoder(mel),
            "clap": lambda: clap.score(sound, SAMPLE_RATE, prompts),
            "emopia": lambda: emopia.score(sound, SAMPLE_RATE, prompts),
            "vae": lambda: vae.decode(latents),
            "vocoder": lambda: vocoder(mel),
        },
        batch,
    )
    rewards = milliseconds["clap"] + milliseconds["emopia"]
    old = milliseconds["old vae"] + milliseconds["old vocoder"] + rewards
    new = milliseconds["vae"] + milliseconds["vocoder"] + rewards
    four = new + 3 * milliseconds["emopia"]
    metrics["milliseconds_per_clip"] = {
        **milliseconds, "share": new / old, "share_with_four_emopia_members": four / old,
    }  # fmt: skip
    rounded = json.loads(json.dumps(metrics), parse_float=lambda text: round(float(text), 3))
    write_json("sound.json", rounded)
    print(json.dumps(rounded, indent=2))


if __name__ == "__main__":
    main()
