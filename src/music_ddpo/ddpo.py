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
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from music_ddpo import adapter, interruption, parallel
from music_ddpo.ddim import Schedule, log_probability, make_schedule, mean_and_std
from music_ddpo.execution import KINDS, Execution, out_of_memory, portions
from music_ddpo.files import whole
from music_ddpo.generator import Conditioning, Generator
from music_ddpo.interruption import Interrupted
from music_ddpo.params import DDPOParams, Params
from music_ddpo.prompts import Prompt
from music_ddpo.randomness import generator as random_generator
from music_ddpo.rewards.base import Reward
from music_ddpo.rollout import sample

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
class Round:
    """What this process has done of the round under way; of interest only where a signal ends the run within it.

    Attributes
    ----------
    paths
        Latents from x_T to x_0, of the first `sampled` clips so far, [clips, steps + 1, ...].
    old
        Log-probabilities under the policy that sampled, [clips, trained steps].
    start
        The adapter and the optimizer as the round found them.
    updates
        Optimizer steps done, with what they came to in `sums` (clipped pairs, kl, gradient norm) and `ratio_error`.
    """

    paths: torch.Tensor
    old: torch.Tensor
    start: dict[str, Any]
    sampled: int = 0
    updates: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    ratio_error: float = 0.0


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
    done: Round | None = None,
) -> dict[str, float]:
    """Learns from one round of trajectories, in `ddpo.updates_per_epoch` optimizer steps.

    The old log-probabilities are taken before the first step with the very calls that compute the new ones: the same
    module, precision, batches and autograd mode. So the ratio starts at exactly 1, and at the first step, where the
    policy is still the one that sampled, the new ones serve as the old; its first portion is computed twice all the
    same, to measure that. Gradients are accumulated over portions of (trajectory, step) pairs, so memory grows
    neither with the number of steps nor with that of trajectories. Where it runs out all the same, the round's
    learning starts again with smaller portions.

    Parameters
    ----------
    paths
        This process's latents from x_T to x_0, [clips, steps + 1, ...].
    prompt, advantage
        Of each of its clips, [clips].
    steps
        Which denoising steps to train.
    done
        Where it stands in the round; an interrupted one goes on from there.

    Returns
    -------
    clip_fraction, kl, gradient_norm (means over the updates) and ratio_error (of the first).

    Raises
    ------
    Interrupted
        If `progress` raised it in any of the processes; `done` says how far they all came.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if done is None:
        done = new_round(paths, steps, parameters, optimizer)
    share = len(paths) // ddpo.updates_per_epoch
    pairs = parallel.total([share])[0] * len(steps)

    def minibatch(number: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        clips = torch.arange(number * share, (number + 1) * share)
        step, clip = (x.flatten() for x in torch.meshgrid(torch.tensor(steps), clips, indexing="ij"))
        return [(clip[part], step[part]) for part in portions(len(clip), execution.update_batch)]

    def log_prob(clip: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        progress(len(clip))
        return policy.log_prob(prompt[clip], step, paths[clip, step], paths[clip, step + 1])

    def remember() -> None:
        later = [part for number in range(1, ddpo.updates_per_epoch) for part in minibatch(number)]
        for clip, step in minibatch(0)[:1] + later:
            done.old[clip, step - steps.start] = log_prob(clip, step).detach()

    def learn(sums: torch.Tensor) -> None:
        """Accumulates a minibatch's gradients; `sums` gets its clipped pairs, kl, and largest |ratio - 1|."""
        optimizer.zero_grad(set_to_none=True)
        for i, (clip, step) in enumerate(minibatch(done.updates)):
            new = log_prob(clip, step)
            if done.updates == 0 and i > 0:
                done.old[clip, step - steps.start] = new.detach()
            old = done.old[clip, step - steps.start]
            loss, ratio = surrogate(new, old, advantage[clip].to(new.device), ddpo.clip_range)
            (loss.sum() / pairs).backward()
            change = (ratio.detach() - 1).abs()
            sums[0] += (change > ddpo.clip_range).sum()
            sums[1] += 0.5 * (new.detach() - old).square().sum()
            sums[2] = torch.maximum(sums[2], change.max())

    def attempt() -> torch.Tensor | None:
        """One minibatch's sums, its gradients accumulated; None if memory ran out."""
        sums = torch.zeros(3, device=policy.generator.device)
        full = (done.updates == 0 and out_of_memory(remember)) or out_of_memory(learn, sums)
        return None if full else sums

    while done.updates < ddpo.updates_per_epoch:
        sums = parallel.together(attempt)
        if any(parallel.gather([sums is None])):
            execution.halve("update_batch")
            _put(done.start, parameters, optimizer)
            done.updates, done.sums, done.ratio_error = 0, [0.0, 0.0, 0.0], 0.0
            continue
        parallel.add_gradients(parameters)
        norm = nn.utils.clip_grad_norm_(parameters, ddpo.max_gradient_norm).item()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clipped, kl, error = sums.tolist()
        if done.updates == 0:
            done.ratio_error = error
        done.sums = [x + y for x, y in zip(done.sums, (clipped / pairs, kl / pairs, norm), strict=True)]
        done.updates += 1
    clip_fraction, kl = parallel.total(done.sums[:2])
    means = {"clip_fraction": clip_fraction, "kl": kl, "gradient_norm": done.sums[2]}
    ratio_error = max(parallel.gather([done.ratio_error]))
    return {key: x / ddpo.updates_per_epoch for key, x in means.items()} | {"ratio_error": ratio_error}


