"""The catalogue of the paper's experiments, what is kept of them, their verdicts, and the published faults."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch

from helpers.project import CPU, LORA, MINI, PROJECT, SMALL, load_generator, prompts_of, small, succeed
from music_ddpo.core.errors import UserError
from music_ddpo.core.randomness import random_generator
from music_ddpo.measuring.comparison import Group
from music_ddpo.measuring.experiments import Experiment
from music_ddpo.measuring.study import Study
from music_ddpo.model import adapter
from music_ddpo.model.policy import Policy
from music_ddpo.rewards.clap import Clap
from music_ddpo.training import ddpo

sys.path.append(str(PROJECT / "paper"))
import catalogue
import faults
import published
import records
import run
import verdicts

import results
import trials

sys.path.append(str(PROJECT / "stages"))


def test_every_entry_has_valid_params_and_three_seeds_or_more():
    entries = catalogue.entries()
    assert {"5-random-seeds", "8-ten-seconds", "table2-clap-200-steps", "turned-emopia"} <= {e.name for e in entries}
    for entry in entries:
        assert len(set(entry.seeds)) >= verdicts.ENOUGH
        assert entry.trains in (True, False, None)
        for model in ("mini", "audioldm2-music"):
            params = entry.run(entry.seeds[0], model).params
            assert params.rewards == [entry.reward]
            assert {entry.judge, entry.reward} <= set(params.judges)
            assert entry.emotion in (None, *params.prompts.emotions)
    name = entries[0].run(1, "owner/name").name
    succeed(PROJECT, "git", "check-ref-format", f"refs/exps/00/00/{name}")


def test_entries_that_share_their_experiments_have_the_same_params():
    entries = {entry.name: entry for entry in catalogue.entries()}
    sharing = [entry for entry in entries.values() if entry.shares != entry.name]
    assert sharing
    for entry in sharing:
        own, shared = entry.run(1), entries[entry.shares].run(1)
        assert (own.name, own.changes) == (shared.name, shared.changes)


def test_the_budget_is_the_same_within_a_figure():
    for figure in {entry.name.split("-")[0] for entry in catalogue.entries()}:
        found = [entry.run(1).params.ddpo for entry in catalogue.entries(figure)]
        assert len({(d.rounds * d.trajectories_per_round, d.updates_per_round) for d in found}) == 1


def test_as_published_has_the_published_values():
    (entry,) = catalogue.entries("published-clap")
    params = entry.run(1).params
    assert (params.guidance_scale, params.lora.targets, params.lora.rank) == (3.5, "all", 8)
    d = params.ddpo
    assert (d.trajectories_per_round, d.updates_per_round, params.steps) == (32, 32, 38)
    assert (d.learning_rate, d.clip_range, d.kl, d.advantage_minimum, d.advantage_window) == (3e-4, 1e-4, 0, 16, 16)
    assert (d.timesteps, params.steps_of_an_update) == ("random 100%", 38)


def test_a_figure_that_is_not_there_names_those_that_are():
    with pytest.raises(UserError, match=r"FIGURE: '9' is not in .* use 5, 6, 7, 8, table2, "):
        catalogue.entries("9")


def scores(right: list[int], similarity: list[float]) -> pd.DataFrame:
    half = len(right) // 2
    return pd.DataFrame(
        {
            "clip": [f"{i}.wav" for i in range(2 * half)], "emotion": ["happy", "sad"] * half, "instrument": "piano",
            "quadrant": ["Q1", "Q3"] * half, "clap_headline": "similarity", "clap_value": similarity,
            "emopia_headline": "accuracy", "emopia_value": [x - 1.0 for x in right], "emopia_correct": right,
            "emopia_score_Q1": 0.5, "listener_headline": "accuracy", "listener_value": 0.5, "listener_correct": right,
            "listener_instrument": 1,
        }
    )  # fmt: skip


def experiment(seed: int, before: list[int], after: list[int]) -> Experiment:
    params = small(rewards=["emopia"], judges=["emopia", "clap", "listener"], evaluation__bootstrap=300)
    similarity = np.linspace(-0.5, 0.123, len(before)).round(3).tolist()
    study = Study(
        scores(before, similarity), {"emopia": scores(after, similarity)}, {"emopia": ["emopia"]}, {},
        params.evaluation, seed,
    )  # fmt: skip
    return Experiment("name", params.model_dump(mode="json"), seed, study, {"emopia": [-0.5, -0.25]})


def test_a_record_has_what_the_statistics_need(tmp_path):
    written = experiment(3, [0, 1] * 4, [1] * 8)
    records.write(tmp_path / "run.json", written, {"seed": 3})
    found = records.read(tmp_path / "run.json")
    assert (found.name, found.seed, found.curves) == ("run", 3, written.curves)
    for judge in ("clap", "emopia"):
        for emotion in (None, "sad"):
            assert found.study.gain(judge, "emopia", emotion) == written.study.gain(judge, "emopia", emotion)


def test_with_the_label_as_the_reward_the_number_is_its_accuracy(tmp_path):
    written = experiment(3, [0, 1] * 4, [1] * 8)
    trained = written.study.trained["emopia"].assign(clap_correct=[1, 0] * 4)
    original = written.study.original.assign(clap_correct=0)
    study = Study(original, {"clap": trained}, {"clap": ["clap"]}, {}, written.study.settings, 3)
    for form, gain in (("label", 0.5), ("value", 0.0)):
        params = written.params | {"reward_form": form}
        records.write(tmp_path / "run.json", Experiment("x", params, 3, study, {"clap": [0.1]}), {})
        assert records.read(tmp_path / "run.json").study.gain("clap", "clap").value == pytest.approx(gain)


def test_a_record_is_current_while_the_params_that_it_knows_have_the_same_values(tmp_path):
    path, changes = tmp_path / "run.json", {"seed": 3}
    written = experiment(3, [0, 1] * 4, [1] * 8)
    params = written.params
    assert not records.is_current(path, params, changes)
    records.write(path, written, changes)
    assert records.is_current(path, params, changes)
    assert records.is_current(path, params | {"new_key": 3, "compute": {"batch": 5}}, changes)
    assert not records.is_current(path, params, {"seed": 4})
    assert not records.is_current(path, params | {"steps": 5}, changes)
    assert not records.is_current(path, params | {"ddpo": params["ddpo"] | {"kl": 0.5}}, changes)


def test_finished_experiments_are_kept_and_those_of_other_params_are_not(tmp_path, monkeypatch):
    (entry,) = catalogue.entries("8-ten-seconds")
    right, wrong, absent = (entry.run(seed) for seed in (777, 1, 2))
    monkeypatch.setattr(catalogue, "RUNS", tmp_path)
    monkeypatch.setattr(run.experiments, "known", lambda: {right.name: "a", wrong.name: "b"})

    def found(names):
        (name,) = names
        params = right.params if name == right.name else entry.run(5).params
        return [replace(experiment(777, [0, 1] * 4, [1] * 8), params=params.model_dump(mode="json"))]

    monkeypatch.setattr(run.experiments, "read", found)
    assert [run.kept(x) for x in (right, wrong, absent)] == [False] * 3
    assert run.collect([right, wrong, absent]) == [right]
    assert [run.kept(x) for x in (right, wrong, absent)] == [True, False, False]
    assert run.collect([right, wrong, absent]) == []
    monkeypatch.setattr(verdicts, "RUNS", tmp_path)
    result = verdicts.result(entry)
    assert [e.seed for e in result.correct.experiments] == [777]
    assert result.verdict == "fewer than 3 seeds"


class Queue:
    """DVC's queue: what it says, one answer for each poll."""

    def __init__(self, tasks: list[dict[str, str]], workers: list[bool]):
        self.tasks, self.workers = tasks, workers

    def status(self) -> list[dict[str, str]]:
        return [{"name": name, "status": status} for name, status in self.tasks[0].items()]

    def worker_status(self) -> dict:
        if len(self.tasks) > 1:
            self.tasks.pop(0)
        return {"worker": []} if (self.workers.pop(0) if len(self.workers) > 1 else self.workers[0]) else {}


