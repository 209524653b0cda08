"""Views of texts: which version, which span, which words, which characters; then tokens, and what is done to tokens.

    view = Chain(create_view("text/word-delete"), create_view("text/tokens", max_tokens=32))

Views before `text/tokens` take handles (mmcon.media.text.Text) and give handles; those after it take
`{"input_ids": b t, "attention_mask": b t}`. A text's random choices are expanded from one drawn seed, number by number,
so that they depend neither on the other texts nor on how far the batch is padded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from mmcon.errors import DataError, InputError
from mmcon.media.text import Text, as_texts
from mmcon.random import Keys, keys
from mmcon.registry import register_view
from mmcon.view import Meta, Params, ViewGenerator

Tokens = dict[str, Tensor]


class _OfStrings(ViewGenerator):
    """Draws a seed a text; a subclass changes strings with uniforms that the seed expands to."""

    modality: ClassVar[str] = "text"
    ragged: ClassVar[bool] = True
    decodes: ClassVar[bool] = True

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw one seed a text, `b` int64."""
        return {"seed": keys.bits("seed")}

    def apply(self, batch: Sequence[Text | str], params: Params) -> list[Text]:
        """Change text by text."""
        return [text.only(self.change(text.value, _Dice(seed))) for text, seed in _pairs(batch, params)]

    def change(self, text: str, dice: _Dice) -> str:
        """The changed text: a function of the text and of uniforms."""
        raise NotImplementedError


class _Dice:
    """Uniforms that one seed expands to, by name."""

    def __init__(self, seed: Tensor) -> None:
        self.key = keys(sample=seed.view(1)).child("text")

    def __call__(self, name: str, n: int) -> list[float]:
        return self.key.uniform(name, shape=(n,))[0].tolist()


def _pairs(batch: Sequence[Text | str], params: Params) -> list[tuple[Text, Tensor]]:
    return list(zip(as_texts(batch), params["seed"], strict=True))


def _share(where: str, share: float) -> float:
    if not 0 <= share < 1:
        raise InputError(where, expected="0 <= share < 1", got=str(share))
    return share


# --- which version, which span ---------------------------------------------------------------------------------------


@final
@register_view("text/column", modality="text")
class Column(ViewGenerator):
    """One column of the source as the view: a translation, the body under a title, the answer to a question.

    Args:
        column: its name.
    """

    modality: ClassVar[str] = "text"
    ragged: ClassVar[bool] = True
    decodes: ClassVar[bool] = True

    def __init__(self, column: str) -> None:
        self.column = column

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw nothing."""
        return {}

    def apply(self, batch: Sequence[Text], params: Params) -> list[Text]:
        """The column of every text."""
        return [text.version(self.column) for text in batch]


@final
@register_view("text/any-column", modality="text")
class AnyColumn(ViewGenerator):
    """A column drawn evenly for each view, so that every pair of columns is learned from.

    Args:
        columns: from which; none: all that the text has.
    """

    modality: ClassVar[str] = "text"
    ragged: ClassVar[bool] = True
    decodes: ClassVar[bool] = True

    def __init__(self, columns: Sequence[str] = ()) -> None:
        self.among = tuple(columns)

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw a place in the list of columns, `b` float64 in [0, 1)."""
        return {"place": keys.uniform("place")}

    def apply(self, batch: Sequence[Text], params: Params) -> list[Text]:
        """The drawn column of every text."""
        out = []
        for text, place in zip(batch, params["place"].tolist(), strict=True):
            names = self.among or text.names
            out.append(text.version(names[int(place * len(names))]))
        return out


