"""Trains the vocoder (`SpeechT5HifiGan`) to reconstruct the corpus from log-mels.

Spectral losses, no discriminator: with synthesised instruments they are enough. The vocoder
is trained alone at first. Then the VAE's decoder is trained on with it, as one synthesis from latents to sound; its
encoder, and so the latents, stay as they are. Continues from a checkpoint if there is one.
"""

from __future__ import annotations

import math
import sys

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import nn
from torch.nn.functional import l1_loss
from tqdm import trange
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

from checkpoint import Checkpoint
from corpus import SAMPLE_RATE
from mel import MELS, crops, load, log_mel
from muon import Both

STEPS, BATCH, SECONDS = 12_000, 2, 5.0
RATES, DECODER_RATES = (5e-3, 2e-3), (5e-4, 2e-4)  # of matrices and of vectors
RESOLUTIONS = (128, 256, 512, 1024, 2048)
POWER = 0.3  # of magnitudes in the loss: between the magnitude, which is all loud partials, and its logarithm
MEL_WEIGHT, LAST_MEL_WEIGHT = 1.0, 3.0  # of log-mels, in the first and in the second part of the training
ALONE = 0.4  # share of the steps that is the first part
SLOPE = 0.1  # of the leaky ReLUs
LOUDNESS = 0.1  # of the first output, about the corpus's


def spectral_loss(sound: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Spectral convergence plus the relative L1 distance of compressed magnitudes, over several window lengths."""
    total = 0.0
    for n_fft in RESOLUTIONS:
        window = torch.hann_window(n_fft)
        a, b = (
            torch.view_as_real(torch.stft(x, n_fft, n_fft // 4, window=window, return_complex=True))
            .square().sum(-1).add(1e-7)
            for x in (sound, target)
        )  # fmt: skip
        convergence = ((a.sqrt() - b.sqrt()).square().sum((1, 2)) / b.sum((1, 2))).sqrt().mean()
        a, b = a.pow(POWER / 2), b.pow(POWER / 2)
        total = total + convergence + l1_loss(a, b) / b.mean()
    return total / len(RESOLUTIONS)


def vocoder_config() -> SpeechT5HifiGanConfig:
    """Many channels at low rates, where they cost little, and one wide step to the sample rate."""
    return SpeechT5HifiGanConfig(
        model_in_dim=MELS,
        sampling_rate=SAMPLE_RATE,
        upsample_initial_channel=512,
        upsample_rates=[1, 1, 4, 5, 25],
        upsample_kernel_sizes=[3, 3, 12, 15, 51],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[]],  # none: they would double the cost
        leaky_relu_slope=SLOPE,
        normalize_before=False,
    )


@torch.no_grad()
def initialise(vocoder: SpeechT5HifiGan) -> None:
    """Initial weights with which a small network learns in few steps.

    With the class's own, of standard deviation 0.01, it starts near silent and stays far from the target. Here every
    layer keeps the variance of its input (He et al., 2015), and the last two start as a bank of band-pass filters: the
    channels before them are the amplitudes of carriers, spread evenly over all frequencies. Half of the filters'
    outputs are the negative of the other half, and are subtracted, so that the ReLU between the two layers changes
    nothing at first.
    """
    gain = math.sqrt(2 / (1 + SLOPE**2))
    for name, module in vocoder.named_modules():
        if isinstance(module, nn.ConvTranspose1d):
            inputs = module.in_channels * module.kernel_size[0] / module.stride[0]
        elif isinstance(module, nn.Conv1d):
            inputs = module.in_channels * module.kernel_size[0]
        else:
            continue
        scale = 0.3 if "convs2" in name else 1.0 if name == "conv_pre" else gain  # convs2: added to its input
        nn.init.normal_(module.weight, std=scale / math.sqrt(inputs))
        nn.init.zeros_(module.bias)

    bank, last = vocoder.upsampler[-1], vocoder.conv_post
    bands, half, size = bank.in_channels, bank.out_channels // 2, bank.kernel_size[0]
    frequency = (torch.arange(bands) + 0.5) / (2 * bands)  # cycles per sample
    phase = 2 * math.pi * torch.rand(bands, half)
    carriers = torch.cos(2 * math.pi * frequency[:, None, None] * torch.arange(size) + phase[..., None])
    carriers *= torch.hann_window(size + 2, periodic=False)[1:-1] * math.sqrt(2 / bands)
    bank.weight[:] = torch.cat([carriers, -carriers], 1)
    weights = torch.randn(half, last.kernel_size[0]) * LOUDNESS / math.sqrt(half * last.kernel_size[0])
    last.weight[:] = torch.cat([weights, -weights])[None]


def main(steps: int = STEPS) -> None:
    torch.manual_seed(1)
    rng = np.random.default_rng(1)
    clips = load("player")
    vae = AutoencoderKL.from_pretrained("build/vae")
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    vocoder = SpeechT5HifiGan(vocoder_config())
    initialise(vocoder)
    decoder = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    optimizers = Both(vocoder.parameters(), *RATES, steps), Both(decoder, *DECODER_RATES, steps)
    checkpoint = Checkpoint("vocoder", rng, vocoder, vae, *optimizers)
    bar = trange(checkpoint.step, steps, desc="vocoder", mininterval=10, initial=checkpoint.step, total=steps)
    means = None
    for step in bar:
        target = crops(clips, rng.integers(len(clips), size=BATCH), SECONDS, rng)
        mel = log_mel(target)
        alone = step < ALONE * steps
        decoded = mel
        if not alone:
            with torch.no_grad():
                latents = vae.encode(mel[:, None]).latent_dist.sample()
            decoded = vae.decode(latents).sample[:, 0]
        sound = vocoder(decoded)
        distances = torch.stack([spectral_loss(sound, target), l1_loss(log_mel(sound), mel), l1_loss(decoded, mel)])
        weight = MEL_WEIGHT if alone else LAST_MEL_WEIGHT
        loss = distances @ torch.tensor([1.0, weight, weight])
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        now = distances.detach()
        means = now if means is None else means + 0.02 * (now - means)
        if step % 25 == 0:
            bar.set_postfix_str("spectra {:.3f}, log-mel {:.3f}, decoded {:.3f}".format(*means.tolist()))
        if checkpoint.after(step):
            save(vae, vocoder)
    save(vae, vocoder)


def save(vae: AutoencoderKL, vocoder: SpeechT5HifiGan) -> None:
    vae.save_pretrained("build/sound/vae")
    vocoder.save_pretrained("build/sound/vocoder")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