@pytest.fixture
def three_runs(monkeypatch):
    monkeypatch.setattr(run, "POLL", 0)
    return [entry.run(777) for entry in catalogue.entries("8")[:3]]


def test_what_finishes_and_what_fails_is_said_with_what_is_left(three_runs, monkeypatch, capsys):
    first, second, third = three_runs
    finished = [[first], [], [third]]
    monkeypatch.setattr(run, "collect", lambda left: finished.pop(0))
    queue = Queue([{}, {second.name: "Failed"}, {second.name: "Failed"}], [True])
    with pytest.raises(UserError, match=r"^1 experiments failed; the others are kept"):
        run.follow(queue, three_runs, {x.name: 10.0 for x in three_runs})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(", left")[0] for line in lines] == [
        f"[1/3] {first.name} finished",
        f"[2/3] {second.name} failed: `dvc queue logs {second.name}` says why",
        f"[3/3] {third.name} finished",
    ]


def test_workers_that_end_early_are_an_error_only_after_they_had_time_to_start(three_runs, monkeypatch):
    polls = []
    monkeypatch.setattr(run, "collect", lambda left: polls.append(1) or ([] if len(polls) < 5 else left))
    run.follow(Queue([{}], [False]), three_runs, {x.name: 1.0 for x in three_runs})
    polls.clear()
    monkeypatch.setattr(run, "collect", lambda left: polls.append(1) or [])
    with pytest.raises(UserError, match=r"^the workers have ended with 3 experiments left"):
        run.follow(Queue([{}], [False]), three_runs, {x.name: 1.0 for x in three_runs})
    assert len(polls) == run.IDLE + 1


