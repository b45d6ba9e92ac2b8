"""Small models with random weights, in the layout and the file formats of the real repositories.

Their configs are the real ones of tests/real_layout with smaller sizes; their tensors have the real names and types.
Every builder gives the same weights every time, and leaves torch's random state alone.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import shutil
import string
import struct
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from tokenizers import ByteLevelBPETokenizer
from torch import nn
from transformers import GPT2Model, RobertaConfig, RobertaForMaskedLM, RobertaModel, RobertaTokenizer, T5Tokenizer

from music_ddpo.core.params import EmopiaParams, Params, WeightParams
from music_ddpo.model.parts import MODELS
from music_ddpo.rewards.emopia.network import ShortChunkResNet
from music_ddpo.rewards.preference.head import PreferenceHead
from music_ddpo.weights.checkpoints import git_object

LAYOUT = Path(__file__).parents[1] / "real_layout"
AUDIOLDM2, ROBERTA, EMOPIA = "cvssp+audioldm2", "FacebookAI+roberta-base", "SeungHeonDoh+EMOPIA_cls"
CLASSES = MODELS | {"language_model": GPT2Model}  # as they were saved
SENTENCES = [
    f"A recording of {emotion} {instrument} solo, high quality"
    for emotion in ("a happy", "an angry", "a sad", "a tender", "a joyful", "a tense", "a gloomy", "a calm")
    for instrument in ("piano", "guitar")
] + ["Low quality, multiple sound sources", "Low quality."]

# What is smaller than in the real configs; None: the size of the stand-in's own tokenizer.
CLAP, T5, GPT2 = 24, 48, 32  # widths; the real ones are 512, 1024 and 768
SMALLER: dict[str, dict[str, Any]] = {
    "text_encoder": {
        "projection_dim": CLAP,
        "text_config": {
            "vocab_size": None, "hidden_size": CLAP, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 2 * CLAP,
        },
        "audio_config": {
            "depths": [1, 1, 1, 1], "hidden_size": 64, "patch_embeds_hidden_size": 8,
            "num_attention_heads": [2, 2, 2, 2],
        },
    },
    "text_encoder_2": {"vocab_size": None, "d_model": T5, "d_kv": 16, "d_ff": T5, "num_layers": 1, "num_heads": 2},
    "projection_model": {"text_encoder_dim": CLAP, "text_encoder_1_dim": T5, "langauge_model_dim": GPT2},
    "language_model": {
        "vocab_size": 64, "bos_token_id": 63, "eos_token_id": 63, "n_positions": 256, "n_ctx": 256, "n_embd": GPT2,
        "n_layer": 1, "n_head": 2,
    },
    "unet": {
        "sample_size": 128, "block_out_channels": [8, 16, 24, 32], "norm_num_groups": 8,
        "cross_attention_dim": [[None, GPT2, T5]] * 4,
    },
    # audioldm2-music's scaling factor is not known, and differs between all models of the family
    "vae": {"block_out_channels": [8, 16, 32], "norm_num_groups": 8, "scaling_factor": 0.5227},
    "vocoder": {"upsample_initial_channel": 64},
}  # fmt: skip


def real_config(name: str, repo: str = AUDIOLDM2) -> dict[str, Any]:
    """A JSON file of tests/real_layout."""
    return json.loads((LAYOUT / repo / name).read_text())


def build(part: str, config: dict[str, Any]) -> nn.Module:
    """The model of a part of the pipeline, by its config."""
    kind = CLASSES[part]
    return kind(kind.config_class.from_dict(config)) if "model_type" in config else kind.from_config(config)


def as_saved(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a model under the names and in the types in which the hub has them."""
    states = dict(model.state_dict())
    states.pop("encoder.embed_tokens.weight", None)  # T5's are those of `shared`
    return {key: x.double() if key.startswith("logit_scale") else x for key, x in states.items()}


def audioldm2(folder: Path) -> None:
    """`cvssp/audioldm2-music` as it is on the hub, with the files that nobody needs; 20 MB."""
    tokens = {
        "text_encoder": _roberta_tokenizer(folder / "tokenizer"),
        "text_encoder_2": _t5_tokenizer(folder / "tokenizer_2"),
    }
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        _copy_real(f"tokenizer/{name}", folder)
        _copy_real(f"tokenizer_2/{name}", folder)
    for part, smaller in SMALLER.items():
        config = _with_sizes(real_config(f"{part}/config.json"), smaller, tokens.get(part, 0))
        (folder / part).mkdir()
        _write_json(folder / part / "config.json", config)
        louder = {"initializer_range": 0.1} if part == "vocoder" else {}  # from 0.01 it would be silent
        with _seeded(1):
            states = {key: x.contiguous() for key, x in as_saved(build(part, config | louder)).items()}
        transformers = "model_type" in config
        stem = "model" if transformers else "diffusion_pytorch_model"
        save_file(states, folder / part / f"{stem}.safetensors", {"format": "pt"})
        torch.save(states, folder / part / ("pytorch_model.bin" if transformers else f"{stem}.bin"))
    for name in ("model_index.json", "scheduler/scheduler_config.json", "feature_extractor/preprocessor_config.json"):
        _copy_real(name, folder)
    _write_unneeded(folder, "cc-by-nc-sa-4.0")


