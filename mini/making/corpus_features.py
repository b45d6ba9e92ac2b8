"""The features of the held-out recordings, for the tables. `measure.py` writes them for newly made models.

Run on its own (`python corpus_features.py`, about three minutes), it composes the recordings again and writes them to
../models, where they replace those of the same recordings: after a change of `measuring/features`, say.
"""

from __future__ import annotations

from collections.abc import Sequence
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from corpus import INSTRUMENTS, QUADRANTS, SAMPLE_RATE, SPLITS, recording
from music_ddpo.core.files import digest, write_json
from music_ddpo.core.prompts import EMOTIONS_OF_QUADRANT, Prompt, make_prompts
from music_ddpo.measuring.features import measure
from music_ddpo.weights.shipped import FEATURES, MANIFEST, read_manifest

MODELS = Path("../models")
SECONDS = 5


def means_of_features(waveforms: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> dict:
    """{instrument: {emotion: {feature: mean}}} of recordings [samples], over those that have the feature."""
    rows = [measure(x, SAMPLE_RATE) for x in tqdm(waveforms, desc="features of held-out recordings", mininterval=10)]
    of = {"instrument": [p.instrument for p in prompts], "emotion": [p.emotion for p in prompts]}
    means = pd.DataFrame(rows).groupby([of["instrument"], of["emotion"]]).mean().round(4)
    result: dict = {}
    for prompt in dict.fromkeys(prompts):
        known = means.loc[(prompt.instrument, prompt.emotion)].dropna()
        result.setdefault(prompt.instrument, {})[prompt.emotion] = known.to_dict()
    return result


def clean(index: int) -> np.ndarray | None:
    """The first seconds of a held-out recording as the corpus stores it, float32 [samples]; None if it is spoiled."""
    made = recording("held-out", index)
    return None if made.spoiled else np.round(made.waveform * 32767)[: SECONDS * SAMPLE_RATE] / np.float32(32767)


def main() -> None:
    emotions = [EMOTIONS_OF_QUADRANT[q][0] for q in QUADRANTS]
    prompts = make_prompts("{emotion} {instrument}", emotions, INSTRUMENTS)
    with Pool() as pool:
        made = list(tqdm(pool.imap(clean, range(SPLITS["held-out"]), chunksize=8), total=SPLITS["held-out"]))
    found = {i: x for i, x in enumerate(made) if x is not None}
    asked = [prompts[i % 4 + 4 * (i // 4 % 4)] for i in found]
    write_json(MODELS / FEATURES, means_of_features(list(found.values()), asked))
    known = read_manifest(MODELS) | {FEATURES: digest(MODELS / FEATURES)}
    write_json(MODELS / MANIFEST, dict(sorted(known.items())))


if __name__ == "__main__":
    main()
