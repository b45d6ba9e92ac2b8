"""The listener's network: EMOPIA's layers, wider, with three answers: emotion, instrument, and whether it is clean."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from music_ddpo.core.prompts import QUADRANTS
from music_ddpo.rewards.emopia.network import ShortChunkResNet

SPECTRUM = {"n_fft": 1024, "f_min": 20.0, "f_max": 8000.0, "n_mels": 80}


class ListenerNetwork(nn.Module):
    """Logits of the quadrant, of the instrument, and of "clean" against "spoiled", for a window of audio.

    Parameters
    ----------
    sample_rate
        In Hz.
    n_channels
        Of the first layers.
    instruments
        The names of the instruments that it knows.
    """

    def __init__(self, sample_rate: int, n_channels: int, instruments: Sequence[str]):
        super().__init__()
        self.instruments = tuple(instruments)
        self.trunk = ShortChunkResNet(sample_rate, n_channels=n_channels, **SPECTRUM)  # type: ignore[arg-type]
        self.trunk.dense2 = nn.Linear(self.trunk.dense1.out_features, len(QUADRANTS) + len(self.instruments) + 1)

    def forward(self, windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits of windows [batch, samples]: quadrants [batch, 4], instruments [batch, instruments], clean [batch]."""
        logits = self.trunk.logits(windows)
        return logits[:, :4], logits[:, 4:-1], logits[:, -1]
