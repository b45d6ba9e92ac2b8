"""Judging: every clip of a folder, heard by every judge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from music_ddpo.core.files import write_text
from music_ddpo.core.params import Params
from music_ddpo.core.prompts import Prompt
from music_ddpo.machine import processes
from music_ddpo.machine.batches import Execution, choose, full_memory_explained
from music_ddpo.measuring import clips
from music_ddpo.rewards.base import Reward
from music_ddpo.rewards.finding import load_reward
from music_ddpo.weights.manifests import check_duration


def write(folder: Path, table: Path, params: Params, models: Path) -> None:
    """Judges a folder of clips and writes the table of their scores as CSV."""
    check_duration(params.judges, models, params.duration)
    judged = judge(folder, params, models, choose(params.compute))
    if processes.is_main():
        write_text(table, judged.to_csv(index=False))


def judge(folder: Path, params: Params, models: Path, execution: Execution) -> pd.DataFrame:
    """The index of a folder of clips, with columns for each of `judges`.

    Of several processes each judges its part, and all get the table. The columns of judge `j` are `j_headline`,
    `j_value`, and, if it has them, `j_predicted` (a quadrant, or "none"), `j_correct` (0 or 1) and its details.
    """
    index, prompts = clips.load(folder, params)
    table = index.drop(columns="prompt")
    for name in params.judges:
        loaded = load_reward(name, models, execution.device)
        names = list(index["clip"])
        columns = _columns(loaded, folder, names, prompts, execution.decode_batch, params.duration)
        table = pd.concat([table, columns], axis=1)
    return table


def _columns(
    judge: Reward, folder: Path, names: Sequence[str], prompts: Sequence[Prompt], batch: int, duration: float
) -> pd.DataFrame:
    rows = []
    mine = processes.own(len(names))
    title = f"{judge.name} judges {folder.name}"
    with tqdm(total=len(mine), unit="clip", desc=title, disable=not processes.is_main()) as bar:
        for part, waveforms, sample_rate in clips.waveforms(folder, [names[i] for i in mine], batch, duration):
            with full_memory_explained("decode_batch", len(part)):
                heard = judge.score(waveforms, sample_rate, [prompts[mine[i]] for i in part])
            columns: dict[str, object] = {"headline": [judge.headline] * len(part), "value": heard.value.tolist()}
            if heard.predicted is not None:
                columns["predicted"] = [p or "none" for p in heard.predicted]
            if heard.correct is not None:
                columns["correct"] = heard.correct.int().tolist()
            columns |= {key: x.tolist() for key, x in heard.details.items()}
            rows.append(pd.DataFrame(columns))
            bar.update(len(part))
    return pd.concat(processes.gather(rows), ignore_index=True).add_prefix(f"{judge.name}_").round(6)
