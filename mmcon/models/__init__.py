"""Encoders by name, projection heads into shared spaces, EMA encoders, batch norm, fine-tuning and saving."""
