"""Everything that talks to other ranks: collectives with gradients, and sharded weights (FSDP2)."""
