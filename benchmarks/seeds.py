"""Does the result hold for other seeds? Run: python benchmarks/seeds.py 1 2

Runs the default study as a DVC experiment for each seed, and keeps what each adapter did to the reward that it
was trained with, and to each emotion, beside the committed run's.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import dvc.api
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


def main() -> None:
    committed = yaml.safe_load((PROJECT / "params.yaml").read_text())["seed"]
    results = {str(committed): extract(json.loads((PROJECT / "metrics" / "accuracy.json").read_text()))}
    for seed in sys.argv[1:]:
        name = f"seed-{seed}"
        command = ["dvc", "exp", "run", "--temp", "--force", "--name", name, "-S", f"seed={seed}"]
        subprocess.run(command, cwd=PROJECT, check=True)
        shown = dvc.api.metrics_show("metrics/accuracy.json", repo=str(PROJECT), rev=name)
        results[seed] = extract(shown.get("metrics/accuracy.json", shown))
    RESULT.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
