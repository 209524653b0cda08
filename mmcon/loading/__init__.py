"""Loading: draw, decode, collate and finish batches of views."""
