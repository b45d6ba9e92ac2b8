"""Tries generated params.yaml files: each must end in a clear error or in the right result.

Run: python benchmarks/fuzz.py [--cases 1000] [--seed 0]. A case is the shipped file with one to three values replaced
by hostile or unusual ones, or with damaged bytes. What the loader accepts goes through what the stages do with params
before the heavy work: prompts, file names, batches, schedule, optimizer, statistics. Each case has a process of its
own, with limits of time and memory. Failures are a traceback, a hang, too much memory, an error that is not one short
line, and a wrong success: a value that differs from what DVC reads, a prompt without clips, a number that is not
finite.

The result goes to benchmarks/results/fuzz-params.json.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import random
import resource
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import yaml
from diffusers import DDIMScheduler
from dvc.utils.serialize import parse_yaml

from music_ddpo.core.checked_tables import Text, read_table
from music_ddpo.core.errors import UserError
from music_ddpo.core.params import Params
from music_ddpo.core.params_file import load
from music_ddpo.core.prompts import make_prompts
from music_ddpo.machine import batches
from music_ddpo.measuring import clips, statistics
from music_ddpo.model.ddim import make_schedule
from music_ddpo.training.ddpo import advantages
from music_ddpo.training.loop import own_clips

PROJECT = Path(__file__).parent.parent
RESULT = PROJECT / "benchmarks" / "results" / "fuzz-params.json"
SECONDS, MEMORY = 60, 6 << 30  # of a case
SCHEDULER = PROJECT / "mini" / "models" / "pipeline" / "scheduler"

# Values by the type of the key that they often replace: texts and lists in Python, numbers and others as YAML has them.
TEXTS = [
    *("", " ", "mini", "auto", "all", "random", "clap", "held_out", "cpu", "cuda", "cuda:99", "mps"),
    *("/", "a b", "a/b", "../x", "~x/y", "ünï", "x" * 60, "x" * 5000, "a\0b", "a\rb", "a\nb"),
    *("\ud800", "\u2028", "\u0661", "nan", "808", "bfloat16", "main", "HTSAT-tiny", "audioldm2"),
    *("{emotion} {instrument}", "{emotion}{instrument}{article}", "{emotion:>99999999} {instrument}", "{emotion"),
    *("{emotion!r} {instrument}", "{emotion.x} {instrument}", "{{emotion}} {instrument}", "{}", "{0}"),
    *("last 5", "first 20%", "first 1000", "margin", "label"),
]
NUMBERS = [
    *("0", "1", "2", "3", "7", "19", "64", "1000", "-1", "0.5", "1e-5", "1e-300", "1e39", "1e300", "1e400", "-0.0"),
    *(".nan", ".inf", "-.inf", "9" * 30, "9" * 5000, "0x" + "f" * 5000, "0777", "0o17", "1_000", "1:20:30", "1e12"),
]
LISTS = [
    *(["happy"], ["happy", "sad", "joyful"], ["hungry"], ["piano", "zither", "flute"], ["p" * 50, "ü" * 50], [], [1]),
    *(["a/b", "a b", "../c"], ["808", "nan"], ["clap"], ["emopia", "both"], ["both"], ["held_out"], ["clap", "clap"]),
    *([f"i{i}" for i in range(30)], [0.9, 0.999], [0.9, 1.0], [0.0, 0.0], [[[["x"]]]]),
]
OTHERS = [
    *("null", "~", "true", "yes", "2001-01-01", "2001-99-99", "!!int abc", "!!float abc", "!!bool maybe"),
    *("!!binary aGk=", "!!set {a}", "!!python/object:os.system {}", "&a [*a]", "*nothing", "{}", "{a: {a: 1}}"),
    *("{otherwise: 1}", "{mini: 3, otherwise: 0.001}", "{<<: 3}", "%", "@", "`", "|", ">", "? :", "- -", "[" * 400),
]


def keys(content: dict, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every key, of groups too."""
    for key, value in content.items():
        yield (*before, key)
        if isinstance(value, dict):
            yield from keys(value, (*before, key))


