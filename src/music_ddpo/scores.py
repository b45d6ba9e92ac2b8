"""Scores: every clip of a folder, heard by every reward."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from music_ddpo import clips, parallel
from music_ddpo.params import Params
from music_ddpo.prompts import Prompt
from music_ddpo.rewards.base import Reward, load_reward, reward_class
from music_ddpo.rewards.registry import HELD_OUT, REWARDS


def score(folder: Path, params: Params, models: Path, device: torch.device) -> pd.DataFrame:
    """Every clip of a folder, judged by every reward and the held-out judge: the index, with their columns beside it.

    Of several processes each hears its part, and all get the table.

    The columns of judge `j` are `j_predicted` (a quadrant, or "none"), `j_correct` (0 or 1), `j_value`,
    `j_similarity` where it has one, and what else it tells.
    """
    index, prompts = clips.load(folder, params)
    table = index.drop(columns="prompt")
    for name in REWARDS | HELD_OUT:
        judge = load_reward(name, models, device)
        table = pd.concat([table, _judge(judge, folder, list(index["clip"]), prompts)], axis=1)
    return table


def _judge(judge: Reward, folder: Path, names: list[str], prompts: list[Prompt]) -> pd.DataFrame:
    rows = []
    mine = parallel.own(len(names))
    title = f"{judge.name} listens to {folder.name}"
    with tqdm(total=len(mine), unit="clip", desc=title, disable=not parallel.is_main()) as bar:
        for part, waveforms, sample_rate in clips.waveforms(folder, [names[i] for i in mine]):
            heard = judge.score(waveforms, sample_rate, [prompts[i] for i in mine[part]])
            columns = {"predicted": [p or "none" for p in heard.predicted], "correct": heard.correct.int().tolist()}
            columns["value"] = heard.value.tolist()
            if heard.similarity is not None:
                columns["similarity"] = heard.similarity.tolist()
            columns |= {key: x.tolist() for key, x in heard.details.items()}
            rows.append(pd.DataFrame(columns))
            bar.update(len(waveforms))
    return pd.concat(parallel.gather(rows), ignore_index=True).add_prefix(f"{judge.name}_").round(6)


def judges(table: pd.DataFrame) -> list[str]:
    """Who has heard the clips of a table."""
    return [name for name in REWARDS | HELD_OUT if f"{name}_correct" in table]


def summary(table: pd.DataFrame) -> dict[str, float]:
    """The headline numbers of one table of scores, flat, for `dvc metrics`."""
    metrics: dict[str, float] = {}
    for judge in judges(table):
        column = "correct" if reward_class(judge).headline == "accuracy" else "similarity"
        scores = table[f"{judge}_{column}"]
        key = f"{judge}_{reward_class(judge).headline}"
        metrics[key] = scores.mean()
        metrics |= {f"{key}_{emotion}": rows.mean() for emotion, rows in scores.groupby(table["emotion"], sort=False)}
        metrics.setdefault(f"{judge}_accuracy", table[f"{judge}_correct"].mean())
    metrics["unjudged_clips"] = int((table[[f"{j}_predicted" for j in judges(table)]] == "none").any(axis=1).sum())
    return {key: round(float(x), 4) for key, x in metrics.items()}
