"""laion-clap's own CLAP behind the `clap` reward: the paper's checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import BartTokenizer, BertTokenizer, RobertaConfig, RobertaModel, RobertaTokenizer

from music_ddpo.rewards.clap import Clap

WEIGHTS, SETTINGS, TEXT = "model.safetensors", "laion.json", "text"
SAMPLE_RATE, LONGEST = 48_000, 480_000  # Hz, samples: laion-clap's; it cuts what is longer at a random place


class LaionClap(Clap):
    """CLAP as laion-clap computes it, from the folder that `fetch` has made of a checkpoint of theirs."""

    def __init__(self, module: torch.nn.Module):
        self.module = module.eval().requires_grad_(False)
        self.sample_rate = SAMPLE_RATE
        self.longest = LONGEST
        self._texts = {}

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> LaionClap:
        architecture = json.loads((folder / SETTINGS).read_text())["architecture"]
        with _named(folder / TEXT):
            from laion_clap import CLAP_Module  # late: it takes seconds, and asks the hub for tokenizers

            module = CLAP_Module(enable_fusion=False, device=str(device), amodel=architecture)
        module.model.load_state_dict(load_file(folder / WEIGHTS))
        return cls(module)

    def _embed_text(self, text: str) -> torch.Tensor:
        return self.module.get_text_embedding([text], use_tensor=True)[0]

    def _embed_parts(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        embeddings = [self.module.get_audio_embedding_from_data([part.numpy()]) for part in parts]
        return torch.cat([torch.from_numpy(e) for e in embeddings])


@contextmanager
def _named(folder: Path) -> Iterator[None]:
    """While it lasts, what laion-clap asks the hub for by name comes from `folder`, or is nothing.

    Its import loads three tokenizers, of which two are never used here, and its constructor RoBERTa's weights, which
    the checkpoint then replaces. Without a network each of them would be tried for minutes.
    """
    tokenizer = RobertaTokenizer.from_pretrained(folder, local_files_only=True)
    config = RobertaConfig.from_pretrained(folder, local_files_only=True)
    found = {
        BertTokenizer: lambda *_, **__: None,
        BartTokenizer: lambda *_, **__: None,
        RobertaTokenizer: lambda *_, **__: tokenizer,
        RobertaModel: lambda *_, **__: RobertaModel(config),
    }
    for kind, answer in found.items():
        kind.from_pretrained = staticmethod(answer)
    try:
        yield
    finally:
        for kind in found:
            del kind.from_pretrained  # the inherited one is back
