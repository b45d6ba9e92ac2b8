"""The model card of an adapter, for the hub and for whoever finds the folder; and its headline numbers."""

from __future__ import annotations

import json
import math
import re

import yaml
from huggingface_hub import ModelCardData

from music_ddpo.core.params import SHIPPED, Params
from music_ddpo.core.prompts import fill
from music_ddpo.measuring.statistics import Estimate
from music_ddpo.measuring.summary import LISTENER

SISTERS = (
    "The CLAP inside AudioLDM 2 (held-out) and the clap reward are sister checkpoints, so neither is "
    "an independent judge of the other."
)
LAYERS = {  # `lora.targets`
    "cross": "the cross-attention layers (on GPT-2's and T5's tokens)",
    "all": "all attention layers, self-attention included",
}


def write(reward: str, params: Params, seed: int, weights: dict, training: dict, accuracy: dict) -> str:
    """The README.md of the adapter that was trained with `reward`.

    Parameters
    ----------
    weights
        The content of metrics/weights.json: where model and rewards come from.
    training, accuracy
        The content of metrics/train/<reward>.json and metrics/accuracy.json.
    """
    base = weights["model"]
    on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", base) and re.fullmatch(r"[0-9a-f]{40}", weights["revision"])
    data = ModelCardData(
        base_model=base if on_hub else None,
        base_model_relation="adapter" if on_hub else None,
        library_name="peft",
        license=weights["license"],
        pipeline_tag="text-to-audio",
        tags=["audioldm2", "ddpo", "lora", "music", "reinforcement-learning", "text-to-music"],
    )
    d, lora = params.ddpo, params.lora
    settings = {
        "reward": f"{_reward(reward, params)} ({params.reward_form})",
        "rounds": f"{d.rounds} of {d.trajectories_per_round} trajectories and {d.updates_per_round} updates each",
        "denoising steps": f"{params.steps}, of which trained: {d.timesteps}",
        "clips": f"{params.duration:g} s, guidance {params.guidance_scale:g}",
        "LoRA": f"rank {lora.rank}, alpha {lora.alpha:g}, on {LAYERS[lora.targets]}",
        "AdamW": f"learning rate {d.learning_rate:g}, weight decay {d.weight_decay:g}",
        "clip range": f"{d.clip_range:g}",
        "KL penalty": f"{d.kl:g}",
        "advantages": f"{d.advantages}",
        "seed": f"{seed}",
        "mean reward, first and last quarter": f"{training['reward_first']:.3f}, {training['reward_last']:.3f}",
    }
    prompts = {
        "template": params.prompts.template,
        "negative prompt": params.prompts.negative,
        "emotions": ", ".join(params.prompts.emotions),
        "instruments": ", ".join(params.prompts.instruments),
    }
    sources = {name: weights[name] for name in weights if name not in ("model", "revision", "license")}
    level = f"{params.evaluation.confidence:.0%}"
    lines = [
        f"# An emotion adapter for {base}, trained with {reward}",
        "",
        f"A LoRA adapter for the UNet of the text-to-music model `{base}` (revision `{weights['revision']}`), trained "
        "with DDPO, a policy gradient over the denoising steps, to express the emotion in the prompt.",
        "",
        "## How to use it",
        "",
        "```python",
        *_loading(base, weights["revision"] if on_hub else None),
        'pipe.unet = PeftModel.from_pretrained(pipe.unet, "path/to/this/folder")',
        f"audio = pipe({json.dumps(_example(params))}, negative_prompt={json.dumps(params.prompts.negative)}, "
        f"audio_length_in_s={params.duration:g}, num_inference_steps={params.steps}, "
        f"guidance_scale={params.guidance_scale:g}, eta={params.evaluation.eta:g}).audios[0]",
        "```",
        "",
        "## How it was trained",
        "",
        *_table(settings | prompts),
        "",
        "## What it does",
        "",
        f"Clips from the same noise without and with the adapter; brackets contain {level} confidence intervals.",
        "",
        "| judged by | | original | with this adapter | change |",
        "|---|---|---|---|---|",
        *_scores(reward, params, accuracy),
        "",
        "Only a judge that the adapter was not trained with shows whether more than the reward's score changed."
        + ("" if params.model in SHIPPED else f" {SISTERS}"),
        "",
        "## Limits and licence",
        "",
        "It was trained and measured with the prompts above only. Licence: "
        + ("unknown." if weights["license"] == "unknown" else f"{weights['license']}, like the model."),
        "",
        *_table({f"weights of {name}": source for name, source in sources.items()}),
    ]
    return f"---\n{yaml.safe_dump(data.to_dict(), sort_keys=False)}---\n\n" + "\n".join(lines) + "\n"


