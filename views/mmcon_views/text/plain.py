"""Chains."""

from __future__ import annotations

from mmcon.registry import register_view
from mmcon.views import Chain
from mmcon_views.text.columns import AnyColumn
from mmcon_views.text.edits import WordDelete
from mmcon_views.text.tokens import TokenView


@register_view("text/words", modality="text")
def words(*, word_delete: float = 0.1, tokenizer: str = "words", max_tokens: int = 32) -> Chain:
    """Any version of the text, some of its words left out, as tokens: a plain view for training.

    Args:
        word_delete: the share of words left out.
        tokenizer: as for text/tokens.
        max_tokens: as for text/tokens.
    """
    tokens = TokenView(tokenizer, max_tokens)
    parts = ("version", AnyColumn()), ("word-delete", WordDelete(share=word_delete)), ("tokens", tokens)
    return Chain(*parts, name="text/words")


@register_view("text/plain", modality="text")
def plain(*, tokenizer: str = "words", max_tokens: int = 32) -> Chain:
    """The first version of the text as tokens: nothing drawn, for evaluation.

    Args:
        tokenizer: as for text/tokens.
        max_tokens: as for text/tokens.
    """
    return Chain(("tokens", TokenView(tokenizer, max_tokens)), name="text/plain")
