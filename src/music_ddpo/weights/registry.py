"""Where the weights of each `model` come from, what suits it, and what the weights may be used for."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

SHIPPED = {"mini": Path("mini/models")}  # with the repository, made by mini/dvc.yaml
HUB = {name: f"cvssp/{name}" for name in ("audioldm2", "audioldm2-music", "audioldm2-large")}
KNOWN = (*HUB.values(), "lukewys/laion_clap", "FacebookAI/roberta-base")  # on the hub


@dataclass(frozen=True)
class Suited:
    """What `auto` in params.yaml means for a model."""

    guidance_scale: float
    learning_rate: float


SUITED = {"mini": Suited(guidance_scale=2.0, learning_rate=1.5e-2)}
SUITED_OTHERWISE = Suited(guidance_scale=3.5, learning_rate=3e-4)  # the stock pipeline's, the reference DDPO's

LICENCES = dict.fromkeys(HUB.values(), "cc-by-nc-sa-4.0")  # as the hub names it
TERMS = {
    **{repo: f"{repo}: CC BY-NC-SA 4.0, for non-commercial use; so are adapters made for it." for repo in HUB.values()},
    "clap": "CLAP checkpoint {repo}: its terms stand at https://huggingface.co/{repo}.",
    "emopia": "EMOPIA classifier: made from the EMOPIA dataset, CC BY-NC-SA 4.0, for non-commercial use.",
}


def check_name(model: str) -> None:
    """`ValueError` for a word that is neither a known name, nor a hub id, nor a path."""
    if model not in SHIPPED | HUB and "/" not in model and not Path(model).is_dir():
        raise ValueError(
            f"is no model that is known here ({', '.join(SHIPPED | HUB)}), no hub id (owner/name) and no folder"
            + nearest(model, SHIPPED | HUB)
        )


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint at known names that look like `name`, or nothing."""
    close = difflib.get_close_matches(name, [k for k in known if k != name], n=3)
    return f"; did you mean {' or '.join(map(repr, close))}" if close else ""
