"""The generator, AudioLDM 2, and the policy that it is for reinforcement learning."""
