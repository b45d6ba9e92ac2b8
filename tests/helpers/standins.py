"""Small models with random weights, in the layout and the file formats of the real repositories.

Every builder gives the same weights every time, and leaves torch's random state alone.
"""

from __future__ import annotations

import hashlib
import json
import math
import string
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import yaml
from diffusers import AudioLDM2ProjectionModel, AudioLDM2UNet2DConditionModel, AutoencoderKL, DDIMScheduler
from safetensors.torch import save_file
from tokenizers import ByteLevelBPETokenizer
from torch import nn
from transformers import (
    ClapAudioConfig,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapTextConfig,
    GPT2Config,
    GPT2Model,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaModel,
    RobertaTokenizer,
    SpeechT5HifiGan,
    SpeechT5HifiGanConfig,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from music_ddpo.core.params import EmopiaParams, Params, WeightParams
from music_ddpo.rewards.emopia.network import ShortChunkResNet
from music_ddpo.rewards.preference.head import PreferenceHead
from music_ddpo.weights.checkpoints import git_object

CLAP, T5, GPT2 = 24, 48, 32  # widths; the real ones are 512, 1024 and 768
SENTENCES = [
    f"A recording of {emotion} {instrument} solo, high quality"
    for emotion in ("a happy", "an angry", "a sad", "a tender", "a joyful", "a tense", "a gloomy", "a calm")
    for instrument in ("piano", "guitar")
] + ["Low quality, multiple sound sources", "Low quality."]

MODEL_INDEX = {
    "_class_name": "AudioLDM2Pipeline",
    "_diffusers_version": "0.20.0.dev0",
    "feature_extractor": ["transformers", "ClapFeatureExtractor"],
    "language_model": ["transformers", "GPT2Model"],
    "projection_model": ["audioldm2", "AudioLDM2ProjectionModel"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "ClapModel"],
    "text_encoder_2": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "RobertaTokenizerFast"],
    "tokenizer_2": ["transformers", "T5TokenizerFast"],
    "unet": ["audioldm2", "AudioLDM2UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "vocoder": ["transformers", "SpeechT5HifiGan"],
}
EMOPIA = {
    "task": {"labels": ["Q1", "Q2", "Q3", "Q4"], "cls_type": "AV", "n_class": 4},
    "wav": {"feature_path": "../dataset/resample22050", "input_length": 3, "sr": 22050},
    "monitor": {"metric": "val_loss", "mode": "min"},
    "hparams": {
        "dataset": "EMOPIA",
        "task": "ar_va",
        "wav": "sr22k",
        "monitor": "loss",
        "patience": 5,
        "n_channels": 8,  # 128 in the real one
        "n_fft": 1024,
        "n_mels": 128,
        "f_min": 0,
        "f_max": 8000,
        "batch_size": 16,
        "num_workers": 8,
        "lr": 0.0003,
        "weight_decay": 0.0001,
        "T_0": 5,
    },
}


def audioldm2(folder: Path) -> None:
    """`cvssp/audioldm2-music` as it is on the hub, with the files that nobody needs; 10 MB."""
    tokenizer, tokenizer_2 = _roberta_tokenizer(folder / "tokenizer"), _t5_tokenizer(folder / "tokenizer_2")
    with _seeded(1):
        models = _models(len(tokenizer), len(tokenizer_2))
    for name, model in models.items():
        model.save_pretrained(folder / name)
    DDIMScheduler(
        num_train_timesteps=1000, beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195,
        clip_sample=False, set_alpha_to_one=False, steps_offset=1,
    ).save_pretrained(folder / "scheduler")  # fmt: skip
    ClapFeatureExtractor(frequency_min=50, frequency_max=14_000, truncation="rand_trunc").save_pretrained(
        folder / "feature_extractor"
    )
    _write_json(folder / "model_index.json", MODEL_INDEX)
    torch.save(models["unet"].state_dict(), folder / "unet" / "diffusion_pytorch_model.bin")
    torch.save(models["text_encoder"].state_dict(), folder / "text_encoder" / "pytorch_model.bin")
    half = {key: x.half() for key, x in models["vae"].state_dict().items()}
    save_file(half, folder / "vae" / "diffusion_pytorch_model.fp16.safetensors")
    _write_unneeded(folder, "cc-by-nc-sa-4.0")


def _models(roberta_tokens: int, t5_tokens: int) -> dict[str, nn.Module]:
    clap = ClapConfig(
        text_config=ClapTextConfig(
            vocab_size=roberta_tokens, hidden_size=CLAP, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=2 * CLAP, max_position_embeddings=514, projection_dim=CLAP,
        ).to_dict(),
        audio_config=ClapAudioConfig(
            patch_size=16, patch_stride=(16, 16), patch_embeds_hidden_size=16, hidden_size=32, depths=(1, 1),
            num_attention_heads=(2, 2), num_hidden_layers=2, projection_dim=CLAP,
        ).to_dict(),
        projection_dim=CLAP,
    )  # fmt: skip
    t5 = T5Config(
        vocab_size=t5_tokens + 28, d_model=T5, d_kv=16, d_ff=T5, num_layers=1, num_heads=2,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False,
    )  # fmt: skip
    gpt2 = GPT2Config(
        vocab_size=64, n_positions=256, n_embd=GPT2, n_layer=1, n_head=2, bos_token_id=63, eos_token_id=63,
        max_new_tokens=8,
    )  # fmt: skip
    down = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
    unet = AudioLDM2UNet2DConditionModel(
        sample_size=128, in_channels=8, out_channels=8, block_out_channels=(16, 16, 32, 32), layers_per_block=1,
        down_block_types=down, up_block_types=tuple(name.replace("Down", "Up") for name in reversed(down)),
        cross_attention_dim=((None, GPT2, T5),) * 4, attention_head_dim=2, norm_num_groups=8,
    )  # fmt: skip
    vae = AutoencoderKL(
        in_channels=1, out_channels=1, latent_channels=8, block_out_channels=(8, 16, 16), layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=8, sample_size=1024, scaling_factor=0.41,
    )  # fmt: skip
    vocoder = SpeechT5HifiGanConfig(
        model_in_dim=64, sampling_rate=16_000, upsample_initial_channel=64, upsample_rates=[5, 4, 2, 2, 2],
        upsample_kernel_sizes=[16, 16, 8, 4, 4], normalize_before=False, initializer_range=0.1,  # 0.01 is silent
    )  # fmt: skip
    return {
        "text_encoder": ClapModel(clap),
        "text_encoder_2": T5EncoderModel(t5),
        "projection_model": AudioLDM2ProjectionModel(CLAP, T5, GPT2),
        "language_model": GPT2Model(gpt2),
        "unet": unet,
        "vae": vae,
        "vocoder": SpeechT5HifiGan(vocoder),
    }


def roberta_base(folder: Path) -> None:
    """`FacebookAI/roberta-base` as it is on the hub, one layer deep; laion-clap wants its width."""
    tokenizer = _roberta_tokenizer(folder)
    config = RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=768, num_hidden_layers=1, num_attention_heads=12,
        intermediate_size=64, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5,
        pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    with _seeded(2):
        RobertaForMaskedLM(config).save_pretrained(folder)
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
    hparams = EMOPIA["hparams"]
    with _seeded(4):
        mel = {key: hparams[key] for key in ("n_fft", "f_min", "f_max", "n_mels", "n_channels")}
        network = ShortChunkResNet(EMOPIA["wav"]["sr"], **mel)
        network.apply(lambda module: setattr(module, "momentum", 1.0))  # BatchNorms learn from what is heard once
        network(torch.randn(8, 66_150) * torch.logspace(-4, 0, 8)[:, None])
    states = {f"model.{key}": x for key, x in network.state_dict().items()}
    content = {"epoch": 12, "global_step": 1234, "pytorch-lightning_version": "1.2.6", "state_dict": states}
    torch.save(content, wanted / "best.ckpt")
    (wanted / "hparams.yaml").write_text(yaml.safe_dump(EMOPIA, sort_keys=False))
    midi = {"task": EMOPIA["task"], "midi": {"feature_path": "./dataset/magenta_midi", "pad_idx": 388}}
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


def _roberta_tokenizer(folder: Path) -> RobertaTokenizer:
    """Byte-level BPE in all the files that it had in 2023."""
    bpe = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bpe.train_from_iterator(SENTENCES, vocab_size=400, special_tokens=special, show_progress=False)
    model = json.loads(bpe.to_str())["model"]
    tokenizer = RobertaTokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])
    tokenizer.save_pretrained(folder)
    bpe.save_model(str(folder))
    names = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "mask_token": "<mask>", "pad_token": "<pad>"}
    names |= {"sep_token": "</s>", "unk_token": "<unk>"}
    settings = {"model_max_length": 512, "tokenizer_class": "RobertaTokenizer", "add_prefix_space": False}
    _write_json(folder / "tokenizer_config.json", names | settings | {"errors": "replace", "trim_offsets": True})
    _write_json(folder / "special_tokens_map.json", names)
    return tokenizer


