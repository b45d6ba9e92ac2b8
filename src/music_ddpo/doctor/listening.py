"""Checks of one clip: sampling, decoding, WAV file, resampling, scores."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

from music_ddpo.core import audio
from music_ddpo.core.prompts import Prompt
from music_ddpo.core.randomness import random_generator
from music_ddpo.doctor.report import BROKEN, LOOK, OK, Check, Row
from music_ddpo.model.policy import Policy, Trajectories
from music_ddpo.rewards.base import Judgement, Reward, unjudgeable

TONE = 1000.0  # Hz
TIMES = 3  # the other sample rate is this many times the model's: 48 kHz for 16 kHz
SAME = 0.25  # scores at two sample rates may differ by this share of what a wrong speed changes


def clips(policy: Policy, seed: int) -> Check[list[Trajectories]]:
    """Samples a clip of each of the first two prompts, the first one twice, and decodes it twice."""
    prompts = [*range(min(2, len(policy.conditioning.mask))), 0]
    with tqdm(total=len(prompts) * len(policy.schedule), unit="step", desc="clips", leave=False) as bar:
        *paths, again = (
            policy.sample(torch.tensor([i]), [random_generator(seed, "doctor", 0, i)], bar.update) for i in prompts
        )
    first, second = (policy.decode(path.x[:, -1]) for path in (paths[0], again))
    apart = (first - second).abs().max().item()
    (reason,) = unjudgeable(first)
    peak = first.abs().max().item()
    text = f"{policy.duration:g} s in {len(policy.schedule)} steps, peak {peak:.2f}"
    if reason:
        advice = "do not train: check compute.precision, guidance_scale and the model's files"
        yield Row("clip", BROKEN, f"{text}: the clip is {reason}", advice)
    elif apart:
        advice = "a GPU may do that, and results are then not repeatable to the bit; on a CPU something is wrong"
        state = LOOK if policy.generator.device.type != "cpu" else BROKEN
        yield Row("clip", state, f"{text}; generated twice, it differs by up to {apart:.2g}", advice)
    else:
        yield Row("clip", OK, f"{text}; generated twice, it is the same to the bit")
    return paths


def judgements(
    judges: Mapping[str, Reward], waveforms: torch.Tensor, sample_rate: int, prompts: Sequence[Prompt]
) -> Check[None]:
    """Judges the same clips twice with every judge."""
    for name, judge in judges.items():
        one, two = (judge.score(waveforms, sample_rate, prompts) for _ in range(2))
        text = f"{judge.headline}: value {one.value[0]:.3f} in [{judge.lowest:g}, {judge.highest:g}]"
        if one.predicted:
            text += f", hears {one.predicted[0]} for {prompts[0].quadrant}"
        if torch.equal(one.value, two.value) and one.predicted == two.predicted:
            yield Row(f"judge {name}", OK, f"{text}; twice the same", numbers={"value": one.value[0].item()})
        else:
            apart = (one.value - two.value).abs().max()
            advice = "a judge must be deterministic: look for dropout, random crops or atomics in its code"
            yield Row(f"judge {name}", BROKEN, f"{text}; the second time it differs by {apart:.2g}", advice)


def sample_rates(
    judges: Mapping[str, Reward], policy: Policy, waveforms: torch.Tensor, prompts: Sequence[Prompt]
) -> Check[None]:
    """The sample rate at each step: vocoder, WAV file, each judge. What arrives is heard, not read from constants."""
    yield _written(policy, waveforms)
    for name, judge in judges.items():
        yield hears(name, judge, waveforms, policy.sample_rate, prompts)


def _written(policy: Policy, waveforms: torch.Tensor) -> Row:
    """The vocoder's waveform has the rate that its config says, and so has the WAV file."""
    rate, expected = policy.sample_rate, int(policy.duration * policy.sample_rate)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.wav"
        audio.write(path, waveforms[0], rate)
        read, read_rate = audio.read(path)
    text = f"model and WAV file: {waveforms.shape[1]} samples at {rate / 1000:g} kHz"
    # A hop that does not divide the clip leaves at most one mel frame.
    if abs(waveforms.shape[1] - expected) > policy.generator.hop or (len(read), read_rate) != (
        waveforms.shape[1],
        rate,
    ):
        advice = "the vocoder's sampling_rate and upsample_rates do not belong together: run `dvc repro -f fetch`"
        found = (
            f"{text}, but {expected} are {policy.duration:g} s; the file has {len(read)} at {read_rate / 1000:g} kHz"
        )
        return Row("sample rate", BROKEN, found, advice)
    return Row("sample rate", OK, f"{text} = {policy.duration:g} s")


