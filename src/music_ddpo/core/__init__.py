"""Foundations that every other part builds on: errors, files, randomness, prompts, audio, parameters."""
