"""`music-ddpo`: what a user types, and what comes out."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import pytest
import soundfile
import torch
import yaml
from click.testing import CliRunner, Result
from diffusers import AudioLDM2Pipeline
from peft import PeftModel
from safetensors.torch import load_file, save_file

from helpers.project import CPU, MINI, NEGATIVE, PROMPT, params_with, run, saved_adapter
from music_ddpo import generation
from music_ddpo.cli import main
from music_ddpo.core import audio
from music_ddpo.core.params import AutoParams
from music_ddpo.core.randomness import random_generator
from music_ddpo.model.audioldm2 import Generator

MODEL = ("--model", str(MINI / "pipeline"))
QUICK = (*MODEL, "--device", "cpu", "--steps", "4", "--duration", "2")
CALM = "A recording of a tender violin solo, high quality"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "trained"
    saved_adapter(folder)
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """The folder that the command runs in; empty, so without params.yaml."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def generate(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["generate", *map(str, arguments)], catch_exceptions=False)


def made(*arguments: str | Path) -> list[str]:
    """Runs the command, which must succeed; the lines that it prints."""
    result = generate(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


def samples(path: Path | str) -> torch.Tensor:
    return audio.read(path)[0]


def stock(adapter: Path | None, prompt: str, seed: int, take: int, duration: float, **options) -> torch.Tensor:
    """What diffusers and peft make of a prompt, without any code of ours but the noise: [samples]."""
    pipe = AudioLDM2Pipeline.from_pretrained(MINI / "pipeline")
    shape = Generator(pipe, CPU).latent_shape(duration)
    if adapter is not None:
        pipe.unet = PeftModel.from_pretrained(pipe.unet, adapter)
    pipe.set_progress_bar_config(disable=True)
    latents = torch.randn(1, *shape, generator=random_generator(seed, "generate", 0, take))
    return pipe(prompt, audio_length_in_s=duration, latents=latents, output_type="pt", **options).audios[0]


def test_a_clip_is_what_stock_diffusers_with_stock_peft_makes_of_the_same_noise(adapter, here):
    printed = made(
        PROMPT, CALM, "--adapter", adapter, "--takes", 2, "--seed", 3, "--out", "clip.wav", *MODEL, "--device", "cpu",
        "--steps", 4, "--duration", 5, "--guidance-scale", 2, "--negative", NEGATIVE, "--eta", 0,
    )  # fmt: skip
    names = {
        (prompt, take): f"clip-a-recording-of-{words}-solo-high-quality-{take}.wav"
        for prompt, words in ((PROMPT, "an-angry-piano"), (CALM, "a-tender-violin"))
        for take in (1, 2)
    }
    assert printed == [f"{name}: {prompt} [take {take}]" for (prompt, take), name in names.items()]
    assert sorted(p.name for p in here.iterdir()) == sorted(names.values())
    assert soundfile.info(names[PROMPT, 1]).subtype == "PCM_16"
    for (prompt, take), name in ((key, names[key]) for key in ((PROMPT, 1), (CALM, 2))):
        expected = stock(
            adapter, prompt, 3, take - 1, 5, num_inference_steps=4, guidance_scale=2.0, negative_prompt=NEGATIVE
        )
        assert expected.abs().max() > 0.01
        torch.testing.assert_close(samples(name), expected, atol=1e-4, rtol=0)


def test_without_params_yaml_the_settings_are_those_of_the_stock_pipeline():
    options = dict.fromkeys(("duration", "steps", "guidance_scale", "negative", "eta", "device"))
    ours = generation.settings(Path("params.yaml"), options)
    theirs = inspect.signature(AudioLDM2Pipeline.__call__).parameters
    assert ours.steps == theirs["num_inference_steps"].default
    assert ours.guidance_scale == theirs["guidance_scale"].default
    assert ours.eta == theirs["eta"].default
    assert (ours.duration, ours.negative) == (10, "")


def test_what_is_not_given_comes_from_params_yaml(here, tmp_path, monkeypatch):
    content = params_with(duration=3, steps=5, guidance_scale=1.5, evaluation__eta=0.5, compute__device="cpu")
    (here / "params.yaml").write_text(yaml.safe_dump(content))
    made(PROMPT, "--out", "from-params.wav", *MODEL)
    made(PROMPT, "--out", "overridden.wav", *MODEL, "--duration", 2)
    monkeypatch.chdir(tmp_path)
    given = ("--steps", 5, "--guidance-scale", 1.5, "--eta", 0.5, "--negative", NEGATIVE, "--device", "cpu", *MODEL)
    for name, duration in (("from-params.wav", 3), ("overridden.wav", 2)):
        made(PROMPT, "--out", "given.wav", "--duration", duration, *given)
        assert (here / name).read_bytes() == Path("given.wav").read_bytes()


def test_compare_writes_the_untouched_models_clip_beside_it_on_the_same_noise(adapter, here):
    asked = (PROMPT, *QUICK, "--eta", 1)
    printed = made(*asked, "--adapter", adapter, "--compare", "--out", "angry.wav")
    assert printed == [f"angry.wav: {PROMPT}", f"angry-original.wav: {PROMPT} [untouched model]"]
    assert sorted(p.name for p in here.iterdir()) == ["angry-original.wav", "angry.wav"]
    made(*asked, "--out", "without.wav")
    made(*asked, "--adapter", adapter, "--out", "with.wav")
    assert Path("angry-original.wav").read_bytes() == Path("without.wav").read_bytes()
    assert Path("angry.wav").read_bytes() == Path("with.wav").read_bytes()
    assert (samples("with.wav") - samples("without.wav")).abs().max() > 1e-2
    made(*asked, "--adapter", adapter, "--compare", "--takes", 2, "--out", "more.wav")
    names = ["more-1-original.wav", "more-1.wav", "more-2-original.wav", "more-2.wav"]
    assert sorted(p.name for p in here.glob("more*")) == names


def test_a_clip_does_not_depend_on_what_else_is_asked_for_and_repeats_bit_for_bit(here):
    made(PROMPT, CALM + ", recorded in a small room", "--takes", 5, "--eta", 1, *QUICK)
    many = sorted((here / "generated").iterdir())
    assert [p.name[-6:] for p in many] == 2 * [f"-{take}.wav" for take in range(1, 6)]
    for name in ("few.wav", "again.wav"):
        made(PROMPT, "--takes", 2, "--eta", 1, "--out", name, *QUICK)
    for take in (1, 2):
        torch.testing.assert_close(samples(f"few-{take}.wav"), samples(many[5 + take - 1]), atol=1e-3, rtol=0)
        assert Path(f"few-{take}.wav").read_bytes() == Path(f"again-{take}.wav").read_bytes()
    made(PROMPT, "--seed", 1, "--eta", 1, "--out", "other.wav", *QUICK)
    for other in ("few-2.wav", "other.wav"):
        assert (samples("few-1.wav") - samples(other)).abs().max() > 1e-2


def test_a_clip_louder_than_full_scale_is_scaled_and_not_clipped(monkeypatch):
    decode = Generator.decode
    made(PROMPT, "--out", "quiet.wav", *QUICK)
    quiet = samples("quiet.wav")
    assert quiet.abs().max() > 0.01
    for factor in (0.5, 100):  # what is quiet stays quiet
        monkeypatch.setattr(Generator, "decode", lambda *a, by=factor: by * decode(*a))
        made(PROMPT, "--out", "scaled.wav", *QUICK)
        scaled = samples("scaled.wav")
        loudest = 10 ** (-0.1 / 20) if factor > 1 else factor * quiet.abs().max().item()
        assert scaled.abs().max().item() == pytest.approx(loudest, abs=1e-4)
        torch.testing.assert_close(scaled, quiet * (loudest / quiet.abs().max()), atol=3e-3, rtol=0)


def test_the_installed_command_works_in_an_empty_folder_makes_folders_and_shows_its_progress(here):
    done = run(here, "music-ddpo", "generate", PROMPT, "--out", "new/folder/clip.wav", *QUICK)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"new/folder/clip.wav: {PROMPT}\n"
    assert "4/4" in done.stderr
    assert "arning" not in done.stderr
    assert soundfile.info(here / "new" / "folder" / "clip.wav").duration == 2


def test_help_waits_for_no_model_library(here):
    command = "import sys; from music_ddpo.cli import main; main(['generate', '--help'], standalone_mode=False)"
    done = run(here, sys.executable, "-c", f"{command}; print(sorted({{'torch', 'diffusers'}} & set(sys.modules)))")
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    assert "--compare" in done.stdout


def refused(code: int, *arguments: str | Path) -> str:
    """Runs the command, which must fail; the one line that says why. Nothing is written."""
    before = set(Path.cwd().rglob("*"))
    result = generate(*arguments)
    assert result.exit_code == code, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, result.stderr
    assert {p for p in set(Path.cwd().rglob("*")) - before if p.is_file()} == set()
    return errors[0]


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--duration", "-1", ["-1", "0<x<=300"]),
        ("--duration", "nan", ["nan", "finite"]),
        ("--duration", "301", ["301", "300"]),
        ("--duration", "long", ["long", "float"]),
        ("--steps", "0", ["0", "1<=x<=1000"]),
        ("--steps", "1001", ["1001", "1000"]),
        ("--steps", "4.5", ["4.5", "integer"]),
        ("--guidance-scale", "0.5", ["0.5", "1"]),
        ("--guidance-scale", "auto", ["auto", "float"]),
        ("--eta", "1.5", ["1.5", "1"]),
        ("--device", "gpu", ["gpu", "auto", "cuda"]),
        ("--takes", "0", ["0", "1<=x<=1000"]),
        ("--takes", "1000000000", ["1<=x<=1000"]),
        ("--device", "cuda:" + 30 * "9", ["cuda:N"]),
        ("--device", "cuda:\u0661", ["cuda:N"]),
        ("--negative", "a\udcffb", ["one line of plain text"]),
        ("--seed", "-1", ["-1", "x>=0"]),
        ("--out", "clip.mp3", ["clip.mp3", ".wav"]),
        ("--out", ".wav", [".wav"]),
        ("--out", "folder/clip.flac", ["clip.flac", ".wav"]),
    ],
)
def test_a_wrong_value_is_refused_with_the_options_name(option, value, words):
    line = refused(2, PROMPT, "--out", "clip.wav", option, value)
    assert all(word in line for word in [option, *words]), line


