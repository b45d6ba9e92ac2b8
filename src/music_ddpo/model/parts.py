"""The models that AudioLDM 2 consists of."""

from __future__ import annotations

from typing import Any

from diffusers import AudioLDM2ProjectionModel, AudioLDM2UNet2DConditionModel, AutoencoderKL
from transformers import ClapModel, GPT2LMHeadModel, SpeechT5HifiGan, T5EncoderModel

# By the folder of a pipeline that has it.
MODELS: dict[str, Any] = {
    "text_encoder": ClapModel,
    "text_encoder_2": T5EncoderModel,
    "projection_model": AudioLDM2ProjectionModel,
    "language_model": GPT2LMHeadModel,  # saved as GPT2Model on the hub, a class that can no longer generate
    "unet": AudioLDM2UNet2DConditionModel,
    "vae": AutoencoderKL,
    "vocoder": SpeechT5HifiGan,
}
