"""Evaluation from cached features: features are extracted once, and every metric reads that file."""
