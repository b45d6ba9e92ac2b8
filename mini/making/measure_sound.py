"""Measures VAE and vocoder on held-out recordings.

`python measure_sound.py FOLDER` also compares them with the earlier models in FOLDER, if their log-mels are the same.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
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
from music_ddpo.weights.shipped import REFERENCE

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


def attacks(recordings: list[int], real: torch.Tensor, decoded: torch.Tensor) -> tuple[float, float]:
    """The mean rise at the onsets where the recording's level rises by more than 6 dB, in it and decoded."""
    pairs = [
        (rises(r, times), rises(d, times))
        for i, r, d in zip(recordings, real, decoded, strict=True)
        if len(times := onsets(i))
    ]
    before, after = (np.concatenate(part) for part in zip(*pairs, strict=True))
    sharp = before > 6
    return float(before[sharp].mean()), float(after[sharp].mean())


def reconstruct(vae: AutoencoderKL, vocoder: SpeechT5HifiGan, mels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-mels [clips, frames, bins] after the VAE, and the sound [clips, samples] after VAE and vocoder."""
    through = torch.cat([vae.decode(vae.encode(m[:, None]).latent_dist.sample()).sample[:, 0] for m in mels.split(8)])
    return through, torch.cat([vocoder(part) for part in through.split(8)])


def convergence(sound: torch.Tensor, target: torch.Tensor) -> float:
    """Spectral convergence: relative error of the magnitude spectrogram, mean over clips."""
    window = torch.hann_window(1024)
    a, b = (torch.stft(x, 1024, 256, window=window, return_complex=True).abs() for x in (sound, target))
    return float(((a - b).square().sum((1, 2)) / b.square().sum((1, 2))).sqrt().mean())


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
def compare(
    earlier: Path, vae: AutoencoderKL, vocoder: SpeechT5HifiGan, recordings: list[int], real: torch.Tensor
) -> dict[str, object]:
    """Attacks on the recordings whose instruments the `earlier` models have, and what a clip costs with both."""
    params = load_params("../../params.yaml")
    execution = choose(params.compute)
    batch = execution.decode_batch
    old_vae = AutoencoderKL.from_pretrained(earlier / "pipeline/vae").eval()
    old_vocoder = SpeechT5HifiGan.from_pretrained(earlier / "pipeline/vocoder").eval()
    prompts = make_prompts(params.prompts.template, [EMOTIONS_OF_QUADRANT[q][0] for q in QUADRANTS], ["piano"])[:batch]
    known = json.loads((earlier / REFERENCE).read_text())["clap"]
    rows = [row for row, i in enumerate(recordings) if instrument_of(i) in known]
    sound, kept = real[rows], [recordings[row] for row in rows]
    result: dict[str, object] = {}
    for whose, parts in (("earlier ", (old_vae, old_vocoder)), ("", (vae, vocoder))):
        decoded = reconstruct(*parts, log_mel(sound))[1]
        result[f"{whose}attacks_decoded_db"] = round(attacks(kept, sound, decoded)[1], 3)
        result[f"{whose}log_mel_distance_db"] = round(float(distance(decoded, sound).mean()), 3)
    sound = sound[:batch]
    latents, mel = torch.randn(batch, 8, 20, 8), log_mel(sound)
    jobs: dict[str, Callable[[], object]] = {
        "earlier vae": lambda: old_vae.decode(latents),
        "earlier vocoder": lambda: old_vocoder(mel),
        "vae": lambda: vae.decode(latents),
        "vocoder": lambda: vocoder(mel),
    }
    for whose, folder in (("earlier ", earlier), ("", Path("build/models"))):
        clap = Clap.load(folder, execution.device)
        settings = params.emopia.model_dump()
        for members in (1, settings["members"]):
            emopia = Emopia.of_folder(folder / "rewards/emopia", execution.device, **settings | {"members": members})
            jobs[f"{whose}emopia, members: {members}"] = partial(emopia.score, sound, SAMPLE_RATE, prompts)
        jobs[f"{whose}clap"] = partial(clap.score, sound, SAMPLE_RATE, prompts)
    spent = cost(jobs, batch)
    four = params.emopia.members

    def total(whose: str, members: int) -> float:
        return sum(spent[f"{whose}{part}"] for part in ("vae", "vocoder", "clap", f"emopia, members: {members}"))

    return result | {
        "milliseconds_per_clip": spent,
        f"share of earlier cost, both with {four} members": round(total("", four) / total("earlier ", four), 3),
        f"share of earlier cost, {four} members against 1": round(total("", four) / total("earlier ", 1), 3),
    }


@torch.no_grad()
def main() -> None:
    torch.manual_seed(8)
    torch.set_num_threads(1)
    vae, vocoder = (
        kind.from_pretrained(folder).eval()
        for kind, folder in ((AutoencoderKL, "build/sound/vae"), (SpeechT5HifiGan, "build/sound/vocoder"))
    )
    clips = load(SPLIT)
    clean = [i for i in range(len(clips)) if not recording(SPLIT, i, seconds=0.1).spoiled]
    real = torch.from_numpy(clips[clean, : SECONDS * SAMPLE_RATE].astype(np.float32) / 32767)
    mels = log_mel(real)
    vocoded = torch.cat([vocoder(part) for part in mels.split(8)])
    through, decoded = reconstruct(vae, vocoder, mels)

    decibels = SCALE * 20 / np.log(10)
    vae_alone = ((through - mels).abs().mean((1, 2)) * decibels).numpy()
    both, alone = distance(decoded, real), distance(vocoded, real)
    metrics: dict[str, float] = {
        "vae_log_mel_distance_db": float(vae_alone.mean()),
        "vocoder_log_mel_distance_db": float(alone.mean()),
        "vae_and_vocoder_log_mel_distance_db": float(both.mean()),
        "vocoder_spectral_convergence": convergence(vocoded, real),
        "vae_and_vocoder_spectral_convergence": convergence(decoded, real),
        **{
            f"vae_and_vocoder_log_mel_distance_db_{name}": float(both[[instrument_of(i) == name for i in clean]].mean())
            for name in INSTRUMENTS
        },
        "level_decoded_minus_recording_db": float(
            10 * torch.log10(decoded.square().mean(1) / real.square().mean(1)).mean()
        ),
    }
    metrics["attacks_recordings_db"], metrics["attacks_decoded_db"] = attacks(clean, real, decoded)
    rounded = {name: round(value, 4) for name, value in metrics.items()}
    write_json("build/sound.json", rounded)
    print(json.dumps(rounded, indent=2))
    if len(sys.argv) > 1:
        print(json.dumps(compare(Path(sys.argv[1]), vae, vocoder, clean, real), indent=2))


if __name__ == "__main__":
    main()