def test_a_command_that_lacks_something_says_what():
    assert "PROMPT" in refused(2, "--out", "clip.wav")
    assert "prompt 2 of 2 is empty" in refused(2, PROMPT, " ", "--out", "clip.wav")
    assert "--adapter" in refused(2, PROMPT, "--out", "clip.wav", "--compare")


def test_a_missing_model_is_a_clear_error():
    assert "models/pipeline: contains no pipeline" in refused(1, PROMPT, "--out", "clip.wav")


def test_a_clip_too_short_for_the_model_is_a_clear_error():
    line = refused(1, PROMPT, "--out", "clip.wav", *QUICK, "--duration", "0.001")
    assert "duration" in line
    assert "at least" in line


def test_a_wrong_params_yaml_is_a_clear_error(here):
    (here / "params.yaml").write_text(yaml.safe_dump(params_with(steps=0)))
    assert "params.yaml: steps: 0" in refused(1, PROMPT, "--out", "clip.wav", *MODEL)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_asked_for_and_absent_is_a_clear_error():
    assert "compute.device" in refused(1, PROMPT, "--out", "clip.wav", *MODEL, "--device", "cuda")


def test_a_place_that_cannot_be_written_is_found_before_the_model_is_loaded(here, monkeypatch):
    monkeypatch.setattr(Generator, "load", lambda *_: pytest.fail("loaded"))
    (here / "taken.wav").mkdir()
    assert "taken.wav is a folder" in refused(1, PROMPT, "--out", "taken.wav", *QUICK)
    (here / "clip-2.wav").mkdir()
    assert "clip-2.wav is a folder" in refused(1, PROMPT, "--out", "clip.wav", "--takes", 2, *QUICK)
    (here / "file").write_text("in the way")
    assert "there is a file where a folder is needed" in refused(1, PROMPT, "--out", "file/clip.wav", *QUICK)
    long = "a" * 300 + ".wav"
    assert "too long" in refused(1, PROMPT, "--out", long, *QUICK)


