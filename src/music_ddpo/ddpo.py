"""DDPO: denoising as a multi-step decision process, trained by a clipped policy gradient (paper 4.2).

To be read beside the paper: a state is (prompt, timestep, x_t), an action is x_{t-1}, the policy is the
DDIM step, and every action of a trajectory shares the reward of the clip it ends in.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from music_ddpo import adapter
from music_ddpo.ddim import Schedule, log_probability, make_schedule, mean_and_std
from music_ddpo.execution import Execution, portions
from music_ddpo.files import whole
from music_ddpo.generator import Conditioning, Generator
from music_ddpo.params import DDPOParams, Params
from music_ddpo.prompts import Prompt
from music_ddpo.randomness import generator as random_generator
from music_ddpo.rewards.base import Reward
from music_ddpo.rollout import decode, sample

ETA = 1.0  # the policy must be stochastic: at eta 0 there is no probability to raise


@dataclass
class Epoch:
    """What one round of sample, score, learn did: a row of the reward curve.

    `ratio_error` is the largest |ratio - 1| at the round's first update, which must be 0. `kl` is the mean
    of half the squared log-probability difference between the new policy and the one that sampled.
    """

    epoch: int
    reward: float
    reward_std: float
    by_emotion: dict[str, float]
    clip_fraction: float
    kl: float
    gradient_norm: float
    ratio_error: float
    unjudged: int


@dataclass
class Progress:
    """All that a run must remember to go on: epochs done, and each prompt's latest rewards."""

    epochs: list[Epoch] = field(default_factory=list)
    rewards: dict[int, list[float]] = field(default_factory=dict)


def advantages(
    rewards: torch.Tensor, prompt: torch.Tensor, history: dict[int, list[float]], window: int, clip: float
) -> torch.Tensor:
    """How much better than usual for its prompt each clip is, in standard deviations, clamped to ± `clip`.

    Parameters
    ----------
    rewards, prompt
        Reward and prompt index of each clip, [clips].
    history
        Each prompt's rewards so far; this round's are appended, and the latest `window` are kept. So a
        round may be as small as one clip (the paper's batch size), and has a baseline all the same.

    Returns
    -------
    float32 [clips]. Where a prompt has a single reward yet, those of all prompts are the baseline.
    """
    for index, reward in zip(prompt.tolist(), rewards.tolist(), strict=True):
        history.setdefault(index, []).append(reward)
    for index in history:
        latest = max(window, int((prompt == index).sum()))
        history[index] = history[index][-latest:]
    everything = [r for values in history.values() for r in values]
    result = torch.empty(len(rewards))
    for i, index in enumerate(prompt.tolist()):
        values = history[index] if len(history[index]) > 1 else everything
        baseline = torch.tensor(values, dtype=torch.float64)
        # Below this deviation the rewards are as good as equal, and their order is noise.
        result[i] = (float(rewards[i]) - baseline.mean()) / (baseline.std(correction=0) + 1e-4)
    return result.clamp(-clip, clip)


