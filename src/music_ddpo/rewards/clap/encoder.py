"""What the reward needs of a CLAP model, whichever library computes it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch


class Encoder(ABC):
    """A CLAP model: embeds a text, and pieces of audio of at most `longest` samples at `sample_rate` Hz."""

    sample_rate: int
    longest: int

    @abstractmethod
    def text(self, text: str) -> torch.Tensor:
        """The embedding of a text, float32 [dimensions]."""

    @abstractmethod
    def audio(self, pieces: Sequence[torch.Tensor], quantised: bool = True) -> torch.Tensor:
        """The embeddings of pieces of audio [samples], float32 [pieces, dimensions].

        Parameters
        ----------
        quantised
            Whether samples are rounded to 16 bits first, where the library does so by default.
        """
