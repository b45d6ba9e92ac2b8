"""The schema of params.yaml. docs/params.md explains every key, with its unit and the paper's value."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from music_ddpo.core.errors import did_you_mean, quoted
from music_ddpo.core.prompts import check_template, quadrant_of
from music_ddpo.core.texts import FileInside, FilledText, HubId, Name, Place, Text, is_hub_id, path_of

SHIPPED = ("mini",)  # the models that are part of the repository
PUBLISHED = ("audioldm2", "audioldm2-music", "audioldm2-large")  # the models that are on the hub
REWARDS = Path(__file__).parents[1] / "rewards"
TAKEN = {"accuracy", "baseline", "seed", "weights"}  # a reward with such a name would overwrite other results
AUTO_PRECISION = {"cpu": "float32", "cuda": "bfloat16", "mps": "float32"}  # what `auto` means on each kind of device
JUDGES_ONLY = ("held_out", "listener")  # no adapter may be trained with them
NO_REWARDS = {"__init__", "base", "fetching", "finding", "mixture"}  # the other modules in that folder


def known_rewards() -> list[str]:
    """The name of every module or package in rewards/ that defines a reward; none of them is imported."""
    names = {p.stem for p in REWARDS.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()}
    return sorted(names - NO_REWARDS)


def _number_or(word: str, kind: type, **bounds: float) -> BeforeValidator:
    """The check of a key that takes a number of some kind, within bounds, or one word."""

    def check(value: Any) -> Any:
        if value == word:
            return value
        if isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool):
            least, most = bounds.get("least", -math.inf), bounds.get("most", math.inf)
            if least <= value <= most and bounds.get("above", -math.inf) < value < math.inf:
                return value
        known = (("above", "greater than"), ("least", "at least"), ("most", "at most"))
        limits = ", ".join(f"{words} {bounds[key]:g}" for key, words in known if bounds.get(key, 2**62) < 2**62)
        name = "whole number" if kind is int else "number"
        raise ValueError(f"must be a {name}{f' ({limits})' if limits else ''}, or {word!r}")

    return BeforeValidator(check)


# The upper bounds are far beyond sensible values: what exceeds them is a slip that would end in an overflow, or take
# all memory.
Positive = Annotated[int, Field(gt=0, le=100_000)]
Limit = Annotated[float, Field(gt=0, le=1e9)]  # of something that is clipped; 1e9 clips nothing
PositiveOrAuto = Annotated[Any, _number_or("auto", int, least=1, most=100_000)]


TIMESTEPS = "all|(first|last|random) ([1-9][0-9]{0,3}|[1-9][0-9]?%|100%)"
DEVICES = r"auto|cpu|mps|cuda(:[0-9]{1,3})?"


class Group(BaseModel):
    """A group of keys: unknown ones are refused, and none can be changed after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _judges(value: Any) -> Any:
    """A list of known judges, without repetition."""
    if not isinstance(value, list) or not value or not all(isinstance(name, str) for name in value):
        raise ValueError("must be a list with at least one judge, or 'auto'")
    known = known_rewards()
    for judge in value:
        if judge not in known:
            raise ValueError(
                f"contains {quoted(judge)}, which is not in src/music_ddpo/rewards/ (known: {', '.join(known)})"
                + did_you_mean(judge, known)
            )
    return _distinct(value)


Judges = Annotated[Any, BeforeValidator(_judges)]
JudgesOrAuto = Annotated[Any, BeforeValidator(lambda value: value if value == "auto" else _judges(value))]


