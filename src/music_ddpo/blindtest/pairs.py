"""Which pairs of clips a listener hears, in which order, and which clip is A: all drawn by the seed."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from music_ddpo.core.errors import UserError
from music_ddpo.core.files import digest
from music_ddpo.core.params import Params
from music_ddpo.measuring import clips

ORIGINAL = "original"
REPEATED = 10  # one of so many pairs is heard again with the sides swapped
APART = 5  # pairs at least between a pair and its repetition, if there are so many


@dataclass(frozen=True)
class Pair:
    """Two clips of the same prompt and the same noise, by two systems: "original" or the name of an adapter."""

    number: int
    clip: str
    emotion: str
    instrument: str
    systems: tuple[str, str]


@dataclass(frozen=True)
class Presentation:
    """A pair as a rater hears it: the system behind A and the one behind B."""

    pair: Pair
    a: str
    b: str
    repeated: bool


@dataclass(frozen=True)
class Plan:
    """A test. Votes belong to one plan; `identity` tells whether it is the same one.

    Attributes
    ----------
    question
        What raters are asked; {emotion} and {instrument} stand for those of the prompt.
    clips
        The SHA-256 of each system's folder of clips.
    """

    question: str
    seed: int
    systems: tuple[str, ...]
    clips: dict[str, str]
    pairs: tuple[Pair, ...]

    def identity(self) -> dict[str, Any]:
        """What votes are valid for; the first line of their file."""
        return {
            "question": self.question,
            "seed": self.seed,
            "systems": list(self.systems),
            "clips": self.clips,
            "pairs": [asdict(pair) | {"systems": list(pair.systems)} for pair in self.pairs],
        }

    def presentations(self, rater: str) -> list[Presentation]:
        """What a rater hears: every pair once in an order of their own, and a tenth of them again, swapped."""
        draw = random.Random(f"{self.seed}/{rater}")
        order = list(self.pairs)
        draw.shuffle(order)
        first = []
        for pair in order:
            a, b = pair.systems if draw.random() < 0.5 else pair.systems[::-1]
            first.append(Presentation(pair, a, b, repeated=False))
        heard = list(first)
        early = first[:-APART] if len(first) > 3 * APART else first
        for shown in draw.sample(early, min(len(early), len(first) // REPEATED)):
            earliest = min(heard.index(shown) + 1 + APART, len(heard))
            again = Presentation(shown.pair, shown.b, shown.a, repeated=True)
            heard.insert(draw.randint(earliest, len(heard)), again)
        return heard


def folder_of(system: str) -> Path:
    """The folder of a system's clips."""
    return Path("clips") / ("baseline" if system == ORIGINAL else system)


def make_plan(params: Params, systems: Sequence[str], count: int, question: str, seed: int) -> Plan:
    """Draws `count` pairs, equally many of each emotion and of each two systems as far as that goes.

    Raises
    ------
    UserError
        If a system has no clips, if there are fewer than two, or if the question has an unknown placeholder.
    """
    known = (ORIGINAL, *params.rewards)
    for system in systems:
        if system not in known:
            raise UserError(f"--systems: {system!r} is not one of {', '.join(known)}.")
    if len(set(systems)) != len(systems) or len(systems) < 2:
        raise UserError("--systems: name two or more different systems, for example original,emopia.")
    try:
        question.format(emotion="", instrument="")
    except (KeyError, IndexError, ValueError, AttributeError):
        raise UserError(
            f"--question: {question!r} has a placeholder other than {{emotion}} and {{instrument}}."
        ) from None
    index = {system: clips.load(folder_of(system), params)[0] for system in systems}
    rows = index[systems[0]]
    draw = random.Random(f"{seed}/pairs")
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for both in combinations(systems, 2):
        for row in rows.itertuples():
            groups.setdefault((both, row.emotion), []).append((row.clip, row.emotion, row.instrument, both))
    for members in groups.values():
        draw.shuffle(members)
    turns = list(groups.values())
    draw.shuffle(turns)
    chosen = [members[i] for i in range(len(rows)) for members in turns if i < len(members)][:count]
    pairs = tuple(Pair(i, *pair) for i, pair in enumerate(chosen))
    sums = {system: _digest(system, index[system]["clip"]) for system in systems}
    return Plan(question, seed, tuple(systems), sums, pairs)


def on_these_clips(plan: dict[str, Any], params: Params) -> bool:
    """Whether the plan of a file of votes is one of the clips that are there now."""
    known = (ORIGINAL, *params.rewards)
    names = clips.load(folder_of(ORIGINAL), params)[0]["clip"]
    return all(system in known and sum_ == _digest(system, names) for system, sum_ in plan.get("clips", {}).items())


def _digest(system: str, names: Sequence[str]) -> str:
    return hashlib.sha256("".join(digest(folder_of(system) / name) for name in names).encode()).hexdigest()[:16]
