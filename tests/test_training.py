"""Training on the embedded models: deterministic, resumable, the same in any batch."""

from __future__ import annotations

import os
import sys
import warnings
from copy import deepcopy

import pandas as pd
import pytest
import torch
from diffusers import DDIMScheduler

from helpers.project import PROJECT, execution, prompts_of, run, small
from music_ddpo.core.errors import UserError
from music_ddpo.core.randomness import random_generator
from music_ddpo.model import adapter
from music_ddpo.training import checkpoint, loop, record, setup
from music_ddpo.training.ddpo import Learnt


def train(models, folder, batch: int = 8, stop_after: int | None = None, **changes):
    """A tiny training with the EMOPIA reward: the adapter's parameters and the rounds."""
    params = small(**{"duration": 3} | changes)
    generator = deepcopy(models[0])
    chosen = execution(batch)
    policy, run = setup.prepare(
        generator, "emopia", prompts_of(params), params, 0, chosen, folder / "checkpoint.pt", folder / "curve.csv", {}
    )
    if stop_after is not None:
        finish = run.finish

        def finish_and_stop(round) -> None:
            finish(round)
            if run.rounds_done == stop_after:
                raise KeyboardInterrupt

        run.finish = finish_and_stop
    loop.train(policy, models[1], prompts_of(params), params, 0, chosen, run)
    return [p.detach().clone() for p in adapter.parameters(generator)], run.rounds


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a[0], b[0], strict=True)) and a[1] == b[1]


@pytest.fixture(scope="module")
def three_rounds(models, tmp_path_factory):
    return train(models, tmp_path_factory.mktemp("three"), ddpo__rounds=3)


def test_every_ratio_is_exactly_one_while_the_weights_stay(models, tmp_path):
    still = {"ddpo__learning_rate": 1e-300, "ddpo__updates_per_round": 2, "ddpo__clip_range": 1e-12}  # 0 in float32
    weights, rounds = train(models, tmp_path, batch=3, **still)
    assert not any(b.any() for b in weights[1::2])
    assert [(r.ratio_error, r.clip_fraction, r.kl) for r in rounds] == [(0.0, 0.0, 0.0)] * 2
    assert all(r.gradient_norm > 0 for r in rounds)


def test_a_deterministic_step_is_refused_only_if_it_would_be_trained(models, tmp_path):
    generator = deepcopy(models[0])
    generator.scheduler = DDIMScheduler.from_config(generator.scheduler.config, steps_offset=0)
    with pytest.raises(UserError, match=r"scheduler_config\.json: with it step 4 of 4"):
        train((generator, models[1]), tmp_path)
    _, rounds = train((generator, models[1]), tmp_path, ddpo__timesteps="first 3", ddpo__rounds=1)
    assert rounds[0].gradient_norm > 0


def test_the_ratio_starts_at_exactly_one_in_every_round(three_rounds):
    weights, rounds = three_rounds
    assert [r.ratio_error for r in rounds] == [0.0] * 3
    assert max(b.abs().max() for b in weights[1::2]) > 1e-3
    assert rounds[-1].clip_fraction > 0


def test_batches_of_one_and_four_clips_give_the_same_adapter(models, tmp_path):
    # The learning rate is the size of AdamW's first step, so it is what the tolerances below are measured against.
    once = {"ddpo__rounds": 1, "ddpo__updates_per_round": 1, "ddpo__learning_rate": 0.003}
    one, four = (train(models, tmp_path / str(n), n, **once)[0] for n in (1, 4))
    assert max(p.abs().max() for p in one[1::2]) > 1e-4  # the B matrices, which start at 0
    for a, b in zip(one, four, strict=True):
        # AdamW's first step divides a gradient by its own size, so only the sign of tiny ones can differ.
        assert (a - b).abs().median() < 1e-6
        assert ((a - b).abs() > 1e-4).float().mean() < 0.01


def test_a_training_that_stops_after_each_round_in_turn_ends_with_the_same_bits(models, three_rounds, tmp_path):
    for rounds in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            train(models, tmp_path, ddpo__rounds=3, stop_after=rounds)
        curve = pd.read_csv(tmp_path / "curve.csv")  # it can be looked at meanwhile
        assert sorted(set(curve["round"])) == list(range(1, rounds + 1))
    assert same(train(models, tmp_path, ddpo__rounds=3), three_rounds)


def test_with_random_steps_it_ends_with_the_same_bits_too(models, three_rounds, tmp_path):
    options = {"ddpo__rounds": 3, "ddpo__timesteps": "random 2"}
    whole = train(models, tmp_path / "whole", **options)
    for rounds in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            train(models, tmp_path, **options, stop_after=rounds)
    assert same(train(models, tmp_path, **options), whole)
    assert not any(torch.equal(a, b) for a, b in zip(whole[0], three_rounds[0], strict=True))


