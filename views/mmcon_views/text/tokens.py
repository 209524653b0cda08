"""Tokenization of texts, and views of tokens: dropout of tokens and masked spans.

Views after `text/tokens` take and return `{"input_ids": b t, "attention_mask": b t}`. The uniforms of a text depend
only on its drawn seed, neither on the other texts nor on the padding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmcon.errors import DataError, InputError
from mmcon.media.text import TextHandle, as_text_handles
from mmcon.random import Keys, keys
from mmcon.registry import register_view
from mmcon.views import Meta, Params, ViewGenerator

Tokens = dict[str, Int[Tensor, "..."]]


@final
@register_view("text/tokens", modality="text")
class TokenView(ViewGenerator):
    """Tokenization: `{"input_ids": b t, "attention_mask": b t}` int64, truncated and padded to `max_tokens`.

    With a fixed width, a sample's tokens are the same in any batch. This costs only a few bytes of transfer, since
    encoders drop columns that are padding in the whole batch.

    >>> view = Chain(create_view("text/tokens", max_tokens=32), create_view("text/token-dropout"))

    Args:
        tokenizer: the name or the local folder of a transformers tokenizer; or "words": hashes of words and their
            letter trigrams, without a vocabulary file (for the embedding bag).
        max_tokens: the width t.
        vocabulary: the number of token ids of "words".
    """

    modality: ClassVar[str] = "text"
    ragged: ClassVar[bool] = True
    undecoded_only: ClassVar[bool] = True

    def __init__(self, tokenizer: str = "words", max_tokens: int = 64, vocabulary: int = 8192) -> None:
        if max_tokens < 2 or vocabulary < 2:
            got = f"max_tokens={max_tokens}, vocabulary={vocabulary}"
            raise InputError("text/tokens", expected="both 2 or more", got=got)
        self.tokenizer, self.max_tokens, self.vocabulary = tokenizer, max_tokens, vocabulary

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw nothing."""
        return {}

    def apply(self, batch: Sequence[TextHandle | str], params: Params) -> list[Tokens]:
        """Tokenize."""
        texts = as_text_handles(batch)
        empty = next((text for text in texts if not text.value.strip()), None)
        if empty is not None:
            raise DataError(f"text {empty.id!r}", expected="a text that is not empty", got=repr(empty.value))
        if self.tokenizer == "words":
            rows = [_hashed(text.value, self.vocabulary)[: self.max_tokens] for text in texts]
        else:
            encoded = load_tokenizer(self.tokenizer)(
                [text.value for text in texts], truncation=True, max_length=self.max_tokens
            )
            rows = encoded["input_ids"]
        return [self._padded(row) for row in rows]

    def _padded(self, row: list[int]) -> Tokens:
        pad = 0 if self.tokenizer == "words" else (load_tokenizer(self.tokenizer).pad_token_id or 0)
        ids = torch.full((self.max_tokens,), pad, dtype=torch.int64)
        ids[: len(row)] = torch.tensor(row, dtype=torch.int64)
        return {"input_ids": ids, "attention_mask": (torch.arange(self.max_tokens) < len(row)).to(torch.int64)}


@register_view("text/simcse", modality="text")
def simcse(tokenizer: str = "words", max_tokens: int = 64) -> TokenView:
    """SimCSE (Gao et al. 2021): all views are the same tokens; only the encoder's dropout makes them differ.

    Pass this view twice and train an encoder with dropout (0.1 in the paper, with temperature 0.05): each row of a
    batch has its own dropout mask.
    """
    return TokenView(tokenizer, max_tokens)


