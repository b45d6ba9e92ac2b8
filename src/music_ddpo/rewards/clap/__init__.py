"""The `clap` reward: how well the sound matches the text."""

from music_ddpo.rewards.clap.reward import Clap

__all__ = ["Clap"]