@pytest.mark.parametrize("busy", [True, False])
def test_only_what_is_missing_is_queued_and_other_experiments_are_left_alone(three_runs, monkeypatch, busy):
    queued, running, absent = three_runs
    tasks = {queued.name: "Queued", running.name: "Running", "somebody-elses": "Queued"}
    commands = []

    def done(command, **options):
        commands.append((command, options))
        return SimpleNamespace(returncode=0)

    queue = Queue([tasks], [busy])
    repo = SimpleNamespace(experiments=SimpleNamespace(celery_queue=queue))
    monkeypatch.setattr(run, "Repo", lambda: repo)
    monkeypatch.setattr(run.subprocess, "run", done)
    monkeypatch.setattr(run, "follow", lambda *rest: None)
    run.work_off(three_runs, {}, 2)
    names = {command[command.index("--name") + 1] for command, _ in commands if "--queue" in command}
    assert names == ({absent.name} if busy else {running.name, absent.name})  # without a worker nothing runs
    removed = {command[-1] for command, _ in commands if "remove" in command}
    assert removed == names
    *_, (start, options) = commands
    assert start == ["dvc", "queue", "start", "-j", "2"]
    assert int(options["env"]["OMP_NUM_THREADS"]) >= 1


NOTHING, RISES, FALLS = ([0, 1] * 20, [0, 1] * 20), ([0] * 40, [1] * 30 + [0] * 10), ([1] * 40, [1] * 10 + [0] * 30)
PERFECT, SOME = ([0] * 40, [1] * 40), ([0, 1] * 20, [1, 1] * 4 + [0, 1] * 16)
FAULTY = "reproduced only with the published faults"


