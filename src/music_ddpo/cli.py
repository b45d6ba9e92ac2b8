"""The command `music-ddpo`: clips, a check before a training, experiments compared, a listening test, params."""

from __future__ import annotations

import json
import math
import re
import secrets
import socket
import sys
from contextlib import nullcontext, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from music_ddpo.core.errors import UserError, did_you_mean
from music_ddpo.core.params import DEVICES
from music_ddpo.core.texts import one_line

PARAMS = Path("params.yaml")
EXPLANATIONS = Path(__file__).parents[2] / "docs" / "params.md"


def _place(ctx: click.Context, param: click.Parameter, path: Path) -> Path:
    if path.suffix.lower() not in ("", ".wav") or path.name == ".wav":
        raise click.BadParameter(f"{str(path)!r} is neither a folder nor a name that ends in .wav, like clip.wav.")
    return path


def _not_blank(ctx: click.Context, param: click.Parameter, prompts: tuple[str, ...]) -> tuple[str, ...]:
    for i, prompt in enumerate(prompts):
        if not prompt.strip():
            raise click.BadParameter(f"prompt {i + 1} of {len(prompts)} is empty; describe the music.")
        _plain(ctx, param, prompt)
    return prompts


def _plain(ctx: click.Context, param: click.Parameter, text: str | None) -> str | None:
    try:
        return text if text is None else one_line(text)
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from None


