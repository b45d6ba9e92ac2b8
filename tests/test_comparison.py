"""Experiments compared: intervals over seeds and clips against normal theory, groups, tables, and what git has."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from scipy import stats

from helpers.project import PROJECT, run, small, succeed
from music_ddpo.cli import main
from music_ddpo.core.errors import UserError
from music_ddpo.measuring import comparison, experiments
from music_ddpo.measuring.experiments import Experiment
from music_ddpo.measuring.statistics import bootstrap, over_runs
from music_ddpo.measuring.study import Study

EMOTIONS = ["happy", "sad"] * 4


def change(before, after):
    return after - before


@pytest.mark.parametrize("between", [0.0, 0.5])
def test_the_interval_over_runs_has_the_width_of_normal_theory(between):
    random = np.random.default_rng(0)
    runs = [(random.normal(size=400), random.normal(between * offset, size=400)) for offset in random.normal(size=8)]

    found = over_runs(runs, change, 0.95, 20_000, seed=0)

    means = np.array([after.mean() - before.mean() for before, after in runs])
    clips = np.mean([(after - before).var() for before, after in runs]) / 400
    error = math.sqrt(means.var(ddof=1) / 8 + clips / 7)  # of the drawn runs, and of the clips drawn from 7 of them
    assert found.value == pytest.approx(means.mean())
    assert (found.high - found.low) / 2 == pytest.approx(stats.t.ppf(0.975, 7) * error, rel=0.08)
    assert found.clips == 3200


@pytest.mark.parametrize("runs", [3, 5])
def test_the_interval_covers_the_truth_as_often_as_it_says(runs):
    random = np.random.default_rng(2)
    covered = 0
    for repetition in range(200):
        gains = random.normal(0.1, 0.2, size=runs)  # of seeds whose mean gain is 0.1
        pairs = [(np.zeros(50), random.normal(gain, 1, size=50)) for gain in gains]
        found = over_runs(pairs, change, 0.95, 400, seed=repetition)
        covered += found.low <= 0.1 <= found.high
    assert covered / 200 >= 0.93


def test_a_single_run_has_the_interval_of_its_clips():
    random = np.random.default_rng(1)
    run_ = (random.normal(size=300), random.normal(0.2, size=300))

    found, expected = over_runs([run_], change, 0.95, 10_000, seed=0), bootstrap(run_, change, 0.95, 10_000, seed=1)

    assert found.value == pytest.approx(expected.value)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.01)


def test_equal_runs_without_variance_have_no_interval():
    ones = np.ones(5)
    found = over_runs([(ones, ones)] * 3, change, 0.95, 100, seed=0)
    assert (found.value, found.clips) == (0, 15)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def scores(heard: list[int], instrument: float = 1.0) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "emotion": EMOTIONS, "instrument": "piano", "quadrant": ["Q1", "Q3"] * 4,
            "emopia_headline": "accuracy", "emopia_value": [x - 1.0 for x in heard], "emopia_correct": heard,
            "listener_headline": "accuracy", "listener_value": 0.5, "listener_correct": heard[::-1],
            "listener_instrument": instrument,
        }
    )  # fmt: skip


def experiment(name: str, seed: int, heard: list[int], **changes) -> Experiment:
    params = small(rewards=["emopia"], judges=["emopia", "listener"], evaluation__bootstrap=500, **changes)
    study = Study(
        scores([0, 1] * 4), {"emopia": scores(heard, 0.5)}, {"emopia": ["emopia"]}, {}, params.evaluation, seed
    )
    return Experiment(name, params.model_dump(mode="json"), seed, study, {"emopia": [-0.5, -0.2]})


def test_experiments_are_grouped_by_what_differs_apart_from_the_seed():
    a, b = experiment("a", 1, [1] * 8), experiment("b", 2, [0, 1] * 4, compute__batch=3)
    c, again = (
        experiment("c", 1, [1] * 4 + [0] * 4, steps=5, prompts__instruments=["flute"]),
        experiment("d", 1, [1] * 8),
    )

    four, five = comparison.groups([a, b, c, again])

    assert [e.name for e in four.experiments] == ["a", "b"]  # `d` repeats `a`, and the batch changes rounding only
    assert [e.name for e in five.experiments] == ["c"]
    assert four.changed == "steps=4, prompts.instruments=['piano']"
    assert five.changed == "steps=5, prompts.instruments=['flute']"
    assert comparison.groups([a, b])[0].changed == "the same params"
    both = replace(a, params=a.params | {"rewards": ["clap", "emopia"]})
    assert len(comparison.groups([a, both])) == 1  # the adapter is the same, whatever else the study has trained
    assert four.change("emopia").value == pytest.approx((0.5 + 0.0) / 2)
    assert four.change("emopia", "happy").value == pytest.approx(0.5)  # of the even clips: 0 before, then all or none
    assert [x.value for x in four.instrument()] == [1.0, 0.5, -0.5]


def test_the_table_has_a_row_for_each_judge_and_the_plot_a_point_for_each_seed():
    found = comparison.groups([experiment("a", 1, [1] * 8), experiment("b", 2, [0, 1] * 4)])

    lines = comparison.table(found).splitlines()

    assert lines[2].startswith("| the same params | emopia | 2 | emopia accuracy | 0.50 | 0.75 | +0.25 [")
    assert lines[2].endswith("] | +0.50, +0.00 |")
    assert lines[3].startswith("|  |  |  | listener accuracy | 0.50 | 0.75 |")
    assert lines[4].startswith("|  |  |  | listener: instrument | 1.00 | 0.50 | -0.50 [?]")
    assert comparison.picture(found).startswith("<svg")


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A project with its committed run, and an experiment: the same results under another seed."""
    folder = tmp_path_factory.mktemp("compared") / "project"
    folder.mkdir()
    for name in ("metrics", "plots", ".dvc"):
        shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("tmp", "cache"))
    for name in ("params.yaml", ".gitignore"):
        shutil.copyfile(PROJECT / name, folder / name)
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    succeed(folder, "git", "init", "-q")
    for number, seed in enumerate((777, 1)):
        (folder / "metrics" / "seed.json").write_text(f'{{"seed": {seed}}}')
        succeed(folder, "git", "add", "-A")
        succeed(folder, "git", *identity, "commit", "-q", "-m", f"run {number}")
    head, first = (succeed(folder, "git", "rev-parse", name).strip() for name in ("HEAD", "HEAD~"))
    succeed(folder, "git", "update-ref", f"refs/exps/{first[:2]}/{first[2:]}/other-seed", head)
    return folder


