"""The `held_out` judge: the CLAP inside the generator. No adapter is trained with it."""

from __future__ import annotations

from pathlib import Path

import torch

from music_ddpo.rewards.clap.hf import TransformersEncoder
from music_ddpo.rewards.clap.reward import Clap
from music_ddpo.weights.manifests import check_pipeline

PARTS = ("text_encoder", "feature_extractor", "tokenizer")


class HeldOutClap(Clap):
    """CLAP's similarity by the generator's own text encoder: it judges every clip and rewards none."""

    name = "held_out"

    @classmethod
    def fetch(cls, folder: Path, *_: object) -> str:
        """Brings nothing: the weights are part of the pipeline."""
        return "text encoder of the model"

    @classmethod
    def load(cls, models: Path, device: torch.device) -> HeldOutClap:
        """Loads it from the pipeline."""
        return cls.of_pipeline(check_pipeline(models, [f"{part}/" for part in PARTS]), device)

    @classmethod
    def of_pipeline(cls, folder: Path, device: torch.device) -> HeldOutClap:
        """Loads it from the folder of a pipeline."""
        model, extractor, tokenizer = (folder / part for part in PARTS)
        return cls(TransformersEncoder(model, extractor, tokenizer, device))
