"""What a reward has left behind that is no longer trained: it must not pass for a current result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from music_ddpo.core.files import remove

PLACES = (
    "models/adapters/{}",
    "clips/{}",
    "metrics/{}.json",
    "metrics/clips/{}.csv",
    "metrics/train/{}.json",
    "plots/train/{}.csv",
    *(f"metrics/cost/{stage}-{{}}.json" for stage in ("train", "generate", "evaluate", "card")),
)


def put_away(project: Path, rewards: Sequence[str]) -> list[str]:
    """Moves the results of each reward that is not in `rewards` to old/<reward>/; returns the rewards' names."""
    adapters, tables = project / "models" / "adapters", project / "metrics" / "clips"
    found = {p.name for p in adapters.glob("*") if p.is_dir()} | {p.stem for p in tables.glob("*.csv")}
    gone = sorted(found - {*rewards, "baseline"})
    for reward in gone:
        remove(project / "old" / reward)
        for place in (place.format(reward) for place in PLACES):
            if (project / place).exists():
                target = project / "old" / reward / place
                target.parent.mkdir(parents=True, exist_ok=True)
                (project / place).rename(target)
    return gone
