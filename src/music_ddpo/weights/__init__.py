"""Weights: download, verify, convert."""
