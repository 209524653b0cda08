"""Built-in view generators of text; importing this package registers them."""

from mmcon_views.text import strings, tokens

__all__ = ["strings", "tokens"]
