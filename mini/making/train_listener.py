"""Trains the listener on many recordings with correct labels, half of them after VAE and vocoder too."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from tqdm import tqdm, trange
from transformers import SpeechT5HifiGan

from corpus import INSTRUMENTS, SAMPLE_RATE
from mel import crops, load, log_mel
from music_ddpo.rewards.listener.judge import SETTINGS, WEIGHTS
from music_ddpo.rewards.listener.network import ListenerNetwork
from train_clap import recording_is_spoiled

STEPS, BATCH, WINDOW, CHANNELS = 1500, 32, 3, 24


@torch.no_grad()
def decoded(clips: np.ndarray) -> np.ndarray:
    """The recordings after VAE and vocoder, int16 [recordings, samples]."""
    vae = AutoencoderKL.from_pretrained("build/sound/vae", local_files_only=True)
    vocoder = SpeechT5HifiGan.from_pretrained("build/sound/vocoder", local_files_only=True)
    out = np.zeros_like(clips)
    for i in tqdm(range(0, len(clips), 8), desc="decode", mininterval=10):
        mel = log_mel(torch.from_numpy(clips[i : i + 8].astype(np.float32) / 32767))
        latents = vae.encode(mel[:, None]).latent_dist.sample()
        sound = vocoder(vae.decode(latents).sample[:, 0])
        sound = torch.nn.functional.pad(sound, (0, max(0, clips.shape[1] - sound.shape[1])))[:, : clips.shape[1]]
        out[i : i + 8] = (sound.clamp(-1, 1) * 32767).round().short().numpy()
    return out


def equalised(sound: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """The sound [batch, samples] through a random equaliser each: 8 bands, with gains of about 3 dB, drawn smoothly."""
    spectrum = torch.fft.rfft(sound)
    position = np.linspace(0, 1, spectrum.shape[1]) ** 0.5 * 7  # in bands
    decibels = np.stack([np.interp(position, np.arange(8), rng.normal(0, 3, 8)) for _ in range(len(sound))])
    return torch.fft.irfft(spectrum * torch.from_numpy(10 ** (decibels / 20)).float(), n=sound.shape[1])


def main() -> None:
    torch.manual_seed(6)
    rng = np.random.default_rng(6)
    clips = load("listener")
    half = len(clips) // 2
    sounds = [clips, decoded(clips[:half])]
    spoiled = torch.tensor([recording_is_spoiled("listener", i) for i in range(len(clips))])
    network = ListenerNetwork(SAMPLE_RATE, CHANNELS, INSTRUMENTS)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, STEPS)
    bar = trange(STEPS, desc="listener", mininterval=10)
    for step in bar:
        which = [rng.integers(len(s), size=BATCH // 2) for s in sounds]
        sound = torch.cat([crops(s, w, WINDOW, rng) for s, w in zip(sounds, which, strict=True)])
        which = np.concatenate(which)
        # generated clips have another timbre, are quieter than recordings, and have noise
        sound = equalised(sound, rng)
        sound = sound * torch.from_numpy(10 ** rng.uniform(-0.8, 0.2, (BATCH, 1)).astype(np.float32))
        sound += torch.randn_like(sound) * torch.from_numpy(10 ** rng.uniform(-5, -2.2, (BATCH, 1)).astype(np.float32))
        emotion, instrument, clean = network(sound)
        loss = (
            cross_entropy(emotion, torch.from_numpy(which % 4), label_smoothing=0.05)
            + cross_entropy(instrument, torch.from_numpy(which // 4 % len(INSTRUMENTS)), label_smoothing=0.05)
            + 0.5 * binary_cross_entropy_with_logits(clean, (~spoiled[which]).float())
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            bar.set_postfix_str(f"loss {loss:.3f}")
    folder = Path("build/models/rewards/listener")
    folder.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), folder / WEIGHTS)
    settings = {"sample_rate": SAMPLE_RATE, "window": WINDOW, "n_channels": CHANNELS, "instruments": list(INSTRUMENTS)}
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")


if __name__ == "__main__":
    main()
