"""The reverse step as a Gaussian: it is the stock scheduler's, and its log-density is torch's."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler

from music_ddpo.core.errors import UserError
from music_ddpo.model.ddim import kl_divergence, log_probability, make_schedule, mean_and_std

AUDIOLDM2 = json.loads(
    (Path(__file__).parent / "real_layout" / "cvssp+audioldm2" / "scheduler" / "scheduler_config.json").read_text()
)
PAPER_STEPS = (9, 16, 19, 38, 200)
SHAPE = (2, 3, 4, 5)


def stock(**changes) -> DDIMScheduler:
    return DDIMScheduler.from_config(AUDIOLDM2 | changes)


def draw(count: int, seed: int = 0) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(SHAPE, generator=random) for _ in range(count)]


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    # The stock scheduler works in float32 and divides by sqrt(alpha), which is 0.04 at the noisiest step.
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", PAPER_STEPS)
def test_every_step_is_that_of_the_stock_scheduler(steps, eta):
    scheduler = stock()
    scheduler.set_timesteps(steps)
    schedule = make_schedule(stock(), steps, eta)
    latents, noise, fresh = draw(3)
    nothing = torch.zeros(SHAPE)

    for step, timestep in enumerate(scheduler.timesteps):
        mean, std = mean_and_std(schedule, step, latents, noise)

        close(mean, scheduler.step(noise, timestep, latents, eta=eta, variance_noise=nothing).prev_sample)
        close(mean + std * fresh, scheduler.step(noise, timestep, latents, eta=eta, variance_noise=fresh).prev_sample)


@pytest.mark.parametrize("steps", PAPER_STEPS)
def test_timesteps_are_those_of_the_stock_scheduler(steps):
    scheduler = stock()
    scheduler.set_timesteps(steps)
    schedule = make_schedule(stock(), steps, 1.0)

    assert len(schedule) == steps
    assert schedule.timesteps.tolist() == scheduler.timesteps.tolist()


@pytest.mark.parametrize("steps", PAPER_STEPS)
def test_every_step_of_the_stochastic_sampler_has_a_probability_even_the_last(steps):
    std = make_schedule(stock(), steps, 1.0).std

    assert torch.isfinite(std).all()
    assert (std > 1e-3).all()


def test_eta_scales_the_standard_deviation():
    one, half, none = (make_schedule(stock(), 19, eta).std for eta in (1.0, 0.5, 0.0))

    torch.testing.assert_close(half, one / 2)
    assert (none == 0).all()


def test_log_probability_is_the_normal_density_averaged_over_the_latents():
    sample, mean = draw(2)
    std = torch.tensor(0.03)

    expected = torch.distributions.Normal(mean.double(), std.double()).log_prob(sample.double()).mean((1, 2, 3))

    assert log_probability(sample, mean, std).shape == (2,)
    torch.testing.assert_close(log_probability(sample, mean, std).double(), expected, rtol=1e-5, atol=1e-5)


def test_the_divergence_of_two_steps_is_that_of_normals_averaged_over_the_latents():
    mean, other = draw(2)
    std = torch.tensor(0.03)

    ours, theirs = (torch.distributions.Normal(m.double(), std.double()) for m in (mean, other))
    expected = torch.distributions.kl_divergence(ours, theirs).mean((1, 2, 3))

    assert kl_divergence(mean, other, std).shape == (2,)
    torch.testing.assert_close(kl_divergence(mean, other, std).double(), expected, rtol=1e-5, atol=1e-5)
    assert (kl_divergence(mean, mean, std) == 0).all()


def test_half_precision_is_widened_before_anything_is_computed():
    schedule = make_schedule(stock(), 19, 1.0)
    latents, noise, sample = (x.bfloat16() for x in draw(3))

    mean, std = mean_and_std(schedule, 18, latents, noise)
    wide_mean, wide_std = mean_and_std(schedule, 18, latents.float(), noise.float())

    assert mean.dtype == std.dtype == log_probability(sample, mean, std).dtype == torch.float32
    assert torch.equal(mean, wide_mean)
    assert torch.equal(std, wide_std)
    assert torch.equal(log_probability(sample, mean, std), log_probability(sample.float(), wide_mean, wide_std))


def test_a_given_scheduler_is_left_as_it_was():
    scheduler = stock()
    scheduler.set_timesteps(7)
    before = scheduler.timesteps.clone()

    make_schedule(scheduler, 19, 1.0)

    assert scheduler.num_inference_steps == 7
    assert torch.equal(scheduler.timesteps, before)


@pytest.mark.parametrize("setting", [{"steps_offset": 0}, {"steps_offset": 0, "set_alpha_to_one": True}])
def test_a_deterministic_last_step_is_refused_only_where_it_would_be_trained(setting):
    schedule = make_schedule(stock(**setting), 19, 1.0)
    latents, noise = draw(2)
    mean, std = mean_and_std(schedule, 18, latents, noise)
    assert mean.isfinite().all()
    assert std == 0
    schedule.check_trainable(range(18))
    for trained in (range(19), range(18, 19)):
        with pytest.raises(UserError, match=r"^scheduler/scheduler_config\.json: with it step 19 of 19 .*'first 18'"):
            schedule.check_trainable(trained)
    make_schedule(stock(), 19, 1.0).check_trainable(range(19))


def test_more_steps_than_the_scheduler_has_are_refused():
    make_schedule(stock(), 999, 1.0)
    with pytest.raises(UserError, match=r"^steps: 1000 is too many.*at most 999"):
        make_schedule(stock(), 1000, 1.0)
    with pytest.raises(UserError, match=r"^steps: 19 is too many.*at most 9"):
        make_schedule(stock(num_train_timesteps=10), 19, 1.0)


@pytest.mark.parametrize(
    "setting",
    [{"prediction_type": "v_prediction"}, {"prediction_type": "sample"}, {"clip_sample": True}, {"thresholding": True}],
)
def test_a_scheduler_that_the_policy_does_not_model_is_refused(setting):
    with pytest.raises(UserError, match=r"scheduler_config\.json"):
        make_schedule(stock(**setting), 19, 1.0)
