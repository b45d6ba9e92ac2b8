"""The `clap` reward: does the sound match the words?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn.functional import normalize
from transformers import ClapFeatureExtractor, ClapModel, ClapProcessor, RobertaTokenizer
from transformers.utils import logging

from music_ddpo.audio import resample
from music_ddpo.errors import UserError
from music_ddpo.prompts import Prompt
from music_ddpo.rewards.base import Judgement, Reward


class Clap(Reward):
    """Cosine similarity of CLAP's text and audio embeddings (paper 4.3).

    A clip longer than the model's window is heard in windows spread evenly over it, whose similarities are
    averaged. `value` is the similarity to the prompt, in [-1, 1]; `margin` is that less the highest
    similarity among the same sentence with each emotion of the study, in [-2, 0].
    """

    name = "clap"
    headline = "similarity"
    lowest = -1.0

    def __init__(self, model: ClapModel, processor: ClapProcessor, device: torch.device):
        self.model = model.to(device).eval().requires_grad_(False)
        self.processor = processor
        self.device = device
        self.sample_rate = processor.feature_extractor.sampling_rate  # Hz
        self.longest = processor.feature_extractor.nb_max_samples
        self._texts: dict[str, torch.Tensor] = {}

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> Clap:
        _require(folder)
        if (folder / "laion.json").is_file():
            from music_ddpo.rewards.laion import LaionClap

            return LaionClap.load(folder, device)
        model = ClapModel.from_pretrained(folder, local_files_only=True)
        return cls(model, ClapProcessor.from_pretrained(folder, local_files_only=True), device)

    @torch.no_grad()
    def embed_text(self, text: str) -> torch.Tensor:
        """Unit-norm embedding of a sentence, float32 [dimensions]; remembered."""
        if text not in self._texts:
            self._texts[text] = normalize(self._embed_text(text).float(), dim=0).cpu()
        return self._texts[text]

    @torch.no_grad()
    def embed_audio(self, waveform: torch.Tensor, sample_rate: int) -> torch.Tensor:
        """Unit-norm embeddings of a clip [samples], one a window: float32 [windows, dimensions]."""
        clip = resample(waveform, sample_rate, self.sample_rate)
        count = max(1, math.ceil(len(clip) / self.longest))
        starts = torch.linspace(0, max(0, len(clip) - self.longest), count).round().long().tolist()
        return normalize(self._embed_parts([clip[s : s + self.longest] for s in starts]).float(), dim=1).cpu()

    def _embed_text(self, text: str) -> torch.Tensor:
        tokens = self.processor.tokenizer([text], return_tensors="pt", truncation=True).to(self.device)
        return self.model.get_text_features(**tokens).pooler_output[0]

    def _embed_parts(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Embeddings [parts, dimensions] of pieces of at most `longest` samples at `sample_rate`."""
        extractor, sounds = self.processor.feature_extractor, [part.numpy() for part in parts]
        features = extractor(sounds, sampling_rate=self.sample_rate, return_tensors="pt").input_features
        return self.model.get_audio_features(input_features=features.to(self.device)).pooler_output

    def judge(self, waveforms: torch.Tensor, sample_rate: int, prompts: Sequence[Prompt]) -> Judgement:
        value, margin, predicted, correct = [], [], [], []
        for waveform, prompt in zip(waveforms, prompts, strict=True):
            texts = torch.stack([self.embed_text(t) for t in prompt.alternatives])
            similarities = (texts @ self.embed_audio(waveform, sample_rate).T).mean(1)
            own = similarities[prompt.alternatives.index(prompt.text)]
            best = int(similarities.argmax())
            value.append(own)
            margin.append(own - similarities[best])
            predicted.append(prompt.alternative_quadrants[best])
            correct.append(float(prompt.alternatives[best] == prompt.text))
        value = torch.stack(value)
        return Judgement(value, torch.stack(margin), predicted, torch.tensor(correct), similarity=value)


class HeldOutClap(Clap):
    """The CLAP inside the generator: it hears every clip, but no adapter is ever trained with it."""

    name = "held_out"
    place = "pipeline"

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> HeldOutClap:
        _require(folder)
        model = ClapModel.from_pretrained(folder / "text_encoder", local_files_only=True)
        extractor = ClapFeatureExtractor.from_pretrained(folder / "feature_extractor", local_files_only=True)
        tokenizer = RobertaTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        return cls(model, ClapProcessor(feature_extractor=extractor, tokenizer=tokenizer), device)


def _require(folder: Path) -> None:
    if not folder.is_dir():  # a path that is not there, the libraries take for a name on the hub
        raise UserError(f"{folder}: not found; run `dvc repro -f fetch`.")
    logging.disable_progress_bar()
