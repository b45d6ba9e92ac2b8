"""Fetching the real models' layouts from a stand-in hub: what arrives, what breaks, and what a user then reads."""

from __future__ import annotations

import json
import logging
import math
import os
import pickle
import re
import resource
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from diffusers import AudioLDM2Pipeline, AutoencoderKL
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import SpeechT5HifiGan

from helpers import standins
from helpers.hub import reach
from helpers.project import CPU, MINI, small
from helpers.standins import CHECKPOINT, MUSIC, asked, weight_settings
from music_ddpo.core.errors import UserError
from music_ddpo.core.files import checksums
from music_ddpo.core.params import WeightParams
from music_ddpo.model.audioldm2 import Generator
from music_ddpo.model.loading import load_model
from music_ddpo.model.parts import MODELS
from music_ddpo.rewards import fetching
from music_ddpo.rewards.emopia import weights as emopia
from music_ddpo.rewards.finding import load_reward
from music_ddpo.weights import checkpoints
from music_ddpo.weights.sources import SHIPPED


def fetch(model: str, weights: WeightParams, judges: list[str], _mixtures: dict, target: Path) -> dict[str, str]:
    """Fetches a model and its judges."""
    return fetching.fetch(asked(model, weights, judges), target)


@pytest.fixture
def target(tmp_path) -> Path:
    return tmp_path / "models"


def fails(root: Path, target: Path, *words: str, model: str = "audioldm2-music", rewards=(), **changes: str) -> str:
    """A fetch that must fail: the message holds `words`, and nothing half-written is left. Returns the message."""
    with pytest.raises(UserError) as caught:
        fetch(model, weight_settings(root, **changes), list(rewards), {}, target)
    assert all(word in str(caught.value) for word in words), caught.value
    assert not (target / "pipeline").exists()
    assert not list(root.rglob("*.partial"))
    return str(caught.value)


# What arrives


def test_a_first_fetch_brings_what_is_used_and_nothing_else(hub, published, target, capsys):
    came = fetch("audioldm2-music", weight_settings(published), ["clap", "emopia"], {}, target)
    assert came["model"] == MUSIC
    assert re.fullmatch("[0-9a-f]{40}", came["revision"])
    assert came["license"] == "cc-by-nc-sa-4.0"
    assert weight_settings(published).clap.sha256 in came["clap"]
    assert "emopia.zip" in came["emopia"]
    licences = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Licence: ")]
    assert len(licences) == 3
    assert sum("non-commercial" in line for line in licences) == 2
    unused = re.compile(r"README|\.bin|gitattributes|dict\.txt|msgpack")
    assert [name for name in hub.downloads if unused.search(name)] == []
    assert [name for name in hub.downloads if "roberta-base" in name and "model.safetensors" in name] == []
    assert json.loads((target / "manifest.json").read_text()) == checksums(target / "pipeline")
    for name in ("clap", "emopia"):
        manifest = json.loads((target / "rewards" / name / "manifest.json").read_text())
        files = checksums(target / "rewards" / name)
        del files["manifest.json"]
        assert manifest["weights"] == files
    pickles = [p for p in target.rglob("*") if p.suffix in (".bin", ".pt", ".ckpt", ".pkl")]
    assert pickles == []


def dtypes(pipe: AudioLDM2Pipeline) -> dict[str, set[torch.dtype]]:
    """The types of the weights of each model."""
    models = {name: module for name, module in pipe.components.items() if isinstance(module, torch.nn.Module)}
    return {name: {p.dtype for p in module.parameters()} for name, module in models.items()}


