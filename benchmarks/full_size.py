"""AudioLDM 2 in its full size with random weights, to measure what it costs without the real ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import AudioLDM2Pipeline, AudioLDM2UNet2DConditionModel, AutoencoderKL, DDIMScheduler
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

from music_ddpo.core.randomness import random_generator
from music_ddpo.model.audioldm2 import Conditioning, Generator

TEXT_PARTS = (
    "tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2", "projection_model", "language_model",
    "feature_extractor",
)  # fmt: skip
GPT2_TOKENS, GPT2_WIDTH, T5_WIDTH = 8, 768, 1024


class FullSize(Generator):
    """Without text encoders: the conditioning is random too."""

    def encode(self, texts: Sequence[str], negative: str) -> Conditioning:
        return conditioning(self, len(texts))

    def free_text_encoders(self) -> None:
        pass


def full_size(device: torch.device, dtype: torch.dtype = torch.float32) -> FullSize:
    """The UNet, VAE and vocoder of the base models (cvssp/audioldm2-music among them), without the text encoders.

    The configs are those of diffusers' scripts/convert_original_audioldm2_to_diffusers.py, the weights the libraries'
    own initialisation, which depends on nothing but the device.
    """
    with torch.random.fork_rng(devices=[]), device:
        torch.manual_seed(0)
        unet = AudioLDM2UNet2DConditionModel(
            sample_size=256,
            in_channels=8,
            out_channels=8,
            down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 3,
            up_block_types=("CrossAttnUpBlock2D",) * 3 + ("UpBlock2D",),
            block_out_channels=(128, 256, 384, 640),
            layers_per_block=2,
            cross_attention_dim=((None, GPT2_WIDTH, T5_WIDTH),) * 4,
            attention_head_dim=8,  # the number of heads; the script leaves it at this default
        )
        vae = AutoencoderKL(
            sample_size=1024,
            in_channels=1,
            out_channels=1,
            latent_channels=8,
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(128, 256, 512),
            layers_per_block=2,
        )
        vocoder = SpeechT5HifiGan(
            SpeechT5HifiGanConfig(
                model_in_dim=64,
                sampling_rate=16000,
                upsample_initial_channel=1024,
                upsample_rates=[5, 4, 2, 2, 2],
                upsample_kernel_sizes=[16, 16, 8, 4, 4],
                resblock_kernel_sizes=[3, 7, 11],
                resblock_dilation_sizes=[[1, 3, 5]] * 3,
                normalize_before=False,
                initializer_range=0.03,  # with the default, 0.01, the output is nearly silent
            )
        )
    scheduler = DDIMScheduler(
        num_train_timesteps=1000, beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195,
        clip_sample=False, set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    absent = dict.fromkeys(TEXT_PARTS)
    pipeline = AudioLDM2Pipeline(unet=unet, vae=vae, vocoder=vocoder, scheduler=scheduler, **absent)
    return FullSize(pipeline, device, dtype)


def conditioning(generator: Generator, prompts: int, tokens: int = 20) -> Conditioning:
    """Random, in the shapes of `encode`: `tokens` T5 tokens, of which the negative prompt fills half."""
    noise = random_generator(0, "full size conditioning")
    generated = torch.randn(prompts, 2, GPT2_TOKENS, GPT2_WIDTH, generator=noise)
    states = torch.randn(prompts, 2, tokens, T5_WIDTH, generator=noise)
    mask = torch.ones(prompts, 2, tokens, dtype=torch.long)
    mask[:, 0, tokens // 2 :] = 0
    device, dtype = generator.device, generator.dtype
    return Conditioning(generated.to(device, dtype), states.to(device, dtype), mask.to(device))