@final
@register_view("text/declutr", modality="text")
class Declutr(ViewGenerator):
    """A span of a document as DeCLUTR draws it (Giorgi et al. 2021, section 3.1), counted in words.

    An anchor's length is min + (max - min)·Beta(4, 2), a positive's min + (max - min)·Beta(2, 4), so that anchors are
    long and positives short; a positive begins anywhere from its own length before the anchor to the anchor's end, so
    it is adjacent to, overlaps or lies within the anchor. A Beta of whole parameters is an order statistic of uniforms.
    Deviations: words split at white space stand for tokens; a text of fewer than `shortest` words is taken whole.

    Args:
        role: "anchor" or "positive". Both take the sample's anchor from the same draw.
        shortest: words in a span at least.
        longest: words in a span at most.
    """

    modality: ClassVar[str] = "text"
    ragged: ClassVar[bool] = True
    decodes: ClassVar[bool] = True

    def __init__(self, role: str, shortest: int = 32, longest: int = 512) -> None:
        if role not in ("anchor", "positive") or not 1 <= shortest <= longest:
            raise InputError(
                "text/declutr",
                expected="role anchor or positive, 1 <= shortest <= longest",
                got=f"role={role!r}, shortest={shortest}, longest={longest}",
            )
        self.role, self.shortest, self.longest = role, shortest, longest

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw lengths and places, each `b` float64 in [0, 1); the anchor's are those of view 0."""
        fields = keys.fields.clone()
        fields[:, 4] = 0
        shared = Keys(fields, step=keys.step).child("text/declutr")
        params = {
            "anchor_length": shared.uniform("anchor length", shape=(5,)).sort(1).values[:, 3],  # Beta(4, 2)
            "anchor_place": shared.uniform("anchor place"),
        }
        if self.role == "positive":
            params["length"] = keys.uniform("length", shape=(5,)).sort(1).values[:, 1]  # Beta(2, 4)
            params["place"] = keys.uniform("place")
        return params

    def apply(self, batch: Sequence[Text | str], params: Params) -> list[Text]:
        """Cut the spans out."""
        rows = [{name: float(values[i]) for name, values in params.items()} for i in range(len(batch))]
        return [text.only(self._cut(text.value, row)) for text, row in zip(as_texts(batch), rows, strict=True)]

    def _cut(self, text: str, row: dict[str, float]) -> str:
        words = text.split()
        if len(words) < self.shortest:
            return text
        most = min(self.longest, len(words))
        length = self.shortest + round((most - self.shortest) * row["anchor_length"])
        start = int(row["anchor_place"] * (len(words) - length + 1))
        if self.role == "positive":
            end, own = start + length, self.shortest + round((most - self.shortest) * row["length"])
            low, high = max(0, start - own), min(end, len(words) - own)
            start, length = low + int(row["place"] * (high - low + 1)), own
        return " ".join(words[start : start + length])


# --- words and characters --------------------------------------------------------------------------------------------


@final
@register_view("text/word-delete", modality="text")
class WordDelete(_OfStrings):
    """Each word is left out with a probability (EDA's random deletion, Wei and Zou 2019); one word always stays.

    Args:
        share: the probability.
    """

    def __init__(self, share: float = 0.1) -> None:
        self.share = _share("text/word-delete", share)

    def change(self, text: str, dice: _Dice) -> str:
        """Leave words out."""
        words = text.split()
        dropped = dice("word", len(words))
        kept = [word for word, u in zip(words, dropped, strict=True) if u >= self.share]
        return " ".join(kept or [words[dropped.index(max(dropped))]])


@final
@register_view("text/word-swap", modality="text")
class WordSwap(_OfStrings):
    """Pairs of words change places, share × words times (EDA's random swap), at least once where there are two.

    Args:
        share: swaps per word.
    """

    def __init__(self, share: float = 0.1) -> None:
        self.share = _share("text/word-swap", share)

    def change(self, text: str, dice: _Dice) -> str:
        """Swap words."""
        words = text.split()
        swaps = max(1, round(self.share * len(words))) if len(words) > 1 and self.share else 0
        places = dice("place", 2 * swaps)
        for u, v in zip(places[::2], places[1::2], strict=True):
            i = int(u * len(words))
            j = (i + 1 + int(v * (len(words) - 1))) % len(words)
            words[i], words[j] = words[j], words[i]
        return " ".join(words)


@final
@register_view("text/case-noise", modality="text")
class CaseNoise(_OfStrings):
    """Each word is written in lower case, in capitals or with a capital first letter, with a probability.

    Args:
        share: the probability.
    """

    def __init__(self, share: float = 0.2) -> None:
        self.share = _share("text/case-noise", share)

    def change(self, text: str, dice: _Dice) -> str:
        """Change the case of words."""
        words = text.split()
        ways: tuple[Callable[[str], str], ...] = (str.lower, str.upper, str.capitalize)
        chosen, way = dice("word", len(words)), dice("way", len(words))
        return " ".join(
            ways[int(v * 3)](word) if u < self.share else word for word, u, v in zip(words, chosen, way, strict=True)
        )


@final
@register_view("text/typos", modality="text")
class Typos(_OfStrings):
    """Each character between the ends of a word is left out, doubled or exchanged with the next, with a probability.

    Args:
        share: the probability for a character.
    """

    def __init__(self, share: float = 0.03) -> None:
        self.share = _share("text/typos", share)

    def change(self, text: str, dice: _Dice) -> str:
        """Make mistakes."""
        chosen, kind = dice("character", len(text)), dice("kind", len(text))
        out, i = [], 0
        while i < len(text):
            inside = 0 < i < len(text) - 1 and not (text[i - 1].isspace() or text[i].isspace() or text[i + 1].isspace())
            if not inside or chosen[i] >= self.share:
                out.append(text[i])
            elif kind[i] >= 2 / 3:
                out.append(text[i] * 2)
            elif kind[i] >= 1 / 3:
                out.append(text[i + 1] + text[i])
                i += 1
            i += 1
        return "".join(out)


# --- tokens ----------------------------------------------------------------------------------------------------------


