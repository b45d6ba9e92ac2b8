"""The whole study, as a user runs it, on stand-ins in the layout of the real models."""

from __future__ import annotations

import json

import yaml
from huggingface_hub import ModelCard

from conftest import MUSIC, copy_of_project, params_with, python_in, run, weight_settings
from music_ddpo.core import audio


def test_the_same_study_runs_on_the_real_models_layout(hub, published, tmp_path):
    """With the hub for `fetch` alone: after it, the network is not needed any more."""
    project = copy_of_project(tmp_path / "project")
    small = {"duration": 3, "steps": 2, "ddpo__epochs": 1, "ddpo__trajectories_per_epoch": 4}
    content = params_with(model="audioldm2-music", weights=weight_settings(published).model_dump(), **small)
    (project / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    environment = hub.environment(tmp_path / "home")
    fetched = run(project, "dvc", "repro", "fetch", env=environment)
    assert fetched.returncode == 0, fetched.stdout + fetched.stderr
    assert fetched.stdout.count("Licence: ") == 3
    came = json.loads((project / "metrics" / "weights.json").read_text())
    assert came["model"] == MUSIC

    hub.forget()
    done = run(project, "dvc", "repro", env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert hub.requests == []  # nobody was asked
    assert "Table 1" in done.stdout
    for reward in ("clap", "emopia"):
        adapter = project / "models" / "adapters" / reward
        assert (adapter / "adapter_model.safetensors").is_file()
        card = ModelCard.load(adapter / "README.md")
        assert card.data.base_model == MUSIC
        assert card.data.license == "cc-by-nc-sa-4.0"
        assert came["revision"] in card.text
        assert "| tender |" in card.text
    lines = python_in(card.text).replace("path/to/this/folder", str(adapter))
    played = run(project, "python", "-c", lines + "\nassert audio.shape == (48000,)", env=environment)
    assert played.returncode == 0, played.stderr
    waveform, sample_rate = audio.read(next((project / "clips" / "emopia").glob("*.wav")))
    assert (len(waveform), sample_rate) == (3 * 16000, 16000)
    assert not run(project, "dvc", "repro", env=environment).stdout.count("Running stage")
