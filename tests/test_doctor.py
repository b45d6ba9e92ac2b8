"""`music-ddpo doctor`: each check finds the fault that it is for, and the estimate is a count times seconds."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from huggingface_hub import constants

from helpers.project import CPU, MINI, execution, load_generator, mini_emopia, params_with, prompts_of, small
from music_ddpo.cli import main
from music_ddpo.core import audio
from music_ddpo.core.errors import UserError
from music_ddpo.doctor import baseline, costs, environment, listening, rising, update
from music_ddpo.doctor.report import BROKEN, LOOK, OK, WIDTH, Report, Row
from music_ddpo.machine.memory import PeakMemory
from music_ddpo.model.policy import Policy
from music_ddpo.rewards.base import Judgement, Reward
from music_ddpo.rewards.finding import reward_class
from music_ddpo.training import estimate, setup

PARAMS = small(guidance_scale=2.0)
STEPS = PARAMS.trained_steps[:2]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The embedded model as a training begins with it, and its run."""
    folder = tmp_path_factory.mktemp("run")
    files = (folder / "run.pt", folder / "run.csv")
    return setup.prepare(load_generator(), "test", prompts_of(PARAMS), PARAMS, 0, execution(4, 2), *files, {})


@pytest.fixture(scope="module")
def policy(prepared) -> Policy:
    return prepared[0]


@pytest.fixture(scope="module")
def paths(policy):
    return rows_of(listening.clips(policy, 0))[1]


@pytest.fixture(scope="module")
def waveforms(policy, paths):
    return policy.decode(paths[0].x[:, -1])


