"""Sources with stable ids, samplers, and the loader that makes batches of views."""
