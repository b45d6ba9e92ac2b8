"""Trains the preference head on votes of simulated listeners, who mostly prefer the recording that is less spoiled.

No human votes are used. The head has the architecture of TuneJury's, on the `clap` reward's embeddings.
"""

from __future__ import annotations

import json
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn.functional import logsigmoid
from tqdm import tqdm

from corpus import SAMPLE_RATE, recording
from music_ddpo.rewards.clap import Clap
from music_ddpo.rewards.preference.head import PreferenceHead

RECORDINGS, HELD_OUT, SECONDS = 320, 80, 5
STEPS, PAIRS = 400, 256
CERTAINTY = 6.0  # a listener prefers clip a to b with probability sigmoid(CERTAINTY * (spoiling of b - that of a))


def render(index: int) -> tuple[np.ndarray, float]:
    """A recording, mixed with its spoiled version, and the share of the latter."""
    clean, spoiled = (recording("voters", index, SECONDS, spoiled=x).waveform for x in (False, True))
    share = float(np.random.default_rng([index, 9]).uniform())
    return (1 - share) * clean + share * spoiled, share


def votes(share: np.ndarray, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of recordings, the preferred one first: two index arrays [count]."""
    a, b = rng.integers(len(share), size=(2, count))
    wins = rng.random(count) < 1 / (1 + np.exp(-CERTAINTY * (share[b] - share[a])))
    return np.where(wins, a, b), np.where(wins, b, a)


def main() -> None:
    torch.manual_seed(9)
    rng = np.random.default_rng(9)
    with Pool() as pool:
        jobs = pool.imap(render, range(RECORDINGS + HELD_OUT), chunksize=8)
        clips, shares = zip(*tqdm(jobs, total=RECORDINGS + HELD_OUT, desc="recordings", mininterval=10), strict=True)
    clap = Clap.load(Path("build/models"), torch.device("cpu"))
    sounds = [torch.from_numpy(clip).float() for clip in clips]
    embeddings = torch.cat(
        [clap.embed_audio(sound, SAMPLE_RATE) for sound in tqdm(sounds, desc="embed", mininterval=10)]
    )
    share, dimensions = np.array(shares), embeddings.shape[1]
    head = PreferenceHead(dimensions, 2 * dimensions, dimensions, dimensions // 2, dimensions // 4, 1).train()
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=1e-2)
    for _ in range(STEPS):
        better, worse = votes(share[:RECORDINGS], PAIRS, rng)
        scores = head(embeddings[:RECORDINGS])[:, 0]  # all recordings are one batch of the BatchNorm
        loss = -logsigmoid(scores[better] - scores[worse]).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    head.eval()
    folder = Path("build/models/rewards/preference")
    folder.mkdir(parents=True, exist_ok=True)
    save_file(head.state_dict(), folder / "head.safetensors")
    with torch.no_grad():
        scores = head(embeddings[RECORDINGS:])[:, 0].numpy()
    better, worse = votes(share[RECORDINGS:], 10_000, rng)
    agreement = float((scores[better] > scores[worse]).mean())
    best = float((share[RECORDINGS:][better] < share[RECORDINGS:][worse]).mean())
    report = {"preference_agreement_with_votes": round(agreement, 4), "preference_best_possible": round(best, 4)}
    Path("build/preference.json").write_text(json.dumps(report, indent=2) + "\n")
    print(report)


if __name__ == "__main__":
    main()
