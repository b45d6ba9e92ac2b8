"""The `preference` judge: which of two clips people would prefer, as TuneJury learnt it from human votes."""

from music_ddpo.rewards.preference.reward import Preference

__all__ = ["Preference"]
