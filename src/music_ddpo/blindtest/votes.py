"""The votes of a test: a file of JSON lines that is only ever appended to, and is on disk before the next pair."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from music_ddpo.core.errors import UserError
from music_ddpo.core.files import read_text

Answer = Literal["a", "b", "tie", "bad"]  # A is better, B is better, no difference, both are bad
LARGEST = 64_000_000  # bytes


@checked(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Vote:
    """An answer to a presentation.

    Attributes
    ----------
    number
        Of the presentation, from 0, in the rater's order.
    pair
        The number of the pair.
    a, b
        The systems behind A and B.
    seconds
        Between the first sound and the answer.
    time
        When it was given, in UTC.
    simulated
        What made the vote if no person did.
    """

    rater: str
    number: int
    pair: int
    clip: str
    emotion: str
    a: str
    b: str
    answer: Answer
    repeated: bool
    seconds: float
    time: str
    simulated: str | None = None

    @property
    def winner(self) -> str | None:
        """The system that was preferred, if one was."""
        return {"a": self.a, "b": self.b}.get(self.answer)


@dataclass(frozen=True)
class Ballot:
    """What a file of votes has: the identity of its plan, and the votes that were not taken back."""

    plan: dict[str, Any]
    votes: list[Vote]


def read(path: Path) -> Ballot:
    """The content of a file of votes. A last line without its end was never confirmed to the rater, and is left out.

    Raises
    ------
    UserError
        If it is missing or damaged; names the line.
    """
    lines = read_text(path, "name a file that `music-ddpo listen` has written", LARGEST).split("\n")[:-1]
    votes: dict[tuple[str, int], Vote] = {}
    plan: dict[str, Any] | None = None
    for i, line in enumerate(lines, 1):
        try:
            content = json.loads(line)
            if i == 1:
                plan = content["plan"]
                _ = plan["question"], plan["systems"], [(pair["emotion"]) for pair in plan["pairs"]]
            elif "undo" in content:
                votes.pop((content["rater"], content["undo"]), None)
            else:
                vote = TypeAdapter(Vote).validate_json(line)
                votes.setdefault((vote.rater, vote.number), vote)
        except (ValueError, KeyError, TypeError, ValidationError):
            raise UserError(f"{path}: line {i} is damaged; correct it, or remove it.") from None
    if plan is None:
        raise UserError(f"{path}: has no votes; `music-ddpo listen` collects some.")
    return Ballot(plan, list(votes.values()))


class Box:
    """The file of votes of a running test."""

    def __init__(self, path: Path, plan: dict[str, Any]):
        """Opens the file, or begins it.

        Raises
        ------
        UserError
            If it is damaged, cannot be written, is in use, or has the votes of another test.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(
                f"{path}: cannot be written ({error.strerror}); choose another file with --votes."
            ) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._begin(json.loads(json.dumps(plan)))
        except BlockingIOError:
            self.close()
            raise UserError(f"{path}: another `music-ddpo listen` writes it; end that, or use it.") from None
        except BaseException:
            self.close()
            raise

    def _begin(self, plan: dict[str, Any]) -> None:
        """Checks that the file belongs to the plan, and only then cuts what was written of a line before a kill."""
        content = self.path.read_bytes()
        end = content.rfind(b"\n") + 1
        if end == 0 and (not content or content.startswith(b'{"plan"')):
            os.ftruncate(self._file, 0)
            self._append({"plan": plan})
        ballot = read(self.path)
        changed = [key for key in plan if ballot.plan.get(key) != plan[key]]
        if changed:
            raise UserError(
                f"{self.path}: has votes of a test with other {', '.join(changed)}; give --votes another file, or the "
                "same options as then."
            )
        if 0 < end < len(content):
            os.ftruncate(self._file, end)
            os.fsync(self._file)
        self._votes = {(vote.rater, vote.number): vote for vote in ballot.votes}

    def of(self, rater: str) -> dict[int, Vote]:
        """The votes of a rater, by number."""
        return {number: vote for (name, number), vote in self._votes.items() if name == rater}

    def add(self, vote: Vote) -> bool:
        """Writes a vote, and returns when it is on disk; False if the presentation has one, which stays."""
        if (vote.rater, vote.number) in self._votes:
            return False
        self._append(asdict(vote))
        self._votes[vote.rater, vote.number] = vote
        return True

    def undo(self, rater: str, number: int) -> bool:
        """Takes a vote back; False if there is none on that presentation."""
        if (rater, number) not in self._votes:
            return False
        self._append({"rater": rater, "undo": number})
        del self._votes[rater, number]
        return True

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)

    def _append(self, content: dict[str, Any]) -> None:
        """Writes a line to the disk, whole or not at all; `UserError` if there is no space."""
        line = (json.dumps(content, ensure_ascii=False) + "\n").encode()
        size = os.fstat(self._file).st_size
        try:
            written = os.write(self._file, line)
            os.fsync(self._file)
            reason = "" if written == len(line) else "no space is left"
        except OSError as error:
            reason = error.strerror or str(error)
        if reason:
            os.ftruncate(self._file, size)
            raise UserError(f"{self.path}: the vote could not be written ({reason}).")


def write(path: Path, plan: dict[str, Any], votes: Sequence[Vote]) -> None:
    """Writes votes that are all known at once, for example simulated ones; the file must not exist."""
    if path.exists():
        raise UserError(f"{path}: exists already; choose another file.")
    box = Box(path, plan)
    for vote in votes:
        box.add(vote)
    box.close()