def test_the_fetched_pipeline_is_one_that_stock_diffusers_loads_and_runs(hub, published, target):
    index = json.loads((published / "hub" / MUSIC / "model_index.json").read_text())
    assert index["language_model"] == ["transformers", "GPT2Model"]  # as the hub has it, and as nothing can run it
    config = json.loads((published / "hub" / MUSIC / "text_encoder" / "config.json").read_text())
    assert config["torch_dtype"] == "float64"  # believed, the first prompt fails
    fetch("audioldm2-music", weight_settings(published), [], {}, target)
    pipe = AudioLDM2Pipeline.from_pretrained(target / "pipeline", local_files_only=True)
    assert dtypes(pipe) == {name: {torch.float32} for name in MODELS}
    pipe.set_progress_bar_config(disable=True)
    audio = pipe("A recording of a sad piano solo", audio_length_in_s=1, num_inference_steps=2, output_type="pt").audios
    assert audio.shape == (1, 16000)
    assert audio.isfinite().all()
    assert audio.std() > 1e-3
    saved = load_file(published / "hub" / MUSIC / "language_model" / "model.safetensors")
    for name, x in saved.items():
        assert torch.equal(x, pipe.language_model.transformer.state_dict()[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_hubs_own_files_load_in_float32_but_for_the_unet(published, dtype):
    """Whatever the config says, and although the language model's class is another one."""
    folder = published / "hub" / MUSIC
    generator = Generator.load(folder, CPU, dtype)
    assert dtypes(generator.pipeline) == {name: {torch.float32} for name in MODELS} | {"unet": {dtype}}
    conditioning = generator.encode(["A recording of a sad piano solo"], "Low quality")
    assert conditioning.generated.dtype == conditioning.states.dtype == dtype
    latents = torch.randn(2, *generator.latent_shape(1), generator=torch.Generator().manual_seed(0))
    scale = json.loads((folder / "vae" / "config.json").read_text())["scaling_factor"]
    assert scale not in (1, 0.18215)
    mel = AutoencoderKL.from_pretrained(folder / "vae").decode(latents / scale).sample
    waveforms = SpeechT5HifiGan.from_pretrained(folder / "vocoder")(mel.squeeze(1)).detach()
    assert waveforms.std() > 1e-3
    assert torch.equal(generator.decode(latents, 1), waveforms[:, :16000])


def test_a_sample_rate_of_zero_is_named(published, tmp_path):
    folder = shutil.copytree(published / "hub" / MUSIC, tmp_path / "model")
    path = folder / "vocoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sampling_rate": 0}))
    with pytest.raises(UserError, match=r"vocoder/config\.json: sampling_rate .*must be positive"):
        Generator.load(folder, CPU)


def test_sharded_weights_are_fetched_and_half_precision_variants_are_not(hub, tmp_path, target):
    folder = tmp_path / "hub" / MUSIC
    t5 = folder / "text_encoder_2"
    whole = load_file(t5 / "model.safetensors")
    names = sorted(whole)
    places = {}
    for i, part in enumerate((names[::2], names[1::2])):
        file = f"model-{i + 1:05d}-of-00002.safetensors"
        places |= dict.fromkeys(part, file)
        save_file({name: whole[name] for name in part}, t5 / file, {"format": "pt"})
        save_file({name: whole[name].half() for name in part}, t5 / file.replace("l-", "l.fp16-"), {"format": "pt"})
    for end in ("safetensors.index.json", "safetensors.index.fp16.json", "bin.index.json"):
        (t5 / f"model.{end}").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (t5 / "model.safetensors").unlink()
    half = {name: x.half() for name, x in load_file(folder / "vae" / "diffusion_pytorch_model.safetensors").items()}
    save_file(half, folder / "vae" / "diffusion_pytorch_model.fp16.safetensors")
    fetch("audioldm2-music", weight_settings(tmp_path), [], {}, target)
    assert [name for name in hub.downloads if "fp16" in name and name.endswith(".safetensors")] == []
    pipe = AudioLDM2Pipeline.from_pretrained(target / "pipeline", local_files_only=True)
    assert all(torch.equal(pipe.text_encoder_2.state_dict()[name], x) for name, x in whole.items())
    assert not list(target.rglob("*.bin*"))


def test_a_second_fetch_downloads_nothing(hub, published, target):
    first = fetch("audioldm2-music", weight_settings(published), ["clap"], {}, target)
    hub.forget()
    again = fetch("audioldm2-music", weight_settings(published), ["clap"], {}, target.with_name("again"))
    assert again == first
    assert hub.downloads == []


def test_without_a_network_what_the_cache_holds_is_enough(hub, published, target, monkeypatch):
    first = fetch("audioldm2-music", weight_settings(published), ["clap"], {}, target)
    reach(monkeypatch, "http://127.0.0.1:9")  # where nobody listens
    again = fetch("audioldm2-music", weight_settings(published), ["clap"], {}, target.with_name("again"))
    assert again == first


