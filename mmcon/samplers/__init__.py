"""Batch samplers: the global batch of each step, as a function of the seed, the epoch and the step."""
