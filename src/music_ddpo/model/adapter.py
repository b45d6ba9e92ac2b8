"""LoRA on attention layers of the UNet: add, save, load. Everything else stays frozen."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import torch
from diffusers.models.attention_processor import Attention
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from music_ddpo.core.errors import UserError, in_one_line
from music_ddpo.core.files import whole
from music_ddpo.core.params import LoRAParams
from music_ddpo.core.tensors import require_finite
from music_ddpo.model import adapter_files
from music_ddpo.model.audioldm2 import Generator


def add(generator: Generator, lora: LoRAParams, seed: int) -> list[nn.Parameter]:
    """Adds a new adapter to the generator's UNet; returns its parameters, float32.

    A new adapter does not change the output: its B matrices are zero. Its A matrices depend on `seed` only.
    """
    modules = target_modules(generator.unet, lora.targets)
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=modules, bias="none")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        generator.unet = get_peft_model(generator.unet, config)
    return parameters(generator)


def target_modules(unet: nn.Module, targets: str) -> str:
    """The projections of the attention layers that get LoRA, as a regular expression over names of modules.

    AudioLDM 2 has three transformers after each layer: one attends to the latents only, one also to GPT-2's tokens, one
    to T5's. The `attn2` of the first is self-attention, so "cross" is a part of the `attn2` layers.

    Parameters
    ----------
    targets
        "cross" or "all".
    """
    layers = [
        re.escape(name)
        for name, module in unet.named_modules()
        if isinstance(module, Attention) and (targets == "all" or module.is_cross_attention)
    ]
    return rf"({'|'.join(layers)})\.(to_q|to_k|to_v|to_out\.0)"


def parameters(generator: Generator) -> list[nn.Parameter]:
    """The trainable parameters, in the model's order."""
    return [p for p in generator.unet.parameters() if p.requires_grad]


def save(generator: Generator, folder: Path | str) -> None:
    """Writes the adapter as a PEFT folder, which stock `peft` loads onto a stock pipeline's UNet."""
    with whole(folder) as partial:
        generator.unet.save_pretrained(partial)
        (partial / "README.md").unlink(missing_ok=True)  # PEFT's empty model card


def load(generator: Generator, folder: Path | str) -> None:
    """Adds a saved adapter to the generator's UNet, frozen; `UserError` if it is missing or does not match."""
    folder = Path(folder)
    modules = adapter_files.check(folder)
    unknown = modules - {name for name, _ in generator.unet.named_modules()}
    if unknown:
        raise UserError(
            f"{folder}: the adapter could not be loaded: this model has no {min(unknown)!r}. It was trained on another "
            f"model: use an adapter of this one, or {adapter_files.restore(folder)}."
        )
    try:
        config = LoraConfig.from_pretrained(folder)
        config.target_modules = modules
        with warnings.catch_warnings():  # peft only warns of an adapter that does not match
            warnings.filterwarnings("error", "Found missing adapter keys")
            generator.unet = PeftModel.from_pretrained(generator.unet, folder, config=config).eval()
    except Exception as error:
        raise UserError(
            f"{folder}: the adapter could not be loaded ({in_one_line(error)}): it was trained on another model, or is "
            f"damaged. Use an adapter of this model, or {adapter_files.restore(folder)}."
        ) from error
    weights = {name: x for name, x in generator.unet.named_parameters() if ".lora_" in name}
    require_finite(weights, folder, adapter_files.restore(folder))
