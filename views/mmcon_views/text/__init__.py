"""Built-in view generators of text; importing this package registers them."""

from mmcon_views.text import columns, declutr, edits, plain, tokens

__all__ = ["columns", "declutr", "edits", "plain", "tokens"]