def _finite(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a finite number.")
    return value


def _device(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None and not re.fullmatch(DEVICES, value):
        raise click.BadParameter(f"{value!r} must be auto, cpu, mps, cuda or cuda:N.")
    return value


@click.group()
def main() -> None:
    """Reinforcement learning on text-to-music diffusion. Run the study itself with `dvc repro`."""


@main.command()
@click.argument("prompts", nargs=-1, required=True, metavar="PROMPT...", callback=_not_blank)
@click.option(
    "--out", default=Path("generated"), show_default=True, type=click.Path(path_type=Path), metavar="PATH",
    callback=_place, help="A folder, in which clips are named by prompt and take, or the file of the clip, *.wav.",
)  # fmt: skip
@click.option(
    "--adapter", type=click.Path(path_type=Path), metavar="FOLDER",
    help="An adapter, e.g. models/adapters/emopia. Without one the untouched model is used.",
)  # fmt: skip
@click.option("--compare", is_flag=True, help="Also write the untouched model's clip from the same noise.")
@click.option("--takes", type=click.IntRange(1, 1000), default=1, show_default=True, help="Clips per prompt.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the noise.")
@click.option(
    "--duration", type=click.FloatRange(0, 300, min_open=True), callback=_finite, help="Length of a clip in seconds."
)
@click.option("--steps", type=click.IntRange(1, 1000), help="Denoising steps.")
@click.option(
    "--guidance-scale", type=click.FloatRange(min=1), callback=_finite,
    help="Classifier-free guidance; 1 switches it off.",
)  # fmt: skip
@click.option("--negative", metavar="TEXT", callback=_plain, help="The negative prompt.")
@click.option(
    "--eta", type=click.FloatRange(0, 1), callback=_finite,
    help="0 is deterministic DDIM, 1 is the stochastic sampler of training.",
)  # fmt: skip
@click.option(
    "--model", type=click.Path(path_type=Path), default=Path("models/pipeline"), show_default=True, metavar="FOLDER",
    help="The model, a folder in diffusers' pipeline layout.",
)  # fmt: skip
@click.option("--device", callback=_device, metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps.")
def generate(
    prompts: tuple[str, ...], out: Path, adapter: Path | None, compare: bool, takes: int, seed: int, model: Path,
    **options: Any,
) -> None:  # fmt: skip
    """Writes a clip for each PROMPT as a 16-bit WAV file, named by the prompt, and by its take if there are several.

    A clip that exceeds full scale is scaled down as a whole.

    Options that are not given come from params.yaml in this folder (--eta: evaluation.eta). Without that file they are
    AudioLDM 2's own: 10 s, 200 steps, guidance 3.5, no negative prompt, eta 0.

    The same command gives the same bits on the same machine. Other prompts or more takes make no audible difference to
    a clip. Existing files are replaced.

    \b
    music-ddpo generate "A recording of an angry piano solo, high quality" \\
        --adapter models/adapters/emopia --compare --out angry.wav
    """  # noqa: D301
    if compare and adapter is None:
        raise click.UsageError("--compare compares the untouched model with an adapter; add --adapter FOLDER.")
    from music_ddpo.model import adapter_files

    try:
        if adapter is not None:
            adapter_files.check(adapter)
        from music_ddpo import generation  # late: it imports torch and diffusers

        settings = generation.settings(PARAMS, options)
        clips = generation.plan(prompts, takes, out)
        generation.check_places([path for clip in clips for path in clip.paths(compare)])
        generation.generate(clips, prompts, seed, model, adapter, compare, settings)
    except UserError as error:
        raise click.ClickException(str(error)) from error


@main.command()
@click.option("--train", is_flag=True, help="Also train a little with loudness as the reward; takes minutes.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def doctor(train: bool, as_json: bool) -> None:
    """Checks this machine and the fetched models, and estimates what `dvc repro` will take.

    Each line is ok, look (possible, but doubtful) or broken, with what to do. The exit code is 1 if a line is broken.
    Run it in the project's folder, after `dvc repro fetch`. It changes nothing there.
    """
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = True
    from music_ddpo.doctor.examination import examine  # late: it imports torch and diffusers
    from music_ddpo.doctor.report import Report

    report = Report(lambda row: None if as_json else click.echo(row.text()))
    with redirect_stdout(sys.stderr) if as_json else nullcontext():  # libraries print
        examine(report, train)
    if as_json:
        click.echo(json.dumps(report.content(), indent=2, allow_nan=False))
    sys.exit(report.broken)


@main.command()
@click.argument("experiments", nargs=-1, metavar="EXP...")
@click.option("--all", "everything", is_flag=True, help="Compare all finished experiments of this repository.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Also draw the changes with their intervals, as SVG.",
)
def compare(experiments: tuple[str, ...], everything: bool, plot: Path | None) -> None:
    """Compares finished DVC experiments: a table in Markdown, grouped by what was changed.

    EXP is the name of an experiment or any git revision (HEAD: the committed run). Experiments that differ in the seed
    only are one group, with the mean and an interval over its seeds.

    \b
    music-ddpo compare --all --plot comparison.svg
    """  # noqa: D301
    if everything == bool(experiments):
        raise click.UsageError("name experiments, or use --all.")
    from music_ddpo.core.files import write_text
    from music_ddpo.measuring import comparison  # late: they import dvc and scipy
    from music_ddpo.measuring import experiments as results

    try:
        chosen = results.read_all() if everything else results.read(experiments)
        if not chosen:
            raise UserError("no finished experiment can be compared; `dvc exp run -S key=value` runs one.")
        found = comparison.groups(chosen)
        click.echo(comparison.table(found))
        if plot is not None:
            write_text(plot, comparison.picture(found))
    except UserError as error:
        raise click.ClickException(str(error)) from error


@main.command()
@click.option("--question", default="Which sounds more {emotion}?", show_default=True, callback=_plain, metavar="TEXT")
@click.option("--systems", metavar="NAMES", help="original and adapters, with commas; all if not given.")
@click.option("--pairs", type=click.IntRange(1, 10_000), default=40, show_default=True, help="Pairs for each rater.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Draws pairs, orders and sides.")
@click.option(
    "--votes", "path", default=Path("votes/votes.jsonl"), show_default=True, type=click.Path(path_type=Path),
    metavar="FILE", help="Where the votes are kept; a test that was interrupted goes on.",
)  # fmt: skip
@click.option("--host", default="127.0.0.1", show_default=True, help="Another address needs the token that is printed.")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True)
def listen(question: str, systems: str | None, pairs: int, seed: int, path: Path, host: str, port: int) -> None:
    """Serves a blind listening test on this machine: pairs of clips from the same noise, A and B.

    Run it in the project's folder, after `dvc repro`. Raters give a name or code of their own; each vote is on disk
    before the next pair appears. Ctrl-C ends it; the same command goes on. `music-ddpo votes` shows the result.
    """
    from music_ddpo.blindtest import server  # late: they import torch, starlette and librosa
    from music_ddpo.blindtest.pairs import ORIGINAL, make_plan
    from music_ddpo.blindtest.votes import Box
    from music_ddpo.core.params_file import load

    try:
        settings = load()
        chosen = [ORIGINAL, *settings.rewards] if systems is None else [name.strip() for name in systems.split(",")]
        plan = make_plan(settings, chosen, pairs, question, seed)
        at = server.bind(host, port)
        box = Box(path, plan.identity())
    except UserError as error:
        raise click.ClickException(str(error)) from error
    local = host in ("127.0.0.1", "localhost")
    token = None if local else secrets.token_urlsafe(16)
    hosts = ["127.0.0.1", "localhost"] if local else ["*"]
    name = socket.gethostname() if host in ("0.0.0.0", "::") else host
    address = f"http://{name}:{port}/" + (f"?token={token}" if token else "")
    click.echo(f"{len(plan.pairs)} pairs of {', '.join(chosen)}. Open {address} (Ctrl-C ends it; votes are in {path}).")
    server.serve(server.make_app(plan, box, hosts, token), at)


@main.command()
@click.argument("path", default=Path("votes/votes.jsonl"), type=click.Path(path_type=Path), metavar="[FILE]")
@click.option("--json", "as_json", is_flag=True, help="Print numbers for a program.")
@click.option("--csv", type=click.Path(path_type=Path), metavar="FILE", help="Also write a row for each vote.")
@click.option("--without", multiple=True, metavar="CODE", help="Leave a rater out; may be given several times.")
def votes(path: Path, as_json: bool, csv: Path | None, without: tuple[str, ...]) -> None:
    """Shows what the votes of `music-ddpo listen` say: preferences with intervals, and agreement."""
    from music_ddpo.blindtest import analysis
    from music_ddpo.blindtest.votes import read
    from music_ddpo.core.files import write_text

    try:
        ballot = read(path)
        unknown = set(without) - {vote.rater for vote in ballot.votes}
        if unknown:
            raise UserError(f"--without: no votes of {', '.join(sorted(unknown))} are in {path}.")
        ballot = replace(ballot, votes=[vote for vote in ballot.votes if vote.rater not in without])
        if csv is not None:
            write_text(csv, analysis.export(ballot).to_csv(index=False))
    except UserError as error:
        raise click.ClickException(str(error)) from error
    click.echo(json.dumps(analysis.content(ballot), indent=2) if as_json else analysis.markdown(ballot))


@main.command()
@click.argument("reward")
@click.option("--repo", required=True, metavar="OWNER/NAME", help="A model repository; created if it does not exist.")
@click.option("--private", is_flag=True, help="Only you can see the repository, if it is created.")
@click.option("--dry-run", is_flag=True, help="Only list what would be uploaded.")
def publish(reward: str, repo: str, private: bool, dry_run: bool) -> None:
    """Uploads the adapter of REWARD with its card and a few clips to the Hugging Face hub, as one commit.

    Run it in the project's folder, after `dvc repro`. The weights of AudioLDM 2 and of the EMOPIA classifier are CC
    BY-NC-SA 4.0, and so are adapters for them; the card says so.
    """
    from tempfile import TemporaryDirectory

    from music_ddpo.core.params_file import load
    from music_ddpo.reporting import publishing  # late: it imports torch

    try:
        publishing.check_repo(repo)
        with TemporaryDirectory() as folder:
            for name in publishing.gather(Path(folder), reward, load()):
                click.echo(f"{name} ({(Path(folder) / name).stat().st_size / 1e6:.2f} MB)")
            if not dry_run:
                click.echo(f"Published: {publishing.upload(Path(folder), repo, private)}")
    except UserError as error:
        raise click.ClickException(str(error)) from error


@main.command()
@click.argument("key", required=False)
def params(key: str | None) -> None:
    """Explains a KEY of params.yaml, for example ddpo.clip_range, or lists all keys.

    The explanations are those of docs/params.md, with units and the paper's values.
    """
    text = EXPLANATIONS.read_text(encoding="utf-8")
    entries = re.findall(r"^### `([\w.]+)`\n(.*?)(?=^#|\Z)", text, flags=re.MULTILINE | re.DOTALL)
    known = {name: explanation.strip() for name, explanation in entries}
    if key is None:
        for name, text in known.items():
            click.echo(f"{name}: {text.split('. ')[0].rstrip('.')}.")
        return
    chosen = {name: text for name, text in known.items() if name == key or name.startswith(f"{key}.")}
    if not chosen:
        raise click.ClickException(f"{key!r} is not a key of params.yaml{did_you_mean(key, known)}")
    for name, text in chosen.items():
        click.echo(f"{name}\n{text}\n")
