"""The one schema of params.yaml: read once, checked whole, frozen."""

from __future__ import annotations

import difflib
import math
import re
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from music_ddpo.errors import UserError
from music_ddpo.prompts import fill, quadrant_of
from music_ddpo.rewards.registry import REWARDS
from music_ddpo.weights import registry as weights


class YAML(yaml.SafeLoader):
    """PyYAML with the floats of YAML 1.2, which DVC writes: to PyYAML alone 1e-05 is a word."""


YAML.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)

Positive = Annotated[int, Field(gt=0)]


def _whole_or(word: str, least: int) -> Any:
    """The type of a key that takes a whole number or one word."""

    def check(value: Any) -> int | str:
        if value == word or (isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**63):
            return value
        raise ValueError(f"must be a whole number of at least {least}, or {word!r}")

    return Annotated[Any, BeforeValidator(check)]


Batch = _whole_or("auto", 1)


class Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class PromptParams(Group):
    template: str
    negative: str
    emotions: list[str] = Field(min_length=1)
    instruments: list[str] = Field(min_length=1)

    @field_validator("template")
    @classmethod
    def names_both(cls, template: str) -> str:
        try:
            fields = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
            if fields <= {"emotion", "instrument", "article"}:
                fill(template, "happy", "piano")
        except (ValueError, LookupError) as error:
            raise ValueError(f"is not a template: {error}") from None
        if not {"emotion", "instrument"} <= fields <= {"emotion", "instrument", "article"}:
            raise ValueError("must hold {emotion} and {instrument}, may hold {article}, and nothing else in braces")
        return template

    @field_validator("emotions")
    @classmethod
    def emotions_known(cls, emotions: list[str]) -> list[str]:
        for emotion in emotions:
            quadrant_of(emotion)
        return _distinct(emotions)

    @field_validator("instruments")
    @classmethod
    def instruments_named(cls, instruments: list[str]) -> list[str]:
        if not all(i.strip() for i in instruments):
            raise ValueError("must not hold an empty name")
        return _distinct(instruments)


class DDPOParams(Group):
    epochs: Positive
    trajectories_per_epoch: Positive
    updates_per_epoch: Positive
    timesteps: str
    learning_rate: float = Field(gt=0)
    adam_betas: list[Annotated[float, Field(ge=0, lt=1)]] = Field(min_length=2, max_length=2)
    weight_decay: float = Field(ge=0)
    clip_range: float = Field(gt=0)
    advantage_clip: float = Field(gt=0)
    advantage_window: Positive
    max_gradient_norm: float = Field(gt=0)

    @field_validator("timesteps")
    @classmethod
    def timesteps_known(cls, timesteps: str) -> str:
        if not re.fullmatch(r"all|(first|last) ([1-9]\d*|[1-9]\d?%)", timesteps):
            raise ValueError('must be "all", "first N" or "last N", where N is a number of steps or a percentage')
        return timesteps

    @model_validator(mode="after")
    def updates_have_trajectories(self) -> DDPOParams:
        if self.trajectories_per_epoch % self.updates_per_epoch:
            raise ValueError(
                f"ddpo.updates_per_epoch: {self.updates_per_epoch} must divide "
                f"ddpo.trajectories_per_epoch, which is {self.trajectories_per_epoch}"
            )
        return self


class LoRAParams(Group):
    rank: Positive
    alpha: float = Field(gt=0)


class EvaluationParams(Group):
    clips_per_emotion: Positive
    eta: float = Field(ge=0, le=1)
    confidence: float = Field(gt=0, lt=1)
    bootstrap: int = Field(ge=100)


class ClapWeights(Group):
    repo: str
    file: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    architecture: Literal["HTSAT-tiny", "HTSAT-base", "HTSAT-large"]
    text_model: str


class WeightParams(Group):
    revision: str = Field(min_length=1)
    clap: ClapWeights
    emopia: str = Field(min_length=1)