@pytest.mark.parametrize(
    ("trains", "correct", "faulty", "verdict"),
    [
        (True, [RISES] * 3, None, "reproduced"),
        (True, [PERFECT] * 3, None, "reproduced"),  # without variance there is no interval
        (True, [NOTHING] * 3, None, "not reproduced"),
        (False, [NOTHING] * 3, None, "reproduced"),
        (False, [FALLS] * 3, None, "reproduced"),
        (False, [RISES] * 3, None, "not reproduced"),
        (False, [RISES] * 3, [NOTHING] * 3, FAULTY),
        (False, [RISES] * 3, [RISES] * 3, "not reproduced"),
        (False, [RISES] * 3, [SOME, NOTHING, RISES], "not reproduced"),
        (False, [RISES] * 3, [NOTHING] * 2, "not reproduced"),
        (False, [RISES, NOTHING, NOTHING], None, "undecided"),  # the seeds disagree
        (True, [RISES, NOTHING, NOTHING], None, "undecided"),
        (None, [RISES] * 3, None, "succeeds"),
        (None, [NOTHING] * 3, None, "fails"),
        (None, [RISES, NOTHING, FALLS], None, "undecided"),
        (True, [RISES] * 2, None, "fewer than 3 seeds"),
        (True, None, None, "not run yet"),
    ],
)
def test_verdicts(trains, correct, faulty, verdict):
    (entry,) = catalogue.entries("8-ten-seconds")
    groups = [
        runs and Group("", "emopia", [experiment(seed, *clips) for seed, clips in enumerate(runs)])
        for runs in (correct, faulty)
    ]
    result = verdicts.Result(replace(entry, trains=trains), *groups)
    assert result.verdict == verdict
    row = results.table([result]).splitlines()[2]
    assert row.endswith(f"| {verdict} |")
    if correct:
        rose = sum(sum(after) > sum(before) for before, after in correct)
        assert f"| {rose} of {len(correct)} |" in row
        assert results.curves([result]).startswith("<svg")
        assert results.each_seed([result]).count("\n| 8-ten-seconds, seed") == len(correct) + len(faulty or [])


