"""EMOPIA's emotion classifier as a reward."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from pydantic import BaseModel, Field, ValidationError
from safetensors.torch import load_file

from music_ddpo.core.audio import consecutive, cover, resample
from music_ddpo.core.errors import UserError, in_one_line
from music_ddpo.core.files import read_json, read_text, write_json
from music_ddpo.core.params import EmopiaParams, Params
from music_ddpo.core.prompts import QUADRANTS, Prompt
from music_ddpo.core.tensors import require_finite
from music_ddpo.rewards.base import Judgement, Reward
from music_ddpo.rewards.emopia.network import MEMBER, PART, SETTINGS, WEIGHTS, ShortChunkResNet
from music_ddpo.weights import shipped
from music_ddpo.weights.manifests import WAY_OUT
from music_ddpo.weights.sources import SHIPPED

CHOICES = "settings.json"  # the file with the group `emopia` of params.yaml
LARGEST = 1_000_000  # bytes of the settings; the authors' have a thousand


class Emopia(Reward):
    """EMOPIA's classifier, or an ensemble of such; its four sigmoid scores are averaged over windows of 3 s.

    The windows are consecutive whole ones, as in the paper (one for 5 s, three for 10 s: the rest is not heard), or as
    many as cover the clip, evenly spaced (two for 5 s, four for 10 s): `emopia.windows` of params.yaml.

    The scores of the ensemble are the mean over its members. `value` and `margin` are the score of the prompt's
    quadrant minus the highest score, in [-1, 0]; the predicted quadrant is the one with the highest score.

    Parameters
    ----------
    networks
        The members, at least one.
    sample_rate, window
        Of what they hear: Hz, seconds.
    windows
        `emopia.windows` of params.yaml.
    """

    name = "emopia"
    headline = "accuracy"
    lowest = -1.0
    highest = 0.0
    forms = ("value", "margin", "label")

    def __init__(
        self,
        networks: Sequence[ShortChunkResNet],
        sample_rate: int,
        window: float,
        device: torch.device,
        windows: str,
    ):
        self.networks = [network.to(device).eval().requires_grad_(False) for network in networks]
        self.sample_rate = sample_rate
        self.window = window
        self.windows = windows
        self.device = device

    @classmethod
    def fetch(cls, folder: Path, params: Params) -> str:
        """Copies the shipped model's classifiers, or takes the authors' one."""
        if params.model in SHIPPED:
            came = shipped.copy(SHIPPED[params.model], "rewards/emopia", folder)
            _write_choices(folder, params.emopia)
            return came
        from music_ddpo.rewards.emopia import weights

        place = params.weights.emopia
        came = weights.fetch(place, folder)
        _write_choices(folder, params.emopia)
        try:
            cls.of_folder(folder, torch.device("cpu"), **params.emopia.model_dump())
        except Exception as error:  # a UserError too: it names a temporary folder
            raise UserError(
                f"weights.emopia: the weights in {place} do not match their settings ({in_one_line(error)})."
            ) from error
        return came

    @classmethod
    def load(cls, models: Path, device: torch.device) -> Emopia:
        """Loads it from `models`/rewards/emopia."""
        folder = models / "rewards" / "emopia"
        return cls.of_folder(folder, device, **read_json(folder / CHOICES))

    @classmethod
    def of_folder(
        cls,
        folder: Path,
        device: torch.device,
        windows: str,
        members: int = 1,
    ) -> Emopia:
        """Loads the first members in a folder and the settings beside them; `UserError` if there are fewer."""
        settings = read_hparams(folder)
        networks = []
        for path in member_files(folder, members):
            network = ShortChunkResNet(settings.wav.sr, **settings.hparams.model_dump())
            network.load_state_dict(load_file(path))
            require_finite(network, path, WAY_OUT)
            networks.append(network)
        return cls(networks, settings.wav.sr, settings.wav.input_length, device, windows)

    @classmethod
    def shortest_clip(cls, folder: Path) -> float:
        """The length of a window, in seconds."""
        return read_hparams(folder).wav.input_length

    @torch.no_grad()
    def judge(self, waveforms: torch.Tensor, sample_rate: int, prompts: Sequence[Prompt]) -> Judgement:
        """Judges waveforms [batch, samples]: each member hears all windows in one batch."""
        length = round(self.window * self.sample_rate)
        sound = resample(waveforms.to(self.device), sample_rate, self.sample_rate)
        if sound.shape[1] < length:
            seconds = waveforms.shape[1] / sample_rate
            raise UserError(f"duration: {seconds:g} s is too short for reward 'emopia'; it needs {self.window:g} s.")
        cut = consecutive(sound, length) if self.windows == "paper" else cover(sound, length)
        spectrogram = self.networks[0].spectrogram(cut.flatten(0, 1))  # the same for all: they share `hparams.yaml`
        members = torch.stack([network.classify(spectrogram).sigmoid() for network in self.networks])
        scores = members.view(-1, *cut.shape[:2], 4).mean(2).cpu().mean(0)
        target = torch.tensor([QUADRANTS.index(p.quadrant) for p in prompts])
        value = scores.gather(1, target[:, None])[:, 0] - scores.amax(1)
        predicted = scores.argmax(1)
        return Judgement(
            value=value,
            margin=value,
            predicted=[QUADRANTS[i] for i in predicted],
            correct=(predicted == target).float(),
            details={f"score_{q}": scores[:, i] for i, q in enumerate(QUADRANTS)},
        )


def member_files(folder: Path, members: int) -> list[Path]:
    """The weights of the first members in a folder; `UserError` if it has fewer."""
    paths = [folder / (MEMBER.format(number) if number > 1 else WEIGHTS) for number in range(1, members + 1)]
    found = next((i for i, path in enumerate(paths) if not path.is_file()), members)
    if 0 < found < members:
        raise UserError(
            f"emopia.members: {members} classifiers are asked for, but the weights of this model have {found}; set it "
            f"to {found}{' or less' if found > 1 else ''}."
        )
    return paths


def _write_choices(folder: Path, emopia: EmopiaParams) -> None:
    """Writes the group `emopia` of params.yaml beside the weights; `UserError` if it asks for more than there are."""
    member_files(folder, emopia.members)
    write_json(folder / CHOICES, emopia.model_dump())


class Wave(BaseModel):
    """The group `wav` of the settings: sample rate in Hz, and length of a window in seconds."""

    sr: int = Field(ge=1000, le=192_000)
    input_length: float = Field(gt=0, le=300, allow_inf_nan=False)


class Network(BaseModel):
    """The group `hparams` of the settings: frequencies in Hz."""

    n_fft: int = Field(ge=16, le=65_536)
    f_min: float = Field(ge=0, allow_inf_nan=False)
    f_max: float = Field(gt=0, le=96_000, allow_inf_nan=False)
    n_mels: int = Field(ge=1, le=4096)
    n_channels: int = Field(ge=1, le=4096)


class Task(BaseModel):
    """The group `task` of the settings: the names of the classes."""

    labels: list[str] = list(QUADRANTS)


class HParams(BaseModel):
    """The settings that the authors save beside their checkpoint."""

    wav: Wave
    hparams: Network
    task: Task = Task()


def read_hparams(folder: Path) -> HParams:
    """The settings in a folder; `UserError` if they are missing, damaged or of other classes."""
    path = folder / SETTINGS
    text = read_text(path, WAY_OUT, LARGEST)
    try:
        found = HParams.model_validate(yaml.safe_load(text))
    except ValidationError as error:
        first = error.errors()[0]
        wrong = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        wrong = f"is not YAML: {in_one_line(error, 100)}"
    else:
        if found.task.labels != list(QUADRANTS):
            raise UserError(f"{path}: these weights classify {found.task.labels}, not {list(QUADRANTS)}; use {PART}.")
        return found
    raise UserError(f"{path}: truncated or altered ({wrong}); {WAY_OUT}.")