@final
@register_view("text/tokens", modality="text")
class TokenView(ViewGenerator):
    """Where strings become numbers: `{"input_ids": b t, "attention_mask": b t}` int64, padded to `max_tokens`.

    A longer text is cut off there. Encoders drop the columns that are padding in a whole batch, so the fixed width
    costs a few bytes of transfer and makes a sample's tokens the same in any batch.

    Args:
        tokenizer: a transformers name or local folder; or "words": hashed words and their letter triples, which needs
            no vocabulary (for the embedding bag).
        max_tokens: t.
        vocabulary: of "words": how many numbers there are.
    """

    modality: ClassVar[str] = "text"
    ragged: ClassVar[bool] = True
    decodes: ClassVar[bool] = True

    def __init__(self, tokenizer: str = "words", max_tokens: int = 64, vocabulary: int = 8192) -> None:
        if max_tokens < 2 or vocabulary < 2:
            got = f"max_tokens={max_tokens}, vocabulary={vocabulary}"
            raise InputError("text/tokens", expected="both 2 or more", got=got)
        self.tokenizer, self.max_tokens, self.vocabulary = tokenizer, max_tokens, vocabulary

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw nothing."""
        return {}

    def apply(self, batch: Sequence[Text | str], params: Params) -> list[Tokens]:
        """Tokenise."""
        texts = as_texts(batch)
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
    """The same text as every view, told apart by the encoder's dropout alone (Gao et al. 2021: dropout .1, T .05).

    Rows of a batch get dropout masks of their own, so give this view twice and train with dropout in the encoder.
    """
    return TokenView(tokenizer, max_tokens)


@lru_cache(maxsize=8)
def load_tokenizer(name: str) -> Any:
    """A transformers tokenizer by name or folder, loaded once a process."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
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
    return 1 + int.from_bytes(digest, "little") % (vocabulary - 1)


def _hashed(text: str, vocabulary: int) -> list[int]:
    """Numbers of words, and of the letter triples of each between boundaries; 0 is padding."""
    pieces: list[str] = []
    for word in text.lower().split():
        bounded = f"<{word}>"
        pieces += [bounded, *(bounded[i : i + 3] for i in range(len(bounded) - 2))]
    return [_hash(piece, vocabulary) for piece in pieces]


@final
@register_view("text/token-dropout", modality="text")
class TokenDropout(ViewGenerator):
    """Each token is taken out of the attention mask with a probability; the ends, which are special, stay.

    Args:
        share: the probability.
        keep_first: tokens at the beginning that always stay.
        keep_last: tokens at the end that always stay.
    """

    modality: ClassVar[str] = "text"

    def __init__(self, share: float = 0.1, keep_first: int = 1, keep_last: int = 1) -> None:
        self.share = _share("text/token-dropout", share)
        self.keep_first, self.keep_last = keep_first, keep_last

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw a seed a text, `b` int64, which is expanded where it is applied."""
        return {"seed": keys.bits("seed")}

    def apply(self, batch: Tokens, params: Params) -> Tokens:
        """Take tokens out of the mask."""
        mask = batch["attention_mask"]
        uniform = _field(params["seed"], "token", mask)
        dropped = (uniform < self.share) & _inner(mask, self.keep_first, self.keep_last)
        return {**batch, "attention_mask": mask.masked_fill(dropped, 0)}


@final
@register_view("text/span-mask", modality="text")
class SpanMask(ViewGenerator):
    """One span of tokens, a share of the text, is replaced by the mask token.

    Args:
        mask_id: the mask token's number (tokenizer.mask_token_id).
        share: of the tokens between the special ones.
        keep_first: tokens at the beginning that always stay.
        keep_last: tokens at the end that always stay.
    """

    modality: ClassVar[str] = "text"

    def __init__(self, mask_id: int, share: float = 0.15, keep_first: int = 1, keep_last: int = 1) -> None:
        self.mask_id, self.share = mask_id, _share("text/span-mask", share)
        self.keep_first, self.keep_last = keep_first, keep_last

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw where the span begins, `b` float64 in [0, 1), as a share of the places that it can take."""
        return {"place": keys.uniform("place")}

    def apply(self, batch: Tokens, params: Params) -> Tokens:
        """Mask the span."""
        ids, mask = batch["input_ids"], batch["attention_mask"]
        inner = _inner(mask, self.keep_first, self.keep_last)
        count = inner.sum(1)
        length = (count * self.share + 0.5).long()
        begin = (params["place"].to(ids.device) * (count - length + 1)).long()
        number = inner.long().cumsum(1) - 1
        masked = inner & (number >= begin[:, None]) & (number < (begin + length)[:, None])
        return {**batch, "input_ids": ids.masked_fill(masked, self.mask_id)}


def _field(seed: Tensor, name: str, like: Tensor) -> Tensor:
    """Uniforms `b t` from a seed a row; a longer row begins with those of a shorter one."""
    return keys(sample=seed.cpu()).child("tokens").uniform(name, shape=(like.shape[1],)).to(like.device)


def _inner(mask: Tensor, first: int, last: int) -> Tensor:
    """The tokens of a text but its first and last few, `b t` bool."""
    number = mask.cumsum(1) - 1
    return (mask > 0) & (number >= first) & (number < mask.sum(1, keepdim=True) - last)
