"""Loading: draw, decode and collate samples (per-sample stage), and apply batched views (batched stage)."""
