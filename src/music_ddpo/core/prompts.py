"""Prompts: a template filled with an emotion and an instrument, and the quadrant of the emotion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import Formatter

from music_ddpo.core.errors import UserError, quoted

QUADRANTS = ("Q1", "Q2", "Q3", "Q4")

# The quadrants of Russell's valence-arousal plane in EMOPIA's order (Hung et al., 2021). The first word of each row is
# one of the paper's four emotions; these sixteen are those that mini knows.
EMOTIONS_OF_QUADRANT = {
    "Q1": ("happy", "joyful", "cheerful", "excited"),
    "Q2": ("angry", "furious", "tense", "aggressive"),
    "Q3": ("sad", "gloomy", "melancholic", "sorrowful"),
    "Q4": ("tender", "calm", "peaceful", "gentle"),
}
# The others of the sixteen in the paper's published code.
MORE_EMOTIONS = {
    "Q1": ("upbeat",),
    "Q2": ("intense", "ferocious"),
    "Q3": ("mournful", "somber"),
    "Q4": ("soft", "soothing"),
}
KNOWN_EMOTIONS = {q: words + MORE_EMOTIONS[q] for q, words in EMOTIONS_OF_QUADRANT.items()}
QUADRANT_OF_EMOTION = {emotion: q for q, emotions in KNOWN_EMOTIONS.items() for emotion in emotions}


@dataclass(frozen=True)
class Prompt:
    """What the generator is asked for, and what a reward needs to judge the result.

    Attributes
    ----------
    text
        The sentence for the generator, for example "A recording of an angry piano solo, high quality".
    emotion, instrument
        The words that were filled in.
    quadrant
        "Q1" to "Q4": the quadrant of the emotion, which is the class that EMOPIA should predict.
    alternatives
        The same sentence with each emotion of the study, in order; `text` is one of them.
    alternative_quadrants
        The quadrant of each alternative.
    """

    text: str
    emotion: str
    instrument: str
    quadrant: str
    alternatives: tuple[str, ...]
    alternative_quadrants: tuple[str, ...]


def quadrant_of(emotion: str) -> str:
    """The quadrant "Q1" to "Q4" of an emotion; `UserError` for an unknown word."""
    if emotion not in QUADRANT_OF_EMOTION:
        known = "; ".join(f"{q}: {', '.join(words)}" for q, words in KNOWN_EMOTIONS.items())
        raise UserError(f"prompts.emotions: no quadrant is known for {quoted(emotion)}. Known emotions are {known}.")
    return QUADRANT_OF_EMOTION[emotion]


def check_template(template: str) -> str:
    """The template, if `fill` can fill it in; `ValueError` if not.

    It has both words and no other field. A field has no format: `{emotion:>9999999999}` would take all memory.
    """
    try:
        fields = [field for field in Formatter().parse(template) if field[1] is not None]
    except ValueError as error:
        raise ValueError(f"is not a template: {error}") from None
    names = {name for _, name, _, _ in fields}
    formatted = any(form or conversion for _, _, form, conversion in fields)
    if formatted or not {"emotion", "instrument"} <= names <= {"emotion", "instrument", "article"}:
        raise ValueError("must contain {emotion} and {instrument}, may contain {article}, and no other braces")
    return template


def fill(template: str, emotion: str, instrument: str) -> str:
    """The template with `{emotion}`, `{instrument}` and, where present, `{article}` (a or an) filled in."""
    article = "an" if emotion[0] in "aeiou" else "a"
    return template.format(emotion=emotion, instrument=instrument, article=article)


def make_prompts(template: str, emotions: Sequence[str], instruments: Sequence[str]) -> list[Prompt]:
    """One prompt for each pair of emotion and instrument.

    The emotion changes first, so consecutive prompts cycle through the emotions.
    """
    quadrants = tuple(quadrant_of(e) for e in emotions)
    return [
        Prompt(
            text=fill(template, emotion, instrument),
            emotion=emotion,
            instrument=instrument,
            quadrant=quadrant_of(emotion),
            alternatives=tuple(fill(template, e, instrument) for e in emotions),
            alternative_quadrants=quadrants,
        )
        for instrument in instruments
        for emotion in emotions
    ]
