"""Sources: samples with stable ids whose media stay encoded until a view needs them."""
