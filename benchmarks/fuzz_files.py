"""Damages the files that stages read and runs their readers. Run: python benchmarks/fuzz_files.py [--cases 300].

Every case damages one file in one way, runs the reader or the stage that reads it in a forked process with limits, and
puts the file back. A reader must refuse the file with a `UserError`, or read the same as before. What is forbidden: a
traceback, more than 60 s, more than 6 GB, and a wrong success: other content that is accepted. Other content is allowed
where nothing can tell it from the true one: another digit, or other samples, in a file without a checksum.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import resource
import runpy
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
import yaml
from safetensors.torch import load_file

from music_ddpo.core.errors import UserError
from music_ddpo.core.files import checksums
from music_ddpo.core.params import LoRAParams
from music_ddpo.core.params_file import parse
from music_ddpo.core.prompts import make_prompts
from music_ddpo.measuring import clips
from music_ddpo.model import adapter
from music_ddpo.model.audioldm2 import Generator
from music_ddpo.rewards import fetching
from music_ddpo.rewards.emopia import Emopia, weights
from music_ddpo.rewards.emopia.network import WEIGHTS
from music_ddpo.rewards.emopia.reward import read_hparams
from music_ddpo.rewards.finding import load_reward
from music_ddpo.training import checkpoint
from music_ddpo.weights import shipped
from music_ddpo.weights.manifests import check_pipeline

PROJECT = Path(__file__).resolve().parents[1]
RESULT = PROJECT / "benchmarks" / "results" / "fuzz-files.json"
CPU = torch.device("cpu")
SECONDS, BYTES = 60, 6e9
NUMBER = re.compile(rb"(?<![\w.])-?\d+(\.\d+)?([eE][-+]?\d+)?(?![\w.])")
REFUSED, TRACEBACK = 10, 11  # exit codes


# Damages: the content of a file, and a random generator; a result of None makes a named pipe of the file.


def flipped(content: bytes, rng: random.Random) -> bytes:
    spoilt = bytearray(content)
    for _ in range(rng.randint(1, 20)):
        spoilt[rng.randrange(len(spoilt))] ^= rng.randint(1, 255)
    return bytes(spoilt)


def replaced(content: bytes, rng: random.Random, text: bytes, floats: bytes) -> bytes:
    """A number becomes `text`, or, in a file of weights, one of the last floats becomes `floats`."""
    found = list(NUMBER.finditer(content)) if b"\0" not in content else []
    if found:
        chosen = rng.choice(found)
        return content[: chosen.start()] + text + content[chosen.end() :]
    place = len(content) - 4 * rng.randint(1, max(1, min(2000, len(content) // 8)))
    return content[:place] + floats + content[place + 4 :]


def without_a_line_or_column(content: bytes, rng: random.Random) -> bytes:
    if b"\0" in content:
        start = rng.randrange(len(content) // 2)
        return content[:start] + content[start + 1000 :]
    lines = content.splitlines(keepends=True)
    if content.count(b",") > 2 * len(lines) > 4 and rng.random() < 0.5:
        column = rng.randrange(lines[0].count(b",") + 1)
        cells = [line.rstrip(b"\n").split(b",") for line in lines]
        return b"".join(b",".join(c[:column] + c[column + 1 :]) + b"\n" for c in cells)
    del lines[rng.randrange(len(lines))]
    return b"".join(lines)


def doubled(content: bytes, rng: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    chosen = rng.randrange(len(lines))
    return content * 2 if b"\0" in content else b"".join([*lines[: chosen + 1], *lines[chosen:]])


DAMAGES: dict[str, Callable[[bytes, random.Random], bytes | None]] = {
    "truncated": lambda content, rng: content[: rng.randrange(len(content))],
    "flipped": flipped,
    "empty": lambda content, rng: b"",
    "binary": lambda content, rng: rng.randbytes(2000),
    "not a number": lambda content, rng: replaced(content, rng, b"NaN", struct.pack("<f", float("nan"))),
    "wrong type": lambda content, rng: replaced(content, rng, b'["x"]', b"text").replace(b'"F32"', b'"I32"', 1),
    "huge": lambda content, rng: replaced(content, rng, rng.choice([b"1e300", b"9" * 30]), struct.pack("<f", 3e38)),
    "removed": without_a_line_or_column,
    "doubled": doubled,
    "nested": lambda content, rng: b"[" * 100_000,
    "a pipe": lambda content, rng: None,
}


class Kinds:
    """The kinds of files: for each the files, and what reads them. All are made in one temporary project."""

    def __init__(self, project: Path):
        self.project = project
        content = yaml.safe_load((PROJECT / "params.yaml").read_text())
        content["evaluation"]["bootstrap"] = 200
        for name in ("metrics", "stages"):
            shutil.copytree(PROJECT / name, project / name)
        (project / "src").symlink_to(PROJECT / "src")
        (project / "params.yaml").write_text(yaml.safe_dump(content))
        params = parse(content)
        os.chdir(PROJECT)
        models = project / "models"
        fetching.fetch(params, models)
        os.chdir(project)
        shutil.copytree(models / "pipeline", project / "own")
        shutil.copytree(PROJECT / "mini" / "models", project / "shipped")

        self.params = parse(content | {"duration": 1, "evaluation": content["evaluation"] | {"clips_per_emotion": 2}})
        asked = clips.evaluation_prompts(self.params)
        noise = torch.rand(len(asked), 16_000, generator=torch.Generator().manual_seed(0)) - 0.5
        clips.save(project / "clips" / "baseline", list(noise), 16_000, asked)

        self.generator = Generator.load(models / "pipeline", CPU)
        other = Generator.load(models / "pipeline", CPU)
        for parameter in adapter.parameters(other) or adapter_of(other):
            parameter.data += 0.01
        adapter.save(other, models / "adapters" / "emopia")

        part = project / "best_weight" / "wav" / "ar_va"
        part.mkdir(parents=True)
        states = load_file(models / "rewards" / "emopia" / "model.safetensors")
        torch.save({"state_dict": {f"model.{name}": x for name, x in states.items()}}, part / "best.ckpt")
        shutil.copyfile(models / "rewards" / "emopia" / "hparams.yaml", part / "hparams.yaml")
        with zipfile.ZipFile(project / "emopia.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for path in part.iterdir():
                archive.write(path, path.relative_to(project))

        self.identity = {"seed": 1, "ddpo.rounds": 3}
        self.save_checkpoint(project / "train-clap.pt")

    def save_checkpoint(self, path: Path) -> None:
        run: Any = object.__new__(checkpoint.Run)
        parameter = torch.nn.Parameter(torch.ones(100))
        run.parameters, run.optimizer = [parameter], torch.optim.AdamW([parameter])
        run.history, run.rounds, run.identity, run.checkpoint = {0: [0.5]}, [], self.identity, path
        run.latest, run.best = [[parameter.detach()]], None
        run.write()

    def table(self, _: Path) -> Any:
        self.stage("table")
        return [Path(name).read_text() for name in ("metrics/accuracy.json", "metrics/table.md")]

    def card(self, _: Path) -> Any:
        self.stage("card", "emopia")
        return [Path(name).read_text() for name in ("models/adapters/emopia/README.md", "metrics/emopia.json")]

    def stage(self, name: str, *arguments: str) -> None:
        """Runs a stage in this process; its error becomes a `UserError`."""
        sys.argv = [f"stages/{name}.py", *arguments]
        sys.path.insert(0, "stages")
        said: list[str] = []
        click.echo = lambda message="", **_: said.append(str(message))
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise UserError(" ".join(said)) from None

    def clips(self, _: Path) -> Any:
        folder = Path("clips/baseline")
        index, _prompts = clips.load(folder, self.params)
        heard = clips.waveforms(folder, list(index["clip"]), 4, self.params.duration)
        return [index.to_csv(), *(waveforms.numpy().tobytes() for _, waveforms, _ in heard)]

    def pipeline(self, _: Path) -> Any:
        return str(check_pipeline(Path("models")))

    def own_pipeline(self, _: Path) -> Any:
        generator = Generator.load("own", CPU)
        latents = torch.zeros(1, *generator.latent_shape(1.0))
        return generator.decode(latents, 1.0).numpy().tobytes()

    def reward(self, path: Path) -> Any:
        name = path.parent.name
        prompts = make_prompts("a {emotion} {instrument}", ["sad"], ["piano"])
        sound = torch.rand(1, 5 * 16_000, generator=torch.Generator().manual_seed(0)) - 0.5
        return load_reward(name, Path("models"), CPU).score(sound, 16_000, prompts).value.tolist()

    def shipped(self, _: Path) -> Any:
        with tempfile.TemporaryDirectory() as target:
            for part in ("rewards/emopia", "pipeline"):
                shipped.copy(Path("shipped"), part, Path(target) / part)
        return shipped.read_reference(Path("shipped"))

    def emopia(self, path: Path) -> Any:
        with tempfile.TemporaryDirectory() as target:
            weights.fetch("emopia.zip" if path.suffix == ".zip" else "best_weight/wav/ar_va", Path(target))
            Emopia.of_folder(Path(target), CPU, "cover")
            return checksums(Path(target), WEIGHTS), read_hparams(Path(target)).model_dump()

    def adapter(self, _: Path) -> Any:
        adapter.load(self.generator, "models/adapters/emopia")
        return [p.sum().item() for name, p in self.generator.unet.named_parameters() if ".lora_" in name]

    def checkpoint(self, path: Path) -> Any:
        saved = checkpoint.read(path, self.identity)
        if saved is None:
            raise UserError("it is set aside, with a warning")
        return saved["history"], saved["parameters"][0].tolist()

    def all(self) -> dict[str, tuple[list[str], Callable[[Path], Any], bool]]:
        """By kind: its files, what reads them, and whether a checksum covers them."""
        return {
            "index of clips": (["clips/baseline/index.csv"], self.clips, False),
            "clip": (["clips/baseline/*.wav"], self.clips, False),
            "scores": (["metrics/clips/*.csv"], self.table, False),
            "reference": (["models/reference.json"], self.table, False),
            "seed": (["metrics/seed.json"], self.card, False),
            "results": (
                ["metrics/accuracy.json", "metrics/weights.json", "metrics/train/emopia.json",
                 "metrics/cost/train-emopia.json"], self.card, False),
            "manifest of the pipeline": (["models/manifest.json"], self.pipeline, False),
            "pipeline": (["models/pipeline/*/*"], self.pipeline, True),
            "pipeline without a manifest": (["own/*/*.json", "own/*/*.safetensors"], self.own_pipeline, False),
            "manifest of a reward": (["models/rewards/*/manifest.json"], self.reward, False),
            "reward": (["models/rewards/*/*.safetensors", "models/rewards/*/[chpt]*"], self.reward, True),
            "shipped model": (["shipped/*.json", "shipped/rewards/emopia/*"], self.shipped, True),
            "EMOPIA's zip and folder": (["emopia.zip", "best_weight/wav/ar_va/*"], self.emopia, False),
            "adapter": (["models/adapters/emopia/adapter_*"], self.adapter, False),
            "checkpoint": (["train-clap.pt"], self.checkpoint, True),
        }  # fmt: skip


def adapter_of(generator: Generator) -> list[torch.nn.Parameter]:
    return adapter.add(generator, LoRAParams(rank=4, alpha=4.0, targets="cross"), seed=0)


def attempt(read: Callable[[Path], Any], path: Path, said: Path) -> tuple[int, float, float]:
    """Runs a reader in a forked process: its exit code (negative: a signal), seconds, and bytes of memory.

    It writes the digest of what it read, or its error, to the file `said`.
    """
    started = time.perf_counter()
    child = os.fork()
    if not child:
        code = TRACEBACK
        try:
            signal.alarm(SECONDS)
            resource.setrlimit(resource.RLIMIT_DATA, (int(BYTES), int(BYTES)))
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 1)
            os.dup2(null, 2)
            warnings.simplefilter("ignore")
            said.write_text(hashlib.sha256(repr(read(path)).encode()).hexdigest())
            code = 0
        except UserError as error:
            said.write_text(str(error))
            code = REFUSED
        except BaseException:
            said.write_text(traceback.format_exc()[-1500:])
        finally:
            os._exit(code)
    _, status, usage = os.wait4(child, 0)
    return os.waitstatus_to_exitcode(status), time.perf_counter() - started, usage.ru_maxrss * 1024


def verdict(code: int, seconds: float, memory: float, same: bool, told: str, plausible: bool) -> str:
    if code == -signal.SIGALRM or seconds > SECONDS:
        return "hang"
    if memory > BYTES or (code == TRACEBACK and "MemoryError" in told):
        return "memory"
    if code not in (0, REFUSED) or "\n" in told or len(told) > 2000:
        return "traceback"
    if code == REFUSED:
        return "refused"
    if same:
        return "read the same"
    return "plausible" if plausible else "wrong success"


BAD = ("hang", "memory", "traceback", "wrong success")


def fuzz(cases: int, seed: int, only: Callable[[str], bool] = lambda kind: True) -> dict[str, Any]:
    """Runs so many cases; the summary, with every case that ended in a forbidden way."""
    rng = random.Random(seed)
    counts: dict[str, Counter] = {}
    bad: list[dict[str, Any]] = []
    slowest = largest = 0.0
    home = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        project, said = Path(folder) / "project", Path(folder) / "said"
        project.mkdir()
        kinds = {k: v for k, v in Kinds(project).all().items() if only(k)}
        truth: dict[Path, str] = {}
        for case in range(cases):
            kind = list(kinds)[case % len(kinds)]
            patterns, read, covered = kinds[kind]
            files = [p for pattern in patterns for p in sorted(project.glob(pattern))]
            path = rng.choice(sorted({p for p in files if p.is_file()}))
            damage = rng.choice(list(DAMAGES))
            if path not in truth:
                code, *_ = attempt(read, path, said)
                assert code == 0, f"{path}: {code}, {said.read_text()}"
                truth[path] = said.read_text()
            content, kept = path.read_bytes(), Path(folder) / "kept"
            spoilt = DAMAGES[damage](content, rng)
            path.rename(kept)
            os.mkfifo(path) if spoilt is None else path.write_bytes(spoilt)
            code, seconds, memory = attempt(read, path, said)
            path.unlink(missing_ok=True)  # a checkpoint is set aside
            kept.rename(path)
            told = said.read_text()
            altered = damage == "flipped" or len(spoilt or b"") == len(content)  # bytes are overwritten by others
            found = verdict(code, seconds, memory, told == truth[path], told, altered and not covered)
            counts.setdefault(kind, Counter())[found] += 1
            slowest, largest = max(slowest, seconds), max(largest, memory)
            if found in BAD:
                name = str(path.relative_to(project))
                wrong = {"content": repr((spoilt or b"")[:300])}
                bad.append({"case": case, "file": name, "damage": damage, "end": found, "told": told[-600:]} | wrong)
        os.chdir(home)
    total = sum(counts.values(), Counter())
    return {
        "cases": cases,
        "seed": seed,
        "ends": {end: total[end] for end in ("refused", "read the same", "plausible", *BAD)},
        "by_kind": {kind: dict(sorted(c.items())) for kind, c in counts.items()},
        "slowest_seconds": round(slowest, 1),
        "largest_gb": round(largest / 1e9, 2),
        "bad": bad,
    }


@click.command()
@click.option("--cases", default=300, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(cases: int, seed: int) -> None:
    """Runs the cases, prints the summary and writes it to benchmarks/results/."""
    torch.set_num_threads(1)
    summary = fuzz(cases, seed)
    text = json.dumps(summary, indent=2)
    print(text)
    RESULT.write_text(text + "\n")
    sys.exit(bool(summary["bad"]))


if __name__ == "__main__":
    main()
