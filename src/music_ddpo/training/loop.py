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
    run: Run,
) -> None:  # fmt: skip
    """Raises the reward of the policy's clips, round by round.

    A round is a transaction: it depends only on what `run` has saved (adapter, optimizer, reward history) and on seeded
    noise, so a round that was interrupted is simply done again.
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
            rewards, judged = score(policy, reward, paths, asked, form, execution.decode_batch, progress.scored)
            history = run.history if ddpo.advantages == "window" else {}
            advantage = advantages(
                rewards, prompt, history, ddpo.advantage_window, ddpo.advantage_clip, ddpo.advantage_minimum
            )
            # learn: section 4.2
            minibatches = [[(paths[c], advantage[c.start : c.stop]) for c in group] for group in groups]
            steps = steps_of_round(params, seed, round)
            learnt = update(policy, run.optimizer, minibatches, steps, ddpo, progress.learnt)
        finite = all(p.isfinite().all() for p in run.parameters)
        if not (math.isfinite(learnt.gradient_norm) and finite):
            what = "the adapter's weights are not finite" if not finite else "the gradient's norm is not finite"
            raise UserError(
                f"training diverged: {what} in round {round + 1}; use a smaller ddpo.learning_rate, "
                "ddpo.weight_decay, lora.alpha or guidance_scale. The rounds before are kept."
            )
        run.finish(Round.of(round, rewards, judged, asked, processes.gather([learnt])))
        if round + 1 == max(4, ddpo.rounds // 4):
            warn_if_flat(run.rounds)


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


def steps_of_round(params: Params, seed: int, round: int) -> list[list[int]]:
    """The denoising steps that each update of a round trains; drawn anew for each with `ddpo.timesteps: random N`."""
    updates, steps = params.ddpo.updates_per_round, list(params.trained_steps)
    if not params.ddpo.timesteps.startswith("random"):
        return [steps] * updates
    noise = (random_generator(seed, "timesteps", round, update) for update in range(updates))
    return [torch.randperm(len(steps), generator=each)[: params.steps_of_an_update].tolist() for each in noise]


def score(
    policy: Policy, reward: Reward, paths: dict[range, Trajectories], asked: Sequence[Prompt], form: str, batch: int,
    progress: Callable[[int], object],
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """The reward of each clip of the round, of all processes, float32 [clips], and whether it could be judged."""
    rows: list[tuple[int, float, bool]] = []
    clips = [clip for group in paths for clip in group]
    x_0 = [latents for path in paths.values() for latents in path.x[:, -1]]
    for part in portions(range(len(clips)), batch):
        with full_memory_explained("decode_batch", len(part)):
            waveforms = policy.decode(torch.stack([x_0[i] for i in part]))
            prompts = [asked[clips[i]] for i in part]
            heard = reward.score(waveforms, policy.sample_rate, prompts)
        columns = (heard.reward(form), heard.judged)
        rows += zip((clips[i] for i in part), *(x.tolist() for x in columns), strict=True)
        progress(len(part))
    _, rewards, judged = zip(*sorted(processes.gather(rows)), strict=True)
    return torch.tensor(rewards), torch.tensor(judged)
