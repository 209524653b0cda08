"""The sections of docs/results.md, each from the result files in benchmarks/results."""
