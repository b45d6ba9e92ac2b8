"""Does the memory of an update grow with the number of denoising steps? Run: python benchmarks/memory.py

Each setting runs in a process of its own: one round of sampling and updating on the embedded model. What is
reported is the growth of the process's peak memory while it works, less what the trajectories themselves
take (they are kept in full, a few kilobytes a step), and that per setting relative to the first.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parent.parent
STEPS = (19, 38, 200)
# Four for each optimizer step: enough pairs for two full update batches even at 19 steps. With fewer, the first
# setting would look small because its batches are.
CLIPS = 16


def peak() -> int:
    """Peak memory of this process, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def measure(steps: int) -> dict[str, float]:
    import torch

    from music_ddpo import adapter, ddpo, execution, params
    from music_ddpo.ddim import make_schedule
    from music_ddpo.generator import Generator
    from music_ddpo.randomness import generator as random_generator
    from music_ddpo.rollout import sample

    settings = params.load(PROJECT / "params.yaml")
    chosen = execution.choose(settings.compute)
    generator = Generator.load(PROJECT / "mini" / "models" / "pipeline", chosen.device, chosen.dtype)
    optimizer = torch.optim.AdamW(adapter.add(generator, settings.lora.rank, settings.lora.alpha, 0))
    conditioning = generator.encode(["A recording of an angry piano solo, high quality"], settings.prompts.negative)
    schedule = make_schedule(generator.scheduler, steps, ddpo.ETA)
    prompt = torch.zeros(CLIPS, dtype=torch.long)
    noise = [random_generator(0, "benchmark", 0, i) for i in range(CLIPS)]
    before = peak()
    paths = sample(generator, conditioning, prompt, schedule, noise, 5, settings.guidance_scale, chosen)
    policy = ddpo.Policy(generator, conditioning, schedule, settings.guidance_scale)
    ddpo.update(policy, optimizer, paths, prompt, torch.randn(CLIPS), range(steps), settings.ddpo, chosen)
    trajectories = paths.element_size() * paths.nelement()
    return {"steps": steps, "working_mb": (peak() - before - trajectories) / 1e6, "trajectories_mb": trajectories / 1e6}


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(measure(int(sys.argv[1]))))
        return
    rows = []
    for steps in STEPS:
        out = subprocess.run([sys.executable, __file__, str(steps)], check=True, capture_output=True, text=True)
        rows.append(json.loads(out.stdout.splitlines()[-1]))
        rows[-1]["relative_to_first"] = rows[-1]["working_mb"] / rows[0]["working_mb"]
        print({key: round(value, 3) for key, value in rows[-1].items()})
    result = {"command": "python benchmarks/memory.py", "machine": f"{platform.machine()}, {os.cpu_count()} cores"}
    path = PROJECT / "benchmarks" / "results" / "memory.json"
    path.write_text(
        json.dumps(result | {"settings": [{k: round(v, 3) for k, v in r.items()} for r in rows]}, indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
