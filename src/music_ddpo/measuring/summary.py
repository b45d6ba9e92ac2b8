"""What a study found, in words: what each reward says, what a listener hears, and whether they disagree."""

from __future__ import annotations

from music_ddpo.measuring.statistics import Estimate
from music_ddpo.measuring.study import Study

LISTENER = "listener"  # the judge that stands for people
WHAT_THE_LISTENER_IS = (
    "`listener` is to the embedded model what human listeners are to a real one: a larger network that is right on",
    "nearly all recordings, and that no adapter is trained with. Its verdict is the one that counts.",
)


def in_words(study: Study) -> list[str]:
    """A heading, and a few lines for each adapter."""
    lines = ["## In short"]
    for adapter, rewards in study.trained_with():
        parts = [f"{reward} {study.judges[reward]} {_moved(study, reward, adapter)}" for reward in rewards]
        lines += ["", f"**Trained with {adapter}.** What it was trained for: {'; '.join(parts)}."]
        lines += _listener(study, adapter, rewards) if LISTENER in study.judges else _held_out(study, adapter)
    return lines


def _listener(study: Study, adapter: str, rewards: list[str]) -> list[str]:
    gain = study.gain(LISTENER, adapter)
    lines = [f"What the listener hears: the emotion of the prompt {_moved(study, LISTENER, adapter)}."]
    raised = any(_sign(study.gain(reward, adapter)) > 0 for reward in rewards)
    if raised and _sign(gain) <= 0:
        lines.append("**The reward rose and the listener does not hear it**: the adapter pleases its judge only.")
    fallen = [e for e in study.emotions if _sign(study.gain(LISTENER, adapter, e)) < 0]
    if fallen:
        lines.append(f"**It hears less of {', '.join(fallen)}** than before.")
    above = [
        r for r in rewards if study.judges[r] == "accuracy" and (study.real(r) or 1) < study.estimate(r, adapter).low
    ]
    lines += [f"{reward} is right on {study.real(reward):.2f} of real recordings only." for reward in above]
    before, after = (study.instrument(LISTENER, model) for model in (None, adapter))
    change = study.instrument_change(LISTENER, adapter)
    if before is not None and after is not None and change is not None:
        fewer = _sign(change) < 0
        told = "**It hears the instrument of the prompt less often**" if fewer else "It hears the instrument"
        lines.append(f"{told}: in {after} of the clips (before: {before}).")
    return lines


def _held_out(study: Study, adapter: str) -> list[str]:
    if "held_out" not in study.judges:
        return []
    return [f"The held-out judge, which it was not trained with: {_moved(study, 'held_out', adapter)}."]


def _moved(study: Study, judge: str, adapter: str) -> str:
    """From where to where, and whether that is significant."""
    before, after, gain = study.estimate(judge, None), study.estimate(judge, adapter), study.gain(judge, adapter)
    word = {1: "rose", -1: "fell", 0: "did not change significantly:"}[_sign(gain)]
    return f"{word} from {before.value:.2f} to {after.value:.2f} ({gain.signed()})"


def _sign(gain: Estimate) -> int:
    """1 or -1 for a significant change, else 0 (also without an interval)."""
    return 1 if gain.low > 0 else -1 if gain.high < 0 else 0
