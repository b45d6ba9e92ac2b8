"""The model card of an adapter: what the hub shows of it, and what whoever finds the folder needs to know."""

from __future__ import annotations

import json
import re

import yaml
from huggingface_hub import ModelCardData

from music_ddpo.evaluation import Estimate
from music_ddpo.params import Params
from music_ddpo.prompts import fill


def write(reward: str, params: Params, seed: int, weights: dict, training: dict, accuracy: dict) -> str:
    """The README.md of the adapter that was trained with `reward`.

    Parameters
    ----------
    weights
        What metrics/weights.json holds: where model and rewards came from.
    training, accuracy
        What metrics/train/<reward>.json and metrics/accuracy.json hold.
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
        "reward": f"{reward} ({params.reward_form})",
        "rounds": f"{d.epochs} of {d.trajectories_per_epoch} trajectories and {d.updates_per_epoch} updates each",
        "denoising steps": f"{params.steps}, of which trained: {d.timesteps}",
        "clips": f"{params.duration:g} s, guidance {params.guidance_scale:g}",
        "LoRA": f"rank {lora.rank}, alpha {lora.alpha:g}, on the cross-attention layers",
        "AdamW": f"learning rate {d.learning_rate:g}, weight decay {d.weight_decay:g}",
        "clip range": f"{d.clip_range:g}",
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
        f"# An emotion adapter for {base}, rewarded by {reward}",
        "",
        f"A LoRA adapter for the UNet of the text-to-music model `{base}` (revision `{weights['revision']}`), trained "
        "with DDPO, a policy gradient over the denoising steps, to play the emotion that the prompt asks for.",
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
        f"Clips from the same noise without and with the adapter; brackets hold {level} intervals.",
        "",
        "| judged by | | original | with this adapter | change |",
        "|---|---|---|---|---|",
        *_scores(reward, params, accuracy),
        "",
        "A judge other than the reward says whether the music changed, or only the reward's opinion of it.",
        "",
        "## Limits and licence",
        "",
        f"It was trained and measured with the prompts above and nothing else. Licence: {weights['license']}"
        + (", as that of the model it was made for." if weights["license"] != "unknown" else "."),
        "",
        *_table({f"weights of {name}": source for name, source in sources.items()}),
    ]
    return f"---\n{yaml.safe_dump(data.to_dict(), sort_keys=False)}---\n\n" + "\n".join(lines) + "\n"


def _loading(base: str, revision: str | None) -> list[str]:
    """Python that loads the untouched pipeline."""
    imports = ["from diffusers import AudioLDM2Pipeline", "from peft import PeftModel"]
    if revision is None:
        return [
            *imports,
            "",
            'pipe = AudioLDM2Pipeline.from_pretrained("models/pipeline")  # as the stage `fetch` left it',
        ]
    return [
        *imports,
        "from transformers import GPT2LMHeadModel",
        "",
        "# saved as a GPT2Model, which cannot generate any more",
        f'base, revision = "{base}", "{revision}"',
        'language_model = GPT2LMHeadModel.from_pretrained(base, subfolder="language_model", revision=revision)',
        "pipe = AudioLDM2Pipeline.from_pretrained(base, language_model=language_model, revision=revision)",
    ]


def _example(params: Params) -> str:
    return fill(params.prompts.template, params.prompts.emotions[0], params.prompts.instruments[0])


def _table(rows: dict[str, str]) -> list[str]:
    def cell(text: str) -> str:
        return " ".join(text.split()).replace("|", "\\|")

    return ["| | |", "|---|---|", *(f"| {name} | {cell(value)} |" for name, value in rows.items())]


def _scores(reward: str, params: Params, accuracy: dict) -> list[str]:
    """One row for each judge, over all clips and for each emotion."""
    rows = []
    for judge, models in accuracy.items():
        before, after = models["original"], models[f"trained_with_{reward}"]
        headline = "similarity" if "similarity" in before else "accuracy"
        name = judge.removeprefix("judged_by_").replace("_", "-")
        rows.append(_score(f"{name} {headline}", "all", headline, before, after))
        for emotion in params.prompts.emotions:
            rows.append(_score("", emotion, headline, before[emotion], after[emotion]))
    return rows


def _score(name: str, which: str, headline: str, before: dict, after: dict) -> str:
    def estimate(entry: dict, key: str) -> Estimate:
        return Estimate(entry[key], entry[f"{key}_low"], entry[f"{key}_high"], entry["clips"])

    values = (str(estimate(entry, headline)) for entry in (before, after))
    cells = (name, which, *values, estimate(after, "gain").signed())
    return f"| {' | '.join(cells)} |"
