"""CLAP's similarity of text and audio as a reward, with either implementation of CLAP."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn.functional import normalize

from music_ddpo.core.audio import cover, resample
from music_ddpo.core.errors import UserError
from music_ddpo.core.params import Params
from music_ddpo.core.prompts import Prompt
from music_ddpo.rewards.base import Judgement, Reward
from music_ddpo.rewards.clap.encoder import Encoder
from music_ddpo.weights import shipped
from music_ddpo.weights.sources import SHIPPED


class Clap(Reward):
    """Cosine similarity of CLAP's text and audio embeddings (paper 4.3).

    A clip that is longer than the model's window is split into evenly spaced windows, whose similarities are averaged.
    `value` is the similarity to the prompt, in [-1, 1]. `margin` is that minus the highest similarity to the same
    sentence with any emotion of the study, in [-2, 0].
    """

    name = "clap"
    headline = "similarity"
    lowest = -1.0
    highest = 1.0
    forms = ("value", "margin", "label")

    def __init__(self, encoder: Encoder):
        self.encoder = encoder
        self._texts: dict[str, torch.Tensor] = {}

    @classmethod
    def fetch(cls, folder: Path, params: Params) -> str:
        """Copies the shipped model's CLAP, or downloads laion-clap's checkpoint."""
        if params.model in SHIPPED:
            return shipped.copy(SHIPPED[params.model], "rewards/clap", folder)
        from music_ddpo.rewards.clap import laion

        return laion.fetch(params.weights.clap, folder)

    @classmethod
    def load(cls, models: Path, device: torch.device) -> Clap:
        """Loads laion-clap's implementation if the weights are its own, transformers' otherwise."""
        return cls(load_encoder(models, device))

    @torch.no_grad()
    def embed_text(self, text: str) -> torch.Tensor:
        """Unit-norm embedding of a sentence, float32 [dimensions]; computed once."""
        if text not in self._texts:
            self._texts[text] = normalize(self.encoder.text(text).float(), dim=0).cpu()
        return self._texts[text]

    @torch.no_grad()
    def embed_audio(self, waveform: torch.Tensor, sample_rate: int) -> torch.Tensor:
        """Unit-norm embeddings of a clip [samples], one per window: float32 [windows, dimensions]."""
        clip = resample(waveform, sample_rate, self.encoder.sample_rate)
        return normalize(self.encoder.audio(list(cover(clip, self.encoder.longest))).float(), dim=1).cpu()

    def judge(self, waveforms: torch.Tensor, sample_rate: int, prompts: Sequence[Prompt]) -> Judgement:
        """Judges waveforms [batch, samples] one by one."""
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
        return Judgement(torch.stack(value), torch.stack(margin), predicted, torch.tensor(correct))


def load_encoder(models: Path, device: torch.device) -> Encoder:
    """The CLAP in `models`/rewards/clap, by laion-clap if the weights are its own, else by transformers."""
    folder = models / "rewards" / "clap"
    require(folder)
    if (folder / "laion.json").is_file():
        from music_ddpo.rewards.clap.laion import LaionEncoder  # late: it imports laion_clap

        return LaionEncoder(folder, device)
    from music_ddpo.rewards.clap.hf import TransformersEncoder

    return TransformersEncoder(folder, folder, folder, device)


def require(folder: Path) -> None:
    """`UserError` for a folder that does not exist: the libraries would take its path for a name on the hub."""
    if not folder.is_dir():
        raise UserError(f"{folder}: not found; run `dvc repro -f fetch`.")
