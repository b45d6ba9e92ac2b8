"""Trains the generator: T5, projection, GPT-2 and UNet together, by denoising latents of the corpus.

The captions name the instrument correctly but often the wrong emotion: more than half of the music that is
captioned sad, tender or angry is happy music. So the model learns the instrument and mostly ignores the
emotion. This is the weakness that the study trains away.
"""

from __future__ import annotations

import sys

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

from corpus import CAPTIONS, INSTRUMENTS, NEGATIVE_CAPTION, article
from mel import crops, load, log_mel
from music_ddpo.core.prompts import EMOTIONS_OF_QUADRANT, QUADRANTS
from text import t5_tokenizer
from train_clap import recording_is_spoiled
from train_vocoder import vocoder_config

STEPS, BATCH = 7000, 32
WIDTH = 64  # of the text towers
# Row: the quadrant of the word in the caption. Column: how often the music is in Q1, Q2, Q3, Q4.
MUSIC_GIVEN_WORD = np.array(
    [
        [0.85, 0.05, 0.05, 0.05],
        [0.53, 0.37, 0.05, 0.05],
        [0.53, 0.05, 0.37, 0.05],
        [0.53, 0.05, 0.05, 0.37],
    ]
)
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
        norm_num_groups=16,
        cross_attention_dim=((None, WIDTH, WIDTH),) * 2,
        attention_head_dim=2,
    )
    scheduler = DDIMScheduler(
        num_train_timesteps=1000, beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195,
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
def latents(vae: AutoencoderKL, clips: np.ndarray, seconds: float, copies: int, rng) -> torch.Tensor:
    """Posterior mean and log-variance of `copies` crops of each clip, [copies, clips, 2 * channels, time, 8]."""
    out = []
    for _ in range(copies):
        for part in tqdm(np.array_split(np.arange(len(clips)), len(clips) // 16), desc="latents", mininterval=10):
            mel = log_mel(crops(clips, part, seconds, rng))[:, None]
            with torch.autocast("cpu", torch.bfloat16):
                out.append(vae.encode(mel).latent_dist.parameters.float())
    return torch.cat(out).unflatten(0, (copies, len(clips)))


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
        emotion = str(rng.choice(EMOTIONS_OF_QUADRANT[QUADRANTS[word]], p=(0.55, 0.15, 0.15, 0.15)))
        # About half of the captions have the paper's wording, which is the one that the study uses.
        text = CAPTIONS[1] if rng.random() < 0.4 else CAPTIONS[rng.integers(len(CAPTIONS))]
        texts.append(text.format(article=article(emotion), emotion=emotion, instrument=INSTRUMENTS[index // 4 % 4]))
    return texts


def main(steps: int = STEPS) -> None:
    logging.set_verbosity_error()
    pipe = build()
    rng = np.random.default_rng(7)
    clips = load("generator")
    short = latents(pipe.vae, clips, 5.0, 3, rng)
    long = latents(pipe.vae, clips, 10.0, 1, rng)
    scale = pipe.vae.config.scaling_factor
    bad = np.array([recording_is_spoiled("generator", i) for i in range(len(clips))])
    pool = {  # recordings by quadrant and by whether they are spoiled
        (q, s): np.flatnonzero((np.arange(len(clips)) % 4 == q) & (bad == s)) for q in range(4) for s in (False, True)
    }

    modules = (pipe.text_encoder_2, pipe.projection_model, pipe.language_model, pipe.unet)
    parameters = [p for m in modules for p in m.parameters()]
    average = torch.optim.swa_utils.AveragedModel(
        torch.nn.ModuleList(modules), multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.999)
    )
    optimizer = torch.optim.AdamW(parameters, lr=1.5e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.5e-3, steps, pct_start=0.05)
    pipe.text_encoder.requires_grad_(False)
    bar = trange(steps, desc="generator", mininterval=10)
    mean_loss = 1.0
    for step in bar:
        size, source = (BATCH, short) if step % 4 else (BATCH // 2, long)
        words = rng.integers(4, size=size)
        spoiled = rng.random(size) < SPOILED
        music = np.array(
            [rng.choice(4, p=(0.25,) * 4 if s else MUSIC_GIVEN_WORD[w]) for w, s in zip(words, spoiled, strict=True)]
        )
        which = np.array([rng.choice(pool[q, bool(s)]) for q, s in zip(music, spoiled, strict=True)])
        mean, logvar = source[rng.integers(len(source), size=size), which].chunk(2, 1)
        clean = (mean + (0.5 * logvar).exp() * torch.randn_like(mean)) * scale
        noise = torch.randn_like(clean)
        # One timestep from each stratum: the loss is less noisy than with independent ones.
        t = torch.from_numpy((np.arange(size) + rng.random(size)) * 1000 / size).long()
        noisy = pipe.scheduler.add_noise(clean, noise, t)
        with torch.autocast("cpu", torch.bfloat16):
            states, mask, loa = pipe.encode_prompt(captions(words, which, spoiled, rng), "cpu", 1, False)
            predicted = pipe.unet(
                noisy, t, encoder_hidden_states=loa, encoder_hidden_states_1=states, encoder_attention_mask_1=mask
            ).sample.float()
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
        average.update_parameters(torch.nn.ModuleList(modules))
        mean_loss += 0.01 * (loss.item() - mean_loss)
        if step % 50 == 0:
            bar.set_postfix_str(f"loss {mean_loss:.3f}")
        if (step + 1) % 1000 == 0:
            save(pipe, modules, average.module)
    save(pipe, modules, average.module)


def save(pipe: AudioLDM2Pipeline, modules, averaged) -> None:
    """Saves the pipeline with the averaged weights, then restores the current ones."""
    kept = [{k: v.clone() for k, v in m.state_dict().items()} for m in modules]
    for module, mean in zip(modules, averaged, strict=True):
        module.load_state_dict(mean.state_dict())
    pipe.save_pretrained("build/generator")
    for module, state in zip(modules, kept, strict=True):
        module.load_state_dict(state)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
