"""DDPO on a policy small enough to check by hand: advantages, the clipped objective, its gradient, learning."""

from collections import Counter
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn

from helpers.project import small
from music_ddpo.core.params import DDPOParams
from music_ddpo.core.randomness import random_generator
from music_ddpo.model.audioldm2 import Conditioning
from music_ddpo.model.policy import Policy, Trajectories
from music_ddpo.training.ddpo import advantages, surrogate, update

SCHEDULER = DDIMScheduler(
    beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195,
    clip_sample=False, set_alpha_to_one=False, steps_offset=1,
)  # fmt: skip
LATENT = (1, 2, 2)
GUIDANCE = 1.0


class TinyGenerator:
    """What `Policy` needs of a generator, with one linear layer as the UNet."""

    device = torch.device("cpu")
    scheduler = SCHEDULER

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

    def encode(self, prompts, negative) -> Conditioning:
        """A conditioning that contains only the number of the prompt."""
        index = torch.arange(len(prompts), dtype=torch.float32)
        zeros = torch.zeros(len(prompts), 2, 1)
        return Conditioning(index.view(-1, 1, 1).expand(-1, 2, 1), zeros, zeros.long())

    def free_text_encoders(self) -> None:
        pass

    def predict_noise(self, latents, timesteps, conditioning, guidance_scale):
        self.seen += timesteps.tolist()
        return (
            self.unet(features(latents, timesteps, conditioning.generated[:, 1, 0]).to(self.dtype))
            .float()
            .view(-1, *LATENT)
        )


class BatchDependentGenerator(TinyGenerator):
    """Real kernels round differently with the batch's size: this one does so grossly."""

    def predict_noise(self, latents, timesteps, conditioning, guidance_scale):
        noise = super().predict_noise(latents, timesteps, conditioning, guidance_scale)
        return noise + 0.1 * len(latents)


class GradientDependentGenerator(TinyGenerator):
    """A device that rounds differently with gradients: this one does so grossly."""

    def predict_noise(self, latents, timesteps, conditioning, guidance_scale):
        noise = super().predict_noise(latents, timesteps, conditioning, guidance_scale)
        return noise + 0.1 * torch.is_grad_enabled()


class Adapted(nn.Linear):
    """A linear layer with an adapter, a second matrix that is added to its own; with the switch of `peft`."""

    def __init__(self):
        super().__init__(6, 4)
        self.adapter = nn.Parameter(torch.zeros(4, 6))
        self.enabled = True

    def forward(self, x):
        return super().forward(x) + self.enabled * nn.functional.linear(x, self.adapter)

    @contextmanager
    def disable_adapter(self):
        self.enabled = False
        yield
        self.enabled = True


class AdaptedGenerator(TinyGenerator):
    """Its UNet has an adapter that changes its output."""

    def __init__(self):
        super().__init__()
        base = self.unet.state_dict()
        self.unet = Adapted()
        self.unet.load_state_dict(base, strict=False)
        self.unet.weight.requires_grad_(False)
        self.unet.bias.requires_grad_(False)
        with torch.no_grad():
            self.unet.adapter.copy_(0.1 * torch.randn(4, 6, generator=torch.Generator().manual_seed(2)))


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


def ddpo_params(**changes) -> DDPOParams:
    settings = {
        "rounds": 1, "trajectories_per_round": 8, "updates_per_round": 1, "timesteps": "all", "learning_rate": 0.01,
        "adam_betas": [0.9, 0.999], "weight_decay": 0.0, "clip_range": 1e-4, "advantage_clip": 5.0,
        "advantage_window": 16, "max_gradient_norm": 1e9, "advantages": "window", "kl": 0.0,
        "advantage_minimum": 2,
    }  # fmt: skip
    return DDPOParams(**settings | changes)


def round_of(generator, steps: int, clips: int = 8, prompts: int = 2, round: int = 0, batch: int = 8, updates: int = 1):
    """A policy, and the trajectories of one round: for each update a list of groups of at most `batch` clips."""
    policy = Policy(generator, [""] * prompts, "", steps, 1.0, GUIDANCE)
    prompt = torch.arange(clips) % prompts
    share = clips // updates
    edges = [e for u in range(updates) for e in range(u * share, (u + 1) * share, batch)] + [clips]
    groups = [
        policy.sample(prompt[a:b], [random_generator(0, "train", round, i) for i in range(a, b)])
        for a, b in pairwise(edges)
    ]
    each = len(groups) // updates
    return policy, [groups[u * each : (u + 1) * each] for u in range(updates)]


def with_advantages(groups: list[list[Trajectories]], advantage: torch.Tensor):
    """The minibatches that `update` takes."""
    parts = iter(advantage.split([len(g.prompt) for groups_ in groups for g in groups_]))
    return [[(g, next(parts)) for g in groups_] for groups_ in groups]


