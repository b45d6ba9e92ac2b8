"""Compares the speed with the reference loop in one run. Run: python benchmarks/speed.py (`make bench`).

On a CPU: a round of the default study on the embedded models. On a GPU: rounds of the paper's settings on AudioLDM 2 in
its full size with random weights. Both sides sample, decode, score and learn the same number of trajectories, each
timed from loaded models to the round's end, after a small round to warm up. With --profile, where the time goes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
import yaml
from tqdm import tqdm

import reference_loop
from full_size import FullSize, full_size
from music_ddpo.core.params import Params
from music_ddpo.core.params_file import parse
from music_ddpo.core.prompts import make_prompts
from music_ddpo.machine import batches
from music_ddpo.model import adapter
from music_ddpo.model.audioldm2 import Generator
from music_ddpo.rewards.base import Reward
from music_ddpo.rewards.emopia import Emopia
from music_ddpo.training import loop, setup
from music_ddpo.training.record import Round

PROJECT = Path(__file__).parent.parent
MODELS = PROJECT / "mini" / "models"
RESULTS = PROJECT / "benchmarks" / "results"
FORWARD = {5: 78.9e9, 10: 167.2e9}  # floating-point operations of one row of the full-size UNet, by seconds of audio


@dataclass(frozen=True)
class Setting:
    """A round to measure, and the batches in which the reference does it; none: ours alone."""

    steps: int
    duration: float
    trajectories: int
    batches: tuple[int, ...]
    updates: int = 1
    timesteps: str = "all"


GPU = (
    Setting(19, 10, 16, (1,)),
    Setting(38, 5, 16, (1,)),
    Setting(200, 5, 8, (1,)),
    Setting(16, 5, 64, (16,)),
    Setting(200, 10, 8, ()),  # memory at most
    Setting(19, 10, 64, ()),  # throughput at most
)


def params_for(setting: Setting, trajectories: int | None = None) -> Params:
    """The shipped params.yaml with a setting's numbers."""
    content = yaml.safe_load((PROJECT / "params.yaml").read_text())
    content |= {"steps": setting.steps, "duration": setting.duration}
    content["ddpo"] |= {
        "rounds": 1,
        "trajectories_per_round": trajectories or setting.trajectories,
        "updates_per_round": setting.updates,
        "timesteps": setting.timesteps,
        "kl": 0.0,  # the reference has no penalty
    }
    return parse(content)


def load(device: torch.device, dtype: torch.dtype) -> Generator:
    """What is measured on this kind of device."""
    return full_size(device, dtype) if device.type == "cuda" else Generator.load(MODELS / "pipeline", device, dtype)


def ours(generator: Generator, reward: Reward, params: Params) -> list[Round]:
    """One round like the stage `train` does it."""
    prompts = make_prompts(params.prompts.template, params.prompts.emotions, params.prompts.instruments)
    with tempfile.TemporaryDirectory() as scratch:
        files = Path(scratch) / "checkpoint.pt", Path(scratch) / "curve.csv"
        chosen = batches.choose(params.compute)
        policy, run = setup.prepare(generator, "emopia", prompts, params, 0, chosen, *files, {})
        loop.train(policy, reward, prompts, params, 0, chosen, run)
        return run.rounds


def theirs(generator: Generator, reward: Reward, params: Params, batch_size: int) -> None:
    """One round as the reference does it."""
    prompts = make_prompts(params.prompts.template, params.prompts.emotions, params.prompts.instruments)
    parameters = adapter.add(generator, params.lora, 0)
    optimizer = torch.optim.AdamW(parameters, params.ddpo.learning_rate, weight_decay=params.ddpo.weight_decay)
    if isinstance(generator, FullSize):
        encode = lambda texts: generator.encode(texts, "")  # noqa: E731
    else:
        encode = reference_loop.resident_encoders(generator, params.prompts.negative)
    reference_loop.round_(generator, reward, prompts, encode, params, optimizer, batch_size, 0)


