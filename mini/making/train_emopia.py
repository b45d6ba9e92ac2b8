"""Trains the EMOPIA classifier (`ShortChunkResNet`) on the judge's recordings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot
from tqdm import trange

from corpus import SAMPLE_RATE
from mel import crops, load
from music_ddpo.core.prompts import QUADRANTS
from music_ddpo.rewards.emopia.network import ShortChunkResNet

STEPS, BATCH, WINDOW = 1200, 32, 3
HPARAMS = {"sample_rate": SAMPLE_RATE, "n_fft": 512, "f_min": 0.0, "f_max": 8000.0, "n_mels": 64, "n_channels": 12}
LABEL_NOISE = 0.08  # annotators disagree: it keeps the sigmoids from saturating, so the value reward stays dense


def main() -> None:
    torch.manual_seed(2)
    rng = np.random.default_rng(2)
    clips = load("judge")
    network = ShortChunkResNet(**HPARAMS)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, STEPS)
    bar = trange(STEPS, desc="EMOPIA", mininterval=10)
    for step in bar:
        which = rng.integers(len(clips), size=BATCH)
        sound = crops(clips, which, WINDOW, rng)
        sound = sound * torch.from_numpy(rng.uniform(0.7, 1.4, (BATCH, 1)).astype(np.float32))
        sound += torch.randn_like(sound) * torch.from_numpy(10 ** rng.uniform(-5, -2.2, (BATCH, 1)).astype(np.float32))
        target = one_hot(torch.from_numpy(which % 4), 4) * (1 - LABEL_NOISE) + LABEL_NOISE / 4
        loss = binary_cross_entropy_with_logits(network.logits(sound), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            bar.set_postfix_str(f"loss {loss:.3f}")

    folder = Path("build/models/rewards/emopia")
    folder.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), folder / "model.safetensors")
    settings = dict(HPARAMS)
    wav = {"sr": settings.pop("sample_rate"), "input_length": WINDOW}
    layout = {"task": {"labels": list(QUADRANTS)}, "wav": wav, "hparams": settings}  # as the authors save it
    (folder / "hparams.yaml").write_text(yaml.safe_dump(layout, sort_keys=False))


if __name__ == "__main__":
    main()
