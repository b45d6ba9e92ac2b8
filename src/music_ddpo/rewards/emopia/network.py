"""The EMOPIA emotion classifier: a short-chunk ResNet on log-mels (Hung et al., 2021; Won et al., 2020)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import relu
from torchaudio.transforms import AmplitudeToDB, MelSpectrogram

PART = "wav/ar_va"  # in the authors' folders, the audio classifier of four quadrants
WEIGHTS, SETTINGS = "model.safetensors", "hparams.yaml"  # the files that a trained network is stored in
MEMBER = "model-{}.safetensors"  # the weights of member 2, 3, ... of an ensemble; member 1 has `WEIGHTS`


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a 3x3 shortcut, each with BatchNorm; halves both axes."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv_1 = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
        self.bn_1 = nn.BatchNorm2d(outputs)
        self.conv_2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.bn_2 = nn.BatchNorm2d(outputs)
        self.conv_3 = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
        self.bn_3 = nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, inputs, mels, frames] to [batch, outputs, mels / 2, frames / 2]."""
        out = self.bn_2(self.conv_2(relu(self.bn_1(self.conv_1(x)))))
        return relu(out + self.bn_3(self.conv_3(x)))


class ShortChunkResNet(nn.Module):
    """Four sigmoid scores, one per quadrant Q1 to Q4, for a window of audio.

    Module names are those of the authors' checkpoint (`spec`, `spec_bn`, `layer1` to `layer7`, `dense1`,
    `bn`, `dense2`), so its state dict can be loaded after the prefix `model.` is removed.

    Parameters
    ----------
    sample_rate, n_fft, f_min, f_max, n_mels, n_channels
        As in the `hparams.yaml` beside the checkpoint; frequencies in Hz.
    """

    def __init__(self, sample_rate: int, n_fft: int, f_min: float, f_max: float, n_mels: int, n_channels: int):
        super().__init__()
        self.spec = MelSpectrogram(sample_rate, n_fft=n_fft, f_min=f_min, f_max=f_max, n_mels=n_mels)
        self.to_db = AmplitudeToDB()
        self.spec_bn = nn.BatchNorm2d(1)
        widths = [1] + [n_channels * k for k in (1, 1, 2, 2, 2, 2, 4)]
        for i in range(7):
            self.add_module(f"layer{i + 1}", ResidualBlock(widths[i], widths[i + 1]))
        self.dense1 = nn.Linear(widths[-1], widths[-1])
        self.bn = nn.BatchNorm1d(widths[-1])
        self.dropout = nn.Dropout(0.5)
        self.dense2 = nn.Linear(widths[-1], 4)

    def spectrogram(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Log-mels in dB, [batch, mels, frames], of windows [batch, samples] at `sample_rate`."""
        return self.to_db(self.spec(waveforms))

    def classify(self, spectrogram: torch.Tensor) -> torch.Tensor:
        """Scores before the sigmoid, [batch, 4], of what `spectrogram` returns."""
        x = self.spec_bn(spectrogram[:, None])
        for i in range(7):
            x = self.get_submodule(f"layer{i + 1}")(x)
        x = x.squeeze(2).amax(-1)
        return self.dense2(self.dropout(relu(self.bn(self.dense1(x)))))

    def logits(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Scores before the sigmoid, [batch, 4], of windows [batch, samples]."""
        return self.classify(self.spectrogram(waveforms))

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Scores in [0, 1], float32 [batch, 4], of windows [batch, samples] at `sample_rate`."""
        return self.logits(waveforms).sigmoid()