def test_random_steps_differ_between_updates_and_rounds_and_not_between_runs():
    params = small(steps=19, ddpo__timesteps="random 5", ddpo__updates_per_round=4)
    drawn = [loop.steps_of_round(params, seed, round) for seed in (1, 2) for round in range(3)]
    assert all(len(set(steps)) == 5 and set(steps) < set(range(19)) for updates in drawn for steps in updates)
    assert len({tuple(steps) for updates in drawn for steps in updates}) == 2 * 3 * 4
    assert drawn[0] == loop.steps_of_round(params, 1, 0)
    whole = small(steps=19, ddpo__timesteps="random 100%", ddpo__updates_per_round=4)
    (first, *_) = loop.steps_of_round(whole, 1, 0)
    assert sorted(first) == list(range(19)) != first


def test_group_relative_advantages_are_those_of_a_window_that_is_not_longer_than_the_round(
    models, three_rounds, tmp_path
):
    options = {"group": {"ddpo__advantages": "group"}, "window": {"ddpo__advantage_window": 2}}
    group, window = (train(models, tmp_path / name, **changes) for name, changes in options.items())
    assert same(group, window)
    assert group[1][0] == three_rounds[1][0]
    assert group[1][1] != three_rounds[1][1]  # whose window has the first round too


def test_another_batch_continues_from_the_checkpoint(models, three_rounds, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(models, tmp_path, ddpo__rounds=3, stop_after=2)
    _, rounds = train(models, tmp_path, batch=3, ddpo__rounds=3)
    assert rounds[:2] == three_rounds[1][:2]
    assert len(rounds) == 3
    assert [p.name for p in tmp_path.glob("*.pt")] == ["checkpoint.pt"]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        ({"ddpo__learning_rate": 0.001}, r"another ddpo.learning_rate \(0.0075, now 0.001\)"),
        ("other weights", "its checksum is wrong"),
        (b"no checkpoint", "not a readable checkpoint"),
        (torch.zeros(3), "not a readable checkpoint"),
        (["a", "list"], "not a readable checkpoint"),
        ({"identity": {}}, "not a readable checkpoint"),
        ({"identity": 3}, "not a readable checkpoint"),
    ],
    ids=["other params", "other weights", "damaged", "a tensor", "a list", "no weights", "no identity"],
)
def test_a_checkpoint_that_does_not_match_is_kept_and_the_reason_is_said(models, tmp_path, spoil, reason):
    path = tmp_path / "checkpoint.pt"
    changes = {"ddpo__rounds": 1}
    if isinstance(spoil, bytes):
        path.write_bytes(spoil)
    elif isinstance(spoil, list | torch.Tensor) or "identity" in spoil:
        torch.save(spoil, path)
    else:
        train(models, tmp_path, **changes)
        if spoil == "other weights":
            saved = torch.load(path)
            saved["state"][-1000:] = 0
            torch.save(saved, path)
        else:
            changes |= spoil
    old = path.read_bytes()
    with pytest.warns(UserWarning, match=reason):
        train(models, tmp_path, **changes)
    assert (tmp_path / "checkpoint.old-1.pt").read_bytes() == old
    assert path.is_file()


def test_changed_code_does_not_continue_from_a_checkpoint(models, tmp_path, monkeypatch):
    train(models, tmp_path, ddpo__rounds=1)
    digest = checkpoint.checksums
    monkeypatch.setattr(checkpoint, "checksums", lambda *a: dict.fromkeys(digest(*a), "changed"))
    with pytest.warns(UserWarning, match=r"another code\.core\..*now 'changed'"):
        train(models, tmp_path, ddpo__rounds=1)