def timed(work: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Seconds of the work and, on a GPU, the peak of its memory."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    result = work()
    if on_gpu:
        torch.cuda.synchronize()
    measured = {"seconds": time.perf_counter() - started}
    if on_gpu:
        measured["peak_gpu_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
    if result:
        measured |= {"ratio_error": result[0].ratio_error, "clip_fraction": result[0].clip_fraction}
    return measured


def matrix_rate(device: torch.device, size: int = 8192, repeats: int = 50) -> float:
    """bfloat16 operations a second that this card reaches on a large matrix product."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    seconds = timed(lambda: [a @ b for _ in range(repeats)] and None, device)["seconds"]
    return 2 * size**3 * repeats / seconds


def useful_operations(setting: Setting, guidance: bool = True) -> float:
    """Operations that a round needs in the UNet at least; with guidance, two rows per clip and step.

    Forward once to sample, forward and backward once to learn; the backward pass counts as one forward, because the
    weights are frozen. VAE, vocoder and rewards do not count.
    """
    trained = params_for(setting).steps_of_an_update
    return setting.trajectories * (setting.steps + 2 * trained) * FORWARD[setting.duration] * (1 + guidance)


def one_round(setting: Setting, batch: int | None, trajectories: int, reward: Reward, dtype: torch.dtype) -> dict:
    """What a round took: the reference's in batches of `batch`, or ours."""
    params, generator = params_for(setting, trajectories), load(reward.device, dtype)
    if batch is None:
        return timed(lambda: ours(generator, reward, params), reward.device)
    return timed(lambda: theirs(generator, reward, params, batch), reward.device)


def measure(settings: tuple[Setting, ...], device: torch.device, dtype: torch.dtype, repeats: int) -> list[dict]:
    """Each setting on both sides, in turns; of several repeats the median."""
    reward, rows = Emopia.of_folder(MODELS / "rewards" / "emopia", device, "cover"), []
    with tqdm(total=sum(1 + len(s.batches) for s in settings) * repeats, unit="round") as bar:
        for setting in settings:
            sides = (None, *setting.batches)
            runs: dict[int | None, list[dict]] = {side: [] for side in sides}
            for side in sides:
                one_round(setting, side, max(8, 4 * setting.updates, side or 0), reward, dtype)  # to warm up
            for _ in range(repeats):
                for side in sides:
                    runs[side].append(one_round(setting, side, setting.trajectories, reward, dtype))
                    bar.update()
            rows += summarise(setting, runs)
    return rows


def summarise(setting: Setting, runs: dict[int | None, list[dict]]) -> list[dict]:
    """A row for each batch size of the reference, ours beside it."""

    def median(side: int | None) -> dict:
        row = sorted(runs[side], key=lambda r: r["seconds"])[len(runs[side]) // 2]
        return {key: round(value, 4) for key, value in row.items()}

    common = {"steps": setting.steps, "duration": setting.duration, "trajectories": setting.trajectories}
    common["ours"] = median(None)
    rows = []
    for batch in setting.batches:
        ratios = [theirs["seconds"] / ours["seconds"] for theirs, ours in zip(runs[batch], runs[None], strict=True)]
        rows.append(
            common
            | {
                "reference_batch": batch,
                "reference": median(batch),
                "times_faster": round(sorted(ratios)[len(ratios) // 2], 2),
                "times_faster_of_each_repeat": [round(x, 2) for x in ratios],
            }
        )
    return rows or [common]


def profile(setting: Setting, device: torch.device, dtype: torch.dtype) -> str:
    """Where the time of one of our rounds goes, by operation."""
    reward = Emopia.of_folder(MODELS / "rewards" / "emopia", device, "cover")
    generator = load(device, dtype)
    on_gpu = device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * on_gpu
    with torch.profiler.profile(activities=activities, acc_events=True) as recorded:
        ours(generator, reward, params_for(setting))
    key = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
    return recorded.key_averages().table(sort_by=key, row_limit=25, max_name_column_width=50)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="also write where the time of a round goes")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    on_gpu = torch.cuda.is_available()
    device, dtype = (torch.device("cuda"), torch.bfloat16) if on_gpu else (torch.device("cpu"), torch.float32)
    default = parse(yaml.safe_load((PROJECT / "params.yaml").read_text()))
    study = Setting(
        default.steps, default.duration, default.ddpo.trajectories_per_round, (1, 16), default.ddpo.updates_per_round,
        default.ddpo.timesteps,
    )  # fmt: skip
    rows = measure(GPU if on_gpu else (study,), device, dtype, arguments.repeats)
    result = {
        "command": "python benchmarks/speed.py",
        "machine": torch.cuda.get_device_name() if on_gpu else f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
        "models": "AudioLDM 2 in full size, random weights, bfloat16" if on_gpu else "mini, float32",
    }
    if on_gpu:
        rate = matrix_rate(device)
        result["matrix_product_tflops"] = round(rate / 1e12, 1)
        for setting, row in zip((s for s in GPU for _ in s.batches or (None,)), rows, strict=True):
            row["share_of_matrix_rate"] = round(useful_operations(setting) / row["ours"]["seconds"] / rate, 4)
    RESULTS.mkdir(exist_ok=True)
    kind = "gpu" if on_gpu else "cpu"
    text = json.dumps(result | {"rounds": rows}, indent=2)
    (RESULTS / f"speed-{kind}.json").write_text(text + "\n")
    print(text)
    if arguments.profile:
        (RESULTS / f"profile-{kind}.txt").write_text(profile(GPU[-1] if on_gpu else study, device, dtype) + "\n")


if __name__ == "__main__":
    main()
