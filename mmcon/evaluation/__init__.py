"""What a representation is worth: features are computed once, and every figure reads that one dump."""
