"""The `emopia` reward: which of four emotions the clip expresses."""

from music_ddpo.rewards.emopia.reward import Emopia

__all__ = ["Emopia"]
