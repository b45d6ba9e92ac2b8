"""The `listener` judge of the embedded model, which stands for people who listen."""

from music_ddpo.rewards.listener.judge import Listener

__all__ = ["Listener"]
