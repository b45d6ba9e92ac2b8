"""Which `emopia.windows` teaches more: python benchmarks/windows.py [SEED...]; an hour on two CPU cores.

Trains the emopia adapter with either choice, each seed with the same budget and noise, and counts the clips of the
evaluation that are right, as heard with either choice. The clones stay in the temporary folder, so an interrupted
measurement goes on there; remove them before measuring another commit.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import yaml

from music_ddpo.core.params_file import load
from music_ddpo.measuring import clips
from music_ddpo.rewards.emopia import Emopia

PROJECT = Path(__file__).parent.parent
RESULT = PROJECT / "benchmarks" / "results" / "windows.json"
CHOICES, ROUNDS = ("paper", "cover"), 6


def train(choice: str, seed: int) -> Path:
    """Trains and generates in a clone of its own, with one thread; returns the clone."""
    folder = Path(tempfile.gettempdir()) / "music-ddpo-windows" / f"{choice}-{seed}"
    if not folder.exists():
        subprocess.run(["git", "clone", "-q", str(PROJECT), str(folder)], check=True)
    content = yaml.safe_load((PROJECT / "params.yaml").read_text())
    content |= {"seed": seed, "rewards": ["emopia"]}
    content["emopia"]["windows"] = choice
    content["ddpo"]["rounds"] = ROUNDS
    (folder / "params.yaml").write_text(yaml.safe_dump(content))
    with (folder.parent / f"{folder.name}.log").open("a") as log:
        for stage in ("seed", "fetch", "train emopia", "generate emopia"):
            if stage != "train emopia" or not (folder / "models" / "adapters" / "emopia").exists():
                name, *reward = stage.split()
                command = [sys.executable, f"stages/{name}.py", *reward]
                environment = os.environ | {"OMP_NUM_THREADS": "1"}
                subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=log, check=True)
    return folder


def right(folder: Path) -> dict[str, float]:
    """The share of clips that are right, as heard with each choice."""
    params = load(folder / "params.yaml")
    index, prompts = clips.load(folder / "clips" / "emopia", params)
    heard = {}
    for choice in CHOICES:
        judge = Emopia.of_folder(PROJECT / "mini" / "models" / "rewards" / "emopia", torch.device("cpu"), choice)
        correct = []
        for rows, waveforms, rate in clips.waveforms(
            folder / "clips" / "emopia", list(index["clip"]), 8, params.duration
        ):
            correct.append(judge.score(waveforms, rate, [prompts[i] for i in rows]).correct)
        heard[f"heard_with_{choice}"] = round(torch.cat(correct).mean().item(), 4)
    return heard


def main() -> None:
    seeds = [int(seed) for seed in sys.argv[1:]] or [777, 1, 2]
    jobs = [(choice, seed) for seed in seeds for choice in CHOICES]
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1))) as pool:
        folders = list(pool.map(lambda job: train(*job), jobs))
    result: dict = {"rounds": ROUNDS, "clips": 100}
    for (choice, seed), folder in zip(jobs, folders, strict=True):
        result.setdefault(f"trained_with_{choice}", {})[str(seed)] = right(folder)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