def learn(policy, optimizer, groups, advantage, steps, **ddpo):
    """Updates with the same steps for each minibatch."""
    return update(policy, optimizer, with_advantages(groups, advantage), [steps] * len(groups), ddpo_params(**ddpo))


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


@pytest.mark.parametrize(("minimum", "own"), [(2, True), (3, True), (4, False)])
def test_a_prompt_with_fewer_rewards_than_the_minimum_is_measured_against_those_of_the_round(minimum, own):
    history = {0: [50.0] * 8, 1: [1.0]}
    rewards, prompt = torch.tensor([6.0, 2.0, 4.0, 9.0]), torch.tensor([1, 1, 2, 0])

    result = advantages(rewards, prompt, history, window=16, clip=5.0, minimum=minimum)

    baseline = np.array([1, 6, 2] if own else [6, 2, 4, 9])
    assert result[0].item() == pytest.approx((6 - baseline.mean()) / baseline.std(), rel=1e-3)
    assert result[2].item() == pytest.approx((4 - np.mean([6, 2, 4, 9])) / np.std([6, 2, 4, 9]), rel=1e-3)
    assert history[1] == [1.0, 6.0, 2.0]


def test_a_single_first_reward_has_nothing_to_be_compared_with():
    assert advantages(torch.tensor([6.0]), torch.tensor([1]), {0: [1.0, 2.0]}, window=16, clip=5.0) == 0


def test_without_a_history_an_advantage_is_relative_to_the_prompts_clips_of_the_round():
    rewards = torch.randn(12, generator=torch.Generator().manual_seed(3))
    prompt = torch.tensor([0, 1, 2] * 4)

    result = advantages(rewards, prompt, {}, window=2, clip=5.0)

    for index in range(3):
        own = rewards[prompt == index].double().numpy()
        np.testing.assert_allclose(result[prompt == index], (own - own.mean()) / own.std(), rtol=1e-3)


@pytest.mark.parametrize("clips", [1, 2, 7])
def test_equal_rewards_teach_nothing(clips):
    result = advantages(torch.full((clips,), 0.1), torch.zeros(clips, dtype=torch.long), {}, 16, 5.0)

    assert result.abs().max() < 1e-6  # and so it is not NaN


# The clipped objective


def test_the_surrogate_is_the_pessimistic_one_of_the_clipped_and_the_unclipped_objective():
    ratios = np.array([0.5, 0.95, 1.0, 1.05, 2.0])
    advantage = np.array([2.0, -3.0, 0.0])
    r, a = (x.ravel() for x in np.meshgrid(ratios, advantage))

    loss = surrogate(torch.tensor(r), torch.tensor(a), 0.1)

    np.testing.assert_allclose(loss, np.maximum(-a * r, -a * np.clip(r, 0.9, 1.1)))


def test_the_surrogate_has_no_gradient_exactly_where_the_ratio_has_gone_far_enough():
    ratio = torch.tensor([0.5, 0.95, 1.0, 1.05, 2.0]).repeat(2)
    advantage = torch.tensor([2.0] * 5 + [-2.0] * 5)
    log_prob = ratio.log().requires_grad_()

    surrogate(log_prob.exp(), advantage, 0.1).sum().backward()

    gone = (advantage > 0) & (ratio > 1.1) | (advantage < 0) & (ratio < 0.9)
    assert gone.sum() == 2
    torch.testing.assert_close(log_prob.grad, torch.where(gone, torch.tensor(0.0), -advantage * ratio))


# The update


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("generator", [TinyGenerator, BatchDependentGenerator])
def test_every_ratio_of_a_round_is_exactly_one_while_the_weights_stay(generator, batch, dtype):
    generator = generator(dtype)
    policy, groups = round_of(generator, steps=5, batch=batch, updates=2)
    optimizer = Recorder(generator.unet.parameters())

    learnt = learn(policy, optimizer, groups, some_advantages(), range(1, 5), updates_per_round=2, clip_range=1e-12)

    assert len(optimizer.gradients) == 2
    assert (learnt.ratio_error, learnt.clip_fraction, learnt.kl) == (0.0, 0.0, 0.0)
    assert learnt.gradient_norm > 0


def test_where_a_device_rounds_differently_with_gradients_it_is_said_once_and_the_ratio_still_starts_at_one():
    generator = GradientDependentGenerator()
    policy, groups = round_of(generator, steps=5, batch=3, updates=2)
    optimizer = Recorder(generator.unet.parameters())

    with pytest.warns(UserWarning, match="rounds differently with gradients") as warned:
        learnt = learn(policy, optimizer, groups, some_advantages(), range(5), updates_per_round=2)

    assert len(warned) == 1
    assert (learnt.ratio_error, learnt.clip_fraction, learnt.kl) == (0.0, 0.0, 0.0)
    assert learnt.gradient_norm > 0


