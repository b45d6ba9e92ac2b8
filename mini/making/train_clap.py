"""Trains a CLAP (`ClapModel`): `player` is the CLAP inside the generator, `judge` the reward.

They have the same code and tokenizer, but different recordings, widths and seeds. The player's captions are correct.
The judge has fewer recordings, each with one caption, whose author may have mistaken the emotion or the instrument.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import click
import numpy as np
import torch
from torch.nn.functional import log_softmax
from tqdm import tqdm, trange
from transformers import ClapAudioConfig, ClapConfig, ClapFeatureExtractor, ClapModel, ClapProcessor, ClapTextConfig

from checkpoint import Checkpoint
from corpus import (
    INSTRUMENTS,
    NEGATIVE_CAPTION,
    SAMPLE_RATE,
    annotation,
    caption,
    recording,
)
from mel import load
from music_ddpo.core.prompts import QUADRANTS
from text import roberta_tokenizer

BATCH = 64
WRONG_INSTRUMENT = 0.03  # how often a caption of the judge's recordings names another instrument


@dataclass(frozen=True)
class Kind:
    """What tells the two CLAPs apart."""

    split: str
    folder: str
    seed: int
    width: int  # of the audio tower's patches
    embedding: int  # dimensions of the joint space
    recordings: int
    steps: int
    errors: bool  # in the captions


KINDS = {
    "player": Kind("player", "build/clap-player", 4, 32, 48, 1024, 1200, False),
    "judge": Kind("judge", "build/models/rewards/clap", 5, 32, 64, 640, 900, True),
}


def build(kind: Kind) -> tuple[ClapModel, ClapProcessor]:
    tokenizer = roberta_tokenizer()
    extractor = ClapFeatureExtractor(
        sampling_rate=SAMPLE_RATE, hop_length=640, max_length_s=10, fft_window_size=1024,
        frequency_min=40, frequency_max=8000, truncation="rand_trunc", padding="repeatpad",
    )  # fmt: skip
    text = ClapTextConfig(
        vocab_size=len(tokenizer), hidden_size=kind.embedding, intermediate_size=4 * kind.embedding,
        num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=66, projection_dim=kind.embedding,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    audio = ClapAudioConfig(
        spec_size=128, num_mel_bins=64, window_size=8, patch_size=8, patch_stride=[8, 8],
        patch_embeds_hidden_size=kind.width, hidden_size=2 * kind.width, depths=[2, 2],
        num_attention_heads=[2, 4], num_hidden_layers=2, projection_dim=kind.embedding, hidden_dropout_prob=0.0,
    )  # fmt: skip
    config = ClapConfig(text_config=text.to_dict(), audio_config=audio.to_dict(), projection_dim=kind.embedding)
    return ClapModel(config), ClapProcessor(feature_extractor=extractor, tokenizer=tokenizer)


def features(kind: Kind, processor: ClapProcessor, rng: np.random.Generator) -> tuple[torch.Tensor, np.ndarray]:
    """Log-mels as the tower takes them, whole and cut to 5 s, and the recording each comes from."""
    clips = load(kind.split)[: kind.recordings]
    which = np.concatenate([np.arange(len(clips))] * 3)
    mels = []
    for i, index in enumerate(tqdm(which, desc="log-mels", mininterval=10)):
        clip = clips[index].astype(np.float32) / 32767
        if i >= len(clips):
            start = rng.integers(5 * SAMPLE_RATE)
            clip = clip[start : start + 5 * SAMPLE_RATE]
            clip = clip + rng.standard_normal(len(clip)).astype(np.float32) * 10 ** rng.uniform(-5, -2.5)
        out = processor.feature_extractor(clip, sampling_rate=SAMPLE_RATE, return_tensors="pt")
        mels.append(out.input_features[0])
    return torch.stack(mels), which


def captioned(kind: Kind, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """What the captions say of each recording: quadrant and instrument, as indices [recordings]."""
    index = np.arange(kind.recordings)
    quadrants, instruments = index % 4, index // 4 % len(INSTRUMENTS)
    if kind.errors:
        quadrants = np.array([QUADRANTS.index(annotation(QUADRANTS[q], rng)) for q in quadrants])
        wrong = rng.random(kind.recordings) < WRONG_INSTRUMENT
        instruments = np.where(wrong, rng.integers(len(INSTRUMENTS), size=kind.recordings), instruments)
    return quadrants, instruments


@click.command()
@click.argument("name", type=click.Choice(list(KINDS)))
def main(name: str) -> None:
    kind = KINDS[name]
    torch.manual_seed(kind.seed)
    rng = np.random.default_rng(kind.seed)
    model, processor = build(kind)
    mels, which = features(kind, processor, rng)
    spoiled = np.array([recording_is_spoiled(kind.split, i) for i in range(kind.recordings)])
    quadrants, instruments = captioned(kind, rng)

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, kind.steps, pct_start=0.1)
    checkpoint = Checkpoint(f"clap-{name}", rng, model, optimizer, schedule)
    steps = kind.steps
    bar = trange(checkpoint.step, steps, desc=f"CLAP ({name})", mininterval=10, initial=checkpoint.step, total=steps)
    for step in bar:
        rows = rng.integers(len(mels), size=BATCH)
        ids = which[rows]
        texts = [caption(QUADRANTS[quadrants[i]], INSTRUMENTS[instruments[i]], bool(spoiled[i]), rng) for i in ids]
        kinds = torch.from_numpy(quadrants[ids] + 4 * instruments[ids] + 4 * len(INSTRUMENTS) * spoiled[ids])
        negative = torch.tensor([t == NEGATIVE_CAPTION for t in texts])
        # A caption fits every recording of its kind; the negative one fits every spoiled recording.
        fits = torch.where(negative[None], torch.from_numpy(spoiled[ids])[:, None], kinds[:, None] == kinds[None])
        tokens = processor.tokenizer(texts, padding=True, return_tensors="pt")
        out = model(input_features=mels[rows], **tokens)
        audio, text = out.audio_embeds, out.text_embeds
        logits = model.logit_scale_a.clamp(max=math.log(30)).exp() * audio @ text.T
        loss = sum(
            -(log_softmax(x, 1) * f / f.sum(1, keepdim=True)).sum(1).mean()
            for x, f in ((logits, fits.float()), (logits.T, fits.T.float()))
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            bar.set_postfix_str(f"loss {loss:.3f}")
        checkpoint.after(step)
    model.save_pretrained(kind.folder)
    processor.save_pretrained(kind.folder)


def recording_is_spoiled(split: str, index: int) -> bool:
    return recording(split, index, seconds=0.1).spoiled


if __name__ == "__main__":
    main()
