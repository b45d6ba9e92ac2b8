"""Results of rewards that are no longer trained: moved away, so that nobody takes them for current ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

PLACES = (
    "models/adapters/{}",
    "clips/{}",
    "metrics/{}.json",
    "metrics/clips/{}.csv",
    "metrics/features/{}.csv",
    "metrics/train/{}.json",
    "plots/train/{}.csv",
    *(f"metrics/cost/{stage}-{{}}.json" for stage in ("train", "generate", "evaluate", "features", "card")),
)


def put_away(project: Path, rewards: Sequence[str]) -> dict[str, Path]:
    """Moves the results of each reward that is not in `rewards` to a folder in old/; returns the folders by reward."""
    found = {p.stem for p in (project / "metrics" / "train").glob("*.json")}
    moved = {}
    for reward in sorted(found - set(rewards)):
        number = 1
        while (old := project / "old" / f"{reward}-{number}").exists():
            number += 1
        for place in (place.format(reward) for place in PLACES):
            if (project / place).exists():
                (old / place).parent.mkdir(parents=True, exist_ok=True)
                (project / place).rename(old / place)
        moved[reward] = old
    return moved