def test_experiments_and_revisions_are_read_from_git(repository, monkeypatch):
    monkeypatch.chdir(repository)
    assert list(experiments.known()) == ["other-seed"]
    committed, other = experiments.read(["HEAD~", "other-seed"])
    assert (committed.seed, other.seed) == (777, 1)
    assert committed.study.estimate("emopia", "emopia") == other.study.estimate("emopia", "emopia")
    assert len(committed.curves["emopia"]) == committed.params["ddpo"]["rounds"]
    printed = CliRunner().invoke(main, ["compare", "HEAD~", "other-seed", "--plot", "out.svg"])
    assert printed.exit_code == 0, printed.output
    assert "| the same params | clap | 2 | clap similarity |" in printed.output
    assert (repository / "out.svg").read_text().startswith("<svg")


def test_what_cannot_be_compared_is_said_in_one_line(repository, monkeypatch, tmp_path):
    monkeypatch.chdir(repository)
    with pytest.raises(UserError, match=r"^'other-sed' is neither .* did you mean 'other-seed'"):
        experiments.read(["other-sed"])
    for options, words in ([], "name experiments, or use --all"), (["--all", "HEAD"], "name experiments, or use --all"):
        result = CliRunner().invoke(main, ["compare", *options])
        assert result.exit_code == 2
        assert words in result.output
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["compare", "--all"])
    assert result.exit_code == 1
    assert "run this in the project's folder" in result.output


def test_an_experiment_of_other_code_is_left_out_with_a_warning_or_named(repository, monkeypatch):
    monkeypatch.chdir(repository)
    params = (repository / "params.yaml").read_text()
    (repository / "params.yaml").write_text(params + "stepz: 3\n")
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    succeed(repository, "git", *identity, "commit", "-q", "-am", "another schema")
    head = succeed(repository, "git", "rev-parse", "HEAD").strip()
    reference = f"refs/exps/{head[:2]}/{head[2:]}/other-code"
    succeed(repository, "git", "update-ref", reference, head)
    try:
        with pytest.warns(UserWarning, match=r"^left out: other-code: params\.yaml: stepz: is not a known key"):
            assert [e.name for e in experiments.read_all()] == ["other-seed"]
        with pytest.raises(UserError, match=r"^other-code: params\.yaml: stepz"):
            experiments.read(["other-code"])
    finally:
        run(repository, "git", "update-ref", "-d", reference)
        run(repository, "git", "reset", "-q", "--hard", "HEAD~")
