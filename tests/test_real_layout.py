"""The layout of the real models: their full-size classes, the stand-ins for them, and the whole study on these."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from huggingface_hub import ModelCard
from safetensors import safe_open
from safetensors.torch import save_file

from helpers import standins
from helpers.project import PROJECT, copy_of_project, python_in, run, set_params, succeed
from helpers.standins import AUDIOLDM2, LAYOUT, MUSIC, SMALLER, as_saved, build, real_config, weight_settings
from music_ddpo import cli
from music_ddpo.core import audio

LARGE = "cvssp+audioldm2-large"
FILES = json.loads((LAYOUT / "file-lists.json").read_text())
TYPES = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64"}
# The number of tensors of each type in the hub's files.
TENSORS = {
    (AUDIOLDM2, "text_encoder"): {"F32": 532, "F64": 2, "I64": 21},
    (AUDIOLDM2, "text_encoder_2"): {"F32": 219},
    (AUDIOLDM2, "language_model"): {"F32": 148},
    (AUDIOLDM2, "projection_model"): {"F32": 8},
    (AUDIOLDM2, "unet"): {"F32": 1520},
    (AUDIOLDM2, "vae"): {"F32": 204},
    (AUDIOLDM2, "vocoder"): {"F32": 196},
    (LARGE, "unet"): {"F32": 3216},
}


def full_size(repo: str, part: str) -> dict[str, torch.Tensor]:
    """The tensors of the hub's file, without their content."""
    with torch.device("meta"):
        return as_saved(build(part, real_config(f"{part}/config.json", repo)))


def safetensors_size(states: dict[str, torch.Tensor]) -> int:
    """Bytes of a safetensors file, whose header is JSON, padded to 8 bytes: the widest types first, then by name."""
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key, x in sorted(states.items(), key=lambda item: (-item[1].element_size(), item[0])):
        start, end = end, end + x.numel() * x.element_size()
        header[key] = {"dtype": TYPES[x.dtype], "shape": list(x.shape), "data_offsets": [start, end]}
    length = len(json.dumps(header, separators=(",", ":")))
    return 8 + -(-length // 8) * 8 + end


def weights(folder: Path) -> Path:
    """The safetensors file in a folder."""
    (path,) = folder.glob("*.safetensors")
    return path


def types(path: Path) -> dict[str, str]:
    """The type of each tensor in a file."""
    with safe_open(path, "pt") as file:
        return {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118


@pytest.fixture(scope="module")
def music(tmp_path_factory) -> Path:
    """The stand-in for cvssp/audioldm2-music."""
    folder = tmp_path_factory.mktemp("music") / "repository"
    standins.audioldm2(folder)
    return folder


@pytest.mark.parametrize(("repo", "part"), TENSORS)
def test_a_full_size_model_has_the_tensors_of_the_hubs_file_to_the_byte(repo, part):
    states = full_size(repo, part)
    assert Counter(TYPES[x.dtype] for x in states.values()) == TENSORS[repo, part]
    name = "model" if "model_type" in real_config(f"{part}/config.json", repo) else "diffusion_pytorch_model"
    assert safetensors_size(states) == FILES[repo.replace("+", "/")][f"{part}/{name}.safetensors"]


def test_the_computed_size_is_that_of_a_written_file(tmp_path):
    states = {"b": torch.ones(3, 5), "a": torch.ones((), dtype=torch.float64), "c": torch.ones(7, dtype=torch.long)}
    save_file(states, tmp_path / "x.safetensors", {"format": "pt"})
    assert safetensors_size(states) == (tmp_path / "x.safetensors").stat().st_size


def test_the_real_configs_have_the_sizes_of_the_hubs_files():
    for repo, files in FILES.items():
        for name, size in files.items():
            path = LAYOUT / repo.replace("/", "+") / name
            if path.is_file() and size is not None:
                assert path.stat().st_size == size, path


def test_the_stand_ins_have_the_files_of_the_hub(music, tmp_path):
    standins.roberta_base(tmp_path / "roberta")
    for folder, repo in ((music, MUSIC), (tmp_path / "roberta", "FacebookAI/roberta-base")):
        assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == set(FILES[repo])


@pytest.mark.parametrize("part", SMALLER)
def test_a_stand_in_differs_from_the_real_model_in_its_sizes_only(music, part):
    def without_sizes(config: dict, smaller: dict) -> dict:
        inner = {key: without_sizes(config[key], value) for key, value in smaller.items() if isinstance(value, dict)}
        return {key: value for key, value in config.items() if key not in smaller} | inner

    config = json.loads((music / part / "config.json").read_text())
    real = real_config(f"{part}/config.json")
    assert without_sizes(config, SMALLER[part]) == without_sizes(real, SMALLER[part])
    found = types(weights(music / part))
    expected = {key: TYPES[x.dtype] for key, x in full_size(AUDIOLDM2, part).items()}
    assert found.items() <= expected.items()
    if part in ("projection_model", "unet", "vae", "vocoder"):  # the others have fewer layers
        assert found == expected
    assert set(found.values()) == set(expected.values())
    (pickled,) = (music / part).glob("*.bin")
    states = torch.load(pickled, weights_only=True)
    assert {key: TYPES[x.dtype] for key, x in states.items()} == found


def test_the_same_study_runs_on_the_real_models_layout(hub, published, tmp_path, monkeypatch):
    """The hub is used for `fetch` only: after it the network is not needed any more."""
    project = copy_of_project(tmp_path / "project")
    tiny = {"duration": 3, "steps": 2, "ddpo__rounds": 1, "ddpo__trajectories_per_round": 8, "rewards": ["both"]}
    set_params(project, model="audioldm2-music", weights=weight_settings(published).model_dump(), **tiny)
    environment = hub.environment(tmp_path / "home")
    assert succeed(project, "dvc", "repro", "fetch", env=environment).count("Licence: ") == 4
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
    waveform, sample_rate = audio.read(next((project / "clips" / "both").glob("*.wav")))
    assert (len(waveform), sample_rate) == (3 * 16000, 16000)

    # what stock diffusers does with it, by the lines of the model card and those of the README
    stock = python_in(card.text).replace("path/to/this/folder", str(adapter)) + "\nassert audio.shape == (48000,)\n"
    readme = python_in((PROJECT / "README.md").read_text()).replace("models/adapters/emopia", str(adapter))
    stock += readme + "\nassert audio.shape == (80000,)\n"
    played = run(project, "python", "-c", stock, env=environment)
    assert played.returncode == 0, played.stderr

    monkeypatch.chdir(project)
    arguments = ["generate", "A sad piano", "--adapter", str(adapter), "--compare", "--out", "sad.wav"]
    done = CliRunner().invoke(cli.main, arguments)
    assert done.exit_code == 0, done.output
    assert {len(audio.read(project / name)[0]) for name in ("sad.wav", "sad-original.wav")} == {48000}
