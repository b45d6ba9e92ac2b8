"""The training loop: sample, score, learn."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

import torch

from music_ddpo.core.errors import UserError
from music_ddpo.core.params import DDPOParams, Params
from music_ddpo.core.prompts import Prompt
from music_ddpo.core.randomness import random_generator
from music_ddpo.machine import processes
from music_ddpo.machine.batches import Execution, full_memory_explained, portions
from music_ddpo.model.policy import Policy, Trajectories
from music_ddpo.rewards.base import Reward
from music_ddpo.training.checkpoint import Run
from music_ddpo.training.ddpo import advantages, update
from music_ddpo.training.record import Round, rise


def train(
    policy: Policy, reward: Reward, prompts: Sequence[Prompt], params: Params, seed: int, execution: Execution,
    run: Run, judge: Reward | None = None,
) -> None:  # fmt: skip
    """Raises the reward of the policy's clips, round by round.

    A round is a transaction: it depends only on what `run` has saved (adapter, optimizer, reward history) and on seeded
    noise, so a round that was interrupted is simply done again.

    Parameters
    ----------
    judge
        Listens to the clips of each round too; the adapter that sampled those which it likes best is kept. Without it
        the last one is.
    """
    ddpo, form = params.ddpo, params.reward_form
    groups = own_clips(ddpo, execution.batch)
    for round in range(run.rounds_done, ddpo.rounds):
        index = torch.arange(round * ddpo.trajectories_per_round, (round + 1) * ddpo.trajectories_per_round)
        prompt = index % len(prompts)
        asked = [prompts[i] for i in prompt]
        with run.progress.round(round) as progress, full_memory_explained("batch", execution.batch):
            # sample: x_T, ..., x_0 and their log-probabilities
            paths = {}
            for clips in (clips for group in groups for clips in group):
                noise = [random_generator(seed, "train", round, clip) for clip in clips]
                paths[clips] = policy.sample(prompt[clips.start : clips.stop], noise, progress.sampled)
            # score: r(x_0, c)
            rewards, judged, kept_by = score(
                policy, reward, judge, paths, asked, form, execution.decode_batch, progress.scored
            )
            history = run.history if ddpo.advantages == "window" else {}
            advantage = advantages(rewards, prompt, history, ddpo.advantage_window, ddpo.advantage_clip)
            # learn: section 4.2
            minibatches = [[(paths[c], advantage[c.start : c.stop]) for c in group] for group in groups]
            learnt = update(policy, run.optimizer, minibatches, params.trained_steps, ddpo, progress.learnt)
        finite = all(p.isfinite().all() for p in run.parameters)
        if not (math.isfinite(learnt.gradient_norm) and finite):
            what = "the adapter's weights are not finite" if not finite else "the gradient's norm is not finite"
            raise UserError(
                f"training diverged: {what} in round {round + 1}; use a smaller ddpo.learning_rate, "
                "ddpo.weight_decay, lora.alpha or guidance_scale. The rounds before are kept."
            )
        run.finish(Round.of(round, rewards, judged, asked, processes.gather([learnt]), kept_by))
        if round + 1 == max(4, ddpo.rounds // 4):
            warn_if_flat(run.rounds)
    run.keep()


def warn_if_flat(rounds: Sequence[Round]) -> None:
    """Warns if the reward has not risen by more than its noise (two standard errors), and says what may help."""
    risen, error = rise(rounds)
    if risen <= 2 * error and processes.is_main():
        warnings.warn(
            f"after {len(rounds)} rounds the reward has not risen beyond its noise ({risen:+.3f} with a standard error "
            f"of {error:.3f}). If it stays flat, people usually try, in this order: more ddpo.trajectories_per_round, "
            "a larger ddpo.learning_rate, a larger ddpo.clip_range (if most actions are clipped), more ddpo.rounds. A "
            "reward that hardly differs between the clips of a prompt cannot be learnt: listen to them first.",
            stacklevel=2,
        )


def own_clips(ddpo: DDPOParams, batch: int) -> list[list[range]]:
    """The clips of this process in a round: for each minibatch, the groups that are sampled and trained together."""
    share = ddpo.trajectories_per_round // ddpo.updates_per_round
    own = processes.own(share)
    return [
        list(portions(range(first + own.start, first + own.stop), batch))
        for first in range(0, ddpo.trajectories_per_round, share)
    ]


def score(
    policy: Policy, reward: Reward, judge: Reward | None, paths: dict[range, Trajectories], asked: Sequence[Prompt],
    form: str, batch: int, progress: Callable[[int], object],
) -> tuple[torch.Tensor, torch.Tensor, float | None]:  # fmt: skip
    """The reward of each clip of the round, of all processes, float32 [clips], and whether it could be judged.

    And the mean of the value that `judge` gives these clips, if there is one.
    """
    rows: list[tuple[int, float, bool, float]] = []
    clips = [clip for group in paths for clip in group]
    x_0 = [latents for path in paths.values() for latents in path.x[:, -1]]
    for part in portions(range(len(clips)), batch):
        with full_memory_explained("decode_batch", len(part)):
            waveforms = policy.decode(torch.stack([x_0[i] for i in part]))
            prompts = [asked[clips[i]] for i in part]
            heard = reward.score(waveforms, policy.sample_rate, prompts)
            other = judge.score(waveforms, policy.sample_rate, prompts) if judge else heard
        columns = (heard.reward(form), heard.judged, other.value)
        rows += zip((clips[i] for i in part), *(x.tolist() for x in columns), strict=True)
        progress(len(part))
    _, rewards, judged, values = zip(*sorted(processes.gather(rows)), strict=True)
    return torch.tensor(rewards), torch.tensor(judged), sum(values) / len(values) if judge else None