def test_a_revision_is_fetched_and_recorded(hub, published, target):
    commit = fetch(MUSIC, weight_settings(published), [], {}, target)["revision"]
    assert fetch(MUSIC, weight_settings(published, revision=commit), [], {}, target)["revision"] == commit


def test_a_local_folder_in_pipeline_layout_is_a_model(published, tmp_path, target):
    came = fetch(str(published / "hub" / MUSIC), weight_settings(published), ["emopia"], {}, target)
    assert came["revision"] == "local"
    AudioLDM2Pipeline.from_pretrained(target / "pipeline", local_files_only=True)


def test_weights_that_are_only_there_as_a_pickle_become_safetensors(hub, tmp_path, target):
    unet = tmp_path / "hub" / MUSIC / "unet"
    expected = load_file(unet / "diffusion_pytorch_model.safetensors")
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    fetch("audioldm2-music", weight_settings(tmp_path), [], {}, target)
    written = load_file(target / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[name], expected[name]) for name in expected)
    assert not list(target.rglob("*.bin"))


# What breaks on the way


def test_a_dropped_connection_is_resumed(hub, published, target):
    file = "unet/diffusion_pytorch_model.safetensors"
    size = (published / "hub" / MUSIC / file).stat().st_size
    hub.drop_after[file] = size // 2
    fetch("audioldm2-music", weight_settings(published), [], {}, target)
    asked = [ranged for method, path, ranged in hub.requests if method == "GET" and path.endswith(file)]
    assert len(asked) == 2
    assert re.fullmatch(r"bytes=[1-9]\d*-.*", asked[1])


def test_after_a_fetch_that_broke_off_for_good_the_next_one_brings_only_what_is_missing(
    hub, tmp_path, target, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    file = "unet/diffusion_pytorch_model.safetensors"
    hub.drop_always[file] = 0
    fails(tmp_path, target, MUSIC, "run again")
    (snapshot,) = (tmp_path / "cache").rglob("snapshots/*")
    kept = {p.relative_to(snapshot).as_posix() for p in snapshot.rglob("*") if p.is_file()}
    assert kept
    hub.drop_always.clear()
    hub.forget()
    fetch("audioldm2-music", weight_settings(tmp_path), [], {}, target)
    assert any(name.endswith(file) for name in hub.downloads)
    assert not [name for name in hub.downloads if name.endswith(tuple(kept))]


def test_an_unreachable_hub_gives_a_clear_error_without_the_password_in_its_address(
    hub, tmp_path, target, monkeypatch, caplog
):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "handlers", [caplog.handler])
    reach(monkeypatch, "http://user:secret@127.0.0.1:9")
    message = fails(tmp_path, target, MUSIC, "http://127.0.0.1:9", "network")
    model = str(tmp_path / "hub" / MUSIC)
    message += fails(tmp_path, target, "laion_clap", "http://127.0.0.1:9", "network", rewards=["clap"], model=model)
    assert "http://127.0.0.1:9" in caplog.text  # the library logs what it tries
    assert "secret" not in message + caplog.text


def test_a_file_with_a_wrong_hash_is_removed_and_downloaded_again(hub, tmp_path, target):
    hub.corrupt.add("vae/diffusion_pytorch_model.safetensors")
    fails(tmp_path, target, "diffusion_pytorch_model.safetensors", "damaged", "run again")
    hub.corrupt.clear()
    fetch("audioldm2-music", weight_settings(tmp_path), [], {}, target)


def test_a_blob_that_the_library_has_moved_to_its_shared_store_is_still_checked_by_its_own_hash(hub, published, target):
    fetch("audioldm2-music", weight_settings(published), [], {}, target)
    cache = Path(constants.HF_HUB_CACHE)
    (pointer,) = cache.rglob("snapshots/*/vae/diffusion_pytorch_model.safetensors")
    blob = pointer.parent / os.readlink(pointer)
    store = cache / "blobs" / ("0" * 64)  # named by another hash
    store.parent.mkdir()
    blob.rename(store)
    blob.symlink_to(store)
    fetch("audioldm2-music", weight_settings(published), [], {}, target)