def damaged(adapter: Path, folder: Path, change) -> Path:
    """A copy of an adapter with its weights changed."""
    folder.mkdir()
    (folder / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file(dict(change(name, w) for name, w in weights.items()), folder / "adapter_model.safetensors")
    return folder


def test_an_adapter_that_is_missing_or_of_another_model_is_a_clear_error(adapter, tmp_path):
    assert "nowhere: contains no adapter" in refused(1, PROMPT, "--out", "clip.wav", "--adapter", "nowhere", *QUICK)
    wider = damaged(adapter, tmp_path / "wider", lambda name, w: (name, w.repeat(2, 2)))
    elsewhere = damaged(adapter, tmp_path / "elsewhere", lambda name, w: (name.replace("attn2", "attn9"), w))
    line = refused(1, PROMPT, "--out", "clip.wav", "--adapter", wider, *QUICK)
    assert f"{wider / 'adapter_model.safetensors'}: is damaged" in line
    line = refused(1, PROMPT, "--out", "clip.wav", "--adapter", elsewhere, *QUICK)
    assert f"{elsewhere}: the adapter could not be loaded" in line


def test_an_adapter_is_checked_before_torch_is_imported(here):
    code = "import sys; from music_ddpo.cli import main\ntry: main(['generate', 'x', '--adapter', 'nowhere'])\n"
    done = run(here, sys.executable, "-c", code + "finally: print(sorted({'torch', 'peft'} & set(sys.modules)))")
    assert "Error: nowhere: contains no adapter" in done.stderr
    assert done.stdout == "[]\n"


def test_clips_are_named_by_prompt_and_take():
    def names(prompts: list[str], takes: int, out: str) -> list[str]:
        return [str(clip.path) for clip in generation.plan(prompts, takes, Path(out))]

    assert names(["Sad, slow!"], 1, "generated") == ["generated/sad-slow.wav"]
    assert names(["sad", "SAD", "Ä/.."], 1, "g") == ["g/sad-1.wav", "g/sad-2.wav", "g/ä.wav"]
    assert names(["sad"], 10, "g")[::9] == ["g/sad-01.wav", "g/sad-10.wav"]
    assert names(["sad"], 2, "a.wav") == ["a-1.wav", "a-2.wav"]
    assert names(["sad", "?"], 1, "x/a.wav") == ["x/a-sad.wav", "x/a-clip.wav"]
    (long,) = names(["word " * 100], 1, "g")
    assert len(Path(long).stem) <= 60


def test_output_that_is_not_finite_is_a_clear_error_and_replaces_nothing(adapter, here, tmp_path):
    broken = damaged(adapter, tmp_path / "broken", lambda name, w: (name, w * float("nan")))
    (here / "clip.wav").write_text("an older clip")
    line = refused(1, PROMPT, "--out", "clip.wav", "--adapter", broken, *QUICK)
    assert f"{broken}: " in line
    assert "not finite" in line
    assert (here / "clip.wav").read_text() == "an older clip"


def test_a_full_memory_is_a_clear_error(monkeypatch):
    def sample(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80.00 GiB.")

    monkeypatch.setattr(generation.Policy, "sample", sample)
    assert "compute.batch: memory ran out with 1 clip" in refused(1, PROMPT, "--out", "clip.wav", *QUICK)


def test_params_are_explained():
    def params(*arguments: str) -> Result:
        return CliRunner().invoke(main, ["params", *arguments])

    assert "clipped to 1 plus or minus" in params("ddpo.clip_range").stdout
    assert "Paper: 1e-4" in params("ddpo.clip_range").stdout
    assert params("lora").stdout.count("lora.") >= 2
    unknown = params("ddpo.clip_rang")
    assert unknown.exit_code == 1
    assert "did you mean 'ddpo.clip_range'" in unknown.output


def test_every_key_of_params_yaml_is_explained_with_the_papers_value_and_nothing_else_is():
    content = params_with()

    def keys(group: dict, prefix: str = "") -> list[str]:
        return [
            inner
            for key, value in group.items()
            for inner in (
                keys(value, f"{prefix}{key}.")
                if isinstance(value, dict) and f"{prefix}{key}" not in WHOLE
                else [prefix + key]
            )
        ]

    explained = CliRunner().invoke(main, ["params"]).stdout.splitlines()
    assert [line.split(":")[0] for line in explained if ": " in line] == sorted(
        keys(content), key=[line.split(":")[0] for line in explained].index
    )
    for key in keys(content):
        assert "Paper: " in CliRunner().invoke(main, ["params", key]).stdout, key


WHOLE = {"mixtures", *(f"auto.{key}" for key in AutoParams.model_fields)}  # keys whose values are mappings
