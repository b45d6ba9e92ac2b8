"""DDPO on a policy small enough to check by hand: advantages, the clipped objective, its gradient, learning."""

import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import DDIMScheduler
from music_ddpo.ddim import make_schedule
from music_ddpo.ddpo import ETA, Policy, advantages, surrogate, update
from music_ddpo.errors import UserError
from music_ddpo.execution import Execution
from music_ddpo.generator import Conditioning
from music_ddpo.params import DDPOParams
from music_ddpo.randomness import generator as random_generator
from music_ddpo.rollout import sample
from torch import nn

from music_ddpo import params

ROOT = Path(__file__).resolve().parents[1]
SCHEDULER = DDIMScheduler(
    beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195,
    clip_sample=False, set_alpha_to_one=False, steps_offset=1,
)  # fmt: skip
LATENT = (1, 2, 2)
GUIDANCE = 1.0


class TinyGenerator:
    """What `Policy` and `sample` need of a Generator, with one linear layer for a UNet."""

    device = torch.device("cpu")

    def __init__(self, dtype: torch.dtype = torch.float32):
        self.dtype = dtype
        self.unet = nn.Linear(6, 4)
        random = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.unet.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=random))
        self.unet.to(dtype)
        self.seen: list[int] = []

    def latent_shape(self, duration: float) -> tuple[int, int, int]:
        return LATENT

    def predict_noise(self, latents, timesteps, conditioning, guidance_scale):
        self.seen += timesteps.tolist()
        return (
            self.unet(features(latents, timesteps, conditioning.generated[:, 1, 0]).to(self.dtype))
            .float()
            .view(-1, *LATENT)
        )


class UnsteadyGenerator(TinyGenerator):
    """Real kernels round differently with the batch's shape, and with gradients on: this one does so grossly."""

    def predict_noise(self, latents, timesteps, conditioning, guidance_scale):
        noise = super().predict_noise(latents, timesteps, conditioning, guidance_scale)
        return noise + 0.1 * len(latents) + 0.1 * torch.is_grad_enabled()


class GaussianGenerator(TinyGenerator):
    """The exact denoiser of data that is normal around a mean for each prompt: the means are what it learns."""

    DEVIATION = 0.5

    def __init__(self, prompts: int):
        super().__init__()
        self.unet = nn.Embedding(prompts, 1)
        nn.init.zeros_(self.unet.weight)

    def predict_noise(self, latents, timesteps, conditioning, guidance_scale):
        alpha = SCHEDULER.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        mean = self.unet(conditioning.generated[:, 1, 0].long()).view(-1, 1, 1, 1)
        return (1 - alpha).sqrt() * (latents - alpha.sqrt() * mean) / (alpha * self.DEVIATION**2 + 1 - alpha)


class Recorder(torch.optim.SGD):
    """An optimizer that changes nothing and keeps the gradients of each step."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=0.0)
        self.gradients: list[list[torch.Tensor]] = []

    def step(self, closure=None):
        self.gradients.append([p.grad.clone() for group in self.param_groups for p in group["params"]])


def features(latents, timesteps, prompt):
    time = timesteps.to(latents).view(-1, 1) / 1000
    return torch.cat([latents.flatten(1), time, prompt.to(latents).view(-1, 1)], 1)


def prompts_known(count: int) -> Conditioning:
    """A conditioning that says nothing but the number of the prompt."""
    index = torch.arange(count, dtype=torch.float32)
    return Conditioning(
        index.view(-1, 1, 1).expand(-1, 2, 1), torch.zeros(count, 2, 1), torch.ones(count, 2, 1, dtype=torch.long)
    )


def ddpo_params(**changes) -> DDPOParams:
    settings = {
        "epochs": 1, "trajectories_per_epoch": 8, "updates_per_epoch": 1, "timesteps": "all", "learning_rate": 0.01,
        "adam_betas": [0.9, 0.999], "weight_decay": 0.0, "clip_range": 1e-4, "advantage_clip": 5.0,
        "advantage_window": 16, "max_gradient_norm": 1e9,
    }  # fmt: skip
    return DDPOParams(**settings | changes)


def execution(update_batch: int = 8) -> Execution:
    return Execution(torch.device("cpu"), torch.float32, 8, update_batch, 8)


def round_of(generator, steps: int, clips: int = 8, prompts: int = 2, epoch: int = 0):
    """One round's policy, trajectories, and prompt of each."""
    conditioning = prompts_known(prompts)
    schedule = make_schedule(SCHEDULER, steps, ETA)
    prompt = torch.arange(clips) % prompts
    noise = [random_generator(0, "train", epoch, i) for i in range(clips)]
    paths = sample(generator, conditioning, prompt, schedule, noise, 1.0, GUIDANCE, execution())
    return Policy(generator, conditioning, schedule, GUIDANCE), paths, prompt