def case(number: int, seed: int) -> bytes:
    """The content of a params.yaml."""
    rng = random.Random(f"{seed}/{number}")
    content = yaml.safe_load((PROJECT / "params.yaml").read_text())
    replaced: dict[str, str] = {}
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        *groups, last = rng.choice(list(keys(content)))
        group = content
        for name in groups:
            group = group[name]
        mark, what = f"replaced {len(replaced)}", rng.random()
        if what < 0.05:
            del group[last]
        elif what < 0.1:
            group[last + rng.choice(("z", "\0", " ", "é" * 100))] = 1
        else:
            like = group[last] if what < 0.8 else rng.choice((1, "", [], None))
            replaced[json.dumps(mark)] = another(like, rng)
            group[last] = mark
    text = json.dumps(content, indent=1)  # JSON is YAML, in which any YAML can stand
    for mark, value in replaced.items():
        text = text.replace(mark, value)
    raw = text.encode("utf-8", "surrogatepass")
    if rng.random() < 0.1:  # damaged
        place, length = rng.randrange(len(raw)), rng.choice((1, 5, 500))
        raw = raw[:place] + rng.choice((b"", rng.randbytes(length), raw[:length])) + raw[place + length :]
    return raw


def another(value: object, rng: random.Random) -> str:
    """Another value, as YAML; mostly of the same type, and often near it."""
    near = rng.random() < 0.7
    if isinstance(value, int | float):
        numbers = (value + 1, value - 1, value * 2, value // 2, value * 10, value / 10, value * 10**6, -value)
        return repr(rng.choice(numbers)) if near else rng.choice(NUMBERS)
    if isinstance(value, list):
        part = rng.sample(value, rng.randint(0, len(value)))
        return json.dumps(part if near else rng.choice(LISTS))
    if isinstance(value, str):
        return json.dumps(rng.choice(TEXTS))
    return rng.choice(OTHERS)


def use(params: Params, folder: Path) -> None:
    """What the stages do with params before their heavy work; an AssertionError if its result is wrong."""
    group = params.prompts
    prompts = make_prompts(group.template, group.emotions, group.instruments)
    assert len({p.text for p in prompts}) == len(prompts), "two prompts are the same"
    asked = clips.evaluation_prompts(params)
    assert Counter(p.text for p in asked).keys() == {p.text for p in prompts}, "a prompt has no clip"
    some = list({p.text: p for p in asked}.values())[:64]
    clips.save(folder / "clips", [torch.zeros(160)] * len(some), 16_000, some)
    assert len(list((folder / "clips").glob("*.wav"))) == len(some), "two clips have the same file"
    columns = dict.fromkeys(clips.index_of(some), Text())
    loaded = read_table(folder / "clips" / clips.INDEX, columns)
    assert list(loaded["instrument"]) == [p.instrument for p in some], "a prompt is read back differently"

    execution = batches.choose(params.compute)
    ddpo = params.ddpo
    index = torch.arange(ddpo.trajectories_per_round) % len(prompts)
    assert min(torch.bincount(index)) >= 2, "a prompt has fewer than two trajectories"
    groups = own_clips(ddpo, execution.batch)
    own = [i for update in groups for part in update for i in part]
    assert own == list(range(len(index))), "a trajectory is left out"
    advantage = advantages(torch.rand(len(index)), index, {}, ddpo.advantage_window, ddpo.advantage_clip)
    torch.zeros(4).split(execution.decode_batch)
    schedule = make_schedule(DDIMScheduler.from_pretrained(SCHEDULER), params.steps, params.evaluation.eta)
    assert params.trained_steps
    assert 0 <= params.trained_steps[0] <= params.trained_steps[-1] < len(schedule.timesteps)

    weight = torch.nn.Parameter(torch.full((4,), 0.1))
    optimizer = torch.optim.AdamW([weight], ddpo.learning_rate, tuple(ddpo.adam_betas), weight_decay=ddpo.weight_decay)
    ratio = (weight * advantage.mean()).exp()
    clipped = ratio.clamp(1 - ddpo.clip_range, 1 + ddpo.clip_range)
    (torch.maximum(ratio, clipped).sum() * params.lora.alpha / params.lora.rank * params.guidance_scale).backward()
    torch.nn.utils.clip_grad_norm_([weight], ddpo.max_gradient_norm)
    optimizer.step()
    for mix in params.mixtures.values():
        total = sum(mix.values())
        assert math.isclose(sum(float(torch.tensor(1.0) * w / total) for w in mix.values()), 1, rel_tol=1e-5), "weights"
    estimate = statistics.proportion(1, 4, params.evaluation.confidence)
    settings = params.evaluation
    scores = torch.rand(8).numpy()
    change = statistics.bootstrap((scores,), lambda x: x, settings.confidence, settings.bootstrap, 0)
    numbers = [*weight.tolist(), *advantage.tolist(), estimate.low, estimate.high, change.value]
    assert all(map(math.isfinite, numbers)), "a number is not finite"


def same_as_dvc(params: Params, text: str) -> None:
    """An AssertionError if DVC, which decides by params what is run again, reads something else."""
    ours, todo = params.model_dump(), [((), parse_yaml(text, "params.yaml"))]
    while todo:
        path, value = todo.pop()
        mine = ours
        for key in path:
            mine = mine[key]
        if isinstance(value, dict):
            assert value.keys() == mine.keys()
            todo += [((*path, key), part) for key, part in value.items()]
        else:
            assert value in (mine, "auto"), f"DVC reads {'.'.join(path)} as {value!r}, the stages as {mine!r}"


def attempt(raw: bytes, answer: Connection) -> None:
    """Sends how the case ended, as (kind, message)."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        path = Path(folder) / "params.yaml"
        path.write_bytes(raw)
        stage = "refused by the loader"
        try:
            params = load(path)
            stage = "refused by a stage"
            same_as_dvc(params, raw.decode("utf-8-sig"))
            use(params, Path(folder))
            answer.send(("accepted", ""))
        except UserError as error:
            message = str(error)
            answer.send(
                (stage, message) if len(message) < 1000 and "\n" not in message else ("unclear", message[:1000])
            )
        except AssertionError as error:
            answer.send(("wrong success", str(error)))
        except MemoryError:
            answer.send(("memory", traceback.format_exc(limit=-1)))
        except BaseException:
            answer.send(("traceback", traceback.format_exc(limit=-3)))


def run(count: int, seed: int) -> dict:
    """Tries `count` cases; how many ended how, and the failures."""
    fork = multiprocessing.get_context("fork")
    ended: Counter[str] = Counter()
    failures, slowest = [], 0.0
    for number in range(count):
        raw, started = case(number, seed), time.perf_counter()
        receiver, sender = fork.Pipe(duplex=False)
        worker = fork.Process(target=attempt, args=(raw, sender))
        worker.start()
        sender.close()
        try:
            kind, message = receiver.recv() if receiver.poll(SECONDS) else ("hang", f"more than {SECONDS} s")
        except EOFError:
            worker.join()
            kind, message = "died", f"exit code {worker.exitcode}"
        worker.kill()
        worker.join()
        slowest = max(slowest, time.perf_counter() - started)
        ended[kind] += 1
        if kind not in ("accepted", "refused by the loader", "refused by a stage"):
            failures.append({"case": number, "kind": kind, "message": message})
            print(failures[-1], flush=True)
    # Of the children, which begin with what this process has loaded.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return {
        "cases": count,
        "seed": seed,
        "ended": dict(sorted(ended.items())),
        "failures": failures,
        "slowest_seconds": round(slowest, 1),
        "peak_memory_gb": round(peak / 1e9, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--show", type=int, metavar="CASE", help="print a case and stop")
    arguments = parser.parse_args()
    if arguments.show is not None:
        print(case(arguments.show, arguments.seed).decode("utf-8", "replace"))
        return
    torch.set_num_threads(1)
    result = {"command": "python benchmarks/fuzz.py"} | run(arguments.cases, arguments.seed)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result | {"failures": len(result["failures"])}))
    raise SystemExit(1 if result["failures"] else 0)


if __name__ == "__main__":
    main()
