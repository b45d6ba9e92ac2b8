"""laion-clap behind the `clap` reward: against laion-clap's own module, and away from the network."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.project import CPU, MINI, run
from helpers.standins import CHECKPOINT, asked, weight_settings
from music_ddpo.core.prompts import make_prompts
from music_ddpo.rewards.clap import laion
from music_ddpo.rewards.fetching import fetch_reward
from music_ddpo.rewards.finding import load_reward
from music_ddpo.weights import checkpoints

TEXTS = ["A recording of an angry piano solo, high quality", "A recording of a tender piano solo, high quality"]

# What a user of laion-clap would write, with its own loader of checkpoints and its own tokenizer.
OWN = """
import sys, torch, laion_clap
from safetensors.torch import load_file, save_file
module = laion_clap.CLAP_Module(enable_fusion=False, amodel="HTSAT-tiny", device="cpu")
module.load_ckpt(sys.argv[1], verbose=False)
found = {name: torch.from_numpy(module.get_audio_embedding_from_data(clips.numpy(), use_tensor=False))
         for name, clips in load_file(sys.argv[2]).items()}
save_file(found | {"text": module.get_text_embedding(sys.argv[4:], use_tensor=True)}, sys.argv[3])
"""


@pytest.fixture(scope="module")
def models(published, tmp_path_factory):
    """models/ as `fetch` leaves it, with the stand-in of the paper's checkpoint converted."""
    folder = tmp_path_factory.mktemp("laion") / "models"
    root = published / "hub"
    with pytest.MonkeyPatch.context() as patch:
        repos = {"lukewys/laion_clap": root / "lukewys" / "laion_clap"}
        patch.setattr(laion.hub, "file", lambda repo, name: repos[repo] / name)
        patch.setattr(laion.hub, "snapshot", lambda repo, *_: root / repo)
        fetch_reward("clap", folder, asked("audioldm2-music", weight_settings(published)))
    return folder


@pytest.fixture(scope="module")
def clap(models):
    return load_reward("clap", models, CPU)


def noise(clips: int, seconds: float, sample_rate: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    colour = torch.linspace(0.9, 0.1, clips)[:, None]
    white = torch.rand(clips, int(seconds * sample_rate), generator=random) - 0.5
    return colour * white + (1 - colour) * 0.02 * white.cumsum(1).sin()


def test_embeddings_equal_laion_claps_own_on_the_same_checkpoint(clap, published, tmp_path):
    clips = {f"{seconds} s": noise(3, seconds, 48_000) for seconds in (5, 10)}
    save_file(clips, tmp_path / "clips")
    (tmp_path / "roberta-base").symlink_to(published / "hub" / "FacebookAI" / "roberta-base")  # where it looks for it
    checkpoint = published / "hub" / "lukewys" / "laion_clap" / CHECKPOINT
    (tmp_path / "own.py").write_text(OWN)
    offline = {"HF_HUB_OFFLINE": "1"}
    done = run(tmp_path, "python", "own.py", str(checkpoint), "clips", "out", *TEXTS, env=offline)
    assert done.returncode == 0, done.stderr
    own = load_file(tmp_path / "out")
    for name, sounds in clips.items():
        ours = torch.cat([clap.embed_audio(sound, 48_000) for sound in sounds])
        torch.testing.assert_close(ours, own[name], atol=1e-6, rtol=0)
        assert (ours[0] - ours[1]).abs().max() > 1e-3
    texts = torch.stack([clap.embed_text(text) for text in TEXTS])
    torch.testing.assert_close(texts, own["text"], atol=1e-6, rtol=0)
    assert (texts[0] - texts[1]).abs().max() > 1e-3


def test_a_clip_longer_than_the_window_is_scored_the_same_every_time_and_in_any_batch(clap):
    prompts = make_prompts("A recording of {article} {emotion} {instrument}", ["happy", "sad"], ["piano"])
    clips = noise(2, 23, 16_000)
    first, again = (clap.score(clips, 16_000, prompts).value for _ in range(2))
    assert torch.equal(first, again)
    alone = torch.cat([clap.score(clips[i : i + 1], 16_000, prompts[i : i + 1]).value for i in range(2)])
    assert torch.equal(first, alone)
    assert len(clap.embed_audio(clips[0], 16_000)) == 3


def test_the_conversion_keeps_every_weight(models, published):
    path = published / "hub" / "lukewys" / "laion_clap" / CHECKPOINT
    states = checkpoints.read(path)["state_dict"]
    converted = load_file(models / "rewards" / "clap" / "model.safetensors")
    gone = {name.removeprefix("module.") for name in states} - set(converted)
    assert gone == {"text_branch.embeddings.position_ids"}
    assert all(torch.equal(x, states[f"module.{name}"]) for name, x in converted.items())


def test_loading_it_uses_no_network(models):
    """In a fresh process, with the network's own functions out of order."""
    script = f"""
import socket, sys, torch
def refuse(*arguments, **named): raise AssertionError(f"the network was asked for {{arguments}}")
socket.getaddrinfo = socket.socket.connect = socket.create_connection = refuse
from pathlib import Path
from music_ddpo.rewards.finding import load_reward
load_reward("clap", Path({str(models)!r}), torch.device("cpu")).embed_text("a")
assert "laion_clap" in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_embedded_models_never_import_it():
    script = f"""
import json, sys, torch
from pathlib import Path
from music_ddpo.rewards import clap, emopia, fetching
sys.path.insert(0, "stages")
import baseline, evaluate, fetch, score, train
root = Path({str(MINI)!r})
clap.Clap.load(root, torch.device("cpu"))
emopia.Emopia.of_folder(root / "rewards" / "emopia", torch.device("cpu"), "cover")
print(json.dumps("laion_clap" in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=MINI.parents[1])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) is False