def some_advantages(clips: int = 8) -> torch.Tensor:
    return torch.randn(clips, generator=torch.Generator().manual_seed(1))


# Advantages


def test_advantages_are_normalised_within_each_prompt():
    rewards = np.array([1.0, 10.0, 2.0, 30.0, 6.0, 20.0])
    history = {}

    result = advantages(torch.tensor(rewards), torch.tensor([0, 1, 0, 1, 0, 1]), history, window=16, clip=5.0)

    expected = np.empty(6)
    for rows in (slice(0, None, 2), slice(1, None, 2)):
        expected[rows] = (rewards[rows] - rewards[rows].mean()) / rewards[rows].std()
    np.testing.assert_allclose(result, expected, rtol=1e-3)
    assert history == {0: [1.0, 2.0, 6.0], 1: [10.0, 30.0, 20.0]}


def test_advantages_are_clamped():
    rewards = torch.tensor([0.0] * 15 + [100.0])  # the last is sqrt(15) = 3.9 deviations above the mean
    same = torch.zeros(16, dtype=torch.long)

    assert advantages(rewards, same, {}, 16, 5.0)[-1] == pytest.approx(15**0.5, rel=1e-4)
    assert advantages(rewards, same, {}, 16, 1.5)[-1] == 1.5
    assert advantages(-rewards, same, {}, 16, 1.5)[-1] == -1.5


def test_the_window_forgets_all_but_the_latest_rewards_of_a_prompt():
    history = {0: [1000.0, 1.0, 2.0], 1: [7.0, 8.0]}

    result = advantages(torch.tensor([6.0]), torch.tensor([0]), history, window=3, clip=5.0)

    assert history == {0: [1.0, 2.0, 6.0], 1: [7.0, 8.0]}
    assert result.item() == pytest.approx((6 - 3) / np.std([1, 2, 6]), rel=1e-3)


def test_a_round_larger_than_the_window_counts_whole():
    rewards = torch.tensor([1.0, 2.0, 3.0, 6.0])

    result = advantages(rewards, torch.zeros(4, dtype=torch.long), {0: [50.0]}, window=2, clip=5.0)

    np.testing.assert_allclose(result, (rewards - 3) / np.std([1, 2, 3, 6]), rtol=1e-3)


def test_a_prompts_first_reward_is_measured_against_those_of_all_prompts():
    history = {0: [1.0, 2.0]}

    result = advantages(torch.tensor([6.0]), torch.tensor([1]), history, window=16, clip=5.0)

    assert result.item() == pytest.approx((6 - 3) / np.std([1, 2, 6]), rel=1e-3)
    assert history[1] == [6.0]


@pytest.mark.parametrize("clips", [1, 2, 7])
def test_equal_rewards_teach_nothing(clips):
    result = advantages(torch.full((clips,), 0.1), torch.zeros(clips, dtype=torch.long), {}, 16, 5.0)

    assert result.abs().max() < 1e-6  # and so it is not NaN


# The clipped objective


def test_the_surrogate_is_the_pessimistic_one_of_the_clipped_and_the_unclipped_objective():
    ratios = np.array([0.5, 0.95, 1.0, 1.05, 2.0])
    advantage = np.array([2.0, -3.0, 0.0])
    r, a = (x.ravel() for x in np.meshgrid(ratios, advantage))
    log_prob = torch.tensor(np.log(r)) - 1.25

    loss, ratio = surrogate(log_prob, torch.full_like(log_prob, -1.25), torch.tensor(a), 0.1)

    np.testing.assert_allclose(ratio, r)
    np.testing.assert_allclose(loss, np.maximum(-a * r, -a * np.clip(r, 0.9, 1.1)))


