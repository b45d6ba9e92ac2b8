"""The judge of human preference: TuneJury's head, read from its state dict, on the embeddings of the `clap` reward."""

from __future__ import annotations

import json
import subprocess

import pytest
import torch
from torch.nn.functional import batch_norm, linear

from helpers import standins
from helpers.project import MINI, PROJECT, prompts_of, small
from helpers.standins import HEAD, TUNEJURY, weight_settings
from music_ddpo.core import audio
from music_ddpo.core.errors import UserError
from music_ddpo.core.randomness import random_generator
from music_ddpo.rewards import fetching
from music_ddpo.rewards.clap.encoder import Encoder
from music_ddpo.rewards.preference import reward as module
from music_ddpo.rewards.preference.head import PreferenceHead
from music_ddpo.rewards.preference.reward import Preference
from music_ddpo.weights.checkpoints import git_object

WIDTHS = (8, 16, 8, 4, 4, 1)


class Ears(Encoder):
    """An encoder that notes what it was given."""

    sample_rate, longest = 48_000, 480_000

    def __init__(self):
        self.heard: list[tuple[int, bool]] = []

    def text(self, text: str) -> torch.Tensor:
        raise AssertionError("preference does not know the prompt")

    def audio(self, pieces, quantised=True):
        self.heard += [(len(piece), quantised) for piece in pieces]
        return torch.stack([torch.full((8,), 3.0) + piece[:8] for piece in pieces])


def head(*widths: int) -> PreferenceHead:
    """A head whose BatchNorms have statistics, as after training."""
    made = PreferenceHead(*widths)
    noise = random_generator(0, "preference head", 0, 0)
    for name, value in made.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=noise) + (0.5 if "var" in name else -0.5))
    return made.eval()


@pytest.mark.parametrize("prefix", ["net.", "score.", "", "module.net."])
@pytest.mark.parametrize("widths", [WIDTHS, (8, 4, 1), (8, 1)])
def test_widths_and_prefix_are_read_from_the_state_dict(prefix, widths):
    states = {prefix + key: value for key, value in head(*widths).state_dict().items()}
    found = PreferenceHead.of_states(states, "head.pt")
    assert found.widths == widths
    x = torch.randn(3, 8, generator=random_generator(0, "embedding", 0, 0))
    y, s = x, {key.removeprefix(prefix): value for key, value in states.items()}
    for i in range(0, 4 * (len(widths) - 2), 4):  # computed with functions, layer by layer
        y = linear(y, s[f"{i}.weight"], s[f"{i}.bias"])
        names = ("running_mean", "running_var", "weight", "bias")
        y = batch_norm(y, *(s[f"{i + 1}.{name}"] for name in names)).clamp(min=0)
    last = 4 * (len(widths) - 2)
    torch.testing.assert_close(found(x), linear(y, s[f"{last}.weight"], s[f"{last}.bias"]))
    assert not found.training


@pytest.mark.parametrize(
    "harm",
    [
        lambda states: states.clear(),
        lambda states: states.pop("net.0.weight"),
        lambda states: states.pop("net.1.running_var"),
        lambda states: states.update({"net.16.weight": torch.zeros(2, 128)}),
        lambda states: states.update({"net.4.weight": torch.zeros(512, 7)}),
        lambda states: states.update({"net.20.gamma": torch.zeros(1)}),
    ],
)
def test_a_state_dict_of_something_else_is_refused(harm):
    states = {f"net.{key}": value for key, value in PreferenceHead(512, 1024, 512, 256, 128, 1).state_dict().items()}
    harm(states)
    with pytest.raises(UserError, match=r"^head\.pt: is not a preference head"):
        PreferenceHead.of_states(states, "head.pt")


def test_the_clip_arrives_at_claps_rate_without_quantisation_and_in_windows_that_cover_it():
    ears = Ears()
    judge = Preference(ears, head(*WIDTHS))
    prompts = prompts_of(small())
    clips = torch.rand(2, 16_000 * 12, generator=random_generator(0, "clips", 0, 0)) - 0.5
    both = judge.score(clips, 16_000, prompts[:2]).value
    assert ears.heard == [(480_000, False)] * 4  # 12 s are two windows of 10 s
    alone = judge.score(clips[1:], 16_000, prompts[1:2]).value
    assert torch.equal(both[1:], alone)
    assert torch.equal(judge.score(clips, 16_000, prompts[2:4]).value, both)  # whatever was asked for


def test_a_clip_of_another_rate_is_limited_to_the_band_of_the_training_features():
    ears, heard = Ears(), []
    ears.audio = lambda pieces, quantised: heard.extend(pieces) or torch.ones(len(pieces), 8)
    judge = Preference(ears, head(*WIDTHS))
    time = torch.arange(48_000) / 48_000
    for pitch in (3000, 12_000):
        judge.score(0.5 * torch.sin(2 * torch.pi * pitch * time)[None], 48_000, prompts_of(small())[:1])
    low, high = (piece.square().mean().sqrt().item() for piece in heard)
    assert low == pytest.approx(0.5**1.5, rel=0.02)
    assert high < 0.01


def test_git_knows_a_file_by_the_same_id(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"one\ntwo\n" * 1000)
    git = subprocess.run(["git", "hash-object", path], capture_output=True, text=True, check=True)
    assert git_object(path) == git.stdout.strip()


def test_the_published_head_is_brought_from_the_hub_or_from_a_folder(hub, published, tmp_path):
    came = {}
    for place in (TUNEJURY, str(published / "hub" / TUNEJURY)):
        settings = weight_settings(published, preference__repo=place)
        folder = tmp_path / str(len(came))
        folder.mkdir()
        came[place] = Preference.fetch(folder, standins.asked("audioldm2-music", settings))
        loaded = module.load_file(folder / module.WEIGHTS)
        assert PreferenceHead.of_states(loaded, "head").widths == (512, 1024, 512, 256, 128, 1)
    assert all(settings.preference.git_object in text for text in came.values())


def test_another_file_than_the_configured_one_is_not_read(hub, published, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "state_dict", lambda *_: pytest.fail("it was read"))
    settings = weight_settings(published, preference__git_object="0" * 40)
    with pytest.raises(UserError, match=rf"^{HEAD}: its git object id is .*not read.*weights\.preference\.repo"):
        Preference.fetch(tmp_path, standins.asked("audioldm2-music", settings))


def test_minis_head_prefers_a_recording_to_its_spoiled_version(tmp_path, monkeypatch):
    monkeypatch.chdir(PROJECT)
    for name in ("clap", "preference"):
        fetching.fetch_reward(name, tmp_path, small())
    manifest = json.loads((tmp_path / "rewards" / "preference" / "manifest.json").read_text())
    clap = json.loads((tmp_path / "rewards" / "clap" / "manifest.json").read_text())
    assert manifest["needs"] == {"clap": clap}  # so another CLAP is another preference
    judge = Preference.load(tmp_path, torch.device("cpu"))
    prompts = prompts_of(small())
    clips = []
    for prompt in prompts:
        sound, rate = audio.read(MINI.parent / "samples" / f"recording-{prompt.emotion}-piano.wav")
        clips.append(sound)
    sound = torch.stack(clips)
    noisy = sound + 0.1 * torch.randn(sound.shape, generator=random_generator(0, "noise", 0, 0))
    clean, spoiled = (judge.score(x, rate, prompts).value for x in (sound, noisy))
    assert (clean > spoiled).all()
