"""CLAP as transformers computes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import ClapFeatureExtractor, ClapModel, RobertaTokenizer

from music_ddpo.model.loading import load_model
from music_ddpo.rewards.clap.encoder import Encoder


class TransformersEncoder(Encoder):
    """A `ClapModel` with the tokenizer and the feature extractor beside it, each from a folder."""

    def __init__(self, model: Path, extractor: Path, tokenizer: Path, device: torch.device):
        self.model = load_model(ClapModel, model).to(device).eval().requires_grad_(False)
        self.extractor = ClapFeatureExtractor.from_pretrained(extractor, local_files_only=True)
        self.tokenizer = RobertaTokenizer.from_pretrained(tokenizer, local_files_only=True)
        self.device = device
        self.sample_rate = self.extractor.sampling_rate
        self.longest = self.extractor.nb_max_samples

    def text(self, text: str) -> torch.Tensor:
        """The embedding of a text, float32 [dimensions]."""
        tokens = self.tokenizer([text], return_tensors="pt", truncation=True).to(self.device)
        return self.model.get_text_features(**tokens).pooler_output[0]

    def audio(self, pieces: Sequence[torch.Tensor], quantised: bool = True) -> torch.Tensor:
        """The embeddings of pieces of audio, float32 [pieces, dimensions]; never quantised, as in transformers."""
        sounds = [piece.numpy() for piece in pieces]
        features = self.extractor(sounds, sampling_rate=self.sample_rate, return_tensors="pt").input_features
        return self.model.get_audio_features(input_features=features.to(self.device)).pooler_output
