"""Trains the EMOPIA classifiers (`ShortChunkResNet`), each on few recordings whose annotators disagree.

Each member has recordings of its own and an annotator of its own for each recording. So each is right on about two
thirds of held-out recordings, like the real classifier, is over-confident, and its errors are its own.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot
from tqdm import trange

from corpus import SAMPLE_RATE, annotation, quadrant_of
from mel import crops, load
from music_ddpo.core.prompts import QUADRANTS
from music_ddpo.rewards.emopia.network import ShortChunkResNet

MEMBERS, RECORDINGS = 4, 80  # classifiers, and recordings of each
STEPS, BATCH, WINDOW = 400, 32, 3
HPARAMS = {"sample_rate": SAMPLE_RATE, "n_fft": 512, "f_min": 0.0, "f_max": 8000.0, "n_mels": 64, "n_channels": 8}


def train(member: int) -> ShortChunkResNet:
    """Classifier number `member`, from 0."""
    torch.manual_seed(20 + member)
    rng = np.random.default_rng([20, member])
    clips = load("annotated")[member * RECORDINGS : (member + 1) * RECORDINGS]
    labels = torch.tensor([QUADRANTS.index(annotation(quadrant_of(i), rng)) for i in range(RECORDINGS)])
    network = ShortChunkResNet(**HPARAMS)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, STEPS)
    bar = trange(STEPS, desc=f"EMOPIA {member + 1}", mininterval=10)
    for step in bar:
        which = rng.integers(RECORDINGS, size=BATCH)
        sound = crops(clips, which, WINDOW, rng)
        sound = sound * torch.from_numpy(rng.uniform(0.7, 1.4, (BATCH, 1)).astype(np.float32))
        loss = binary_cross_entropy_with_logits(network.logits(sound), one_hot(labels[which], 4).float())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            bar.set_postfix_str(f"loss {loss:.3f}")
    return network


def main() -> None:
    folder = Path("build/models/rewards/emopia")
    folder.mkdir(parents=True, exist_ok=True)
    for member in range(MEMBERS):
        name = "model.safetensors" if member == 0 else f"model-{member + 1}.safetensors"
        save_file(train(member).state_dict(), folder / name)
    settings = dict(HPARAMS)
    wav = {"sr": settings.pop("sample_rate"), "input_length": WINDOW}
    layout = {"task": {"labels": list(QUADRANTS)}, "wav": wav, "hparams": settings}  # as the authors save it
    (folder / "hparams.yaml").write_text(yaml.safe_dump(layout, sort_keys=False))


if __name__ == "__main__":
    main()
