"""What votes say: preferences with intervals, Bradley-Terry strengths, agreement between raters and with themselves."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import choix
import krippendorff
import numpy as np
import pandas as pd

from music_ddpo.blindtest.votes import Ballot, Vote
from music_ddpo.measuring.statistics import Estimate, proportion

CONFIDENCE = 0.95
RESAMPLES = 1000
PRIOR = 0.01  # of choix: keeps strengths finite where a system has won or lost every vote
CHOICES = ("first", "second", "tie", "bad")


def counts(votes: Sequence[Vote], systems: tuple[str, str]) -> dict[str, int]:
    """How often each of two systems was preferred ("first", "second"), and how often neither was ("tie", "bad")."""
    found = dict.fromkeys(CHOICES, 0)
    for vote in votes:
        if {vote.a, vote.b} == set(systems):
            found[_choice(vote, systems)] += 1
    return found


def preference(votes: Sequence[Vote], systems: tuple[str, str]) -> Estimate | None:
    """The share of the first system among the votes that prefer one, with Wilson's interval; None without such votes.

    Votes are taken as independent, which those of one rater, or on one pair, are not quite.
    """
    found = counts(votes, systems)
    decided = found["first"] + found["second"]
    return proportion(found["first"], decided, CONFIDENCE) if decided else None


def strengths(votes: Sequence[Vote], systems: Sequence[str]) -> dict[str, Estimate]:
    """Bradley-Terry strengths in logits, relative to the first system, with percentile intervals over the pairs.

    A system beats another with probability sigmoid(difference). Ties and "both bad" are left out. The pairs are
    resampled with all votes on them, since votes on one pair depend on each other. A system that no votes connect with
    the first is left out; one that has won all its votes, or none, has no interval.
    """
    place = {system: i for i, system in enumerate(systems)}
    by_pair: dict[int, list[tuple[int, int]]] = {}
    for vote in votes:
        if vote.winner is not None:
            loser = vote.b if vote.winner == vote.a else vote.a
            by_pair.setdefault(vote.pair, []).append((place[vote.winner], place[loser]))
    pairs = list(by_pair.values())
    duels = [duel for own in pairs for duel in own]
    known = _connected(duels)
    if len(known) < 2:
        return {}
    drawn = np.random.default_rng(0).integers(len(pairs), size=(RESAMPLES, len(pairs)))
    sampled = np.stack([_fit(len(systems), [duel for i in row for duel in pairs[i]]) for row in drawn])
    value = _fit(len(systems), duels)
    low, high = np.quantile(sampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    unknown = (np.ptp(sampled, axis=0) < 1e-9) | _one_sided(len(systems), duels)
    low[unknown] = high[unknown] = np.nan
    return {
        s: Estimate(float(value[i]), float(low[i]), float(high[i]), len(duels)) for s, i in place.items() if i in known
    }


def _connected(duels: Sequence[tuple[int, int]]) -> set[int]:
    """The systems that votes connect with the first one."""
    found = {0}
    while more := {x for duel in duels if found & set(duel) for x in duel} - found:
        found |= more
    return found


def _one_sided(systems: int, duels: Sequence[tuple[int, int]]) -> np.ndarray:
    """Which systems have won all their votes or none: only the prior keeps their strength finite."""
    won, lost = (np.bincount([duel[i] for duel in duels], minlength=systems) for i in (0, 1))
    return (won == 0) | (lost == 0)


def _fit(systems: int, duels: Sequence[tuple[int, int]]) -> np.ndarray:
    found = choix.ilsr_pairwise(systems, duels, alpha=PRIOR)
    return found - found[0]


def consistency(votes: Sequence[Vote]) -> Estimate | None:
    """How often a rater gives the same answer to a pair that comes back swapped; None without such pairs."""
    first = {(vote.rater, vote.pair): vote for vote in votes if not vote.repeated}
    both = [
        (first[vote.rater, vote.pair], vote) for vote in votes if vote.repeated and (vote.rater, vote.pair) in first
    ]
    same = sum(_answer(one) == _answer(other) for one, other in both)
    return proportion(same, len(both), CONFIDENCE) if both else None


def agreement(votes: Sequence[Vote], systems: tuple[str, str]) -> tuple[Estimate, float] | None:
    """Between raters, on pairs of two systems: how often two give the same answer, and Krippendorff's alpha (nominal).

    The interval is a percentile bootstrap over the pairs, since answers to one pair depend on each other. Alpha is 1
    for full agreement and 0 for that of chance; NaN if all answers are the same. None if no pair has the votes of two
    raters.
    """
    heard: dict[int, dict[str, str]] = {}
    for vote in votes:
        if not vote.repeated and {vote.a, vote.b} == set(systems):
            heard.setdefault(vote.pair, {})[vote.rater] = _answer(vote)
    shared = [list(by_rater.values()) for by_rater in heard.values() if len(by_rater) > 1]
    if not shared:
        return None
    counts = np.array([(sum(x == y for x, y in combinations(own, 2)), len(own) * (len(own) - 1) / 2) for own in shared])
    drawn = counts[np.random.default_rng(0).integers(len(counts), size=(RESAMPLES, len(counts)))].sum(axis=1)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    same, compared = counts.sum(axis=0)
    if low == high:
        low = high = np.nan
    share = Estimate(float(same / compared), float(low), float(high), int(compared))
    answers = sorted({answer for own in shared for answer in own})
    table = np.array([[own.count(answer) for answer in answers] for own in shared])
    alpha = krippendorff.alpha(value_counts=table, level_of_measurement="nominal") if len(answers) > 1 else np.nan
    return share, float(alpha)


def _choice(vote: Vote, systems: tuple[str, str]) -> str:
    return vote.answer if vote.winner is None else ("first" if vote.winner == systems[0] else "second")


def _answer(vote: Vote) -> str:
    """The answer whatever side the systems were on."""
    return vote.winner or vote.answer


def markdown(ballot: Ballot) -> str:
    """The tables of a test."""
    votes, systems = ballot.votes, ballot.plan["systems"]
    raters = sorted({vote.rater for vote in votes})
    simulated = sorted({vote.simulated for vote in votes if vote.simulated})
    once = [vote for vote in votes if not vote.repeated]
    lines = [f"# {ballot.plan['question']}", ""]
    if simulated:
        lines += [f"**The votes are simulated**, no person gave them: {', '.join(simulated)}.", ""]
    lines += [
        f"{_number_of(once, 'vote')} of {_number_of(raters, 'rater')} on {len(ballot.plan['pairs'])} pairs, and "
        f"{len(votes) - len(once)} on repeated pairs, which are used for consistency only.",
        "",
        "| first | second | emotion | first preferred | second preferred | no difference | both bad | share of first |",
        "|---|---|---|---|---|---|---|---|",
    ]
    emotions = list(dict.fromkeys(pair["emotion"] for pair in ballot.plan["pairs"]))
    for one, other in combinations(systems, 2):
        for emotion in (None, *emotions):
            own = [vote for vote in once if emotion in (None, vote.emotion)]
            numbers, share = counts(own, (other, one)), preference(own, (other, one))
            cells = [other, one, emotion or "**all**", *map(str, numbers.values()), str(share or "-")]
            lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "Shares are of the votes that prefer one of the two. The 95% intervals (Wilson) take votes as independent;",
        "those of one rater, or on one pair, are not, so with several raters the true intervals are wider.",
    ]
    lines += _strengths(once, systems) if len(systems) > 2 else []
    lines += ["", "## Agreement", ""]
    own_again = consistency(votes)
    lines.append(f"With themselves, on pairs that came back swapped: {_share(own_again)}.")
    lines += ["", "| rater | votes | the same answer again |", "|---|---|---|"]
    for rater in raters:
        own = [vote for vote in votes if vote.rater == rater]
        lines.append(f"| {rater} | {len(own)} | {_share(consistency(own))} |")
    lines += [
        "",
        "Two raters on the same pair (intervals over the pairs), and Krippendorff's alpha (1 is full agreement, 0 that",
    ]
    lines += ["of chance):", "", "| systems | the same answer | alpha |", "|---|---|---|"]
    for one, other in combinations(systems, 2):
        between = agreement(votes, (one, other))
        alpha = "-" if between is None or np.isnan(between[1]) else f"{between[1]:.2f}"
        lines.append(f"| {one}, {other} | {_share(between and between[0])} | {alpha} |")
    return "\n".join(lines) + "\n"


def _number_of(things: Sequence[Any], name: str) -> str:
    return f"{len(things)} {name}{'s' * (len(things) != 1)}"


def _strengths(votes: Sequence[Vote], systems: Sequence[str]) -> list[str]:
    found = strengths(votes, systems)
    lines = ["", "## Strengths (Bradley-Terry)", "", "| system | logits above the first |", "|---|---|"]
    lines += [
        f"| {system} | {estimate.signed() if system != systems[0] else '0'} |" for system, estimate in found.items()
    ]
    return [*lines, "", "Intervals are over the pairs."]


def _share(estimate: Estimate | None) -> str:
    return "no pairs yet" if estimate is None else f"{estimate} of {estimate.clips}"


def export(ballot: Ballot) -> pd.DataFrame:
    """A row for each vote, under the column names of webMUSHRA's paired comparisons, with further ones behind.

    A is the "reference" and B the other one. The answer is the name of the preferred system, "tie" or "bad".
    """
    rows = [
        {
            "session_test_id": ballot.plan["question"],
            "rater": vote.rater,
            "trial_id": Path(vote.clip).stem,
            "choice_reference": vote.a,
            "choice_non_reference": vote.b,
            "choice_answer": _answer(vote),
            "choice_time": vote.seconds,
            "choice_comment": vote.simulated or "",
            "emotion": vote.emotion,
            "pair": vote.pair,
            "repeated": vote.repeated,
            "time": vote.time,
        }
        for vote in ballot.votes
    ]
    return pd.DataFrame(rows)


def content(ballot: Ballot) -> dict[str, Any]:
    """Its main numbers, for a program."""
    once = [vote for vote in ballot.votes if not vote.repeated]
    systems = ballot.plan["systems"]
    of = _numbers
    return {
        "question": ballot.plan["question"],
        "raters": len({vote.rater for vote in ballot.votes}),
        "votes": len(once),
        "simulated": sorted({vote.simulated for vote in ballot.votes if vote.simulated}),
        "pairs": [
            {"first": other, "second": one} | counts(once, (other, one)) | of(preference(once, (other, one)), "share")
            for one, other in combinations(systems, 2)
        ],
        "strengths": {s: of(e, "logits") for s, e in strengths(once, systems).items()} if len(systems) > 2 else {},
        "consistency": of(consistency(ballot.votes), "share"),
        "agreement": [
            {"systems": [one, other], "alpha": None if np.isnan(between[1]) else between[1]} | of(between[0], "share")
            for one, other in combinations(systems, 2)
            if (between := agreement(ballot.votes, (one, other))) is not None
        ],
    }


def _numbers(estimate: Estimate | None, name: str) -> dict[str, Any]:
    return {} if estimate is None else estimate.as_dict(name)
