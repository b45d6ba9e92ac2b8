"""Rewards and judges: models that listen to a clip and score it. Each is one module or package, found by its name."""