def surrogate(
    log_prob: torch.Tensor, old_log_prob: torch.Tensor, advantage: torch.Tensor, clip_range: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The clipped objective of each action, to be minimised, and its importance ratio; both [pairs]."""
    ratio = torch.exp(log_prob - old_log_prob)
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(-advantage * ratio, -advantage * clipped), ratio


@dataclass(frozen=True)
class Policy:
    """pi(a | s): the generator's DDIM step for a set of prompts."""

    generator: Generator
    conditioning: Conditioning
    schedule: Schedule
    guidance_scale: float

    def log_prob(self, prompt: torch.Tensor, step: torch.Tensor, x_t: torch.Tensor, x_prev: torch.Tensor):
        """log p(x_{t-1} | x_t, c), averaged over the latent's dimensions, float32 [pairs]."""
        device = self.generator.device
        x_t, x_prev = x_t.to(device), x_prev.to(device)
        rows = self.conditioning.rows(prompt)
        noise = self.generator.predict_noise(x_t, self.schedule.timesteps[step], rows, self.guidance_scale)
        return log_probability(x_prev, *mean_and_std(self.schedule, step, x_t, noise))


def update(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    paths: torch.Tensor,
    prompt: torch.Tensor,
    advantage: torch.Tensor,
    steps: range,
    ddpo: DDPOParams,
    execution: Execution,
    progress: Callable[[int], object] = lambda count: None,
) -> dict[str, float]:
    """Learns from one round of trajectories, in `ddpo.updates_per_epoch` optimizer steps.

    The old log-probabilities are recomputed here, before the first step, with the very calls that compute
    the new ones: the same module, precision, batches and autograd mode. So the ratio starts at exactly 1.
    Gradients are accumulated over portions of (trajectory, step) pairs, so memory grows neither with the
    number of steps nor with that of trajectories.

    Parameters
    ----------
    paths
        Latents from x_T to x_0, [clips, steps + 1, ...].
    prompt, advantage
        Of each clip, [clips].
    steps
        Which denoising steps to train.

    Returns
    -------
    clip_fraction, kl, gradient_norm (means over the updates) and ratio_error (of the first).
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    share = len(paths) // ddpo.updates_per_epoch
    minibatches = []
    for start in range(0, len(paths), share):
        clips = torch.arange(start, start + share)
        step, clip = (x.flatten() for x in torch.meshgrid(torch.tensor(steps), clips, indexing="ij"))
        minibatches.append([(clip[part], step[part]) for part in portions(len(clip), execution.update_batch)])

    def log_prob(clip: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        return policy.log_prob(prompt[clip], step, paths[clip, step], paths[clip, step + 1])

    old = []
    for minibatch in minibatches:
        for clip, step in minibatch:
            old.append(log_prob(clip, step).detach())
            progress(len(clip))

    totals = dict.fromkeys(("clip_fraction", "kl", "gradient_norm"), 0.0)
    ratio_error = 0.0
    before = iter(old)
    for number, minibatch in enumerate(minibatches):
        pairs = share * len(steps)
        for clip, step in minibatch:
            old_log_prob = next(before)
            new_log_prob = log_prob(clip, step)
            weight = advantage[clip].to(new_log_prob.device)
            loss, ratio = surrogate(new_log_prob, old_log_prob, weight, ddpo.clip_range)
            (loss.sum() / pairs).backward()
            change = (ratio.detach() - 1).abs()
            totals["clip_fraction"] += (change > ddpo.clip_range).float().sum().item() / pairs
            totals["kl"] += 0.5 * (new_log_prob.detach() - old_log_prob).square().sum().item() / pairs
            if number == 0:
                ratio_error = max(ratio_error, change.max().item())
            progress(len(clip))
        totals["gradient_norm"] += nn.utils.clip_grad_norm_(parameters, ddpo.max_gradient_norm).item()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {key: total / len(minibatches) for key, total in totals.items()} | {"ratio_error": ratio_error}


def train(
    generator: Generator,
    reward: Reward,
    prompts: list[Prompt],
    params: Params,
    seed: int,
    execution: Execution,
    checkpoint: Path,
    weights: str = "",
) -> list[Epoch]:
    """Fine-tunes a fresh adapter on `generator` to raise `reward`; returns the reward curve.

    After every round the run is saved to `checkpoint`. A run that finds a checkpoint of the same params,
    seed and `weights` (any string that identifies them) goes on from it and ends with the same adapter,
    bit for bit; any other checkpoint is left unread.
    """
    ddpo = params.ddpo
    parameters = adapter.add(generator, params.lora.rank, params.lora.alpha, seed)
    optimizer = torch.optim.AdamW(
        parameters, lr=ddpo.learning_rate, betas=tuple(ddpo.adam_betas), weight_decay=ddpo.weight_decay
    )
    conditioning = generator.encode([p.text for p in prompts], params.prompts.negative)
    generator.forget_text_encoders()
    schedule = make_schedule(generator.scheduler, params.steps, ETA)
    policy = Policy(generator, conditioning, schedule, params.guidance_scale)
    fingerprint = _fingerprint(params, reward.name, seed, weights)
    progress = _restore(checkpoint, fingerprint, parameters, optimizer)

    clips = ddpo.trajectories_per_epoch
    pairs = clips * (params.steps + 2 * len(params.trained_steps))
    first = len(progress.epochs)
    with tqdm(total=ddpo.epochs * pairs, initial=first * pairs, unit="step", desc=f"train {reward.name}") as bar:
        for epoch in range(first, ddpo.epochs):
            index = torch.arange(epoch * clips, (epoch + 1) * clips)
            prompt = index % len(prompts)
            noise = [random_generator(seed, "train", epoch, i) for i in range(clips)]
            paths = sample(
                generator, conditioning, prompt, schedule, noise, params.duration, params.guidance_scale, execution,
                progress=bar.update,
            )  # fmt: skip
            waveforms = decode(generator, paths[:, -1], params.duration, execution)
            asked = [prompts[i] for i in prompt]
            judgement = reward.score(waveforms, generator.sample_rate, asked)
            rewards = judgement.reward(params.reward_form)
            advantage = advantages(rewards, prompt, progress.rewards, ddpo.advantage_window, ddpo.advantage_clip)
            learnt = update(
                policy, optimizer, paths, prompt, advantage, params.trained_steps, ddpo, execution, bar.update
            )
            by_emotion = {
                emotion: rewards[[p.emotion == emotion for p in asked]].mean().item()
                for emotion in params.prompts.emotions
                if any(p.emotion == emotion for p in asked)
            }
            progress.epochs.append(
                Epoch(
                    epoch=epoch,
                    reward=rewards.mean().item(),
                    reward_std=rewards.std(correction=0).item(),
                    by_emotion=by_emotion,
                    unjudged=judgement.predicted.count(""),
                    **learnt,
                )
            )
            bar.set_postfix_str(f"round {epoch + 1}/{ddpo.epochs}, reward {rewards.mean():.3f}")
            _save(checkpoint, fingerprint, parameters, optimizer, progress)
    return progress.epochs


def _fingerprint(params: Params, reward: str, seed: int, weights: str) -> str:
    """Identifies a run: everything that its result depends on."""
    keys = ("model", "duration", "steps", "guidance_scale", "prompts", "reward_form", "ddpo", "lora", "compute")
    content = {key: value for key, value in params.model_dump(mode="json").items() if key in keys}
    text = json.dumps([content, reward, seed, weights, torch.__version__], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _save(path: Path, fingerprint: str, parameters, optimizer, progress: Progress) -> None:
    state = {
        "fingerprint": fingerprint,
        "parameters": [p.detach().cpu() for p in parameters],
        "optimizer": optimizer.state_dict(),
        "progress": asdict(progress),
    }
    with whole(path) as partial:
        torch.save(state, partial)


def _restore(path: Path, fingerprint: str, parameters, optimizer) -> Progress:
    """The progress of an interrupted run of the same fingerprint, with its state put in place; else none."""
    if not path.is_file():
        return Progress()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError):
        warnings.warn(f"{path}: the checkpoint cannot be read; training starts afresh", stacklevel=2)
        return Progress()
    if state["fingerprint"] != fingerprint:
        return Progress()
    with torch.no_grad():
        for parameter, saved in zip(parameters, state["parameters"], strict=True):
            parameter.copy_(saved)
    optimizer.load_state_dict(state["optimizer"])
    saved = state["progress"]
    return Progress([Epoch(**e) for e in saved["epochs"]], saved["rewards"])