def test_later_updates_of_a_round_are_measured_against_the_policy_that_sampled():
    generator = TinyGenerator()
    policy, groups = round_of(generator, steps=5, updates=2)
    optimizer = torch.optim.SGD(generator.unet.parameters(), lr=0.5)

    learnt = learn(policy, optimizer, groups, some_advantages(), range(5), updates_per_round=2)

    assert learnt.ratio_error == 0.0  # of the first update
    assert 0.25 < learnt.clip_fraction <= 0.5  # of the second, whose share is one half
    assert learnt.kl > 0


@pytest.mark.parametrize("trained", [range(6), range(4, 6)])
@pytest.mark.parametrize("batch", [3, 8])
def test_the_gradient_is_the_score_function_estimate(trained, batch):
    steps = 6
    generator = TinyGenerator()
    policy, groups = round_of(generator, steps, batch=batch)
    advantage = some_advantages()
    optimizer = Recorder(generator.unet.parameters())

    learn(policy, optimizer, groups, advantage, trained)

    # The same in float64, one step of all clips at a time, with the stock scheduler's own mean and variance.
    stock = DDIMScheduler.from_config(SCHEDULER.config)
    stock.set_timesteps(steps)
    x, prompt = (torch.cat([getattr(g, name) for g in groups[0]]) for name in ("x", "prompt"))
    parameters = [p.detach().double().requires_grad_() for p in generator.unet.parameters()]
    score = torch.zeros((), dtype=torch.float64)
    for step in trained:
        t = int(stock.timesteps[step])
        x_t, x_prev = x[:, step].double(), x[:, step + 1].double()
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


# The KL penalty


def divergence_from_base(policy: Policy, groups, adapter: torch.Tensor, trained: range) -> float:
    """The mean over pairs in float64, by torch's own distributions and the stock scheduler's means."""
    stock = DDIMScheduler.from_config(SCHEDULER.config)
    stock.set_timesteps(len(policy.schedule))
    x, prompt = (torch.cat([getattr(g, name) for g in groups[0]]) for name in ("x", "prompt"))
    weight, bias = (p.double() for p in (policy.generator.unet.weight, policy.generator.unet.bias))
    total = 0.0
    for step in trained:
        t, x_t = int(stock.timesteps[step]), x[:, step].double()
        normals = []
        for matrix in (weight + adapter, weight):
            noise = nn.functional.linear(features(x_t, torch.full((8,), t), prompt), matrix, bias).view(-1, *LATENT)
            mean = stock.step(noise, t, x_t, eta=1.0, variance_noise=torch.zeros_like(x_t)).prev_sample
            normals.append(torch.distributions.Normal(mean, policy.schedule.std[step]))
        total += torch.distributions.kl_divergence(*normals).mean((1, 2, 3)).mean().item()
    return total / len(trained)


@pytest.mark.parametrize("batch", [3, 8])
def test_the_penalty_is_the_exact_divergence_from_the_base_and_its_gradient_that_of_finite_differences(batch):
    generator = AdaptedGenerator()
    policy, groups = round_of(generator, steps=5, batch=batch)
    optimizer = Recorder([generator.unet.adapter])
    trained, start = range(1, 5), generator.unet.adapter.detach().double()

    nothing = torch.zeros(8)  # advantages of 0, so the penalty is all that is minimised
    learnt = learn(policy, optimizer, groups, nothing, trained, kl=3.0)

    def penalty(adapter: torch.Tensor) -> float:
        return divergence_from_base(policy, groups, adapter, trained)

    expected = torch.empty(4, 6, dtype=torch.float64)
    for i in range(4):
        for j in range(6):
            nudge = torch.zeros(4, 6, dtype=torch.float64)
            nudge[i, j] = 1e-4
            expected[i, j] = 3.0 * (penalty(start + nudge) - penalty(start - nudge)) / 2e-4
    assert learnt.kl_to_base == pytest.approx(penalty(start), rel=1e-4)
    assert learnt.kl_to_base > 1e-3
    (gradient,) = optimizer.gradients[0]
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


def test_the_penalty_is_added_to_the_surrogate_and_the_ratio_still_starts_at_one():
    gradients = {}
    for kl, advantage in ((0.0, some_advantages()), (2.0, torch.zeros(8)), (2.0, some_advantages())):
        generator = AdaptedGenerator()
        policy, groups = round_of(generator, steps=5, batch=3)
        optimizer = Recorder([generator.unet.adapter])
        learnt = learn(policy, optimizer, groups, advantage, range(5), kl=kl)
        assert (learnt.ratio_error, learnt.clip_fraction) == (0.0, 0.0)
        assert (learnt.kl_to_base > 0) == (kl > 0)
        gradients[kl, bool(advantage.any())] = optimizer.gradients[0][0]

    together = gradients[2.0, True]
    torch.testing.assert_close(together, gradients[0.0, True] + gradients[2.0, False], rtol=1e-4, atol=1e-6)
    assert (together - gradients[0.0, True]).abs().max() > 1e-3


