"""The objective, the optimizers, and the run that drives them."""
