"""Measures how time and memory grow with four parameters. Run: python benchmarks/growth.py (`make bench`).

One round of training on the embedded models on a CPU (sample, decode, score, learn), each in a process of its own, with
one of the four doubled three times and every denoising step trained. Memory is the growth of the process's peak memory
during the round.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

PROJECT = Path(__file__).parent.parent
RESULT = PROJECT / "benchmarks" / "results" / "growth.json"
# A minibatch of the first setting is one batch, so a larger setting has more batches and not larger ones.
START = {"trajectories_per_round": 16, "steps": 19, "duration": 5, "prompts": 4}
DOUBLINGS = 3


def peak() -> int:
    """Peak memory of this process, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def measure(setting: dict[str, int]) -> dict[str, float]:
    """Seconds and growth of the peak memory, in MB, of one round."""
    import torch
    import yaml

    from music_ddpo.core.params_file import parse
    from music_ddpo.core.prompts import EMOTIONS_OF_QUADRANT
    from music_ddpo.model.audioldm2 import Generator
    from music_ddpo.rewards.emopia import Emopia
    from speed import MODELS, ours

    content = yaml.safe_load((PROJECT / "params.yaml").read_text())
    content |= {"steps": setting["steps"], "duration": setting["duration"]}
    content["compute"] |= {"device": "cpu", "batch": 8}
    emotions = [word for row in zip(*EMOTIONS_OF_QUADRANT.values(), strict=True) for word in row]
    instruments = ["piano", "violin", "flute", "guitar"]
    count = setting["prompts"]
    content["ddpo"] |= {
        "rounds": 1,
        "trajectories_per_round": setting["trajectories_per_round"],
        "updates_per_round": 2,
        "timesteps": "all",
    }
    params = parse(content)
    # Not checked: a study needs two trajectories of each prompt in a round, a measurement does not.
    chosen = {"emotions": emotions[: max(4, count // 4)], "instruments": instruments[: count // 4]}
    prompts = params.prompts.model_copy(update=chosen)
    generator = Generator.load(MODELS / "pipeline", torch.device("cpu"))
    reward = Emopia.of_folder(MODELS / "rewards" / "emopia", torch.device("cpu"), "cover")
    before, started = peak(), time.perf_counter()
    ours(generator, reward, params.model_copy(update={"prompts": prompts}))
    return {"seconds": round(time.perf_counter() - started, 2), "memory_mb": round((peak() - before) / 1e6, 1)}


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(measure(json.loads(sys.argv[1]))))
        return
    rows = []
    for knob in START:
        for doubling in range(DOUBLINGS + 1):
            setting = START | {knob: START[knob] << doubling}
            command = [sys.executable, __file__, json.dumps(setting)]
            out = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            measured = json.loads(out.stdout.splitlines()[-1])
            first = rows[-doubling] if doubling else measured
            relative = {f"{key}_relative": round(measured[key] / first[key], 2) for key in ("seconds", "memory_mb")}
            rows.append({"knob": knob, "value": setting[knob]} | measured | relative)
            print(rows[-1], flush=True)
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    result = {"command": "python benchmarks/growth.py", "machine": machine, "start": START, "rounds": rows}
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