def test_a_clap_checkpoint_with_another_checksum_is_not_even_read(hub, tmp_path, target, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was read"))
    words = (CHECKPOINT, "SHA-256", "weights.clap.sha256", "not read")
    fails(tmp_path, target, *words, rewards=["clap"], clap__sha256="0" * 64)
    assert not (target / "rewards" / "clap").exists()


@pytest.mark.parametrize("status", [404, 401])
def test_an_unknown_repository_gets_the_nearest_known_names(hub, tmp_path, target, status):
    hub.missing_status = status
    fails(tmp_path, target, "cvssp/audioldm2-musik", "'cvssp/audioldm2-music'", model="cvssp/audioldm2-musik")


def test_an_unknown_revision_is_named(hub, tmp_path, target):
    fails(tmp_path, target, "weights.revision", "'v9'", MUSIC, revision="v9")


def test_a_file_that_a_repository_does_not_hold_is_named(hub, tmp_path, target):
    fails(tmp_path, target, "'none.pt'", "params.yaml", rewards=["clap"], clap__file="none.pt")


@pytest.mark.parametrize("fault", ["private", "gated"])
def test_a_repository_behind_a_login_says_how_to_log_in(hub, tmp_path, target, fault):
    getattr(hub, fault).add(MUSIC)
    fails(tmp_path, target, MUSIC, "hf auth login", "HF_TOKEN")


def test_a_wrong_token_is_told_so(hub, tmp_path, target, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    fails(tmp_path, target, MUSIC, "token", "hf auth login")


def test_a_token_opens_a_private_repository(hub, tmp_path, target, monkeypatch):
    hub.private.add(MUSIC)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    fetch("audioldm2-music", weight_settings(tmp_path), [], {}, target)


def test_a_full_disk_is_named_and_leaves_nothing_behind(hub, tmp_path, target):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # the way to a full disk that needs no disk
    try:
        message = fails(tmp_path, target, MUSIC)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "size limit" in message
    fetch("audioldm2-music", weight_settings(tmp_path), [], {}, target)


# What is wrong at the source


class Evil:
    """Unpickled blindly, it leaves a file behind."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def test_a_pickle_that_tries_to_run_code_is_refused(hub, tmp_path, target):
    mark = tmp_path / "executed"
    torch.save({"state_dict": {}, "evil": Evil(mark)}, tmp_path / "evil.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps({"state_dict": Evil(mark)}))
    for name in ("evil.pt", "raw.pt"):
        with pytest.raises(UserError, match=re.escape(str(tmp_path / name)) + ": rejected"):
            checkpoints.read(tmp_path / name)

    checkpoint = tmp_path / "hub" / "lukewys" / "laion_clap" / CHECKPOINT
    checkpoint.unlink()  # a link to what other tests need
    shutil.copyfile(tmp_path / "evil.pt", checkpoint)
    fails(tmp_path, target, CHECKPOINT, "rejected", "system", rewards=["clap"])

    unet = tmp_path / "hub" / MUSIC / "unet"
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    shutil.copyfile(tmp_path / "evil.pt", unet / "diffusion_pytorch_model.bin")
    fails(tmp_path, target, "unet", "nothing in them was executed")

    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.write(tmp_path / "evil.pt", "best_weight/wav/ar_va/best.ckpt")
        archive.writestr("best_weight/wav/ar_va/hparams.yaml", "wav: {sr: 22050}")
    fails(tmp_path, target, "best.ckpt", "rejected", rewards=["emopia"], emopia=str(tmp_path / "evil.zip"))
    assert not mark.exists()
    pickle.loads((tmp_path / "raw.pt").read_bytes())  # proof that it would have
    assert mark.exists()


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_truncated_safetensors_are_named(hub, tmp_path, target, part):
    (path,) = (tmp_path / "hub" / MUSIC / part).glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-1000])
    fails(tmp_path, target, f"/{part}:", "damaged")


@pytest.mark.parametrize(
    ("part", "key", "value", "word"),
    [
        ("vocoder", "mean", None, "missing"),
        ("vocoder", "mean", torch.full((64,), math.nan), "not finite"),
        ("vocoder", "more.weight", torch.ones(1), "unexpected"),
        ("projection_model", "sos_embed", torch.full((standins.GPT2,), math.inf), "not finite"),
    ],
)
def test_a_tensor_that_is_wrong_is_named(published, tmp_path, part, key, value, word):
    folder = shutil.copytree(published / "hub" / MUSIC / part, tmp_path / part)
    (path,) = folder.glob("*.safetensors")
    states = {name: x for name, x in load_file(path).items() if name != key} | ({} if value is None else {key: value})
    save_file(states, path, {"format": "pt"})
    with pytest.raises(ValueError, match=f"{word}.*'{key}'|'{key}'.*{word}"):
        load_model(MODELS[part], folder)


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("vae", "latent_channels", 4),
        ("unet", "layers_per_block", 1),
        ("vocoder", "upsample_initial_channel", 32),
        ("language_model", "n_layer", 7),
        ("text_encoder_2", "num_layers", 7),
        ("language_model", "n_layer", 0),
    ],
)
def test_a_config_that_does_not_fit_its_weights_is_named(hub, tmp_path, target, part, key, value):
    path = tmp_path / "hub" / MUSIC / part / "config.json"
    config = json.loads(path.read_text())
    assert config[key] != value
    path.write_text(json.dumps(config | {key: value}))
    fails(tmp_path, target, f"/{part}:", "config.json")


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda folder: (folder / "model_index.json").unlink(), ["model_index.json"]),
        (lambda folder: (folder / "model_index.json").write_text("{"), ["model_index.json", "JSON"]),
        (lambda folder: (folder / "model_index.json").write_text("{}"), ["not AudioLDM 2"]),
        (lambda folder: shutil.rmtree(folder / "vocoder"), ["'vocoder'"]),
    ],
)
def test_a_repository_that_is_no_audioldm2_is_refused(hub, tmp_path, target, harm, words):
    harm(tmp_path / "hub" / MUSIC)
    fails(tmp_path, target, *words)


def test_a_clap_checkpoint_of_another_architecture_is_refused(hub, tmp_path, target):
    fails(tmp_path, target, "weights.clap.architecture", rewards=["clap"], clap__architecture="HTSAT-base")
    assert not (target / "rewards" / "clap").exists()


# EMOPIA's zip


def take_emopia(place: str, target: Path) -> None:
    """Brings the classifier alone, from `weights.emopia`, to a folder."""
    settings = WeightParams.model_construct(emopia=place)
    params = asked("audioldm2-music", settings)
    fetching.fetch_reward("emopia", target.parent / f"{target.name}-models", params)
    shutil.move(target.parent / f"{target.name}-models" / "rewards" / "emopia", target)
    for name in ("manifest.json", "settings.json"):
        (target / name).unlink()


def test_emopia_is_taken_from_a_zip_or_a_folder_and_gives_the_same(published, tmp_path):
    standins.emopia_weights(tmp_path / "unpacked")
    inner = tmp_path / "unpacked" / "best_weight" / "wav" / "ar_va"
    found = []
    for i, place in enumerate((published / "emopia.zip", tmp_path / "unpacked", inner)):
        take_emopia(str(place), tmp_path / str(i))
        assert sorted(p.name for p in (tmp_path / str(i)).iterdir()) == ["hparams.yaml", "model.safetensors"]
        found.append(load_file(tmp_path / str(i) / "model.safetensors"))
    assert all(torch.equal(x, other[name]) for other in found[1:] for name, x in found[0].items())


def test_more_members_than_the_authors_publish_are_refused(published, tmp_path):
    settings = WeightParams.model_construct(emopia=str(published / "emopia.zip"))
    params = asked("audioldm2-music", settings, members=2)
    with pytest.raises(UserError, match=r"^emopia\.members: 2 classifiers are .* have 1; set it to 1\.$"):
        fetching.fetch_reward("emopia", tmp_path, params)
    assert not (tmp_path / "rewards" / "emopia").exists()


def test_fetch_copies_all_members_of_a_shipped_ensemble_and_their_checksums(tmp_path, monkeypatch):
    source = shutil.copytree(MINI, tmp_path / "shipped", ignore=shutil.ignore_patterns("model-*.safetensors"))
    parts = source / "rewards" / "emopia"
    for number in (2, 3):
        shutil.copyfile(parts / "model.safetensors", parts / f"model-{number}.safetensors")
    (source / "manifest.json").unlink()
    (source / "manifest.json").write_text(json.dumps(checksums(source)))
    monkeypatch.setitem(SHIPPED, "mini", source)
    fetching.fetch_reward("emopia", tmp_path, small(emopia__members=2, emopia__windows="paper"))
    folder = tmp_path / "rewards" / "emopia"
    names = ["hparams.yaml", "model-2.safetensors", "model-3.safetensors", "model.safetensors", "settings.json"]
    assert sorted(json.loads((folder / "manifest.json").read_text())["weights"]) == names
    judge = load_reward("emopia", tmp_path, CPU)
    assert (len(judge.networks), judge.windows) == (2, "paper")
    (folder / "model-2.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="altered"):
        load_reward("emopia", tmp_path, CPU)
    with pytest.raises(UserError, match=r"^emopia\.members: 4 .* have 3; set it to 3 or less\.$"):
        fetching.fetch_reward("emopia", tmp_path, small(emopia__members=4))


def test_emopia_is_downloaded_once(published, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    calls = []

    def download(id: str, output: str) -> str:
        calls.append(id)
        return shutil.copyfile(published / "emopia.zip", output)

    monkeypatch.setattr(emopia.gdown, "download", download)
    for i in range(2):
        take_emopia("auto", tmp_path / str(i))
    assert calls == [emopia.DRIVE_ID]


@pytest.mark.parametrize("page", [None, "<html>Quota exceeded</html>"])
def test_a_dead_link_to_emopia_says_what_to_do(tmp_path, monkeypatch, page):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def download(id: str, output: str) -> None:
        if page is None:
            raise RuntimeError("Cannot retrieve the public link of the file")
        Path(output).write_text(page)

    monkeypatch.setattr(emopia.gdown, "download", download)
    with pytest.raises(UserError, match=r"weights\.emopia: .*EMOPIA_cls.*set weights\.emopia"):
        take_emopia("auto", tmp_path / "emopia")
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def harmed_zip(path: Path, **changes: str) -> Path:
    """EMOPIA's zip with `changes` to the text of its hparams.yaml, old=new."""
    standins.emopia_weights(path.with_suffix(""))
    folder = path.with_suffix("") / "best_weight" / "wav" / "ar_va"
    text = (folder / "hparams.yaml").read_text()
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "hparams.yaml").write_text(text)
    return folder


def test_emopia_that_is_absent_or_no_zip_or_not_emopia_is_named(published, tmp_path):
    (tmp_path / "page.zip").write_text("<html>")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("best_weight/midi_like/ar_va/hparams.yaml", "x: 1")
    (tmp_path / "empty").mkdir()
    whole = (published / "emopia.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    middle = len(whole) // 2
    (tmp_path / "flipped.zip").write_bytes(whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :])
    for name, word in (
        ("nothing.zip", "does not exist"),
        ("page.zip", "not a zip"),
        ("cut.zip", "not a zip"),
        ("flipped.zip", "damaged"),
        ("other.zip", "best.ckpt"),
        ("empty", "best.ckpt"),
    ):
        with pytest.raises(UserError, match=rf"weights\.emopia: {re.escape(str(tmp_path / name))} .*{word}"):
            take_emopia(str(tmp_path / name), tmp_path / "emopia")
    assert not (tmp_path / "emopia").exists()


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [("Q1", "low", "ar_va"), ("n_channels: 8", "n_channels: 9", "do not match"), ("wav", "w", "wav")],
)
def test_emopia_with_settings_that_do_not_fit_is_named(tmp_path, old, new, word):
    folder = harmed_zip(tmp_path / "harmed.zip", **{old: new})
    with pytest.raises(UserError, match=word):
        take_emopia(str(folder), tmp_path / "emopia")
    assert not (tmp_path / "emopia").exists()


def test_a_truncated_checkpoint_is_named(tmp_path):
    torch.save({"state_dict": {"x": torch.zeros(1000)}}, tmp_path / "whole.pt")
    content = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[:-500])
    with pytest.raises(UserError, match=r"cut\.pt: is truncated"):
        checkpoints.read(tmp_path / "cut.pt")
