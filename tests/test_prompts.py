"""Prompts: the sentences, and the quadrants that their emotions lie in."""

from collections import Counter

import pytest

from music_ddpo.core.errors import UserError
from music_ddpo.core.prompts import EMOTIONS_OF_QUADRANT, QUADRANTS, fill, make_prompts, quadrant_of

PAPER = "A recording of an {emotion} {instrument} solo, high quality"
EMOTIONS = ["happy", "angry", "sad", "tender"]


def test_the_papers_sentence_comes_out():
    prompts = make_prompts(PAPER, EMOTIONS, ["piano"])
    assert prompts[1].text == "A recording of an angry piano solo, high quality"
    assert [p.quadrant for p in prompts] == ["Q1", "Q2", "Q3", "Q4"]


@pytest.mark.parametrize(("emotion", "expected"), [("angry", "an angry flute"), ("sad", "a sad flute")])
def test_the_article_fits_the_emotion(emotion, expected):
    assert fill("{article} {emotion} {instrument}", emotion, "flute") == expected


def test_sixteen_emotions_lie_in_four_quadrants():
    assert tuple(EMOTIONS_OF_QUADRANT) == QUADRANTS
    emotions = [e for words in EMOTIONS_OF_QUADRANT.values() for e in words]
    assert len(set(emotions)) == 16
    assert Counter(quadrant_of(e) for e in emotions) == dict.fromkeys(QUADRANTS, 4)


def test_an_emotion_without_a_quadrant_is_refused_with_those_that_have_one():
    with pytest.raises(UserError, match=r"'hungry'.*happy.*tender"):
        quadrant_of("hungry")


def test_the_alternatives_differ_from_the_prompt_in_the_emotion_alone():
    for prompt in make_prompts(PAPER, EMOTIONS, ["piano", "flute"]):
        assert prompt.alternatives == tuple(fill(PAPER, e, prompt.instrument) for e in EMOTIONS)
        assert prompt.alternatives[EMOTIONS.index(prompt.emotion)] == prompt.text
        assert prompt.alternative_quadrants == QUADRANTS


def test_any_prompts_in_a_row_are_balanced_over_the_emotions():
    emotions = [p.emotion for p in make_prompts(PAPER, EMOTIONS, ["piano", "flute", "violin"])]
    assert len(emotions) == 12
    for start in range(12):
        for stop in range(start + 1, 13):
            counts = Counter(emotions[start:stop])
            assert max(counts.values()) - min(counts[e] for e in EMOTIONS) <= 1
