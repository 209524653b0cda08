"""Text chains: for evaluation, and for training with word deletion."""

from __future__ import annotations

from mmcon.registry import register_view
from mmcon.views import Chain
from mmcon_views.text.columns import AnyColumn
from mmcon_views.text.edits import WordDelete
from mmcon_views.text.tokens import TokenView


@register_view("text/words", modality="text")
def words(*, word_delete: float = 0.1, tokenizer: str = "words", max_tokens: int = 32) -> Chain:
    """A simple training view: a drawn column of the text with word deletion, as tokens.

    Args:
        word_delete: the probability that a word is deleted.
        tokenizer: as for text/tokens.
        max_tokens: as for text/tokens.
    """
    tokens = TokenView(tokenizer, max_tokens)
    children = ("version", AnyColumn()), ("word-delete", WordDelete(share=word_delete)), ("tokens", tokens)
    return Chain(*children, name="text/words")


@register_view("text/plain", modality="text")
def plain(*, tokenizer: str = "words", max_tokens: int = 32) -> Chain:
    """The evaluation view: the first column of the text as tokens; nothing is drawn.

    Args:
        tokenizer: as for text/tokens.
        max_tokens: as for text/tokens.
    """
    return Chain(("tokens", TokenView(tokenizer, max_tokens)), name="text/plain")
