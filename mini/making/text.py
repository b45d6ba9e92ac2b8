"""Tokenizers for the two text towers, made from the corpus captions."""

from __future__ import annotations

import json
import math
import string
from collections import Counter

import numpy as np
from tokenizers import ByteLevelBPETokenizer
from transformers import RobertaTokenizer, T5Tokenizer

from corpus import INSTRUMENTS, caption
from music_ddpo.core.prompts import QUADRANTS


def sentences(count: int = 4000) -> list[str]:
    rng = np.random.default_rng(3)
    return [
        caption(str(rng.choice(QUADRANTS)), str(rng.choice(INSTRUMENTS)), bool(rng.random() < 0.2), rng)
        for _ in range(count)
    ]


def roberta_tokenizer() -> RobertaTokenizer:
    """Byte-level BPE, as CLAP's text tower has it; every string can be encoded."""
    bpe = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bpe.train_from_iterator(sentences(), vocab_size=500, special_tokens=special, show_progress=False)
    model = json.loads(bpe.to_str())["model"]
    return RobertaTokenizer(vocab=model["vocab"], merges=[tuple(m) for m in model["merges"]], model_max_length=64)


def t5_tokenizer() -> T5Tokenizer:
    """A unigram model, as T5 has it: the captions' words by frequency, and single characters below them."""
    words = Counter(piece for s in sentences() for piece in s.replace(",", " ,").split())
    total = sum(words.values())
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocab += [("," if w == "," else "▁" + w, math.log(n / total)) for w, n in words.most_common()]
    vocab += [(c, -20.0) for c in "▁" + string.ascii_letters + string.digits + ".;:!?'\"-()&"]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=128)
