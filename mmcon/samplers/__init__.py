"""Batch samplers: the global batch of each step, decided from the seed, the epoch and the step."""
