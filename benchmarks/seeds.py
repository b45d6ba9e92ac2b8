"""Runs the study with other seeds: python benchmarks/seeds.py 1 2.

Runs the committed study for each seed in parallel, each in its own clone. Records each adapter's scores, in total and
by emotion, together with those of the committed run. The clones stay in the temporary folder: an interrupted
measurement goes on there; remove them before measuring another commit.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

PROJECT = Path(__file__).parent.parent
RESULT = PROJECT / "benchmarks" / "results" / "seeds.json"
HEADLINE = {"clap": "similarity", "emopia": "accuracy"}


def extract(accuracy: dict) -> dict:
    """Of metrics/accuracy.json: each adapter by its own reward, by emotion, and by the held-out judge."""
    result = {}
    for reward, headline in HEADLINE.items():
        judged = accuracy[f"judged_by_{reward}"]
        trained, original = judged[f"trained_with_{reward}"], judged["original"]
        held_out = accuracy["judged_by_held_out"][f"trained_with_{reward}"]
        emotions = [key for key, value in trained.items() if isinstance(value, dict)]
        result[f"trained_with_{reward}"] = {
            "original": original[headline],
            "trained": trained[headline],
            "real_recordings": judged["real_recordings"][headline],
            **{key: trained[key] for key in ("gain", "gain_low", "gain_high")},
            **{key: trained.get(key) for key in ("gap_closed", "gap_closed_low", "gap_closed_high")},
            "held_out_gain": [held_out[key] for key in ("gain", "gain_low", "gain_high")],
            "by_emotion": {e: [original[e][headline], trained[e][headline]] for e in emotions},
        }
    return result


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
    results = {str(committed): extract(json.loads((PROJECT / "metrics" / "accuracy.json").read_text()))}
    scratch = Path(tempfile.gettempdir()) / "music-ddpo-seeds"
    folders = {seed: scratch / seed for seed in seeds}
    threads = max(1, (os.cpu_count() or 1) // max(1, len(seeds)))
    runs = {seed: start(seed, folder, threads) for seed, folder in folders.items()}
    for seed, run in runs.items():
        if run.wait():
            sys.exit(f"seed {seed} failed:\n" + (scratch / f"{seed}.log").read_text()[-2000:])
        results[seed] = extract(json.loads((folders[seed] / "metrics" / "accuracy.json").read_text()))
    RESULT.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