def hears(name: str, judge: Reward, waveforms: torch.Tensor, rate: int, prompts: Sequence[Prompt]) -> Row:
    """Whether a judge hears clips at their true speed.

    The same clips are judged at the model's sample rate, at three times this rate, and with that rate named for
    samples at the model's (three times too fast and, like in the published code, repeated to fill the time). A tone
    must arrive at the network with its frequency, and the first two scores should be equal: if the tone cannot be
    followed to the network, they must.
    """
    check, other = f"sample rate {name}", TIMES * rate
    finer, repeated = audio.resample(waveforms, rate, other), waveforms.repeat(1, TIMES)
    true, same, fast = (
        _numbers(judge.score(heard, named, prompts))
        for heard, named in ((waveforms, rate), (finer, other), (repeated, other))
    )
    apart, wrong = ((true - x).abs().max().item() for x in (same, fast))
    arrived = {r: tone_at_network(judge, r, waveforms.shape[1] / rate, prompts[0]) for r in (rate, other)}
    numbers: dict[str, float | None] = {"apart": apart, "wrong_speed": wrong}
    advice = "it does not convert clips from their sample rate to its own; use core.audio.resample in its `judge`"
    text = f"scores at {rate / 1000:g} and {other / 1000:g} kHz differ by {apart:.2g}, at a wrong speed by {wrong:.2g}"
    for declared, frequency in arrived.items():
        if frequency is not None and abs(frequency / TONE - 1) > 0.02:
            found = f"a tone of {TONE:g} Hz in a clip at {declared / 1000:g} kHz arrives with {frequency:.0f} Hz"
            return Row(check, BROKEN, f"{found}; {text}", advice, numbers)
    own = network_rate(judge)
    listens = f"listens at {own / 1000:g} kHz, a tone of {TONE:g} Hz arrives with it; " if own else ""
    if apart > SAME * wrong and apart > 1e-6:
        if own is None:
            return Row(check, BROKEN, f"it hears clips at a wrong speed: {text}", advice, numbers)
        unsure = "its score hardly depends on the speed, or it also hears something that it does not resample"
        return Row(check, LOOK, listens + text, unsure, numbers)
    if wrong <= 1e-6:
        unknown = "its score does not depend on the speed, so this check cannot tell; see whether its `judge` resamples"
        return Row(check, LOOK, listens + text, unknown, numbers)
    return Row(check, OK, listens + text, numbers=numbers)


def _numbers(heard: Judgement) -> torch.Tensor:
    """Everything that a judge says in numbers: a reward alone may be saturated."""
    return torch.stack([heard.value, *heard.details.values()])


def network_rate(judge: Reward) -> int | None:
    """The sample rate in Hz that a judge's network takes its input for, as far as the judge says it."""
    encoder = getattr(judge, "encoder", None)
    return getattr(judge, "sample_rate", None) or getattr(encoder, "sample_rate", None)


def tone_at_network(judge: Reward, rate: int, seconds: float, prompt: Prompt) -> float | None:
    """The frequency in Hz that a tone of `TONE` Hz has in what a judge makes of a clip at `rate` Hz.

    None if the judge does not say at which sample rate its network listens.
    """
    own = network_rate(judge)
    if own is None:
        return None
    time = torch.arange(round(seconds * rate), dtype=torch.float64) / rate
    tone = (0.5 * torch.sin(2 * torch.pi * TONE * time)).float()[None]
    with _resampled() as results:
        judge.score(tone, rate, [prompt])
    arrived = (results[-1] if results else tone).flatten()
    spectrum = torch.fft.rfft(arrived.double().cpu() * torch.hann_window(len(arrived), dtype=torch.float64)).abs()
    return spectrum.argmax().item() * own / len(arrived)


@contextmanager
def _resampled() -> Iterator[list[torch.Tensor]]:
    """Collects what `core.audio.resample` returns while judges listen."""
    results: list[torch.Tensor] = []
    original = audio._resample

    def record(*arguments: object) -> torch.Tensor:
        results.append(original(*arguments))  # type: ignore[arg-type]
        return results[-1]

    audio._resample = record  # type: ignore[assignment]
    try:
        yield results
    finally:
        audio._resample = original
