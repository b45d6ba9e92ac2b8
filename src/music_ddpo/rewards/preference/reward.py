"""Human preference as a judge, and as a reward: TuneJury's head on the embeddings of the `clap` reward."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize

from music_ddpo.core.audio import cover, resample
from music_ddpo.core.errors import UserError
from music_ddpo.core.params import Params, PreferenceWeights
from music_ddpo.core.prompts import Prompt
from music_ddpo.rewards.base import Judgement, Reward
from music_ddpo.rewards.clap.encoder import Encoder
from music_ddpo.rewards.clap.reward import load_encoder
from music_ddpo.rewards.preference.head import PreferenceHead
from music_ddpo.weights import hub, shipped
from music_ddpo.weights.checkpoints import git_object, state_dict
from music_ddpo.weights.sources import SHIPPED

WEIGHTS = "head.safetensors"
BAND = 16_000  # Hz; the head's training features were resampled to this rate, and then to CLAP's


class Preference(Reward):
    """Predicted human preference: people prefer clip a to clip b with probability sigmoid(score of a - score of b).

    It does not depend on the prompt. The preprocessing is that of the head's training features: mono, resampled to 16
    kHz and from there to CLAP's 48 kHz, without quantisation to 16 bits, unit-norm embedding. (TuneJury's public scorer
    resamples directly and quantises; its training did not.) A clip that is longer than CLAP's window is split into
    evenly spaced windows, whose scores are averaged, where TuneJury takes one at random.

    `value` is the score, clamped to [-10, 10]: the range that a mixture scales.
    """

    name = "preference"
    headline = "score"
    lowest = -10.0
    highest = 10.0
    needs = ("clap",)

    def __init__(self, encoder: Encoder, head: PreferenceHead):
        self.encoder = encoder
        self.head = head

    @classmethod
    def fetch(cls, folder: Path, params: Params) -> str:
        """Copies the shipped model's head, or brings TuneJury's."""
        if params.model in SHIPPED:
            return shipped.copy(SHIPPED[params.model], "rewards/preference", folder)
        return _fetch(params.weights.preference, folder)

    @classmethod
    def load(cls, models: Path, device: torch.device) -> Preference:
        """Loads the head, and the CLAP of the `clap` reward."""
        path = models / "rewards" / "preference" / WEIGHTS
        return cls(load_encoder(models, device), PreferenceHead.of_states(load_file(path), str(path)))

    @torch.no_grad()
    def judge(self, waveforms: torch.Tensor, sample_rate: int, prompts: Sequence[Prompt]) -> Judgement:
        """Scores waveforms [batch, samples] one by one."""
        scores = []
        for waveform in waveforms:
            clip = resample(resample(waveform, sample_rate, BAND), BAND, self.encoder.sample_rate)
            embeddings = self.encoder.audio(list(cover(clip, self.encoder.longest)), quantised=False)
            scores.append(self.head(normalize(embeddings.float().cpu(), dim=1)).mean())
        return Judgement(torch.stack(scores).clamp(self.lowest, self.highest))


def _fetch(settings: PreferenceWeights, folder: Path) -> str:
    """Writes the head, as safetensors, to `folder`; returns where it comes from.

    Raises
    ------
    UserError
        If it is not the configured file, or not such a head; a file that is not the configured one is not read.
    """
    place = Path(settings.repo).expanduser()
    path = place / settings.file if place.is_dir() else hub.file(settings.repo, settings.file)
    if not path.is_file():
        raise UserError(f"weights.preference.file: {path} does not exist; correct it, or weights.preference.repo.")
    found = git_object(path)
    if found != settings.git_object:
        raise UserError(
            f"{settings.file}: its git object id is {found[:12]}…, weights.preference.git_object says "
            f"{settings.git_object[:12]}…; it was not read. Decide whether you trust the new file, and set that key to "
            "the output of `git hash-object`; or set weights.preference.repo to a folder with the file of the authors "
            "(github.com/yonghyunk1m/TuneJury, checkpoints/input_ablation/)."
        )
    states = state_dict(path, "")
    PreferenceHead.of_states(states, settings.file)
    folder.mkdir(exist_ok=True)
    save_file(states, folder / WEIGHTS)
    print(f"Licence: preference head {settings.repo}: Apache-2.0.")
    return f"{settings.repo}: {settings.file} (git object {found})"
