"""Implementations of the weighted loss: dense (the reference), tiled, symmetric and Triton."""