class ComputeParams(Group):
    device: str
    processes: int = Field(ge=1)
    precision: Literal["auto", "float32", "bfloat16"]
    sample_batch: Batch
    update_batch: Batch
    decode_batch: Batch

    @field_validator("device")
    @classmethod
    def device_known(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
            raise ValueError("must be auto, cpu, mps, cuda or cuda:N")
        return device


class Params(Group):
    """params.yaml, typed. Every key is explained, with its unit and the paper's value, in the file itself."""

    model: str
    weights: WeightParams
    seed: _whole_or("random", 0)
    duration: float = Field(gt=0, le=300)
    steps: int = Field(ge=1, le=1000)
    guidance_scale: float = Field(ge=1)
    prompts: PromptParams
    rewards: list[str] = Field(min_length=1)
    reward_form: Literal["value", "margin", "label"]
    ddpo: DDPOParams
    lora: LoRAParams
    evaluation: EvaluationParams
    compute: ComputeParams

    @model_validator(mode="before")
    @classmethod
    def settle_auto(cls, content: dict[str, Any]) -> dict[str, Any]:
        """Puts what suits the model where params.yaml says `auto`."""
        suited = weights.SUITED.get(str(content.get("model")), weights.SUITED_OTHERWISE)
        if content.get("guidance_scale") == "auto":
            content = content | {"guidance_scale": suited.guidance_scale}
        ddpo = content.get("ddpo")
        if isinstance(ddpo, dict) and ddpo.get("learning_rate") == "auto":
            content = content | {"ddpo": ddpo | {"learning_rate": suited.learning_rate}}
        return content

    @field_validator("model")
    @classmethod
    def model_known(cls, model: str) -> str:
        weights.check_name(model)
        return model

    @field_validator("rewards")
    @classmethod
    def rewards_known(cls, rewards: list[str]) -> list[str]:
        for reward in rewards:
            if reward not in REWARDS:
                raise ValueError(_unknown("reward", reward, REWARDS))
        return _distinct(rewards)

    @model_validator(mode="after")
    def timesteps_fit(self) -> Params:
        if len(self.trained_steps) > self.steps:
            raise ValueError(f"ddpo.timesteps: {self.ddpo.timesteps!r} is more than steps, which is {self.steps}")
        return self

    @property
    def trained_steps(self) -> range:
        """Indices of the denoising steps that are trained on; step 0 is the noisiest (paper 5.2.4)."""
        which, _, share = self.ddpo.timesteps.partition(" ")
        if which == "all":
            return range(self.steps)
        count = math.ceil(self.steps * int(share[:-1]) / 100) if share.endswith("%") else int(share)
        return range(count) if which == "first" else range(self.steps - count, self.steps)


def _distinct(words: list[str]) -> list[str]:
    twice = sorted({w for w in words if words.count(w) > 1})
    if twice:
        raise ValueError(f"must not hold {twice[0]!r} twice")
    return words


def _unknown(kind: str, name: str, known) -> str:
    return f"holds no {kind} that is known here ({', '.join(known)}){weights.nearest(name, known)}"


def load(path: Path | str = "params.yaml") -> Params:
    """Reads and checks params.yaml.

    Raises
    ------
    UserError
        For the first wrong thing in it: names the key, what stands there, and what may stand there.
    """
    try:
        content = yaml.load(Path(path).read_text(), YAML)
    except FileNotFoundError:
        raise UserError(f"{path}: not found; run this from the project's folder.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    return parse(content, str(path))


def parse(content: Any, source: str = "params.yaml") -> Params:
    """Checks the content of params.yaml; raises as `load` does."""
    if not isinstance(content, dict):
        raise UserError(f"{source}: must hold keys and values, found {type(content).__name__}.")
    try:
        return Params.model_validate(content)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    except ValidationError as error:
        # An unknown key comes first: misspelt, it is why another one is missing.
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        raise UserError(f"{source}: {_explain(first)}") from None


def _explain(error: dict[str, Any]) -> str:
    location = [str(part) for part in error["loc"]]
    key = ".".join(location)
    if error["type"] == "extra_forbidden":
        known = _keys_at(location[:-1])
        close = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"keys here are {', '.join(known)}."
        return f"{key}: is no key that is known here; {hint}"
    if error["type"] == "missing":
        return f"{key}: is missing; add it (its comment in the shipped params.yaml says what it is)."
    reason = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if error["type"] == "value_error" and key in ("", "ddpo"):  # a rule over several keys, which names them itself
        return f"{reason}."
    return f"{key}: {error['input']!r} {reason}."


def _keys_at(location: list[str]) -> list[str]:
    group: Any = Params
    for part in location:
        group = group.model_fields[part].annotation
    return list(group.model_fields)
