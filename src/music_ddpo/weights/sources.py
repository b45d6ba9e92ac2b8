"""Where the weights of each `model` come from, and under which licence."""

from __future__ import annotations

from pathlib import Path

from music_ddpo.core.params import PUBLISHED

SHIPPED = {"mini": Path("mini/models")}  # in the repository
HUB = {name: f"cvssp/{name}" for name in PUBLISHED}
KNOWN = (*HUB.values(), "lukewys/laion_clap", "FacebookAI/roberta-base")  # on the hub

LICENCES = dict.fromkeys(SHIPPED, "mit") | dict.fromkeys(HUB.values(), "cc-by-nc-sa-4.0")  # the hub's identifiers
TERMS = {repo: f"{repo}: CC BY-NC-SA 4.0, non-commercial use only, also of adapters." for repo in HUB.values()}
