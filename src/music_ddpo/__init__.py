"""Reinforcement learning on text-to-music diffusion: AudioLDM 2 as a policy, DDPO, rewards that listen."""