class AutoParams(Group):
    """What `auto` stands for: one value for each model that is named, and one for all others (`otherwise`)."""

    guidance_scale: dict[str, Annotated[float, Field(ge=1, le=100)]]
    judges: dict[str, Judges]
    rounds: dict[str, Positive]
    trajectories_per_round: dict[str, Positive]
    timesteps: dict[str, Annotated[str, Field(pattern=f"^({TIMESTEPS})$")]]
    learning_rate: dict[str, Annotated[float, Field(gt=0, le=1)]]
    clip_range: dict[str, Limit]
    kl: dict[str, Annotated[float, Field(ge=0, le=1e6)]]
    members: dict[str, Positive]

    @field_validator("*")
    @classmethod
    def covers_every_model(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Each key needs a value for models that it does not name."""
        if "otherwise" not in values:
            raise ValueError("must have a value for `otherwise`")
        return values


class PromptParams(Group):
    """The group `prompts`."""

    template: Annotated[Text, AfterValidator(check_template)]
    negative: Text
    emotions: list[str] = Field(min_length=1)
    instruments: list[Name] = Field(min_length=1)

    @field_validator("emotions")
    @classmethod
    def emotions_known(cls, emotions: list[str]) -> list[str]:
        """Each emotion has a quadrant."""
        for emotion in emotions:
            quadrant_of(emotion)
        return _distinct(emotions)

    @field_validator("instruments")
    @classmethod
    def instruments_named(cls, instruments: list[str]) -> list[str]:
        """Names are not empty."""
        if not all(i.strip() for i in instruments):
            raise ValueError("must not contain an empty name")
        return _distinct(instruments)


class DDPOParams(Group):
    """The group `ddpo`."""

    rounds: PositiveOrAuto
    trajectories_per_round: PositiveOrAuto
    updates_per_round: Positive
    timesteps: str
    learning_rate: Annotated[Any, _number_or("auto", float, above=0, most=1)]
    adam_betas: list[Annotated[float, Field(ge=0, lt=1)]] = Field(min_length=2, max_length=2)
    weight_decay: float = Field(ge=0, le=100)
    clip_range: Annotated[Any, _number_or("auto", float, above=0, most=1e9)]
    advantage_clip: Limit
    advantage_window: Positive
    advantage_minimum: int = Field(ge=2, le=100_000)
    max_gradient_norm: Limit
    advantages: Literal["window", "group"]
    kl: Annotated[Any, _number_or("auto", float, least=0, most=1e6)]

    @field_validator("timesteps")
    @classmethod
    def timesteps_known(cls, timesteps: str) -> str:
        """The choice of steps can be parsed."""
        if not re.fullmatch(f"auto|{TIMESTEPS}", timesteps):
            raise ValueError(
                'must be "auto", "all", "first N", "last N" or "random N", where N is a number of steps or a percentage'
            )
        return timesteps

    @model_validator(mode="after")
    def updates_have_trajectories(self) -> DDPOParams:
        """Each update gets the same number of trajectories."""
        if self.trajectories_per_round != "auto" and self.trajectories_per_round % self.updates_per_round:
            raise ValueError(
                f"ddpo.updates_per_round: {self.updates_per_round} must divide "
                f"ddpo.trajectories_per_round, which is {self.trajectories_per_round}"
            )
        return self

    @model_validator(mode="after")
    def minimum_can_be_reached(self) -> DDPOParams:
        """A prompt's rewards can become as many as its statistics need."""
        if self.advantage_minimum > self.advantage_window:
            raise ValueError(
                f"ddpo.advantage_minimum: {self.advantage_minimum} must be at most ddpo.advantage_window, which is "
                f"{self.advantage_window}"
            )
        return self


class LoRAParams(Group):
    """The group `lora`."""

    rank: int = Field(ge=1, le=1024)
    alpha: float = Field(gt=0, le=10_000)
    targets: Literal["cross", "all"]


class EvaluationParams(Group):
    """The group `evaluation`."""

    clips_per_emotion: int = Field(ge=2, le=1000)  # an interval needs two
    eta: float = Field(ge=0, le=1)
    confidence: float = Field(gt=0, lt=1)
    bootstrap: int = Field(ge=100, le=100_000)


class EmopiaParams(Group):
    """The group `emopia`."""

    windows: Literal["paper", "cover"]
    members: PositiveOrAuto


class ClapWeights(Group):
    """The group `weights.clap`."""

    repo: HubId
    file: FileInside
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    architecture: Literal["HTSAT-tiny", "HTSAT-base", "HTSAT-large"]
    text_model: HubId


class PreferenceWeights(Group):
    """The group `weights.preference`."""

    repo: Place
    file: FileInside
    git_object: str = Field(pattern=r"^[0-9a-f]{40}$")


class WeightParams(Group):
    """The group `weights`."""

    revision: FilledText
    clap: ClapWeights
    emopia: Place
    preference: PreferenceWeights


class ComputeParams(Group):
    """The group `compute`."""

    device: str
    processes: int = Field(ge=1, le=64)
    precision: Literal["auto", "float32", "bfloat16"]
    batch: PositiveOrAuto
    decode_batch: PositiveOrAuto

    @field_validator("device")
    @classmethod
    def device_known(cls, device: str) -> str:
        """The device has a name that torch knows."""
        if not re.fullmatch(DEVICES, device):
            raise ValueError("must be auto, cpu, mps, cuda or cuda:N")
        return device


class Params(Group):
    """The content of params.yaml. `auto` values that depend on the model are already replaced."""

    model: Text
    seed: Annotated[Any, _number_or("random", int, least=0, most=2**63 - 1)]
    duration: float = Field(gt=0, le=300)
    steps: int = Field(ge=1, le=1000)
    guidance_scale: Annotated[Any, _number_or("auto", float, least=1, most=100)]
    rewards: list[str] = Field(min_length=1)
    mixtures: dict[str, dict[str, Annotated[float, Field(ge=1e-6, le=1e6)]]]
    judges: JudgesOrAuto
    reward_form: Literal["value", "margin", "label"]
    prompts: PromptParams
    ddpo: DDPOParams
    lora: LoRAParams
    emopia: EmopiaParams
    evaluation: EvaluationParams
    weights: WeightParams
    compute: ComputeParams
    auto: AutoParams

    @field_validator("model")
    @classmethod
    def model_known(cls, model: str) -> str:
        """The model is a known name, a hub id or a folder."""
        known = (*SHIPPED, *PUBLISHED)
        path = path_of(model)
        if model not in known and not is_hub_id(model) and not (path and path.is_dir()):
            raise ValueError(
                f"is not a known model ({', '.join(known)}), a hub id (owner/name) or an existing folder"
                + did_you_mean(model, known)
            )
        return model

    @model_validator(mode="after")
    def rewards_are_judged(self) -> Params:
        """Each reward is judged, or is a mixture of judged ones."""
        if self.judges == "auto":  # not settled yet
            return self
        for name, mix in self.mixtures.items():
            if not name.isidentifier() or len(name) > 50 or name in {*known_rewards(), *TAKEN}:
                raise ValueError(
                    f"mixtures: {quoted(name)} must be a word that is not in use yet: letters, digits and _, at most "
                    "50 characters, and not the name of a reward; rename it"
                )
            if not mix:
                raise ValueError(f"mixtures.{name}: must have at least one reward with its weight")
            known = self.judges if name in self.rewards else known_rewards()
            self._judged(mix, f"mixtures.{name}", known)
        _distinct(self.rewards, "rewards: ")
        if TAKEN & set(self.rewards):
            raise ValueError(f"rewards: {min(TAKEN & set(self.rewards))!r} is the name of other results; rename it")
        self._judged(self.rewards, "rewards", [*self.judges, *self.mixtures])
        return self

    def _judged(self, names: list[str] | dict[str, float], key: str, known: list[str]) -> None:
        for name in names:
            if name not in known:
                hint = "; add it to `judges`" if name in known_rewards() else did_you_mean(name, known)
                raise ValueError(f"{key}: {quoted(name)} is not among {', '.join(known)}{hint}")
            if name in JUDGES_ONLY:
                raise ValueError(f"{key}: {name!r} judges only; no adapter may be trained with it")

    @model_validator(mode="after")
    def timesteps_fit(self) -> Params:
        """There are as many steps as are to be trained."""
        if self.ddpo.timesteps != "auto" and self.steps_of_an_update > self.steps:
            raise ValueError(f"ddpo.timesteps: {self.ddpo.timesteps!r} is more than steps, which is {self.steps}")
        return self

    @model_validator(mode="after")
    def prompts_have_clips(self) -> Params:
        """Each prompt gets clips in the evaluation, and two or more in a round if it is compared with these only."""
        clips, instruments = self.evaluation.clips_per_emotion, len(self.prompts.instruments)
        if clips < instruments:
            raise ValueError(
                f"evaluation.clips_per_emotion: {clips} leave some of the {instruments} instruments without a clip; "
                f"set it to {instruments} or more"
            )
        if self.few_trajectories and self.ddpo.advantages == "group":
            raise ValueError(f"{self.few_trajectories}, or `ddpo.advantages: window`")
        return self

    @property
    def few_trajectories(self) -> str:
        """What is said of a round with fewer than two trajectories of each prompt; empty if there are enough."""
        emotions, instruments = len(self.prompts.emotions), len(self.prompts.instruments)
        trajectories, enough = self.ddpo.trajectories_per_round, 2 * emotions * instruments
        if trajectories == "auto" or trajectories >= enough:
            return ""
        return (
            f"ddpo.trajectories_per_round: {trajectories} are fewer than two for each of the {enough // 2} prompts "
            f"({emotions} emotions, {instruments} instruments); set it to {enough} or more, or use fewer prompts"
        )

    @property
    def trained_steps(self) -> range:
        """Indices of the denoising steps that can be trained; step 0 is the noisiest (paper 5.2.4)."""
        which, count = self.ddpo.timesteps.split(" ")[0], self.steps_of_an_update
        if which in ("all", "random"):
            return range(self.steps)
        return range(count) if which == "first" else range(self.steps - count, self.steps)

    @property
    def steps_of_an_update(self) -> int:
        """How many of them one update trains."""
        _, _, share = self.ddpo.timesteps.partition(" ")
        if share.endswith("%"):
            return math.ceil(self.steps * int(share[:-1]) / 100)
        return int(share) if share else self.steps

    def settled(self) -> Params:
        """The same with a value in place of every `auto` that depends on the model; `ValueError` if they do not fit."""
        content = self.model_dump()
        for key, values in content["auto"].items():
            group = next(g for g in (content, content["ddpo"], content["emopia"]) if key in g)
            if group[key] == "auto":
                group[key] = values.get(self.model, values["otherwise"])
        return Params.model_validate(content)


def _distinct(words: list[str], key: str = "") -> list[str]:
    twice = sorted({w for w in words if words.count(w) > 1})
    if twice:
        raise ValueError(f"{key}must not contain {quoted(twice[0])} twice")
    return words
