"""The benchmarks that compare settings by trainings in one process."""

from __future__ import annotations

import json
import os

import pandas as pd
import pytest
import torch

from helpers.project import PROJECT, SMALL


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(PROJECT / "benchmarks"))
    monkeypatch.chdir(PROJECT)


def result(setting, reward, seed, listener, held_out, diversity=8.0):
    """A result of one training; `listener` is its accuracy for happy and for sad."""
    by_emotion = dict(zip(("happy", "sad"), listener, strict=True))
    judges = {
        "clap": {"value": 0.5, "accuracy": 0.6},
        "emopia": {"value": -0.1, "accuracy": 0.9},
        "held_out": {"value": held_out},
        "listener": {
            "value": 0.5,
            "accuracy": sum(listener) / 2,
            "by_emotion": by_emotion,
            "instrument": listener[1],
        },
    }
    return {
        "setting": setting, "reward": reward, "seed": seed, "judges": judges, "diversity": diversity,
        "unet_calls": 1000, "seconds": 90.0,
    }  # fmt: skip


def test_the_table_has_the_means_over_seeds_with_students_interval():
    from way_out import table

    results = [
        result("1 member", "emopia", 11, (0.4, 0.6), 0.2, 7.0),
        result("1 member", "emopia", 12, (0.6, 0.8), 0.3, 8.0),
        result("1 member", "emopia", 13, (0.5, 0.7), 0.4, 9.0),
        result("both", "both", 11, (0.1, 0.3), -0.5),
        result("untouched model", None, 11, (0.2, 0.2), 0.0),
    ]
    del results[-1]["unet_calls"]
    del results[-1]["judges"]["listener"]
    head, _, one, both, untouched = table(results, {"both": {"clap": 1.0, "emopia": 1.0}}).splitlines()
    assert head.split(" | ")[:6] == ["| setting", "own accuracy", "listener accuracy", "each seed", "happy", "sad"]
    # 0.5, 0.7, 0.6: deviation 0.1, standard error 0.1 / sqrt(3) = 0.0577, times t(0.975, 2) = 4.3027
    listener = "0.600 [0.352, 0.848] | 0.50, 0.70, 0.60 | 0.50 | 0.70 | 0.70"
    assert one == f"| 1 member | 0.900 | {listener} | 0.300 | 8.00 | 1000 |"
    assert both == "| both | 0.750 | 0.200 [?] | 0.20 | 0.10 | 0.30 | 0.30 | -0.500 | 8.00 | 1000 |"
    assert untouched == "| untouched model | - | - | - | - | - | - | 0.000 | 8.00 | - |"


def test_the_scores_of_a_table_are_means_in_total_and_by_emotion():
    from trials import scores

    table = pd.DataFrame(
        {
            "emotion": ["sad", "happy", "sad", "happy"],
            "emopia_headline": "accuracy", "emopia_value": [-0.1, -0.2, -0.3, 0.0], "emopia_correct": [1, 0, 1, 1],
            "preference_headline": "score", "preference_value": [1.0, 2.0, 3.0, 4.0],
        }
    )  # fmt: skip
    assert scores(table) == {
        "emopia": {"value": -0.15, "accuracy": 0.75, "by_emotion": {"sad": 1.0, "happy": 0.5}},
        "preference": {"value": 2.5},
    }


def test_diversity_is_the_mean_over_the_prompts_of_the_distance_of_their_clips():
    from trials import diversity

    random = torch.Generator().manual_seed(0)
    noise = torch.randn(16_000, generator=random)
    clips = torch.stack([noise, noise / 10, noise / 100, noise, noise])  # 20 dB apart
    asked = [("sad", "piano")] * 3 + [("sad", "flute")] * 2
    assert diversity(clips, 16_000, asked) == pytest.approx(((20 + 40 + 20) / 3 + 0) / 2, rel=1e-3)


def test_settings_with_the_same_params_are_one_job_and_other_changes_are_not():
    from trials import Job

    one = Job("a", "emopia", 1, {"emopia.members": 1})
    assert one.key == Job("b", "emopia", 1, {"emopia.members": "auto", "auto.members": {"otherwise": 1}}).key
    others = [
        Job("a", "emopia", 2, one.changes),
        Job("a", "clap", 1, one.changes),
        Job("a", "emopia", 1, {"emopia.members": 2}),
        Job("a", "emopia", 1, {"ddpo.learning_rate": 0.001}),
        Job("a", "emopia", 1, one.changes, hear_every=True),
    ]
    assert one.key not in {job.key for job in others}


def pretend(job) -> dict:
    """A result without any work."""
    return {"process": os.getpid(), "doubled": 2 * job.seed}


def test_a_run_does_only_what_is_missing_and_keeps_each_result(tmp_path, capsys):
    from trials import Job, run

    path = tmp_path / "results.json"
    jobs = [Job("untouched", None, seed, SMALL) for seed in (1, 2)]
    first = run(jobs[:1], path, 1, pretend)
    both = run([*jobs, Job("the same", None, 1, SMALL)], path, 1, pretend)
    assert [r["doubled"] for r in both] == [2, 4, 2]
    assert os.getpid() not in {r["process"] for r in both}
    assert [r["seed"] for r in both] == [1, 2, 1]
    assert both[0] == first[0]
    assert both[2] == first[0] | {"setting": "the same"}
    assert json.loads(path.read_text()) == {"results": both[:2]}
    assert "1 of 3 jobs to do" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:reward")
def test_a_trial_is_the_training_and_the_clips_of_the_stages():
    from trials import trial

    judges = {"judges": ["emopia", "clap"], "ddpo.kl": 0.0}
    found = trial(SMALL | judges, "emopia", 3, hear_every=True)
    untouched = trial(SMALL | judges | {"evaluation.clips_per_emotion": 10}, None, 3, hear_every=False)
    assert found["unet_calls"] == 2 * 8 * (4 + 4)  # rounds, clips, steps sampled and trained
    assert [(point["round"], point["reward"] is None) for point in found["curve"]] == [(0, True), (2, False)]
    assert {key: found["curve"][0][key] for key in ("judges", "diversity")} == {
        key: untouched[key] for key in ("judges", "diversity")
    }
    assert found["curve"][1]["judges"] != found["curve"][0]["judges"]
    assert set(found["judges"]) == {"emopia", "clap"}


def test_the_curves_are_drawn_with_a_line_for_each_seed_and_their_mean():
    from overoptimisation import curves, picture

    def point(round, value):
        judges = {
            "clap": {"value": value},
            "held_out": {"value": -value},
            "listener": {"value": 0, "accuracy": value, "instrument": 1.0},
        }
        return {"round": round, "judges": judges, "diversity": 5.0}

    results = [{"reward": "clap", "seed": seed, "curve": [point(0, 0.1), point(2, 0.1 * seed)]} for seed in (2, 4)]
    data = curves(results)
    held_out = data[(data["measure"] == "held_out: similarity") & (data["round"] == 2)]
    assert held_out["value"].tolist() == pytest.approx([-0.2, -0.4])
    assert len(data) == 2 * 2 * 5
    svg = picture(data)
    assert all(word in svg for word in ("trained with clap", "listener: accuracy", "held_out", "diversity"))
    assert svg.count('aria-roledescription="line mark"') == 5 * (2 + 1)
