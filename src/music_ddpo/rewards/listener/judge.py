"""The `listener` judge: to the embedded model what human listeners are to the real one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import BaseModel, Field
from safetensors.torch import load_file

from music_ddpo.core.audio import cover, resample
from music_ddpo.core.errors import UserError
from music_ddpo.core.files import read_json
from music_ddpo.core.params import Params
from music_ddpo.core.prompts import QUADRANTS, Prompt
from music_ddpo.core.tensors import require_finite
from music_ddpo.rewards.base import Judgement, Reward
from music_ddpo.rewards.listener.network import ListenerNetwork
from music_ddpo.weights import shipped
from music_ddpo.weights.manifests import WAY_OUT
from music_ddpo.weights.sources import SHIPPED

WEIGHTS, SETTINGS = "model.safetensors", "settings.json"


class Settings(BaseModel):
    """The content of settings.json: sample rate in Hz, length of a window in seconds."""

    sample_rate: int = Field(ge=1000, le=192_000)
    window: float = Field(gt=0, le=300)
    n_channels: int = Field(ge=1, le=4096)
    instruments: list[str] = Field(min_length=1, max_length=1000)


class Listener(Reward):
    """A larger classifier, trained on many recordings with correct labels, clean and spoiled, before and after the VAE.

    It hears the emotion, the instrument and whether the sound is clean, in windows that cover the clip; the windows'
    probabilities are averaged. `value` is the probability of the prompt's quadrant. The details are `instrument` (1 if
    it hears the prompt's instrument, else 0) and `clean` (the probability that the clip is not spoiled).
    """

    name = "listener"
    headline = "accuracy"
    lowest = 0.0
    highest = 1.0
    forms = ()

    def __init__(self, network: ListenerNetwork, sample_rate: int, window: float, device: torch.device):
        self.network = network.to(device).eval().requires_grad_(False)
        self.sample_rate = sample_rate  # Hz
        self.window = window  # seconds
        self.device = device

    @classmethod
    def fetch(cls, folder: Path, params: Params) -> str:
        """Copies the shipped model's listener; real models have none."""
        if params.model not in SHIPPED:
            raise UserError(
                f"judges: 'listener' belongs to the embedded model {', '.join(SHIPPED)}; model {params.model!r} has "
                "none, because it stands for people. Remove it from `judges`."
            )
        return shipped.copy(SHIPPED[params.model], "rewards/listener", folder)

    @classmethod
    def load(cls, models: Path, device: torch.device) -> Listener:
        """Loads it from `models`/rewards/listener."""
        return cls.of_folder(models / "rewards" / "listener", device)

    @classmethod
    def of_folder(cls, folder: Path, device: torch.device) -> Listener:
        """Loads the weights in a folder and the settings beside them."""
        settings = Settings.model_validate(read_json(folder / SETTINGS))
        network = ListenerNetwork(settings.sample_rate, settings.n_channels, settings.instruments)
        network.load_state_dict(load_file(folder / WEIGHTS))
        require_finite(network, folder / WEIGHTS, WAY_OUT)
        return cls(network, settings.sample_rate, settings.window, device)

    @classmethod
    def shortest_clip(cls, folder: Path) -> float:
        """The length of a window, in seconds."""
        return Settings.model_validate(read_json(folder / SETTINGS)).window

    @torch.no_grad()
    def judge(self, waveforms: torch.Tensor, sample_rate: int, prompts: Sequence[Prompt]) -> Judgement:
        """Judges waveforms [batch, samples] in one batch of windows."""
        length = round(self.window * self.sample_rate)
        sound = resample(waveforms.to(self.device), sample_rate, self.sample_rate)
        if sound.shape[1] < length:
            seconds = waveforms.shape[1] / sample_rate
            raise UserError(f"duration: {seconds:g} s is too short for judge 'listener'; it needs {self.window:g} s.")
        windows = cover(sound, length)

        def mean(probabilities: torch.Tensor) -> torch.Tensor:
            return probabilities.unflatten(0, windows.shape[:2]).mean(1).cpu()

        quadrants, instruments, clean = self.network(windows.flatten(0, 1))
        emotion, instrument = mean(quadrants.softmax(1)), mean(instruments.softmax(1))
        target = torch.tensor([QUADRANTS.index(p.quadrant) for p in prompts])
        predicted = emotion.argmax(1)
        played = [self.network.instruments[i] for i in instrument.argmax(1)]
        asked = [p.instrument for p in prompts]
        return Judgement(
            value=emotion.gather(1, target[:, None])[:, 0],
            predicted=[QUADRANTS[i] for i in predicted],
            correct=(predicted == target).float(),
            details={
                "instrument": torch.tensor([float(a == b) for a, b in zip(played, asked, strict=True)]),
                "clean": mean(clean.sigmoid()),
            },
        )
