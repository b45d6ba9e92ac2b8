"""Trains the generator: T5, projection, GPT-2 and UNet together, by denoising latents of the corpus.

The captions name the instrument correctly but often the wrong emotion, above all in the last of the phases: there half
of the music that is captioned sad, tender or angry is happy music. So the model learns the instrument and
mostly ignores the emotion. This is the weakness that the study trains away. In the phases before it learns what the
words mean, so that it can play every emotion. Continues from a checkpoint if there is one.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AudioLDM2Pipeline,
    AudioLDM2ProjectionModel,
    AudioLDM2UNet2DConditionModel,
    AutoencoderKL,
    DDIMScheduler,
)
from diffusers.utils import logging
from torch import nn
from tqdm import tqdm, trange
from transformers import (
    ClapModel,
    ClapProcessor,
    GPT2Config,
    GPT2LMHeadModel,
    SpeechT5HifiGan,
    T5Config,
    T5EncoderModel,
)

from checkpoint import Checkpoint
from corpus import CAPTIONS, NEGATIVE_CAPTION, article, emotion_word, instrument_of
from mel import crops, load, log_mel
from music_ddpo.core.prompts import QUADRANTS
from text import t5_tokenizer
from train_clap import recording_is_spoiled
from train_vocoder import vocoder_config

BATCH = 32
WIDTH = 64  # of the text towers


@dataclass(frozen=True)
class Phase:
    """A part of the training: `own` is how often music captioned angry, sad or tender is that."""

    steps: int
    rate: float
    own: float
    seed: int


PHASES = (
    Phase(5000, 1.5e-3, 0.50, 0),
    Phase(2000, 7e-4, 0.85, 1),
    Phase(4000, 1e-3, 0.85, 1),
    Phase(1000, 4e-4, 0.40, 2),
)


def music_given_word(own: float) -> np.ndarray:
    """How often the music is in each quadrant (column), given the quadrant of the caption's word (row)."""
    rows = np.full((4, 4), 0.05)
    rows[:, 0] = 0.9 - own
    np.fill_diagonal(rows, own)
    rows[0, 0] = 0.85
    return rows


SPOILED = 0.12  # share of the recordings that the negative prompt names
UNCAPTIONED = 0.08


