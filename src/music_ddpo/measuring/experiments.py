"""The results of DVC experiments, and of any other commit of the study, read from git."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dvc.exceptions import DvcException
from dvc.repo import Repo
from scmrepo.exceptions import SCMError

from music_ddpo.core.checked_tables import Number, Text, read_table
from music_ddpo.core.errors import UserError, did_you_mean, in_one_line
from music_ddpo.core.files import read_json
from music_ddpo.core.params_file import load
from music_ddpo.measuring.study import Study, read_scores


@dataclass(frozen=True)
class Experiment:
    """A finished experiment.

    Attributes
    ----------
    params
        As in params.yaml, with every `auto` replaced.
    curves
        The mean reward of each round, by adapter.
    """

    name: str
    params: dict[str, Any]
    seed: int
    study: Study
    curves: dict[str, list[float]]


def known(folder: Path = Path()) -> dict[str, str]:
    """The commit of each finished DVC experiment of a repository, by its name, the oldest baseline first.

    Raises
    ------
    UserError
        If the folder is not in a DVC repository.
    """
    with _repository(folder) as repo:
        found = repo.experiments.ls(all_commits=True)
        return {name: revision for group in found.values() for name, revision in group if revision}


def read(names: Sequence[str], folder: Path = Path()) -> list[Experiment]:
    """Reads experiments by their names; a name may also be any git revision, for example HEAD.

    Raises
    ------
    UserError
        If a name is unknown, a result is missing or damaged, or params.yaml has other keys than now; names the
        experiment and the file.
    """
    revisions = known(folder)
    with _repository(folder) as repo:
        return [_read(repo, name, revisions) for name in names]


def read_all(folder: Path = Path()) -> list[Experiment]:
    """Reads all finished experiments; one that cannot be read is left out with a warning."""
    found, revisions = [], known(folder)
    with _repository(folder) as repo:
        for name in revisions:
            try:
                found.append(_read(repo, name, revisions))
            except UserError as error:
                warnings.warn(f"left out: {error}", stacklevel=2)
    return found


def _repository(folder: Path) -> Any:
    try:
        return Repo(str(folder))
    except DvcException as error:
        raise UserError(f"{folder.resolve()}: {in_one_line(error)}; run this in the project's folder.") from None


def _read(repo: Any, name: str, revisions: dict[str, str]) -> Experiment:
    try:
        files = repo.scm.get_fs(revisions.get(name) or repo.scm.resolve_rev(name))
    except SCMError:
        hint = did_you_mean(name, revisions) or "; `dvc exp list --all-commits` lists those that have finished"
        raise UserError(f"{name!r} is neither a finished experiment nor a git revision{hint}.") from None
    with TemporaryDirectory() as scratch:
        here = Path(scratch)

        def bring(path: str) -> Path:
            target = here / path
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with files.open(path, "rb") as file:
                    target.write_bytes(file.read())
            except FileNotFoundError:
                raise UserError(f"{name}: has no {path}; run the experiment to its end.") from None
            return target

        try:
            params = load(bring("params.yaml"))
            seed = int(read_json(bring("metrics/seed.json"))["seed"])
            each = params.evaluation.clips_per_emotion
            baseline = bring("metrics/clips/baseline.csv")
            original = read_scores(baseline, each)
            study = Study(
                original=original,
                trained={
                    r: read_scores(bring(f"metrics/clips/{r}.csv"), each, original, baseline) for r in params.rewards
                },
                rewards={r: list(params.mixtures.get(r, [r])) for r in params.rewards},
                reference={},
                settings=params.evaluation,
                seed=seed,
            )
            curves = {r: _curve(bring(f"plots/train/{r}.csv")) for r in params.rewards}
        except UserError as error:
            text = str(error).replace(f"{here}/", "")
            raise UserError(text if text.startswith(f"{name}: ") else f"{name}: {text}") from None
    return Experiment(name, params.model_dump(mode="json"), seed, study, curves)


def _curve(path: Path) -> list[float]:
    table = read_table(path, {"series": Text(), "reward": Number()})
    return table[table["series"] == "all"]["reward"].tolist()
