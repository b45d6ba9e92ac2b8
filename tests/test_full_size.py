"""The full-size architecture, with random weights: one step of each kind, in a process of its own, on a CPU."""

from __future__ import annotations

import json
import sys
import time
from itertools import pairwise

import pytest
import torch
from music_ddpo.params import parse
from music_ddpo.rollout import decode, sample
from torch import nn

from conftest import PROJECT, params_with, run
from music_ddpo import adapter, ddpo, execution
from music_ddpo.core.randomness import random_generator
from music_ddpo.model.ddim import make_schedule


def frozen(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if not p.requires_grad]


def count(parameters: list[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)


def checksums(parameters: list[nn.Parameter]) -> list[int]:
    """Of float32 parameters: the sum of each one's bit patterns."""
    return [p.view(torch.int32).sum().item() for p in parameters]


def work() -> dict:
    """Builds the models, then samples, updates and decodes one clip: what came of it, and what it took."""
    sys.path.append(str(PROJECT / "benchmarks"))
    from full_size import conditioning, full_size
    from growth import peak

    params = parse(
        params_with(
            duration=5, steps=1, guidance_scale=3.5, lora__rank=4, lora__alpha=4.0, ddpo__updates_per_epoch=1,
            compute__device="cpu", compute__precision="float32",
        )
    )  # fmt: skip
    chosen = execution.choose(params.compute)
    clock = [time.perf_counter()]

    generator = full_size(chosen.device, chosen.dtype)
    trained = adapter.add(generator, params.lora.rank, params.lora.alpha, 0)
    optimizer = torch.optim.AdamW(trained, lr=params.ddpo.learning_rate)
    untrained = {name: frozen(getattr(generator, name)) for name in ("unet", "vae", "vocoder")}
    before = {name: checksums(parameters) for name, parameters in untrained.items()}
    clock.append(time.perf_counter())

    prompts, prompt = conditioning(generator, 1), torch.zeros(1, dtype=torch.long)
    schedule = make_schedule(generator.scheduler, params.steps, ddpo.ETA)
    noise = [random_generator(0, "full size")]
    paths = sample(generator, prompts, prompt, schedule, noise, params.duration, params.guidance_scale, chosen)
    clock.append(time.perf_counter())

    policy = ddpo.Policy(generator, prompts, schedule, params.guidance_scale)
    advantage = torch.ones(1)
    learnt = ddpo.update(policy, optimizer, paths, prompt, advantage, params.trained_steps, params.ddpo, chosen)
    clock.append(time.perf_counter())

    waveforms = decode(generator, paths[:, -1], params.duration, chosen)
    clock.append(time.perf_counter())

    return {
        "parameters": {name: count(parameters) for name, parameters in untrained.items()} | {"adapter": count(trained)},
        "latents": {"shape": paths.shape, "std": paths.std((0, 2, 3, 4)).tolist()},
        "waveforms": {"shape": waveforms.shape, "std": waveforms.std().item()},
        "finite": all(x.isfinite().all().item() for x in (paths, waveforms, *trained)),
        "learnt": learnt,
        # B matrices start at 0. While they do, the A matrices have no gradient.
        "b_matrices_still_zero": sum(not b.any().item() for b in trained[1::2]),
        "frozen_that_changed": [name for name in untrained if checksums(untrained[name]) != before[name]],
        "peak_gb": peak() / 1e9,  # if anything too large: a process starts with the peak of its parent
        "seconds": dict(zip(("build", "sample", "update", "decode"), (b - a for a, b in pairwise(clock)), strict=True)),
    }


def test_the_full_size_models_sample_update_and_decode_on_a_cpu_within_8_gb():
    done = run(PROJECT, sys.executable, __file__)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    print(json.dumps(report, indent=2))

    assert report["parameters"]["unet"] == pytest.approx(346.9e6, rel=0.005)
    assert report["parameters"]["adapter"] == pytest.approx(0.79e6, rel=0.01)
    assert report["latents"]["shape"] == [1, 2, 8, 125, 16]
    assert report["waveforms"]["shape"] == [1, 80_000]
    assert report["waveforms"]["std"] > 1e-3
    assert report["finite"]
    assert report["learnt"]["ratio_error"] == 0
    assert report["learnt"]["clip_fraction"] == 0
    assert report["learnt"]["gradient_norm"] > 0
    assert report["b_matrices_still_zero"] == 0
    assert report["frozen_that_changed"] == []
    assert report["peak_gb"] < 8


if __name__ == "__main__":
    print(json.dumps(work()))


def test_in_bfloat16_the_update_starts_at_ratio_one_and_its_gradient_is_that_of_float32():
    sys.path.append(str(PROJECT / "benchmarks"))
    from full_size import conditioning, full_size

    # The paper's 19 steps: the fewer a trajectory has, the wider each, and with 3 in all the gradients part (0.987).
    settings = {"duration": 5, "steps": 19, "guidance_scale": 3.5, "ddpo__updates_per_epoch": 1}
    params = parse(params_with(**settings, ddpo__timesteps="first 3", compute__device="cpu"))
    prompt, advantage, gradients, paths = torch.zeros(1, dtype=torch.long), torch.ones(1), [], None
    for dtype in (torch.bfloat16, torch.float32):
        generator = full_size(torch.device("cpu"), dtype)
        trained = adapter.add(generator, 8, 8.0, 0)
        with (
            torch.no_grad()
        ):  # as in the middle of a training: B is zero in a fresh adapter, and A then has no gradient
            for i, parameter in enumerate(trained):
                parameter += 0.02 * torch.randn(
                    parameter.shape, generator=random_generator(0, "full size adapter", 0, i)
                )
        schedule = make_schedule(generator.scheduler, params.steps, ddpo.ETA)
        policy = ddpo.Policy(generator, conditioning(generator, 1), schedule, params.guidance_scale)
        chosen = execution.Execution(generator.device, dtype, 1, 2, 1)
        if paths is None:
            noise = [random_generator(0, "full size")]
            paths = sample(generator, policy.conditioning, prompt, schedule, noise, 5, params.guidance_scale, chosen)
        optimizer = Keeper(trained)
        learnt = ddpo.update(policy, optimizer, paths, prompt, advantage, params.trained_steps, params.ddpo, chosen)
        assert learnt["ratio_error"] == 0
        assert learnt["clip_fraction"] == 0
        assert learnt["kl"] == 0
        assert all(p.dtype == torch.float32 for p in trained)
        gradients.append(optimizer.gradient)
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.99


class Keeper(torch.optim.SGD):
    """Keeps the gradient instead of following it."""

    def __init__(self, parameters: list[nn.Parameter]):
        super().__init__(parameters, lr=1.0)

    def step(self, closure=None):
        self.gradient = torch.cat([p.grad.flatten() for group in self.param_groups for p in group["params"]])
