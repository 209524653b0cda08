"""The loader: draws, decodes, collates and finishes batches of views."""
