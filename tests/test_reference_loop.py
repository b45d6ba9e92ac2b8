"""The loop that ours is measured against does the same work."""

from __future__ import annotations

import sys

import torch
from music_ddpo.generator import Generator
from music_ddpo.params import parse
from test_generator import CHOSEN

from conftest import MINI, PROJECT, params_with
from music_ddpo import adapter, ddpo
from music_ddpo.core.prompts import make_prompts
from music_ddpo.rewards.base import load_reward


def test_the_reference_learns_what_we_learn_up_to_the_order_of_summation(tmp_path):
    sys.path.append(str(PROJECT / "benchmarks"))
    import reference_loop

    # One optimizer step: its size is the learning rate, so only tiny gradients can move a parameter elsewhere.
    params = parse(params_with(ddpo__epochs=1, ddpo__updates_per_epoch=1, ddpo__learning_rate=0.003))
    prompts = make_prompts(params.prompts.template, params.prompts.emotions, params.prompts.instruments)
    reward = load_reward("emopia", MINI, torch.device("cpu"))

    ours = Generator.load(MINI / "pipeline", torch.device("cpu"))
    [round_] = ddpo.train(ours, reward, prompts, params, 0, CHOSEN, tmp_path / "checkpoint")

    theirs = Generator.load(MINI / "pipeline", torch.device("cpu"))
    parameters = adapter.add(theirs, params.lora.rank, params.lora.alpha, 0)
    optimizer = torch.optim.AdamW(parameters, params.ddpo.learning_rate, weight_decay=params.ddpo.weight_decay)
    encode = reference_loop.resident_encoders(theirs, params.prompts.negative)
    rewards = reference_loop.epoch(theirs, reward, prompts, encode, params, optimizer, 2, 0)

    assert abs(rewards.mean().item() - round_.reward) < 1e-4
    assert max(p.abs().max() for p in parameters[1::2]) > 1e-4  # the B matrices, which start at 0
    for a, b in zip(adapter.parameters(ours), parameters, strict=True):
        assert (a - b).abs().median() < 1e-6
        assert ((a - b).abs() > 1e-4).float().mean() < 0.01