def new_round(
    paths: torch.Tensor, steps: range, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer
) -> Round:
    """A round of which nothing is done, with room for the trajectories of `paths`."""
    old = torch.zeros(len(paths), len(steps), device=parameters[0].device)
    return Round(paths, old, _state(parameters, optimizer))


def _state(parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {
        "parameters": [p.detach().cpu().clone() for p in parameters],
        "optimizer": deepcopy(optimizer.state_dict()),
    }


def _put(state: dict[str, Any], parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    with torch.no_grad():
        for parameter, saved in zip(parameters, state["parameters"], strict=True):
            parameter.copy_(saved)
    optimizer.load_state_dict(deepcopy(state["optimizer"]))  # it keeps the very tensors, and changes them in place


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

    After every round the run is saved to `checkpoint`, and where a signal ends it, within a round, too. A run that
    finds a checkpoint of the same params, seed and `weights` (any string that identifies them) goes on from it and ends
    with the same adapter, bit for bit; any other checkpoint is left unread.

    Raises
    ------
    Interrupted
        Once SIGTERM or SIGUSR1 has come and the checkpoint is made.
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
    execution.fit(generator, conditioning, params.duration, params.guidance_scale)

    # Each process samples the part of every minibatch that it will learn from.
    clips, share = ddpo.trajectories_per_epoch, ddpo.trajectories_per_epoch // ddpo.updates_per_epoch
    mine = [number * share + i for number in range(ddpo.updates_per_epoch) for i in parallel.own(share)]
    shape = (len(mine), params.steps + 1, *generator.latent_shape(params.duration))
    fingerprint = _fingerprint(params, reward.name, seed, weights)

    def fresh_round() -> Round:
        return new_round(torch.empty(shape), params.trained_steps, parameters, optimizer)

    progress, current = Progress(), fresh_round()
    saved = parallel.broadcast(_read(checkpoint, fingerprint) if parallel.is_main() else None)
    if saved:
        progress = _restore(saved, mine, current, parameters, optimizer, execution)

    def tick(count: int) -> None:
        bar.update(count)
        number = interruption.noted()
        if number:
            raise Interrupted(number)

    def collect(epoch: int) -> None:
        """Samples this process's trajectories."""
        prompt = torch.tensor([(epoch * clips + clip) % len(prompts) for clip in mine])
        while current.sampled < len(mine):
            part = slice(current.sampled, min(current.sampled + execution.sample_batch, len(mine)))
            current.paths[part] = sample(
                generator, conditioning, prompt[part], schedule,
                [random_generator(seed, "train", epoch, clip) for clip in mine[part]],
                params.duration, params.guidance_scale, execution, progress=tick,
            )  # fmt: skip
            current.sampled = part.stop

    def listen(epoch: int) -> tuple[torch.Tensor, int]:
        """The reward of every clip of the round, whichever process sampled it, and how many could not be judged."""
        heard = []

        def judge(part: slice) -> None:
            asked = [prompts[(epoch * clips + clip) % len(prompts)] for clip in mine[part]]
            waveforms = generator.decode(current.paths[part, -1], params.duration)
            judgement = reward.score(waveforms, generator.sample_rate, asked)
            tick(0)
            heard.extend(
                zip(mine[part], judgement.reward(params.reward_form).tolist(), judgement.predicted, strict=True)
            )

        parallel.together(lambda: execution.each("decode_batch", len(mine), judge))
        everything = sorted(parallel.gather(heard))
        return torch.tensor([reward for _, reward, _ in everything]), [p for *_, p in everything].count("")

    trained = len(mine) * len(params.trained_steps)
    first = trained // ddpo.updates_per_epoch
    twice = trained - first + min(first, execution.update_batch)  # what `update` computes a second time
    pairs = len(mine) * params.steps + trained + twice
    with (
        interruption.deferred(),
        tqdm(
            total=ddpo.epochs * pairs, initial=len(progress.epochs) * pairs + current.sampled * params.steps,
            unit="step", desc=f"train {reward.name}", disable=not parallel.is_main(),
        ) as bar,
    ):  # fmt: skip
        for epoch in range(len(progress.epochs), ddpo.epochs):
            index = torch.arange(epoch * clips, (epoch + 1) * clips) % len(prompts)
            history = deepcopy(progress.rewards)
            try:
                parallel.together(lambda epoch=epoch: collect(epoch))
                rewards, unjudged = listen(epoch)
                advantage = advantages(rewards, index, history, ddpo.advantage_window, ddpo.advantage_clip)
                learnt = update(
                    policy, optimizer, current.paths, index[mine], advantage[mine], params.trained_steps, ddpo,
                    execution, tick, current,
                )  # fmt: skip
            except Interrupted as error:
                _save(checkpoint, fingerprint, parameters, optimizer, execution, progress, mine, current)
                done = f"{checkpoint} holds {epoch} of {ddpo.epochs} rounds and what was done of the next"
                raise Interrupted(error.number, f"{done}; run again to go on") from None
            by_emotion = {
                emotion: rewards[[prompts[i].emotion == emotion for i in index]].mean().item()
                for emotion in params.prompts.emotions
                if any(prompts[i].emotion == emotion for i in index)
            }
            progress.rewards = history
            progress.epochs.append(
                Epoch(
                    epoch=epoch,
                    reward=rewards.mean().item(),
                    reward_std=rewards.std(correction=0).item(),
                    by_emotion=by_emotion,
                    unjudged=unjudged,
                    **learnt,
                )
            )
            bar.set_postfix_str(f"round {epoch + 1}/{ddpo.epochs}, reward {rewards.mean():.3f}")
            _save(checkpoint, fingerprint, parameters, optimizer, execution, progress)
            current = fresh_round()
    return progress.epochs


def _fingerprint(params: Params, reward: str, seed: int, weights: str) -> str:
    """Identifies a run: everything that its result depends on."""
    keys = ("model", "duration", "steps", "guidance_scale", "prompts", "reward_form", "ddpo", "lora", "compute")
    content = {key: value for key, value in params.model_dump(mode="json").items() if key in keys}
    text = json.dumps([content, reward, seed, weights, torch.__version__], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _save(path: Path, fingerprint, parameters, optimizer, execution, progress, mine=(), current=None) -> None:
    """Writes the checkpoint, of a round under way, too; process 0 does it, with what the others have done."""
    state = _state(parameters, optimizer) | {
        "fingerprint": fingerprint,
        "batches": {kind: min(parallel.gather([getattr(execution, kind)])) for kind in KINDS},
        "progress": asdict(progress),
    }
    if current is not None:
        old = current.old.cpu()
        done = [(clip, current.paths[i].clone(), old[i].clone()) for i, clip in enumerate(mine[: current.sampled])]
        state["round"] = {
            "clips": {clip: (path, old) for clip, path, old in parallel.gather_to_main(done)},
            "start": current.start,
            "updates": current.updates,
            "sums": [*parallel.total(current.sums[:2]), current.sums[2]],
            "ratio_error": max(parallel.gather([current.ratio_error])),
        }
    if parallel.is_main():
        with whole(path) as partial:
            torch.save(state, partial)


def _read(path: Path, fingerprint: str) -> dict[str, Any] | None:
    """The checkpoint of an interrupted run of this fingerprint, if there is one."""
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError):
        warnings.warn(f"{path}: the checkpoint cannot be read; training starts afresh", stacklevel=2)
        return None
    return state if state["fingerprint"] == fingerprint else None


def _restore(saved: dict[str, Any], mine: list[int], current: Round, parameters, optimizer, execution) -> Progress:
    """Puts everything back where a checkpoint found it; `current` gets what was done of the round under way."""
    _put(saved, parameters, optimizer)
    for kind, size in saved["batches"].items():
        setattr(execution, kind, size)
    current.start = _state(parameters, optimizer)
    if "round" in saved:
        done = saved["round"]
        for i, clip in enumerate(mine):
            if clip not in done["clips"]:
                break
            current.paths[i], current.old[i] = done["clips"][clip]
            current.sampled = i + 1
        current.start, current.updates, current.ratio_error = done["start"], done["updates"], done["ratio_error"]
        current.sums = done["sums"] if parallel.is_main() else [0.0, 0.0, done["sums"][2]]
    epochs = [Epoch(**e) for e in saved["progress"]["epochs"]]
    return Progress(epochs, saved["progress"]["rewards"])
