"""Prompts: a template filled with an emotion and an instrument, and the quadrant that the emotion lies in."""

from __future__ import annotations

from dataclasses import dataclass

from music_ddpo.errors import UserError

QUADRANTS = ("Q1", "Q2", "Q3", "Q4")

# Russell's valence x arousal plane as EMOPIA cuts it (Hung et al., 2021): Q1 is happy, Q2 angry, Q3 sad,
# Q4 tender. The first word of each row is the paper's; with all sixteen one has its sixteen emotions.
EMOTIONS_OF_QUADRANT = {
    "Q1": ("happy", "joyful", "cheerful", "excited"),
    "Q2": ("angry", "furious", "tense", "aggressive"),
    "Q3": ("sad", "gloomy", "melancholic", "sorrowful"),
    "Q4": ("tender", "calm", "peaceful", "gentle"),
}
QUADRANT_OF_EMOTION = {emotion: q for q, emotions in EMOTIONS_OF_QUADRANT.items() for emotion in emotions}


@dataclass(frozen=True)
class Prompt:
    """What the generator is asked for, and what a reward needs to judge the answer.

    Attributes
    ----------
    text
        The sentence for the generator, for example "A recording of an angry piano solo, high quality".
    emotion, instrument
        The words that were filled in.
    quadrant
        "Q1" to "Q4": the quadrant of the emotion, the class that EMOPIA should hear.
    alternatives
        The same sentence with every emotion of the study in its place, in order; the own one included.
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
    """The quadrant of an emotion word; `UserError` for a word that no quadrant knows."""
    if emotion not in QUADRANT_OF_EMOTION:
        known = "; ".join(f"{q}: {', '.join(words)}" for q, words in EMOTIONS_OF_QUADRANT.items())
        raise UserError(f"prompts.emotions: no quadrant knows {emotion!r}. Known are {known}.")
    return QUADRANT_OF_EMOTION[emotion]


def fill(template: str, emotion: str, instrument: str) -> str:
    """The template with `{emotion}`, `{instrument}` and, where it stands, `{article}` (a or an) filled in."""
    article = "an" if emotion[0] in "aeiou" else "a"
    return template.format(emotion=emotion, instrument=instrument, article=article)


def make_prompts(template: str, emotions: list[str], instruments: list[str]) -> list[Prompt]:
    """Every emotion with every instrument: emotions take turns first, so any n prompts in a row are balanced."""
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