def test_the_report_is_written_from_what_there_is(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "PROJECT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["results.py"])
    results.main()
    text = (tmp_path / "paper" / "results.md").read_text()
    assert text.count("\n| figure 8 ") == 4
    assert "704 trajectories in 44 updates" in text


def test_curves_are_drawn_where_the_paper_has_them():
    places = {entry.name: results.panels(entry) for entry in catalogue.entries()}
    assert places["5-random-seeds"] == [("5", "5 a, b")]
    assert places["6-piano"] == [("5", "5 c"), ("6", "6 a")]
    assert places["8-ten-seconds"] == [("8", "8 d")]
    assert places["6-ten-instruments"] == [("6", "6-ten-instruments")]  # in no figure of the paper
    assert places["published-clap"] == [("published", "published-clap")]


def test_the_fault_jobs_are_every_choice_and_the_papers_failures_that_succeed_here(tmp_path, monkeypatch):
    found = {job.setting: job for job in faults.jobs_of_settings()}
    assert len(found) == len(faults.jobs_of_settings())
    assert found["fault-clap-one-prompt-none-seed-1"].faults == ()
    for setting, name in faults.SHARED.items():
        (entry,) = catalogue.entries(name)
        assert (entry.reward, entry.changes) == faults.SETTINGS[setting][:2]
        assert not any(job.startswith(f"fault-{setting}-none") for job in found)
    assert found["fault-clap-four-prompts-last prompt-seed-1"].faults == ("last prompt",)
    monkeypatch.setattr(catalogue, "RUNS", tmp_path)
    assert faults.jobs_of_failures() == []
    for name, clips in (("table2-emopia-38-steps", RISES), ("8-four-emotions", NOTHING)):
        (entry,) = catalogue.entries(name)
        for seed in entry.seeds:
            found = replace(experiment(seed, *clips), params=entry.run(seed).params.model_dump(mode="json"))
            records.write(entry.run(seed).record, found, entry.run(seed).changes)
    found = {job.setting: job for job in faults.jobs_of_failures()}
    assert set(found) == {f"table2-emopia-38-steps-seed-{seed}-published" for seed in (777, 1, 2)}
    assert all(job.faults == tuple(published.FAULTS) for job in found.values())


def test_a_fault_is_compared_with_the_same_seeds_without_it():
    def group(*shares: int) -> Group:
        clips = [([0] * 40, [1] * n + [0] * (40 - n)) for n in shares]
        return Group("", "emopia", [experiment(seed, *pair) for seed, pair in enumerate(clips)])

    told = results.difference(group(20, 24, 28), group(10, 12, 20))
    apart = np.array([-10, -12, -8]) / 40
    low, high = scipy.stats.t.interval(0.95, 2, apart.mean(), scipy.stats.sem(apart))
    assert told == f"{apart.mean():+.2f} [{low:+.2f}, {high:+.2f}]"


def test_the_readme_has_the_faults_as_they_were_measured():
    readme, measured = ((PROJECT / name).read_text() for name in ("README.md", "paper/results.md"))
    section = readme.split("## The paper's failures")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 4
    for choice, (_, own, heard, against) in zip((faults.NONE, "last prompt", "swapped", faults.ALL), rows, strict=True):
        (row,) = [line for line in measured.splitlines() if line.startswith(f"| clap-four-prompts | {choice} | 3 |")]
        assert f" | {own} | " in row
        assert f" | {heard} | {against} | " in row


# The published faults


@dataclass(frozen=True, eq=False)
class Kept(faults.Faulty):
    """A job whose result is kept in another folder."""

    folder: Path = Path()

    @property
    def record(self) -> Path:
        return self.folder / "run.json"


@pytest.mark.filterwarnings("ignore:reward")
@pytest.mark.parametrize("chosen", [(), faults.EVERY])
def test_a_training_with_faults_ends_with_a_record_that_the_report_can_read(tmp_path, chosen):
    changes = SMALL | {"judges": ["clap", "emopia", "listener"], "ddpo.kl": 0.0, "steps": 3}
    job = Kept("name", "clap", 3, changes, faults=chosen, folder=tmp_path)
    assert list(trials.in_processes([job], faults.run, 1)) == [(job, None)]
    found = records.read(job.record)
    group = Group("name", "clap", [found])
    assert group.instrument() is not None
    assert len(found.curves["clap"]) == SMALL["ddpo.rounds"]
    (entry, *_) = catalogue.entries("5-19-steps")
    assert "| 1 |" in results.table([verdicts.Result(entry, group, None)])


@pytest.fixture(scope="module")
def policy():
    params = small()
    generator = load_generator()
    adapter.add(generator, LORA, 0)
    with torch.no_grad():
        for parameter in adapter.parameters(generator):
            parameter.normal_(0, 0.02, generator=torch.Generator().manual_seed(1))
    texts = [p.text for p in prompts_of(params)]
    return Policy(generator, texts, params.prompts.negative, 4, 5.0, 1.0)


def sampled(policy: Policy, prompt: list[int]):
    return policy.sample(torch.tensor(prompt), [random_generator(0, "faults", 0, i) for i in range(len(prompt))])


@pytest.mark.parametrize("faults", [[], ["speed", "prompts", "seed"]])
def test_without_a_fault_in_the_update_its_log_probabilities_are_those_of_sampling(policy, faults):
    faulty = published.FaultyPolicy(policy, faults)
    paths = sampled(faulty, [0, 1, 2])
    assert torch.equal(paths.log_prob, sampled(policy, [0, 1, 2]).log_prob)
    assert all(torch.equal(faulty.log_prob(paths, step), paths.log_prob[:, step]) for step in range(4))


def test_the_conditions_of_the_last_prompt_are_right_for_its_own_clips_only(policy):
    faulty = published.FaultyPolicy(policy, ["last prompt"])
    seen = set()
    for _ in range(8):
        paths = sampled(faulty, [0, 1, 2, 2])
        assert torch.equal(paths.x, sampled(policy, [0, 1, 2, 2]).x)  # sampling is right
        log_prob = faulty.log_prob(paths, 1)
        (last,) = (prompt for prompt in range(3) if torch.equal(log_prob, policy.log_prob(of_prompt(paths, prompt), 1)))
        own = paths.prompt == last
        assert torch.equal(log_prob[own], paths.log_prob[own, 1])
        assert (log_prob[~own] != paths.log_prob[~own, 1]).all()
        seen.add(last)
    assert len(seen) > 1


def of_prompt(paths, prompt: int):
    """The same trajectories, as if all were of one prompt."""
    return replace(paths, prompt=torch.full_like(paths.prompt, prompt))


def test_with_swapped_branches_the_update_has_the_states_of_the_negative_prompt(policy):
    faulty = published.FaultyPolicy(policy, ["swapped"])
    paths = sampled(faulty, [0, 1])
    right = policy.conditioning
    log_prob = faulty.log_prob(paths, 1)
    assert (log_prob != paths.log_prob[:, 1]).all()
    assert faulty.conditioning is right
    by_hand = Policy.__new__(Policy)
    by_hand.__dict__.update(policy.__dict__)
    negative = torch.stack([right.states[:, 1], right.states[:, 0]], 1)
    by_hand.conditioning = replace(right, states=negative)
    assert torch.equal(log_prob, by_hand.log_prob(paths, 1))


def test_an_update_keeps_the_old_log_probabilities_of_sampling_with_the_faults(policy):
    params = small(ddpo__trajectories_per_round=8, ddpo__updates_per_round=1, ddpo__kl=0.0)
    faulty = published.FaultyPolicy(policy, ["last prompt"])
    paths = sampled(faulty, [0, 1, 2, 3, 0, 1, 2, 3])
    old = paths.log_prob.clone()
    parameters = [p for p in policy.generator.unet.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.0)
    with published.training(["last prompt"]):
        learnt = ddpo.update(faulty, optimizer, [[(paths, torch.ones(8))]], [range(4)], params.ddpo)
    assert torch.equal(paths.log_prob, old)
    assert learnt.ratio_error > 0
    with pytest.warns(UserWarning, match="rounds differently"):  # without it, the project notices
        ddpo.update(faulty, optimizer, [[(paths, torch.ones(8))]], [range(4)], params.ddpo)
    assert not torch.equal(paths.log_prob, old)


def test_a_judge_at_another_speed_hears_what_a_faster_clip_sounds_like():
    reward = Clap.load(mini_models(), CPU)
    time = torch.arange(5 * 16_000) / 16_000
    slow, fast = (torch.sin(2 * torch.pi * frequency * time)[None] * 0.5 for frequency in (220.0, 660.0))
    prompt = prompts_of(small())[:1]
    expected = reward.score(fast[:, : len(time) // 3], 16_000, prompt).value
    right = reward.score(slow, 16_000, prompt).value
    found = published.at_speed(reward, 3.0).score(slow, 16_000, prompt).value
    assert abs(found - expected) < abs(right - expected) / 5


def mini_models() -> Path:
    """A folder like `models`, in which `rewards` are the embedded ones."""
    return MINI


def test_the_published_evaluation_lets_only_clap_hear_another_speed(monkeypatch):
    class Judge:
        def judge(self, waveforms, sample_rate, prompts):
            return sample_rate

    monkeypatch.setattr(published.judging, "load_reward", lambda name, models, device: Judge())
    for chosen, rate in (["speed"], round(16_000 * 48 / 22.05)), (["prompts"], 16_000):
        with published.evaluation(chosen):
            heard = [
                published.judging.load_reward(name, Path(), CPU).judge(0, 16_000, []) for name in ("clap", "emopia")
            ]
        assert heard == [rate, 16_000]


def test_the_prompts_of_training_and_evaluation_differ_only_with_that_fault():
    params = small()
    assert published.prompts(params, ["speed"], published.TRAINING_TEMPLATE) is params
    texts = [
        prompts_of(published.prompts(params, ["prompts"], template))[1].text
        for template in (published.TRAINING_TEMPLATE, published.EVALUATION_TEMPLATE)
    ]
    assert texts == ["a recording of a angry piano solo,high quality", "a recording of an angry piano solo"]
    many = small(prompts__instruments=["piano", "flute"], ddpo__trajectories_per_round=16)
    training, evaluation = (
        published.prompts(many, ["prompts"], template).prompts.instruments
        for template in (published.TRAINING_TEMPLATE, published.EVALUATION_TEMPLATE)
    )
    assert (training, evaluation) == (["piano", "flute"], ["piano"])


def test_a_queued_experiment_keeps_its_checkpoint_in_the_project():
    from train import checkpoint_of

    copy = Path("/project/.dvc/tmp/exps/tmpabc")
    assert checkpoint_of("clap", copy, "fast") == Path("/project/.checkpoints/fast-train-clap.pt")
    for folder, name in ((copy, None), (Path("/project"), "fast")):
        assert checkpoint_of("clap", folder, name) == Path(".checkpoints/train-clap.pt")
