"""Encoders by name, projection heads, EMA encoders, batch norm, fine-tuning and saving."""
