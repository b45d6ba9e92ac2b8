"""CLAP as laion-clap computes it: the paper's checkpoint, brought, verified and converted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import BartTokenizer, BertTokenizer, RobertaConfig, RobertaModel, RobertaTokenizer

from music_ddpo.core.errors import UserError, in_one_line
from music_ddpo.core.files import digest, write_json
from music_ddpo.core.params import ClapWeights
from music_ddpo.rewards.clap.encoder import Encoder
from music_ddpo.weights import hub
from music_ddpo.weights.checkpoints import state_dict

WEIGHTS, SETTINGS, TEXT = "model.safetensors", "laion.json", "text"
SAMPLE_RATE, LONGEST = 48_000, 480_000  # Hz, samples; laion-clap cuts longer clips at a random position


class LaionEncoder(Encoder):
    """laion-clap's `CLAP_Module`, from the folder that `fetch` has written."""

    sample_rate = SAMPLE_RATE
    longest = LONGEST

    def __init__(self, folder: Path, device: torch.device):
        architecture = json.loads((folder / SETTINGS).read_text())["architecture"]
        with _named(folder / TEXT):
            from laion_clap import CLAP_Module  # late: it takes seconds, and requests tokenizers from the hub

            module = CLAP_Module(enable_fusion=False, device=str(device), amodel=architecture)
        module.model.load_state_dict(load_file(folder / WEIGHTS))
        self.module = module.eval().requires_grad_(False)

    def text(self, text: str) -> torch.Tensor:
        """The embedding of a text, float32 [dimensions]."""
        return self.module.get_text_embedding([text], use_tensor=True)[0]

    def audio(self, pieces: Sequence[torch.Tensor], quantised: bool = True) -> torch.Tensor:
        """The embeddings of pieces of audio, float32 [pieces, dimensions]; laion-clap quantises arrays, not tensors.

        One by one: in a batch of any size a piece's embedding has other bits (by up to 1e-7 on a CPU), so a clip's
        score would depend on its batch. On one CPU thread a batch is not faster either.
        """
        embed = self.module.get_audio_embedding_from_data
        if quantised:
            return torch.cat([torch.from_numpy(embed([piece.numpy()])) for piece in pieces])
        return torch.cat([embed([piece], use_tensor=True) for piece in pieces])


def fetch(settings: ClapWeights, folder: Path) -> str:
    """Writes laion-clap's checkpoint, as safetensors, and the tokenizer of its text tower to `folder`.

    Returns
    -------
    Where they come from.

    Raises
    ------
    UserError
        If the checkpoint's SHA-256 is not the configured one; it is not read then.
    """
    checkpoint = hub.file(settings.repo, settings.file)
    found = digest(checkpoint)
    if found != settings.sha256:
        raise UserError(
            f"{settings.file}: SHA-256 is {found[:12]}…, weights.clap.sha256 says {settings.sha256[:12]}…; it was not "
            f"read. {settings.repo} now has this file: decide whether you trust it, and set weights.clap.sha256."
        )
    text = hub.snapshot(settings.text_model, "main", ["config.json", "vocab.json", "merges.txt", "tokenizer*.json"])
    (folder / TEXT).mkdir(parents=True)
    for path in text.iterdir():
        if path.suffix in (".json", ".txt"):
            shutil.copyfile(path, folder / TEXT / path.name)
    states = state_dict(checkpoint, "module.")
    states.pop("text_branch.embeddings.position_ids", None)  # formerly a parameter, now computed
    save_file(states, folder / WEIGHTS)
    write_json(folder / SETTINGS, {"architecture": settings.architecture})
    try:
        LaionEncoder(folder, torch.device("cpu"))
    except Exception as error:
        raise UserError(
            f"weights.clap.architecture: the weights in {checkpoint} do not match {settings.architecture!r} "
            f"({in_one_line(error)})."
        ) from error
    print(f"Licence: CLAP checkpoint {settings.repo}: see https://huggingface.co/{settings.repo} for its terms.")
    came = f"{settings.repo}@{checkpoint.parent.name}: {settings.file} (SHA-256 {found})"
    return f"{came}, {settings.text_model}@{text.name}"


@contextmanager
def _named(folder: Path) -> Iterator[None]:
    """Inside it, laion-clap gets from `folder` what it would request from the hub by name.

    Its import loads three tokenizers, of which two are not used here, and its constructor loads RoBERTa's weights,
    which the checkpoint then replaces. Without a network each request would be retried for minutes.
    """
    tokenizer = RobertaTokenizer.from_pretrained(folder, local_files_only=True)
    config = RobertaConfig.from_pretrained(folder, local_files_only=True)
    found: dict[Any, Any] = {
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
            del kind.from_pretrained  # restores the inherited one