@pytest.fixture
def project(fetched, tmp_path, monkeypatch) -> Path:
    """The working directory: params.yaml, and what is fetched."""
    folder = tmp_path / "project"
    shutil.copytree(fetched / "models", folder / "models")
    (folder / "metrics").mkdir()
    for name in ("seed.json", "weights.json"):
        shutil.copyfile(fetched / "metrics" / name, folder / "metrics" / name)
    write_params(folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # so that it is restored
    return folder


def write_params(folder: Path, **changes) -> None:
    (folder / "params.yaml").write_text(yaml.safe_dump(params_with(**{"compute__device": "cpu"} | changes)))


def rows_of(check):
    """The rows of a check, and what it returns."""
    rows = []
    report = Report(rows.append)
    return rows, report.run("check", check)


def doctor(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["doctor", *arguments], catch_exceptions=False)


def states(result: Result) -> dict[str, str]:
    """The state of each check in JSON."""
    return {row["check"]: row["state"] for row in json.loads(result.stdout)["checks"]}


def content(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in folder.rglob("*")}


# The command


def test_a_sound_project_has_no_broken_line_and_is_not_changed(project):
    before = content(project)
    result = doctor("--json")
    found = states(result)
    assert result.exit_code == 0, result.stdout
    assert BROKEN not in found.values()
    assert {found[f"{what} {judge}"] for what in ("weights", "judge") for judge in PARAMS.judges} == {OK}
    assert {found[f"sample rate {judge}"] for judge in PARAMS.judges} <= {OK, LOOK}  # a clip may be saturated
    assert (found["clip"], found["conditions"], found["ratio"]) == (OK, OK, OK)
    needs = {row["check"]: row["numbers"] for row in json.loads(result.stdout)["checks"]}
    for reward in PARAMS.rewards:
        for stage in ("train", "generate", "evaluate"):
            assert needs[f"{stage}@{reward}"]["seconds"] > 0
            assert needs[f"{stage}@{reward}"]["memory_bytes"] > 1e8
    assert needs["dvc repro"]["seconds"] > needs["train@clap"]["seconds"] + needs["train@emopia"]["seconds"]
    assert content(project) == before


def test_before_anything_is_fetched_it_says_so_and_checks_the_rest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    write_params(tmp_path)
    result = doctor()
    assert result.exit_code == 1
    assert "mini is not fetched" in result.stdout
    assert "run `dvc repro fetch`" in result.stdout
    rows = json.loads(doctor("--json").stdout)["checks"]
    states = {row["check"]: row["state"] for row in rows}
    assert states["sound, update, cost"] == LOOK
    assert states["params.yaml"] == OK
    assert {row["state"] for row in rows if row["check"].startswith("weights")} == {BROKEN}
    assert all(len(line) <= WIDTH for line in result.stdout.splitlines())


def test_a_wrong_params_yaml_is_a_broken_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    write_params(tmp_path, steps=0)
    result = doctor("--json")
    assert result.exit_code == 1
    (row,) = (row for row in json.loads(result.stdout)["checks"] if row["state"] == BROKEN)
    assert "steps: 0" in row["found"]


# The report


def test_a_check_that_fails_is_a_broken_row_and_the_next_one_runs(monkeypatch, capsys):
    def failing(error):
        yield Row("first", OK, "fine")
        raise error

    def warning():
        warnings.warn("doubtful", stacklevel=1)
        warnings.warn_explicit("deprecated soon", UserWarning, "/elsewhere/library.py", 1)
        yield Row("second", OK, "fine")
        return 7

    monkeypatch.setattr("music_ddpo.doctor.report.PACKAGE", Path(__file__).parent)
    rows = []
    report = Report(rows.append)
    assert report.run("a", failing(UserError("steps: is wrong; mend it."))) is None
    assert report.run("b", failing(ZeroDivisionError("x"))) is None
    assert not Report(rows.append).broken
    assert report.run("c", warning()) == 7
    assert [(row.check, row.state, row.found) for row in rows] == [
        ("first", OK, "fine"), ("a", BROKEN, "steps: is wrong; mend it."),
        ("first", OK, "fine"), ("b", BROKEN, "ZeroDivisionError: x"),
        ("second", OK, "fine"), ("c", LOOK, "doubtful"),
    ]  # fmt: skip
    assert report.broken
    assert "Warning: deprecated soon" in capsys.readouterr().err


def test_a_row_fits_into_the_terminal():
    lines = Row("sample rate emopia", LOOK, "found " * 60, "advice " * 30).text().splitlines()
    assert len(lines) > 4
    assert all(len(line) <= WIDTH + 9 for line in lines[:1])  # the colour's escape sequences
    assert all(len(line) <= WIDTH for line in lines[1:])


# Versions, and what is fetched


@pytest.mark.parametrize(
    ("pinned", "state"), [("torch==0.1", LOOK), (f"torch=={metadata.version('torch')}", OK), ("", OK)]
)
def test_versions_are_compared_with_the_tested_ones(pinned, state, tmp_path):
    (tmp_path / "requirements.txt").write_text(f"{pinned}\n")
    (row,), _ = rows_of(environment.versions(tmp_path / "requirements.txt"))
    assert row.state == state
    assert f"torch {metadata.version('torch')}" in row.found


def test_a_missing_package_is_broken(monkeypatch):
    monkeypatch.setattr(environment, "PACKAGES", ("torch", "no-such-package"))
    (row,), _ = rows_of(environment.versions())
    assert row.state == BROKEN
    assert "no-such-package missing" in row.found


def altered(folder: Path) -> None:
    path = folder / "rewards" / "emopia" / "hparams.yaml"
    path.write_text(path.read_text() + "\n")


@pytest.mark.parametrize(
    ("damage", "check", "said"),
    [
        (altered, "weights emopia", "hparams.yaml is altered"),
        (lambda folder: (folder / "rewards/emopia/hparams.yaml").unlink(), "weights emopia", "hparams.yaml is missing"),
        (lambda folder: shutil.rmtree(folder / "rewards" / "emopia"), "weights emopia", "is not fetched"),
        (lambda folder: (folder / "pipeline/unet/config.json").unlink(), "weights of model", "config.json is missing"),
        (lambda folder: (folder / "manifest.json").write_text("["), "weights", "manifest.json: is damaged"),
    ],
)
def test_damaged_weights_are_broken_and_named(damage, check, said, project):
    damage(project / "models")
    rows, usable = rows_of(environment.fetched(PARAMS, Path("models")))
    (row,) = (row for row in rows if row.state == BROKEN)
    assert row.check == {"weights": "check"}.get(check, check)  # as `rows_of` names a check that fails
    assert said in row.found
    if check == "weights emopia":
        assert usable == [judge for judge in PARAMS.judges if judge != "emopia"]


def test_another_model_than_the_fetched_one_is_broken(project):
    rows, _ = rows_of(environment.fetched(PARAMS.model_copy(update={"model": "audioldm2"}), Path("models")))
    assert (rows[0].state, rows[0].found) == (BROKEN, "mini is fetched, and params.yaml says audioldm2")


# What judges hear


class Wrapped:
    """A judge with a fault: what it does to a clip and its sample rate before the real judge hears them."""

    def __init__(self, judge, fault):
        self.judge_, self.fault = judge, fault
        self.sample_rate = listening.network_rate(judge)

    def __getattr__(self, name):
        return getattr(self.judge_, name)

    def score(self, waveforms, sample_rate, prompts):
        return self.judge_.score(*self.fault(waveforms, sample_rate), prompts)


@pytest.fixture(scope="module", params=["clap", "emopia", "held_out", "preference"])
def judge(request, fetched):
    return reward_class(request.param).load(fetched / "models", CPU)


@pytest.fixture(scope="module")
def music():
    """A chord that decays, so that its speed can be heard; [1, samples] at 16 kHz."""
    time = torch.arange(80_000) / 16_000
    tones = sum(torch.sin(2 * torch.pi * f * time) for f in (220, 277, 330, 1100))
    return (0.2 * tones * torch.exp(-(time % 1.25)))[None]


def test_a_judge_that_converts_sample_rates_is_ok(judge, music):
    row = listening.hears(judge.name, judge, music, 16_000, prompts_of(PARAMS)[:1])
    assert row.state == OK, row.found


@pytest.mark.parametrize(
    "fault",
    [
        lambda waveforms, rate: (waveforms, 16_000),  # takes every clip for one at its network's rate
        lambda waveforms, rate: (waveforms, 48_000),  # takes every clip for one at 48 kHz
        lambda waveforms, rate: (audio.resample(waveforms, rate, 8_000), 16_000),  # converts to another rate
    ],
)
def test_a_judge_that_hears_clips_at_a_wrong_speed_is_broken(fault, judge, music):
    wrong = Wrapped(judge, fault)
    row = listening.hears(judge.name, wrong, music.repeat(1, 3), 16_000, prompts_of(PARAMS)[:1])
    assert row.state == BROKEN, row.found


def test_a_wrong_speed_is_also_found_where_a_judge_does_not_say_its_rate(music):
    class Anonymous(Wrapped):
        def __init__(self, judge, fault):
            super().__init__(judge, fault)
            del self.sample_rate

        def __getattr__(self, name):
            if name in ("sample_rate", "encoder"):
                raise AttributeError(name)
            return super().__getattr__(name)

    clap = reward_class("clap").load(MINI, CPU)
    asked = prompts_of(PARAMS)[:1]
    right = listening.hears("clap", Anonymous(clap, lambda x, rate: (x, rate)), music, 16_000, asked)
    wrong = listening.hears("clap", Anonymous(clap, lambda x, rate: (x, 16_000)), music, 16_000, asked)
    assert (right.state, wrong.state) == (OK, BROKEN), (right.found, wrong.found)


def test_a_judge_of_loudness_hardly_hears_the_speed_so_the_check_says_that_it_is_unsure(music):
    class Loudness(Reward):
        name, headline, lowest, highest, sample_rate = "loudness", "value", 0.0, 1.0, 16_000

        @classmethod
        def load(cls, models, device):
            return cls()

        def judge(self, waveforms, sample_rate, prompts):
            return Judgement(value=audio.resample(waveforms, sample_rate, 16_000).square().mean(1))

    row = listening.hears("loudness", Loudness(), music, 16_000, prompts_of(PARAMS)[:1])
    assert row.numbers["apart"] > 0.25 * row.numbers["wrong_speed"] > 0
    assert (row.state, "hardly depends on the speed" in row.advice) == (LOOK, True), row.found


def test_a_judge_that_answers_differently_the_second_time_is_broken(music):
    emopia = mini_emopia()
    noise = torch.Generator().manual_seed(0)
    noisy = Wrapped(emopia, lambda x, rate: (x + 0.1 * torch.randn(x.shape, generator=noise), rate))
    (good, bad), _ = rows_of(
        listening.judgements({"good": emopia, "bad": noisy}, music, 16_000, prompts_of(PARAMS)[3:])
    )
    assert (good.state, bad.state) == (OK, BROKEN)


def test_a_clip_is_checked_for_content_and_for_repetition(policy, monkeypatch):
    (row,), found = rows_of(listening.clips(policy, 0))
    assert (row.state, len(found)) == (OK, 2)
    decode = Policy.decode
    calls = iter(range(10))
    monkeypatch.setattr(Policy, "decode", lambda self, x_0: decode(self, x_0) * (1 + 0.1 * next(calls)))
    assert rows_of(listening.clips(policy, 0))[0][0].state == BROKEN
    monkeypatch.setattr(Policy, "decode", lambda self, x_0: torch.full((1, 100), float("nan")))
    (row,), _ = rows_of(listening.clips(policy, 0))
    assert (row.state, "not finite" in row.found) == (BROKEN, True)


def test_a_vocoder_with_a_wrong_sample_rate_is_broken(policy, waveforms):
    assert listening._written(policy, waveforms).state == OK
    assert listening._written(policy, waveforms[:, : waveforms.shape[1] // 3]).state == BROKEN


# The first update


def other_prompt(policy, path):
    """The fault of the published code: conditions of another prompt."""
    return replace(path, prompt=(path.prompt + 1) % 2)


def last_prompt(policy, path):
    """The same: those of the last prompt that was sampled."""
    return replace(path, prompt=torch.full_like(path.prompt, 1))


@pytest.mark.parametrize("fault", [other_prompt, last_prompt])
def test_conditions_of_another_prompt_in_the_update_are_broken(fault, policy, paths, monkeypatch):
    assert rows_of(update.conditions(policy, paths, STEPS))[0][0].state == OK
    right = Policy.log_prob
    monkeypatch.setattr(Policy, "log_prob", lambda self, path, step: right(self, fault(self, path), step))
    (row,), _ = rows_of(update.conditions(policy, paths, STEPS))
    assert (row.state, "do not train" in row.advice) == (BROKEN, True), row.found


def test_t5_branches_exchanged_in_the_update_are_broken(policy, paths, monkeypatch):
    right = Policy.log_prob

    def exchanged(self, path, step):
        own, self.conditioning = self.conditioning, update._branches_exchanged(self.conditioning)
        try:
            return right(self, path, step)
        finally:
            self.conditioning = own

    monkeypatch.setattr(Policy, "log_prob", exchanged)
    assert rows_of(update.conditions(policy, paths, STEPS))[0][0].state == BROKEN
    (row,), exact = rows_of(update.ratio(policy, paths, STEPS, PARAMS.ddpo))
    assert (row.state, exact) == (BROKEN, False)


@pytest.mark.parametrize(("error", "state", "exact"), [(0.0, OK, True), (1e-6, LOOK, False), (1e-2, BROKEN, False)])
def test_a_ratio_that_is_not_exactly_1_is_seen(error, state, exact, policy, paths, monkeypatch):
    right = Policy.log_prob
    monkeypatch.setattr(Policy, "log_prob", lambda self, path, step: right(self, path, step) + error)
    before = [p.clone() for p in policy.generator.unet.parameters() if p.requires_grad]
    old = [path.log_prob.clone() for path in paths]
    (row,), found = rows_of(update.ratio(policy, paths, STEPS, PARAMS.ddpo))
    assert (row.state, found) == (state, exact), row.found
    after = [p for p in policy.generator.unet.parameters() if p.requires_grad]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(torch.equal(path.log_prob, x) for path, x in zip(paths, old, strict=True))


# The baseline


@pytest.mark.parametrize(
    ("name", "headline", "values", "earlier", "shipped", "state"),
    [
        ("clap", "similarity", [0.30, 0.34] * 8, None, False, OK),
        ("clap", "similarity", [0.02, 0.06] * 8, None, False, LOOK),
        ("emopia", "accuracy", [1.0] + 3 * [0.0], None, False, OK),
        ("emopia", "accuracy", [1.0] * 16, None, False, LOOK),
        ("emopia", "accuracy", [1.0, 0.0], None, False, OK),  # two clips say little
        ("held_out", "similarity", [0.9] * 16, None, False, OK),  # not in the paper
        ("emopia", "accuracy", [1.0] * 16, None, True, OK),
        ("emopia", "accuracy", [1.0] * 16, 0.95, True, OK),
        ("emopia", "accuracy", [1.0] * 16, 0.49, True, LOOK),
    ],
)
def test_scores_far_from_the_papers_are_looked_at(name, headline, values, earlier, shipped, state):
    row = baseline.compare(name, headline, values, earlier, shipped)
    assert row.state == state, row.found
    assert row.numbers[headline] == pytest.approx(sum(values) / len(values))


# The easy reward


def test_loudness_is_the_level_of_a_tone():
    time = torch.arange(16_000) / 16_000
    tones = torch.tensor([[0.9], [0.5], [0.01]]) * torch.sin(2 * torch.pi * 400 * time)
    level = rising.Loudness().score(tones, 16_000, prompts_of(PARAMS)[:3]).value
    torch.testing.assert_close(level, torch.tensor([-3.93, -9.03, -43.01]), atol=0.01, rtol=0)


@pytest.mark.parametrize(("rise", "state"), [(0.5, OK), (0.1, BROKEN), (-0.5, BROKEN), (float("nan"), BROKEN)])
def test_an_easy_reward_must_rise_beyond_its_noise(rise, state, prepared, tmp_path, monkeypatch):
    trained = []
    levels = iter([torch.full((16,), -30.0), -30 + rise + 0.4 * torch.linspace(-1, 1, 16)])  # a standard error of 0.06
    monkeypatch.setattr(rising, "_levels", lambda *_: next(levels))
    monkeypatch.setattr(rising.loop, "train", lambda *arguments: trained.append(arguments))
    (row,), _ = rows_of(rising.rises(*prepared, prompts_of(PARAMS), PARAMS, 0, execution(), tmp_path))
    assert row.state == state, row.found
    ((_, reward, prompts, params, *_),) = trained
    assert isinstance(reward, rising.Loudness)
    assert params.ddpo.trajectories_per_round >= 2 * len(prompts)


# The estimate


def test_the_seconds_of_a_training_are_calls_times_seconds():
    params = small(
        steps=10, ddpo__rounds=3, ddpo__trajectories_per_round=8, ddpo__updates_per_round=2,
        ddpo__timesteps="first 50%", ddpo__kl=0.0,
    )  # fmt: skip
    speed = estimate.Speed(denoise=0.1, learn=0.3, decode=0.7)
    # 3 rounds of 8 clips: 10 steps, 5 of them trained, decoded and judged once
    assert estimate.seconds(params, speed, 0.05) == pytest.approx(24 * (1.0 + 1.5 + 0.7 + 0.05))
    assert estimate.seconds(params, speed, 0.05, rounds=1) == pytest.approx(8 * (1.0 + 1.5 + 0.7 + 0.05))
    assert estimate.seconds(params, speed, 0.05, processes=3) == pytest.approx(9 * (1.0 + 1.5 + 0.7 + 0.05))
    assert estimate.seconds(params, speed, 0.05, exact=False) == pytest.approx(24 * (1.0 + 2.0 + 0.7 + 0.05))
    penalised = params.model_copy(update={"ddpo": params.ddpo.model_copy(update={"kl": 0.1})})
    assert estimate.seconds(penalised, speed, 0.05) == pytest.approx(24 * (1.0 + 2.0 + 0.7 + 0.05))
    assert estimate.path_bytes(params, (8, 20, 4)) == 8 * 11 * 640 * 4


@pytest.mark.parametrize("kl", [0.0, 0.1])
def test_the_calls_of_a_real_round_are_those_that_the_estimate_counts(kl, prepared, tmp_path, monkeypatch):
    """Counts rows of the UNet in the real loop, forward alone and with gradients."""
    calls = {True: 0, False: 0}
    right = Policy._gaussian

    def counted(self, prompt, step, x_t):
        calls[torch.is_grad_enabled()] += len(prompt)
        return right(self, prompt, step, x_t)

    monkeypatch.setattr(Policy, "_gaussian", counted)
    monkeypatch.setattr(rising, "ROUNDS", 1)
    monkeypatch.setattr(rising, "TRAJECTORIES", 8)
    monkeypatch.setattr(rising, "_levels", lambda *_: torch.zeros(2))
    policy, run = prepared
    before = [p.detach().clone() for p in run.parameters]
    one = small(ddpo__rounds=1, ddpo__trajectories_per_round=8, ddpo__kl=kl)
    rows_of(rising.rises(policy, run, prompts_of(PARAMS), one, 0, execution(2, 2), tmp_path))
    with torch.no_grad():
        for parameter, value in zip(run.parameters, before, strict=True):
            parameter.copy_(value)
    assert calls[False] == estimate.seconds(one, estimate.Speed(1.0, 0.0, 0.0), 0.0)
    assert calls[True] == estimate.seconds(one, estimate.Speed(0.0, 1.0, 0.0), 0.0)


def test_the_needs_of_each_stage_are_counted_by_hand():
    params = small(
        steps=10, evaluation__clips_per_emotion=5, rewards=["clap", "both"], ddpo__rounds=1,
        ddpo__trajectories_per_round=8, ddpo__timesteps="all", ddpo__kl=0.0,
    )  # fmt: skip
    found = costs.stages(
        params,
        costs.Costs(
            start=8.0, base=100, speed=estimate.Speed(0.1, 0.3, 0.7), generator=costs.Part(4.0, 0.0, 50, 30),
            sample=10, learn=40, latents=5, clip=7, adapter=9, weights=1000,
            judges={"clap": costs.Part(1.0, 0.2, 20), "emopia": costs.Part(2.0, 0.4, 25)},
        ),
    )  # fmt: skip
    train = 8 * (1.0 + 3.0 + 0.7)
    generate = costs.Need(pytest.approx(12 + 20 * 1.7), 100 + 50, 20 * 7)
    judge = costs.Need(pytest.approx(8 + (1 + 20 * 0.2) + (2 + 20 * 0.4)), 125)
    assert found == {
        "fetch": costs.Need(None, 0, 1000),
        "baseline": generate,
        "score": judge,
        "train@clap": costs.Need(pytest.approx(12 + 1 + train + 8 * 0.2), 100 + 20 + 30 + 40 + 5, 36),
        "generate@clap": generate,
        "evaluate@clap": judge,
        "train@both": costs.Need(pytest.approx(12 + 3 + train + 8 * 0.6), 100 + 45 + 30 + 40 + 5, 36),
        "generate@both": generate,
        "evaluate@both": judge,
    }


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.44, "0.4 s"), (61, "61 s"), (95, "1.6 min"), (3000, "50 min"), (9000, "2.5 h"), (200_000, "2.3 days")],
)
def test_a_duration_has_the_unit_that_suits_it(seconds, text):
    assert estimate.duration(seconds) == text


