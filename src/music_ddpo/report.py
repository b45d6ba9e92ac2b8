"""What a training leaves behind to look at: its reward curve and its closing numbers."""

from __future__ import annotations

import pandas as pd

from music_ddpo.ddpo import Epoch


def reward_curve(epochs: list[Epoch]) -> pd.DataFrame:
    """One row for each round and series ("all", then each emotion), with the band of one deviation for "all"."""
    rows = []
    for e in epochs:
        spread = {"low": e.reward - e.reward_std, "high": e.reward + e.reward_std}
        rows.append({"round": e.epoch + 1, "series": "all", "reward": e.reward} | spread)
        for emotion, reward in e.by_emotion.items():
            rows.append({"round": e.epoch + 1, "series": emotion, "reward": reward})
    return pd.DataFrame(rows, columns=["round", "series", "reward", "low", "high"]).round(6)


def training(epochs: list[Epoch], seed: int) -> dict[str, float]:
    """Closing numbers of a training, flat: `first` and `last` are means over a quarter of its rounds."""
    quarter = max(1, len(epochs) // 4)

    def mean(name: str, part: list[Epoch]) -> float:
        return round(sum(getattr(e, name) for e in part) / len(part), 6)

    return {
        "reward_first": mean("reward", epochs[:quarter]),
        "reward_last": mean("reward", epochs[-quarter:]),
        "reward_std_last": mean("reward_std", epochs[-quarter:]),
        "clip_fraction": mean("clip_fraction", epochs),
        "approximate_kl": float(f"{sum(e.kl for e in epochs) / len(epochs):.4g}"),
        "gradient_norm": mean("gradient_norm", epochs),
        "ratio_error_at_first_update": max(e.ratio_error for e in epochs),
        "unjudged_clips": sum(e.unjudged for e in epochs),
        "seed": seed,
    }
