"""AudioLDM 2 as a policy, against the stock pipeline, on the embedded models."""

from __future__ import annotations

import pytest
import torch
from diffusers import AudioLDM2Pipeline

from helpers.project import LORA, MINI, NEGATIVE, PROMPT, denoise, load_generator
from music_ddpo.core.randomness import random_generator
from music_ddpo.model import adapter
from music_ddpo.model.policy import Policy

LONG_NEGATIVE = ", ".join([NEGATIVE] * 4)


@pytest.fixture(scope="module")
def generator():
    return load_generator()


@pytest.fixture(scope="module")
def stock() -> AudioLDM2Pipeline:
    pipe = AudioLDM2Pipeline.from_pretrained(MINI / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("guidance", [3.5, 1.0])
@pytest.mark.parametrize("duration", [5, 10])
def test_without_noise_the_sampler_makes_the_stock_pipelines_waveform(generator, stock, guidance, duration):
    latents = torch.randn(1, *generator.latent_shape(duration), generator=random_generator(0, "test", 0, 0))
    expected = stock(
        PROMPT, negative_prompt=NEGATIVE, audio_length_in_s=duration, num_inference_steps=9,
        guidance_scale=guidance, latents=latents, output_type="pt",
    ).audios  # fmt: skip
    ours = denoise(generator, [PROMPT], steps=9, guidance=guidance, duration=duration)
    waveform = generator.decode(ours, duration)
    assert waveform.shape == expected.shape == (1, duration * generator.sample_rate)
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(waveform, expected, atol=1e-5, rtol=0)


def test_prompts_are_encoded_as_the_stock_pipeline_encodes_them(generator, stock):
    ours = generator.encode([PROMPT], NEGATIVE)
    states, mask, generated = stock.encode_prompt([PROMPT], "cpu", 1, True, negative_prompt=[NEGATIVE])
    torch.testing.assert_close(ours.states[0], states)
    torch.testing.assert_close(ours.generated[0], generated)
    assert torch.equal(ours.mask[0], mask)


def test_a_longer_negative_prompt_is_not_cut(generator, stock):
    tokens = len(stock.tokenizer_2(LONG_NEGATIVE).input_ids)
    assert tokens > len(stock.tokenizer_2(PROMPT).input_ids)
    ours = generator.encode([PROMPT], LONG_NEGATIVE)
    assert ours.mask.sum(-1).tolist() == [[tokens, len(stock.tokenizer_2(PROMPT).input_ids)]]
    states, _, generated = stock.encode_prompt([LONG_NEGATIVE], "cpu", 1, False)
    torch.testing.assert_close(ours.states[0, 0], states[0])
    torch.testing.assert_close(ours.generated[0, 0], generated[0])


def test_padding_of_the_conditioning_does_not_change_the_predicted_noise(generator):
    latents = torch.randn(1, *generator.latent_shape(5), generator=random_generator(0, "padding"))
    alone = generator.encode([PROMPT], NEGATIVE)
    longer = PROMPT + ", " + PROMPT
    beside = generator.encode([PROMPT, longer], NEGATIVE)
    assert beside.states.shape[2] > alone.states.shape[2]
    step, first = torch.tensor([500]), torch.tensor([0])
    with torch.no_grad():
        a, b = (generator.predict_noise(latents, step, c.rows(first), 3.5) for c in (alone, beside))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_sampling_one_at_a_time_and_eight_at_once_gives_the_same_clips(generator):
    prompts = [PROMPT.replace("angry", e) for e in ("happy", "angry", "sad", "tender")] * 2
    one, eight = (denoise(generator, prompts, eta=1.0, batch=b) for b in (1, 8))
    torch.testing.assert_close(one, eight, atol=1e-4, rtol=1e-4)


def test_the_same_seed_gives_the_same_bits_and_another_purpose_gives_others(generator):
    first, second, other = (denoise(generator, [PROMPT], eta=1.0, purpose=p) for p in ("a", "a", "b"))
    assert torch.equal(first, second)
    assert not torch.allclose(first, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_log_probability_of_sampling_is_that_of_the_update_to_the_bit(dtype):
    generator = load_generator(dtype)
    for i, parameter in enumerate(adapter.add(generator, LORA, 0)):  # as in the middle of a training
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=random_generator(0, "adapter", 0, i))
    policy = Policy(generator, [PROMPT, PROMPT.replace("angry", "sad")], NEGATIVE, 4, 5, 2.0)
    noise = [random_generator(0, "test", 0, i) for i in range(3)]
    paths = policy.sample(torch.tensor([0, 1, 0]), noise)
    assert paths.x.shape == (3, 5, *generator.latent_shape(5))
    for step in range(4):
        log_prob = policy.log_prob(paths, step)
        assert log_prob.requires_grad
        assert torch.equal(log_prob.detach(), paths.log_prob[:, step])
    assert paths.log_prob.isfinite().all()
    assert paths.log_prob.std() > 0


def test_the_divergence_is_from_the_model_without_the_adapter():
    generator = load_generator()
    policy = Policy(generator, [PROMPT], NEGATIVE, 4, 5, 2.0)
    paths = policy.sample(torch.tensor([0, 0]), [random_generator(0, "test", 0, i) for i in range(2)])
    x_t, std = paths.x[:, 1], policy.schedule.std[1].float()
    with torch.no_grad():
        base, _ = policy._gaussian(paths.prompt, 1, x_t)
    parameters = adapter.add(generator, LORA, 0)
    _, divergence = policy.log_prob_and_kl(paths, 1)
    assert (divergence == 0).all()  # a new adapter changes nothing

    for i, parameter in enumerate(parameters):
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=random_generator(0, "adapter", 0, i))
    log_prob, divergence = policy.log_prob_and_kl(paths, 1)
    mean, _ = policy._gaussian(paths.prompt, 1, x_t)  # the adapter is on again
    ours, theirs = (torch.distributions.Normal(m.detach().double(), std.double()) for m in (mean, base))
    expected = torch.distributions.kl_divergence(ours, theirs).mean((1, 2, 3))
    torch.testing.assert_close(divergence.detach().double(), expected, rtol=1e-4, atol=0)
    assert torch.equal(log_prob, policy.log_prob(paths, 1))

    divergence.sum().backward()
    assert all(p.requires_grad and p.grad is not None and p.grad.any() for p in parameters)
