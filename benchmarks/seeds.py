"""Runs the study with other seeds: python benchmarks/seeds.py 1 2.

Runs the committed study for each seed in parallel, each in its own clone. Records what each adapter's reward, the
listener and the held-out judge hear, in total and by emotion, together with the committed run's. The clones stay in the
temporary folder: an interrupted measurement goes on there; remove them before measuring another commit.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

PROJECT = Path(__file__).parent.parent
RESULT = PROJECT / "benchmarks" / "results" / "seeds.json"
REWARDS = ("clap", "emopia")


def extract(project: Path) -> dict:
    """Each adapter as its own reward, the listener and the held-out judge hear it, and the clips' diversity."""
    accuracy = json.loads((project / "metrics" / "accuracy.json").read_text())
    features = json.loads((project / "metrics" / "features.json").read_text())
    result = {}
    for reward in REWARDS:
        adapter = f"trained_with_{reward}"
        judges = {judge: heard(accuracy[f"judged_by_{judge}"], adapter) for judge in (reward, "listener", "held_out")}
        distance = features["mel_distance"]
        diversity = {
            model: round(float(np.mean([e["value"] for e in distance[model].values() if isinstance(e, dict)])), 2)
            for model in ("original", adapter)
        }
        plays = {model: instrument_heard(project, model) for model in ("baseline", reward)}
        result[adapter] = judges | {"instrument_heard": plays, "diversity_db": diversity}
    return result


def instrument_heard(project: Path, model: str) -> float:
    """Share of the clips in which the listener hears the instrument of the prompt."""
    table = pd.read_csv(project / "metrics" / "clips" / f"{model}.csv")
    return round(float(table["listener_instrument"].mean()), 4)


def heard(judged: dict, adapter: str) -> dict:
    """A judge's headline number before and after, the change, the gap closed, and each emotion."""
    original, trained = judged["original"], judged[adapter]
    name = next(iter(original))
    emotions = {e: values for e, values in trained.items() if isinstance(values, dict)}
    return {
        "original": original[name],
        "trained": trained[name],
        "real_recordings": judged.get("real_recordings", {}).get(name),
        **{key: trained[key] for key in ("gain", "gain_low", "gain_high")},
        **{key: trained.get(key) for key in ("gap_closed", "gap_closed_low", "gap_closed_high")},
        "by_emotion": {e: [original[e][name], v[name], v["gain_low"], v["gain_high"]] for e, v in emotions.items()},
    }


def start(seed: str, folder: Path, threads: int) -> subprocess.Popen:
    """Starts the default study with another seed in a clone of its own."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not folder.exists():
        subprocess.run(["git", "clone", "-q", str(PROJECT), str(folder)], check=True)
    command = ["dvc", "exp", "run", "-S", f"seed={seed}"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with (folder.parent / f"{seed}.log").open("a") as log:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)


def main() -> None:
    seeds = sys.argv[1:]
    committed = yaml.safe_load((PROJECT / "params.yaml").read_text())["seed"]
    results = {str(committed): extract(PROJECT)}
    scratch = Path(tempfile.gettempdir()) / "music-ddpo-seeds"
    folders = {seed: scratch / seed for seed in seeds}
    threads = max(1, (os.cpu_count() or 1) // max(1, len(seeds)))
    runs = {seed: start(seed, folder, threads) for seed, folder in folders.items()}
    for seed, run in runs.items():
        if run.wait():
            sys.exit(f"seed {seed} failed:\n" + (scratch / f"{seed}.log").read_text()[-2000:])
        results[seed] = extract(folders[seed])
    RESULT.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
