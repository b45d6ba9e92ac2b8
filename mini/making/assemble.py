"""Puts the trained parts together: the pipeline as stock diffusers loads it."""

from __future__ import annotations

from diffusers import AudioLDM2Pipeline, AutoencoderKL
from transformers import SpeechT5HifiGan


def main() -> None:
    pipe = AudioLDM2Pipeline.from_pretrained("build/generator", local_files_only=True)
    # The VAE's decoder was trained on with the vocoder. Its encoder is the one that made the generator's latents.
    pipe.register_modules(
        vae=AutoencoderKL.from_pretrained("build/sound/vae", local_files_only=True),
        vocoder=SpeechT5HifiGan.from_pretrained("build/sound/vocoder", local_files_only=True),
    )
    pipe.save_pretrained("build/models/pipeline")


if __name__ == "__main__":
    main()