def test_the_surrogate_has_no_gradient_exactly_where_the_ratio_has_gone_far_enough():
    ratio = torch.tensor([0.5, 0.95, 1.0, 1.05, 2.0]).repeat(2)
    advantage = torch.tensor([2.0] * 5 + [-2.0] * 5)
    log_prob = ratio.log().requires_grad_()

    surrogate(log_prob, torch.zeros(10), advantage, 0.1)[0].sum().backward()

    gone = (advantage > 0) & (ratio > 1.1) | (advantage < 0) & (ratio < 0.9)
    assert gone.sum() == 2
    torch.testing.assert_close(log_prob.grad, torch.where(gone, torch.tensor(0.0), -advantage * ratio))


# The update


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("update_batch", [1, 3, 8, 64])
@pytest.mark.parametrize("generator", [TinyGenerator, UnsteadyGenerator])
def test_the_importance_ratio_starts_at_exactly_one(generator, update_batch, dtype):
    generator = generator(dtype)
    policy, paths, prompt = round_of(generator, steps=5)
    optimizer = Recorder(generator.unet.parameters())

    learnt = update(
        policy, optimizer, paths, prompt, some_advantages(), range(5), ddpo_params(), execution(update_batch)
    )

    assert learnt["ratio_error"] == 0.0
    assert learnt["clip_fraction"] == 0.0
    assert learnt["kl"] == 0.0
    assert learnt["gradient_norm"] > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("update_batch", [1, 3, 8, 64])
@pytest.mark.parametrize("generator", [TinyGenerator, UnsteadyGenerator])
def test_every_ratio_of_a_round_is_exactly_one_while_the_weights_stay(generator, update_batch, dtype):
    generator = generator(dtype)
    policy, paths, prompt = round_of(generator, steps=5)
    optimizer = Recorder(generator.unet.parameters())

    learnt = update(
        policy, optimizer, paths, prompt, some_advantages(), range(1, 5),
        ddpo_params(updates_per_epoch=4, clip_range=1e-12), execution(update_batch),
    )  # fmt: skip

    assert len(optimizer.gradients) == 4
    assert learnt["ratio_error"] == 0.0
    assert learnt["clip_fraction"] == 0.0
    assert learnt["kl"] == 0.0


def test_later_updates_of_a_round_are_measured_against_the_policy_that_sampled():
    generator = TinyGenerator()
    policy, paths, prompt = round_of(generator, steps=5)
    optimizer = torch.optim.SGD(generator.unet.parameters(), lr=0.5)

    learnt = update(
        policy, optimizer, paths, prompt, some_advantages(), range(5), ddpo_params(updates_per_epoch=2), execution()
    )

    assert learnt["ratio_error"] == 0.0  # of the first update
    assert 0.25 < learnt["clip_fraction"] <= 0.5  # of the second, whose share is one half
    assert learnt["kl"] > 0