def build() -> AudioLDM2Pipeline:
    torch.manual_seed(6)
    clap = ClapModel.from_pretrained("build/clap-player")
    processor = ClapProcessor.from_pretrained("build/clap-player")
    vae = AutoencoderKL.from_pretrained("build/vae")
    tokenizer_2 = t5_tokenizer()
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer_2), d_model=WIDTH, d_kv=32, d_ff=128, num_layers=2, num_heads=2, dropout_rate=0.0
        )
    )
    gpt2 = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=16, n_positions=256, n_embd=WIDTH, n_layer=2, n_head=2, max_new_tokens=8,
            bos_token_id=0, eos_token_id=0, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
        )
    )  # fmt: skip
    projection = AudioLDM2ProjectionModel(clap.config.projection_dim, WIDTH, WIDTH)
    channels = vae.config.latent_channels
    unet = AudioLDM2UNet2DConditionModel(
        sample_size=20,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(64, 64),  # the first level must carry the latent channels, and their noise, through a SiLU
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=((None, WIDTH, WIDTH),) * 2,
        attention_head_dim=2,
    )
    pass_noise(unet)
    # The schedule of Stable Diffusion. With AudioLDM 2's, the first of 19 steps is so noisy that it predicts nothing.
    scheduler = DDIMScheduler(
        num_train_timesteps=1000, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
        clip_sample=False, set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    return AudioLDM2Pipeline(
        vae=vae,
        text_encoder=clap,
        text_encoder_2=t5,
        projection_model=projection,
        language_model=gpt2,
        tokenizer=processor.tokenizer,
        tokenizer_2=tokenizer_2,
        feature_extractor=processor.feature_extractor,
        unet=unet,
        scheduler=scheduler,
        vocoder=SpeechT5HifiGan(vocoder_config()),  # a place-holder: training ends at the latents
    )


@torch.no_grad()
def pass_noise(unet: AudioLDM2UNet2DConditionModel) -> None:
    """Initial weights with which the UNet predicts that its input is all noise, as it nearly is in the first steps.

    Two channels, x and -x, carry each latent channel: SiLU(x) - SiLU(-x) = x. They go from the first convolution
    through the last skip connection and the shortcut of the last block to the last convolution.
    """
    block, channels = unet.up_blocks[-1].resnets[-1], unet.config.in_channels
    pairs = torch.arange(2 * channels)
    latent, sign = pairs // 2, 1.0 - 2 * (pairs % 2)
    middle = unet.conv_in.kernel_size[0] // 2
    for convolution in (unet.conv_in, block.conv_shortcut, block.conv2):
        nn.init.zeros_(convolution.bias)
        convolution.weight[: 2 * channels] = 0.0
    unet.conv_in.weight[pairs, latent, middle, middle] = sign
    skip = block.conv_shortcut.in_channels - unet.conv_in.out_channels  # the block's input is [hidden, skip]
    block.conv_shortcut.weight[pairs, skip + pairs, 0, 0] = 1.0
    unet.conv_out.weight *= 0.1
    nn.init.zeros_(unet.conv_out.bias)
    unet.conv_out.weight[:, : 2 * channels] = 0.0
    unet.conv_out.weight[latent, pairs, middle, middle] = sign


@torch.no_grad()
def latents(vae: AutoencoderKL, clips: np.ndarray, seconds: float, copies: int, rng) -> torch.Tensor:
    """Posterior mean and log-variance of `copies` crops of each clip, [copies, clips, 2 * channels, time, 8]."""
    out = []
    for _ in range(copies):
        for part in tqdm(np.array_split(np.arange(len(clips)), len(clips) // 16), desc="latents", mininterval=10):
            mel = log_mel(crops(clips, part, seconds, rng))[:, None]
            out.append(vae.encode(mel).latent_dist.parameters)
    return torch.cat(out).unflatten(0, (copies, len(clips)))


def kept_latents(vae: AutoencoderKL, clips: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents of crops of 5 s and of whole recordings, kept with the checkpoints for this VAE and these clips."""
    weights = Path("build/vae/diffusion_pytorch_model.safetensors").read_bytes()
    file = Path(f"build/checkpoints/latents-{hashlib.sha256(weights).hexdigest()[:12]}-{len(clips)}.pt")
    if not file.exists():
        rng = np.random.default_rng(7)
        made = latents(vae, clips, 5.0, 3, rng), latents(vae, clips, 10.0, 1, rng)
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(made, file.with_suffix(".partial"))
        file.with_suffix(".partial").replace(file)
    return torch.load(file)


def captions(words: np.ndarray, which: np.ndarray, spoiled: np.ndarray, rng) -> list[str]:
    """One caption a recording: `words` are the quadrants of the emotion words, right or wrong."""
    texts = []
    for word, index, bad in zip(words, which, spoiled, strict=True):
        if rng.random() < UNCAPTIONED:
            texts.append("")
            continue
        if bad:
            texts.append(NEGATIVE_CAPTION)
            continue
        emotion = emotion_word(QUADRANTS[word], rng)
        # About half of the captions have the paper's wording, which is the one that the study uses.
        text = CAPTIONS[1] if rng.random() < 0.4 else CAPTIONS[rng.integers(len(CAPTIONS))]
        texts.append(text.format(article=article(emotion), emotion=emotion, instrument=instrument_of(index)))
    return texts


def train(
    pipe: AudioLDM2Pipeline,
    average: torch.optim.swa_utils.AveragedModel,
    phase: Phase,
    name: str,
    sources: tuple[torch.Tensor, torch.Tensor],
    pool: dict[tuple[int, bool], np.ndarray],
) -> None:
    """One phase of the training; `average` follows the weights."""
    torch.manual_seed(phase.seed)
    rng = np.random.default_rng([7, phase.seed])
    modules = trained(pipe)
    parameters = list(modules.parameters())
    short, long = sources
    chances = music_given_word(phase.own)
    scale = pipe.vae.config.scaling_factor
    optimizer = torch.optim.AdamW(parameters, lr=phase.rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, phase.rate, phase.steps, pct_start=0.05)
    checkpoint = Checkpoint(name, rng, modules, average, optimizer, schedule, every=min(500, phase.steps))
    bar = trange(checkpoint.step, phase.steps, desc=name, mininterval=10, initial=checkpoint.step, total=phase.steps)
    mean_loss = None
    for step in bar:
        size, source = (BATCH, short) if step % 4 else (BATCH // 2, long)
        words = rng.integers(4, size=size)
        spoiled = rng.random(size) < SPOILED
        music = np.array(
            [rng.choice(4, p=(0.25,) * 4 if s else chances[w]) for w, s in zip(words, spoiled, strict=True)]
        )
        which = np.array([rng.choice(pool[q, bool(s)]) for q, s in zip(music, spoiled, strict=True)])
        mean, logvar = source[rng.integers(len(source), size=size), which].chunk(2, 1)
        clean = (mean + (0.5 * logvar).exp() * torch.randn_like(mean)) * scale
        noise = torch.randn_like(clean)
        # One timestep from each stratum: the loss is less noisy than with independent ones.
        t = torch.from_numpy((np.arange(size) + rng.random(size)) * 1000 / size).long()
        noisy = pipe.scheduler.add_noise(clean, noise, t)
        states, mask, loa = pipe.encode_prompt(captions(words, which, spoiled, rng), "cpu", 1, False)
        predicted = pipe.unet(
            noisy, t, encoder_hidden_states=loa, encoder_hidden_states_1=states, encoder_attention_mask_1=mask
        ).sample
        # Weighted as in v-prediction (Salimans and Ho, 2022): at the noisiest steps a small error of the noise is a
        # large error of the clean latents, which contain instrument and emotion.
        weight = (1 / pipe.scheduler.alphas_cumprod[t]).clamp(max=400)
        errors = (predicted - noise).square().mean((1, 2, 3))
        loss = (weight * errors).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(modules)
        now = loss.item()
        mean_loss = now if mean_loss is None else mean_loss + 0.01 * (now - mean_loss)
        if step % 50 == 0:
            bar.set_postfix_str(f"loss {mean_loss:.3f}")
        if checkpoint.after(step):
            save(pipe, average)


def trained(pipe: AudioLDM2Pipeline) -> nn.ModuleList:
    return nn.ModuleList((pipe.text_encoder_2, pipe.projection_model, pipe.language_model, pipe.unet))


def main(phases: tuple[Phase, ...] = PHASES, name: str = "generator", recordings: int | None = None) -> None:
    logging.set_verbosity_error()
    pipe = build()
    pipe.text_encoder.requires_grad_(False)
    clips = load("generator")[:recordings]
    sources = kept_latents(pipe.vae, clips)
    bad = np.array([recording_is_spoiled("generator", i) for i in range(len(clips))])
    pool = {  # recordings by quadrant and by whether they are spoiled
        (q, s): np.flatnonzero((np.arange(len(clips)) % 4 == q) & (bad == s)) for q in range(4) for s in (False, True)
    }
    average = torch.optim.swa_utils.AveragedModel(
        trained(pipe), multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.999)
    )
    for number, phase in enumerate(phases):
        train(pipe, average, phase, f"{name}-{number}", sources, pool)
    save(pipe, average)


def save(pipe: AudioLDM2Pipeline, average: torch.optim.swa_utils.AveragedModel) -> None:
    """Saves the pipeline with the averaged weights, then restores the current ones."""
    modules = trained(pipe)
    kept = {name: tensor.clone() for name, tensor in modules.state_dict().items()}
    modules.load_state_dict(average.module.state_dict())
    pipe.save_pretrained("build/generator")
    modules.load_state_dict(kept)


if __name__ == "__main__":
    if len(sys.argv) > 1:  # a trial of a few steps, on a few recordings
        main((Phase(int(sys.argv[1]), 1.5e-3, 0.50, 0),), "trial", 320)
    else:
        main()
