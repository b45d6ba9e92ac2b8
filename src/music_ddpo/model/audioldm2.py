"""AudioLDM 2: load the pipeline, encode prompts once, predict noise with guidance, decode latents."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AudioLDM2Pipeline, DDIMScheduler
from torch import nn

from music_ddpo.core.errors import UserError, in_one_line
from music_ddpo.model.loading import load_model
from music_ddpo.model.parts import MODELS

DIVERGED = (
    "use a smaller guidance_scale, in training also a smaller ddpo.learning_rate or lora.alpha, or "
    "compute.precision: float32"
)


@dataclass(frozen=True)
class Conditioning:
    """The encoded prompts; row i belongs to prompt i, [:, 0] is the negative and [:, 1] the positive prompt.

    Attributes
    ----------
    generated
        The tokens that GPT-2 generates ("language of audio"), [prompts, 2, 8, width].
    states, mask
        T5's hidden states [prompts, 2, tokens, width] and their attention mask, int64 [prompts, 2, tokens].
    """

    generated: torch.Tensor
    states: torch.Tensor
    mask: torch.Tensor

    def rows(self, index: torch.Tensor) -> Conditioning:
        """The conditioning of a batch: row i is the one of prompt `index[i]`."""
        index = index.to(self.generated.device)
        return Conditioning(self.generated[index], self.states[index], self.mask[index])


class Generator:
    """A text-to-music diffusion model, with separate access to the parts that reinforcement learning needs.

    Parameters
    ----------
    pipeline
        A stock pipeline. Its modules are frozen; `unet` may later get an adapter.
    device
        Of the UNet, the VAE and the vocoder; of the text encoders only while they encode.
    dtype
        Of the UNet. Everything else is float32: a vocoder in bfloat16 adds noise that changes the similarity of a clip
        by up to 0.2.
    """

    def __init__(self, pipeline: AudioLDM2Pipeline, device: torch.device, dtype: torch.dtype = torch.float32):
        self.pipeline = pipeline
        self.device = device
        self.dtype = dtype
        for module in pipeline.components.values():
            if isinstance(module, nn.Module):
                module.requires_grad_(False).eval()
        self.unet: Any = pipeline.unet.to(device, dtype)
        self.vae = pipeline.vae.to(device, torch.float32)
        self.vocoder = pipeline.vocoder.to(device, torch.float32)
        self.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)

    @classmethod
    def load(cls, folder: Path | str, device: torch.device, dtype: torch.dtype = torch.float32) -> Generator:
        """Loads a folder in pipeline layout.

        Raises
        ------
        UserError
            If the folder or a file in it is missing, truncated or does not match its config.
        """
        folder = Path(folder)
        if not (folder / "model_index.json").is_file():
            raise UserError(f"{folder}: contains no pipeline (no model_index.json); run `dvc repro fetch`.")
        try:
            models = {name: load_model(kind, folder / name) for name, kind in MODELS.items()}
            pipeline = AudioLDM2Pipeline.from_pretrained(folder, local_files_only=True, **models)
            generator = cls(pipeline, device, dtype)
        except Exception as error:  # safetensors, transformers and diffusers each raise their own
            raise UserError(
                f"{folder}: could not be loaded ({in_one_line(error)}); a file is missing, truncated or altered: "
                "run `dvc repro -f fetch`."
            ) from error
        if not (generator.sample_rate > 0 and generator.hop > 0):
            raise UserError(f"{folder}/vocoder/config.json: sampling_rate and upsample_rates must be positive.")
        return generator

    @property
    def sample_rate(self) -> int:
        """Of the decoded waveforms, in Hz."""
        return self.pipeline.vocoder.config.sampling_rate

    @property
    def hop(self) -> int:
        """Samples per mel frame."""
        hop = 1
        for rate in self.pipeline.vocoder.config.upsample_rates:
            hop *= rate
        return hop

    def latent_shape(self, duration: float) -> tuple[int, int, int]:
        """[channels, time, frequency] of a clip of `duration` seconds, padded like the stock pipeline does."""
        factor = self.pipeline.vae_scale_factor
        frames = int(duration / (self.hop / self.sample_rate))
        if frames < factor:
            shortest = factor * self.hop / self.sample_rate
            raise UserError(f"duration: {duration} s is too short for this model; give at least {shortest:.2f} s.")
        bins = self.pipeline.vocoder.config.model_in_dim
        return self.pipeline.unet.config.in_channels, -(-frames // factor), bins // factor

    @torch.no_grad()
    def encode(self, texts: Sequence[str], negative: str) -> Conditioning:
        """Encodes prompts, each like the stock pipeline encodes it alone with the same negative prompt.

        There is one exception: if the negative prompt has more T5 tokens than the positive one, the stock pipeline
        truncates it; here nothing is truncated, and the shorter of the two is padded and masked.
        """
        pipe, device = self.pipeline, self.device
        encoders = (pipe.text_encoder, pipe.text_encoder_2, pipe.projection_model, pipe.language_model)
        for module in encoders:
            module.to(device)
        count = len(pipe.tokenizer_2(negative).input_ids)
        pairs = []
        for text in texts:
            if count <= len(pipe.tokenizer_2(text).input_ids):
                states, mask, generated = pipe.encode_prompt([text], device, 1, True, negative_prompt=[negative])
                pairs.append([(states[i], mask[i], generated[i]) for i in (0, 1)])
            else:
                alone = (pipe.encode_prompt([t], device, 1, False) for t in (negative, text))
                pairs.append([(states[0], mask[0], generated[0]) for states, mask, generated in alone])
        tokens = max(len(mask) for pair in pairs for _, mask, _ in pair)

        def stack(part: int, pad: bool) -> torch.Tensor:
            rows = [[row[part] for row in pair] for pair in pairs]
            if pad:  # masked positions get no attention, so their values do not matter
                rows = [[_pad(row, tokens) for row in pair] for pair in rows]
            return torch.stack([torch.stack(pair) for pair in rows])

        for module in encoders:
            module.to("cpu")
        return Conditioning(
            generated=stack(2, pad=False).to(self.dtype),
            states=stack(0, pad=True).to(self.dtype),
            mask=stack(1, pad=True),
        )

    def free_text_encoders(self) -> None:
        """Frees the memory of the text encoders, which are not needed once the prompts are encoded."""
        for name in ("text_encoder", "text_encoder_2", "projection_model", "language_model"):
            setattr(self.pipeline, name, None)
        gc.collect()

    def predict_noise(
        self, latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning, guidance_scale: float
    ) -> torch.Tensor:
        """Predicts the noise in x_t, with classifier-free guidance in one call of the UNet.

        Parameters
        ----------
        latents
            x_t, [batch, channels, time, frequency].
        timesteps
            Training timestep of each row, int64 [batch].
        conditioning
            Of the batch, from `Conditioning.rows`.
        guidance_scale
            1 uses the positive prompt only.

        Returns
        -------
        float32 [batch, channels, time, frequency].
        """
        first = 0 if guidance_scale > 1 else 1
        branches = 2 - first
        noise = self.unet(
            latents.to(self.dtype).repeat(branches, 1, 1, 1),
            timesteps.to(self.device).repeat(branches),
            encoder_hidden_states=_branches(conditioning.generated, first),
            encoder_hidden_states_1=_branches(conditioning.states, first),
            encoder_attention_mask_1=_branches(conditioning.mask, first),
            return_dict=False,
        )[0].float()
        if branches == 1:
            return noise
        negative, positive = noise.chunk(2)
        return negative + guidance_scale * (positive - negative)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor, duration: float) -> torch.Tensor:
        """Decodes x_0 to waveforms float32 [batch, samples] on the CPU, cut to `duration` seconds.

        Raises
        ------
        UserError
            If a value is not finite; it says where it became so.
        """
        scaled = latents.to(self.device, torch.float32) / self.vae.config.scaling_factor
        mel = self.vae.decode(scaled).sample
        waveforms = self.vocoder(mel.squeeze(1)).cpu()
        stages = {"latents, so sampling diverged": latents, "output of the VAE": mel, "waveforms": waveforms}
        for what, x in stages.items():
            wrong = int((~x.isfinite().flatten(1).all(1)).sum())
            if wrong:
                raise UserError(f"{wrong} of {len(x)} clips have values that are not finite in the {what}; {DIVERGED}.")
        return waveforms[:, : int(duration * self.sample_rate)]


def _pad(x: torch.Tensor, tokens: int) -> torch.Tensor:
    return torch.cat([x, x.new_zeros(tokens - len(x), *x.shape[1:])])


def _branches(x: torch.Tensor, first: int) -> torch.Tensor:
    """[batch, 2, ...] to [branches * batch, ...], negative rows before positive ones."""
    return x[:, first:].transpose(0, 1).flatten(0, 1)