def _t5_tokenizer(folder: Path) -> T5Tokenizer:
    """A unigram model of words and, below them, characters, in all the files of 2023 but SentencePiece's."""
    words = Counter(piece for s in SENTENCES for piece in s.replace(",", " ,").split())
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocab += [("," if w == "," else "▁" + w, math.log(n / words.total())) for w, n in words.most_common()]
    vocab += [(c, -20.0) for c in "▁" + string.ascii_letters + string.digits + ".;:!?'\"-()&"]
    extra = [f"<extra_id_{i}>" for i in range(100)]
    vocab += [(name, 0.0) for name in reversed(extra)]
    tokenizer = T5Tokenizer(vocab=vocab)
    tokenizer.save_pretrained(folder)
    names = {"additional_special_tokens": extra, "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    settings = {"model_max_length": 128, "tokenizer_class": "T5Tokenizer", "extra_ids": 100, "sp_model_kwargs": {}}
    _write_json(folder / "tokenizer_config.json", names | settings)
    _write_json(folder / "special_tokens_map.json", names)
    return tokenizer


def _write_unneeded(folder: Path, licence: str) -> None:
    (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n\n# A stand-in\n")
    (folder / ".gitattributes").write_text("*.bin filter=lfs diff=lfs merge=lfs -text\n")


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def preference_head(path: Path, prefix: str = "net") -> None:
    """TuneJury's head A1 as it is published: the bare state dict of an `nn.Sequential` with a name, full size."""
    head = PreferenceHead(512, 1024, 512, 256, 128, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({f"{prefix}.{key}": value for key, value in head.state_dict().items()}, path)


def asked(model: str, weights: WeightParams, judges: Sequence[str] = (), windows: str = "cover") -> Params:
    """Params with what `fetch` reads."""
    emopia = EmopiaParams(windows=windows)
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
