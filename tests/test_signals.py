"""A stage that is killed or stopped by a signal: its finished rounds are kept, and the rerun gives the same bits."""

from __future__ import annotations

import signal
import time

import pytest

from helpers.project import leftovers, messages, rounds_done, same_bits, set_params, trained
from helpers.ranks import run_stage, start_stage
from music_ddpo.core import audio
from music_ddpo.machine import signals

ROUNDS = {"ddpo__rounds": 5, "duration": 3}


def test_a_training_that_is_really_killed_by_each_signal_in_turn_ends_with_the_bit_identical_adapter(stages):
    set_params(stages, **ROUNDS, ddpo__timesteps="random 2")
    assert run_stage(stages, "train", "emopia")[0].code == 0
    expected = trained(stages)
    files = [stages / name for name in ("plots/train/emopia.csv", "metrics/train/emopia.json")]
    contents = [path.read_text() for path in files]
    for path in (*(stages / "models" / "adapters" / "emopia").iterdir(), *files):
        path.unlink()

    checkpoint = stages / ".checkpoints" / "train-emopia.pt"
    kinds = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    for before, number in enumerate(kinds):
        job = start_stage(stages, "train", "emopia")
        deadline = time.monotonic() + 600
        while rounds_done(checkpoint) <= before and job.alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        job.signal(number)
        ended = job.wait()
        assert ended.code == (-number if number == signal.SIGKILL else 128 + number), ended.stderr
        assert rounds_done(checkpoint) == before + 1
        if number != signal.SIGKILL:
            *others, line = messages(ended.stderr)
            assert all("the reward has not risen" in other for other in others)
            assert line.startswith(f"train-emopia: stopped by {number.name}; finished work is kept")
        assert not (stages / "models" / "adapters" / "emopia" / "adapter_model.safetensors").exists()

    assert run_stage(stages, "train", "emopia")[0].code == 0
    assert same_bits(trained(stages), expected)
    assert [path.read_text() for path in files] == contents
    assert leftovers(stages) == []


def stop_while_writing() -> None:
    """The process gets a signal while it writes its second clip."""
    write = audio.write

    def write_then_stop(path, *content):
        write(path, *content)
        if path.name.startswith("001"):
            signal.raise_signal(signal.SIGTERM)

    audio.write = write_then_stop


def test_a_signal_while_clips_are_written_leaves_nothing_half_written(stages):
    set_params(stages, duration=3, steps=2)
    (ended,) = run_stage(stages, "baseline", first=stop_while_writing)
    assert ended.code == 128 + signal.SIGTERM
    assert [line.split(";")[0] for line in messages(ended.stderr)] == ["baseline: stopped by SIGTERM"]
    assert leftovers(stages) == []
    assert not (stages / "clips" / "baseline").exists()


def test_only_the_first_signal_raises():
    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    try:
        signals.watch()
        with pytest.raises(signals.Interrupted, match="SIGUSR1"):
            signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGTERM)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