def test_a_study_that_does_not_fit_on_the_machine_is_broken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    measured = costs.Costs(judges={name: costs.Part() for name in PARAMS.judges})
    rows, _ = rows_of(costs.rows(PARAMS, measured, execution()))
    assert {row.state for row in rows} == {OK}
    large = replace(measured, weights=10**18, sample=10**15)
    rows, _ = rows_of(costs.rows(PARAMS, large, execution()))
    assert {row.check for row in rows if row.state == BROKEN} == {
        "baseline", *(f"{s}@{r}" for s in ("train", "generate") for r in PARAMS.rewards), "dvc repro"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("config", "links"), [("", False), ("type = copy", False), ('type = "reflink,hardlink"', True)]
)
def test_whether_dvc_links_files_to_its_cache_is_read_from_its_config(config, links, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text(f"[core]\n    analytics = false\n[cache]\n    {config}\n")
    assert environment.cache_links() == links


def test_peak_memory_is_what_a_block_needs_on_top():
    with PeakMemory(CPU) as memory:
        kept = torch.ones(10_000_000)  # 40 MB
        torch.ones(50_000_000).sum().item()  # 200 MB for a moment
    assert 200e6 < memory.needed < 320e6
    assert 30e6 < memory.kept < 100e6
    assert len(kept)


def test_the_estimate_of_a_training_changes_neither_weights_nor_random_numbers(prepared):
    policy, run = prepared
    emopia, params = mini_emopia(), PARAMS
    state, before = torch.get_rng_state(), [p.detach().clone() for p in run.parameters]
    line = estimate.announcement(policy, emopia, prompts_of(params), params, execution(4, 2), done=0)
    assert line.startswith("train emopia: 2 rounds of 8 clips will take about ")
    assert line.endswith(" GB of memory")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, x) and p.grad is None for p, x in zip(run.parameters, before, strict=True))
