"""The judge that stands for people: what it computes, and that it cannot be trained with."""

import json

import pytest
import torch
from safetensors.torch import save_file

from helpers.project import CPU, params_with, small
from music_ddpo.core.errors import UserError
from music_ddpo.core.params_file import parse
from music_ddpo.core.prompts import make_prompts
from music_ddpo.rewards.listener import Listener
from music_ddpo.rewards.listener.network import ListenerNetwork

RATE, WINDOW = 16_000, 3
INSTRUMENTS = ["piano", "flute", "organ"]
PROMPTS = make_prompts("A {emotion} {instrument}", ["happy", "angry", "sad", "tender"], ["flute"])


@pytest.fixture
def network():
    """Random weights whose BatchNorms have seen some audio."""
    torch.manual_seed(0)
    network = ListenerNetwork(RATE, 2, INSTRUMENTS)
    network.train()(clips(8))
    return network.eval()


@pytest.fixture
def listener(network):
    return Listener(network, RATE, WINDOW, CPU)


def clips(count: int) -> torch.Tensor:
    loudness = torch.linspace(0.05, 0.9, count)[:, None]
    return loudness * (torch.rand(count, 5 * RATE, generator=torch.Generator().manual_seed(1)) - 0.5)


@torch.no_grad()
def test_it_averages_the_probabilities_of_windows_that_cover_the_clip(listener, network):
    sound = clips(4)

    heard = listener.score(sound, RATE, PROMPTS)

    for i, prompt in enumerate(PROMPTS):
        first, last = (network(sound[i : i + 1, start : start + 3 * RATE]) for start in (0, 2 * RATE))
        emotion = (first[0].softmax(1) + last[0].softmax(1))[0] / 2
        instrument = (first[1].softmax(1) + last[1].softmax(1))[0] / 2
        clean = (first[2].sigmoid() + last[2].sigmoid()).item() / 2
        assert heard.value[i] == pytest.approx(emotion[int(prompt.quadrant[1]) - 1].item(), abs=1e-5)
        assert heard.predicted[i] == f"Q{emotion.argmax() + 1}"
        assert heard.correct[i] == (heard.predicted[i] == prompt.quadrant)
        assert heard.details["instrument"][i] == (INSTRUMENTS[instrument.argmax()] == "flute")
        assert heard.details["clean"][i] == pytest.approx(clean, abs=1e-5)


def test_it_loads_from_its_folder(listener, network, tmp_path):
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    settings = {"sample_rate": RATE, "window": WINDOW, "n_channels": 2, "instruments": INSTRUMENTS}
    (tmp_path / "settings.json").write_text(json.dumps(settings))

    loaded = Listener.of_folder(tmp_path, CPU)

    assert torch.equal(loaded.score(clips(4), RATE, PROMPTS).value, listener.score(clips(4), RATE, PROMPTS).value)
    assert Listener.shortest_clip(tmp_path) == WINDOW


def test_a_clip_shorter_than_its_window_is_refused(listener):
    with pytest.raises(UserError, match="duration: 2 s is too short for judge 'listener'; it needs 3 s"):
        listener.score(clips(4)[:, : 2 * RATE], RATE, PROMPTS)


def test_real_models_have_no_listener(tmp_path):
    assert "listener" in small().judges
    assert "listener" not in small(model="audioldm2-music").judges
    with pytest.raises(UserError, match=r"judges: 'listener' belongs to the embedded model mini.*Remove it"):
        Listener.fetch(tmp_path, small(model="audioldm2-music", judges=["clap", "emopia", "listener"]))


@pytest.mark.parametrize("judge", ["listener", "held_out"])
def test_no_adapter_may_be_trained_with_it(judge):
    with pytest.raises(UserError, match=f"rewards: '{judge}' judges only; no adapter may be trained with it"):
        parse(params_with(rewards=[judge]))