def test_a_training_that_diverges_is_an_error_and_keeps_the_rounds_before(models, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(models, tmp_path, stop_after=1)
    kept = (tmp_path / "checkpoint.pt").read_bytes()
    broken = deepcopy(models)
    broken[0].unet.conv_in.weight.data.fill_(float("nan"))
    with pytest.raises(UserError, match=r"^8 of 8 clips have values that are not finite in the latents"):
        train(broken, tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == kept


@pytest.mark.parametrize(
    ("group", "change", "message"),
    [
        ("ddpo", {"weight_decay": 1e300}, "training diverged: the adapter's weights"),
        ("ddpo", {"learning_rate": 1e30}, "training diverged|values that are not finite"),
        ("lora", {"alpha": 1e300}, "values that are not finite in the latents"),
        (None, {"guidance_scale": 1e30}, "values that are not finite in the latents|training diverged"),
    ],
    ids=["weight decay", "learning rate", "alpha", "guidance"],
)
def test_no_way_to_diverge_passes_as_success(models, tmp_path, monkeypatch, group, change, message):
    params = small(ddpo__rounds=2, duration=3)

    def changed(**_):  # the schema has maxima, which are lower
        if group is None:
            return params.model_copy(update=change)
        return params.model_copy(update={group: getattr(params, group).model_copy(update=change)})

    monkeypatch.setattr(sys.modules[__name__], "small", changed)
    with pytest.raises(UserError, match=message):
        train(models, tmp_path)


def test_a_vae_that_gives_infinite_values_is_named(models):
    broken = deepcopy(models[0])
    broken.vae.decoder.conv_out.bias.data.fill_(float("inf"))
    with pytest.raises(UserError, match=r"^1 of 1 clips have values that are not finite in the output of the VAE"):
        broken.decode(torch.zeros(1, *broken.latent_shape(1)), 1)


def test_two_trainings_with_the_same_checkpoint_are_refused_until_the_first_one_ends(tmp_path):
    path = tmp_path / "train-clap.pt"
    with checkpoint.alone(path, "clap"):
        code = "from pathlib import Path; from music_ddpo.training.checkpoint import alone; import sys\n"
        code += "with alone(Path(sys.argv[1]), 'clap'): pass"
        done = run(PROJECT, sys.executable, "-c", code, str(path))
        assert f"another training with 'clap' runs in this folder, process {os.getpid()};" in done.stderr
    with checkpoint.alone(path, "clap"):
        pass


def test_memory_that_runs_out_in_a_round_names_the_key_and_keeps_the_rounds_before(models, tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        train(models, tmp_path, stop_after=1)
    kept = (tmp_path / "checkpoint.pt").read_bytes()

    def full(self, *_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(type(models[0]), "decode", full)
    with pytest.raises(UserError, match=r"^compute.decode_batch: .*8 clip.*set compute.decode_batch to 4"):
        train(models, tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == kept


def test_progress_prints_a_line_for_each_round_with_an_estimate_of_the_rest(models, tmp_path, capsys):
    train(models, tmp_path, ddpo__rounds=2)
    lines = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if ": reward " in line]
    assert len(lines) == 2
    assert "round 1/2: reward" in lines[0]
    assert all(f"{emotion} " in lines[0] for emotion in ("happy", "angry", "sad", "tender"))
    assert "clipped" in lines[0]
    assert "left: 00:" in lines[0]
    assert "left" not in lines[1]


def rounds_of(rewards: torch.Tensor) -> list[record.Round]:
    """The record of rounds with these rewards [rounds, clips], of two prompts in turn."""
    prompts = prompts_of(small())[:2]
    asked = [prompts[i % 2] for i in range(rewards.shape[1])]
    judged = torch.ones(rewards.shape[1], dtype=torch.bool)
    learnt = [Learnt(0.0, 0.0, 1.0, 0.0)]
    return [record.Round.of(i, row, judged, asked, learnt) for i, row in enumerate(rewards)]


def test_the_rise_and_its_error_are_those_of_repeated_rounds():
    noise = random_generator(0, "rise", 0, 0)
    level = torch.tensor([0.0, 3.0]).repeat(8)  # the prompts differ more than the noise
    trend = 0.1 * torch.arange(5.0)[:, None] + level
    found = [record.rise(rounds_of(trend + 0.5 * torch.randn(5, 16, generator=noise))) for _ in range(400)]
    rises, errors = torch.tensor(found).T
    assert rises.mean().item() == pytest.approx(0.4, abs=0.03)
    assert errors.mean().item() == pytest.approx(rises.std().item(), rel=0.1)


def test_the_summary_has_the_divergence_from_the_base_only_with_the_penalty():
    rounds = rounds_of(torch.zeros(8, 4))
    assert "kl_to_base_last" not in record.summary(rounds, 0)
    for i, round in enumerate(rounds):
        round.kl_to_base = 0.1 * i
    assert record.summary(rounds, 0)["kl_to_base_last"] == pytest.approx(0.65)  # the last two rounds


@pytest.mark.parametrize(("slope", "flat"), [(0.0, True), (-0.5, True), (0.5, False)])
def test_a_reward_that_does_not_rise_beyond_its_noise_is_a_warning(slope, flat):
    noise = random_generator(0, "rise", 0, 1)
    rounds = rounds_of(slope * torch.arange(4.0)[:, None] + 0.5 * torch.randn(4, 16, generator=noise))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loop.warn_if_flat(rounds)
    assert [("has not risen beyond its noise" in str(w.message)) for w in caught] == [True] * flat
