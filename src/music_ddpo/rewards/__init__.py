"""Rewards: models that listen to a clip and say how well it answers its prompt."""
