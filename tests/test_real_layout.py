"""The whole study, as a user runs it, on stand-ins in the layout of the real models."""

from __future__ import annotations

import json

from huggingface_hub import ModelCard

from helpers.project import copy_of_project, python_in, run, set_params, succeed
from helpers.standins import MUSIC, weight_settings
from music_ddpo.core import audio


def test_the_same_study_runs_on_the_real_models_layout(hub, published, tmp_path):
    """The hub is used for `fetch` only: after it the network is not needed any more."""
    project = copy_of_project(tmp_path / "project")
    tiny = {"duration": 3, "steps": 2, "ddpo__rounds": 1, "ddpo__trajectories_per_round": 8, "rewards": ["both"]}
    set_params(project, model="audioldm2-music", weights=weight_settings(published).model_dump(), **tiny)
    environment = hub.environment(tmp_path / "home")
    assert succeed(project, "dvc", "repro", "fetch", env=environment).count("Licence: ") == 3
    came = json.loads((project / "metrics" / "weights.json").read_text())
    assert came["model"] == MUSIC

    hub.forget()
    output = succeed(project, "dvc", "repro", env=environment)
    assert hub.requests == []
    assert "Table 1" in output
    adapter = project / "models" / "adapters" / "both"
    card = ModelCard.load(adapter / "README.md")
    assert card.data.base_model == MUSIC
    assert card.data.license == "cc-by-nc-sa-4.0"
    assert came["revision"] in card.text
    assert "both: 1 x clap + 1 x emopia" in card.text
    assert "| tender |" in card.text
    lines = python_in(card.text).replace("path/to/this/folder", str(adapter))
    played = run(project, "python", "-c", lines + "\nassert audio.shape == (48000,)", env=environment)
    assert played.returncode == 0, played.stderr
    waveform, sample_rate = audio.read(next((project / "clips" / "both").glob("*.wav")))
    assert (len(waveform), sample_rate) == (3 * 16000, 16000)
