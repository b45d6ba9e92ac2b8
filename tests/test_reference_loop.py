"""The loop that ours is measured against learns the same."""

from __future__ import annotations

import sys
from copy import deepcopy

import torch

from helpers.project import PROJECT, execution, prompts_of, small
from music_ddpo.model import adapter
from music_ddpo.training import loop, setup


def test_the_reference_learns_the_same_up_to_the_order_of_summation(models, tmp_path):
    sys.path.append(str(PROJECT / "benchmarks"))
    import reference_loop

    # One optimizer step: its size is the learning rate, so only tiny gradients can move a parameter elsewhere.
    params = small(duration=3, ddpo__rounds=1, ddpo__updates_per_round=1, ddpo__learning_rate=0.003)
    prompts, reward = prompts_of(params), models[1]

    ours = deepcopy(models[0])
    files = tmp_path / "checkpoint.pt", tmp_path / "curve.csv"
    policy, run = setup.prepare(ours, "emopia", prompts, params, 0, execution(), *files, {})
    loop.train(policy, reward, prompts, params, 0, execution(), run)

    theirs = deepcopy(models[0])
    parameters = adapter.add(theirs, params.lora, 0)
    optimizer = torch.optim.AdamW(parameters, params.ddpo.learning_rate, weight_decay=params.ddpo.weight_decay)
    encode = reference_loop.resident_encoders(theirs, params.prompts.negative)
    rewards = reference_loop.round_(theirs, reward, prompts, encode, params, optimizer, 2, 0)

    assert abs(rewards.mean().item() - run.rounds[0].reward) < 1e-4
    assert max(p.abs().max() for p in parameters[1::2]) > 1e-4  # the B matrices, which start at 0
    for a, b in zip(adapter.parameters(ours), parameters, strict=True):
        assert (a - b).abs().median() < 1e-6
        assert ((a - b).abs() > 1e-4).float().mean() < 0.01