def _with_sizes(config: dict[str, Any], smaller: dict[str, Any], tokens: int) -> dict[str, Any]:
    """A config with other sizes, in its parts too."""
    changed = dict(config)
    for key, value in smaller.items():
        inner = isinstance(value, dict)
        changed[key] = _with_sizes(config[key], value, tokens) if inner else tokens if value is None else value
    return changed


def roberta_base(folder: Path) -> None:
    """`FacebookAI/roberta-base` as it is on the hub, one layer deep; laion-clap wants its width."""
    tokens = _roberta_tokenizer(folder)
    _copy_real("tokenizer_config.json", folder, ROBERTA)
    smaller = {"num_hidden_layers": 1, "intermediate_size": 64, "vocab_size": None}
    config = _with_sizes(real_config("config.json", ROBERTA), smaller, tokens)
    with _seeded(2):
        RobertaForMaskedLM(RobertaConfig.from_dict(config)).save_pretrained(folder)
    _write_json(folder / "config.json", config)
    for name in ("pytorch_model.bin", "flax_model.msgpack", "tf_model.h5", "rust_model.ot", "dict.txt"):
        (folder / name).write_bytes(b"not needed\n")
    _write_unneeded(folder, "mit")


def laion_checkpoint(path: Path, roberta: Path, amodel: str = "HTSAT-tiny") -> None:
    """`music_audioset_epoch_15_esc_90.14.pt` of `lukewys/laion_clap`, with the text tower of `roberta`; 150 MB.

    laion-clap's own builder makes the model, without the import of `laion_clap`, which asks the hub for tokenizers.
    """
    package = find_spec("laion_clap")
    assert package is not None
    assert package.origin is not None
    config = RobertaConfig.from_pretrained(roberta, initializer_range=0.1)  # from 0.02 all texts would be alike
    with (
        patch.object(sys, "path", [*sys.path, str(Path(package.origin).parent)]),
        patch.object(RobertaModel, "from_pretrained", lambda *_, **__: RobertaModel(config)),
        _seeded(3),
    ):
        from clap_module import create_model

        model, _ = create_model(amodel, "roberta", enable_fusion=False)
        model.audio_branch.bn0.running_mean.normal_(-20, 5)  # decibels
        model.audio_branch.bn0.running_var.uniform_(200, 400)
    states = {}
    for key, x in model.state_dict().items():
        if key == "text_branch.embeddings.word_embeddings.weight":  # position_ids came first when they were saved
            states["module.text_branch.embeddings.position_ids"] = torch.arange(514)[None]
        states[f"module.{key}"] = x
    optimizer = {"state": {0: {"step": 1, "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
    content = {"epoch": 15, "name": "stand-in", "state_dict": states, "optimizer": optimizer, "loss": np.float64(1.5)}
    torch.save(content, path)


def emopia_weights(folder: Path) -> None:
    """What is in the zip of EMOPIA's authors, unpacked: the classifier of audio, and one of MIDI that is not used."""
    wanted, other = folder / "best_weight" / "wav" / "ar_va", folder / "best_weight" / "midi_like" / "ar_va"
    for place in (wanted, other):
        place.mkdir(parents=True)
    text = (LAYOUT / EMOPIA / "best_weight" / "wav" / "ar_va" / "hparams.yaml").read_text()
    text = text.replace("n_channels: 128", "n_channels: 8")
    settings = yaml.safe_load(text)
    with _seeded(4):
        mel = {key: settings["hparams"][key] for key in ("n_fft", "f_min", "f_max", "n_mels", "n_channels")}
        network = ShortChunkResNet(settings["wav"]["sr"], **mel)
        network.apply(lambda module: setattr(module, "momentum", 1.0))  # BatchNorms learn from what is heard once
        network(torch.randn(8, 66_150) * torch.logspace(-4, 0, 8)[:, None])
    states = {f"model.{key}": x for key, x in network.state_dict().items()}
    content = {"epoch": 12, "global_step": 1234, "pytorch-lightning_version": "1.3.7", "state_dict": states}
    torch.save(content, wanted / "best.ckpt")
    (wanted / "hparams.yaml").write_text(text)
    midi = {"task": settings["task"], "midi": {"feature_path": "./dataset/magenta_midi", "pad_idx": 388}}
    (other / "hparams.yaml").write_text(yaml.safe_dump(midi, sort_keys=False))


def emopia_zip(path: Path) -> None:
    """The zip of EMOPIA's authors."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        emopia_weights(Path(folder))
        for file in sorted(Path(folder).rglob("*.*")):
            archive.write(file, file.relative_to(folder))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _roberta_tokenizer(folder: Path) -> int:
    """Byte-level BPE, in the format of 2023; returns the number of its tokens."""
    bpe = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bpe.train_from_iterator(SENTENCES, vocab_size=400, special_tokens=special, show_progress=False)
    model = json.loads(bpe.to_str())["model"]
    tokenizer = RobertaTokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])
    tokenizer.save_pretrained(folder)
    bpe.save_model(str(folder))
    whole = json.loads((folder / "tokenizer.json").read_text())
    whole["model"]["merges"] = [" ".join(pair) for pair in model["merges"]]
    _write_json(folder / "tokenizer.json", whole)
    return len(tokenizer)


def _t5_tokenizer(folder: Path) -> int:
    """A unigram model of words and, below them, characters, in the format of 2023; returns the number of embeddings."""
    words = Counter(piece for s in SENTENCES for piece in s.replace(",", " ,").split())
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocab += [("," if w == "," else "▁" + w, math.log(n / words.total())) for w, n in words.most_common()]
    vocab += [(c, -20.0) for c in "▁" + string.ascii_letters + string.digits + ".;:!?'\"-()&"]
    vocab += [(f"<extra_id_{i}>", 0.0) for i in reversed(range(100))]
    tokenizer = T5Tokenizer(vocab=vocab)
    tokenizer.save_pretrained(folder)
    nothing = struct.pack("<I", 1024) + bytes(1024)  # SentencePiece's normalisation: an empty trie that changes nothing
    whole = json.loads((folder / "tokenizer.json").read_text())
    whole["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(nothing).decode()}
    _write_json(folder / "tokenizer.json", whole)
    (folder / "spiece.model").write_bytes(b"SentencePiece's own file, which nobody reads beside tokenizer.json\n")
    return len(tokenizer) + 28  # T5's embeddings have rows to spare


def _write_unneeded(folder: Path, licence: str) -> None:
    (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n\n# A stand-in\n")
    (folder / ".gitattributes").write_text("*.bin filter=lfs diff=lfs merge=lfs -text\n")


def _copy_real(name: str, folder: Path, repo: str = AUDIOLDM2) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    shutil.copyfile(LAYOUT / repo / name, folder / name)


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def preference_head(path: Path, prefix: str = "net") -> None:
    """TuneJury's head A1 as it is published: the bare state dict of an `nn.Sequential` with a name, full size."""
    noise = torch.Generator().manual_seed(5)
    head = PreferenceHead(512, 1024, 512, 256, 128, 1)
    for name, value in head.state_dict().items():
        if value.is_floating_point():
            value.copy_(0.1 * torch.rand(value.shape, generator=noise) + ("var" in name or name.endswith("1.weight")))
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({f"{prefix}.{key}": value for key, value in head.state_dict().items()}, path)


def asked(model: str, weights: WeightParams, judges: Sequence[str] = (), members: int = 1) -> Params:
    """Params with what `fetch` reads."""
    emopia = EmopiaParams(windows="cover", members=members)
    return Params.model_construct(model=model, weights=weights, judges=list(judges), mixtures={}, emopia=emopia)


MUSIC = "cvssp/audioldm2-music"
CHECKPOINT = "music_audioset_epoch_15_esc_90.14.pt"
TUNEJURY, HEAD = "TuneJury/tunejury", "A1_clap_audio_only.pt"


def publish(root: Path) -> None:
    """Everything: the repositories in `root`/hub, and EMOPIA's zip beside it."""
    audioldm2(root / "hub" / MUSIC)
    roberta_base(root / "hub" / "FacebookAI" / "roberta-base")
    (root / "hub" / "lukewys" / "laion_clap").mkdir(parents=True)
    laion_checkpoint(root / "hub" / "lukewys" / "laion_clap" / CHECKPOINT, root / "hub" / "FacebookAI" / "roberta-base")
    preference_head(root / "hub" / TUNEJURY / HEAD)
    emopia_zip(root / "emopia.zip")


def weight_settings(root: Path, **changes: str) -> WeightParams:
    """The group `weights` of params.yaml for the stand-ins; `clap__x` changes a key of its group `clap`."""
    checkpoint = root / "hub" / "lukewys" / "laion_clap" / CHECKPOINT
    clap = {
        "repo": "lukewys/laion_clap",
        "file": CHECKPOINT,
        "sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        "architecture": "HTSAT-tiny",
        "text_model": "FacebookAI/roberta-base",
    }
    preference = {"repo": TUNEJURY, "file": HEAD, "git_object": git_object(root / "hub" / TUNEJURY / HEAD)}
    content = {"revision": "main", "clap": clap, "emopia": str(root / "emopia.zip"), "preference": preference}
    for key, value in changes.items():
        group, _, inner = key.rpartition("__")
        (content[group] if group else content)[inner] = value
    return WeightParams.model_validate(content)
