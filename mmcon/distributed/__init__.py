"""Communication between ranks: collectives with gradients, and sharded weights (FSDP2)."""
