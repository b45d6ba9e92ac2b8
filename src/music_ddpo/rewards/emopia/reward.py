"""EMOPIA's emotion classifier as a reward."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from music_ddpo.core.audio import consecutive, cover, resample
from music_ddpo.core.errors import UserError, in_one_line
from music_ddpo.core.files import read_json, write_json
from music_ddpo.core.params import Params
from music_ddpo.core.prompts import QUADRANTS, Prompt
from music_ddpo.rewards.base import Judgement, Reward
from music_ddpo.rewards.emopia.network import SETTINGS, WEIGHTS, ShortChunkResNet
from music_ddpo.weights import shipped
from music_ddpo.weights.sources import SHIPPED

MEL = ("n_fft", "f_min", "f_max", "n_mels", "n_channels")
WINDOWS = "windows.json"  # the file with `emopia.windows` of params.yaml


class Emopia(Reward):
    """EMOPIA's classifier; its four sigmoid scores are averaged over windows of 3 s.

    The windows are consecutive whole ones, as in the paper (one for 5 s, three for 10 s: the rest is not heard), or as
    many as cover the clip, evenly spread (two for 5 s, four for 10 s): `emopia.windows` of params.yaml.

    `value` and `margin` are the score of the prompt's quadrant minus the highest score, in [-1, 0].
    """

    name = "emopia"
    headline = "accuracy"
    lowest = -1.0
    highest = 0.0
    forms = ("value", "margin", "label")

    def __init__(self, network: ShortChunkResNet, sample_rate: int, window: float, device: torch.device, windows: str):
        self.network = network.to(device).eval().requires_grad_(False)
        self.sample_rate = sample_rate  # Hz
        self.window = window  # seconds
        self.windows = windows  # "paper" or "cover"
        self.device = device

    @classmethod
    def fetch(cls, folder: Path, params: Params) -> str:
        """Copies the shipped model's classifier, or takes the authors' one."""
        if params.model in SHIPPED:
            came = shipped.copy(SHIPPED[params.model], "rewards/emopia", folder)
            write_json(folder / WINDOWS, {"windows": params.emopia.windows})
            return came
        from music_ddpo.rewards.emopia import weights

        place = params.weights.emopia
        came = weights.fetch(place, folder)
        write_json(folder / WINDOWS, {"windows": params.emopia.windows})
        try:
            cls.of_folder(folder, torch.device("cpu"), params.emopia.windows)
        except Exception as error:  # a UserError too: it names a temporary folder
            raise UserError(
                f"weights.emopia: the weights in {place} do not match their settings ({in_one_line(error)})."
            ) from error
        return came

    @classmethod
    def load(cls, models: Path, device: torch.device) -> Emopia:
        """Loads it from `models`/rewards/emopia."""
        folder = models / "rewards" / "emopia"
        return cls.of_folder(folder, device, read_json(folder / WINDOWS)["windows"])

    @classmethod
    def of_folder(cls, folder: Path, device: torch.device, windows: str) -> Emopia:
        """Loads the weights in a folder and the settings beside them."""
        hparams = read_hparams(folder)
        network = ShortChunkResNet(hparams["sr"], **{key: hparams[key] for key in MEL})
        network.load_state_dict(load_file(folder / WEIGHTS))
        return cls(network, hparams["sr"], hparams["input_length"], device, windows)

    @classmethod
    def shortest_clip(cls, folder: Path) -> float:
        """The length of a window, in seconds."""
        return float(read_hparams(folder)["input_length"])

    @torch.no_grad()
    def judge(self, waveforms: torch.Tensor, sample_rate: int, prompts: Sequence[Prompt]) -> Judgement:
        """Judges waveforms [batch, samples] in one batch of windows."""
        length = round(self.window * self.sample_rate)
        sound = resample(waveforms.to(self.device), sample_rate, self.sample_rate)
        if sound.shape[1] < length:
            seconds = waveforms.shape[1] / sample_rate
            raise UserError(f"duration: {seconds:g} s is too short for reward 'emopia'; it needs {self.window:g} s.")
        cut = consecutive(sound, length) if self.windows == "paper" else cover(sound, length)
        scores = self.network(cut.flatten(0, 1)).view(len(cut), -1, 4).mean(1).cpu()
        target = torch.tensor([QUADRANTS.index(p.quadrant) for p in prompts])
        margin = scores.gather(1, target[:, None])[:, 0] - scores.amax(1)
        predicted = scores.argmax(1)
        return Judgement(
            value=margin,
            margin=margin,
            predicted=[QUADRANTS[i] for i in predicted],
            correct=(predicted == target).float(),
            details={f"score_{q}": scores[:, i] for i, q in enumerate(QUADRANTS)},
        )


def read_hparams(folder: Path) -> dict[str, Any]:
    """The settings that the authors save beside their checkpoint, of waveform and network in one dictionary."""
    path = folder / SETTINGS
    if not path.is_file():
        raise UserError(f"{path}: not found; run `dvc repro -f fetch`.")
    try:
        content = yaml.safe_load(path.read_text())
        hparams = content["wav"] | content["hparams"]
        labels = content.get("task", {}).get("labels", list(QUADRANTS))
        missing = sorted({"sr", "input_length", *MEL} - set(hparams))
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError, AttributeError):
        raise UserError(
            f"{path}: truncated or altered: it has no groups `wav` and `hparams`; run `dvc repro -f fetch`."
        ) from None
    if missing:
        raise UserError(f"{path}: truncated or altered, {missing[0]!r} is missing; run `dvc repro -f fetch`.")
    if labels != list(QUADRANTS):
        raise UserError(f"{path}: these weights classify {labels}, not {list(QUADRANTS)}; use those in wav/ar_va.")
    return hparams
