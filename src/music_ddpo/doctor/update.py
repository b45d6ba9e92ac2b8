"""The first update: its importance ratio, and the conditions of its log-probabilities.

The published code recomputed log-probabilities with the conditions of another prompt, and with T5's negative and
positive branches exchanged. Here both faults are made on purpose, so that the check shows that it would notice them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from music_ddpo.core.params import DDPOParams
from music_ddpo.doctor.report import BROKEN, LOOK, OK, Check, Row
from music_ddpo.model.audioldm2 import Conditioning
from music_ddpo.model.policy import Policy, Trajectories
from music_ddpo.training.ddpo import update

SHARE = 0.1  # log-probabilities may differ by this share of what wrong conditions change
ROUNDING = 1e-3  # a ratio that differs from 1 by more than this is not rounding


def conditions(policy: Policy, paths: Sequence[Trajectories], steps: range) -> Check[None]:
    """The log-probabilities of an update against those of the sampling, for each prompt."""
    right = _errors(policy, paths, steps)
    count, own = len(policy.conditioning.mask), policy.conditioning
    wrong: dict[str, Conditioning] = {"T5's branches exchanged": _branches_exchanged(own)}
    if count > 1:
        wrong["another prompt's conditions"] = own.rows(torch.arange(count).roll(1))
    made = {}
    for name, faulty in wrong.items():
        with _conditioned(policy, faulty):
            made[name] = min(_errors(policy, paths, steps))
    text = (
        f"log-probabilities of {len(paths)} prompts differ by {max(right):.2g} between sampling and update; "
        + ", ".join(f"with {name} by {error:.2g}" for name, error in made.items())
    )
    if max(right) > SHARE * min(made.values()) and max(right) > 0:
        advice = "an update does not use the conditions of the sampling, so it learns noise: do not train"
        yield Row("conditions", BROKEN, text, f"{advice}; compare src/music_ddpo/model with the repository's")
    elif min(made.values()) == 0:
        advice = "the model does not react to the prompt or to the negative prompt; check them, and its files"
        yield Row("conditions", LOOK, text, advice)
    elif count == 1:
        yield Row("conditions", LOOK, text, "there is only one prompt, so exchanged prompts could not be tried")
    else:
        yield Row("conditions", OK, text)


def ratio(policy: Policy, paths: Sequence[Trajectories], steps: range, ddpo: DDPOParams) -> Check[bool]:
    """The ratio of a first update, which the code of the training makes with a learning rate of 0; True if it is 1."""
    raw = max(
        (torch.exp(policy.log_prob(path, t).detach().cpu() - path.log_prob[:, t]) - 1).abs().max().item()
        for path in paths
        for t in steps
    )
    copies = [(replace(path, log_prob=path.log_prob.clone()), torch.ones(len(path.prompt))) for path in paths]
    whole = ddpo.model_copy(update={"trajectories_per_round": len(paths), "updates_per_round": 1})
    parameters = [p for p in policy.generator.unet.parameters() if p.requires_grad]
    with warnings.catch_warnings(action="ignore"):  # `raw` says it
        learnt = update(policy, torch.optim.SGD(parameters, lr=0.0), [copies], [steps], whole)
    text = f"first update: the ratio is 1 within {raw:.2g}, gradient norm {learnt.gradient_norm:.2g}"
    if not learnt.gradient_norm > 0:  # zero or NaN
        advice = "nothing would be learnt: check lora and ddpo in params.yaml, and compute.precision"
        yield Row("ratio", BROKEN, text, advice)
    elif raw == 0 and learnt.ratio_error == 0 and learnt.kl == 0:
        yield Row("ratio", OK, text.replace("1 within 0", "exactly 1"))
    elif raw < ROUNDING and learnt.ratio_error == 0:
        again = "training computes the old log-probabilities again in each round, which the estimate contains"
        yield Row("ratio", LOOK, f"{text}: this device rounds differently with gradients", again)
    else:
        advice = (
            "sampling and update do not compute the same: do not train; compare src/music_ddpo with the repository's"
        )
        yield Row("ratio", BROKEN, text, advice)
    return raw == 0


def _errors(policy: Policy, paths: Sequence[Trajectories], steps: range) -> list[float]:
    """For each path the largest difference between its log-probabilities and those of an update."""
    return [
        max((policy.log_prob(path, t).detach().cpu() - path.log_prob[:, t]).abs().max().item() for t in steps)
        for path in paths
    ]


def _branches_exchanged(own: Conditioning) -> Conditioning:
    return replace(own, states=own.states.flip(1), mask=own.mask.flip(1))


@contextmanager
def _conditioned(policy: Policy, conditioning: Conditioning) -> Iterator[None]:
    own, policy.conditioning = policy.conditioning, conditioning
    try:
        yield
    finally:
        policy.conditioning = own