@pytest.mark.parametrize(("kl", "forwards"), [(0.0, 1), (0.5, 2)])
def test_only_with_the_penalty_each_pair_is_computed_once_more(kl, forwards):
    generator = AdaptedGenerator()
    policy, groups = round_of(generator, steps=4, batch=3)
    generator.seen.clear()

    optimizer = Recorder([generator.unet.adapter])
    learn(policy, optimizer, groups, some_advantages(), range(4), kl=kl)

    assert set(Counter(generator.seen).values()) == {8 * forwards}


def test_each_update_of_a_round_learns_from_its_own_share_of_the_trajectories():
    generator = TinyGenerator()
    policy, groups = round_of(generator, steps=4, updates=2)
    advantage = some_advantages()
    advantage[4:] = 0  # nothing to learn from the second half
    optimizer = Recorder(generator.unet.parameters())

    learn(policy, optimizer, groups, advantage, range(4), updates_per_round=2)

    first, second = (sum(g.abs().sum() for g in gradients) for gradients in optimizer.gradients)
    assert first > 0
    assert second == 0


def test_the_gradients_norm_is_clipped():
    generator = TinyGenerator()
    policy, groups = round_of(generator, steps=4)
    optimizer = Recorder(generator.unet.parameters())

    learnt = learn(policy, optimizer, groups, some_advantages(), range(4), max_gradient_norm=0.01)

    norm = torch.cat([g.flatten() for g in optimizer.gradients[0]]).norm().item()
    assert norm == pytest.approx(0.01, rel=1e-3)
    assert learnt.gradient_norm > 0.02  # before clipping


def test_the_batch_does_not_change_what_is_learnt():
    def learnt(batch: int) -> torch.Tensor:
        generator = TinyGenerator()
        policy, groups = round_of(generator, steps=9, batch=batch, updates=2)
        optimizer = torch.optim.AdamW(generator.unet.parameters(), lr=0.01)
        learn(policy, optimizer, groups, some_advantages(), range(9), updates_per_round=2)
        return nn.utils.parameters_to_vector(generator.unet.parameters()).detach()

    start = nn.utils.parameters_to_vector(TinyGenerator().unet.parameters()).detach()
    assert (learnt(1) - start).abs().max() > 1e-3
    torch.testing.assert_close(learnt(1), learnt(4), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("timesteps", "expected"), [("first 2", [0, 1]), ("last 1", [5]), ("all", list(range(6)))])
def test_only_the_chosen_timesteps_are_trained_and_each_is_computed_once(timesteps, expected):
    trained = small(steps=6, ddpo__timesteps=timesteps).trained_steps
    generator = TinyGenerator()
    policy, groups = round_of(generator, steps=6, batch=3)
    generator.seen.clear()

    optimizer = Recorder(generator.unet.parameters())
    learn(policy, optimizer, groups, some_advantages(), trained)

    noisiest_first = sorted(policy.schedule.timesteps.tolist(), reverse=True)
    assert Counter(generator.seen) == {noisiest_first[step]: 8 for step in expected}


def test_rewards_rise_towards_the_known_optimum():
    target = torch.tensor([1.0, -1.0])  # of each prompt
    generator = GaussianGenerator(prompts=2)
    settings = ddpo_params(updates_per_round=2, trajectories_per_round=16)
    optimizer = torch.optim.AdamW(generator.unet.parameters(), lr=0.05, weight_decay=0.0)
    history, curve = {}, []

    for round in range(80):
        policy, groups = round_of(generator, steps=5, clips=16, round=round, updates=2)
        x_0, prompt = (torch.cat([f(g) for u in groups for g in u]) for f in (lambda g: g.x[:, -1], lambda g: g.prompt))
        rewards = -((x_0.mean((1, 2, 3)) - target[prompt]) ** 2)
        advantage = advantages(rewards, prompt, history, settings.advantage_window, settings.advantage_clip)
        update(policy, optimizer, with_advantages(groups, advantage), [range(5)] * len(groups), settings)
        curve.append(rewards.mean().item())

    assert np.mean(curve[:5]) < -0.6
    assert np.mean(curve[-5:]) > -0.1
    torch.testing.assert_close(generator.unet.weight.detach().flatten(), target, rtol=0, atol=0.2)
