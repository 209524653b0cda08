"""Encoders by name, projection heads and shared spaces."""
