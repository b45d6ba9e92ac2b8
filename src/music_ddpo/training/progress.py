"""What the terminal shows of a training: a bar for the round in progress, and one line for each finished round."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from music_ddpo.machine import processes
from music_ddpo.training.record import Round


class Progress:
    """Shows progress on standard error; of several processes the first one does.

    The estimate of the time left is the mean time of a round, decoding and scoring included. In the first round only
    the rest of that round is estimated.

    Parameters
    ----------
    rounds
        Of the whole training.
    work
        Clips times steps sampled, clips scored, and clips times steps trained in a round, in sum.
    """

    def __init__(self, title: str, rounds: int, work: int):
        self.title, self.rounds, self.work = title, rounds, work
        self.seconds: list[float] = []
        self._round = 0
        self._bar = tqdm(disable=True)

    @contextmanager
    def round(self, round: int) -> Iterator[Progress]:
        """Shows the bar of a round while it lasts, and measures it."""
        started = time.perf_counter()
        self._round = round
        bar_format = "{desc} {percentage:3.0f}%|{bar}| {elapsed}" + (
            "" if self.seconds else ", left: {remaining}, this round"
        )
        with tqdm(
            total=self.work, bar_format=bar_format, leave=False, dynamic_ncols=True, disable=not processes.is_main()
        ) as self._bar:
            yield self
        self.seconds.append(time.perf_counter() - started)

    def left(self, rounds: int, elapsed: float = 0.0) -> str:
        """The time that is left for so many rounds, `elapsed` seconds of which have passed."""
        return tqdm.format_interval(max(0.0, rounds * sum(self.seconds) / len(self.seconds) - elapsed))

    def sampled(self, count: int) -> None:
        """Counts clips that were denoised by one step."""
        self._advance("sample", count)

    def scored(self, count: int) -> None:
        """Counts clips that were decoded and scored."""
        self._advance("score", count)

    def learnt(self, count: int) -> None:
        """Counts clips of which one step was trained."""
        self._advance("learn", count)

    def _advance(self, phase: str, count: int) -> None:
        left = ""
        if self.seconds:
            left = f", left: {self.left(self.rounds - self._round, self._bar.format_dict['elapsed'] or 0.0)}"
        title = f"{self.title}, round {self._round + 1}/{self.rounds}: {phase}{left}"
        self._bar.set_description_str(title, refresh=False)
        self._bar.update(count)

    def finished(self, r: Round) -> None:
        """Prints the line of a finished round."""
        if processes.is_main():
            emotions = ", ".join(f"{emotion} {reward:.2f}" for emotion, reward in r.by_emotion.items())
            ahead = self.rounds - r.round - 1
            tqdm.write(
                f"{self.title}, round {r.round + 1}/{self.rounds}: reward {r.reward:.3f} ({emotions}), "
                f"clipped {r.clip_fraction:.0%}, {self.seconds[-1]:.1f} s"
                + (f", left: {self.left(ahead)}" if ahead else ""),
                file=sys.stderr,
            )
