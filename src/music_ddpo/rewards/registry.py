"""The rewards that exist, by the name that stands in params.yaml. A new one is a file and a line here."""

from __future__ import annotations

REWARDS = {
    "clap": "music_ddpo.rewards.clap:Clap",
    "emopia": "music_ddpo.rewards.emopia:Emopia",
}

# Hears every clip and is never trained with: where it falls while a reward rises, that reward is being gamed.
HELD_OUT = {"held_out": "music_ddpo.rewards.clap:HeldOutClap"}