def headline(reward: str, params: Params, accuracy: dict, seconds: float) -> dict[str, float | str]:
    """The few numbers that DVC shows as metrics, for metrics/<reward>.json.

    Returns
    -------
    The number of the reward (of a mixture: of its first part) before and after, and the confidence interval of the
    change (`change_ci`); the accuracy by the listener, or else by the first judge that has one, over all clips and, if
    there are at most four, for each emotion; the change of the held-out judge; and the seconds that training took.
    """
    trained = f"trained_with_{reward}"
    own = next(iter(params.mixtures.get(reward, [reward])))
    judged = accuracy[f"judged_by_{own}"]
    name = next(iter(judged["original"]))
    numbers: dict[str, float | str] = {
        "before": round(judged["original"][name], 3),
        "after": round(judged[trained][name], 3),
        "change_ci": _short(judged[trained]["gain_low"]) + ".." + _short(judged[trained]["gain_high"]),
    }
    first = sorted(accuracy, key=lambda judge: judge != f"judged_by_{LISTENER}")
    heard = next((accuracy[judge][trained] for judge in first if "accuracy" in accuracy[judge]["original"]), None)
    if heard is not None:
        numbers["accuracy"] = round(heard["accuracy"], 3)
        if len(params.prompts.emotions) <= 4:  # more would not fit on a screen
            numbers |= {emotion: round(heard[emotion]["accuracy"], 3) for emotion in params.prompts.emotions}
    if "judged_by_held_out" in accuracy:
        numbers["held_out"] = round(accuracy["judged_by_held_out"][trained]["gain"], 3)
    return numbers | {"seconds": round(seconds)}


def _short(x: float | None) -> str:
    """A change with its sign and without the zero before the point, which keeps `dvc metrics show` narrow."""
    return "?" if x is None else f"{x:+.2f}".replace("0.", ".", 1)


def _reward(name: str, params: Params) -> str:
    """The name of a reward, or the parts of a mixture."""
    mix = params.mixtures.get(name, {})
    return f"{name}: " + " + ".join(f"{weight:g} x {part}" for part, weight in mix.items()) if mix else name


def _loading(base: str, revision: str | None) -> list[str]:
    """Python that loads the untouched pipeline."""
    imports = ["from diffusers import AudioLDM2Pipeline", "from peft import PeftModel"]
    if revision is None:
        return [
            *imports,
            "",
            'pipe = AudioLDM2Pipeline.from_pretrained("models/pipeline")  # written by stage `fetch`',
        ]
    return [
        "import torch",
        *imports,
        "from transformers import GPT2LMHeadModel",
        "",
        "# the hub's configs say GPT2Model, which can no longer generate, and float64, which the weights are not",
        f'base, revision = "{base}", "{revision}"',
        'language_model = GPT2LMHeadModel.from_pretrained(base, subfolder="language_model", revision=revision)',
        "pipe = AudioLDM2Pipeline.from_pretrained(",
        "    base, language_model=language_model, revision=revision, torch_dtype=torch.float32",
        ")",
    ]


def _example(params: Params) -> str:
    return fill(params.prompts.template, params.prompts.emotions[0], params.prompts.instruments[0])


def _table(rows: dict[str, str]) -> list[str]:
    def cell(text: str) -> str:
        return " ".join(text.split()).replace("|", "\\|")

    return ["| | |", "|---|---|", *(f"| {name} | {cell(value)} |" for name, value in rows.items())]


def _scores(reward: str, params: Params, accuracy: dict) -> list[str]:
    """One row for each judge and emotion, and one for all clips."""
    rows = []
    for judge, models in accuracy.items():
        before, after = models["original"], models[f"trained_with_{reward}"]
        headline = next(iter(before))
        name = judge.removeprefix("judged_by_").replace("_", "-")
        rows.append(_score(f"{name} {headline}", "all", headline, before, after))
        for emotion in params.prompts.emotions:
            rows.append(_score("", emotion, headline, before[emotion], after[emotion]))
    return rows


def _score(name: str, which: str, headline: str, before: dict, after: dict) -> str:
    def estimate(entry: dict, key: str) -> Estimate:
        low, high = (math.nan if entry[f"{key}_{end}"] is None else entry[f"{key}_{end}"] for end in ("low", "high"))
        return Estimate(entry[key], low, high, entry["clips"])

    values = (str(estimate(entry, headline)) for entry in (before, after))
    cells = (name, which, *values, estimate(after, "gain").signed())
    return f"| {' | '.join(cells)} |"