@lru_cache(maxsize=8)
def load_tokenizer(name: str) -> Any:
    """Load a transformers tokenizer by name or folder, cached."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # no such name, no network, a broken folder: many kinds
        raise DataError(
            f"text/tokens({name!r})",
            expected="the name or the folder of a transformers tokenizer",
            got=str(error).strip().partition("\n")[0],
            fix="check the path; without a network give a local folder, or tokenizer='words'",
        ) from error


@lru_cache(maxsize=1 << 18)
def _hash(piece: str, vocabulary: int) -> int:
    digest = hashlib.blake2b(piece.encode(), digest_size=8).digest()
    # From 1 on, since 0 is padding.
    return 1 + int.from_bytes(digest, "little") % (vocabulary - 1)


def _hashed(text: str, vocabulary: int) -> list[int]:
    """Token ids of the words and of their letter trigrams, including word boundaries; 0 is padding."""
    pieces: list[str] = []
    for word in text.lower().split():
        bounded = f"<{word}>"
        pieces += [bounded, *(bounded[i : i + 3] for i in range(len(bounded) - 2))]
    return [_hash(piece, vocabulary) for piece in pieces]


@final
@register_view("text/token-dropout", modality="text")
class TokenDropout(ViewGenerator):
    """Remove each token from the attention mask with a probability, except special tokens at the ends.

    Args:
        share: the probability.
        keep_first: the number of tokens at the beginning that always stay.
        keep_last: the number of tokens at the end that always stay.
    """

    modality: ClassVar[str] = "text"

    def __init__(self, share: float = 0.1, keep_first: int = 1, keep_last: int = 1) -> None:
        self.share = check_share("text/token-dropout", share)
        self.keep_first, self.keep_last = keep_first, keep_last

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw `seed`, `b` int64."""
        return {"seed": keys.bits("seed")}

    def apply(self, batch: Tokens, params: Params) -> Tokens:
        """Remove tokens from the attention mask."""
        mask = batch["attention_mask"]
        uniform = _uniforms(params["seed"], "token", mask)
        dropped = (uniform < self.share) & _inner(mask, self.keep_first, self.keep_last)
        return {**batch, "attention_mask": mask.masked_fill(dropped, 0)}


@final
@register_view("text/span-mask", modality="text")
class SpanMask(ViewGenerator):
    """Replace one span of tokens by the mask token.

    Args:
        mask_id: the id of the mask token (tokenizer.mask_token_id).
        share: the length of the span, as a fraction of the tokens between the special ones.
        keep_first: the number of tokens at the beginning that always stay.
        keep_last: the number of tokens at the end that always stay.
    """

    modality: ClassVar[str] = "text"

    def __init__(self, mask_id: int, share: float = 0.15, keep_first: int = 1, keep_last: int = 1) -> None:
        self.mask_id, self.share = mask_id, check_share("text/span-mask", share)
        self.keep_first, self.keep_last = keep_first, keep_last

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw `position`, `b` float64 in [0, 1), as a fraction of the possible starts."""
        return {"position": keys.uniform("place")}

    def apply(self, batch: Tokens, params: Params) -> Tokens:
        """Mask the span."""
        ids, mask = batch["input_ids"], batch["attention_mask"]
        inner = _inner(mask, self.keep_first, self.keep_last)
        count = inner.sum(1)
        length = (count * self.share + 0.5).long()
        begin = (params["position"].to(ids.device) * (count - length + 1)).long()
        number = inner.long().cumsum(1) - 1
        masked = inner & (number >= begin[:, None]) & (number < (begin + length)[:, None])
        return {**batch, "input_ids": ids.masked_fill(masked, self.mask_id)}


def _uniforms(seed: Int[Tensor, " b"], name: str, like: Int[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    """Uniforms from one seed per row; the first uniforms do not depend on the width."""
    return keys(sample=seed.cpu()).child("tokens").uniform(name, shape=(like.shape[1],)).to(like.device)


def _inner(mask: Int[Tensor, "b t"], first: int, last: int) -> Bool[Tensor, "b t"]:
    """The mask of a text's tokens, without the first and last few."""
    number = mask.cumsum(1) - 1
    return (mask > 0) & (number >= first) & (number < mask.sum(1, keepdim=True) - last)


def check_share(where: str, share: float) -> float:
    """Raise InputError if a share is outside of [0, 1)."""
    if not 0 <= share < 1:
        raise InputError(where, expected="0 <= share < 1", got=str(share))
    return share
