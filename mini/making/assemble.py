"""Puts the trained parts together: the pipeline as stock diffusers loads it."""

from __future__ import annotations

from diffusers import AudioLDM2Pipeline
from transformers import SpeechT5HifiGan


def main() -> None:
    pipe = AudioLDM2Pipeline.from_pretrained("build/generator", local_files_only=True)
    pipe.register_modules(vocoder=SpeechT5HifiGan.from_pretrained("build/vocoder", local_files_only=True))
    pipe.save_pretrained("build/models/pipeline")


if __name__ == "__main__":
    main()