@pytest.mark.parametrize("trained", [range(6), range(4, 6)])
@pytest.mark.parametrize("update_batch", [3, 64])
def test_the_gradient_is_the_score_function_estimate(trained, update_batch):
    steps = 6
    generator = TinyGenerator()
    policy, paths, prompt = round_of(generator, steps)
    advantage = some_advantages()
    optimizer = Recorder(generator.unet.parameters())

    update(policy, optimizer, paths, prompt, advantage, trained, ddpo_params(), execution(update_batch))

    # The same in float64, one step of all clips at a time, with the stock scheduler's own mean and variance.
    stock = DDIMScheduler.from_config(SCHEDULER.config)
    stock.set_timesteps(steps)
    parameters = [p.detach().double().requires_grad_() for p in generator.unet.parameters()]
    score = torch.zeros((), dtype=torch.float64)
    for step in trained:
        t = int(stock.timesteps[step])
        x_t, x_prev = paths[:, step].double(), paths[:, step + 1].double()
        noise = nn.functional.linear(features(x_t, torch.full((8,), t), prompt), *parameters).view(-1, *LATENT)
        mean = stock.step(noise, t, x_t, eta=1.0, variance_noise=torch.zeros_like(x_t)).prev_sample
        a = stock.alphas_cumprod[t].double()
        a_prev = stock.alphas_cumprod[max(t - 1000 // steps, 0)].double()
        std = ((1 - a_prev) / (1 - a) * (1 - a / a_prev)).sqrt()
        log_p = torch.distributions.Normal(mean, std).log_prob(x_prev).mean((1, 2, 3))
        score = score + (advantage * log_p).sum()
    expected = torch.autograd.grad(-score / (8 * len(trained)), parameters)

    assert len(optimizer.gradients) == 1
    for actual, wanted in zip(optimizer.gradients[0], expected, strict=True):
        torch.testing.assert_close(actual.double(), wanted, rtol=1e-3, atol=1e-4 * wanted.abs().max().item())


def test_each_update_of_a_round_learns_from_its_own_share_of_the_trajectories():
    generator = TinyGenerator()
    policy, paths, prompt = round_of(generator, steps=4)
    advantage = some_advantages()
    advantage[4:] = 0  # nothing to learn from the second half

    optimizer = Recorder(generator.unet.parameters())
    update(policy, optimizer, paths, prompt, advantage, range(4), ddpo_params(updates_per_epoch=2), execution())

    first, second = (sum(g.abs().sum() for g in gradients) for gradients in optimizer.gradients)
    assert first > 0
    assert second == 0


def test_the_gradients_norm_is_clipped():
    generator = TinyGenerator()
    policy, paths, prompt = round_of(generator, steps=4)
    optimizer = Recorder(generator.unet.parameters())

    learnt = update(
        policy, optimizer, paths, prompt, some_advantages(), range(4), ddpo_params(max_gradient_norm=0.01), execution()
    )

    norm = torch.cat([g.flatten() for g in optimizer.gradients[0]]).norm().item()
    assert norm == pytest.approx(0.01, rel=1e-3)
    assert learnt["gradient_norm"] > 0.02  # what it was before


class FullMemory:
    """Mixed into a generator: memory runs out in the calls whose numbers are given, counted from 0."""

    runs_out: frozenset[int] = frozenset()
    calls = 0

    def predict_noise(self, *arguments):
        self.calls += 1
        if self.calls - 1 in self.runs_out:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return super().predict_noise(*arguments)


def two_rounds(generator: TinyGenerator, update_batch: int, runs_out: tuple[int, ...], halvings: int):
    """The weights after two rounds of four updates, in the second of which memory runs out, and what it learnt."""
    optimizer = torch.optim.AdamW(generator.unet.parameters(), lr=0.05)
    settings = ddpo_params(updates_per_epoch=4)
    policy, paths, prompt = round_of(generator, steps=6)
    update(policy, optimizer, paths, prompt, some_advantages(), range(6), settings, execution(4))
    policy, paths, prompt = round_of(generator, steps=6, epoch=1)
    chosen = execution(update_batch)
    generator.calls, generator.runs_out = 0, frozenset(runs_out)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        learnt = update(policy, optimizer, paths, prompt, some_advantages(), range(6), settings, chosen)
    assert len(warned) == halvings
    for i, warning in enumerate(warned):
        assert f"compute.update_batch {update_batch >> i + 1} instead of {update_batch >> i}" in str(warning.message)
    assert chosen.update_batch == update_batch >> halvings
    assert learnt["ratio_error"] == 0.0
    assert learnt["clip_fraction"] > 0
    return nn.utils.parameters_to_vector(generator.unet.parameters()).detach(), learnt


# A minibatch is 2 clips of 6 steps: 1, 2, 3 or 6 portions. So are the calls: 1 of the first minibatch and all of the
# three others remembered, then all of the four.
@pytest.mark.parametrize(
    ("update_batch", "runs_out"),
    [
        (8, [0]),  # nothing is done yet
        (8, [6]),  # all is remembered but the last portion
        (8, [8]),  # within the first minibatch
        (8, [9]),  # one optimizer step is done
        (8, [14]),  # the last call of all
        (16, [0, 1]),
        (16, [5, 6]),
        (16, [5, 6 + 7 + 2]),  # each time an optimizer step is done
    ],
)
@pytest.mark.parametrize("unsteady", [False, True])
def test_a_round_in_which_memory_runs_out_learns_as_with_smaller_portions(unsteady, update_batch, runs_out):
    generator = type("Full", (FullMemory, UnsteadyGenerator if unsteady else TinyGenerator), {})
    halvings = len(runs_out)
    weights, learnt = two_rounds(generator(), update_batch, tuple(runs_out), halvings)
    expected_weights, expected = two_rounds(generator(), update_batch >> halvings, (), 0)
    assert torch.equal(weights, expected_weights)
    assert learnt == expected


def test_memory_that_is_full_with_one_pair_gives_an_error_that_names_the_key():
    generator = type("Full", (FullMemory, TinyGenerator), {})()
    policy, paths, prompt = round_of(generator, steps=2)
    generator.calls, generator.runs_out = 0, frozenset([0, 1])
    optimizer = Recorder(generator.unet.parameters())
    with pytest.warns(UserWarning, match="going on"), pytest.raises(UserError, match=r"^compute\.update_batch: "):
        update(policy, optimizer, paths, prompt, some_advantages(), range(2), ddpo_params(), execution(2))


def test_another_error_is_not_taken_for_full_memory():
    generator = TinyGenerator()
    policy, paths, prompt = round_of(generator, steps=2)
    optimizer = Recorder(generator.unet.parameters())
    with pytest.raises(RuntimeError):
        update(policy, optimizer, paths[..., :1], prompt, some_advantages(), range(2), ddpo_params(), execution(2))


def test_the_micro_batch_does_not_change_what_is_learnt():
    def learnt(update_batch: int) -> torch.Tensor:
        generator = TinyGenerator()
        policy, paths, prompt = round_of(generator, steps=9)
        optimizer = torch.optim.AdamW(generator.unet.parameters(), lr=0.01)
        update(
            policy, optimizer, paths, prompt, some_advantages(), range(9), ddpo_params(updates_per_epoch=2),
            execution(update_batch),
        )  # fmt: skip
        return nn.utils.parameters_to_vector(generator.unet.parameters()).detach()

    start = nn.utils.parameters_to_vector(TinyGenerator().unet.parameters()).detach()
    assert (learnt(1) - start).abs().max() > 1e-3
    torch.testing.assert_close(learnt(1), learnt(8), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("timesteps", "expected"), [("first 2", [0, 1]), ("last 1", [5]), ("all", list(range(6)))])
def test_only_the_chosen_timesteps_are_trained(timesteps, expected):
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["steps"] = 6
    content["ddpo"]["timesteps"] = timesteps
    trained = params.parse(content).trained_steps
    generator = TinyGenerator()
    policy, paths, prompt = round_of(generator, steps=6)
    generator.seen.clear()

    optimizer = Recorder(generator.unet.parameters())
    update(policy, optimizer, paths, prompt, some_advantages(), trained, ddpo_params(), execution(3))

    noisiest_first = sorted(policy.schedule.timesteps.tolist(), reverse=True)
    # Each of the 8 clips once, but for the first portion of 3: it is computed twice, to measure the ratio's error.
    passes = {noisiest_first[step]: 8 for step in expected}
    passes[noisiest_first[expected[0]]] += 3
    assert Counter(generator.seen) == passes


def test_rewards_rise_towards_the_known_optimum():
    target = torch.tensor([1.0, -1.0])  # of each prompt
    generator = GaussianGenerator(prompts=2)
    settings = ddpo_params(updates_per_epoch=2)
    optimizer = torch.optim.AdamW(generator.unet.parameters(), lr=0.05, weight_decay=0.0)
    history, curve = {}, []

    for epoch in range(80):
        policy, paths, prompt = round_of(generator, steps=5, clips=16, epoch=epoch)
        rewards = -((paths[:, -1].mean((1, 2, 3)) - target[prompt]) ** 2)
        advantage = advantages(rewards, prompt, history, settings.advantage_window, settings.advantage_clip)
        update(policy, optimizer, paths, prompt, advantage, range(5), settings, execution(32))
        curve.append(rewards.mean().item())

    assert np.mean(curve[:5]) < -0.6
    assert np.mean(curve[-5:]) > -0.1
    torch.testing.assert_close(generator.unet.weight.detach().flatten(), target, rtol=0, atol=0.2)
