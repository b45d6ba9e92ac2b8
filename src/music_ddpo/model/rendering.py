"""Waveforms of many clips, in batches that memory allows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tqdm import tqdm

from music_ddpo.machine.batches import Execution, full_memory_explained, portions
from music_ddpo.model.policy import Policy


def render(
    policy: Policy, clips: Sequence[int], prompt: dict[int, int], noise: dict[int, torch.Generator],
    execution: Execution, bar: tqdm,
) -> list[torch.Tensor]:  # fmt: skip
    """Samples and decodes clips in the batches of `execution`: one waveform [samples] for each.

    Parameters
    ----------
    prompt, noise
        The index of the prompt, and the generator, of each clip.
    """
    x_0 = []
    for part in portions(clips, execution.batch):
        with full_memory_explained("batch", len(part)):
            index = torch.tensor([prompt[i] for i in part])
            x_0.append(policy.sample(index, [noise[i] for i in part], bar.update, keep_path=False).x[:, -1])
    waveforms: list[torch.Tensor] = []
    for latents in torch.cat(x_0).split(execution.decode_batch) if x_0 else ():
        with full_memory_explained("decode_batch", len(latents)):
            waveforms += policy.decode(latents)
    return waveforms
